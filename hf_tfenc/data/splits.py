"""Training and validation rows: what is held out, and what stands on both sides."""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

FEWEST_ROWS = 100  # below this, 5 % are too few rows to measure on
BLOCK_CHARACTERS = 2000
# As much as fits, up to a line break; in a line longer than that, up to white space; in a word longer than that, all.
BLOCK = re.compile(
    rf"(?s:.{{0,{BLOCK_CHARACTERS - 1}}}(?:\n|\Z)|.{{0,{BLOCK_CHARACTERS - 1}}}\s|.{{{BLOCK_CHARACTERS}}})"
)


def hold_out(rows: Dataset, inputs: list[str], share: float, labels: Sequence[str] = ()) -> DatasetDict:
    """About `share` of `rows` in `validation`, the others in `train`; at least one text in each.

    Chosen by a hash of the columns `inputs`, so that equal rows are on one side whatever their labels. Where there are
    few rows and text is all that they have, blocks of the long ones are held out; what stays between is whole. A row
    with a label that would have no other row to be learned from is not held out; `labels` are the columns of labels,
    or of lists of them.
    """
    if len(rows) < FEWEST_ROWS and rows.column_names == ["text"]:
        blocks = rows.map(_cut, batched=True, batch_size=1, with_indices=True)
        if len(blocks) > len(rows):
            return _hold_out_blocks(rows, blocks, share)

    hashes = row_hashes(rows, inputs)
    held_out = choose_held_out(hashes, share)
    for column in labels:
        held_out = _without_new_labels(rows[column], hashes, held_out)
    splits = DatasetDict(
        {"train": rows.select(np.flatnonzero(~held_out)), "validation": rows.select(np.flatnonzero(held_out))}
    )
    logger.info("%d of %d rows are held out for validation.", len(splits["validation"]), len(rows))
    return splits


def _hold_out_blocks(rows: Dataset, blocks: Dataset, share: float) -> DatasetDict:
    held_out = choose_held_out(row_hashes(blocks, ["text"]), share)
    logger.info(
        "Of so few texts (%d) %d of %d blocks of about %d characters are held out for validation.",
        len(rows), held_out.sum(), len(blocks), BLOCK_CHARACTERS,
    )  # fmt: skip
    of_rows = np.split(held_out, np.flatnonzero(np.diff(blocks["source"][:])) + 1)
    flags = dict(zip(blocks.unique("source"), of_rows, strict=True))
    return DatasetDict(
        {
            split: rows.map(
                _runs, batched=True, batch_size=1, with_indices=True, fn_kwargs={"held_out": flags, "wanted": wanted}
            )
            for split, wanted in (("train", False), ("validation", True))
        }
    )


def choose_held_out(hashes: np.ndarray, share: float) -> np.ndarray:
    """Which of the rows with these hashes are held out, (rows,) bool; neither none nor all. Raises ValueError."""
    if (hashes == hashes[0]).all():
        raise ValueError(
            "The training text is one row, or one row repeated, so none can be held out for validation: "
            "give more text, or a --validation_file."
        )
    held_out = hashes < share * 2.0**64
    return hashes == hashes.min() if held_out.all() or not held_out.any() else held_out


def _without_new_labels(labels: Iterable[Any], hashes: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """`held_out` without rows whose labels no training row has, and rows equal to them."""
    of_rows = [value if isinstance(value, list) else [value] for value in labels]
    trained = {label for row, out in zip(of_rows, held_out, strict=True) if not out for label in row}
    new = np.array([out and not trained.issuperset(row) for row, out in zip(of_rows, held_out, strict=True)])
    kept = held_out & ~np.isin(hashes, hashes[new], kind="sort")
    if 2 * kept.sum() < held_out.sum():
        counts = Counter(label for row in of_rows for label in set(row))
        again = np.array([all(counts[label] > 1 for label in row) for row in of_rows])
        if 2 * again.sum() < len(again):  # labels that hardly ever come again are no labels, or are numbers
            return held_out
        kept = _with_next(of_rows, hashes, kept, int(held_out.sum()))
    if moved := held_out.sum() - kept.sum():
        logger.info("%d rows with labels that no other training row has are not held out.", moved)
    return kept


def _with_next(of_rows: list[list[Any]], hashes: np.ndarray, kept: np.ndarray, wanted: int) -> np.ndarray:
    """Held-out rows and the next ones by their hashes, up to so many, that leave each label a row to be learned from."""
    left = Counter(label for row, out in zip(of_rows, kept, strict=True) if not out for label in row)
    for place in np.argsort(hashes, kind="stable"):
        if kept.sum() >= wanted:
            break
        alike = np.flatnonzero((hashes == hashes[place]) & ~kept)
        taken = Counter(label for row in alike for label in of_rows[row])
        if len(alike) and all(left[label] > count for label, count in taken.items()):
            kept[alike] = True
            left -= taken
    return kept


def log_shared_rows(splits: DatasetDict, name: str, inputs: list[str]) -> None:
    """Warn of the rows of the split `name` whose input stands in `train` too."""
    hashes, trained = row_hashes(splits[name], inputs), row_hashes(splits["train"], inputs)
    shared = np.isin(hashes, trained, kind="sort").sum()  # numpy 2.0.0 knows no table of large numbers
    if shared:
        logger.warning(
            "%d of %d %s rows are also training rows, word for word: the measurement flatters by as much.",
            shared,
            len(splits[name]),
            name,
        )


def row_hashes(rows: Dataset, inputs: list[str]) -> np.ndarray:
    """A hash of the columns `inputs` of each row, which hold strings or lists of strings.

    Returns:
        uint64, shape (rows,), evenly spread
    """
    hashed = rows.select_columns(inputs).map(_hash, batched=True, remove_columns=inputs, desc="Hashing rows")
    return hashed.data.column("hash").to_numpy()


def _hash(batch: dict[str, list]) -> dict[str, np.ndarray]:
    texts, *others = (list(map(_joined, values)) for values in batch.values())
    if others:
        texts = ["\0".join(row) for row in zip(texts, *others, strict=True)]
    return {"hash": text_hashes(texts)}


def text_hashes(texts: list[str]) -> np.ndarray:
    """The same for texts by themselves: uint64, shape (texts,)."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8")


def _joined(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "\0".join(value)


def _cut(batch: dict[str, list[str]], indices: list[int]) -> dict[str, list]:
    (text,), (source,) = batch["text"], indices
    blocks = [block for block in BLOCK.findall(text) if block.strip()]
    return {"text": blocks, "source": [source] * len(blocks)}


def _runs(
    batch: dict[str, list[str]], indices: list[int], held_out: dict[int, np.ndarray], wanted: bool
) -> dict[str, list[str]]:
    """Of one text its blocks that are held out, or those that are not, as far as they follow each other in one piece."""
    blocks = _cut(batch, indices)["text"]
    flags = held_out.get(indices[0], np.zeros(0, dtype=bool)).tolist()
    runs = groupby(zip(flags, blocks, strict=True), key=itemgetter(0))
    return {"text": ["".join(block for _, block in run) for flag, run in runs if flag == wanted]}
