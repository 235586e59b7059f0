"""Rows from files: what is read, what is refused, and what is held out."""

import gzip
import json
import re

import datasets
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from datasets.packaged_modules.json.json import JsonConfig

from hf_tfenc.data import files
from hf_tfenc.data.sources import TEXT_COLUMNS, Column, Source, load_splits, load_stream

pytestmark = pytest.mark.usefixtures("cache", "offline")


def load_text_splits(train_file, validation_file=None, text_column=None, **options):
    source = Source(train_file=train_file, validation_file=validation_file, **options)
    return load_splits(source, [Column("text", "text", TEXT_COLUMNS, text_column, "--text_column")])


TEXTS = ["first row", "second: ünïcode 東京 😀", 'third, with a "quote"', "fourth\nof two lines", "  fifth  "]
ROWS = [{"text": text, "label": number} for number, text in enumerate(TEXTS)]


def rows_of(splits):
    return sorted(text for split in splits.values() for text in split["text"])


def sentence(*arguments, **options):
    """What a user reads about input that cannot be used."""
    with pytest.raises((ValueError, OSError)) as error:
        load_text_splits(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- What is read ----------------------------------------------------------------------------------------------------


def quoted(texts, separator):
    rows = "".join(f'"{text.replace(chr(34), chr(34) * 2)}"{separator}{n}\r\n' for n, text in enumerate(texts))
    return f"text{separator}label\r\n{rows}"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", ROWS),
        ("rows.json", ROWS),
        ("rows.parquet", ROWS),
        ("rows.csv", quoted(TEXTS, ",")),
        ("rows.tsv", quoted(TEXTS, "\t")),
        ("rows.jsonl.gz", gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode())),
    ],
)
def test_kinds_of_files(write, name, content):
    splits = load_text_splits(write(name, content))
    assert isinstance(splits, DatasetDict)
    assert list(splits) == ["train", "validation"]
    assert splits["train"].column_names == splits["validation"].column_names == ["text"]
    assert rows_of(splits) == sorted(TEXTS)


@pytest.mark.parametrize(
    ("sample_by", "rows"),
    [
        ("line", ["a", "b", "c\x0cd\u2028e", "f"]),
        ("paragraph", ["a\nb", "c\x0cd\u2028e\nf"]),
        ("document", ["a\nb\n\nc\x0cd\u2028e\nf\n"]),
    ],
)
def test_rows_of_plain_text(write, sample_by, rows):
    path = write("a.txt", "\ufeffa\r\nb\r\n\r\nc\x0cd\u2028e\r\nf\r\n")
    other = write("b.txt", "g\n")
    splits = load_text_splits(path, other, sample_by=sample_by)
    assert [text.rstrip() for text in splits["train"]["text"]] == [row.rstrip() for row in rows]


def test_the_built_in_corpus_without_files():
    corpus = DatasetDict(
        {split: Dataset.from_dict({"module": ["m"], "text": [split]}) for split in ("train", "validation")}
    )
    splits = load_splits(Source(), [Column("text", "text", ())], built_in=lambda: corpus)
    assert {split: rows.to_dict() for split, rows in splits.items()} == {
        "train": {"text": ["train"]},
        "validation": {"text": ["validation"]},
    }


def test_a_long_file_is_no_single_row(write, monkeypatch, log):
    monkeypatch.setattr(files, "LONG_DOCUMENT", 10_000)
    monkeypatch.setattr(files, "PART_CHARACTERS", 1000)
    text = "".join(f"line {number} ünï\r\n" for number in range(1000)) + "\n" + "x" * 5500
    path, short = write("a.txt", "\ufeff" + text), write("b.txt", "short\ntext")
    rows = load_text_splits([path, short], short)["train"]["text"][:]
    assert rows[-1] == "short\ntext" and "".join(rows[:-1]) == text.replace("\r\n", "\n")
    assert all(row.endswith("\n") for row in rows[:12]) and max(map(len, rows)) <= 2000
    assert log.messages[0] == (
        f"{path} is long for one document and becomes rows of about 1000 characters, cut after lines."
    )


def test_a_column_of_the_built_in_corpus_cannot_be_chosen():
    assert sentence(None, text_column="body") == (
        "--text_column body names a column of your data, and the built-in corpus is read: "
        "give --train_file or --dataset_name, or leave it out."
    )


def test_several_files_a_folder_and_a_pattern(write, tmp_path):
    b, a, c = (write(f"data/{name}", [{"text": name}]) for name in ("b.jsonl", "a.json", "deep/er/c.jsonl"))
    write("data/.hidden.csv", "text\nhidden\n")
    empty = write("data/empty.jsonl", b"")
    validation = write("v.txt", "held out")

    def train_rows(value):
        return load_text_splits(value, validation)["train"]["text"][:]

    assert train_rows(str(tmp_path / "data")) == ["a.json", "b.jsonl", "deep/er/c.jsonl"]
    assert train_rows([b, a, empty, c]) == ["b.jsonl", "a.json", "deep/er/c.jsonl"]
    assert train_rows(str(tmp_path / "data" / "**" / "*.jsonl")) == ["b.jsonl", "deep/er/c.jsonl"]
    assert train_rows(tmp_path / "data" / "deep") == ["deep/er/c.jsonl"]


def test_names_that_look_like_patterns(write, tmp_path):
    path = write("odd [1] *?.txt", "one")
    assert load_text_splits(path, path)["train"]["text"][:] == ["one"]
    assert load_text_splits(str(tmp_path), path)["train"]["text"][:] == ["one"]


def test_files_of_other_kinds_in_a_folder(write, tmp_path, log):
    write("data/a.jsonl", [{"text": "a"}, {"text": "b"}])
    write("data/README.md", "read me")
    load_text_splits(str(tmp_path / "data"))
    assert log.messages[0] == f"In {tmp_path / 'data'}, 1 files are left out (README.md)."
    # Named outright, such a file is plain text.
    splits = load_text_splits(str(tmp_path / "data" / "README.md"), str(tmp_path / "data" / "README.md"))
    assert splits["train"]["text"][:] == ["read me"]


def test_cells_that_look_like_numbers_or_nulls_are_text(write):
    path = write("a.csv", "text,label\nNA,1\n42,\nnull,x\n3.0\n")
    assert rows_of(load_text_splits(path)) == ["3.0", "42", "NA", "null"]


def test_empty_rows_are_left_out(write, log):
    path = write("a.jsonl", [{"text": text} for text in ("a", "", "b", " \n\t", "\u3000")])
    assert rows_of(load_text_splits(path)) == ["a", "b"]
    assert log.messages[0] == f"--train_file {path}: 3 of 5 rows are empty and left out."


def test_large_strings_and_categories_become_strings(write):
    for values in (pa.array(["a", "b"], pa.large_string()), pa.array(["a", "b"]).dictionary_encode()):
        splits = load_text_splits(write("a.parquet", pa.table({"body": values})))
        assert splits["train"].features["text"] == datasets.Value("string")
        assert rows_of(splits) == ["a", "b"]


def test_limits(write):
    path = write("a.txt", "\n".join(map(str, range(300))))
    whole = load_text_splits(path, sample_by="line")
    some = load_text_splits(path, sample_by="line", max_train_samples=7, max_eval_samples=3)
    assert some["train"]["text"][:] == whole["train"]["text"][:7]
    assert some["validation"]["text"][:] == whole["validation"]["text"][:3]
    assert len(load_text_splits(path, sample_by="line", max_train_samples=10**9)["train"]) == len(whole["train"])


def test_a_second_start_reads_the_cache(write, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = write("a.txt", "a line\n" * 1000 + "another\n" * 1000)

    def start():
        splits = load_text_splits(path)
        files = {str(file): file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.arrow")}
        return files, {split: rows._fingerprint for split, rows in splits.items()}

    assert start() == start()
    write("a.txt", "new text\n" * 2000)
    assert "new text" in load_text_splits(path, path)["train"][0]["text"]


# --- Which column ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"title": "no", "text": "yes", "sentence": "no"}, "text"),
        ({"body": "no", "content": "yes"}, "content"),
        ({"utterance": "yes", "label": 1, "score": 0.5}, "utterance"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_column_by_convention(write, log, row, column, kind):
    header, cells = (",".join(map(str, part)) for part in (row.keys(), row.values()))
    path = write(f"a.{kind}", f"{header}\n{cells}\n" if kind == "csv" else [row])
    assert load_text_splits(path, path)["train"]["text"][:] == ["yes"]
    how = ("", " (the only one of strings)") if column == "utterance" else (" by convention", "")
    guess = f"--train_file {path}: columns{how[0]} are {column!r} for text{how[1]}; --text_column names another."
    assert (guess in log.messages) == (column != "text")


def test_column_by_option(write, log):
    path = write("a.csv", "text,other\nno,yes\n")
    assert load_text_splits(path, path, text_column="other")["train"]["text"][:] == ["yes"]
    assert not any("--text_column" in message for message in log.messages)


def test_column_that_is_not_plain(write):
    several = write("a.csv", "question,answer,id\na,b,1\n")
    assert sentence(several) == (
        f"--train_file {several}: which column holds the text is not plain, say it with --text_column: "
        "question (string), answer (string), id (int64)."
    )
    none = write("b.jsonl", [{"id": 1}])
    assert sentence(several, none, text_column="question") == (
        f"--validation_file {none} has no column 'question': give --text_column one of id (int64)."
    )
    plain = write("c.txt", "a")
    assert sentence(plain, text_column="body") == (
        f"--train_file {plain} has no column 'body': give --text_column one of text (string)."
    )


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"sample_by": "line"}])
def test_files_that_are_missing(write, tmp_path, options):
    good, gone = write("a.txt", "a"), str(tmp_path / "gone.txt")
    missing = f"{gone}: there is no such file or folder, check the path."
    assert sentence(gone, **options) == f"--train_file {missing}"
    assert sentence([good, gone], **options) == f"--train_file {missing}"
    assert sentence(good, gone, **options) == f"--validation_file {missing}"
    assert sentence(gone + "*", **options) == f"--train_file {gone}* matches no file: check the pattern."
    with pytest.raises(FileNotFoundError):
        load_text_splits(gone)
    assert sentence([]) == "--train_file names no file: give at least one, or leave the option out."


def test_kinds_that_are_mixed(write, tmp_path):
    files = [write("data/a.txt", "a"), write("data/b.csv", "text\nb\n")]
    mixed = "files of different kinds cannot be mixed (a.txt is text, b.csv is csv): give those of one kind."
    assert sentence(files) == f"--train_file: {mixed}"
    assert sentence(str(tmp_path / "data")) == f"--train_file {tmp_path / 'data'}: {mixed}"


def test_a_folder_of_splits(write, tmp_path, log):
    folder = tmp_path / "data"
    for name in ("train-0.txt", "train-1.txt", "dev.txt", "Test.txt", "trainspotting.txt"):
        write(f"data/{name}", name)
    splits = load_text_splits([str(folder)])  # as the command line gives it
    assert {split: rows["text"][:] for split, rows in splits.items()} == {
        "train": ["train-0.txt", "train-1.txt"],
        "validation": ["dev.txt"],
        "test": ["Test.txt"],
    }
    assert log.messages[:2] == [
        f"In {folder}, 1 files are left out (trainspotting.txt).",
        f"--train_file {folder}: the splits are taken from its files' names: test from Test.txt, "
        "validation from dev.txt, train from train-0.txt and 1 more.",
    ]
    # A file of its own goes before the folder's, and the folder gives what is asked for.
    other = write("other.txt", "other")
    assert load_text_splits(str(folder), other)["validation"]["text"][:] == ["other"]
    assert load_text_splits(other, str(folder))["validation"]["text"][:] == ["dev.txt"]
    assert load_text_splits(f"{folder}/train-*", other)["train"]["text"][:] == ["train-0.txt", "train-1.txt"]


@pytest.mark.parametrize(
    "names",
    [
        ("en_x-ud-train.txt", "en_x-ud-dev.txt", "en_x-ud-test.txt"),
        ("train/a.txt", "dev/b.txt", "test/c.txt"),
        ("training.txt", "val.txt", "test_1.txt"),
        ("mine.train.txt", "mine.valid.txt", "mine17test.txt"),
    ],
)
def test_names_of_splits(write, tmp_path, names):
    for name in names:
        write(f"data/{name}", name)
    splits = load_text_splits(str(tmp_path / "data"))
    assert [splits[split]["text"][:] for split in ("train", "validation", "test")] == [[name] for name in names]


def test_names_that_end_like_splits_by_chance(write, tmp_path):
    names = ["how-to-cook.txt", "how-to-test.txt", "how-to-train.txt"]
    for name in names:
        write(f"data/{name}", name)
    assert rows_of(load_text_splits(str(tmp_path / "data"))) == names


def test_a_folder_without_the_split(write, tmp_path):
    folder = tmp_path / "data"
    for name in ("test.txt", "valid.txt"):
        write(f"data/{name}", name)
    assert sentence(str(folder)) == (
        f"--train_file {folder}: its files are for test and validation, and none is for training: "
        "give those for training by a pattern."
    )
    other = write("other/train.txt", "other"), write("other/test.txt", "other")
    assert sentence(other[0], str(tmp_path / "other")) == (
        f"--validation_file {tmp_path / 'other'}: its files are for test and train, and none is for validation: "
        "give those that you mean by a pattern."
    )
    assert sentence([other[0], str(folder)]) == (
        f"--train_file {folder}: its files belong to different splits (test, validation): "
        f"give those of one split alone, by a pattern such as '{folder}/test.txt'."
    )


@pytest.mark.parametrize("cells", [["gut das ist", "5"], ["gut, das ist", "5"]])
def test_other_separators_are_told_of(write, cells):
    said = sentence(write("a.csv", "text;label\n" + ";".join(cells) + "\n"))
    assert "separated by ';'" in said or "the header has 1: write it with commas" in said


def test_the_only_column_of_strings_is_called_that(write, log):
    load_text_splits(write("a.csv", "hello 0,1\nhello 1,2\nhello 2,3\n"))
    assert "columns are 'hello 0' for text (the only one of strings)" in log.messages[0]


def test_a_folder_without_data(write, tmp_path):
    write("data/README.md", "read me")
    assert sentence(str(tmp_path / "data")) == (
        f"--train_file {tmp_path / 'data'}: the folder holds no file that ends in "
        ".txt, .text, .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .conll, .bio, .iob, .iob2, .conllu: "
        f"a pattern, such as '{tmp_path / 'data'}/**/*.py', names others, which are read as plain text."
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", ""),
        ("a.csv", ""),
        ("a.csv", "text,label\n"),
        ("a.jsonl", []),
        ("a.parquet", pa.table({"text": pa.array([], pa.string())})),
        ("a.jsonl", [{"text": " "}]),
        ("a.txt", "\n"),
    ],
)
def test_files_without_text(write, name, content):
    path = write(name, content)
    assert sentence(path) == f"--train_file {path}: there is no text in it, give a file that has some."


@pytest.mark.parametrize(
    ("name", "rows", "number", "value"),
    [
        ("a.jsonl", [{"text": "a"}, {"text": None}], 2, "null"),
        ("a.parquet", [{"text": "a"}, {"text": None}], 2, "null"),
        ("a.jsonl", [{"text": "a"}, {"id": 1}], 2, "null"),
        ("a.jsonl", [{"text": "a"}, {"text": "b"}, {"text": 5}], 3, "int 5"),
        ("a.jsonl", [{"text": 5}], 1, "int 5"),
        ("a.parquet", [{"text": ["a", "b"]}], 1, "list ['a', 'b']"),
    ],
)
def test_rows_that_are_not_strings(write, name, rows, number, value):
    path = write(name, rows)
    assert sentence(path) == (
        f"--train_file {path}, row {number}: the column 'text' holds {value}, not a string: "
        "mend the row, leave it out with --skip_bad_rows, or name another column with --text_column."
    )


def test_the_file_at_fault_is_named_among_many(write):
    good = write("a.jsonl", ROWS)
    null = write("b.jsonl", [{"text": "b"}, {"text": None}])
    assert sentence([good, null]).startswith(f"--train_file {null}, row 2: the column 'text' holds null")
    latin = write("c.jsonl", '{"text": "café"}\n'.encode("latin-1"))
    assert sentence([good, latin]).startswith(f"--train_file {latin}, line 1: the byte 0xe9 is not UTF-8")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", "one\ncaf\xe9\n"), ("a.csv", "text\ncaf\xe9\n"), ("a.jsonl", '\n{"text": "caf\xe9"}\n')],
)
def test_bytes_that_are_not_utf8(write, name, content):
    path = write(name, content.encode("latin-1"))
    assert sentence(path) == (f"--train_file {path}, line 2: the byte 0xe9 is not UTF-8: convert the file to UTF-8.")


def test_lines_that_are_not_json(write):
    path = write("a.jsonl", b'{"text": "a"}\n{"text": "b"\n')
    assert sentence(path) == (
        f"--train_file {path}, line 2, character 13: this is not JSON (Expecting ',' delimiter): mend the line."
    )
    path = write("b.jsonl", b'{"text": "\\ud800 alone"}\n')
    assert sentence(path) == (
        f"--train_file {path}, line 1: \\ud800 is half of a surrogate pair, which is no character: take it out."
    )


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", 'text,label\n"a,1\n', "EOF inside string"),
        ("a.parquet", b"not parquet", "Parquet magic bytes not found"),
        ("a.json", b'{"text": ', ""),
    ],
)
def test_files_that_cannot_be_read(write, name, content, reason):
    path = write(name, content)
    found = sentence(path)
    assert found.startswith(f"--train_file {path} cannot be read as {name.split('.')[1]} (")
    assert reason in found
    assert found.endswith("): mend it, or give another file.")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"validation_share": 1.0}, "validation_share is 1.0: it must lie between 0 and 1."),
        ({"max_train_samples": 0}, "max_train_samples is 0: it must be at least 1."),
        ({"max_eval_samples": -1}, "max_eval_samples is -1: it must be at least 1."),
        ({"sample_by": "word"}, "sample_by is 'word': it must be one of document, paragraph, line."),
    ],
)
def test_options_out_of_range(options, expected):
    assert sentence(None, **options) == expected


def test_what_a_row_is_can_be_chosen_of_plain_text_alone(write):
    table, text = write("a.jsonl", [{"text": "a"}, {"text": "b"}]), write("a.txt", "a\nb\n")
    said = "--sample_by line is for plain text, and {} is none: leave it out."
    assert sentence(table, sample_by="line") == said.format(f"--train_file {table}")
    assert sentence(None, sample_by="line") == said.format("the built-in corpus")
    for pair in ((table, text), (text, table)):
        assert load_text_splits(*pair, sample_by="line").num_rows == {"train": 2, "validation": 2}


TEXT, LABEL = Column("text", "text", (), option="--text_column"), Column("label", "label", (), option="--label_column")
WORDS, TAGS = Column("words", "words", ()), Column("tags", "tags", ())
SCORE = Column("score", "number", (), option="--score_column")
GOOD = {"text": "a", "label": "x", "words": ["a", "b"], "tags": ["O", "O"], "score": 0.5}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("columns", "bad", "reason"),
    [
        ([TEXT, LABEL], {"text": None}, "the column 'text' holds null, not a string"),
        ([TEXT, LABEL], {"text": ""}, "the column 'text' holds str '', which has no text"),
        ([TEXT, LABEL], {"text": " \n"}, r"the column 'text' holds str ' \n', which has no text"),
        ([TEXT, LABEL], {"label": None}, "the column 'label' holds null, not a label"),
        ([TEXT, LABEL], {"label": ""}, "the column 'label' holds str '', not a label"),
        ([WORDS, TAGS], {"words": None}, "the column 'words' holds null, not a list of words"),
        ([WORDS, TAGS], {"words": []}, "the column 'words' holds list [], not a list of words"),
        ([WORDS, TAGS], {"words": ["a", ""]}, "the column 'words' holds list ['a', ''], where word 2 is str ''"),
        ([WORDS, TAGS], {"tags": ["O", None]}, "the column 'tags' holds list ['O', None], where tag 2 is null"),
        ([WORDS, TAGS], {"tags": ["O"]}, "its lists have unequal lengths, 2 in 'words' and 1 in 'tags'"),
        ([TEXT, SCORE], {"score": None}, "the column 'score' holds null, not a number"),
    ],
)
def test_bad_rows(write, log, kind, columns, bad, reason):
    good = write(f"good.{kind}", [GOOD] * 2)
    path = write(f"bad.{kind}", [GOOD, GOOD | bad, GOOD])
    with pytest.raises(ValueError) as error:
        load_splits(Source(train_file=[good, path], validation_file=good), columns)
    assert str(error.value).startswith(f"--train_file {path}, row 2: {reason}: mend the row, leave it out with --skip")
    splits = load_splits(Source(train_file=[good, path], validation_file=good, skip_bad_rows=True), columns)
    assert splits["train"].to_list() == [{column.name: GOOD[column.name] for column in columns}] * 4
    assert log.messages[0] == (
        f"--train_file {good} and 1 more: 1 of 5 rows are bad and left out, such as --train_file {path}, row 2: {reason}."
    )


@pytest.mark.parametrize(
    ("labels", "number", "reason"),
    [
        ([0, 1, "one"], 3, "str 'one', where most rows hold an integer"),
        ([0.5, 1, float("nan")], 3, "float nan, not a label"),
        (["a", "b", 3], 3, "int 3, where most rows hold a string"),
        (["a", "b", 0.5], 3, "float 0.5, where most rows hold a string"),
        ([["a"], "a", ["b"]], 2, "str 'a', where most rows hold a list of strings"),
        ([[1], [2], [1, None]], 3, "list [1, None], not a label"),
        ([0, {"a": 1}, 1], 2, "dict {'a': 1}, not a label"),
    ],
)
def test_labels_of_mixed_types(write, labels, number, reason):
    path = write("a.jsonl", [{"text": "a", "label": label} for label in labels])
    with pytest.raises(ValueError) as error:
        load_splits(Source(train_file=path), [TEXT, LABEL])
    assert str(error.value) == (
        f"--train_file {path}, row {number}: the column 'label' holds {reason}: mend the row, leave it out with "
        "--skip_bad_rows, or name another column with --label_column."
    )


@pytest.mark.parametrize(
    ("tags", "number", "reason"),
    [
        ([["O"], ["O", 1], ["B"]], 2, "list ['O', 1], where tag 2 is int 1, and most tags are strings"),
        ([["O"], [7], [1]], 1, "list ['O'], where tag 1 is str 'O', and most tags are integers"),
        ([[0.5], [0.5], ["O"]], 1, "list [0.5], where tag 1 is float 0.5"),
    ],
)
def test_tags_of_mixed_types(write, tags, number, reason):
    path = write("a.jsonl", [{"words": ["a"] * len(row), "tags": row} for row in tags])
    with pytest.raises(ValueError) as error:
        load_splits(Source(train_file=path), [WORDS, TAGS])
    assert str(error.value).startswith(f"--train_file {path}, row {number}: the column 'tags' holds {reason}: mend")


@pytest.fixture
def short_parts(monkeypatch):
    """The reader of JSON tells types by a thousand bytes, not by ten megabytes."""
    defaults = JsonConfig.__init__.__defaults__
    assert defaults.count(10 << 20) == 1
    monkeypatch.setattr(JsonConfig.__init__, "__defaults__", tuple(1000 if d == 10 << 20 else d for d in defaults))


@pytest.mark.parametrize("bad", [5, ["a"], {"a": 1}])
def test_a_value_of_another_type_far_into_a_file_of_json(write, short_parts, bad):
    rows = [{"text": f'"{number}"\n' if number % 2 else str(number), "label": "x"} for number in range(200)]
    path = write("a.jsonl", [*rows, {"text": bad, "label": "x"}, *rows])
    for columns in ([TEXT], [TEXT, LABEL]):
        with pytest.raises(ValueError, match=r"a\.jsonl, row 201: the column 'text' holds (int|list|dict) "):
            load_splits(Source(train_file=path), columns)
    with pytest.raises(ValueError, match=r"a\.jsonl, row 201: the text is (int|list|dict) "):
        load_stream(Source(train_file=path), [TEXT])
    good = write("good.jsonl", rows[:1])
    source = Source(train_file=path, validation_file=good, skip_bad_rows=True)
    texts = [row["text"] for row in rows] * 2
    assert load_splits(source, [TEXT])["train"]["text"][:] == texts
    assert [text for _, text in load_stream(source, [TEXT])[0].read()] == texts


def test_numbers_of_another_type_far_into_a_file_of_json(write, short_parts):
    path = write("a.jsonl", [{"text": "a", "label": 1}] * 100 + [{"text": "a", "label": 0.5}] * 100)
    splits = load_splits(Source(train_file=path, validation_file=path), [TEXT, LABEL])
    assert splits["train"]["label"][:] == [1.0] * 100 + [0.5] * 100


def test_bad_cells(write):
    for content, reason in [
        (
            "text,label\na,0\nb,1\nc,two\n",
            "row 3: the column 'label' holds str 'two', where most rows hold an integer",
        ),
        ("text,label\na,0\nb\n", "row 2: the column 'label' holds str '', not a label"),
        ("text,label\na,0.5\n,1\n", "row 2: the column 'text' holds str '', which has no text"),
    ]:
        path = write("a.csv", content)
        with pytest.raises(ValueError) as error:
            load_splits(Source(train_file=path), [TEXT, LABEL])
        assert str(error.value).startswith(f"--train_file {path}, {reason}: mend the row")


def test_bytes_in_parquet_that_are_not_utf8(write, log):
    texts = pa.array([b"a", b"caf\xe9", b"b"], pa.binary()).view(pa.string())
    path = write("a.parquet", pa.table({"text": texts, "label": [0, 1, 0]}))
    good = write("good.parquet", [{"text": "good", "label": 1}])
    for columns in ([TEXT], [TEXT, LABEL]):
        with pytest.raises(ValueError) as error:
            load_splits(Source(train_file=path, validation_file=good), columns)
        reason = f"--train_file {path}, row 2: the column 'text' holds the byte 0xe9, which is not UTF-8"
        assert str(error.value).startswith(f"{reason}: mend the row")
        splits = load_splits(Source(train_file=path, validation_file=good, skip_bad_rows=True), columns)
        assert splits["train"]["text"][:] == ["a", "b"]
        assert log.messages[-1] == f"--train_file {path}: 1 of 3 rows are bad and left out, such as {reason}."


def test_splits_that_do_not_agree(write):
    train = write("train.jsonl", [{"text": "a", "label": 1}])
    words = write("words.jsonl", [{"text": "b", "label": "one"}])
    with pytest.raises(ValueError) as error:
        load_splits(Source(train_file=train, test_file=words), [TEXT, LABEL])
    assert str(error.value) == (
        f"--test_file {words}, row 1: its label is a string, 'one', and in the training rows it is an integer: "
        "make them alike."
    )
    optional = Column("label", "label", (), required=False)
    text = write("text.jsonl", [{"text": "b"}])
    with pytest.raises(ValueError) as error:
        load_splits(Source(train_file=train, validation_file=text), [TEXT, optional])
    assert str(error.value) == (
        f"--validation_file {text} has no column for label, and the training rows have one: "
        "name it, or leave it out of both."
    )
    splits = load_splits(Source(train_file=text, validation_file=train), [TEXT, optional])
    assert splits["validation"].column_names == ["text"]


def test_numbers_are_of_the_type_that_they_have_in_training(write):
    whole, scores = write("whole.csv", "text,label\na,1\n"), write("scores.csv", "text,label\nb,0.5\n")
    written = write("written.csv", "text,label\nc,1.0\n")
    splits = load_splits(Source(train_file=scores, validation_file=whole), [TEXT, LABEL])
    assert [rows["label"][:] for rows in splits.values()] == [[0.5], [1.0]]
    assert {str(rows.features["label"]) for rows in splits.values()} == {"Value('float64')"}
    splits = load_splits(Source(train_file=whole, validation_file=written), [TEXT, LABEL])
    assert [rows["label"][:] for rows in splits.values()] == [[1], [1]]
    assert {str(rows.features["label"]) for rows in splits.values()} == {"Value('int64')"}
    with pytest.raises(ValueError) as error:
        load_splits(Source(train_file=whole, test_file=scores), [TEXT, LABEL])
    assert str(error.value) == (
        f"--test_file {scores}, row 1: its label is a number, 0.5, and in the training rows it is an integer: "
        "make them alike."
    )


def test_the_place_of_a_row(write):
    """Whatever has been left out before it, or lies in other files."""
    files = [
        write("a.jsonl", b'{"text": "a", "label": 1}\n{"text": null, "label": 1}\n{"text": "b", "label": 1}\n'),
        write("b.jsonl", b"{\n{\n"),
        write("c.jsonl", b'{\n{"text": "c", "label": 1}\n\n{\n{"text": "", "label": 1}\n{"text": "d", "label": 1}\n'),
    ]
    numbers = {"a": (files[0], 1), "b": (files[0], 3), "c": (files[2], 2), "d": (files[2], 5)}
    source = Source(train_file=files, test_file=files[::-1], skip_bad_rows=True, max_eval_samples=3)
    splits = load_splits(source, [TEXT, LABEL])
    assert {split: rows.column_names for split, rows in splits.items()} == {key: ["text", "label"] for key in splits}
    assert list(splits) == ["train", "validation", "test"] and len(splits["test"]) == 3
    for split, rows in splits.items():
        for row, text in enumerate(rows["text"]):
            path, number = numbers[text]
            assert splits.place(split, row) == f"--{'test' if split == 'test' else 'train'}_file {path}, row {number}"


def test_the_place_of_a_row_that_is_built_in():
    corpus = DatasetDict(train=Dataset.from_list([GOOD]), validation=Dataset.from_list([GOOD]))
    assert load_splits(Source(), [TEXT, LABEL], built_in=lambda: corpus).place("train", 0) == "train, row 1"


@pytest.mark.parametrize("option", ["validation_file", "test_file"])
def test_files_to_measure_on_do_not_make_the_built_in_corpus_ones_own(write, option):
    path = write("some.jsonl", [{"text": "test", "label": "y"}])
    with pytest.raises(ValueError) as error:
        load_splits(Source(**{option: path}), [TEXT, LABEL])
    assert str(error.value) == (
        f"--{option} {path} is given, and no rows to learn from: give --train_file or --dataset_name, too."
    )


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_files_in_which_a_column_is_of_another_type(write, ending):
    """What reads several files casts those after the first."""
    names = write(f"a.{ending}", [{"text": "a", "label": "pos"}, {"text": "b", "label": "neg"}])
    numbers = write(f"b.{ending}", [{"text": "c", "label": 1}, {"text": "d", "label": 0}])
    with pytest.raises(ValueError, match=f"in {names} label is string, and in {numbers} int64: make them alike"):
        load_splits(Source(train_file=[names, numbers]), [TEXT, LABEL])
    more = write(f"c.{ending}", [{"text": "e", "label": 1}])
    assert len(load_splits(Source(train_file=[numbers, more], validation_file=more), [TEXT, LABEL])["train"]) == 3


def test_quotes_in_a_table_with_tabs_swallow_no_row(write):
    rows = [f"text {number}\tx" for number in range(10)]
    rows[3], rows[6] = '"so he said\ty', 'it is" he said\ty'
    path = write("some.tsv", "text\tlabel\n" + "\n".join(rows) + "\n")
    with pytest.raises(ValueError, match="line 5: a cell begins with a quote and goes on for 4 lines with tabs"):
        load_splits(Source(train_file=path), [TEXT, LABEL])
    rows[3], rows[6] = '"so\nhe said"\ty', "it is he said\ty"
    path = write("other.tsv", "text\tlabel\n" + "\n".join(rows) + "\n")
    splits = load_splits(Source(train_file=path, validation_file=path), [TEXT, LABEL])
    assert len(splits["train"]) == 10 and splits["train"]["text"][3] == "so\nhe said"


def test_a_class_of_one_row_is_learned_whatever_is_held_out(write):
    for seed in range(30):
        rows = [{"text": f"{seed} common {number}", "label": "common"} for number in range(5)]
        rows += [{"text": f"{seed} rare {number}", "label": f"c{number}"} for number in range(5)]
        splits = load_splits(Source(train_file=write(f"{seed}.jsonl", rows)), [TEXT, LABEL])
        assert set(splits["validation"]["label"]) == {"common"}
        assert len(splits["train"]) + len(splits["validation"]) == 10


def test_conll_files_as_rows(write, tmp_path):
    lines = "a x\nb y\n\nc x\n"
    write("data/en-train.conll", lines)
    write("data/en-dev.iob2", "d y\n")
    splits = load_splits(Source(train_file=str(tmp_path / "data")), [WORDS, TAGS])
    assert splits["train"].to_dict() == {"words": [["a", "b"], ["c"]], "tags": [["x", "y"], ["x"]]}
    assert splits["validation"].to_dict() == {"words": [["d"]], "tags": [["y"]]}
    again = load_splits(Source(train_file=str(tmp_path / "data")), [WORDS, TAGS])
    assert again["train"]._fingerprint == splits["train"]._fingerprint
    path = write("data/en-train.conll", lines.replace("a", "A"))
    assert load_splits(Source(train_file=path, validation_file=path), [WORDS, TAGS])["train"][0]["words"] == ["A", "b"]


# --- What is held out ------------------------------------------------------------------------------------------------


def test_held_out_rows_follow_from_their_text_alone(write, log):
    texts = [f"row {number % 1500}" for number in range(2000)]  # 500 of them occur twice
    splits = load_text_splits(write("a.txt", "\n".join(texts)), sample_by="line")
    train, validation = splits["train"]["text"][:], splits["validation"]["text"][:]
    assert sorted([*train, *validation]) == sorted(texts)
    assert not set(train) & set(validation)
    assert 60 < len(validation) < 140
    assert log.messages[-1] == f"{len(validation)} of 2000 rows are held out for validation."

    other_order = load_text_splits(write("b.txt", "\n".join([*texts[::-1], "one more"])), sample_by="line")
    assert set(other_order["validation"]["text"]) - {"one more"} == set(validation)
    more = load_text_splits(write("a.txt", "\n".join(texts)), sample_by="line", validation_share=0.3)
    assert 500 < len(more["validation"]) < 700
    assert set(validation) < set(more["validation"]["text"])


def test_a_few_rows_still_give_both_splits(write):
    for number in range(8):
        splits = load_text_splits(write(f"{number}.txt", f"a {number}\nb {number}"), sample_by="line")
        assert len(splits["train"]) == len(splits["validation"]) == 1


def test_one_row_cannot_be_split(write):
    expected = (
        "The training text is one row, or one row repeated, so none can be held out for validation: "
        "give more text, or a --validation_file."
    )
    assert sentence(write("a.txt", "one")) == expected
    assert sentence(write("b.txt", "one\none\n"), sample_by="line") == expected


def test_a_long_document_is_cut_at_line_breaks(write, log):
    document = "".join(f"line {number} of a long document\n" for number in range(2000))
    splits = load_text_splits(write("a.txt", document))
    parts = rows_of(splits)
    assert all(part.endswith("\n") for part in parts)
    assert sorted("".join(parts).splitlines()) == sorted(document.splitlines())
    assert 0 < sum(map(len, splits["validation"]["text"])) < len(document) / 5
    assert re.fullmatch(
        r"Of so few texts \(1\) \d of \d\d blocks of about 2000 characters are held out for validation\.",
        log.messages[0],
    )


def test_documents_are_not_cut_with_a_validation_file(write):
    path = write("a.txt", "a line\n" * 1000)
    assert len(load_text_splits(path, path)["train"]) == 1


def test_validation_rows_seen_in_training_are_counted(write, log):
    train = write("train.txt", "a\nb\nc\n")
    validation = write("validation.txt", "c\nd\na\na\n")
    splits = load_text_splits(train, validation, sample_by="line")
    assert splits["validation"]["text"][:] == ["c", "d", "a", "a"]
    assert log.messages == [
        "3 of 4 validation rows are also training rows, word for word: the measurement flatters by as much."
    ]
