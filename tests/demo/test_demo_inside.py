"""A look inside is a look at what the model itself computes."""

import pytest
import torch

from hf_tfenc.demo.inside import Masks, attention, byte_text, positions, rounded, token_texts
from hf_tfenc.modeling_tfenc import rotary_table, sinusoidal_table

IDS = [2, 40, 50, 60, 70, 3]
MIXED = {"sliding_window": 1, "layer_types": ["full_attention", "sliding_attention"]}
CAUSAL = {"name": "TfEncForCausalLM", "sliding_window": 2, "layer_types": ["full_attention", "sliding_attention"]}


@pytest.mark.parametrize(
    "options",
    [MIXED, CAUSAL, {"preset": "classic-tiny"}, {"preset": "bert-tiny"}],
    ids=["window", "causal", "", "bert"],
)
def test_without_changes_it_is_the_models_own_attention(build, options):
    encoder = build(**options).model
    weights, seen = attention(encoder, IDS, None, 0, Masks(look_ahead=encoder.config.is_causal))
    with torch.no_grad():
        own = encoder(torch.tensor([IDS]), output_attentions=True).attentions
    torch.testing.assert_close(weights, torch.cat(own), rtol=0, atol=0)
    assert torch.equal(seen[:, None].expand_as(weights), weights > 0)


def test_hidden_padding_changes_nothing_for_the_text(build):
    encoder = build(**MIXED).model
    without, _ = attention(encoder, IDS, None, 0, Masks())
    hidden, seen = attention(encoder, IDS, None, 0, Masks(padding=4))
    torch.testing.assert_close(hidden[:, :, :6, :6], without)
    assert not seen[:, :6, 6:].any() and not hidden[:, :, :6, 6:].any()
    shown, _ = attention(encoder, IDS, None, 0, Masks(padding=4, hide_padding=False))
    assert (shown[0, :, :6, 6:] > 0).all()
    assert not torch.allclose(shown[0, :, :6, :6], without[0])


def test_look_ahead_and_window(build):
    encoder, square = build(**MIXED).model, torch.ones(6, 6, dtype=torch.bool)
    near = square.tril(2) & square.triu(-2)
    _, seen = attention(encoder, IDS, None, 0, Masks(look_ahead=True, window=0))
    assert torch.equal(seen, square.tril().expand(2, 6, 6))
    _, seen = attention(encoder, IDS, None, 0, Masks(window=2))
    assert torch.equal(seen, near.expand(2, 6, 6))
    weights, seen = attention(encoder, IDS, None, 0, Masks(look_ahead=True, window=2))
    assert (
        torch.equal(seen, (near & square.tril()).expand(2, 6, 6))
        and not weights[~seen[:, None].expand_as(weights)].any()
    )
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 6))
    assert not any(layer._forward_pre_hooks for layer in encoder.layers)  # the model is as it was


def test_segments_are_read(build):
    encoder = build(preset="bert-tiny").model
    first, _ = attention(encoder, IDS, [0] * 6, 0, Masks())
    second, _ = attention(encoder, IDS, [0, 0, 0, 1, 1, 1], 0, Masks())
    assert not torch.allclose(first, second)


def test_a_row_beyond_the_positions_is_a_sentence(build):
    with pytest.raises(ValueError, match="longer than max_position_embeddings 8"):
        attention(build(preset="classic-tiny", max_position_embeddings=8).model, IDS, None, 0, Masks(padding=4))


def test_positions_of_every_kind(build):
    text, table = positions(build(preset="classic-tiny").model, 0)
    assert "sines and cosines" in text and torch.equal(table, sinusoidal_table(512, 32)[:64])
    learned = build(preset="bert-tiny").model
    text, table = positions(learned, 0)
    assert "learned" in text and torch.equal(table, learned.embeddings.positions.table.weight[:64])
    text, table = positions(build().model, 1)
    assert "base 10,000" in text and torch.equal(table, rotary_table(torch.arange(64), 16, 10_000.0)[0])
    assert "base 160,000" in positions(build().model, 0)[0]
    text, table = positions(build(position_embedding_type="none", rope_parameters=None).model, 0)
    assert "no positional encoding" in text and table is None


def test_tokens_are_texts_and_parts_of_characters_bytes(tokenizer):
    ids = tokenizer(" the é")["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert (texts[0], texts[-1]) == ("[CLS]", "[SEP]") and "".join(texts[1:-3]) == " the "
    assert texts[-3:-1] == ["<C3>", "<A9>"] and list("é".encode()) == [0xC3, 0xA9]


def test_bytes_are_those_of_the_tokenizer(tokenizer):
    for byte in range(128, 256):
        for character in (bytes([byte]) + b"\x80\x80\x80").decode(errors="ignore"):
            pieces = tokenizer.convert_ids_to_tokens(tokenizer(character, add_special_tokens=False)["input_ids"])
            assert "".join(map(byte_text, pieces)) == "".join(f"<{one:02X}>" for one in character.encode())
    assert byte_text("<0xE2>") == "<0xE2>" and byte_text("한") == "한"


def test_rounded():
    assert rounded(torch.tensor([[0.123456, 1.0]])) == [[0.1235, 1.0]]
