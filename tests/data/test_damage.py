"""Rows that no reader can read: said with file and line, or left out."""

import bz2
import gzip
import lzma
from dataclasses import replace
from pathlib import Path

import pytest

from hf_tfenc.data.damage import damages, undamaged
from hf_tfenc.data.files import kind_of
from hf_tfenc.data.sources import Column, Source, load_split, load_splits, load_stream

pytestmark = pytest.mark.usefixtures("cache", "offline")

TEXT = Column("text", "text", ("text",), option="--text_column")
LABEL = Column("label", "label", ("label",), option="--label_column")
WORDS, TAGS = Column("words", "words", ()), Column("tags", "tags", ("upos",), option="--tags_column")

GOOD_CONLLU = "1\tDogs\tdog\tNOUN\tNNS\t_\t0\troot\t_\t_\n\n"

CASES = [
    (
        "a.jsonl",
        b'{"text": "a", "label": 1}\n{"text": "b", "label":\n{"text": "caf\xe9", "label": 1}\n5\n'
        b'{"text": "\\ud800", "label": 1}\n\n{"text": "c", "label": 0}\n',
        [TEXT, LABEL],
        [
            "line 2, character 23: this is not JSON (Expecting value): mend the line.",
            "line 3: the byte 0xe9 is not UTF-8: convert the file to UTF-8.",
            'line 4: this is no JSON object, as {"text": "..."} would be: mend the line.',
            "line 5: \\ud800 is half of a surrogate pair, which is no character: take it out.",
        ],
        {"text": ["a", "c"], "label": [1, 0]},
    ),
    (
        "a.csv",
        b'text,label\n"a\nof two lines",1\nHello, world,2\ncaf\xe9,1\nb,0\n',
        [TEXT, LABEL],
        [
            "line 4: the number of cells is 3, and the header has 2: mend it.",
            "line 5: the byte 0xe9 is not UTF-8: convert the file to UTF-8.",
        ],
        {"text": ["a\nof two lines", "b"], "label": [1, 0]},
    ),
    (
        "a.tsv",
        b"text\tlabel\na, b\tx\na\tb\tc\nd\ty\n",
        [TEXT, LABEL],
        ["line 3: the number of cells is 3, and the header has 2: mend it."],
        {"text": ["a, b", "d"], "label": ["x", "y"]},
    ),
    (
        "a.txt",
        b"one\ncaf\xe9\ntwo\n",
        [TEXT],
        ["line 2: the byte 0xe9 is not UTF-8: convert the file to UTF-8."],
        {"text": ["one", "two"]},
    ),
    (
        "a.conll",
        b"EU B-ORG\nsays O\n\nPeter\nBlackburn I-PER\n\ncaf\xe9 O\n\nyes O",
        [WORDS, TAGS],
        [
            "line 4: the number of columns is 1, and the file's first line has 2: mend the line.",
            "line 7: the byte 0xe9 is not UTF-8: convert the file to UTF-8.",
        ],
        {"words": [["EU", "says"], ["yes"]], "tags": [["B-ORG", "O"], ["O"]]},
    ),
    (
        "a.conllu",
        (GOOD_CONLLU + "# text = a\n1\ta\n\n" + GOOD_CONLLU.replace("Dogs", "Cats")).encode(),
        [WORDS, TAGS],
        ["line 4: the number of columns is 2, and CoNLL-U has 10: mend the line."],
        {"words": [["Dogs"], ["Cats"]], "tags": [["NOUN"], ["NOUN"]]},
    ),
]


def test_lines_may_end_with_a_carriage_return(write):
    path = write("a.csv", b"text,label\ra,1\rb,2\rc,3,4\rd,2\r")
    splits = load_splits(Source(train_file=path, validation_file=path, skip_bad_rows=True), [TEXT, LABEL])
    assert splits["train"].to_dict() == {"text": ["a", "b", "d"], "label": [1, 2, 2]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"text": "a"}\n\n{"text":\n{"text": "caf\xe9"}\n{"text": null}\n{"text": "b"}\n'),
        ("a.csv", b'text,n\na,1\ncaf\xe9,2\nHello, world,3\n"b",4\n'),
        ("a.tsv", b"n\ttext\n1\ta\n2\tcaf\xe9\n3\tb\n"),
        ("a.txt", b"a\ncaf\xe9\n\nb\n"),
        ("a.csv", 'n,text\n1,a\n2,"b\u2028of\x0ctwo\nlines"\ncaf'.encode() + b"\xe9,c\n"),
    ],
)
def test_a_stream_leaves_them_out_too(write, name, content, caplog):
    path = write(name, content)
    source = Source(train_file=path, validation_file=write("v.txt", "held out\n"), skip_bad_rows=True, **by_line(name))
    stream, _ = load_stream(source, [TEXT])
    first, second = (text for _, text in stream.read())
    assert first == "a" and second in ("b", "b\u2028of\x0ctwo\nlines")
    assert "rows of the stream are bad and left out" in caplog.text
    with pytest.raises(ValueError, match=r"not UTF-8|not JSON"):
        list(load_stream(replace(source, skip_bad_rows=False), [TEXT])[0].read())


@pytest.mark.parametrize(("name", "content", "columns", "reasons", "left"), CASES, ids=[case[0] for case in CASES])
def test_damaged_rows(write, log, name, content, columns, reasons, left):
    path = write(name, content)
    source = {"train_file": path, "validation_file": write(f"good/{name}", undamaged_bytes(path)), **by_line(name)}
    with pytest.raises(ValueError) as error:
        load_splits(Source(**source), columns)
    # Some readers let bytes pass that others do not, so that the first reason is one of ours, but not always the first.
    assert str(error.value) in [f"--train_file {path}, {reason}" for reason in reasons]

    splits = load_splits(Source(**source, skip_bad_rows=True), columns)
    assert splits["train"].to_dict() == splits["validation"].to_dict() == left
    rows = len(next(iter(left.values())))
    said = [message for message in log.messages if "left out" in message]
    assert said == [
        f"--train_file {path}: {len(reasons)} of {rows + len(reasons)} rows are bad and left out, "
        f"such as --train_file {path}, {reasons[0].rstrip('.')}."
    ]


@pytest.mark.parametrize(("name", "content", "columns", "reasons", "left"), CASES, ids=[case[0] for case in CASES])
def test_rows_keep_their_numbers(write, name, content, columns, reasons, left):
    """In each case the damaged rows lie between the two that are left."""
    files = [write(f"{copy}/{name}", content) for copy in ("one", "two")]
    first, last = 1, len(reasons) + 2
    for number, expected in ((1, [first, last]), (2, [first, last, last + first, last + last])):
        splits = load_split(Source(test_file=files[:number], skip_bad_rows=True, **by_line(name)), columns)
        assert splits.numbers["test"].tolist() == expected


def test_numbers_of_rows_beside_blank_lines_and_comments(write):
    numbered = {
        "a.csv": b"text,label\n\na,1\n\xff,1\n\nb,1\n",
        "a.conllu": ("# newdoc\n\n" + GOOD_CONLLU + "1\ta\n\n" + GOOD_CONLLU).encode(),
        "a.conll": b"-DOCSTART- O\n\na O\n\nb\n\nc O\n",
        "a.txt": b"a\n\n\xff\nb\n",
    }
    for name, content in numbered.items():
        columns = [TEXT] if name == "a.txt" else [TEXT, LABEL] if name == "a.csv" else [WORDS, TAGS]
        splits = load_split(Source(test_file=write(name, content), skip_bad_rows=True, **by_line(name)), columns)
        assert splits.numbers["test"].tolist() == ([1, 4] if name == "a.txt" else [1, 3]), name


def test_a_long_text_in_parts_is_numbered_by_the_part(write, monkeypatch):
    monkeypatch.setattr("hf_tfenc.data.files.LONG_DOCUMENT", 100)
    monkeypatch.setattr("hf_tfenc.data.files.PART_CHARACTERS", 50)
    files = [write("long.txt", "some words\n" * 20), write("damaged.txt", b"\xff")]
    splits = load_split(Source(test_file=files, skip_bad_rows=True), [TEXT])
    assert splits.numbers["test"].tolist() == list(range(1, len(splits["test"]) + 1))
    assert len(splits["test"]) > 2


def by_line(name):
    """A row of plain text is a line."""
    return {"sample_by": "line"} if name.endswith(".txt") else {}


def undamaged_bytes(path):
    return b"".join(undamaged(Path(path), kind_of(Path(path)), "line"))


@pytest.mark.parametrize(
    ("sample_by", "reason", "left"),
    [
        ("paragraph", "line 5", b"a\nb\n\n\nf\n"),
        ("document", "line 5", b""),
    ],
)
def test_damaged_text_by_the_row(tmp_path, sample_by, reason, left):
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\nb\n\nc\nd\xff\n\n\nf\n")
    (found,) = damages(path, "text", sample_by)
    assert found == f"{reason}: the byte 0xff is not UTF-8: convert the file to UTF-8."
    assert b"".join(undamaged(path, "text", sample_by)) == left


def test_a_file_of_damaged_rows_alone(write):
    path = write("a.jsonl", b"{\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1, character 2: this is not JSON .* No row is left"):
        load_splits(Source(train_file=path, skip_bad_rows=True), [TEXT])


def test_a_long_cell_is_no_damage(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f'text\n"{"long " * 100_000}"\n')
    assert list(damages(path, "csv", "document")) == []


def test_a_mended_file_is_read_anew(write):
    path = write("a.jsonl", b'{"text": "a"}\n{"text": "b"}\n{\n')
    source = Source(train_file=path, validation_file=path, skip_bad_rows=True)
    assert load_splits(source, [TEXT])["train"]["text"][:] == ["a", "b"]
    write("a.jsonl", b'{"text": "c"}\n{"text": "d"}\n{"text"\n')
    assert load_splits(source, [TEXT])["train"]["text"][:] == ["c", "d"]


def test_damaged_and_bad_rows_of_several_files(write, log):
    good = write("a.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": 1}])
    damaged = write("b.jsonl", b'{"text": "c", "label": 1}\n{\n{"text": null, "label": 1}\n')
    ruined = write("c.jsonl", b"{\n{\n")
    source = Source(train_file=[good, damaged, ruined], validation_file=good, skip_bad_rows=True)
    assert load_splits(source, [TEXT, LABEL])["train"]["text"][:] == ["a", "b", "c"]
    assert log.messages[0].startswith(
        f"--train_file {good} and 1 more: 4 of 7 rows are bad and left out, such as --train_file {damaged}, line 2, "
    )


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_damaged_rows_of_compressed_files(write, suffix, compress):
    for name, content, columns, reasons, left in CASES:
        path = write(f"{name}.{suffix}", compress(content))
        good = write(f"good/{name}.{suffix}", compress(undamaged_bytes(path)))
        source = {"train_file": path, "validation_file": good, **by_line(name)}
        with pytest.raises(ValueError) as error:
            load_splits(Source(**source), columns)
        assert str(error.value) in [f"--train_file {path}, {reason}" for reason in reasons]
        assert load_splits(Source(**source, skip_bad_rows=True), columns)["train"].to_dict() == left


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
@pytest.mark.parametrize("skip_bad_rows", [False, True])
def test_a_compressed_file_that_is_broken(write, suffix, compress, skip_bad_rows):
    for name, content, columns, *_ in CASES:
        whole = compress(undamaged_bytes(write(name, content)))
        for broken in (whole[: len(whole) // 2], b"something else"):
            path = write(f"{name}.{suffix}", broken)
            with pytest.raises(ValueError) as error:
                load_splits(Source(train_file=path, skip_bad_rows=skip_bad_rows, **by_line(name)), columns)
            assert str(error.value).startswith(f"--train_file {path} cannot be read as ")


def test_a_compression_that_python_cannot_undo(write):
    path = write("a.conll.zst", b"a O")
    with pytest.raises(
        ValueError, match=r"a\.conll\.zst cannot be read as conll \(\.zst files of this kind are not read"
    ):
        load_splits(Source(train_file=path), [WORDS, TAGS])
