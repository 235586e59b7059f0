"""Labels: what the training split has, in an order that does not depend on its rows."""

import pytest
from datasets import Dataset
from transformers import PreTrainedConfig

from hf_tfenc.tasks.labels import Labels
from hf_tfenc.tasks.task import RowError


def learned(values):
    return Labels.learn(Dataset.from_dict({"label": values}), "label", "--label_column")


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["b", "a", "b"], ["a", "b"]),
        ([10, 9, 2], ["2", "9", "10"]),
        ([1.0, 0.0], ["0", "1"]),
        ([True, False], ["False", "True"]),
        ([["b"], [], ["a", "b"]], ["a", "b"]),
    ],
)
def test_labels_have_an_order(values, names):
    assert learned(values).names == names == learned(values[::-1]).names


def test_numbers_and_back():
    labels = learned(["b", "a", "c"])
    assert labels.numbers(["c", "a"]) == [2, 0]
    config = PreTrainedConfig(**labels.config_options())
    assert config.num_labels == 3 and config.id2label[1] == "b" and config.label2id["b"] == 1
    assert Labels.of_config(config).names == labels.names


@pytest.mark.parametrize(
    ("values", "row", "said"),
    [
        (["a", "b", "x", "x"], 3, "the label 'x' is none of those of the training split (a, b): mend the row"),
        (["y", "x", "a", "y"], 1, "the label 'y' is none of those of the training split (a, b), and neither is 'x': "),
        (
            [["a"], ["b", "z", "y"], ["x"]],
            2,
            "the label 'z' is none of those of the training split (a, b), and neither are 'y', 'x': mend",
        ),
    ],
)
def test_unknown_labels_are_named(values, row, said):
    labels = learned(["a", "b"])
    labels.check(Dataset.from_dict({"label": ["b", "a"]}), "label", "validation")
    with pytest.raises(RowError) as error:
        labels.check(Dataset.from_dict({"label": values}), "label", "validation")
    assert str(error.value).startswith(f"validation, row {row}: {said}")
    assert (error.value.split, error.value.row) == ("validation", row - 1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["a", "a"], "only 'a' for a label"),
        ([[], []], "no label for a label"),
        ([f"text {i}" for i in range(150)], "train, row 1: the label 'text 0' is of 150 kinds .* --label_column"),
        ([[], *([i] for i in range(150))], r"train, row 2: the label \[0\] is of 150 kinds in 150 training rows"),
    ],
)
def test_what_is_no_set_of_labels_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        learned(values)
