"""Which rows make which batch: a pure function of (seed, epoch, lengths, how they are arranged), never of processes.

An epoch is one ordered list of micro-batches ("bins"). An optimizer step takes the next `world size x accumulation`
of them, so every step sees the same rows however that product is split.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Rows are sorted by length within pools of this many bins: enough that a bin holds rows of nearly one length, few
# enough that bins differ from epoch to epoch.
BINS_PER_POOL = 64


def row_order(rows: int, seed: int, epoch: int, block: int = 0) -> tuple[np.random.Generator, np.ndarray]:
    """The rows of an epoch, or of one block of a stream's, in random order; and the generator, to draw on from."""
    # Masks use counters (0, 0, row, 0) of the same key; the 1 keeps the order apart from them.
    random = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, block, 1]))
    return random, random.permutation(rows)


class Arrangement(ABC):
    """How the rows of an epoch make bins."""

    @abstractmethod
    def __call__(self, lengths: np.ndarray, seed: int, epoch: int, block: int = 0) -> list[np.ndarray]:
        """The bins of one training epoch, every row once, in random order.

        Args:
            lengths: (rows,), tokens of each row
            block: of a stream, where the rows are those of one block of the epoch

        Returns:
            arrays of row indices
        """

    def count(self, lengths: np.ndarray, seed: int, epoch: int) -> int:
        """How many bins that epoch has."""
        return len(self(lengths, seed, epoch))


@dataclass(frozen=True)
class PaddedBins(Arrangement):
    """Bins of `batch_size` rows of similar length, so that padding them to the longest adds little."""

    batch_size: int

    def __call__(self, lengths: np.ndarray, seed: int, epoch: int, block: int = 0) -> list[np.ndarray]:
        """The last pool's last bin may have fewer rows."""
        random, order = row_order(len(lengths), seed, epoch, block)
        size = self.batch_size
        bins: list[np.ndarray] = []
        for pool in np.split(order, range(BINS_PER_POOL * size, len(order), BINS_PER_POOL * size)):
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            bins += np.split(pool, range(size, len(pool), size))
        return [bins[index] for index in random.permutation(len(bins))]

    def count(self, lengths: np.ndarray, seed: int, epoch: int) -> int:
        return math.ceil(len(lengths) / self.batch_size)


def evaluation_bins(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The bins of an evaluation: every row once, from the shortest to the longest."""
    order = np.argsort(lengths, kind="stable")
    return np.split(order, range(batch_size, len(order), batch_size))


class TrainingBins:
    """A batch sampler for one process: its bins of one epoch, each index a pair (epoch, row).

    The epoch travels with the row because masks depend on it, and a worker knows nothing else. `begin` an epoch, at any
    of its bins, then iterate. Bins that are missing at an epoch's end are empty lists, so that all processes make the
    same steps.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        arrangement: Arrangement,
        seed: int,
        accumulation_steps: int = 1,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self.lengths, self.arrangement, self.seed = lengths, arrangement, seed
        self.process_index, self.num_processes = process_index, num_processes
        self.bins_per_step = num_processes * accumulation_steps
        self.epoch = -1
        self.begin(0)

    def count(self, epoch: int) -> int:
        """How many bins an epoch has."""
        return self.bins_per_epoch if epoch == self.epoch else self.arrangement.count(self.lengths, self.seed, epoch)

    def steps(self, epoch: int, consumed: int = 0) -> int:
        """Optimizer steps that an epoch still has when so many of its bins are consumed."""
        return math.ceil((self.count(epoch) - consumed) / self.bins_per_step)

    def begin(self, epoch: int, consumed: int = 0) -> None:
        """Let the next pass be over `epoch`, without the bins that all processes have consumed of it already."""
        if epoch != self.epoch:  # once an epoch, for packing takes a while
            self.bins = self.arrangement(self.lengths, self.seed, epoch)
        self.epoch, self.consumed, self.bins_per_epoch = epoch, consumed, len(self.bins)

    def share(self, consumed: int) -> float:
        """How much of an epoch so many bins are: 1 at its end."""
        return min(1.0, consumed / self.bins_per_epoch)

    def rows(self, epoch: int, first: int) -> list[int]:
        """The rows, in all processes, of the step that begins with the bin `first`."""
        bins = self.bins if epoch == self.epoch else self.arrangement(self.lengths, self.seed, epoch)
        return [int(row) for rows in bins[first : first + self.bins_per_step] for row in rows]

    def __len__(self) -> int:
        return self.steps(self.epoch, self.consumed) * self.bins_per_step // self.num_processes

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, bins, first = self.epoch, self.bins, self.consumed + self.process_index
        for index in range(first, first + len(self) * self.num_processes, self.num_processes):
            yield [(epoch, int(row)) for row in bins[index]] if index < len(bins) else []


class EvaluationBins:
    """A batch sampler for one process: its share of `evaluation_bins`; no row is seen twice.

    All processes have the same number of bins, empty ones at the end, for a sharded model runs in all of them at once.
    """

    EPOCH = 2**63  # no training epoch, so evaluation masks are their own

    def __init__(self, lengths: np.ndarray, batch_size: int, process_index: int = 0, num_processes: int = 1):
        bins = evaluation_bins(lengths, batch_size)
        bins += [np.array([], dtype=np.int64)] * (-len(bins) % num_processes)
        self.bins = bins[process_index::num_processes]

    def __len__(self) -> int:
        return len(self.bins)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for rows in self.bins:
            yield [(self.EPOCH, int(row)) for row in rows]
