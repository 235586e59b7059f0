"""The kernels of the gated unit against torch's own operations."""

import pytest
import torch
import torch.nn.functional as F
from kernel_device import DEVICE, DTYPE, GPU, TOLERANCE
from torch import nn
from transformers.activations import ACT2FN

from hf_tfenc.kernels import can_gate, gated_gelu


def written_out(x):
    first, gate = x.float().chunk(2, dim=-1)
    return F.gelu(first) * gate


@pytest.mark.parametrize("shape", [(1, 2), (3, 5, 22), (2, 100, 96), (1, 40, 2304)])
def test_outputs_and_gradients(shape):
    torch.manual_seed(0)
    values = 3 * torch.randn(shape).to(DEVICE, DTYPE)
    values.flatten()[0] = 20.0  # where the distribution is 1 and its density nothing
    direction = torch.randn(*shape[:-1], shape[-1] // 2).to(DEVICE)
    results = []
    for unit in (written_out, gated_gelu):
        x = values.clone().requires_grad_()
        out = unit(x)
        (out.float() * direction).sum().backward()
        results.append([out.float(), x.grad.float()])
    for expected, found in zip(*results, strict=True):
        assert found.shape == expected.shape
        assert (found - expected).norm() <= TOLERANCE * expected.norm()


def test_features_that_do_not_lie_one_after_another():
    x = torch.randn(6, 10).to(DEVICE, DTYPE)
    assert torch.equal(gated_gelu(x.T.contiguous().T), gated_gelu(x))


def test_its_second_derivative_is_torchs():
    seconds = []
    for unit in (written_out, gated_gelu):
        torch.manual_seed(0)
        x = torch.randn(3, 8, device=DEVICE, requires_grad=True)
        (gradient,) = torch.autograd.grad(unit(x).square().sum(), x, create_graph=True)
        seconds += torch.autograd.grad(gradient.square().sum(), x)
    torch.testing.assert_close(*seconds, rtol=1e-4, atol=1e-4)


def test_what_torch_asks_of_an_operator():
    x = torch.randn(4, 32).to(DEVICE, DTYPE).requires_grad_()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.hf_tfenc.gated_gelu.default, (x,), test_utils=tests)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_where_they_can_be_used():
    x = torch.randn(4, 32, device="cuda")
    assert can_gate(ACT2FN["gelu"], x)
    assert not can_gate(ACT2FN["silu"], x)
    assert not can_gate(nn.GELU(approximate="tanh"), x)
    assert not can_gate(ACT2FN["gelu"], x.cpu())
    assert not can_gate(ACT2FN["gelu"], x.double())
