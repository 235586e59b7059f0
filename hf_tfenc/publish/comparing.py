"""Whether two models, or a model and its graph, say the same of batches of several shapes."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .. import modeling_tfenc

TOLERANCE = 1e-4  # of the largest output: float32 in another order of sums; what is wrong differs by far more
SHAPES = ((2, 8), (1, 1), (1, 13), (3, 5), (5, 29))


def sample_batches(model: PreTrainedModel, segments: bool) -> Iterator[dict[str, Tensor]]:
    """Batches of several shapes, with padding; the last one is longer than what a local window sees.

    Args:
        segments: whether a first text is told from a second, where the model can
    """
    random, config = torch.Generator().manual_seed(0), model.config
    choices = (2,) if isinstance(model, modeling_tfenc.TfEncForMultipleChoice) else ()
    beyond = [(2, 2 * config.sliding_window + 5)] if config.sliding_window else []
    for rows, length in [*SHAPES, *beyond]:
        shape = (rows, *choices, min(length, config.max_position_embeddings))
        ids = torch.randint(config.vocab_size, shape, generator=random)
        lengths = torch.randint(1, shape[-1] + 1, shape[:-1], generator=random)
        lengths[0] = shape[-1]
        batch = {"input_ids": ids, "attention_mask": (torch.arange(shape[-1]) < lengths[..., None]).long()}
        if segments and config.type_vocab_size:
            batch["token_type_ids"] = torch.randint(config.type_vocab_size, shape, generator=random)
        yield batch


def largest_difference(result: Mapping[str, Tensor], expected: Mapping[str, Tensor], mask: Tensor) -> float:
    """Between the outputs of the same names, padding left out.

    Args:
        mask: (batch, length) or (batch, choices, length), 0 for padding

    Raises:
        ValueError: it is more than float32 explains.
    """
    largest = 0.0
    for name, values in expected.items():
        kept = mask.bool() if values.shape[: mask.dim()] == mask.shape else slice(None)
        difference = float((result[name][kept] - values[kept]).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(values[kept].abs().max())):
            raise ValueError(
                f"{name} would differ by {difference:.1e} on a batch of shape {tuple(mask.shape)}, so nothing was "
                "written: please report it."
            )
        largest = max(largest, difference)
    return largest
