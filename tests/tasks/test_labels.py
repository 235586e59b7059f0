"""Labels: what the training split has, in an order that does not depend on its rows."""

import pytest
from datasets import Dataset
from transformers import PreTrainedConfig

from hf_tfenc.tasks.labels import Labels


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
    assert labels.numbers(["c", "a"], "train, row 1") == [2, 0]
    config = PreTrainedConfig(**labels.config_options())
    assert config.num_labels == 3 and config.id2label[1] == "b" and config.label2id["b"] == 1
    assert Labels.of_config(config).names == labels.names


def test_an_unknown_label_is_named():
    with pytest.raises(ValueError, match=r"^validation, row 7: the label 'x' is none of .* \(a, b\): .*\.$"):
        learned(["a", "b"]).numbers(["a", "x"], "validation, row 7")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["a", "a"], "only 'a' for a label"),
        ([[], []], "no label for a label"),
        ([f"text {i}" for i in range(150)], "of 150 kinds, such as 'text 0': .* --label_column"),
    ],
)
def test_what_is_no_set_of_labels_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        learned(values)
