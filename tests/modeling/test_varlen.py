"""Padding left out at the model's door: the same numbers, and no work on what is not there."""

import itertools
import logging

import pytest
import torch
import torch.nn.functional as F
from corners import CORNERS, HEADS, NO_DROPOUT, build, collate, make_rows, padding_mask, tiny, token_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_tfenc import TfEncModel, modeling_tfenc
from hf_tfenc.modeling_tfenc import find_padding

LENGTHS = (12, 1, 7, 5)


def widths(model):
    """How many tokens each call of the first feed-forward block sees."""
    seen = []
    model.layers[0].mlp.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[:2].numel()))
    return seen


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("corner", CORNERS)
def test_what_is_no_padding_is_the_same(corner, left, causal):
    mask = padding_mask(*LENGTHS, left=left)
    ids, config = token_ids(*mask.shape), tiny(corner, is_causal=causal)
    expected = build(TfEncModel, config, "eager")(ids, mask)
    model = build(TfEncModel, config, "varlen")
    seen = widths(model)
    output = model(ids, mask)
    tokens = mask.bool()
    torch.testing.assert_close(output.last_hidden_state[tokens], expected.last_hidden_state[tokens])
    torch.testing.assert_close(output.pooler_output, expected.pooler_output)
    assert seen == [sum(LENGTHS)]
    assert not output.last_hidden_state[~tokens].any()


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(0, 10), min_size=1, max_size=5).filter(any), data=st.data())
def test_any_lengths(lengths, data):
    """Rows without a token too; the window of the modern corner reaches 4 tokens each way."""
    corner, left, causal = (data.draw(st.sampled_from(values)) for values in (CORNERS, (False, True), (False, True)))
    config = tiny(corner, is_causal=causal, pooling=data.draw(st.sampled_from(["cls", "mean"])))
    mask = padding_mask(*lengths, left=left)
    ids, tokens, rows = token_ids(*mask.shape), mask.bool(), mask.any(dim=1)
    expected = build(TfEncModel, config, "sdpa")(ids, mask)
    output = build(TfEncModel, config, "varlen")(ids, mask)
    torch.testing.assert_close(output.last_hidden_state[tokens], expected.last_hidden_state[tokens])
    torch.testing.assert_close(output.pooler_output[rows], expected.pooler_output[rows])
    assert output.pooler_output.isfinite().all()


@pytest.mark.parametrize("name", HEADS)
def test_loss_and_gradient_of_each_head(name):
    results = []
    for attention in ("sdpa", "varlen"):
        model = build(HEADS[name].model_class, tiny("modern", **NO_DROPOUT | HEADS[name].options), attention).train()
        loss = model(**collate(make_rows(name, 5))).loss
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)  # summed in another order


def test_embeddings_and_segments_are_unpadded_too():
    mask = padding_mask(*LENGTHS)
    config = tiny("bert")
    embeddings, segments = torch.randn(*mask.shape, config.hidden_size), token_ids(*mask.shape) % 2
    outputs = [
        build(TfEncModel, config, attention)(inputs_embeds=embeddings, attention_mask=mask, token_type_ids=segments)
        for attention in ("sdpa", "varlen")
    ]
    torch.testing.assert_close(outputs[1].last_hidden_state[mask.bool()], outputs[0].last_hidden_state[mask.bool()])


@pytest.mark.parametrize(
    "mask",
    [
        None,
        torch.ones(2, 4, dtype=torch.long),
        torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]]),  # a window would reach over what is hidden
        torch.zeros(2, 4, dtype=torch.long),
    ],
    ids=["no mask", "no padding", "a gap", "nothing else"],
)
def test_where_there_is_nothing_to_leave_out(mask):
    padding = None if mask is None else find_padding(mask)
    assert padding is None or padding.is_whole
    ids = token_ids(2, 4)
    output, expected = (
        build(TfEncModel, tiny("modern"), attention)(ids, mask).last_hidden_state for attention in ("varlen", "sdpa")
    )
    assert torch.equal(output, expected if mask is None else expected * mask[..., None])


@pytest.mark.parametrize("corner", ["classic", "modern"])
def test_a_row_without_a_token_does_not_depend_on_the_others(corner):
    """Nor on what else is asked for: hidden states have the shape of the input, and padding stays in them."""
    model, ids = build(TfEncModel, tiny(corner, pooling="cls"), "varlen"), token_ids(3, 6)
    empty, full, gapped = torch.tensor([[0] * 6, [1] * 6, [1, 0, 1, 1, 0, 0]])
    for masks in ([empty], [empty, full], [empty, gapped], [empty, full, gapped]):
        mask = torch.stack(masks)
        for options in ({}, {"output_hidden_states": True}):
            output = model(ids[: len(mask)], mask, **options)
            assert not output.pooler_output[0].any()
            assert not output.last_hidden_state[mask == 0].any() and output.last_hidden_state.isfinite().all()


def test_hidden_states_have_the_shape_of_the_input():
    mask = padding_mask(*LENGTHS)
    output = build(TfEncModel, tiny("modern"), "varlen")(token_ids(*mask.shape), mask, output_hidden_states=True)
    assert {states.shape[:2] for states in output.hidden_states} == {mask.shape}


def test_a_graph_takes_the_masked_path():
    """In a graph nothing may depend on the lengths, so padding stays, and nothing breaks the graph."""
    mask = padding_mask(*LENGTHS)
    ids, tokens = token_ids(*mask.shape), mask.bool()
    model = build(TfEncModel, tiny("modern"), "varlen")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected, output = model(ids, mask).last_hidden_state, compiled(ids, mask).last_hidden_state
    torch.testing.assert_close(output[tokens], expected[tokens])


def test_a_cpu_is_no_reason_to_warn(caplog):
    mask = padding_mask(*LENGTHS)
    with caplog.at_level(logging.WARNING):
        build(TfEncModel, tiny(), "varlen")(token_ids(*mask.shape), mask)
    assert not caplog.records


def attend_one_by_one(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size):
    """What torch's kernel says of itself, written out: (tokens, heads, head_dim) in and out."""
    assert cu_seq_q.dtype == torch.int32 and torch.equal(cu_seq_q, cu_seq_k)
    output = torch.full_like(query, torch.nan)  # of a token that belongs to no sequence
    for start, end in itertools.pairwise(cu_seq_q.tolist()):
        assert end - start <= max_q == max_k
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        ahead = torch.arange(end - start) - torch.arange(end - start)[:, None]
        back, forth = (end if reach < 0 else reach for reach in window_size)
        scores = (q @ k.mT * scale).masked_fill((ahead < -back) | (ahead > forth), -torch.inf)
        output[start:end] = (scores.softmax(dim=-1) @ v).transpose(0, 1)
    return output


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", ["padded", "packed", "packed with slots to spare", "whole rows"])
@pytest.mark.parametrize("corner", CORNERS)
def test_what_the_kernel_is_told(corner, form, causal, monkeypatch):
    """Where there is a GPU this is asked of the kernel itself, in tests/gpu."""
    config = tiny(corner, is_causal=causal)
    mask = padding_mask(9, 9) if form == "whole rows" else padding_mask(*LENGTHS)
    ids, tokens = token_ids(*mask.shape), mask.bool()
    expected = build(TfEncModel, config, "eager")(ids, mask).last_hidden_state
    calls = []

    def kernel(*args, **options):
        calls.append(options["window_size"])
        return attend_one_by_one(*args, **options)

    monkeypatch.setattr(modeling_tfenc, "no_varlen_kernel", lambda *_: None)
    monkeypatch.setattr(modeling_tfenc, "varlen_attn", kernel)
    model = build(TfEncModel, config, "varlen")
    if form.startswith("packed"):
        bounds = torch.tensor([0, *LENGTHS]).cumsum(0).int()
        bounds = F.pad(bounds, (0, 3), value=int(bounds[-1])) if form.endswith("spare") else bounds
        output = model(ids[tokens][None], cu_seq_lens_q=bounds, max_length_q=16).last_hidden_state[0]
    else:
        output = model(ids, mask).last_hidden_state[tokens]
    torch.testing.assert_close(output, expected[tokens])
    windows = sum(kind == "sliding_attention" for kind in config.layer_types)
    # Rows that are whole and have no window are sdpa's.
    assert len(calls) == (windows if form == "whole rows" else config.num_hidden_layers)
    assert sum(window != (-1, 0 if causal else -1) for window in calls) == windows


def test_an_encoder_of_fewer_layers():
    """As students of distillation are made: some layers of a model, each as what it was."""
    model, mask = build(TfEncModel, tiny("modern", num_hidden_layers=4), "varlen"), padding_mask(*LENGTHS)
    ids = token_ids(*mask.shape)
    del model.layers[1:3]
    output = model(ids, mask).last_hidden_state
    model.set_attn_implementation("eager")
    torch.testing.assert_close(output[mask > 0], model(ids, mask).last_hidden_state[mask > 0])
