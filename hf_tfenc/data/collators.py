"""From rows to tensors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from .masking import IGNORE_INDEX

LabelRow = Callable[[np.ndarray, int, int], tuple[np.ndarray, np.ndarray]]


class EncodedRows(torch.utils.data.Dataset):
    """Encoded rows by (epoch, row), as the batch samplers ask for them, a whole bin at a time."""

    def __init__(self, rows: Dataset):
        self.rows = rows.with_format("numpy", columns=["input_ids"])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[tuple[int, int]]) -> list[dict[str, Any]]:
        if not indices:
            return []
        rows = self.rows[[row for _, row in indices]]["input_ids"]
        return [
            {"epoch": epoch, "row": row, "input_ids": ids} for (epoch, row), ids in zip(indices, rows, strict=True)
        ]


class PaddedCollator:
    """A padded batch with labels for each token.

    Args:
        pad_token_id: fills rows up to the longest.
        label_row: (input_ids, epoch, row) -> inputs and labels of a row, each (length,).
        max_length: of a row; padding goes no further, for the model may have no more positions.
        pad_to_multiple_of: batches are padded to a multiple of this many tokens, which matrix units like.
    """

    def __init__(self, pad_token_id: int, label_row: LabelRow, max_length: int, pad_to_multiple_of: int = 8):
        self.pad_token_id, self.label_row = pad_token_id, label_row
        self.max_length, self.multiple = max_length, pad_to_multiple_of

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch of (rows, length) tensors.

        Returns:
            `input_ids`, `attention_mask` (1 for tokens, 0 for padding), `labels` (-100 for padding), and
            `prediction_positions` (labelled tokens,), their indices into rows * length. An empty bin becomes one row
            with nothing to predict: the same work for every process, and no gradient.
        """
        labelled = [self.label_row(row["input_ids"], row["epoch"], row["row"]) for row in rows]
        longest = max((len(inputs) for inputs, _ in labelled), default=1)
        shape = (max(len(rows), 1), min(-(-longest // self.multiple) * self.multiple, self.max_length))
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        labels = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        for index, (inputs, targets) in enumerate(labelled):
            length = len(inputs)
            input_ids[index, :length], labels[index, :length] = inputs, targets
            attention_mask[index, :length] = 1
        if not rows:
            attention_mask[0, 0] = 1
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "prediction_positions": np.flatnonzero(labels != IGNORE_INDEX),
        }
        return {name: torch.from_numpy(array) for name, array in batch.items()}
