"""From rows to tensors, and through a DataLoader."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from torch.utils.data import DataLoader

from hf_tfenc.data.batching import PaddedBins, TrainingBins
from hf_tfenc.data.collators import EncodedRows, PaddedCollator
from hf_tfenc.data.masking import IGNORE_INDEX, TokenMasking

PAD = 9


def every_other(row):
    """Labels at odd places; the input tells epoch and row."""
    ids = row["input_ids"]
    labels = np.where(np.arange(len(ids)) % 2, ids, IGNORE_INDEX)
    return ids + 100 * row["row"] + 1000 * row["epoch"], labels


def rows(*lengths):
    return [{"epoch": 2, "row": row, "input_ids": np.arange(1, n + 1)} for row, n in enumerate(lengths)]


def test_rows_are_padded_and_padding_has_no_label():
    batch = PaddedCollator(PAD, every_other, max_length=100, pad_to_multiple_of=4)(rows(3, 5))
    assert batch["input_ids"].tolist() == [
        [2001, 2002, 2003, PAD, PAD, PAD, PAD, PAD],
        [2101, 2102, 2103, 2104, 2105, PAD, PAD, PAD],
    ]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0]]
    n = IGNORE_INDEX
    assert batch["labels"].tolist() == [[n, 2, n, n, n, n, n, n], [n, 2, n, 4, n, n, n, n]]
    assert batch["prediction_positions"].tolist() == [1, 9, 11]
    assert batch["labels"].flatten()[batch["prediction_positions"]].tolist() == [2, 2, 4]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


@pytest.mark.parametrize(
    ("longest", "multiple", "max_length", "width"),
    [(5, 8, 64, 8), (8, 8, 64, 8), (9, 8, 64, 16), (5, 1, 64, 5), (18, 8, 20, 20)],
)
def test_width_is_a_multiple_but_never_beyond_the_longest_row_allowed(longest, multiple, max_length, width):
    collator = PaddedCollator(PAD, every_other, max_length, multiple)
    assert collator(rows(2, longest))["input_ids"].shape == (2, width)


def test_an_empty_bin_is_a_row_with_nothing_to_predict():
    batch = PaddedCollator(PAD, every_other, max_length=64)([])
    assert batch["input_ids"].tolist() == [[PAD] * 8] and batch["labels"].tolist() == [[IGNORE_INDEX] * 8]
    assert batch["attention_mask"].tolist() == [[1] + [0] * 7]  # attention over nothing is not a number
    assert batch["prediction_positions"].shape == (0,)


def test_number_of_workers_changes_nothing():
    random = np.random.default_rng(0)
    ids = [random.integers(5, 1000, size=random.integers(3, 40)).tolist() for _ in range(50)]
    features = Features({"input_ids": List(Value("uint16")), "length": Value("int32")})
    encoded = Dataset.from_dict({"input_ids": ids, "length": [len(row) for row in ids]}, features=features)

    def two_epochs(workers):
        bins = TrainingBins(encoded.with_format("numpy")["length"][:], PaddedBins(4), seed=1, accumulation_steps=3)
        masking = TokenMasking(1, 0.15, mask_token_id=4, is_special=np.arange(1000) < 5)
        loader = DataLoader(
            EncodedRows(encoded),
            batch_sampler=bins,
            collate_fn=PaddedCollator(0, masking.label_row, max_length=64),
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        for bins.epoch in range(2):
            yield from loader

    alone, helped = list(two_epochs(0)), list(two_epochs(2))
    assert len(alone) == len(helped) == 2 * 15
    for one, other in zip(alone, helped, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert not any(torch.equal(alone[0]["input_ids"], batch["input_ids"]) for batch in alone[15:])
