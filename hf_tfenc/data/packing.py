"""Rows packed one after another into rows of one constant length: a pure function of (seed, epoch, lengths).

Everything about a packed batch that a compiled graph could notice is constant in a whole run: its tokens, how many
sequences its `cu_seq_lens` has room for, and how many tokens are predicted.
"""

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .batching import Arrangement, row_order
from .collators import LabelRow, as_tensors
from .masking import IGNORE_INDEX

OPEN_BINS = 512  # the most that wait for a row that fills them


@dataclass(frozen=True)
class PackedBins(Arrangement):
    """The bins of an epoch as best fit makes them of rows in random order.

    Args:
        tokens: of a bin.
        sequences: how many rows a bin holds at most.
        predictions: how many predicted tokens it holds at most; None where nobody counts them.
        predicted: the length of a row -> how many of its tokens are predicted, at most.
        row_length: of all rows, where they have one length and fill a bin.
    """

    tokens: int
    sequences: int
    predictions: int | None = None
    predicted: Callable[[int], int] | None = None
    row_length: int | None = None

    @classmethod
    def for_rows(cls, lengths: np.ndarray, tokens: int, predicted: Callable[[int], int] | None = None) -> "PackedBins":
        """Bins of so many tokens, with bounds for the rest that hardly ever bind.

        Args:
            lengths: (rows,), tokens of each row
        """
        counts = np.bincount(lengths)
        sizes = np.flatnonzero(counts)
        share = tokens / lengths.sum()  # of all rows, in a bin
        rows = len(lengths) * share
        # Six deviations of the number of rows that so many tokens are; slots to spare cost the attention a little time.
        sequences = math.ceil(rows + 6 * math.sqrt(rows) * lengths.std() / lengths.mean()) + 8
        row_length = int(sizes[0]) if len(sizes) == 1 and tokens % sizes[0] == 0 else None
        if predicted is None:
            return cls(tokens, sequences, row_length=row_length)
        wanted = {int(size): predicted(int(size)) for size in sizes}
        total = sum(wanted[int(size)] * int(counts[size]) for size in sizes)
        # What is rounded in each row adds up like a random walk.
        predictions = max(math.ceil(total * share + 2 * math.sqrt(rows)), *wanted.values())
        return cls(tokens, sequences, min(-(-predictions // 8) * 8, tokens), predicted, row_length)

    def __call__(self, lengths: np.ndarray, seed: int, epoch: int, block: int = 0) -> list[np.ndarray]:
        """Every row once. Bins are closed when they are full, or when too many others are open.

        A row goes to the open bin that it leaves the least room in (best fit; Johnson 1973), in the order of chance.
        """
        random, order = row_order(len(lengths), seed, epoch, block)
        sizes = lengths[order].tolist()
        predicted = {size: self.predicted(size) for size in set(sizes)} if self.predicted else {}
        shortest = min(sizes, default=1)
        bins: list[list[int]] = []
        left: list[int] = []  # predictions that a bin has room for
        rooms: list[int] = []  # of the open bins, ascending, and behind them in the same order the bins themselves
        opened: list[int] = []
        for row, size in zip(order.tolist(), sizes, strict=True):
            wanted = predicted.get(size, 0)
            place = bisect.bisect_left(rooms, size)
            while place < len(rooms) and left[opened[place]] < wanted:
                place += 1
            if place == len(rooms):
                index, room = len(bins), self.tokens
                bins.append([])
                left.append(self.predictions or 0)
            else:
                index, room = opened.pop(place), rooms.pop(place)
            bins[index].append(row)
            left[index] -= wanted
            if room - size >= shortest and len(bins[index]) < self.sequences:
                place = bisect.bisect_left(rooms, room - size)
                rooms.insert(place, room - size)
                opened.insert(place, index)
                if len(rooms) > OPEN_BINS:
                    del rooms[0], opened[0]
        return [np.array(bins[index]) for index in random.permutation(len(bins))]


class PackedCollator:
    """A packed batch with a label for each token, of the same shape whatever rows are in it.

    Args:
        bins: what the rows of a batch fit into.
        pad_token_id: fills the rest of the row, as sequences of their own.
        label_row: a row -> its inputs and labels, each (length,); a label of -100 where there is nothing to predict.
        max_length: of a row of the source.
    """

    def __init__(self, bins: PackedBins, pad_token_id: int, label_row: LabelRow, max_length: int):
        self.bins, self.pad_token_id, self.label_row, self.max_length = bins, pad_token_id, label_row, max_length
        self.slots = bins.sequences + math.ceil(bins.tokens / max_length)  # the rest may be several sequences long

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """One row of all of them.

        Returns:
            `input_ids`, `position_ids` (from 0 in each sequence) and `labels`, each (1, tokens); `cu_seq_lens_q`
            (slots + 1,) int32, where each sequence begins, and the end as often as slots are left; `max_length_q`, a
            number; and `prediction_positions` (predictions,), where the labels are, with places without one to spare.
            An empty bin has nothing to predict, and no gradient. Where all rows have one length they need no packing:
            `input_ids` and `labels` are (rows, length), and nothing says where sequences begin.
        """
        tokens = self.bins.tokens
        input_ids = np.full(tokens, self.pad_token_id, dtype=np.int64)
        labels = np.full(tokens, IGNORE_INDEX, dtype=np.int64)
        ends = [0]
        for row in rows:
            inputs, targets = self.label_row(row)
            place = slice(ends[-1], ends[-1] + len(inputs))
            input_ids[place], labels[place] = inputs, targets
            ends.append(place.stop)
        while ends[-1] < tokens:
            ends.append(min(ends[-1] + self.max_length, tokens))
        starts = np.array(ends[:-1])
        lengths = np.diff(ends)
        batch = {
            "input_ids": input_ids[None],
            "position_ids": (np.arange(tokens) - np.repeat(starts, lengths))[None],
            "labels": labels[None],
            "cu_seq_lens_q": np.array(ends + [tokens] * (self.slots + 1 - len(ends)), dtype=np.int32),
        }
        if self.bins.predictions is not None:
            predicted = labels != IGNORE_INDEX
            positions = np.full(self.bins.predictions, predicted.argmin(), dtype=np.int64)
            places = np.flatnonzero(predicted)
            positions[: len(places)] = places
            batch["prediction_positions"] = positions
        if self.bins.row_length is not None:
            del batch["position_ids"], batch["cu_seq_lens_q"]
            whole = {name: batch[name].reshape(-1, self.bins.row_length) for name in ("input_ids", "labels")}
            return as_tensors(batch | whole)
        return as_tensors(batch) | {"max_length_q": self.max_length}
