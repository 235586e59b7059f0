"""Whole checkpoints go to the other families and back: weights bit for bit, outputs alike, tokenizers too."""

import json
import logging
import re
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, BertConfig, ModernBertConfig
from typer.testing import CliRunner

import hf_tfenc
from hf_tfenc.cli import app
from hf_tfenc.presets import preset_config
from hf_tfenc.pretrained import read_pretrained
from hf_tfenc.publish import conversion
from hf_tfenc.publish.conversion import HEADS, convert, torch_encoder

SIZE = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
SPECIAL = {f"{name}_token_id": index for index, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}
CONFIGS = {
    "bert": BertConfig(**SIZE, id2label={0: "a", 1: "b"}, classifier_dropout=0.2),
    "modernbert": ModernBertConfig(**SIZE | SPECIAL, local_attention=8, id2label={0: "a", 1: "b"}, norm_bias=True),
}


def randomized(model):
    """All parameters random, norms and biases too, so that none can take another's place unseen."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) / 3)
    return model


def make(folder, family, head, tokenizer=None):
    prefix = conversion.PREFIXES[family]
    model = randomized(getattr(transformers, prefix + head)(CONFIGS[family]))
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return model


def make_ours(folder, preset, head="ForMaskedLM", **options):
    model = randomized(getattr(hf_tfenc, f"TfEnc{head}")(preset_config(preset, **SIZE | options)))
    model.save_pretrained(folder)
    return model


def assert_same_files(first, second):
    first, second = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def largest_difference(report):
    return float(re.search(r"differ by (\S+) at most", " ".join(report))[1])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", CONFIGS)
def test_a_checkpoint_comes_here_and_goes_back_unchanged(tmp_path, tokenizer, family, head):
    theirs = make(tmp_path / "theirs", family, head, tokenizer)
    report = convert(str(tmp_path / "theirs"), tmp_path / "ours")
    assert largest_difference(report) < 1e-5 and report[-1] == f"{tmp_path / 'ours'} holds a TfEnc{head}."
    report = convert(str(tmp_path / "ours"), tmp_path / "back", family)
    assert largest_difference(report) < 1e-5
    assert_same_files(tmp_path / "theirs", tmp_path / "back")
    back = type(theirs).from_pretrained(tmp_path / "back")
    same = {"_name_or_path", "transformers_version", "dtype", "architectures", "global_attn_every_n_layers"}
    then, now = theirs.config.to_dict(), back.config.to_dict()
    assert {k: v for k, v in now.items() if k not in same} == {k: v for k, v in then.items() if k not in same}
    for folder in ("ours", "back"):
        travelled = AutoTokenizer.from_pretrained(tmp_path / folder)
        assert travelled("the cat draws [MASK].").input_ids == tokenizer("the cat draws [MASK].").input_ids


@pytest.mark.parametrize("preset, family", [("bert-tiny", "bert"), ("modern-tiny", "modernbert")])
@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification"])
def test_ours_goes_out_and_comes_back_unchanged(tmp_path, preset, family, head):
    make_ours(tmp_path / "ours", preset, head, **SPECIAL)
    convert(str(tmp_path / "ours"), tmp_path / "theirs", family)
    convert(str(tmp_path / "theirs"), tmp_path / "back")
    assert_same_files(tmp_path / "ours", tmp_path / "back")


SERVED = """
import sys
sys.modules["hf_tfenc"] = None  # so that importing it fails
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
for family in ("bert", "modernbert"):
    model, tokenizer = (auto.from_pretrained(family) for auto in (AutoModelForMaskedLM, AutoTokenizer))
    inputs = tokenizer(["the cat draws", "[MASK]"], padding=True, return_tensors="pt")
    torch.save(model.eval()(**inputs).logits.detach(), f"{family}.pt")
"""


def test_what_is_served_loads_without_us_and_without_remote_code(tmp_path, tokenizer):
    inputs = tokenizer(["the cat draws", "[MASK]"], padding=True, return_tensors="pt")
    expected = {}
    for preset, family in (("bert-tiny", "bert"), ("modern-tiny", "modernbert")):
        model = make_ours(tmp_path / preset, preset, **SPECIAL)
        tokenizer.save_pretrained(tmp_path / preset)
        convert(str(tmp_path / preset), tmp_path / family, family)
        assert not list((tmp_path / family).glob("*.py"))
        assert "auto_map" not in json.loads((tmp_path / family / "config.json").read_text())
        tokenizer_options = json.loads((tmp_path / family / "tokenizer_config.json").read_text())
        assert tokenizer_options["tokenizer_class"] == "PreTrainedTokenizerFast"  # which transformers 4 knows, too
        expected[family] = model.eval()(**inputs).logits.detach()
    done = subprocess.run([sys.executable, "-c", SERVED], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for family, logits in expected.items():
        kept = inputs["attention_mask"].bool()
        torch.testing.assert_close(torch.load(tmp_path / f"{family}.pt")[kept], logits[kept], atol=1e-5, rtol=1e-5)


def test_what_is_left_out_is_named(tmp_path, caplog):
    make(tmp_path / "theirs", "bert", "ForPreTraining")
    with caplog.at_level(logging.WARNING):
        report = convert(str(tmp_path / "theirs"), tmp_path / "ours")
    assert "cls.seq_relationship.weight has no counterpart on the other side and is left out." in caplog.messages
    assert report[0] == ("Left out, for this head does without: model.pooler.dense.bias, model.pooler.dense.weight.")
    assert largest_difference(report) < 1e-5
    assert f"{tmp_path / 'theirs'} holds no tokenizer, so none travels along." in report


def test_old_files_are_read(tmp_path):
    """Of before 2020: a pickle of tensors, norms with gamma and beta, the output bias under one name."""
    model = make(tmp_path / "theirs", "bert", "ForMaskedLM")
    (tmp_path / "theirs" / "model.safetensors").unlink()
    state = {
        re.sub("LayerNorm.bias", "LayerNorm.beta", re.sub("LayerNorm.weight", "LayerNorm.gamma", name)): tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("cls.predictions.decoder.")
    }
    torch.save(state, tmp_path / "theirs" / "pytorch_model.bin")
    weights = read_pretrained(str(tmp_path / "theirs")).weights
    assert torch.equal(weights["model.embeddings.norm.weight"], model.bert.embeddings.LayerNorm.weight)
    assert torch.equal(weights["decoder.bias"], model.cls.predictions.bias)


def test_weights_in_several_files_are_read(tmp_path):
    model = randomized(transformers.BertModel(CONFIGS["bert"]))
    model.save_pretrained(tmp_path / "theirs", max_shard_size="10KB")
    assert not (tmp_path / "theirs" / "model.safetensors").exists()
    assert largest_difference(convert(str(tmp_path / "theirs"), tmp_path / "ours")) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_as_it_is(tmp_path, dtype):
    make(tmp_path / "full", "bert", "ForMaskedLM").to(dtype).save_pretrained(tmp_path / "theirs")
    convert(str(tmp_path / "theirs"), tmp_path / "ours")
    convert(str(tmp_path / "ours"), tmp_path / "back", "bert")
    assert_same_files(tmp_path / "theirs", tmp_path / "back")
    assert {tensor.dtype for tensor in load_file(tmp_path / "ours" / "model.safetensors").values()} == {dtype}


# --- torch.nn.TransformerEncoder -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize(
    "norm_first, bias, activation", [(False, True, "relu"), (True, True, "gelu"), (True, False, "relu")]
)
def test_torchs_encoder_comes_here_and_goes_back_unchanged(tmp_path, tokenizer, suffix, norm_first, bias, activation):
    layer = nn.TransformerEncoderLayer(16, 4, 24, norm_first=norm_first, bias=bias, activation=activation)
    norm = nn.LayerNorm(16, bias=bias) if norm_first else None
    theirs = randomized(nn.TransformerEncoder(layer, 3, norm, enable_nested_tensor=False))
    path = tmp_path / f"encoder.{suffix}"
    save_file(theirs.state_dict(), path) if suffix == "safetensors" else torch.save(theirs.state_dict(), path)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    options = {"nhead": 4, "hidden_act": activation, "norm_position": "pre" if norm_first else "post"}
    report = convert(str(path), tmp_path / "ours", None, str(tmp_path / "tokenizer"), options)
    assert largest_difference(report) < 1e-5
    assert report[0] == "Not in a TransformerEncoder, so begun anew: embeddings.embed_tokens.weight."
    assert read_pretrained(str(tmp_path / "ours")).config.vocab_size == len(tokenizer)

    report = convert(str(tmp_path / "ours"), tmp_path / "back", "torch")
    assert largest_difference(report) < 1e-5 and "embeddings.embed_tokens.weight" in report[0]
    back = torch_encoder(json.loads((tmp_path / "back" / "encoder.json").read_text()))
    back.load_state_dict(load_file(tmp_path / "back" / "model.safetensors"))
    assert all(torch.equal(back.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())
    assert AutoTokenizer.from_pretrained(tmp_path / "back").get_vocab() == tokenizer.get_vocab()
    x = torch.randn(7, 2, 16)  # theirs has time first
    torch.testing.assert_close(back.eval()(x.transpose(0, 1)).transpose(0, 1), theirs.eval()(x))


@pytest.mark.parametrize(
    "options",
    [
        {"first_attention_norm": False, "norm_position": "pre"},
        {"gated_mlp": True},
        {"is_causal": True},
        {"position_embedding_type": "rotary"},
        {"hidden_act": "silu"},
        {"attention_bias": False},
        {"sliding_window": 4, "layer_types": ["sliding_attention"] * 4},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_torchs_encoder_cannot_is_refused_by_name(tmp_path, options):
    make_ours(tmp_path / "ours", "classic-tiny", "Model", **options)
    with pytest.raises(
        ValueError, match=rf"^torch.nn.TransformerEncoder has .*{next(iter(options))}.* leave it as it is\.$"
    ):
        convert(str(tmp_path / "ours"), tmp_path / "out", "torch")
    assert not (tmp_path / "out").exists()


# --- What is refused -------------------------------------------------------------------------------------------------


def test_sinusoids_become_a_learned_table_where_the_rest_fits(tmp_path):
    options = {"embedding_norm": True, "type_vocab_size": 1, "head_transform": "lm", "pooler_activation": "tanh"}
    options |= {"embedding_scale": 1.0, "classifier_activation": "relu"}
    make_ours(tmp_path / "ours", "classic-tiny", **options)
    report = convert(str(tmp_path / "ours"), tmp_path / "served", "bert")
    assert largest_difference(report) < 1e-5
    assert report[0].startswith("In training alone, dropout differs: mlp_dropout 0.1 here and 0.0 there.")
    make_ours(tmp_path / "textbook", "classic-tiny")
    with pytest.raises(
        ValueError, match=r"BERT has embedding_scale 1\.0 and this model 4\.0; convert it to another one"
    ):
        convert(str(tmp_path / "textbook"), tmp_path / "out", "bert")


def test_models_whose_outputs_differ_are_not_written(tmp_path, monkeypatch):
    make(tmp_path / "theirs", "bert", "ForMaskedLM")
    path = tmp_path / "theirs" / "config.json"
    family = hf_tfenc.pretrained.FAMILIES["bert"]

    def wrong(config):
        right = family.config(config)
        right.layer_norm_eps = 0.5
        return right

    monkeypatch.setitem(hf_tfenc.pretrained.FAMILIES, "bert", family._replace(config=wrong))
    with pytest.raises(ValueError, match=r"logits would differ by .* so nothing was written"):
        convert(str(path.parent), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_window_is_seen(tmp_path, monkeypatch):
    make_ours(tmp_path / "ours", "modern-tiny", sliding_window=40, max_position_embeddings=100)
    right = conversion.DESTINATIONS["modernbert"]

    def wrong(config):
        theirs = right.config(config)
        theirs.local_attention, theirs.sliding_window = 72, 36
        return theirs

    monkeypatch.setitem(conversion.DESTINATIONS, "modernbert", right._replace(config=wrong))
    with pytest.raises(ValueError, match=r"would differ by .* on a batch of shape \(2, 85\), so nothing was written"):
        convert(str(tmp_path / "ours"), tmp_path / "out", "modernbert")


def test_a_head_that_does_not_fit_its_labels_is_refused(tmp_path):
    make_ours(tmp_path / "ours", "bert-tiny", "ForSequenceClassification")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    names = {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config | names))
    with pytest.raises(ValueError, match=r"classifier\.bias of shape \(2,\), and its config\.json says \(3,\)\.$"):
        convert(str(tmp_path / "ours"), tmp_path / "out", "bert")


def test_a_checkpoint_without_its_head_is_refused(tmp_path):
    make(tmp_path / "theirs", "bert", "ForSequenceClassification")
    weights = load_file(tmp_path / "theirs" / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "classifier" not in name}
    save_file(kept, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks the weight classifier\.bias: it is no whole BertForSequenceClassification"
    ):
        convert(str(tmp_path / "theirs"), tmp_path / "out")


@pytest.mark.parametrize(
    "overrides, said",
    [
        ({"num_layers": 2}, r"--config_overrides num_hidden_layers is 2, and the weights say 3: leave it out\.$"),
        ({"d_model": 64}, r"--config_overrides hidden_size is 64, and the weights say 16: leave it out\.$"),
        ({"final_norm": True}, r"--config_overrides final_norm is True, and the weights say False: leave it out\.$"),
    ],
)
def test_what_torchs_weights_say_is_not_overridden(tmp_path, overrides, said):
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 3)
    torch.save(encoder.state_dict(), tmp_path / "encoder.pt")
    with pytest.raises(ValueError, match=said):
        convert(str(tmp_path / "encoder.pt"), tmp_path / "out", overrides={"nhead": 2, "vocab_size": 50} | overrides)


def test_mistakes_are_one_sentence(tmp_path):
    make(tmp_path / "theirs", "bert", "ForNextSentencePrediction")
    make_ours(tmp_path / "ours", "bert-tiny")
    transformers.GPT2Config().save_pretrained(tmp_path / "gpt2")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    torch.save({"weight": 3}, tmp_path / "numbers.pt")
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    BertConfig().save_pretrained(tmp_path / "weightless")
    for source, options, said in [
        ("theirs", [], "is a BertForNextSentencePrediction, which has no counterpart; those that have one are BertM"),
        ("theirs", ["--to", "bert"], "--to is for a model of ours, and"),
        ("ours", [], "is a model of ours: say with --to whether it goes to bert, modernbert or torch"),
        ("ours", ["--to", "gpt"], "--to is 'gpt'; it is one of bert, modernbert and torch"),
        ("ours", ["--to", "modernbert"], "ModernBERT has type_vocab_size 0 and this model 2"),
        ("ours", ["--to", "bert", "--tokenizer_name", "x"], "are for a state dict"),
        ("gpt2", [], "is a gpt2 model; only tfenc models, and bert and modernbert ones"),
        ("nowhere/at/all", [], "There is no folder"),
        ("", [], "holds no model (no config.json): check the path"),
        ("missing.pt", [], "There is no file"),
        ("weightless", [], "holds no weights (no model.safetensors or pytorch_model.bin)"),
        ("other.pt", ["--config_overrides", "{vocab_size: 9, nhead: 2}"], "has no layers.0.self_attn.in_proj_weight"),
        ("other.pt", [], "name a tokenizer with --tokenizer_name"),
        ("numbers.pt", [], "is no state dict, which maps names to tensors"),
        ("damaged.safetensors", [], "cannot be read ("),
        ("other.pt", ["--config_overrides", "3"], "--config_overrides '3' is no mapping"),
    ]:
        result = CliRunner().invoke(app, ["convert", str(tmp_path / source), str(tmp_path / "out"), *options])
        assert result.exit_code == 2 and said in result.stderr, (source, options, result.stderr)
        assert result.stderr.splitlines()[-1].startswith("Error: ") and not (tmp_path / "out").exists()
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "ours"), str(tmp_path), "--to", "bert"])
    assert result.exit_code == 2 and "holds something already: choose a new folder" in result.stderr


def test_the_command_says_what_it_did(tmp_path):
    make_ours(tmp_path / "ours", "bert-tiny")
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "ours"), str(tmp_path / "out"), "--to", "bert"])
    assert result.exit_code == 0, result.stderr
    assert "differ by" in result.stdout and f"{tmp_path / 'out'} holds a BertForMaskedLM." in result.stdout
