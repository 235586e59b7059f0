"""What is held out: the hashes, and the cutting of a long document."""

import pytest
from datasets import Dataset

from hf_tfenc.data import splits
from hf_tfenc.data.splits import hold_out, log_shared_rows, row_hashes

pytestmark = pytest.mark.usefixtures("cache")


def test_equal_inputs_stay_together_whatever_their_labels():
    texts = [f"text {number % 700}" for number in range(1000)]
    pairs = [f"pair {number % 2}" for number in range(1000)]
    rows = Dataset.from_dict({"text": texts, "text_pair": pairs, "label": list(range(1000))})
    held = hold_out(rows, ["text", "text_pair"], 0.3)
    inputs = {split: set(zip(held[split]["text"], held[split]["text_pair"], strict=True)) for split in held}
    assert not inputs["train"] & inputs["validation"]
    assert sorted([*held["train"]["label"], *held["validation"]["label"]]) == list(range(1000))
    assert 200 < len(held["validation"]) < 400


def test_words_are_hashed_one_by_one():
    rows = Dataset.from_dict({"words": [["a", "b"], ["ab"], ["a", "b"], ["a b"]], "tags": [["x", "y"], ["x"]] * 2})
    hashes = row_hashes(rows, ["words"])
    assert hashes[0] == hashes[2] and len(set(hashes.tolist())) == 3


def test_rows_with_labels_are_not_cut():
    rows = Dataset.from_dict({"text": ["a line\n" * 1000, "another\n" * 1000], "label": [0, 1]})
    assert sum(map(len, hold_out(rows, ["text"], 0.05).values())) == 2


def test_rows_on_both_sides_are_counted(log):
    train = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    test = Dataset.from_dict({"text": ["b", "c", "b"], "label": [0, 1, 1]})
    log_shared_rows({"train": train, "test": test}, "test", ["text"])
    assert log.messages == [
        "2 of 3 test rows are also training rows, word for word: the measurement flatters by as much."
    ]


@pytest.mark.parametrize(
    "document", ["word " * 3000, "x" * 9001, "line\n" * 3000, "short\n" + "y" * 5000 + "\nshort\n", "a\n", "x" * 2000]
)
def test_cutting_loses_nothing(document):
    blocks = splits._cut({"text": [document]})["text"]
    assert "".join(blocks) == document
    assert all(0 < len(block) <= 2000 for block in blocks)
    assert len(blocks) <= len(document) / 1000 + 2
