"""The transformer encoder and its six heads.

Read it top to bottom: functions, embeddings, attention, feed-forward, the layer, the stack, the heads. What you see
first is the textbook encoder; what makes it BERT or ModernBERT is one choice in one place each, made in `__init__`.

This file travels with every checkpoint. It imports torch, transformers and `configuration_tfenc`, nothing else.

Shapes: batch, length (tokens of a padded row), tokens (of a packed row), heads, head_dim, hidden = heads * head_dim.
"""

import copy
import math
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.generation import GenerationMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    AttentionMaskInterface,
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
    packed_sequence_mask_function,
    sdpa_mask,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    CausalLMOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_tfenc import TfEncConfig

logger = logging.get_logger(__name__)

IGNORE_INDEX = -100
LOGITS_AT_ONCE = 2**26  # in training: 256 MB of them in float32
Ids = Tensor | None

# `hf_tfenc.kernels`, which the package puts here where it can be imported: on a GPU some lines of this file are computed
# by kernels of its own. The code that travels with a checkpoint does without.
fused_kernels: ModuleType | None = None


# --- Checks: one sentence for the user, nothing while a graph is traced, no waiting for an accelerator ---------------


def is_tracing() -> bool:
    """Whether a graph is being made, in which nothing may depend on the data's values."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_exporting() -> bool:
    """Whether that graph is for another place, where rows may have any length, and the package need not be."""
    # The flag, for before torch 2.13 torch.compiler.is_exporting() says so of every graph that is compiled.
    return getattr(torch.compiler, "_is_exporting_flag", False) or torch.jit.is_tracing()


def check_range(name: str, ids: Tensor | None, limit: int, mend: str, ignored: int | None = None) -> None:
    """Raise a ValueError unless every id lies in [0, limit) or equals `ignored`. Only ids on a CPU are looked at."""
    if ids is None or ids.device.type != "cpu" or is_tracing():
        return
    wrong = (ids < 0) | (ids >= limit)
    if ignored is not None:
        wrong &= ids != ignored
    if wrong.any():
        value, place = ids[wrong][0].item(), wrong.nonzero()[0].tolist()
        raise ValueError(f"{name} holds {value} at {place}, outside 0 to {limit - 1}: {mend}.")


def check_shape(name: str, tensor: Tensor | None, expected: tuple[int, ...], meaning: str) -> None:
    """Raise a ValueError unless the tensor is None or has the expected shape."""
    if tensor is not None and not is_tracing() and tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; {meaning} = {tuple(expected)} is expected.")


def given_input(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """The one that is given. Raise a ValueError if none is, or both are, or it holds no rows of tokens."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Give either input_ids or inputs_embeds, not both and not neither.")
    if input_ids is not None and input_ids.dim() != 2:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; (batch, length) is expected.")
    given: Tensor = input_ids if inputs_embeds is None else inputs_embeds  # type: ignore[assignment]
    if not is_tracing() and given.numel() == 0:
        raise ValueError(f"The input is empty, {tuple(given.shape[:2])}: give at least one row of at least one token.")
    return given


# --- Positions -------------------------------------------------------------------------------------------------------


def sinusoidal_table(length: int, hidden_size: int) -> Tensor:
    """The positional encoding of "Attention Is All You Need" (Vaswani et al. 2017, section 3.5).

    table[p, 2i] = sin(p / 10000^(2i / hidden)), table[p, 2i + 1] = cos(p / 10000^(2i / hidden))

    Returns:
        (length, hidden) float32, computed in float64.
    """
    positions = torch.arange(length, dtype=torch.float64)[:, None]
    frequencies = torch.exp(torch.arange(0, hidden_size, 2, dtype=torch.float64) * (-math.log(10_000.0) / hidden_size))
    angles = positions * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).float()


def rotary_table(position_ids: Tensor, head_dim: int, theta: float) -> Tensor:
    """Cosines and sines of rotary positions (Su et al. 2021), in float32 whatever the model's precision.

    Args:
        position_ids: (...,)

    Returns:
        (2, ..., head_dim): cosines; and sines, of the first half of the features negated
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids.device) / head_dim
    angles = position_ids[..., None].float() * (1.0 / theta**exponents)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)))


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn feature i together with feature i + head_dim / 2 by the angle of their position.

    Args:
        x: (batch, length, heads, head_dim)
        rotary: (2, batch, length, head_dim)
    """
    cos, sin = rotary[:, :, :, None]
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), sin).to(x.dtype)  # summed up in float32


def rotate_nothing(x: Tensor, rotary: None) -> Tensor:
    return x


class RotaryPositions(nn.Module):
    """Looks cosines and sines up: a compiled graph would work them out in each layer anew, others in a dozen steps."""

    def __init__(self, config: TfEncConfig, theta: float):
        super().__init__()
        self.theta, self.head_dim = theta, config.hidden_size // config.num_attention_heads
        self.shape = (2, config.max_position_embeddings, self.head_dim)
        self.bits: Tensor  # of float32 numbers, for as integers they stay so when a model is cast
        self.register_buffer("bits", self.table().view(torch.int32), persistent=False)

    def table(self) -> Tensor:
        """What is looked up: (2, positions, head_dim)."""
        return rotary_table(torch.arange(self.shape[1]), self.head_dim, self.theta)

    def forward(self, position_ids: Tensor, max_length: int | None) -> Tensor:
        """(2, batch, length, head_dim)

        Args:
            position_ids: (batch, length)
            max_length: no position reaches it; None where nobody knows
        """
        if max_length is not None and not is_exporting() and max_length <= self.shape[1]:
            return self.bits.view(torch.float32)[:, position_ids]
        return rotary_table(position_ids, self.head_dim, self.theta)


class SinusoidalPositions(nn.Module):
    """Adds the fixed table of sines and cosines."""

    def __init__(self, config: TfEncConfig):
        super().__init__()
        self.shape = (config.max_position_embeddings, config.hidden_size)
        self.table: Tensor
        self.register_buffer("table", sinusoidal_table(*self.shape), persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        return x + self.table[position_ids].to(x.dtype)


class LearnedPositions(nn.Module):
    """Adds a trained vector for each position."""

    def __init__(self, config: TfEncConfig):
        super().__init__()
        self.table = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        return x + self.table(position_ids)


class NoPositions(nn.Module):
    """Adds nothing: positions enter in the attention (rotary), or not at all."""

    def __init__(self, config: TfEncConfig):
        super().__init__()

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        return x


POSITIONS = {
    "sinusoidal": SinusoidalPositions,
    "learned": LearnedPositions,
    "rotary": NoPositions,
    "none": NoPositions,
}
ROTATIONS: dict[str, Callable] = {
    "sinusoidal": rotate_nothing,
    "learned": rotate_nothing,
    "rotary": rotate,
    "none": rotate_nothing,
}


# --- Packing and masks -----------------------------------------------------------------------------------------------


class Packing(NamedTuple):
    """Which tokens of a packed row belong together.

    ids: (1, tokens), the index of each token's sequence
    starts: (sequences,), where each sequence begins; None until a pooling needs it
    """

    ids: Tensor
    starts: Tensor | None

    def positions(self) -> Tensor:
        """Beginning again at 0 with each sequence: (1, tokens)."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) - sequence_starts(self)[self.ids]


def find_packing(
    shape: tuple[int, ...], attention_mask: Tensor | None, position_ids: Tensor | None, cu_seq_lens: Tensor | None
) -> Packing | None:
    """The packing of a row, or None where nothing is packed.

    A row is packed where `cu_seq_lens` says so, or where positions restart and no attention mask is given.

    Args:
        shape: of the input, (batch, length)
        position_ids: (1, length), beginning again at 0 with each sequence
        cu_seq_lens: (sequences + 1,), where each sequence begins, and the length; entries may repeat
    """
    batch, length = shape
    tracing = is_tracing()
    if cu_seq_lens is not None:
        if batch != 1 or attention_mask is not None:
            raise ValueError("cu_seq_lens_q describes a packed row: give one row, (1, tokens), and no attention_mask.")
        starts, ends = cu_seq_lens[:-1], cu_seq_lens[1:]
        if not tracing and not len(ends):
            raise ValueError("cu_seq_lens_q has one number or none; it says where each sequence begins, and the end.")
        if not tracing and ends.device.type == "cpu" and (starts[0] != 0 or ends[-1] != length):
            raise ValueError(
                f"cu_seq_lens_q runs from {starts[0].item()} to {ends[-1].item()}; the packed row has {length} tokens."
            )
        if not tracing and ends.device.type == "cpu" and (starts > ends).any():
            raise ValueError("cu_seq_lens_q falls somewhere; it says where each sequence begins, in their order.")
        return Packing(sequence_ids(cu_seq_lens, length)[None], starts)
    if attention_mask is not None or position_ids is None or (tracing and batch != 1):
        return None  # a graph cannot look at the positions of several rows, which must not restart anyway
    restarts = position_ids.diff() <= 0  # positions that jump ahead are one sequence's
    if not tracing and not restarts.any():
        return None
    if batch != 1:
        raise ValueError(
            f"position_ids {tuple(position_ids.shape)} restart within a row; packed input is one row, (1, tokens). "
            "For padded rows pass attention_mask."
        )
    return Packing(F.pad(restarts.cumsum(dim=1), (1, 0)), None)


def sequence_ids(cu_seq_lens: Tensor, length: int) -> Tensor:
    """The index of each token's sequence, by where each begins, and the end: (length,)."""
    places = torch.arange(length, device=cu_seq_lens.device, dtype=cu_seq_lens.dtype)
    # In all bounds: a slice of them is more than torch 2.11's compiler can search on a GPU.
    return torch.searchsorted(cu_seq_lens, places, right=True) - 1


def token_bounds(cu_seq_lens: Tensor, length: int) -> Tensor:
    """Where the sequence of each token begins, and where it ends: (2, length) int32."""
    ids = sequence_ids(cu_seq_lens, length)
    return torch.stack((cu_seq_lens[ids], cu_seq_lens[ids + 1])).int()


class Unpadding(NamedTuple):
    """The tokens of a padded batch as one packed row, without the padding.

    places: (tokens,), the index of each token into batch * length
    cu_seq_lens: (batch + 1,) int32, where each row begins in the packed one, and the end
    max_length: tokens of the longest row
    is_whole: whether there is no padding at all
    """

    places: Tensor
    cu_seq_lens: Tensor
    max_length: int
    is_whole: bool

    def take(self, padded: Tensor) -> Tensor:
        """(batch, length, ...) -> (1, tokens, ...)"""
        return padded.flatten(0, 1)[self.places][None]

    def put_back(self, packed: Tensor, shape: tuple[int, ...]) -> Tensor:
        """(1, tokens, ...) -> (batch, length, ...), zero where there was padding."""
        padded = packed.new_zeros((shape[0] * shape[1], *packed.shape[2:]))
        return padded.index_copy_(0, self.places, packed[0]).unflatten(0, tuple(shape))


def find_padding(attention_mask: Tensor) -> Unpadding | None:
    """What is no padding; None where that lies between the tokens of a row, or where there is nothing else.

    An accelerator is waited for here, once: what can be worked out before is, while it is still busy.
    """
    kept = attention_mask != 0
    rows, length = kept.shape
    lengths = kept.sum(dim=1, dtype=torch.int32)
    columns = torch.arange(length, device=kept.device)
    first, last = kept.int().argmax(dim=1), (columns * kept).amax(dim=1)
    gaps = (lengths > 0) & (last - first + 1 != lengths)  # a window would reach farther without them
    cu_seq_lens = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    # How far each row's tokens lie behind their places in the packed row.
    shifts = torch.arange(0, rows * length, length, device=kept.device) + first - cu_seq_lens[:-1]
    found = torch.stack([lengths.amax(), lengths.amin(), cu_seq_lens[-1], gaps.any().int()])
    longest, shortest, total, gapped = found.tolist()
    if gapped or longest == 0:
        return None
    places = torch.arange(total, device=kept.device) + shifts[sequence_ids(cu_seq_lens, total)]
    return Unpadding(places, cu_seq_lens, longest, shortest == length)


def sequence_starts(packing: Packing) -> Tensor:
    """Where each sequence of a packed row begins: (sequences,)."""
    if packing.starts is not None:
        return packing.starts
    ids = packing.ids[0]
    return F.pad(ids.diff() != 0, (1, 0), value=True).nonzero()[:, 0]


def sequence_bounds(packing: Packing, length: int) -> Tensor:
    """Where each sequence of a packed row begins, and the end: (sequences + 1,) int32."""
    return F.pad(sequence_starts(packing), (0, 1), value=length).int()


# (look-ahead mask?, layer type) -> the function of transformers that makes the mask for every attention backend
MASKS = {
    (False, "full_attention"): create_bidirectional_mask,
    (False, "sliding_attention"): create_bidirectional_sliding_window_mask,
    (True, "full_attention"): create_causal_mask,
    (True, "sliding_attention"): create_sliding_window_causal_mask,
}


def attention_masks(
    config: TfEncConfig, hidden_states: Tensor, attention_mask: Tensor | None, packing: Packing | None
) -> dict[str, Any]:
    """For each layer type the mask of padding, packing, window and look-ahead, in the form the backend takes."""
    same_sequence = packed_sequence_mask_function(packing.ids) if packing is not None else None
    return {
        layer_type: MASKS[config.is_causal, layer_type](
            config, hidden_states, attention_mask, past_key_values=None, and_mask_function=same_sequence
        )
        for layer_type in sorted(set(config.layer_types or []))
    }


# --- The encoder -----------------------------------------------------------------------------------------------------


class TfEncEmbeddings(nn.Module):
    """Token embeddings, scaled, plus positions (and segments), normalized if the configuration says so."""

    def __init__(self, config: TfEncConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.scale = float(config.embedding_scale or 1.0)
        self.positions = POSITIONS[config.position_embedding_type](config)
        self.segments = nn.Embedding(config.type_vocab_size, config.hidden_size) if config.type_vocab_size else None
        self.norm = layer_norm(config) if config.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(config.embedding_dropout)

    def forward(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        position_ids: Tensor,
        token_type_ids: Tensor | None,
    ) -> Tensor:
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (batch, length, hidden)
        x = self.positions(x if self.scale == 1 else x * self.scale, position_ids)
        if self.segments is not None:
            x = x + self.segments(torch.zeros_like(position_ids) if token_type_ids is None else token_type_ids)
        return self.dropout(self.norm(x))


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention, written out: softmax(Q Kᵀ / sqrt(head_dim)) V (Vaswani et al. 2017, eq. 1).

    Args:
        query, key, value: (batch, heads, length, head_dim)
        attention_mask: added to the scores, (batch, 1, length, length), very negative where a key is hidden

    Returns:
        (batch, length, heads, head_dim), and the weights (batch, heads, length, length)
    """
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


def varlen_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within each sequence of a packed row: no mask, and no work between sequences or on padding.

    On a GPU that has it this is torch's `varlen_attn`; elsewhere each sequence goes through torch's
    `scaled_dot_product_attention` by itself, which is equal. Input that is not packed takes the latter with its mask.

    Args:
        query, key, value: (1, heads, tokens, head_dim), or (batch, heads, length, head_dim) where nothing is packed
        sliding_window: how many tokens the window reaches back, the token itself included
        cu_seq_lens_q: (sequences + 1,) int32, where each sequence begins, and the end; entries may repeat
        max_length_q: tokens of the longest sequence, or more

    Returns:
        (1, tokens, heads, head_dim), or (batch, length, heads, head_dim), and None
    """
    has_kernel = no_varlen_kernel(query.device, query.dtype, query.shape[-1], dropout) is None
    if cu_seq_lens_q is None and has_kernel and attention_mask is None and sliding_window is not None:
        rows, _, length, _ = query.shape  # sequences of one length, under a window
        cu_seq_lens_q = torch.arange(0, rows * length + 1, length, device=query.device, dtype=torch.int32)
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    causal, reach = bool(module.is_causal), -1 if sliding_window is None else sliding_window - 1
    if has_kernel:
        heads: Tensor = varlen_attn(  # type: ignore[assignment]  # a tensor, where nothing else is asked for
            query.transpose(1, 2).flatten(0, 1),  # (tokens, heads, head_dim)
            key.transpose(1, 2).flatten(0, 1),
            value.transpose(1, 2).flatten(0, 1),
            cu_seq_lens_q,
            cu_seq_lens_q,
            max_length_q or query.shape[2],
            max_length_q or query.shape[2],
            scale=scaling,
            window_size=(reach, 0 if causal else reach),
        )
        return heads.unflatten(0, (query.shape[0], query.shape[2])), None
    lengths = [length for length in cu_seq_lens_q.diff().tolist() if length]
    parts = []
    # Split, and not sliced: the gradient of each slice would be as large as the whole row.
    for q, k, v in zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True):
        windowed = -1 < reach < q.shape[2] - 1
        attended = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=window_mask(q.shape[2], reach, causal, query.device) if windowed else None,
            dropout_p=dropout,
            is_causal=causal and not windowed,
            scale=scaling,
        )
        parts.append(attended)
    return torch.cat(parts, dim=2).transpose(1, 2), None


def window_mask(length: int, reach: int, causal: bool, device: torch.device) -> Tensor:
    """(length, length), True where a query (row) sees a key: at most `reach` tokens back, and as many ahead."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance <= reach) & (distance >= (0 if causal else -reach))


def no_varlen_kernel(device: torch.device, dtype: torch.dtype, head_dim: int, dropout: float) -> str | None:
    """Why torch's `varlen_attn` cannot compute such an attention, or None where it can."""
    if device.type != "cuda":
        return "needs a GPU"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"needs bfloat16 or float16, not {str(dtype).removeprefix('torch.')}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs an A100 or a newer card"
    if dropout:
        return "has no attention dropout"
    if head_dim % 8 or head_dim > 256:
        return "needs heads of at most 256 features, in multiples of 8"
    if torch.is_grad_enabled() and torch.are_deterministic_algorithms_enabled():
        return "has no deterministic backward pass"
    return None


# Whoever makes a mask for this backend, for input that is not packed, gets the one that sdpa takes.
AttentionInterface.register("varlen", varlen_attention_forward)
AttentionMaskInterface.register("varlen", sdpa_mask)


class QueryKeyValueProjection(nn.Linear):
    """The three projections of an attention in one matrix; only its initial weights are its own."""


class ResidualProjection(nn.Linear):
    """A linear layer that writes into the residual stream; only its initial weights are its own."""


def eager_only(config: TfEncConfig, device: torch.device, training: bool, output_attentions: Any) -> str | None:
    """Why the backend asked for cannot do this forward pass, or None where it can."""
    if config._attn_implementation == "eager":
        return None
    if output_attentions:
        return "does not return attention weights"
    if config._attn_implementation == "flex_attention":
        if training and config.attention_dropout:
            return "has no attention dropout"
        if device.type == "cpu" and torch.is_grad_enabled():
            return "has no backward pass on a CPU"
        if device.type == "cpu" and config.hidden_size // config.num_attention_heads < 16:
            return "needs heads of at least 16 features on a CPU"
    return None


class TfEncAttention(nn.Module):
    """Multi-head self-attention, computed by whichever backend `attn_implementation` names."""

    def __init__(self, config: TfEncConfig, layer_type: str):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.qkv_proj = QueryKeyValueProjection(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.out_proj = ResidualProjection(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.rotate = ROTATIONS[config.position_embedding_type]
        self.dropout = config.attention_dropout
        self.is_causal = config.is_causal  # read by the sdpa and flash backends where they get no mask
        self.sliding_window: int | None = None
        if layer_type == "sliding_attention" and config.sliding_window is not None:
            # Flash attention counts the token itself; the half-width of the two-sided window does not.
            self.sliding_window = config.sliding_window + (not config.is_causal)

    def forward(
        self,
        x: Tensor,
        attention_mask: Any = None,
        rotary: Tensor | None = None,
        token_bounds: Tensor | None = None,
        fallback: Callable | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        states = self.qkv_proj(x).view(*x.shape[:2], 3, -1, self.head_dim)  # (batch, length, 3, heads, head_dim)
        if token_bounds is not None:
            return self.out_proj(self.fused(states, rotary, token_bounds).view(x.shape)), None
        query, key, value = states.unbind(2)
        query, key = self.rotate(query, rotary), self.rotate(key, rotary)

        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        heads, weights = (fallback or attend)(
            self,
            query.transpose(1, 2),  # (batch, heads, length, head_dim)
            key.transpose(1, 2),
            value.transpose(1, 2),
            attention_mask,
            scaling=self.head_dim**-0.5,
            dropout=self.dropout if self.training else 0.0,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.out_proj(heads.flatten(2)), weights

    def fused(self, states: Tensor, rotary: Tensor | None, token_bounds: Tensor) -> Tensor:
        """All of it by one kernel, over the rows one after another: (batch * length, heads, head_dim)."""
        reach = None if self.sliding_window is None else self.sliding_window - 1
        heads: Tensor = fused_kernels.packed_attention(  # type: ignore[union-attr]  # where bounds are given
            states.flatten(0, 1),
            None if rotary is None else rotary.flatten(1, 2),
            token_bounds,
            self.head_dim**-0.5,
            reach,
            0 if self.is_causal else reach,
        )
        return heads


def plain(activation: nn.Module, x: Tensor) -> Tensor:
    return activation(x)


def gated(activation: nn.Module, x: Tensor) -> Tensor:
    """A gated linear unit (Shazeer 2020): one half of the features, activated, times the other half."""
    if fused_kernels is not None and not is_exporting() and fused_kernels.can_gate(activation, x):
        product: Tensor = fused_kernels.gated_gelu(x)
        return product
    x, gate = x.chunk(2, dim=-1)
    return activation(x) * gate


class TfEncMLP(nn.Module):
    """The feed-forward block: up, activation, down; the same for every position."""

    def __init__(self, config: TfEncConfig):
        super().__init__()
        width = config.intermediate_size * (2 if config.gated_mlp else 1)
        self.up_proj = nn.Linear(config.hidden_size, width, bias=config.mlp_bias)
        self.down_proj = ResidualProjection(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.activation = ACT2FN[config.hidden_act]
        self.unit = gated if config.gated_mlp else plain
        self.dropout = nn.Dropout(config.mlp_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.dropout(self.unit(self.activation, self.up_proj(x))))


def layer_norm(config: TfEncConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=config.norm_bias)


def post_norm(x: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
    """Normalize after the residual sum (Vaswani et al. 2017)."""
    return norm(x + sublayer(x))


def pre_norm(x: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
    """Normalize what the sub-layer reads, and leave the residual stream alone (Xiong et al. 2020)."""
    return x + sublayer(norm(x))


RESIDUALS = {"post": post_norm, "pre": pre_norm}


class TfEncLayer(GradientCheckpointingLayer):
    """One encoder layer: attention and feed-forward, each on a residual branch."""

    def __init__(self, config: TfEncConfig, index: int):
        super().__init__()
        self.layer_type = (config.layer_types or [])[index]
        self.attention = TfEncAttention(config, self.layer_type)
        self.mlp = TfEncMLP(config)
        self.attention_norm = layer_norm(config) if index or config.first_attention_norm else nn.Identity()
        self.mlp_norm = layer_norm(config)
        self.residual = RESIDUALS[config.norm_position]
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: Tensor, **kwargs: Unpack[TransformersKwargs]) -> Tensor:
        x = self.residual(x, self.attention_norm, lambda y: self.dropout(self.attention(y, **kwargs)[0]))
        x = self.residual(x, self.mlp_norm, lambda y: self.dropout(self.mlp(y)))
        return x


def first_token(x: Tensor, attention_mask: Tensor | None, packing: Packing | None) -> Tensor:
    """The first token of each sequence: (sequences, hidden)."""
    if packing is not None:
        return x[0, sequence_starts(packing).clamp(max=x.shape[1] - 1)]  # an empty slot at the end begins past it
    if attention_mask is None:
        return x[:, 0]
    first = attention_mask.int().argmax(dim=1)  # not always 0: rows may be padded on the left
    return x[torch.arange(x.shape[0], device=x.device), first]


def mean_token(x: Tensor, attention_mask: Tensor | None, packing: Packing | None) -> Tensor:
    """The mean over the tokens of each sequence, in float32: (sequences, hidden)."""
    if packing is not None:
        sums = torch.zeros(len(sequence_starts(packing)), x.shape[-1], device=x.device)
        counts = torch.zeros(len(sums), device=x.device).index_add(
            0, packing.ids[0], torch.ones_like(x[0, :, 0]).float()
        )
        sums = sums.index_add(0, packing.ids[0], x[0].float())
    elif attention_mask is None:
        return x.float().mean(dim=1).to(x.dtype)
    else:
        weights = attention_mask.float()
        sums, counts = (x.float() * weights[..., None]).sum(dim=1), weights.sum(dim=1)
    return (sums / counts.clamp(min=1)[:, None]).to(x.dtype)


POOLINGS = {"cls": first_token, "mean": mean_token}


class TfEncPooler(nn.Module):
    """One vector for each sequence: a pooling, and BERT's dense layer and activation where the configuration asks."""

    def __init__(self, config: TfEncConfig):
        super().__init__()
        self.pool = POOLINGS[config.pooling]
        self.dense: nn.Module = nn.Identity()
        self.activation: nn.Module = nn.Identity()
        if config.pooler_activation is not None:
            self.dense = nn.Linear(config.hidden_size, config.hidden_size)
            self.activation = ACT2FN[config.pooler_activation]

    def forward(self, x: Tensor, attention_mask: Tensor | None, packing: Packing | None) -> Tensor:
        return self.activation(self.dense(self.pool(x, attention_mask, packing)))


class TfEncPreTrainedModel(PreTrainedModel):
    """What every class here shares: names for transformers, and the initial weights."""

    config: TfEncConfig
    config_class = TfEncConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TfEncLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": TfEncLayer, "attentions": TfEncAttention}

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """What is asked for, or else `varlen`: sdpa without work on padding."""
        return super().get_correct_attn_implementation(requested_attention or "varlen", is_init_check)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std, config = self.config.initializer_range, self.config
        # transformers' `init` functions leave a loaded parameter alone; a part of one they do not know for loaded.
        new = not getattr(getattr(module, "weight", None), "_is_hf_initialized", False)
        if isinstance(module, nn.Linear):
            if isinstance(module, ResidualProjection):
                scale = config.residual_initializer_scale
                std *= 1 / math.sqrt(2 * config.num_hidden_layers) if scale is None else scale
            init.normal_(module.weight, std=std)
            if isinstance(module, QueryKeyValueProjection) and config.query_key_initializer_range and new:
                query, key, _ = module.weight.chunk(3)
                init.normal_(query, std=config.query_key_initializer_range)
                init.copy_(key, query)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std if (given := config.embedding_initializer_range) is None else given)
            if module.padding_idx is not None and new:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, SinusoidalPositions):
            init.copy_(module.table, sinusoidal_table(*module.shape))
        elif isinstance(module, RotaryPositions):
            init.copy_(module.bits, module.table().view(torch.int32))


class TfEncModel(TfEncPreTrainedModel):
    """The encoder: embeddings, a stack of layers, a pooled vector for each sequence."""

    def __init__(self, config: TfEncConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        config.validate_architecture()  # an option may have changed since it was made
        self.embeddings = TfEncEmbeddings(config)
        self.rotary = nn.ModuleDict(
            {
                layer_type: RotaryPositions(config, parameters["rope_theta"])
                for layer_type, parameters in (config.rope_parameters or {}).items()
            }
        )
        self.layers = nn.ModuleList(TfEncLayer(config, index) for index in range(config.num_hidden_layers))
        self.final_norm = layer_norm(config) if config.final_norm else nn.Identity()
        self.pooler = TfEncPooler(config) if add_pooling_layer and config.pooling != "none" else None
        self.gradient_checkpointing = False
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: Ids = None,
        attention_mask: Ids = None,
        position_ids: Ids = None,
        token_type_ids: Ids = None,
        inputs_embeds: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode a padded batch, or one packed row.

        Args:
            input_ids: (batch, length), or (1, tokens) packed
            attention_mask: (batch, length), 1 for tokens and 0 for padding; None for no padding, or for a packed row
            position_ids: (batch, length), 0, 1, 2 ... in each row, padding on its left counted in, if not given; in a
                packed row they begin again at 0 with each sequence
            token_type_ids: (batch, length), where the model has segments
            inputs_embeds: (batch, length, hidden), in place of the token embeddings
            cu_seq_lens_q: (sequences + 1,), transformers' own description of a packed row, optional

        Returns:
            `last_hidden_state` (batch, length, hidden) and `pooler_output` (batch or sequences, hidden)

        Raises:
            ValueError: one sentence where ids, shapes or lengths do not fit the model.
        """
        if kwargs.get("past_key_values") is not None:
            raise ValueError("An encoder has no cache: give all tokens, and no past_key_values.")
        given = given_input(input_ids, inputs_embeds)
        shape, device = given.shape[:2], given.device
        packing = find_packing(shape, attention_mask, position_ids, cu_seq_lens_q)
        if position_ids is None and packing is not None:
            position_ids = packing.positions()
        self.check_inputs(shape, input_ids, attention_mask, position_ids, token_type_ids)
        check_shape("inputs_embeds", inputs_embeds, (*shape, self.config.hidden_size), "(batch, length, hidden)")
        attention_mask = None if attention_mask is None else attention_mask != 0
        max_length = shape[1] if position_ids is None else kwargs.get("max_length_q")
        position_ids = torch.arange(shape[1], device=device)[None] if position_ids is None else position_ids

        config = self.usable_config(device, kwargs.get("output_attentions"))
        if config is not self.config:
            kwargs["fallback"] = eager_attention_forward
        varlen = config._attn_implementation == "varlen"
        unpadding = None
        if varlen and attention_mask is not None and not is_tracing():
            unpadding = find_padding(attention_mask.to(device))
            if unpadding is not None and unpadding.is_whole:
                unpadding = attention_mask = None
            elif kwargs.get("output_hidden_states", config.output_hidden_states):
                unpadding = None  # they come in the shape of the input
        if unpadding is not None:
            position_ids = unpadding.take(position_ids.expand(shape))
            input_ids, inputs_embeds, token_type_ids = (
                None if padded is None else unpadding.take(padded)
                for padded in (input_ids, inputs_embeds, token_type_ids)
            )
            kwargs["max_length_q"] = unpadding.max_length

        x = self.embeddings(input_ids, inputs_embeds, position_ids, token_type_ids)
        bounds, masks = self.bounds_and_masks(config, x, attention_mask, packing, unpadding)
        if packing is not None or unpadding is not None:  # a backend finds the sequences by the same arguments
            kwargs |= {"position_ids": position_ids, "cu_seq_lens_q": bounds if varlen else cu_seq_lens_q}
        if bounds is not None and self.has_fused_kernels(device):
            kwargs["token_bounds"] = token_bounds(bounds, x.shape[:2].numel())
            position_ids = position_ids.expand(x.shape[:2])  # angles of each token
        rotary = {layer_type: look_up(position_ids, max_length) for layer_type, look_up in self.rotary.items()}
        for layer in cast(Iterable[TfEncLayer], self.layers):
            x = layer(x, attention_mask=masks.get(layer.layer_type), rotary=rotary.get(layer.layer_type), **kwargs)
        x = self.final_norm(x)
        if unpadding is not None:
            x = unpadding.put_back(x, shape)
        elif attention_mask is not None and self.config._attn_implementation == "varlen":
            x = x.masked_fill(~attention_mask[..., None], 0)  # as where the padding was left out
        pooled = self.pooler(x, attention_mask, packing) if self.pooler is not None else None
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=pooled)

    def usable_config(self, device: torch.device, output_attentions: bool | None) -> TfEncConfig:
        """The configuration, or a copy that says eager where its own backend cannot compute this forward pass."""
        config = self.config
        wants_weights = config.output_attentions if output_attentions is None else output_attentions
        if (reason := eager_only(config, device, self.training, wants_weights)) is None:
            return config
        logger.warning_once(f"{config._attn_implementation} {reason}: attention runs on the equal, slower eager path.")
        config = copy.copy(config)
        config._attn_implementation = "eager"
        return config

    def bounds_and_masks(
        self,
        config: TfEncConfig,
        x: Tensor,
        attention_mask: Tensor | None,
        packing: Packing | None,
        unpadding: Unpadding | None,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Who sees whom: where each sequence begins and the last one ends, for varlen, or a mask for each layer type."""
        if config._attn_implementation == "varlen":
            is_fused = self.has_fused_kernels(x.device)
            has_kernel = is_fused or self.has_varlen_kernel(x.device)
            if unpadding is not None:
                return unpadding.cu_seq_lens, {}
            if packing is not None and (has_kernel or not is_tracing()):
                # One by one, sequences can be attended to wherever their lengths can be looked at.
                return sequence_bounds(packing, x.shape[1]), {}
            if packing is None and attention_mask is None and has_kernel:  # whole rows
                rows, length = x.shape[:2]
                if is_fused and (self.rotary or config.sliding_window is not None):  # else sdpa has nothing to save
                    return torch.arange(0, rows * length + 1, length, device=x.device, dtype=torch.int32), {}
                return None, {}
        return None, attention_masks(config, x, attention_mask, packing)

    def asked_of_kernels(self, device: torch.device) -> tuple[torch.device, torch.dtype, int, float]:
        """What not every kernel can do: device, precision, features of a head, attention dropout."""
        config, dtype = self.config, self.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        dropout = config.attention_dropout if self.training else 0.0
        return device, dtype, config.hidden_size // config.num_attention_heads, dropout

    def has_fused_kernels(self, device: torch.device) -> bool:
        """Whether the package's own kernels can compute this model's attention."""
        if fused_kernels is None or is_exporting():
            return False
        return fused_kernels.can_attend(*self.asked_of_kernels(device))

    def has_varlen_kernel(self, device: torch.device) -> bool:
        """Whether torch's `varlen_attn` can compute this model's attention."""
        reason = no_varlen_kernel(*self.asked_of_kernels(device))
        if reason and device.type == "cuda":
            logger.warning_once(
                f"varlen {reason}: each sequence is attended to by itself, which is equal, and slower."
            )
        return reason is None

    def check_inputs(self, shape: tuple[int, ...], ids: Ids, mask: Ids, positions: Ids, segments: Ids) -> None:
        """Raise a ValueError, one sentence, where an input does not fit the model."""
        config, limit = self.config, self.config.position_limit
        check_range("input_ids", ids, config.vocab_size, "the tokenizer does not belong to this model")
        check_shape("attention_mask", mask, shape, "(batch, length)")
        if mask is not None and mask.device.type == "cpu" and not is_tracing() and (mask < 0).any():
            raise ValueError(
                "attention_mask holds negative numbers, as masks do that are added to scores: give 1 for a token and 0 "
                "for padding."
            )
        check_shape("token_type_ids", segments, shape, "(batch, length)")
        if positions is not None:
            check_shape("position_ids", positions, (1, shape[1]) if len(positions) == 1 else shape, "(batch, length)")
        check_range("token_type_ids", segments, max(config.type_vocab_size, 1), "the model has no such segment")
        if limit is None or is_tracing():
            return
        if positions is None and shape[1] > limit:
            raise ValueError(
                f"A sequence of {shape[1]} tokens is longer than max_position_embeddings {limit}: "
                "truncate it, or cut it into windows."
            )
        check_range("position_ids", positions, limit, f"max_position_embeddings is {limit}; use shorter sequences")


# --- Losses: a sum over items, divided by their number in the whole step where the caller knows it -------------------


def per_item(total: Tensor, count: Tensor | int, num_items_in_batch: Tensor | int | None) -> Tensor:
    """A sum over items divided by the global count, or by this batch's own; 0 where there is no item.

    With the global count the gradient is the same for any split into micro-batches and processes.
    """
    items = count if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(items, device=total.device, dtype=total.dtype).clamp(min=1)


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """In float32, leaving out labels of -100. `logits` (rows, classes), `labels` (rows,)."""
    return F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE_INDEX, reduction="sum")


def cross_entropy(logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """Cross-entropy over the last axis of `logits`, leaving out labels of -100.

    Args:
        logits: (..., classes)
        labels: (...)
    """
    check_shape("labels", labels, tuple(logits.shape[:-1]), "the shape of the logits without the classes")
    check_range("labels", labels, logits.shape[-1], f"give classes, or {IGNORE_INDEX} to leave out", IGNORE_INDEX)
    total = summed_cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
    return per_item(total, (labels != IGNORE_INDEX).sum(), num_items_in_batch)


class LinearCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of a linear layer's outputs, which are made for some rows at a time and never kept.

    The gradient of the logits, softmax - one-hot, is known as soon as they are, so it is passed on to rows and weights
    at once, and the backward pass only scales it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        """`x` (rows, hidden), `weight` (classes, hidden), `bias` (classes,), `labels` (rows,), -100 to leave one out."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        matrix, offset = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        # Nothing is written in place: torch 2.11 compiles what is saved as it was before.
        total, x_gradients = torch.zeros((), device=x.device), []
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        bias_gradient = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        size = max(1, LOGITS_AT_ONCE // len(weight))
        for part, targets in zip(x.split(size), labels.split(size), strict=True):
            gradient, loss = torch.func.grad_and_value(summed_cross_entropy)(F.linear(part, matrix, offset), targets)
            total = total + loss
            if bias_gradient is not None:
                bias_gradient = bias_gradient + gradient.sum(dim=0, dtype=torch.float32)
            weight_gradient = weight_gradient + gradient.T @ part
            x_gradients.append(gradient @ matrix)
        ctx.save_for_backward(torch.cat([x[:0], *x_gradients]), weight_gradient, bias_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *scales: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not is_tracing():
            raise RuntimeError(
                "This loss has no second derivative: leave sparse_prediction and prediction_positions out for it."
            )
        return *(None if gradient is None else gradient * scales[0] for gradient in ctx.saved_tensors), None


def linear_cross_entropy(
    x: Tensor, output: nn.Linear, labels: Tensor, num_items_in_batch: Tensor | int | None
) -> Tensor:
    """`cross_entropy` of the logits `output(x)`, without holding them all.

    Args:
        x: (rows, hidden)
        labels: (rows,)
    """
    check_range("labels", labels, output.out_features, f"give classes, or {IGNORE_INDEX} to leave out", IGNORE_INDEX)
    total: Tensor = LinearCrossEntropy.apply(x, output.weight, output.bias, labels)
    return per_item(total, (labels != IGNORE_INDEX).sum(), num_items_in_batch)


def binary_cross_entropy(logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """Cross-entropy of each label by itself, leaving out labels of -100. Both tensors are (rows, labels)."""
    check_shape("labels", labels, tuple(logits.shape), "(rows, labels)")
    check_range("labels", labels, 2, f"give 0 or 1, or {IGNORE_INDEX} to leave out", IGNORE_INDEX)
    kept = labels != IGNORE_INDEX
    total = F.binary_cross_entropy_with_logits(
        logits.float(), labels.float() * kept, weight=kept.float(), reduction="sum"
    )
    return per_item(total, kept.sum(), num_items_in_batch)


def squared_error(logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """Squared error of each value, leaving out labels that are not a number.

    Labels are (rows, values), or (rows,) for one value.
    """
    labels = labels[:, None] if labels.dim() == 1 and logits.shape[-1] == 1 else labels
    check_shape("labels", labels, tuple(logits.shape), "(rows, values)")
    kept = ~labels.isnan()
    errors = torch.where(kept, logits.float() - labels.float(), 0.0)
    return per_item(errors.square().sum(), kept.sum(), num_items_in_batch)


SEQUENCE_LOSSES = {
    "single_label_classification": cross_entropy,
    "multi_label_classification": binary_cross_entropy,
    "regression": squared_error,
}


def problem_type(config: TfEncConfig, labels: Tensor) -> str:
    """What the configuration says, or else what number and type of the labels say, as in transformers."""
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


# --- Heads -----------------------------------------------------------------------------------------------------------


class TfEncHeadTransform(nn.Module):
    """Dense, activation, norm: what BERT and ModernBERT put before an output layer."""

    def __init__(self, config: TfEncConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.head_bias)
        self.activation = ACT2FN[config.classifier_activation]
        self.norm = layer_norm(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(x)))


def head_transform(config: TfEncConfig, where: tuple[str, ...]) -> nn.Module:
    return TfEncHeadTransform(config) if config.head_transform in where else nn.Identity()


def padded_only(name: str, attention_mask: Tensor | None, position_ids: Tensor | None, kwargs: Any) -> None:
    """Raise a ValueError where the input is packed and the head cannot take it."""
    packed = kwargs.get("cu_seq_lens_q") is not None
    if not packed and position_ids is not None and not is_tracing():
        packed = find_packing(position_ids.shape, attention_mask, position_ids, None) is not None
    if packed:
        raise ValueError(
            f"{name} takes padded input only: give (batch, length) with attention_mask, not a packed row."
        )


class TfEncLanguageModel(TfEncPreTrainedModel):
    """What the two language models share: the vocabulary projection, whole or at labelled positions alone."""

    _tied_weights_keys = {"decoder.weight": "model.embeddings.embed_tokens.weight"}
    output_class: type[MaskedLMOutput] | type[CausalLMOutput]

    def __init__(self, config: TfEncConfig):
        super().__init__(config)
        self.model = TfEncModel(config, add_pooling_layer=False)
        self.head = head_transform(config, ("lm", "all"))
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=config.decoder_bias)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Ids = None,
        attention_mask: Ids = None,
        position_ids: Ids = None,
        token_type_ids: Ids = None,
        inputs_embeds: Tensor | None = None,
        labels: Ids = None,
        prediction_positions: Ids = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput | CausalLMOutput:
        """Loss and logits, of all positions or of some; the other inputs are `TfEncModel`'s.

        Args:
            labels: (batch, length), token ids, -100 where there is nothing to predict
            prediction_positions: (slots,), indices into batch * length; only these are projected to the vocabulary.
                Every labelled position must be among them; a slot to spare points at one labelled -100. Without
                them, `sparse_prediction` looks the labelled positions up in training: as right, but a compiled graph
                then sees another shape for each batch.
            num_items_in_batch: the loss is a sum over labels divided by this, or by their number here

        Returns:
            `logits` (batch, length, vocab) or (slots, vocab); None where training is sparse
        """
        inputs = (input_ids, attention_mask, position_ids, token_type_ids, inputs_embeds)
        outputs = self.model(*inputs, return_dict=True, **kwargs)
        x, where = outputs.last_hidden_state, prediction_positions
        if labels is not None:
            check_shape("labels", labels, tuple(x.shape[:2]), "(batch, length)")
            labels = self.targets(labels, attention_mask, position_ids, kwargs.get("cu_seq_lens_q"))
            if where is None and self.training and self.config.sparse_prediction:
                where = labels.flatten() != IGNORE_INDEX
        if where is not None:
            x, labels = x.flatten(0, 1)[where], labels.flatten()[where] if labels is not None else None
        x = self.head(x)
        sparse, known = where is not None and self.training, prediction_positions is not None or not is_tracing()
        if sparse and known and labels is not None and type(self.decoder) is nn.Linear:  # no adapter, say
            loss: Tensor | None = linear_cross_entropy(x, self.decoder, labels, num_items_in_batch)
            logits = None
        else:
            logits = self.decoder(x)
            loss = cross_entropy(logits, labels, num_items_in_batch) if labels is not None else None
            logits = None if sparse else logits
        return self.output_class(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def targets(self, labels: Tensor, *_: Tensor | None) -> Tensor:
        """What each position predicts."""
        return labels


class TfEncForMaskedLM(TfEncLanguageModel):
    """Predicts the tokens behind a mask."""

    output_class = MaskedLMOutput


class TfEncForCausalLM(TfEncLanguageModel, GenerationMixin):
    """Predicts each next token, under the look-ahead mask whatever the configuration says.

    `labels` are the input ids themselves. The first token of a sequence is predicted by nothing, packed or not.
    """

    output_class = CausalLMOutput

    def __init__(self, config: TfEncConfig):
        if not config.is_causal:
            config = copy.deepcopy(config)  # the caller's own stays as it is
            config.is_causal = True
        super().__init__(config)

    def targets(self, labels: Tensor, *packed: Tensor | None) -> Tensor:
        """Each position predicts the label after it: (batch, length)."""
        packing = find_packing(labels.shape, *packed)
        if packing is not None:
            labels = labels.masked_fill(F.pad(packing.ids.diff() != 0, (1, 0), value=True), IGNORE_INDEX)
        return F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # an encoder keeps no cache; each step reads the whole prefix

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The whole prefix at each step, with positions that begin after the padding on the left."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        # `generate` may have made a mask of ones where the user gave none.
        padded_only("generate()", None if attention_mask.all() else attention_mask, kwargs.get("position_ids"), kwargs)
        position_ids = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}


class TfEncForTokenClassification(TfEncPreTrainedModel):
    """One class for each token."""

    output_class: type[TokenClassifierOutput] | type[SequenceClassifierOutput] = TokenClassifierOutput
    add_pooling_layer = False

    def __init__(self, config: TfEncConfig):
        super().__init__(config)
        if self.add_pooling_layer and config.pooling == "none":
            raise ValueError(
                f"{type(self).__name__} needs one vector a sequence: set pooling to cls or mean, not none."
            )
        self.model = TfEncModel(config, add_pooling_layer=self.add_pooling_layer)
        self.head = head_transform(config, ("all",))
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.add_output_layer(config)
        self.post_init()

    def add_output_layer(self, config: TfEncConfig) -> None:
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    @can_return_tuple
    def forward(
        self,
        input_ids: Ids = None,
        attention_mask: Ids = None,
        position_ids: Ids = None,
        token_type_ids: Ids = None,
        inputs_embeds: Tensor | None = None,
        labels: Ids = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput | SequenceClassifierOutput:
        """Loss and logits; the other inputs are `TfEncModel`'s.

        Args:
            labels: of tokens, (batch, length) classes, -100 where a token has none; of sequences, (batch,) classes,
                (batch, labels) zeros and ones, or (batch,) or (batch, values) numbers

        Returns:
            `logits` (batch, length, labels), or (batch or packed sequences, labels)
        """
        inputs = (input_ids, attention_mask, position_ids, token_type_ids, inputs_embeds)
        outputs = self.model(*inputs, return_dict=True, **kwargs)
        x = outputs.pooler_output if self.add_pooling_layer else outputs.last_hidden_state
        logits = self.classifier(self.dropout(self.head(x)))
        loss = self.loss(logits, labels, num_items_in_batch) if labels is not None else None
        return self.output_class(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def loss(self, logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        return cross_entropy(logits, labels, num_items_in_batch)


class TfEncForSequenceClassification(TfEncForTokenClassification):
    """One output for each sequence: a class, several labels, or a number."""

    output_class = SequenceClassifierOutput
    add_pooling_layer = True

    def loss(self, logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        return SEQUENCE_LOSSES[problem_type(self.config, labels)](logits, labels, num_items_in_batch)


class TfEncForQuestionAnswering(TfEncPreTrainedModel):
    """The first and the last token of an answer within the sequence."""

    def __init__(self, config: TfEncConfig):
        super().__init__(config)
        self.model = TfEncModel(config, add_pooling_layer=False)
        self.head = head_transform(config, ("all",))
        self.dropout = nn.Dropout(config.classifier_dropout if config.head_transform == "all" else 0.0)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)  # BERT's name for it
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Ids = None,
        attention_mask: Ids = None,
        position_ids: Ids = None,
        token_type_ids: Ids = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Ids = None,
        end_positions: Ids = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:
        """`start_positions` and `end_positions` (batch,); one past the row's tokens counts as truncated away."""
        padded_only(type(self).__name__, attention_mask, position_ids, kwargs)
        inputs = (input_ids, attention_mask, position_ids, token_type_ids, inputs_embeds)
        outputs = self.model(*inputs, return_dict=True, **kwargs)
        logits = self.qa_outputs(self.dropout(self.head(outputs.last_hidden_state)))
        start_logits, end_logits = logits.unbind(dim=-1)  # (batch, length) each
        loss = None
        if start_positions is not None and end_positions is not None:
            tokens = torch.ones_like(start_logits) if attention_mask is None else attention_mask
            start = self.position_loss("start_positions", start_logits, start_positions, tokens, num_items_in_batch)
            end = self.position_loss("end_positions", end_logits, end_positions, tokens, num_items_in_batch)
            loss = (start + end) / 2
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @staticmethod
    def position_loss(
        name: str, logits: Tensor, positions: Tensor, tokens: Tensor, num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        """Cross-entropy over the tokens of each row; padding is no place for an answer."""
        positions = positions.squeeze(-1) if positions.dim() > 1 else positions
        check_shape(name, positions, tuple(logits.shape[:1]), "(batch,)")
        padding = F.pad(tokens == 0, (0, 1), value=True)  # (batch, length + 1), what lies past the row too
        outside = padding.gather(1, positions.clamp(0, logits.shape[1])[:, None])[:, 0] | (positions < 0)
        logits = logits.float().masked_fill(padding[:, :-1], torch.finfo(torch.float32).min)
        return cross_entropy(logits, positions.masked_fill(outside, IGNORE_INDEX), num_items_in_batch)


class TfEncForMultipleChoice(TfEncForSequenceClassification):
    """One score for each of several sequences, of which one is right."""

    def add_output_layer(self, config: TfEncConfig) -> None:
        self.score = nn.Linear(config.hidden_size, 1)  # not `classifier`, which would load another task's weights

    @can_return_tuple
    def forward(
        self,
        input_ids: Ids = None,
        attention_mask: Ids = None,
        position_ids: Ids = None,
        token_type_ids: Ids = None,
        inputs_embeds: Tensor | None = None,
        labels: Ids = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MultipleChoiceModelOutput:
        """Inputs are (batch, choices, length); `labels` (batch,) the right choice; logits (batch, choices)."""
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None or given.dim() != (3 if inputs_embeds is None else 4):
            raise ValueError(f"{type(self).__name__} takes (batch, choices, length) input, padded.")
        choices = given.shape[1]
        inputs = (input_ids, attention_mask, position_ids, token_type_ids, inputs_embeds)
        flat = [None if tensor is None else tensor.flatten(0, 1) for tensor in inputs]
        padded_only(type(self).__name__, flat[1], flat[2], kwargs)
        outputs = self.model(*flat, return_dict=True, **kwargs)
        logits = self.score(self.dropout(self.head(outputs.pooler_output))).view(-1, choices)
        loss = cross_entropy(logits, labels, num_items_in_batch) if labels is not None else None
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


TfEncModel.register_for_auto_class("AutoModel")
TfEncForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
TfEncForCausalLM.register_for_auto_class("AutoModelForCausalLM")
TfEncForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
TfEncForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
TfEncForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")
TfEncForMultipleChoice.register_for_auto_class("AutoModelForMultipleChoice")

__all__ = [
    "TfEncForCausalLM",
    "TfEncForMaskedLM",
    "TfEncForMultipleChoice",
    "TfEncForQuestionAnswering",
    "TfEncForSequenceClassification",
    "TfEncForTokenClassification",
    "TfEncModel",
    "TfEncPreTrainedModel",
]
