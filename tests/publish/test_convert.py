"""Weights and configurations go to the other families and back unchanged, or not at all."""

import logging

import pytest
import torch
import transformers
from torch import nn
from transformers import BertConfig, ModernBertConfig

import hf_tfenc
from hf_tfenc.presets import preset_config
from hf_tfenc.publish.convert import (
    from_bert,
    from_bert_config,
    from_modernbert,
    from_modernbert_config,
    from_torch_encoder,
    to_bert,
    to_bert_config,
    to_modernbert,
    to_modernbert_config,
    to_torch_encoder,
)

SIZE = {
    "vocab_size": 48,
    "hidden_size": 16,
    "num_hidden_layers": 12,  # two digits in a layer's number
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
SPECIAL = {f"{name}_token_id": index for index, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}
# Each head with what our class calls its output layer.
HEADS = {
    "Model": "classifier",
    "ForMaskedLM": "classifier",
    "ForSequenceClassification": "classifier",
    "ForTokenClassification": "classifier",
    "ForQuestionAnswering": "qa_outputs",
    "ForMultipleChoice": "score",
}


def random_state(model):
    """Values that no two parameters share, tied ones apart."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.state_dict()


def assert_equal_states(result, expected):
    assert set(result) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(result[name], tensor), name


@pytest.mark.parametrize("head", HEADS)
def test_bert_comes_here_and_goes_back_unchanged(head):
    config = BertConfig(**SIZE, type_vocab_size=3, num_labels=2)
    theirs = random_state(getattr(transformers, f"Bert{head}")(config))
    ours = getattr(hf_tfenc, f"TfEnc{head}")(from_bert_config(config))
    ours.load_state_dict(from_bert(theirs, HEADS[head]))
    assert_equal_states(to_bert(ours.state_dict()), theirs)


@pytest.mark.parametrize("head", HEADS)
def test_we_go_to_bert_and_come_back_unchanged(head):
    config = preset_config("bert-tiny", **SIZE)
    ours = random_state(getattr(hf_tfenc, f"TfEnc{head}")(config))
    theirs = getattr(transformers, f"Bert{head}")(to_bert_config(config))
    theirs.load_state_dict(to_bert(ours))
    assert_equal_states(from_bert(theirs.state_dict(), HEADS[head]), ours)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_modernbert_comes_here_and_goes_back_unchanged(head, bias):
    biases = {f"{part}_bias": bias for part in ("attention", "mlp", "norm", "classifier")} | {"decoder_bias": not bias}
    config = ModernBertConfig(**SIZE | SPECIAL, **biases, num_labels=2)
    theirs = random_state(getattr(transformers, f"ModernBert{head}")(config))
    ours = getattr(hf_tfenc, f"TfEnc{head}")(from_modernbert_config(config))
    ours.load_state_dict(from_modernbert(theirs, HEADS[head]))
    assert_equal_states(to_modernbert(ours.state_dict()), theirs)


@pytest.mark.parametrize("head", HEADS)
def test_we_go_to_modernbert_and_come_back_unchanged(head):
    config = preset_config("modern-tiny", **SIZE | SPECIAL)
    ours = random_state(getattr(hf_tfenc, f"TfEnc{head}")(config))
    theirs = getattr(transformers, f"ModernBert{head}")(to_modernbert_config(config))
    theirs.load_state_dict(to_modernbert(ours))
    assert_equal_states(from_modernbert(theirs.state_dict(), HEADS[head]), ours)


@pytest.mark.parametrize("final_norm", [False, True])
def test_torchs_encoder_comes_here_and_goes_back_unchanged(final_norm):
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    norm = nn.LayerNorm(16) if final_norm else None
    theirs = random_state(nn.TransformerEncoder(layer, 12, norm, enable_nested_tensor=False))
    assert_equal_states(to_torch_encoder(from_torch_encoder(theirs)), theirs)
    model = hf_tfenc.TfEncModel(preset_config("classic-tiny", **SIZE, final_norm=final_norm))
    model.load_state_dict(from_torch_encoder(theirs), strict=False)
    assert_equal_states(to_torch_encoder(model.state_dict()), theirs)


# --- What has no counterpart -----------------------------------------------------------------------------------------


def test_berts_next_sentence_head_is_left_out_and_named(caplog):
    config = BertConfig(**SIZE)
    theirs = random_state(transformers.BertForPreTraining(config)) | {"bert.embeddings.position_ids": torch.arange(32)}
    with caplog.at_level(logging.WARNING):
        ours = from_bert(theirs)
    named = {record.message for record in caplog.records}
    assert named == {
        f"{name} has no counterpart on the other side and is left out."
        for name in ("cls.seq_relationship.weight", "cls.seq_relationship.bias", "bert.embeddings.position_ids")
    }
    masked_lm = {name: tensor for name, tensor in theirs.items() if f"{name} has no counterpart" not in str(named)}
    assert_equal_states(to_bert(ours), {name: t for name, t in masked_lm.items() if not name.startswith("cls.seq")})


def test_our_embeddings_are_left_out_and_named_on_the_way_to_torchs_encoder(caplog):
    model = hf_tfenc.TfEncModel(preset_config("classic-tiny", **SIZE))
    with caplog.at_level(logging.WARNING):
        to_torch_encoder(model.state_dict())
    message = "embeddings.embed_tokens.weight has no counterpart on the other side and is left out."
    assert [record.message for record in caplog.records] == [message]


@pytest.mark.parametrize("convert", [from_torch_encoder, from_bert, from_modernbert])
def test_an_unknown_weight_is_named(convert):
    name = {from_bert: "bert.adapter.weight", from_modernbert: "model.adapter.weight"}.get(convert, "adapter.weight")
    with pytest.raises(ValueError, match=rf"^The weight {name} has no counterpart on the other side; convert without"):
        convert({name: torch.zeros(1)})


@pytest.mark.parametrize("convert", [to_torch_encoder, to_bert, to_modernbert])
def test_our_unknown_weight_is_named(convert):
    name = "layers.0.attention.gate.weight" if convert is to_torch_encoder else "model.layers.0.attention.gate.weight"
    with pytest.raises(ValueError, match=rf"^The weight {name} has no counterpart on the other side; convert without"):
        convert({name: torch.zeros(1)})


# --- Configurations --------------------------------------------------------------------------------------------------


def test_berts_configuration_comes_here_and_goes_back_unchanged():
    theirs = BertConfig(
        **SIZE,
        pad_token_id=3,
        type_vocab_size=3,
        layer_norm_eps=1e-6,
        hidden_act="relu",
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.3,
        classifier_dropout=0.4,
        initializer_range=0.05,
        tie_word_embeddings=False,
        id2label={0: "a", 1: "b", 2: "c"},
        problem_type="regression",
    )
    assert to_bert_config(from_bert_config(theirs)).to_dict() == theirs.to_dict()


def test_without_a_dropout_of_its_own_berts_classifier_has_that_of_the_rest():
    assert from_bert_config(BertConfig(hidden_dropout_prob=0.3)).classifier_dropout == 0.3


def test_modernberts_configuration_comes_here_and_goes_back_unchanged():
    theirs = ModernBertConfig(
        **SIZE | SPECIAL,
        local_attention=10,
        layer_types=["sliding_attention", "full_attention"] * 6,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 77.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 55.0},
        },
        norm_eps=1e-6,
        norm_bias=True,
        classifier_bias=True,
        classifier_pooling="mean",
        hidden_activation="relu",
        classifier_activation="tanh",
        classifier_dropout=0.1,
        mlp_dropout=0.2,
        attention_dropout=0.3,
        embedding_dropout=0.4,
        id2label={0: "a", 1: "b", 2: "c"},
    )
    ours = from_modernbert_config(theirs)
    assert ours.sliding_window == 5
    assert to_modernbert_config(ours).to_dict() == theirs.to_dict()


@pytest.mark.parametrize(
    "layers, distance",
    [("ffffffffffff", 1), ("fsfsfsfsfsfs", 2), ("fssssfssssfs", 5), ("fsssssssssss", 12), ("sfsfsfsfsfsf", None)],
)
def test_modernbert_is_also_described_as_older_versions_of_it_are(layers, distance):
    theirs = ModernBertConfig(
        **SIZE | SPECIAL,
        layer_types=[{"f": "full_attention", "s": "sliding_attention"}[letter] for letter in layers],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 77.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 55.0},
        },
    )
    served = to_modernbert_config(from_modernbert_config(theirs)).to_dict()
    names = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta")
    older = {name: served[name] for name in names if name in served}
    assert older.get("global_attn_every_n_layers") == distance
    if distance is not None:
        read = ModernBertConfig(**SIZE | SPECIAL, **older)
        assert read.layer_types == theirs.layer_types
        assert all(read.rope_parameters[kind] == theirs.rope_parameters[kind] for kind in set(theirs.layer_types))


@pytest.mark.parametrize("option", ["is_decoder", "add_cross_attention"])
def test_a_bert_that_decodes_is_refused(option):
    with pytest.raises(ValueError, match="This BERT is a decoder"):
        from_bert_config(BertConfig(**{option: True}))


@pytest.mark.parametrize(
    "options",
    [
        {"position_embedding_type": "none"},
        {"embedding_scale": 2.0},
        {"norm_position": "pre"},
        {"embedding_norm": False},
        {"final_norm": True},
        {"first_attention_norm": False},
        {"gated_mlp": True},
        {"attention_bias": False},
        {"mlp_bias": False},
        {"norm_bias": False},
        {"head_bias": False},
        {"decoder_bias": False},
        {"sliding_window": 4, "layer_types": ["sliding_attention"] * 12},
        {"is_causal": True},
        {"pooling": "mean"},
        {"pooler_activation": None},
        {"head_transform": "all"},
        {"classifier_activation": "relu"},
        {"type_vocab_size": 0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_bert_cannot_is_refused_by_name(options):
    with pytest.raises(
        ValueError,
        match=rf"^BERT has {next(iter(options))} .* and this model .*; convert it to another one, or leave it as it is\.$",
    ):
        to_bert_config(preset_config("bert-tiny", **SIZE | options))


@pytest.mark.parametrize(
    "options",
    [
        {"type_vocab_size": 2},
        {"position_embedding_type": "none", "rope_parameters": None},
        {"embedding_scale": 2.0},
        {"norm_position": "post"},
        {"embedding_norm": False},
        {"final_norm": False},
        {"first_attention_norm": True},
        {"gated_mlp": False},
        {"is_causal": True},
        {"pooler_activation": "tanh"},
        {"head_transform": "lm"},
        {"pooling": "none"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_modernbert_cannot_is_refused_by_name(options):
    with pytest.raises(
        ValueError,
        match=rf"^ModernBERT has {next(iter(options))} .* and this model .*; convert it to another one, or leave it as it is\.$",
    ):
        to_modernbert_config(preset_config("modern-tiny", **SIZE | options))
