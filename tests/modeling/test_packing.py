"""A packed row gives what its sequences give apart, on every backend."""

import pytest
import torch
from corners import CORNERS, NO_DROPOUT, VOCAB, build, padding_mask, restarting, tiny, token_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hf_tfenc import (
    TfEncForCausalLM,
    TfEncForMaskedLM,
    TfEncForSequenceClassification,
    TfEncForTokenClassification,
    TfEncModel,
)

LENGTHS = (10, 1, 7, 2)
POSITIONS = ("sinusoidal", "learned", "rotary", "none")


def sequences(lengths=LENGTHS):
    return list(token_ids(1, sum(lengths)).split(lengths, dim=1))


def boundaries(lengths, slots=0):
    """`cu_seq_lens_q`, with empty slots at the end as a constant shape needs them."""
    ends = torch.tensor((0, *lengths)).cumsum(0)
    return torch.cat([ends, ends[-1:].expand(slots)]).int()


def packed_forms(lengths):
    """The ways to say what is packed; each is enough by itself."""
    return {
        "positions": {"position_ids": restarting(*lengths)},
        "boundaries": {"cu_seq_lens_q": boundaries(lengths)},
        "both": {"position_ids": restarting(*lengths), "cu_seq_lens_q": boundaries(lengths, slots=3)},
        "all of transformers' own": {
            "position_ids": restarting(*lengths),
            "cu_seq_lens_q": boundaries(lengths),
            "cu_seq_lens_k": boundaries(lengths),
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
        },
    }


FORMS = sorted(packed_forms(LENGTHS))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("positions", POSITIONS)
def test_packed_equals_separate_equals_padded(backend, positions, is_causal):
    config = tiny(
        position_embedding_type=positions,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        sliding_window=3,
        is_causal=is_causal,
    )
    model = build(TfEncModel, config, backend)
    apart, mask = sequences(), padding_mask(*LENGTHS)
    packed = model(torch.cat(apart, dim=1), position_ids=restarting(*LENGTHS)).last_hidden_state[0]
    separate = torch.cat([model(ids).last_hidden_state[0] for ids in apart])
    rows = torch.zeros_like(mask).masked_scatter(mask.bool(), torch.cat(apart, dim=1))
    padded = model(rows, mask).last_hidden_state[mask.bool()]
    torch.testing.assert_close(packed, separate)
    torch.testing.assert_close(padded, separate)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("corner", CORNERS)
def test_each_way_to_say_what_is_packed(backend, corner, form):
    model = build(TfEncModel, tiny(corner), backend)
    apart = sequences()
    packed = model(torch.cat(apart, dim=1), **packed_forms(LENGTHS)[form])
    separate = [model(ids) for ids in apart]
    torch.testing.assert_close(
        packed.last_hidden_state[0], torch.cat([output.last_hidden_state[0] for output in separate])
    )
    torch.testing.assert_close(
        packed.pooler_output[: len(apart)], torch.cat([output.pooler_output for output in separate])
    )


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), slots=st.integers(0, 3), data=st.data())
def test_packed_equals_separate_for_any_lengths(lengths, slots, data):
    corner, attention = data.draw(st.sampled_from(CORNERS)), data.draw(st.sampled_from(["eager", "sdpa", "varlen"]))
    model = build(TfEncModel, tiny(corner, pooling=data.draw(st.sampled_from(["cls", "mean"]))), attention)
    apart = sequences(lengths)
    packed = model(torch.cat(apart, dim=1), cu_seq_lens_q=boundaries(lengths, slots))
    separate = [model(ids) for ids in apart]
    torch.testing.assert_close(
        packed.last_hidden_state[0], torch.cat([output.last_hidden_state[0] for output in separate])
    )
    torch.testing.assert_close(
        packed.pooler_output[: len(apart)], torch.cat([output.pooler_output for output in separate])
    )
    assert len(packed.pooler_output) == len(apart) + slots
    assert packed.pooler_output.isfinite().all()


@pytest.mark.parametrize("slots", [0, 2])
@pytest.mark.parametrize("form", FORMS[:3])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_packed_sequence_classifier_gives_one_row_a_sequence(trainable_backend, pooling, form, slots):
    """Slots to spare at the end of `cu_seq_lens_q` are rows too; labelled -100 they are left out of the loss."""
    config = tiny("modern", pooling=pooling, num_labels=3, **NO_DROPOUT)
    model = build(TfEncForSequenceClassification, config, trainable_backend)
    apart, labels = sequences(), torch.tensor([0, 2, 1, 2])
    inputs = packed_forms(LENGTHS)[form]
    if "cu_seq_lens_q" in inputs:
        inputs["cu_seq_lens_q"] = boundaries(LENGTHS, slots)
        all_labels = torch.cat([labels, torch.full((slots,), -100)])
    else:
        all_labels = labels
    packed = model(torch.cat(apart, dim=1), labels=all_labels, **inputs)
    logits = torch.cat([model(ids).logits for ids in apart])
    torch.testing.assert_close(packed.logits[: len(apart)], logits)
    torch.testing.assert_close(packed.loss, torch.nn.functional.cross_entropy(logits, labels))


@pytest.mark.parametrize("model_class", [TfEncForMaskedLM, TfEncForCausalLM, TfEncForTokenClassification])
def test_packing_changes_neither_the_loss_nor_its_gradient(trainable_backend, model_class):
    config = tiny("modern", num_labels=VOCAB, **NO_DROPOUT)
    model = build(model_class, config, trainable_backend).train()
    apart, mask = sequences(), padding_mask(*LENGTHS)
    row = torch.cat(apart, dim=1)
    rows = torch.zeros_like(mask).masked_scatter(mask.bool(), row)
    losses, gradients = [], []
    for inputs in (
        {"input_ids": row, "labels": row, "position_ids": restarting(*LENGTHS)},
        {"input_ids": rows, "labels": rows.masked_fill(mask == 0, -100), "attention_mask": mask},
    ):
        model.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_padding_at_the_end_of_a_packed_row_is_one_more_sequence():
    model = build(TfEncForMaskedLM, tiny("modern"))
    ids = token_ids(1, 12)
    alone = model(ids[:, :8], labels=ids[:, :8])
    padded = torch.nn.functional.pad(ids[:, :8], (0, 4))
    labels = torch.nn.functional.pad(ids[:, :8], (0, 4), value=-100)
    packed = model(padded, labels=labels, cu_seq_lens_q=torch.tensor([0, 8, 12, 12], dtype=torch.int32))
    torch.testing.assert_close(packed.loss, alone.loss)


def test_one_sequence_with_its_own_positions_is_not_packed():
    model = build(TfEncForSequenceClassification, tiny("bert", num_labels=3))
    ids = token_ids(4, 9)
    positions = torch.arange(9).expand(4, 9)
    torch.testing.assert_close(model(ids, position_ids=positions).logits, model(ids).logits)
    torch.testing.assert_close(model(ids, position_ids=positions[:1]).logits, model(ids).logits)


@pytest.fixture
def attention_calls():
    """What a backend called `recorded` is called with: flash attention needs a GPU, but its arguments do not."""
    calls = []

    def record(module, query, key, value, attention_mask, **kwargs):
        calls.append(kwargs | {"is_causal": module.is_causal})
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("recorded", record)
    AttentionMaskInterface.register("recorded", sdpa_mask)
    return calls


@pytest.mark.parametrize("is_causal", [False, True])
def test_what_flash_attention_needs_reaches_it(attention_calls, is_causal):
    """The boundaries of a packed row, and a window that counts the token itself, whose two-sided half does not."""
    config = tiny("modern", num_hidden_layers=2, is_causal=is_causal)
    model = build(TfEncForMaskedLM, config, "recorded")
    inputs = packed_forms(LENGTHS)["all of transformers' own"]
    model(torch.cat(sequences(), dim=1), **inputs)
    assert [call["sliding_window"] for call in attention_calls] == [None, 4 if is_causal else 5]
    for call in attention_calls:
        assert call["is_causal"] == is_causal
        assert call["scaling"] == 0.25
        assert call["max_length_q"] == call["max_length_k"] == 10
        for name in ("position_ids", "cu_seq_lens_q", "cu_seq_lens_k"):
            assert torch.equal(call[name], inputs[name])


@pytest.mark.slow
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("corner", ["classic", "modern"])
def test_packed_equals_separate_with_flex_attention_compiled(corner, is_causal):
    model = build(TfEncModel, tiny(corner, is_causal=is_causal), "flex_attention")
    apart = sequences()
    with torch.no_grad():
        packed = model(torch.cat(apart, dim=1), position_ids=restarting(*LENGTHS)).last_hidden_state[0]
        separate = torch.cat([model(ids).last_hidden_state[0] for ids in apart])
    torch.testing.assert_close(packed, separate)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "varlen"])
def test_positions_that_jump_ahead_are_one_sequence(attention):
    model = build(TfEncModel, tiny("modern"), attention)
    ids, positions = token_ids(1, 8), torch.tensor([[0, 1, 2, 3, 20, 21, 22, 23]])
    found, expected = (model(ids, mask, position_ids=positions) for mask in (None, torch.ones_like(ids)))
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output)
