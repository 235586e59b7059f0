"""Twelve named configurations, and what can be changed about them."""

import pytest
import torch
from transformers import BertConfig, ModernBertConfig

from hf_tfenc import TfEncForMaskedLM
from hf_tfenc.presets import PRESETS, preset_config
from hf_tfenc.publish.convert import from_bert_config, from_modernbert_config, to_bert_config, to_modernbert_config


def test_there_are_three_families_in_four_sizes():
    assert set(PRESETS) == {
        f"{family}-{size}" for family in ("classic", "bert", "modern") for size in ("tiny", "small", "base", "large")
    }


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_makes_a_model(name):
    config = preset_config(name)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in TfEncForMaskedLM(config).parameters())
    assert parameters > 4e6
    assert len(config.layer_types) == config.num_hidden_layers
    assert config.hidden_size // config.num_attention_heads in (32, 64)


@pytest.mark.parametrize("family", ["classic", "bert", "modern"])
def test_sizes_grow(family):
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in TfEncForMaskedLM(preset_config(f"{family}-{size}")).parameters())
            for size in ("tiny", "small", "base", "large")
        ]
    assert sizes == sorted(sizes)


def assert_same_architecture(ours, theirs, but=()):
    differing = {
        name
        for name, value in theirs.to_dict().items()
        if name not in ("auto_map", "architectures", "transformers_version", *but) and getattr(ours, name) != value
    }
    assert not differing


def test_bert_base_is_the_bert_of_transformers():
    ours, theirs = preset_config("bert-base", vocab_size=30_522), BertConfig()
    assert_same_architecture(ours, from_bert_config(theirs))
    assert to_bert_config(ours).to_dict() == theirs.to_dict() | {"classifier_dropout": 0.1}


def test_modern_base_is_the_modernbert_of_transformers():
    theirs = ModernBertConfig()
    special = {name: getattr(theirs, name) for name in theirs.to_dict() if name.endswith("_token_id")}
    ours = preset_config("modern-base", vocab_size=theirs.vocab_size, **special)
    assert_same_architecture(ours, from_modernbert_config(theirs))
    assert to_modernbert_config(ours).layer_types == theirs.layer_types


def test_every_third_modern_layer_sees_the_whole_sequence():
    config = preset_config("modern-small", num_hidden_layers=7)
    assert [kind == "full_attention" for kind in config.layer_types] == [True, False, False, True, False, False, True]
    assert config.sliding_window == 64
    assert preset_config("modern-small", layer_types=["full_attention"] * 10).layer_types == ["full_attention"] * 10


def test_options_win_over_the_preset():
    config = preset_config("bert-small", vocab_size=99, hidden_act="relu", is_causal=True)
    assert (config.vocab_size, config.hidden_act, config.is_causal) == (99, "relu", True)
    assert preset_config("bert-small").hidden_act == "gelu"


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"^'bert-huge' is not a preset; there are classic-tiny, .*, modern-large\.$"):
        preset_config("bert-huge")


def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match=r"Did you mean 'hidden_size'\?"):
        preset_config("bert-tiny", hiden_size=3)
