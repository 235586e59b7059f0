"""What a run would be fed, counted before it starts: rows, tokens, repetitions, and how long texts are."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from ..tokenization import encode_rows
from .collators import numpy_column
from .splits import row_hashes

# What a row may hold for the tokenizer: texts that are encoded together, or each by itself.
INPUTS = (("text", "text_pair"), ("words",), ("anchor",), ("positive",), ("negative",))
SAMPLE_TEXTS, SAMPLE_CHARACTERS = 10_000, 5_000_000  # of a split, to tokenize whole; more would hardly move a share
BAR = 30  # characters of the longest bar


@dataclass(frozen=True)
class SplitReport:
    """Counts of one split, and what a sample of its texts, evenly spaced, tells of them all."""

    rows: int  # of the source
    encoded_rows: int  # of the task: windows of them, for one
    tokens: int  # of the encoded rows, special ones included
    duplicates: int  # rows whose input an earlier one has
    shared: int  # rows whose input stands in the training split; 0 for that itself
    sampled_words: int  # between white space, or as the rows have them
    sampled_tokens: int  # of these words, without special ones
    sampled_unknown: int  # of these tokens
    lengths: np.ndarray = field(repr=False)  # int64, (sampled texts,): tokens of each, whole, special ones included

    @property
    def tokens_per_word(self) -> float:
        return self.sampled_tokens / max(self.sampled_words, 1)

    @property
    def unknown_share(self) -> float:
        return self.sampled_unknown / max(self.sampled_tokens, 1)

    def share_above(self, max_seq_length: int) -> float:
        """Share of texts that are longer than so many tokens."""
        return float((self.lengths > max_seq_length).mean())

    def histogram(self) -> list[tuple[int, int, int]]:
        """(fewest tokens, most tokens, texts): one bin for each power of two, from the shortest text to the longest."""
        powers = np.ceil(np.log2(np.maximum(self.lengths, 1))).astype(int)
        counts = np.bincount(powers)
        return [(2**p // 2 + 1, 2**p, int(counts[p])) for p in range(powers.min(), powers.max() + 1)]


def describe(splits: DatasetDict, encoded: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> dict[str, SplitReport]:
    """The report of each split.

    Args:
        splits: rows with columns that `INPUTS` names, as `load_splits` gives them
        encoded: rows with the column `length`, as a task gives them
    """
    columns = [name for group in INPUTS for name in group if name in splits["train"].column_names]
    hashes = {split: row_hashes(rows, columns) for split, rows in splits.items()}
    reports = {}
    for split, rows in splits.items():
        words, tokens, unknown, lengths = _measure(_sample(rows.select_columns(columns)), tokenizer)
        reports[split] = SplitReport(
            rows=len(rows),
            encoded_rows=len(encoded[split]),
            tokens=int(numpy_column(encoded[split], "length").sum()),
            duplicates=len(rows) - len(np.unique(hashes[split])),
            shared=0 if split == "train" else int(np.isin(hashes[split], hashes["train"]).sum()),
            sampled_words=words,
            sampled_tokens=tokens,
            sampled_unknown=unknown,
            lengths=lengths,
        )
    return reports


def report_lines(reports: dict[str, SplitReport], max_seq_length: int) -> list[str]:
    """The reports as text."""
    lines: list[str] = []
    for split, report in reports.items():
        lines += [
            f"{split}: {report.rows:,} rows of the source, {report.encoded_rows:,} encoded, {report.tokens:,} tokens",
            f"  {report.tokens_per_word:.2f} tokens a word, {report.unknown_share:.2%} of tokens unknown",
            f"  {report.duplicates:,} rows repeat an earlier one"
            + ("" if split == "train" else f", {report.shared:,} are training rows too"),
            f"  {report.share_above(max_seq_length):.1%} of texts are longer than {max_seq_length} tokens:",
            *_bars(report),
        ]
    return lines


def _bars(report: SplitReport) -> list[str]:
    bins = report.histogram()
    most, width = max(count for *_, count in bins), len(str(bins[-1][1]))
    return [
        f"  {low:>{width}} to {high:>{width}} tokens {'#' * -(-BAR * count // most):<{BAR}} {count / len(report.lengths):6.1%}"
        for low, high, count in bins
    ]


def _sample(rows: Dataset) -> Dataset:
    step = -(-len(rows) // SAMPLE_TEXTS)
    return rows.select(range(0, len(rows), max(step, 1)))


def _measure(sample: Dataset, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int, int, np.ndarray]:
    """Words, tokens without special ones, unknown ones of these, and the length of each text."""
    special = np.array(sorted(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}))
    words = tokens = unknown = characters = 0
    lengths: list[int] = []
    for batch in sample.iter(batch_size=100):
        for texts, pairs in _texts(batch):
            split = isinstance(texts[0], list)
            encoded = encode_rows(
                tokenizer,
                texts,
                pairs,
                is_split_into_words=split,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,  # no word on texts too long for a model, which is what is asked here
            )["input_ids"]
            ids = np.concatenate([np.asarray(row, dtype=np.int64) for row in encoded])
            ids = ids[~np.isin(ids, special)]
            tokens += len(ids)
            unknown += int((ids == tokenizer.unk_token_id).sum()) if tokenizer.unk_token_id is not None else 0
            lengths += map(len, encoded)
            for text in [*texts, *(pairs or [])]:
                words += len(text) if split else len(text.split())
                characters += sum(map(len, text)) if split else len(text)
        if characters >= SAMPLE_CHARACTERS:
            break
    return words, tokens, unknown, np.array(lengths, dtype=np.int64)


def _texts(batch: dict[str, list]) -> Iterator[tuple[list, list | None]]:
    """What a batch holds to tokenize: (texts, the second texts of pairs)."""
    for name, *second in INPUTS:
        if name in batch:
            yield batch[name], batch[second[0]] if second and second[0] in batch else None
