"""The kernels for packed rows against attention written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_device import DEVICE, DTYPE, GPU, TOLERANCE

from hf_tfenc.kernels import can_attend, packed_attention
from hf_tfenc.modeling_tfenc import rotary_table, rotate, token_bounds

HEADS = 2
WINDOWS = {"all": (None, None), "both ways": (20, 20), "back": (15, 0), "look-ahead mask": (None, 0), "itself": (0, 0)}


def row_of(lengths, size, slots=0):
    """Queries, keys and values, the table of angles, and where each sequence begins, with slots to spare."""
    torch.manual_seed(0)
    tokens = sum(lengths)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    cu_seq_lens = torch.cat([starts, starts[-1:].expand(slots)]).int()
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    qkv = torch.randn(tokens, 3, HEADS, size).to(DEVICE, DTYPE)
    return qkv, rotary_table(positions, size, 10_000.0).to(DEVICE), cu_seq_lens.to(DEVICE)


def written_out(qkv, rotary, cu_seq_lens, back, ahead):
    """In float32, a sequence at a time."""
    outputs = []
    for start, end in zip(cu_seq_lens[:-1].tolist(), cu_seq_lens[1:].tolist(), strict=True):
        query, key, value = qkv[start:end].float().unbind(1)
        if rotary is not None:
            angles = rotary[:, :, start:end]
            query, key = (rotate(x[None].to(qkv.dtype), angles)[0].float() for x in (query, key))
        distance = torch.arange(end - start, device=qkv.device)
        distance = distance[:, None] - distance
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        hidden |= False if back is None else distance > back
        hidden |= False if ahead is None else -distance > ahead
        scores = torch.einsum("qhd,khd->hqk", query, key) * qkv.shape[-1] ** -0.5
        weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, value))
    return torch.cat(outputs)


def kernels(qkv, rotary, cu_seq_lens, back, ahead):
    table = None if rotary is None else rotary.flatten(1, 2)
    bounds = token_bounds(cu_seq_lens, len(qkv))
    return packed_attention(qkv, table, bounds, qkv.shape[-1] ** -0.5, back, ahead)


def assert_equal(lengths, size, turned, back, ahead, slots=0):
    qkv, rotary, cu_seq_lens = row_of(lengths, size, slots)
    direction = torch.randn(len(qkv), HEADS, size).to(DEVICE)
    results = []
    for attend in (written_out, kernels):
        x = qkv.clone().requires_grad_()
        out = attend(x, rotary if turned else None, cu_seq_lens, back, ahead)
        (out.float() * direction).sum().backward()
        results.append([out.float(), *x.grad.float().unbind(1)])
    for expected, found in zip(*results, strict=True):
        assert found.isfinite().all()
        # Queries that see one key have no gradient: values' says what an error is measured by.
        assert (found - expected).norm() <= TOLERANCE * max(expected.norm(), results[0][-1].norm())


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_outputs_and_gradients(size, turned, window):
    """Sequences within a tile, over several, at their edges; slots to spare; a row that fills its last tile or not."""
    assert_equal((70, 1, 129, 3), size, turned, *WINDOWS[window], slots=2)
    assert_equal((64, 64), size, turned, *WINDOWS[window])


@pytest.mark.parametrize("sign", [-1, 1])
def test_scores_far_from_zero(sign):
    """All of them equal, so that each output is a mean: what is not seen counts for nothing beside the lowest, too."""
    qkv, _, cu_seq_lens = row_of((50, 1, 40), 32)
    qkv[:, 0], qkv[:, 1] = sign * 200.0, 200.0  # scores of some 226,000
    expected = written_out(qkv, None, cu_seq_lens, 20, 20)
    found = kernels(qkv, None, cu_seq_lens, 20, 20).float()
    assert (found - expected).norm() <= TOLERANCE * expected.norm()


@settings(max_examples=100 if GPU else 25, deadline=None)
@given(st.lists(st.integers(1, 150), min_size=1, max_size=6), st.booleans(), st.data())
def test_any_lengths_and_windows(lengths, turned, data):
    reach = st.none() | st.integers(0, 160)
    assert_equal(lengths, 32, turned, data.draw(reach), data.draw(reach))


def test_one_token():
    assert_equal((1,), 64, True, None, None)


def test_large_scores():
    """No sum of exponentials overflows, and no query that sees nothing in its first block counts it."""
    qkv, _, cu_seq_lens = row_of((5, 200), 32)
    qkv[:, :2] *= 30
    expected, found = (attend(qkv, None, cu_seq_lens, 10, 10).float() for attend in (written_out, kernels))
    assert (found - expected).norm() <= TOLERANCE * expected.norm()


def test_the_same_bits_each_time():
    qkv, rotary, cu_seq_lens = row_of((100, 3, 300), 64)
    gradients = []
    for _ in range(3 if GPU else 2):
        x = qkv.clone().requires_grad_()
        kernels(x, rotary, cu_seq_lens, 30, 30).float().square().sum().backward()
        gradients.append(x.grad)
    assert all(torch.equal(gradients[0], gradient) for gradient in gradients[1:])


def test_there_is_no_second_derivative():
    qkv, rotary, cu_seq_lens = row_of((5, 3), 32)
    out = kernels(qkv.requires_grad_(), rotary, cu_seq_lens, None, None)
    with pytest.raises(RuntimeError, match='attn_implementation="eager"'):
        torch.autograd.grad(out.sum(), qkv, create_graph=True)


def test_inputs_that_do_not_lie_one_after_another():
    qkv, rotary, cu_seq_lens = row_of((30, 50), 32)
    apart = torch.stack((qkv, qkv), dim=-1)[..., 0].requires_grad_()
    results = []
    for x, angles in ((apart, torch.stack((rotary, rotary), dim=-1)[..., 0]), (qkv.requires_grad_(), rotary)):
        out = kernels(x, angles, cu_seq_lens, 10, 10)
        results.append((out, *torch.autograd.grad(out.float().square().sum(), x)))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_what_torch_asks_of_an_operator():
    """Its form without data, for compiled graphs, and its gradient."""
    qkv, rotary, cu_seq_lens = row_of((20, 5), 32)
    bounds = token_bounds(cu_seq_lens, len(qkv))
    for table in (None, rotary.flatten(1, 2)):
        arguments = (qkv.clone().requires_grad_(), table, bounds, 0.2, 2**30, 2**30)
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.hf_tfenc.packed_attention.default, arguments, test_utils=tests)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_where_they_can_be_used():
    device = torch.device("cuda")
    assert can_attend(device, torch.bfloat16, 64, 0.0)
    assert not can_attend(device, torch.float32, 64, 0.0)
    assert not can_attend(device, torch.bfloat16, 48, 0.0)
    assert not can_attend(device, torch.bfloat16, 64, 0.1)
    assert not can_attend(torch.device("cpu"), torch.bfloat16, 64, 0.0)
