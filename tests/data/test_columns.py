"""Which of a source's columns a task gets."""

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_tfenc.data.columns import Column, choose, log_guesses, take
from hf_tfenc.data.hub import Loaded

pytestmark = pytest.mark.usefixtures("cache")

TEXT = Column("text", "text", ("text", "sentence", "sentence1"), option="--text_column")
PAIR = Column("text_pair", "text", ("text_pair", "sentence2"), option="--text_pair_column", required=False)
LABEL = Column("label", "label", ("label", "labels", "score"), option="--label_column")
WORDS = Column("words", "words", ("tokens",), option="--words_column")
TAGS = Column("tags", "tags", ("upos", "ner_tags"), option="--tags_column")


def given(column, name):
    return Column(column.name, column.kind, column.conventional, name, column.option, column.required)


def chosen(types, *columns):
    return choose("--train_file a.csv", dict.fromkeys(types, "string") | {"label": "int64"}, columns)


def sentence(types, *columns):
    with pytest.raises(ValueError) as error:
        chosen(types, *columns)
    return str(error.value)


def taken(rows, *columns, skip_bad_rows=False):
    origin = Loaded("--dataset_name x, split train", rows)
    return take(origin, columns, choose(origin.where, origin.types(), columns), skip_bad_rows)


def test_the_users_name_goes_first():
    types = ["sentence1", "sentence2", "body"]
    assert chosen(types, TEXT, PAIR, LABEL) == {"text": "sentence1", "text_pair": "sentence2", "label": "label"}
    assert chosen(types, given(TEXT, "body"), LABEL) == {"text": "body", "label": "label"}
    # A column that the user gives away is no longer free.
    assert chosen(["text", "sentence"], TEXT, given(LABEL, "text")) == {"text": "sentence", "label": "text"}


def test_the_tasks_own_name_and_the_only_text():
    assert chosen(["words", "tags"], WORDS, TAGS) == {"words": "words", "tags": "tags"}
    assert chosen(["utterance"], TEXT, PAIR, LABEL) == {"text": "utterance", "label": "label"}


def test_columns_that_are_not_plain():
    assert sentence(["question", "answer"], TEXT) == (
        "--train_file a.csv: which column holds the text is not plain, say it with --text_column: "
        "question (string), answer (string), label (int64)."
    )
    assert sentence(["text"], WORDS) == (
        "--train_file a.csv: which column holds the words is not plain, say it with --words_column: "
        "text (string), label (int64)."
    )
    with pytest.raises(
        ValueError, match=r"^a\.annotated has no column but text \(string\), and a row is words and tags: "
    ):
        choose("a.annotated", {"text": "string"}, [WORDS, TAGS])
    assert sentence(["text"], TEXT, given(PAIR, "other")) == (
        "--train_file a.csv has no column 'other': give --text_pair_column one of text (string), label (int64)."
    )
    assert sentence(["a"], given(TEXT, "a"), given(PAIR, "a")) == (
        "--train_file a.csv: --text_column and --text_pair_column both name the column 'a': give each its own."
    )


def test_what_was_guessed_is_one_line(log):
    log_guesses("x", [TEXT, PAIR, LABEL], {"text": "sentence1", "text_pair": "sentence2", "label": "label"})
    log_guesses("x", [given(TEXT, "body"), LABEL], {"text": "body", "label": "score"})
    log_guesses("x", [TEXT, LABEL], {"text": "text", "label": "label"})
    assert log.messages == [
        "x: columns by convention are 'sentence1' for text, 'sentence2' for text_pair; "
        "--text_column and --text_pair_column name others.",
        "x: columns by convention are 'score' for label; --label_column names another.",
    ]


def test_rows_under_the_tasks_names():
    rows = Dataset.from_dict({"id": [1, 2], "sentence": ["a", "b"], "score": [0.5, 1.0]})
    found = taken(rows, TEXT, PAIR, LABEL)
    assert found.to_dict() == {"text": ["a", "b"], "label": [0.5, 1.0]}
    assert found.features == Features({"text": Value("string"), "label": Value("float64")})


def test_names_that_change_places():
    rows = Dataset.from_dict({"text": ["x", "y"], "label": ["a", "b"], "sentence": ["c", "d"]})
    assert taken(rows, given(TEXT, "label"), given(LABEL, "text")).to_dict() == {
        "text": ["a", "b"],
        "label": ["x", "y"],
    }
    assert taken(rows, TEXT, given(LABEL, "text")).to_dict() == {"text": ["c", "d"], "label": ["x", "y"]}
    assert taken(rows, given(TEXT, "label")).to_dict() == {"text": ["a", "b"]}


def test_names_of_class_labels():
    names = ClassLabel(names=["O", "B-X"])
    features = Features({"tokens": List(Value("string")), "ner_tags": List(names), "label": names})
    rows = Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [[1, 0]], "label": [1]}, features=features)
    assert taken(rows, WORDS, TAGS, LABEL).to_dict() == {
        "words": [["a", "b"]],
        "tags": [["B-X", "O"]],
        "label": ["B-X"],
    }


def test_a_row_is_refused_or_left_out(log):
    rows = Dataset.from_dict({"text": ["a", None, " ", "b"], "label": [0, 1, 1, None]})
    with pytest.raises(ValueError) as error:
        taken(rows, TEXT, LABEL)
    assert str(error.value) == (
        "--dataset_name x, split train, row 2: the column 'text' holds null, not a string: "
        "mend the row, leave it out with --skip_bad_rows, or name another column with --text_column."
    )
    assert taken(rows, TEXT, LABEL, skip_bad_rows=True).to_dict() == {"text": ["a"], "label": [0]}
    assert log.messages == [
        "--dataset_name x, split train: 3 of 4 rows are bad and left out, such as "
        "--dataset_name x, split train, row 2: the column 'text' holds null, not a string."
    ]


def test_no_row_is_left():
    rows = Dataset.from_dict({"text": ["", " "], "label": [0, 1]})
    with pytest.raises(ValueError, match=r"no row is left without the bad ones, such as .*, row 1: .* holds str ''"):
        taken(rows, TEXT, LABEL, skip_bad_rows=True)


def test_a_second_start_reads_the_cache(tmp_path):
    path = tmp_path / "rows.parquet"
    Dataset.from_dict({"tokens": [["a"]] * 3, "upos": [["x"]] * 3, "label": [1, 2, 2.5]}).to_parquet(path)

    def start():
        return taken(Dataset.from_parquet(str(path)), WORDS, TAGS, given(LABEL, "label"))._fingerprint

    assert start() == start()
