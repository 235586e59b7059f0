"""A model keeps what it knows of tokens that another tokenizer has too, and begins near to it for the others."""

import logging

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from hf_tfenc import TfEncForMaskedLM
from hf_tfenc.presets import preset_config
from hf_tfenc.tokenization import train_tokenizer
from hf_tfenc.vocabulary import mean_rows, token_sources, token_texts, transfer


@pytest.fixture(scope="module")
def tokenizers(texts):
    """By kind two tokenizers of the same texts, a small one and a larger one."""
    return {
        kind: [train_tokenizer(texts, size, kind, model_max_length=64) for size in sizes]
        for kind, sizes in {"byte-level-bpe": (270, 320), "wordpiece": (75, 120)}.items()
    }


def id_of(tokenizer, token):
    return tokenizer.get_vocab()[token]


def test_texts_of_tokens_are_comparable(tokenizers):
    bpe, pieces = tokenizers["byte-level-bpe"][1], tokenizers["wordpiece"][1]
    texts = token_texts(bpe)
    assert texts[id_of(bpe, "Ġthe")] == " the" and texts[id_of(bpe, "e")] == "e" and texts[0] == "[PAD]"
    assert texts[id_of(bpe, "ÿ")] == "ÿ"  # the byte 255 is no text
    texts = token_texts(pieces)
    assert texts[id_of(pieces, "the")] == " the" and texts[id_of(pieces, "##e")] == "e"


def test_the_kind_of_a_tokenizer_is_not_read_from_its_words(texts):
    """Code and articles on tokenizers have such words."""
    bpe = train_tokenizer([*texts, *["WordPiece"] * 500], 330, "byte-level-bpe", model_max_length=64)
    assert "WordPiece" in bpe.get_vocab()
    assert token_texts(bpe)[id_of(bpe, "\u0120the")] == " the"


@pytest.mark.parametrize("old_kind", ["byte-level-bpe", "wordpiece"])
@pytest.mark.parametrize("new_kind", ["byte-level-bpe", "wordpiece"])
def test_shared_tokens_keep_their_vectors_and_others_are_made_of_their_pieces(tokenizers, old_kind, new_kind, caplog):
    old, new = tokenizers[old_kind][0], tokenizers[new_kind][1]
    config = preset_config("bert-tiny", vocab_size=len(old), hidden_size=8, num_attention_heads=1)
    config.tie_word_embeddings = False
    weights = TfEncForMaskedLM(config).state_dict()
    weights = {name: torch.randn_like(tensor) for name, tensor in weights.items()}
    with caplog.at_level(logging.INFO):
        moved = transfer(weights, old, new)
    assert f"The new tokenizer has {len(new)} tokens" in caplog.text
    old_texts, new_texts = token_texts(old), token_texts(new)
    rows = {name for name in weights if len(moved[name]) != len(weights[name]) or "embed_tokens" in name}
    assert rows == {"model.embeddings.embed_tokens.weight", "decoder.weight", "decoder.bias"}
    assert all(moved[name] is weights[name] for name in weights.keys() - rows)
    shared = [text for text in new_texts if text in old_texts]
    assert len(shared) > 10
    made = 0
    for name in rows:
        assert moved[name].shape == (len(new), *weights[name].shape[1:])
        for index, text in enumerate(new_texts):
            if text in old_texts:
                expected = weights[name][old_texts.index(text)]
                assert torch.equal(moved[name][index], expected), text
            elif pieces := [id for id in old.encode(text, add_special_tokens=False) if id != old.unk_token_id]:
                made += len(pieces) > 1
                torch.testing.assert_close(moved[name][index], weights[name][pieces].mean(dim=0))
            else:
                torch.testing.assert_close(moved[name][index], weights[name][5:].mean(dim=0))
    assert made > 10


def test_special_tokens_are_matched_by_what_they_are_for(tokenizers):
    old = tokenizers["byte-level-bpe"][0]
    other = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(["<s> </s>", "x"] * 3, 262, model_max_length=8).backend_tokenizer,
        **{"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"},
    )
    sources = token_sources(old, other)
    for role in ("cls", "sep", "pad", "mask"):
        assert sources[getattr(other, f"{role}_token_id")] == [getattr(old, f"{role}_token_id")]


def test_the_same_tokenizer_changes_nothing(tokenizers):
    for kind in tokenizers.values():
        assert token_sources(kind[0], kind[0]) == [[index] for index in range(len(kind[0]))]


def test_a_mean_of_one_is_that_one_bit_for_bit():
    weight = torch.randn(5, 3).bfloat16()
    rows = mean_rows(weight, [[4], [], [0, 1]], torch.ones(3))
    assert torch.equal(rows[0], weight[4]) and torch.equal(rows[1], torch.ones(3).bfloat16())
    torch.testing.assert_close(rows[2], weight[:2].float().mean(dim=0).bfloat16())
    assert torch.equal(mean_rows(torch.randn(2), [[], []], torch.tensor(7.0)), torch.full((2,), 7.0))
