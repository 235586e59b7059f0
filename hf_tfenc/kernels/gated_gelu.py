"""GELU of one half of the features times the other half, as Triton kernels: each number is read and written once.

torch's own operations write the activated half before it is multiplied, and its compiler works out both halves of the
gradient at every place.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from transformers.activations import GELUActivation

BLOCK = 1024
DTYPES = {torch.float16, torch.bfloat16, torch.float32}
HALF_ROOT, DENSITY = tl.constexpr(math.sqrt(0.5)), tl.constexpr(1 / math.sqrt(2 * math.pi))


@triton.jit
def load_halves(x, elements, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Some of the activated features and their gates, in float32; how their products lie; and which of them there are."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < elements
    where = x + places // WIDTH * (2 * WIDTH) + places % WIDTH
    first = tl.load(where, mask=inside, other=0.0).to(tl.float32)
    return first, tl.load(where + WIDTH, mask=inside, other=0.0).to(tl.float32), places, inside


@triton.jit
def gated_gelu_kernel(x, out, elements, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    first, gate, places, inside = load_halves(x, elements, WIDTH, BLOCK)
    activated = first * 0.5 * (1.0 + tl.erf(first * HALF_ROOT))
    tl.store(out + places, (activated * gate).to(out.dtype.element_ty), mask=inside)


@triton.jit
def gated_gelu_gradient_kernel(x, out_grad, grad, elements, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    first, gate, places, inside = load_halves(x, elements, WIDTH, BLOCK)
    g = tl.load(out_grad + places, mask=inside, other=0.0).to(tl.float32)
    below = 0.5 * (1.0 + tl.erf(first * HALF_ROOT))  # the normal distribution up to there
    slope = below + first * DENSITY * tl.exp(-0.5 * first * first)
    where = grad + places // WIDTH * (2 * WIDTH) + places % WIDTH
    tl.store(where, (g * gate * slope).to(grad.dtype.element_ty), mask=inside)
    tl.store(where + WIDTH, (g * first * below).to(grad.dtype.element_ty), mask=inside)


def can_gate(activation: nn.Module, x: Tensor) -> bool:
    """Whether the kernels compute `gated` of this activation and these features."""
    on_cuda = x.device.type == "cuda" and torch.version.hip is None
    return on_cuda and type(activation) is GELUActivation and x.dtype in DTYPES


def gated_gelu(x: Tensor) -> Tensor:
    """gelu(a) * b for features x = (a, b): (..., 2 * width) -> (..., width). In float32 between reading and writing."""
    out: Tensor = forward_operator(x)
    return out


def launch(kernel: Any, x: Tensor, *args: Tensor) -> None:
    elements = x.numel() // 2
    with torch.cuda.device_of(x):
        kernel[triton.cdiv(elements, BLOCK),](x, *args, elements, WIDTH=x.shape[-1] // 2, BLOCK=BLOCK)


@torch.library.custom_op("hf_tfenc::gated_gelu", mutates_args=())
def forward_operator(x: Tensor) -> Tensor:
    out = empty_products(x)
    launch(gated_gelu_kernel, x.contiguous(), out)
    return out


@torch.library.custom_op("hf_tfenc::gated_gelu_backward", mutates_args=())
def backward_operator(x: Tensor, out_grad: Tensor) -> Tensor:
    grad = empty_gradient(x, out_grad)
    launch(gated_gelu_gradient_kernel, x.contiguous(), out_grad.contiguous(), grad)
    return grad


@forward_operator.register_fake
def empty_products(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


@backward_operator.register_fake
def empty_gradient(x: Tensor, out_grad: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def save_for_backward(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def backward(ctx: Any, out_grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # its own derivative will be asked for
        first, gate = x.chunk(2, dim=-1)
        (grad,) = torch.autograd.grad(nn.functional.gelu(first) * gate, x, out_grad, create_graph=True)
        return grad
    return backward_operator(x, out_grad)


forward_operator.register_autograd(backward, setup_context=save_for_backward)
