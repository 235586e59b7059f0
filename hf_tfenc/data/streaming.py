"""Texts that are read as they are needed: a stream, shuffled block by block, of which nothing is kept on the disk.

A block is a fixed number of texts, fewer where they are long, so its bounds are known without tokenizing. Its encoded
rows make bins as those of a whole epoch do, and the bins of an epoch are those of its blocks one after
another: a pure function of (seed, epoch, texts, sizes of a block and of a bin), never of processes or workers.

Every process reads all texts and tokenizes its share of each block; the shares are then exchanged, so that all of them
hold the whole block. Memory is that of a block's encoded rows, however long the stream.
"""

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from datasets.table import InMemoryTable

from .batching import Arrangement
from .collators import EncodedRows
from .splits import text_hashes
from .values import shown

logger = logging.getLogger(__name__)

CHARACTERS_PER_TEXT = 2000  # a block of longer texts holds fewer of them, so that memory has a bound
CHUNK_TEXTS, CHUNK_CHARACTERS = 1000, 1_000_000  # tokenized at once, for a tokenizer takes a hundred bytes a token
# The number of a row is that of its block times this, and its own: 3,000,000,012 is row 12 of block 3, both from 0.
ROWS_PER_BLOCK = 10**9
BINS_REMEMBERED = 10_000  # whose rows can be named; more than a loader prepares ahead


# --- Texts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A file, or whatever else is read from its beginning to its end."""

    where: str  # for messages: the option and its value
    read: Callable[[], Iterator[list[Any]]]  # its texts, batch after batch


@dataclass(frozen=True)
class TextStream:
    """Texts in the order of their source, its parts in another order each epoch.

    Args:
        parts: in the order of the source.
        digest: of what they hold, without reading all of it.
        skip_bad_rows: leave out rows that hold no string, and count them in the log; otherwise the first of them is a
            ValueError.
        held_out: uint64, the `text_hashes` of texts that are left out.
    """

    parts: Sequence[Part]
    digest: str
    skip_bad_rows: bool = False
    held_out: np.ndarray = field(default_factory=lambda: np.array([], dtype=np.uint64))

    def read(self, order: Sequence[int] | np.ndarray | None = None, skip: int = 0) -> Iterator[tuple[int, str]]:
        """Each text that is neither empty, nor bad, nor held out, behind the number of its row in the source, from 1.

        Args:
            order: of the parts; if not given, as they are
            skip: rows of the source that are read and nothing more

        Raises:
            ValueError: a row holds no text, by its place
        """
        number = left_out = 0
        example = None
        for part in self.parts if order is None else [self.parts[index] for index in order]:
            first = number
            for batch in part.read():
                rows = range(max(skip - number, 0), len(batch))
                bad = [row for row in rows if not isinstance(batch[row], str)]
                if bad and not left_out:
                    row = number - first + bad[0] + 1
                    example = f"{part.where}, row {row}: the text is {shown(batch[bad[0]])}, not a string"
                    if not self.skip_bad_rows:
                        raise ValueError(f"{example}: mend the row, or leave it out with --skip_bad_rows.")
                left_out += len(bad)
                rows_with_text = [row for row in rows if isinstance(batch[row], str) and batch[row].strip()]
                if len(self.held_out) and rows_with_text:
                    hashes = text_hashes([batch[row] for row in rows_with_text])
                    kept = ~np.isin(hashes, self.held_out)
                    rows_with_text = [row for row, keep in zip(rows_with_text, kept, strict=True) if keep]
                for row in rows_with_text:
                    yield number + row + 1, batch[row]
                number += len(batch)
        if left_out:
            logger.warning(
                "%d of %d rows of the stream are bad and left out, such as %s.", left_out, number - skip, example
            )

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The order of the parts in an epoch."""
        # Counters that end with 0 and 1 are those of masks and of the order of rows.
        return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, 2])).permutation(
            len(self.parts)
        )

    def first(self, texts: int, characters: int) -> list[str]:
        """So many of its first texts, in the order of the source, or fewer where they are long."""
        found: list[str] = []
        for _, text in self.read():
            found.append(text)
            characters -= len(text)
            if len(found) == texts or characters <= 0:
                break
        return found


# --- Blocks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncodedStream:
    """A stream, and how its texts become rows.

    Args:
        encode: texts to a table of rows, `length` (tokens) among its columns; each text by itself.
        block_texts: how many texts are shuffled together.
    """

    texts: TextStream
    encode: Callable[[list[str]], pa.Table]
    block_texts: int

    def digest(self) -> str:
        """A hash of what the stream holds, as far as that is known without reading all of it."""
        parts = self.texts.digest.encode() + self.texts.held_out.tobytes()
        return hashlib.blake2b(parts, digest_size=16).hexdigest()

    def blocks(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Iterator[tuple[int, list[str]]]]:
        """The blocks of an epoch after `skip` rows of the source, each to be read before the next.

        Returns:
            for each block its texts in chunks, each chunk behind the number of rows of the source up to its end
        """
        texts = self.texts.read(self.texts.order(seed, epoch), skip)
        ahead = next(texts, None)

        def block() -> Iterator[tuple[int, list[str]]]:
            nonlocal ahead
            room, characters = self.block_texts, self.block_texts * CHARACTERS_PER_TEXT
            chunk: list[str] = []
            size = 0
            while ahead is not None and room > 0 and characters > 0:
                number, text = ahead
                chunk.append(text)
                size, room, characters = size + len(text), room - 1, characters - len(text)
                ahead = next(texts, None)
                if (
                    len(chunk) == CHUNK_TEXTS
                    or size >= CHUNK_CHARACTERS
                    or not (ahead and room > 0 and characters > 0)
                ):
                    yield number, chunk
                    chunk, size = [], 0

        while ahead is not None:
            yield block()


class Bookmark(NamedTuple):
    """Where a block of an epoch begins."""

    block: int = 0
    first_bin: int = 0  # of the epoch
    rows: int = 0  # of the source that lie before it


@dataclass(frozen=True)
class Bin:
    """Rows of one block, by their indices in it."""

    block: int
    rows: EncodedRows
    indices: list[int]

    def numbers(self) -> list[int]:
        """The numbers of the rows, which are their own in the whole epoch."""
        return [self.block * ROWS_PER_BLOCK + index for index in self.indices]

    def load(self, epoch: int) -> list[dict[str, Any]]:
        """The rows with the numbers that their masks depend on."""
        rows = self.rows.__getitems__([(epoch, index) for index in self.indices])
        return [row | {"row": number} for row, number in zip(rows, self.numbers(), strict=True)]


class StreamedRows(torch.utils.data.Dataset):
    """What a batch sampler asks for is the rows themselves, so that no worker reads the stream once more."""

    def __getitem__(self, row: dict[str, Any]) -> dict[str, Any]:
        return row

    def __getitems__(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return rows


class StreamedBins:
    """A batch sampler for one process: its bins of one epoch of a stream, each a list of encoded rows.

    As with `TrainingBins`, `begin` an epoch at any of its bins, then iterate; bins missing at its end are empty. How
    many bins an epoch has is known when its last step is given out, and not before.

    Args:
        arrangement: how the rows of a block make bins.
        bookmark: the beginning of a block from which the first pass may look for its first bin.
        gather: a list of one object -> those of all processes, in their order. All processes call it whenever a block
            begins, which is after the same number of bins in each of them.
    """

    def __init__(
        self,
        stream: EncodedStream,
        arrangement: Arrangement,
        seed: int,
        accumulation_steps: int = 1,
        process_index: int = 0,
        num_processes: int = 1,
        bookmark: Sequence[int] | None = None,
        gather: Callable[[list[Any]], list[Any]] = list,
    ):
        self.stream, self.arrangement, self.seed, self.gather = stream, arrangement, seed, gather
        self.process_index, self.num_processes = process_index, num_processes
        self.accumulation_steps, self.bins_per_step = accumulation_steps, num_processes * accumulation_steps
        self.bookmarks = [Bookmark(*(bookmark or ()))]
        self.begin(0, self.bookmarks[0].first_bin)

    def begin(self, epoch: int, consumed: int = 0) -> None:
        """Let the next pass be over `epoch`, without the bins that all processes have consumed of it already."""
        self.bookmarks = [self.bookmark(consumed)]
        self.epoch, self.consumed = epoch, consumed
        self.bins_per_epoch: int | None = None
        self.remembered: deque[tuple[int, list[int]]] = deque(maxlen=BINS_REMEMBERED)

    def bookmark(self, consumed: int) -> Bookmark:
        """Where the block begins that holds the first bin which is not consumed."""
        if not consumed:
            return Bookmark()
        return max((mark for mark in self.bookmarks if mark.first_bin <= consumed), default=Bookmark())

    def share(self, consumed: int) -> float:
        """1 where the epoch has ended, and 0 before: nobody knows how long it is."""
        return float(self.bins_per_epoch is not None and consumed >= self.bins_per_epoch)

    def rows(self, epoch: int, first: int) -> list[int]:
        """The numbers of the rows, in all processes, of the step that began with the bin `first`, a late one."""
        steps = range(first, first + self.bins_per_step)
        return [row for number, rows in self.remembered if number in steps for row in rows]

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        bins = self._bins()
        # One bin more than a round of all processes takes, so that the last round is known to be the last one.
        ahead = deque(next(bins, None) for _ in range(self.num_processes + 1))
        rounds = 0
        while ahead[0] is not None:
            own = ahead[self.process_index]
            yield [] if own is None else own.load(self.epoch)
            rounds += 1
            for _ in range(self.num_processes):
                ahead.popleft()
                ahead.append(next(bins, None))
        if not rounds:
            raise ValueError(
                f"The stream ends before batch {self.consumed + 1} of its epoch {self.epoch + 1}, up to which this run had "
                "come: bring back the text that it had."
            )
        for _ in range(-rounds % self.accumulation_steps):
            yield []

    def _bins(self) -> Iterator[Bin]:
        """The bins of all processes that are not consumed."""
        mark = self.bookmarks[0]
        for block in self.stream.blocks(self.seed, self.epoch, mark.rows):
            encoded, end = self._encode(block)
            rows, lengths = EncodedRows(encoded), encoded.data.column("length").to_numpy()
            bins = self.arrangement(lengths, self.seed, self.epoch, mark.block)
            for number, indices in enumerate(bins, mark.first_bin):
                if number >= self.consumed:
                    found = Bin(mark.block, rows, indices.tolist())
                    self.remembered.append((number, found.numbers()))
                    yield found
            mark = Bookmark(mark.block + 1, mark.first_bin + len(bins), end)
            self.bookmarks.append(mark)
        self.bins_per_epoch = mark.first_bin

    def _encode(self, block: Iterator[tuple[int, list[str]]]) -> tuple[Dataset, int]:
        """The encoded rows of a block, and how many rows of the source lie before its end."""
        own: list[pa.Table] = []
        chunks, end, failed = 0, 0, None
        try:
            for end, texts in block:  # noqa: B007  # the last one is what is wanted
                if chunks % self.num_processes == self.process_index:
                    own.append(self.stream.encode(texts))
                chunks += 1
        except (ValueError, OSError) as error:
            failed = str(error)
        shares = self.gather([(own, failed)])
        if failures := [message for _, message in shares if message]:  # in all processes, so that none waits
            raise ValueError(failures[0])
        tables = [shares[chunk % self.num_processes][0][chunk // self.num_processes] for chunk in range(chunks)]
        return Dataset(InMemoryTable(pa.concat_tables(tables).combine_chunks()), fingerprint="block"), end
