"""Attention over a packed row as Triton kernels: sequences, window and rotation in one, forward and backward.

A tile is some tokens of one head that lie next to each other in the row, whichever sequences they are of. A tile of
queries walks over the keys from the first to the last that any of them sees, so that no work is done between sequences
or outside the window, and every batch is launched alike. The softmax is taken a block of keys at a time
(FlashAttention: Dao et al. 2022; Dao 2023).

The gradients of queries, and those of keys and values, are two kernels, and each tile writes its own alone. Nothing is
added up in an order that varies, so the same batch has the same gradient, bit for bit, each time.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

EVERYTHING = 2**30  # a window that reaches farther than any row is long

LOG2_E = math.log2(math.e)  # the softmax is taken to the base of 2
# A score that is not seen counts for nothing beside any highest score, the first one included.
UNSEEN, LOWEST = tl.constexpr(-1e30), tl.constexpr(-1e20)

HEAD_DIMS = {32, 64, 128}  # what a tile's features can be: a power of 2 that fits
# Tokens of a tile, and of a block that it walks over. Of a dozen tried on an H200, with heads of 64 features, each kernel
# is within a tenth of its best with these, on rows of 512 and of varied length, with a window and without.
ROWS, COLUMNS = 64, 32
WARPS, STAGES = 4, 3  # threads of a tile, in units of 32; blocks that are being fetched, or are worked on


# --- What kernels share: loading and storing tiles, and what a tile sees ---------------------------------------------


@triton.jit
def head_and_begin(HEADS: tl.constexpr, ROWS: tl.constexpr):
    """The head of a program and where its tile begins; those of all heads for the same tokens run together."""
    program = tl.program_id(0)
    return program % HEADS, program // HEADS * ROWS


@triton.jit
def tile(start, begin, tokens, stride, PLACES: tl.constexpr, SIZE: tl.constexpr):
    """Pointers to the features of some tokens, (PLACES, SIZE), and whether each token is there."""
    places = tl.arange(0, PLACES)
    within = places[:, None] * stride + tl.arange(0, SIZE)[None, :]  # the same for each block of a loop
    return start + tl.cast(begin, tl.int64) * stride + within, (begin + places < tokens)[:, None]


@triton.jit
def load_tile(start, begin, tokens, stride, PLACES: tl.constexpr, SIZE: tl.constexpr):
    """(PLACES, SIZE), zero past the row's end."""
    pointers, inside = tile(start, begin, tokens, stride, PLACES, SIZE)
    return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def store_tile(start, x, begin, tokens, stride, SIZE: tl.constexpr):
    pointers, inside = tile(start, begin, tokens, stride, x.shape[0], SIZE)
    tl.store(pointers, x.to(start.dtype.element_ty), mask=inside)


@triton.jit
def load_angles(rotary, begin, tokens, PLACES: tl.constexpr, SIZE: tl.constexpr):
    """Cosines and sines of some tokens, (PLACES, SIZE / 2) each; the table holds both twice, `rotary_table` says how."""
    cos = load_tile(rotary, begin, tokens, SIZE, PLACES, SIZE // 2)
    return cos, load_tile(rotary + tokens.to(tl.int64) * SIZE + SIZE // 2, begin, tokens, SIZE, PLACES, SIZE // 2)


@triton.jit
def turn_back(x, rotary, begin, tokens, SIZE: tl.constexpr):
    """The gradient of what was turned by the angles of some tokens: (tokens, SIZE)."""
    cos, sin = load_angles(rotary, begin, tokens, x.shape[0], SIZE)
    halves = tl.permute(tl.reshape(x, (x.shape[0], 2, SIZE // 2)), (0, 2, 1))
    first, second = tl.split(halves)
    turned = tl.join(first * cos + second * sin, second * cos - first * sin)
    return tl.reshape(tl.permute(turned, (0, 2, 1)), (x.shape[0], SIZE))


@triton.jit
def first_and_end(bounds, places, tokens, back, ahead):
    """The first token that the one at each place sees, and the one after the last; none past the row's end."""
    inside = places < tokens
    first = tl.load(bounds + places, mask=inside, other=tokens)
    end = tl.load(bounds + tokens + places, mask=inside, other=0)
    return tl.maximum(first, places - back), tl.minimum(end, places + ahead + 1)


@triton.jit
def is_seen(first, end, places):
    return (places[None, :] >= first[:, None]) & (places[None, :] < end[:, None])


# --- The kernels -----------------------------------------------------------------------------------------------------
# Of `qkv` they read queries, keys and values of a head by one stride, except where queries and keys lie in `turned`.


@triton.jit(do_not_specialize=["tokens"])
def rotation_kernel(
    qkv, rotary, turned, tokens,
    HEADS: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Turn queries and keys by the angles of their positions, summed up in float32."""
    head, begin = head_and_begin(HEADS, ROWS)  # the heads of the keys after those of the queries
    cos, sin = load_angles(rotary, begin, tokens, ROWS, SIZE)
    x, stride = qkv + head * SIZE, 3 * (HEADS // 2) * SIZE
    first = load_tile(x, begin, tokens, stride, ROWS, SIZE // 2)
    second = load_tile(x + SIZE // 2, begin, tokens, stride, ROWS, SIZE // 2)
    y = turned + head * SIZE
    store_tile(y, first * cos - second * sin, begin, tokens, HEADS * SIZE, SIZE // 2)
    store_tile(y + SIZE // 2, second * cos + first * sin, begin, tokens, HEADS * SIZE, SIZE // 2)


@triton.jit(do_not_specialize=["tokens"])
def attention_kernel(
    queries, keys, values, bounds, out, lse, stride, v_stride, scale, back, ahead, tokens,
    HEADS: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of queries: softmax(scale Q Kᵀ) V, and for each query the logarithm of the softmax's denominator."""
    head, begin = head_and_begin(HEADS, ROWS)
    rows = begin + tl.arange(0, ROWS)
    first, end = first_and_end(bounds, rows, tokens, back, ahead)
    q = load_tile(queries + head * SIZE, begin, tokens, stride, ROWS, SIZE)
    total = tl.zeros((ROWS, SIZE), tl.float32)
    largest, denominator = tl.full((ROWS,), LOWEST, tl.float32), tl.zeros((ROWS,), tl.float32)
    for column in range(tl.min(first, 0), tl.max(end, 0), COLUMNS):
        places = column + tl.arange(0, COLUMNS)
        k = load_tile(keys + head * SIZE, column, tokens, stride, COLUMNS, SIZE)
        v = load_tile(values + head * SIZE, column, tokens, v_stride, COLUMNS, SIZE)
        scores = tl.where(is_seen(first, end, places), tl.dot(q, tl.trans(k)), UNSEEN)
        highest = tl.maximum(largest, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - highest[:, None])
        shrink = tl.exp2(largest - highest)
        denominator = denominator * shrink + tl.sum(weights, 1)
        total = tl.dot(weights.to(v.dtype), v, total * shrink[:, None])
        largest = highest
    denominator = tl.where(denominator == 0.0, 1.0, denominator)  # past the row's end
    store_tile(out + head * SIZE, total / denominator[:, None], begin, tokens, HEADS * SIZE, SIZE)
    tl.store(lse + head.to(tl.int64) * tokens + rows, largest + tl.log2(denominator), mask=rows < tokens)


@triton.jit(do_not_specialize=["tokens"])
def query_gradient_kernel(
    queries, keys, values, rotary, bounds, out, out_grad, lse, products, qkv_grad, stride, v_stride, scale,
    factor, back, ahead, tokens,
    HEADS: tl.constexpr, SIZE: tl.constexpr, ROTARY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of queries, and for each query the product of its output with that output's gradient."""
    head, begin = head_and_begin(HEADS, ROWS)
    rows = begin + tl.arange(0, ROWS)
    first, end = first_and_end(bounds, rows, tokens, back, ahead)
    q = load_tile(queries + head * SIZE, begin, tokens, stride, ROWS, SIZE)
    y = load_tile(out + head * SIZE, begin, tokens, HEADS * SIZE, ROWS, SIZE)
    g = load_tile(out_grad + head * SIZE, begin, tokens, HEADS * SIZE, ROWS, SIZE)
    of_head = head.to(tl.int64) * tokens
    logs = tl.load(lse + of_head + rows, mask=rows < tokens, other=0.0)
    product = tl.sum(y.to(tl.float32) * g.to(tl.float32), 1)
    tl.store(products + of_head + rows, product, mask=rows < tokens)
    grad = tl.zeros((ROWS, SIZE), tl.float32)
    for column in range(tl.min(first, 0), tl.max(end, 0), COLUMNS):
        places = column + tl.arange(0, COLUMNS)
        k = load_tile(keys + head * SIZE, column, tokens, stride, COLUMNS, SIZE)
        v = load_tile(values + head * SIZE, column, tokens, v_stride, COLUMNS, SIZE)
        weights = tl.exp2(tl.dot(q, tl.trans(k)) * scale - logs[:, None])
        weights = tl.where(is_seen(first, end, places), weights, 0.0)
        score_grad = weights * (tl.dot(g, tl.trans(v)) - product[:, None])
        grad = tl.dot(score_grad.to(k.dtype), k, grad)
    grad *= factor
    if ROTARY:
        grad = turn_back(grad, rotary, begin, tokens, SIZE)
    store_tile(qkv_grad + head * SIZE, grad, begin, tokens, 3 * HEADS * SIZE, SIZE)


@triton.jit(do_not_specialize=["tokens"])
def key_value_gradient_kernel(
    queries, keys, values, rotary, bounds, out_grad, lse, products, qkv_grad, stride, v_stride, scale,
    factor, back, ahead, tokens,
    HEADS: tl.constexpr, SIZE: tl.constexpr, ROTARY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of keys and values, which walks over the queries that see them."""
    head, begin = head_and_begin(HEADS, ROWS)
    rows = begin + tl.arange(0, ROWS)
    first, end = first_and_end(bounds, rows, tokens, ahead, back)  # the window as a key has it
    k = load_tile(keys + head * SIZE, begin, tokens, stride, ROWS, SIZE)
    v = load_tile(values + head * SIZE, begin, tokens, v_stride, ROWS, SIZE)
    of_head = head.to(tl.int64) * tokens
    k_grad, v_grad = tl.zeros((ROWS, SIZE), tl.float32), tl.zeros((ROWS, SIZE), tl.float32)
    for column in range(tl.min(first, 0), tl.max(end, 0), COLUMNS):
        places = column + tl.arange(0, COLUMNS)
        q = load_tile(queries + head * SIZE, column, tokens, stride, COLUMNS, SIZE)
        g = load_tile(out_grad + head * SIZE, column, tokens, HEADS * SIZE, COLUMNS, SIZE)
        logs = tl.load(lse + of_head + places, mask=places < tokens, other=0.0)
        product = tl.load(products + of_head + places, mask=places < tokens, other=0.0)
        weights = tl.exp2(tl.dot(k, tl.trans(q)) * scale - logs[None, :])  # (keys, queries)
        weights = tl.where(is_seen(first, end, places), weights, 0.0)
        v_grad = tl.dot(weights.to(g.dtype), g, v_grad)
        score_grad = weights * (tl.dot(v, tl.trans(g)) - product[None, :])
        k_grad = tl.dot(score_grad.to(q.dtype), q, k_grad)
    k_grad *= factor
    if ROTARY:
        k_grad = turn_back(k_grad, rotary, begin, tokens, SIZE)
    store_tile(qkv_grad + (HEADS + head) * SIZE, k_grad, begin, tokens, 3 * HEADS * SIZE, SIZE)
    store_tile(qkv_grad + (2 * HEADS + head) * SIZE, v_grad, begin, tokens, 3 * HEADS * SIZE, SIZE)


# --- The operators, as torch and its compiler know them --------------------------------------------------------------


def can_attend(device: torch.device, dtype: torch.dtype, head_dim: int, dropout: float) -> bool:
    """Whether these kernels can compute such an attention."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and dtype in (torch.float16, torch.bfloat16)
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and head_dim in HEAD_DIMS
        and not dropout
    )


def packed_attention(
    qkv: Tensor, rotary: Tensor | None, bounds: Tensor, scale: float, back: int | None, ahead: int | None
) -> Tensor:
    """Softmax(scale Q Kᵀ) V of each head, each token seeing those of its own sequence within the window.

    Args:
        qkv: (tokens, 3, heads, head_dim) in 16 bits
        rotary: (2, tokens, head_dim) float32, the `rotary_table` of the tokens' positions; None leaves them as they are
        bounds: (2, tokens) int32, where the sequence of each token begins and ends
        back, ahead: how many tokens before and after itself a token sees; None for all

    Returns:
        (tokens, heads, head_dim)
    """
    reach = (EVERYTHING if back is None else back), (EVERYTHING if ahead is None else ahead)
    out: Tensor = forward_operator(qkv, rotary, bounds, scale, *reach)[0]
    return out


@torch.library.custom_op("hf_tfenc::packed_attention", mutates_args=())
def forward_operator(
    qkv: Tensor, rotary: Tensor | None, bounds: Tensor, scale: float, back: int, ahead: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the logarithms of the softmax's denominators, and queries and keys as they were turned."""
    qkv, bounds = qkv.contiguous(), bounds.contiguous()
    results = out, lse, turned = empty_results(qkv, rotary, bounds, scale, back, ahead)
    if rotary is not None:
        launch(rotation_kernel, turned.flatten(1, 2), qkv, rotary.contiguous(), turned)
    queries, keys, values, *strides = tensors_and_strides(qkv, turned)
    launch(
        attention_kernel, out, queries, keys, values, bounds, out, lse, *strides,
        scale * LOG2_E, back, ahead,
    )  # fmt: skip
    return results


@torch.library.custom_op("hf_tfenc::packed_attention_backward", mutates_args=())
def backward_operator(
    out_grad: Tensor,
    out: Tensor,
    lse: Tensor,
    qkv: Tensor,
    turned: Tensor,
    rotary: Tensor | None,
    bounds: Tensor,
    scale: float,
    back: int,
    ahead: int,
) -> Tensor:
    """The gradient of `qkv`."""
    qkv, bounds, out_grad = qkv.contiguous(), bounds.contiguous(), out_grad.contiguous()
    qkv_grad, products = torch.empty_like(qkv), torch.empty_like(lse)
    queries, keys, values, *strides = tensors_and_strides(qkv, turned)
    angles = lse if rotary is None else rotary.contiguous()  # some tensor, where none is read
    launch(
        query_gradient_kernel, out, queries, keys, values, angles, bounds, out, out_grad, lse, products,
        qkv_grad, *strides, scale * LOG2_E, scale, back, ahead, ROTARY=rotary is not None,
    )  # fmt: skip
    launch(
        key_value_gradient_kernel, out, queries, keys, values, angles, bounds, out_grad, lse,
        products, qkv_grad, *strides, scale * LOG2_E, scale, back, ahead, ROTARY=rotary is not None,
    )  # fmt: skip
    return qkv_grad


@forward_operator.register_fake
def empty_results(
    qkv: Tensor, rotary: Tensor | None, bounds: Tensor, scale: float, back: int, ahead: int
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, _, heads, size = qkv.shape
    turned = qkv.new_empty((0 if rotary is None else tokens, 2, heads, size))
    return qkv.new_empty((tokens, heads, size)), qkv.new_empty((heads, tokens), dtype=torch.float32), turned


@backward_operator.register_fake
def empty_gradient(out_grad: Tensor, out: Tensor, lse: Tensor, qkv: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def save_for_backward(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    qkv, rotary, bounds, *ctx.options = inputs
    out, lse, turned = output
    ctx.save_for_backward(out, lse, qkv, turned, rotary, bounds)
    ctx.set_materialize_grads(False)  # nobody has gradients of the other outputs


def backward(ctx: Any, out_grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            'These kernels have no second derivative: load the model with attn_implementation="eager" for it.'
        )
    return backward_operator(out_grad, *ctx.saved_tensors, *ctx.options), None, None, None, None, None


forward_operator.register_autograd(backward, setup_context=save_for_backward)


def tensors_and_strides(qkv: Tensor, turned: Tensor) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """Queries, keys and values as kernels read them, and how far it is from token to token: of the former two, of values."""
    queries, keys, values = qkv.unbind(1)
    if len(turned):
        queries, keys = turned.unbind(1)
    return queries, keys, values, queries.stride(0), values.stride(0)


def launch(kernel: Any, grid: Tensor, *args: Any, **constants: bool) -> None:
    """A program for each head and each tile of tokens of `grid`, (tokens, heads, head_dim)."""
    tokens, heads, size = grid.shape
    with torch.cuda.device_of(grid):
        kernel[heads * triton.cdiv(tokens, ROWS),](
            *args, tokens, HEADS=heads, SIZE=size, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=WARPS, num_stages=STAGES,
            **constants,
        )  # fmt: skip
