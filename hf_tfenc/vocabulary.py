"""Another tokenizer for a trained model: its vectors are carried over where tokens are the same, and made where not."""

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from tokenizers import decoders
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .tokenization import Writing, encode_rows, vocabulary_size

logger = logging.getLogger(__name__)

# The weights that have a row for each token.
TOKEN_WEIGHTS = (
    "model.embeddings.embed_tokens.weight",
    "embeddings.embed_tokens.weight",
    "decoder.weight",
    "decoder.bias",
)
ROLES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")


def transfer(
    weights: dict[str, Tensor], old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase
) -> dict[str, Tensor]:
    """Weights of a model under the tokenizer `old` as those of one under `new`.

    A token that both have keeps its vector. Any other gets the mean over the tokens that `old` cuts its text into, as in
    fast vocabulary transfer (Gee et al. 2022): v(t) = 1 / |P(t)| * sum of v(p) over p in P(t). Where the old tokenizer
    has nothing for a text, it is the mean over all ordinary tokens. The output bias goes the same way.
    """
    sources = token_sources(old, new)
    ordinary = torch.tensor(sorted(set(old.get_vocab().values()) - set(old.all_special_ids)))
    result = dict(weights)
    for name in TOKEN_WEIGHTS:
        if name in weights:
            result[name] = mean_rows(weights[name], sources, weights[name][ordinary].float().mean(dim=0))
    copied, blank = (sum(len(ids) == count for ids in sources) for count in (1, 0))
    logger.info(
        "The new tokenizer has %d tokens: %d are the old one's, %d begin as the mean of their pieces, %d as that of all.",
        len(sources), copied, len(sources) - copied - blank, blank,
    )  # fmt: skip
    return result


def token_sources(old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase) -> list[list[int]]:
    """For each id of `new` the ids of `old` that stand for the same text; none where there are none."""
    old_ids = {text: index for index, text in reversed(list(enumerate(token_texts(old)))) if text is not None}
    roles = {
        getattr(new, f"{role}_token_id"): getattr(old, f"{role}_token_id")
        for role in reversed(ROLES)  # the first one named wins where one token has two
        if getattr(old, f"{role}_token_id", None) is not None
    }
    special = set(old.all_special_ids)
    texts, sources = token_texts(new), dict[int, list[int]]()
    for index, text in enumerate(texts):
        if index in roles:
            sources[index] = [roles[index]]
        elif text in old_ids and old_ids[text] not in special:
            sources[index] = [old_ids[text]]
    rest = [index for index, text in enumerate(texts) if index not in sources and text is not None]
    if rest:
        pieces = encode_rows(old, [str(texts[index]) for index in rest], add_special_tokens=False)["input_ids"]
        sources |= {
            index: [id for id in ids if id != old.unk_token_id] for index, ids in zip(rest, pieces, strict=True)
        }
    return [sources.get(index, []) for index in range(len(texts))]


def token_texts(tokenizer: PreTrainedTokenizerBase) -> list[str | None]:
    """The text that each token stands for, with a space before it where it begins a word: one for each id.

    So tokens of different kinds of tokenizers can be compared. None stands for a gap in the ids. Bytes that are no
    text by themselves stay as the tokenizer writes them.
    """
    writing = Writing.of(tokenizer)
    decoder = decoders.ByteLevel()
    added = tokenizer.added_tokens_decoder

    def text(index: int, token: str) -> str:
        if index in added:
            return token
        if writing.prefix:
            return token.removeprefix(writing.prefix) if token.startswith(writing.prefix) else f" {token}"
        if writing.byte_level:
            decoded = decoder.decode([token])
            return token if "�" in decoded else decoded
        return token.replace("▁", " ") if writing.metaspace else token

    tokens: list[str | None] = [None] * vocabulary_size(tokenizer)
    for token, index in tokenizer.get_vocab().items():
        tokens[index] = text(index, token)
    return tokens


def mean_rows(weight: Tensor, sources: Sequence[Sequence[int]], otherwise: Tensor) -> Tensor:
    """For each list of row numbers the mean of these rows, `otherwise` where it is empty; in the weight's precision.

    Args:
        weight: (rows, …)
        otherwise: (…)

    Returns:
        (len(sources), …); a row that comes from one alone is that one, bit for bit
    """
    flat = torch.tensor([row for rows in sources for row in rows], dtype=torch.long)
    offsets = torch.tensor([0, *(len(rows) for rows in sources)]).cumsum(dim=0)[:-1]
    means = F.embedding_bag(flat, weight.float().reshape(len(weight), -1), offsets, mode="mean")
    means = means.reshape(len(sources), *weight.shape[1:])
    means[[index for index, rows in enumerate(sources) if not rows]] = otherwise.float()
    return means.to(weight.dtype)
