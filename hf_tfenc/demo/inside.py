"""A look inside an encoder: what it reads, who attends to whom under which mask, and how it knows positions."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..modeling_tfenc import TfEncModel, attention_masks, rotary_table

SHOWN_TOKENS, SHOWN_POSITIONS, SHOWN_FEATURES = 128, 64, 256
UNREADABLE = "\N{REPLACEMENT CHARACTER}"
# Byte-level tokenizers write these bytes, which are no letters, as the characters from 256 on; the others as themselves.
MOVED_BYTES = [byte for byte in range(256) if not (33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174)]
SAID = {  # of each position_embedding_type
    "sinusoidal": "A fixed table of sines and cosines is added to the token embeddings, a row for each position. "
    "Wavelengths grow from left to right.",
    "learned": "A learned table is added to the token embeddings, a row for each position.",
    "rotary": "Nothing is added to the embeddings. In each layer pairs of features of queries and keys are turned by an "
    "angle that grows with the position, so that scores depend on distances. Shown is the cosine of the angle.",
    "none": "There is no positional encoding: without a mask that tells positions apart, the model reads a set of tokens.",
}


@dataclass(frozen=True)
class Masks:
    """What hides keys from queries.

    padding: how many padding tokens stand behind the text
    hide_padding: whether they are hidden
    look_ahead: whether later tokens are
    window: tokens farther away are hidden; 0 hides none, None does as the layer was trained
    """

    padding: int = 0
    hide_padding: bool = True
    look_ahead: bool = False
    window: int | None = None


def attention(
    encoder: TfEncModel, ids: list[int], segments: list[int] | None, pad_token_id: int, masks: Masks
) -> tuple[Tensor, Tensor]:
    """Attention weights of all layers, under the encoder's weights and masks of one's own.

    Args:
        encoder: on eager attention, in evaluation mode

    Returns:
        weights (layers, heads, queries, keys), and which keys each query sees, (layers, queries, keys) bool

    Raises:
        ValueError: the row is longer than the model's positions reach.
    """
    row = torch.tensor([ids + [pad_token_id] * masks.padding])
    kinds = torch.tensor([(segments or [0] * len(ids)) + [0] * masks.padding])
    real = torch.ones_like(row)
    if masks.hide_padding and masks.padding:
        real[:, -masks.padding :] = 0
    added = [layer_mask(encoder, layer_type, real, masks) for layer_type in encoder.config.layer_types or []]
    with torch.no_grad(), in_place_of_masks(encoder, added):
        outputs = encoder(
            row, torch.ones_like(row), token_type_ids=kinds if segments else None, output_attentions=True
        )
    everything = torch.ones(row.shape[1], row.shape[1], dtype=torch.bool)
    seen = [everything if mask is None else mask[0, 0] == 0 for mask in added]
    return torch.cat(outputs.attentions), torch.stack(seen)


def layer_mask(encoder: TfEncModel, layer_type: str, real: Tensor, masks: Masks) -> Tensor | None:
    """What is added to the scores of a layer, (1, 1, queries, keys), by the same functions as in the model itself."""
    config = copy.copy(encoder.config)
    config.is_causal = masks.look_ahead
    if masks.window is not None:
        layer_type = "sliding_attention" if masks.window else "full_attention"
        config.sliding_window = masks.window + masks.look_ahead  # which counts the token itself
    config.layer_types = [layer_type]
    x = encoder.embeddings.embed_tokens.weight[:1].expand(*real.shape, -1)
    return attention_masks(config, x, real, None)[layer_type]


@contextmanager
def in_place_of_masks(encoder: TfEncModel, masks: list[Tensor | None]) -> Iterator[None]:
    """The layers take these masks and not those that the model makes."""
    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, args, kwargs, mask=mask: (args, kwargs | {"attention_mask": mask}), with_kwargs=True
        )
        for layer, mask in zip(encoder.layers, masks, strict=True)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def positions(encoder: TfEncModel, layer: int) -> tuple[str, Tensor | None]:
    """How the encoder knows positions, in words, and as a table (positions, features) where there is one."""
    config = encoder.config
    kind, shown = config.position_embedding_type, min(SHOWN_POSITIONS, config.max_position_embeddings)
    text, table = SAID[kind], None
    added: Any = encoder.embeddings.positions
    if kind == "sinusoidal":
        table = added.table[:shown]
    elif kind == "learned":
        table = added.table.weight[:shown]
    elif kind == "rotary":
        theta = (config.rope_parameters or {})[(config.layer_types or [])[layer]]["rope_theta"]
        cosines, _ = rotary_table(torch.arange(shown), config.hidden_size // config.num_attention_heads, theta)
        text, table = f"{text} Layer {layer + 1} turns with the base {theta:,.0f}.", cosines
    return text, None if table is None else table[:, :SHOWN_FEATURES].detach()


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Each token as the text it stands for; a part of a character, which is no text, by its bytes: <E2><82>."""
    texts = []
    for token_id in ids:
        text = tokenizer.decode([token_id])
        if not text or UNREADABLE in text:
            text = byte_text(tokenizer.convert_ids_to_tokens(token_id))
        texts.append(text)
    return texts


def byte_text(token: str) -> str:
    """The bytes that a byte-level token is written for; a token of another kind stays as it is."""
    if token.isascii() or not all(ord(character) < 256 + len(MOVED_BYTES) for character in token):
        return token
    return "".join(f"<{ord(c) if ord(c) < 256 else MOVED_BYTES[ord(c) - 256]:02X}>" for c in token)


def rounded(values: Tensor, digits: int = 4) -> list[Any]:
    """Nested lists of numbers that are short to write."""
    return torch.round(values.double(), decimals=digits).tolist()
