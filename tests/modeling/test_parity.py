"""The three corners compute what torch.nn.TransformerEncoder, BERT and ModernBERT compute, with their weights."""

import numpy as np
import pytest
import torch
import transformers
from corners import SIZE, VOCAB, padding_mask, randomize, tiny, token_ids
from torch import nn
from transformers import BertConfig, ModernBertConfig

import hf_tfenc
from hf_tfenc.modeling_tfenc import rotary_table, rotate, sinusoidal_table
from hf_tfenc.publish.convert import (
    from_bert,
    from_bert_config,
    from_modernbert,
    from_modernbert_config,
    from_torch_encoder,
)

HEADS = (
    "Model",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)
NUM_LABELS = {"ForQuestionAnswering": 2}  # where transformers' own question answering finds its two outputs
OUTPUT_LAYERS = {
    "ForQuestionAnswering": "qa_outputs",
    "ForMultipleChoice": "score",
}  # all ModernBERT's are classifiers
SPECIAL_TOKENS = {
    f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")
}  # ModernBERT's are past 50,000
ATOL = 1e-5


def formula(length, width):
    """Vaswani et al. 2017, section 3.5, entry by entry in float64."""
    position, feature = np.mgrid[:length, :width].astype(np.float64)
    angle = position / 10_000 ** ((feature - feature % 2) / width)
    return np.where(feature % 2 == 0, np.sin(angle), np.cos(angle))


@pytest.mark.parametrize("length, width", [(1, 2), (64, 32), (5000, 512)])
def test_sinusoidal_table_is_the_formula(length, width):
    table = sinusoidal_table(length, width)
    assert table.dtype == torch.float32
    np.testing.assert_allclose(table.numpy(), formula(length, width), rtol=0, atol=6e-8)


def test_rotary_positions_turn_pairs_by_their_angle_in_float32():
    positions, theta = torch.tensor([[0, 1, 100, 8000]]), 10_000.0
    x = torch.randn(1, 4, 1, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    angle = positions[0, :, None].numpy() / theta ** (np.arange(8, dtype=np.float64) / 8)
    pairs = x[0, :, 0].double().numpy()
    pairs = pairs[..., :8] + 1j * pairs[..., 8:]
    turned = pairs * np.exp(1j * angle)
    expected = np.concatenate([turned.real, turned.imag], axis=-1)

    rotary = rotary_table(positions, 16, theta)
    assert rotary.dtype == torch.float32
    result = rotate(x.float(), rotary)
    np.testing.assert_allclose(result[0, :, 0], expected, rtol=0, atol=2e-3)
    np.testing.assert_allclose(result[0, :2, 0], expected[:2], rtol=0, atol=1e-6)
    assert torch.equal(rotate(x, rotary), result.bfloat16())


def test_embeddings_are_tokens_by_the_root_of_the_width_plus_the_table():
    model = randomize(hf_tfenc.TfEncModel(tiny())).eval()
    ids, width = token_ids(2, 20), SIZE["hidden_size"]
    tokens = model.embeddings.embed_tokens.weight.detach().double().numpy()[ids]
    expected = tokens * np.sqrt(width) + formula(20, width)
    np.testing.assert_allclose(
        model.embeddings(ids, None, torch.arange(20)[None], None).detach(), expected, rtol=0, atol=1e-6
    )


def torch_encoder(norm_position, activation):
    width, pre = SIZE["hidden_size"], norm_position == "pre"
    layer = nn.TransformerEncoderLayer(
        width,
        SIZE["num_attention_heads"],
        SIZE["intermediate_size"],
        activation=activation,
        norm_first=pre,
        batch_first=True,
    )
    norm = nn.LayerNorm(width) if pre else None
    encoder = nn.TransformerEncoder(layer, SIZE["num_hidden_layers"], norm, enable_nested_tensor=False)
    return randomize(encoder).eval()


@pytest.mark.parametrize("look_ahead", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_textbook_corner(trainable_backend, norm_position, activation, look_ahead):
    theirs = torch_encoder(norm_position, activation)
    ours = hf_tfenc.TfEncModel(
        tiny(
            norm_position=norm_position,
            final_norm=norm_position == "pre",
            hidden_act=activation,
            is_causal=look_ahead,
            attn_implementation=trainable_backend,
        )
    ).eval()
    missing, unexpected = ours.load_state_dict(from_torch_encoder(theirs.state_dict()), strict=False)
    assert missing == ["embeddings.embed_tokens.weight"]
    assert not unexpected

    ids, mask = token_ids(3, 20), padding_mask(20, 7, 13)
    embedded = ours.embeddings(ids, None, torch.arange(20)[None], None)
    ahead = nn.Transformer.generate_square_subsequent_mask(20).isinf() if look_ahead else None
    for given in (None, mask):
        padding = None if given is None else given == 0
        expected = theirs(embedded, mask=ahead, src_key_padding_mask=padding)
        seen = mask.bool() if given is not None else torch.ones_like(mask).bool()
        output = ours(ids, attention_mask=given).last_hidden_state
        torch.testing.assert_close(output[seen], expected[seen], rtol=0, atol=ATOL)


def assert_same_outputs(ours, theirs, inputs):
    """Compare every output where the mask has tokens, hidden states and the pooled vector too."""
    seen = inputs["attention_mask"].bool()
    expected = theirs(**inputs, output_hidden_states=True)
    output = ours(**inputs, output_hidden_states=True)
    assert len(output.hidden_states) == len(expected.hidden_states)
    seen = seen.flatten(0, -2)
    for name in ("last_hidden_state", "pooler_output", "logits", "start_logits", "end_logits"):
        if (value := expected.get(name)) is not None:
            result = output[name]
            if result.shape[:2] == seen.shape:
                result, value = result[seen], value[seen]
            torch.testing.assert_close(result, value, rtol=0, atol=ATOL)
    for result, value in zip(output.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(result[seen], value[seen], rtol=0, atol=ATOL)


def converted(theirs, from_state, from_config, head, attention):
    """Our class with the weights of theirs, each of them used."""
    ours = getattr(hf_tfenc, f"TfEnc{head}")(from_config(theirs.config)).eval()
    ours.load_state_dict(from_state(theirs.state_dict(), OUTPUT_LAYERS.get(head, "classifier")))
    ours.set_attn_implementation(attention)
    return ours


@pytest.mark.parametrize("head", HEADS)
def test_bert_corner(trainable_backend, head):
    config = BertConfig(
        **SIZE, type_vocab_size=3, num_labels=NUM_LABELS.get(head, 3), attn_implementation=trainable_backend
    )
    theirs = randomize(getattr(transformers, f"Bert{head}")(config)).eval()
    ours = converted(theirs, from_bert, from_bert_config, head, trainable_backend)
    inputs = {
        "input_ids": token_ids(3, 20),
        "attention_mask": padding_mask(20, 7, 13),
        "token_type_ids": token_ids(3, 20) % 3,
    }
    if head == "ForMultipleChoice":
        inputs = {name: tensor[None] for name, tensor in inputs.items()}
    assert_same_outputs(ours, theirs, inputs)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("head", HEADS)
def test_modernbert_corner(trainable_backend, head, pooling):
    """Rows of 40 tokens, of which a local layer sees 4 to each side."""
    config = ModernBertConfig(
        **SIZE | SPECIAL_TOKENS,
        local_attention=8,
        num_labels=NUM_LABELS.get(head, 3),
        classifier_pooling=pooling,
        norm_bias=pooling == "mean",  # with and without the biases that ModernBERT leaves out
        attention_bias=pooling == "mean",
        mlp_bias=pooling == "mean",
        classifier_bias=pooling == "mean",
        decoder_bias=pooling == "cls",
        attn_implementation=trainable_backend,
    )
    assert set(config.layer_types) == {"full_attention", "sliding_attention"}
    theirs = randomize(getattr(transformers, f"ModernBert{head}")(config)).eval()
    ours = converted(theirs, from_modernbert, from_modernbert_config, head, trainable_backend)
    inputs = {"input_ids": token_ids(4, 40), "attention_mask": padding_mask(40, 7, 33, 40)}
    if head == "ForMultipleChoice":
        inputs = {name: tensor.unflatten(0, (2, 2)) for name, tensor in inputs.items()}
    assert_same_outputs(ours, theirs, inputs)


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering"])
def test_losses_of_a_whole_batch_are_theirs(head):
    theirs = randomize(
        getattr(transformers, f"Bert{head}")(BertConfig(**SIZE, num_labels=NUM_LABELS.get(head, 3)))
    ).eval()
    ours = converted(theirs, from_bert, from_bert_config, head, "sdpa")
    ids = token_ids(3, 20)
    if head == "ForQuestionAnswering":  # the last answer was truncated away
        labels = {"start_positions": torch.tensor([3, 0, 30]), "end_positions": torch.tensor([5, 19, 31])}
    else:
        labels = {"labels": (ids % (3 if head == "ForTokenClassification" else VOCAB)).masked_fill(ids > 40, -100)}
    torch.testing.assert_close(ours(ids, **labels).loss, theirs(ids, **labels).loss)
