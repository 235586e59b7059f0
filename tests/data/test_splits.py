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


def test_what_is_not_held_out_stays_in_one_piece():
    """Else no row would fill a longer context."""
    documents = ["".join(f"{name} line {number}\n" for number in range(2000)) for name in ("one", "another")]
    parts = hold_out(Dataset.from_dict({"text": documents}), ["text"], 0.05)
    held_out, train = parts["validation"]["text"][:], parts["train"]["text"][:]
    assert 0 < len(held_out) < 8 and max(map(len, held_out)) <= 6000 and max(map(len, train)) > 8000
    for document in documents:
        places = sorted((document.find(text), text) for text in [*train, *held_out] if text in document)
        assert "".join(text for _, text in places) == document


def test_rows_with_labels_are_not_cut():
    rows = Dataset.from_dict({"text": ["a line\n" * 1000, "another\n" * 1000], "label": [0, 1]})
    assert sum(map(len, hold_out(rows, ["text"], 0.05).values())) == 2


def lists_of(labels):
    return [["often", label] for label in labels]


@pytest.mark.parametrize("of_rows", [list, lists_of])
def test_a_label_that_stands_once_is_trained_on(log, of_rows):
    labels = ["rare" + str(number) if number % 10 == 0 else "often" for number in range(1000)]
    texts = [f"text {number - number % 10 % 2}" for number in range(1000)]  # a rare row and the next have one text
    rows = Dataset.from_dict({"text": texts, "label": of_rows(labels)})
    plain, held = hold_out(rows, ["text"], 0.3), hold_out(rows, ["text"], 0.3, ["label"])
    rare = {text for text, label in zip(texts, labels, strict=True) if label != "often"}
    assert (
        set(held["validation"]["text"]) == set(plain["validation"]["text"]) - rare != set(plain["validation"]["text"])
    )
    assert not set(held["validation"]["text"]) & set(held["train"]["text"])
    moved = len(plain["validation"]) - len(held["validation"])
    assert f"{moved} rows with labels that no other training row has are not held out." in log.messages


def test_labels_that_never_come_again_are_held_out():
    rows = Dataset.from_dict({"text": [f"text {number}" for number in range(200)], "label": list(range(200))})
    plain, held = hold_out(rows, ["text"], 0.3), hold_out(rows, ["text"], 0.3, ["label"])
    assert held["validation"].to_dict() == plain["validation"].to_dict()


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
    blocks = splits._cut({"text": [document]}, [0])["text"]
    assert "".join(blocks) == document
    assert all(0 < len(block) <= 2000 for block in blocks)
    assert len(blocks) <= len(document) / 1000 + 2
