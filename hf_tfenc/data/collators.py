"""From rows to tensors."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from .masking import IGNORE_INDEX

Row = Mapping[str, Any]
LabelRow = Callable[[Row], tuple[np.ndarray, np.ndarray]]


def numpy_column(rows: Dataset, name: str) -> Any:
    """A whole column of rows, as an array or, where rows differ in length, a list of arrays."""
    return rows.with_format("numpy", columns=[name])[name][:]


class EncodedRows(torch.utils.data.Dataset):
    """Encoded rows by (epoch, row), as the batch samplers ask for them, a whole bin at a time.

    A row has the columns of the encoded rows, as arrays, and the two numbers that it was asked for by.
    """

    def __init__(self, rows: Dataset):
        self.rows = rows.with_format("numpy")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[tuple[int, int]]) -> list[dict[str, Any]]:
        if not indices:
            return []
        columns = self.rows[[row for _, row in indices]]
        return [
            {"epoch": epoch, "row": row, **{name: values[place] for name, values in columns.items()}}
            for place, (epoch, row) in enumerate(indices)
        ]


class Padding:
    """Rows of different lengths to one array.

    Args:
        pad_token_id: fills rows up to the longest.
        max_length: of a row; padding goes no further, for the model may have no more positions.
        pad_to_multiple_of: batches are padded to a multiple of this many tokens, which matrix units like.
    """

    def __init__(self, pad_token_id: int, max_length: int, pad_to_multiple_of: int = 8):
        self.pad_token_id, self.max_length, self.multiple = pad_token_id, max_length, pad_to_multiple_of

    def pad(self, rows: list[np.ndarray], fill: int) -> np.ndarray:
        """(rows, length) int64. No rows at all become one that holds `fill` alone."""
        longest = max(map(len, rows), default=1)
        width = min(-(-longest // self.multiple) * self.multiple, self.max_length)
        padded = np.full((max(len(rows), 1), width), fill, dtype=np.int64)
        for place, row in enumerate(rows):
            padded[place, : len(row)] = row
        return padded

    def inputs(self, rows: list[np.ndarray]) -> dict[str, np.ndarray]:
        """`input_ids`, and `attention_mask` (1 for tokens, 0 for padding), each (rows, length)."""
        attention_mask = self.pad([np.ones(len(row), dtype=np.int64) for row in rows], 0)
        if not rows:
            attention_mask[0, 0] = 1  # attention over nothing is not a number
        return {"input_ids": self.pad(rows, self.pad_token_id), "attention_mask": attention_mask}


class PaddedCollator(Padding):
    """A padded batch with a label for each token.

    Args:
        pad_token_id, max_length, pad_to_multiple_of: as in `Padding`.
        label_row: a row -> its inputs and labels, each (length,); a label of -100 where there is nothing to predict.
        prediction_positions: whether the batch says where the labels are.
    """

    def __init__(
        self,
        pad_token_id: int,
        label_row: LabelRow,
        max_length: int,
        pad_to_multiple_of: int = 8,
        prediction_positions: bool = True,
    ):
        super().__init__(pad_token_id, max_length, pad_to_multiple_of)
        self.label_row, self.prediction_positions = label_row, prediction_positions

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch of (rows, length) tensors.

        Returns:
            `input_ids`, `attention_mask`, `labels` (-100 for padding), and `prediction_positions` (labelled tokens,),
            their indices into rows * length. An empty bin becomes one row with nothing to predict: the same work for
            every process, and no gradient.
        """
        labelled = [self.label_row(row) for row in rows]
        batch = self.inputs([inputs for inputs, _ in labelled])
        batch["labels"] = self.pad([labels for _, labels in labelled], IGNORE_INDEX)
        if self.prediction_positions:
            batch["prediction_positions"] = np.flatnonzero(batch["labels"] != IGNORE_INDEX)
        return as_tensors(batch)


class RowLabelCollator(Padding):
    """A padded batch with a label, or several, for each row, from the column `labels`.

    Args:
        pad_token_id, max_length, pad_to_multiple_of: as in `Padding`.
        no_label: the label of the row that an empty bin becomes, which the loss leaves out.
    """

    def __init__(self, pad_token_id: int, max_length: int, no_label: np.ndarray, pad_to_multiple_of: int = 8):
        super().__init__(pad_token_id, max_length, pad_to_multiple_of)
        self.no_label = no_label

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (rows, length), `labels` (rows,) or (rows, labels).

        `token_type_ids` (rows, length) where rows have them.
        """
        batch = self.inputs([row["input_ids"] for row in rows])
        if rows and "token_type_ids" in rows[0]:
            batch["token_type_ids"] = self.pad([row["token_type_ids"] for row in rows], 0)
        labels = [np.asarray(row["labels"], dtype=self.no_label.dtype) for row in rows]
        batch["labels"] = np.stack(labels or [self.no_label])
        return as_tensors(batch)


def as_tensors(batch: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch with its tensors on the device; from pinned memory they are fetched while other work goes on."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
