"""What each kind of column accepts, what it makes of it, and what it says of the rest."""

import math

import pytest
from datasets import List, Value

from hf_tfenc.data.values import BadValue, Reader, commonest_label_type


def read(value, kind, type="string", **options):
    return Reader("column", kind, type, **options)(value)


def reason(value, kind, type="string", **options):
    with pytest.raises(BadValue) as error:
        read(value, kind, type, **options)
    return str(error.value)


def label_reader(values, **options):
    return Reader(
        "label", "label", commonest_label_type(values, Reader("label", "label", "string", **options)), **options
    )


def test_text():
    assert read(" a ", "text") == " a "
    assert reason(5, "text") == reason(None, "text") == "not a string"
    assert reason(" \u3000\n", "text") == "which has no text"


def test_words():
    assert read(["a", "\u3000"], "words") == ["a", "\u3000"]
    assert reason("a b", "words") == reason([], "words") == reason(None, "words") == "not a list of words"
    assert reason(["a", None], "words") == "where word 2 is null"
    assert reason(["", "a"], "words") == "where word 1 is str ''"


def test_tags():
    assert read(["O", "B-X"], "tags") == ["O", "B-X"]
    assert read([0, 7], "tags") == ["0", "7"]
    assert read([1, 0], "tags", names=("O", "B-X")) == ["B-X", "O"]
    assert reason("O", "tags") == "not a list of tags"
    assert reason(["O", None], "tags") == "where tag 2 is null"
    assert reason([1, -1], "tags", names=("O", "B-X")) == "where tag 2 is int -1"
    assert reason([True], "tags") == "where tag 1 is bool True"
    assert reason([0.5], "tags") == "where tag 1 is float 0.5"
    assert reason(["O", 1], "tags", tag_type="string") == "where tag 2 is int 1, and most tags are strings"


def test_numbers():
    assert read(3, "number") == 3.0 and type(read(3, "number")) is float
    assert read("-1.5e-3", "number", untyped=True) == -0.0015
    for value in ("3", None, math.nan, math.inf, True):
        assert reason(value, "number") == "not a number"
    for cell in ("", "x", "nan", "1_000", "0x10", "9" * 400):
        assert reason(cell, "number", untyped=True) == "not a number"


@pytest.mark.parametrize(
    ("values", "type", "read"),
    [
        (["a", "b"], Value("string"), ["a", "b"]),
        ([0, 1], Value("int64"), [0, 1]),
        ([True, False], Value("bool"), [True, False]),
        ([1, 2.5], Value("float64"), [1.0, 2.5]),
        ([["a"], [], ["b", "a"]], List(Value("string")), [["a"], [], ["b", "a"]]),
        ([[1], []], List(Value("int64")), [[1], []]),
        ([[], []], List(Value("string")), [[], []]),
    ],
)
def test_labels(values, type, read):
    reader = label_reader(values)
    assert reader.feature == type
    found = [reader(value) for value in values]
    assert found == read and list(map(repr, found)) == list(map(repr, read))


def test_names_of_class_labels():
    names = ("no", "yes")
    reader = label_reader([1, 0], names=names)
    assert [reader(1), reader(0)] == ["yes", "no"]
    assert label_reader([[1, 0]], names=names)([1]) == ["yes"]
    assert reason(-1, "label", names=names) == reason(2, "label", names=names) == "not a label"


def test_a_label_stands_once_in_its_row():
    """Marks of 0 and 1 for each label would else be the labels 0 and 1."""
    assert reason([1, 0, 1, 0], "label", type="list int64").startswith("in which a label stands twice")


def test_a_number_longer_than_an_integer_is_a_name():
    (name,) = ["123456789012345678901234"]
    assert label_reader([name, name], untyped=True).type == "string"


@pytest.mark.parametrize("value", [None, math.nan, 2**63, "", "  ", {"a": 1}, ["a", None], ["a", 1], [["a"]]])
def test_what_is_no_label(value):
    assert reason(value, "label") == "not a label"
    assert commonest_label_type([value], Reader("label", "label", "string")) is None


@pytest.mark.parametrize(
    ("most", "other", "said"),
    [
        ([0, 1, 2], "3", "where most rows hold an integer"),
        ([0.5, 1, 2], "3", "where most rows hold a number"),
        (["a", "b"], 3, "where most rows hold a string"),
        (["a", "b"], [], "where most rows hold a string"),
        ([0, 1], True, "where most rows hold an integer"),
        ([["a"], ["b"]], [1], "where most rows hold a list of strings"),
        ([["a"], ["b"]], "a", "where most rows hold a list of strings"),
    ],
)
def test_the_type_of_most_labels_is_asked_of_all(most, other, said):
    reader = label_reader([other, *most])
    assert reason(other, "label", reader.type) == said


@pytest.mark.parametrize(
    ("cells", "read"),
    [
        (["0", "1", " 2 "], [0, 1, 2]),
        (["0", "1.5", "-2e3"], [0.0, 1.5, -2000.0]),
        (["007", "123", "a"], ["007", "123", "a"]),
        (["10-K", "8-K", "4"], ["10-K", "8-K", "4"]),
        (["True", "nan"], ["True", "nan"]),
    ],
)
def test_labels_of_a_table_of_strings(cells, read):
    reader = label_reader(cells, untyped=True)
    assert [reader(cell) for cell in cells] == read


def test_a_cell_that_is_no_number_among_numbers():
    reader = label_reader(["0", "1", "one"], untyped=True)
    assert reason("one", "label", reader.type, untyped=True) == "where most rows hold an integer"
    assert reason("", "label", reader.type, untyped=True) == "not a label"
