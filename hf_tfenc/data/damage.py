"""Rows that no reader can read: bytes that are not UTF-8, lines that are not JSON, records with too many cells."""

import csv
import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from . import conll
from .compression import is_openable, open_bytes, uncompressed_name

Piece = tuple[bytes, str | None]  # the bytes of a row, and what is wrong with it
JSON_LINES = (".jsonl", ".ndjson")
NO_TOKEN = {"conll": b"-DOCSTART-", "conllu": b"#"}  # begins a line beside those of tokens


def damages(path: Path, kind: str, sample_by: str) -> Iterator[str]:
    """What is wrong with each damaged row of a file, in a sentence that begins with the line: "line 3: ..."."""
    return (reason for _, reason in _pieces(path, kind, sample_by) if reason)


def are_undamaged(path: Path, kind: str, sample_by: str) -> Iterator[bool]:
    """Of each row of a file whether it is none of those."""
    header = kind in ("csv", "tsv")
    for place, (piece, reason) in enumerate(_pieces(path, kind, sample_by)):
        if not (header and place == 0) and (reason or _is_row(piece, kind, sample_by)):
            yield not reason


def rows_of(path: Path, kind: str, sample_by: str) -> Iterator[dict[str, Any] | None] | None:
    """The rows of a file, cells as strings, None where one is damaged; no iterator where readers need the whole file."""
    json_lines = kind == "json" and uncompressed_name(path).suffix.lower() in JSON_LINES
    if not is_openable(path) or not (json_lines or kind in ("csv", "tsv") or (kind == "text" and sample_by == "line")):
        return None
    return _rows_of(path, kind, sample_by)


def _rows_of(path: Path, kind: str, sample_by: str) -> Iterator[dict[str, Any] | None]:
    names: list[str] = []
    for piece, reason in _pieces(path, kind, sample_by):
        if reason:
            yield None
        elif kind == "text":
            yield {"text": piece.decode("utf-8-sig").rstrip("\r\n")}
        elif kind == "json":
            if piece.strip():
                yield json.loads(piece.decode("utf-8-sig"))
        else:
            lines = StringIO(piece.decode("utf-8-sig"), newline="")  # which knows no line ends but those of a table
            cells = next(csv.reader(lines, delimiter="\t" if kind == "tsv" else ","), [])
            if cells and names:
                yield dict(zip(names, cells, strict=False))
            names = names or cells


def _is_row(piece: bytes, kind: str, sample_by: str) -> bool:
    if kind == "text" and sample_by == "line":
        return True  # a blank line is one too
    lines = (line for line in piece.splitlines() if line.strip())
    return any(kind not in NO_TOKEN or not line.startswith(NO_TOKEN[kind]) for line in lines)


def undamaged(path: Path, kind: str, sample_by: str) -> Iterator[bytes]:
    """The bytes of the file without those rows."""
    return (piece for piece, reason in _pieces(path, kind, sample_by) if not reason)


def _pieces(path: Path, kind: str, sample_by: str) -> Iterator[Piece]:
    if not is_openable(path) or kind == "parquet":
        return iter(())
    if kind in ("csv", "tsv"):
        return _records(path, "\t" if kind == "tsv" else ",")
    if kind in ("conll", "conllu"):
        return _sentences(path, kind)
    return _lines(path, kind, sample_by)


def _not_utf8(line: bytes, number: int) -> str | None:
    try:
        line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # A row of plain text may have several lines.
        number += line.count(b"\n", 0, error.start)
        return f"line {number}: the byte 0x{line[error.start]:02x} is not UTF-8: convert the file to UTF-8."
    return None


def _not_json(line: bytes, number: int) -> str | None:
    try:
        text = line.decode("utf-8-sig").strip()
        if not text:
            return None
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("ascii", "backslashreplace").decode()
        return f"line {number}: {half} is half of a surrogate pair, which is no character: take it out."
    except json.JSONDecodeError as error:
        return f"line {number}, character {error.colno}: this is not JSON ({error.msg}): mend the line."
    if not isinstance(value, dict):
        return f'line {number}: this is no JSON object, as {{"text": "..."}} would be: mend the line.'
    return None


def _lines(path: Path, kind: str, sample_by: str) -> Iterator[Piece]:
    by_line = kind != "text" or sample_by == "line"
    json_lines = uncompressed_name(path).suffix.lower() in JSON_LINES
    row: list[bytes] = []
    with open_bytes(path) as lines:
        for number, line in enumerate(lines, 1):
            if by_line:
                yield line, _not_utf8(line, number) or (_not_json(line, number) if json_lines else None)
                continue
            row.append(line)
            if sample_by == "paragraph" and not line.strip():
                yield b"".join(row), _not_utf8(b"".join(row), number - len(row) + 1)
                row = []
    if row:
        yield b"".join(row), _not_utf8(b"".join(row), number - len(row) + 1)


def _records(path: Path, separator: str) -> Iterator[Piece]:
    csv.field_size_limit(2**31 - 1)  # the default would take a long text for a mistake
    with open_bytes(path) as file:
        consumed: list[bytes] = []

        def decoded() -> Iterator[str]:
            for line in file:
                for part in line.splitlines(keepends=True):  # a line may end with a carriage return alone
                    consumed.append(part)
                    yield part.decode("utf-8", errors="surrogateescape")

        header: list[str] = []
        number = 1
        for record in csv.reader(decoded(), delimiter=separator):
            header = header or record
            cells = len(header)
            piece = b"".join(consumed)
            reason = _not_utf8(piece, number)
            if not reason and len(record) > cells:
                mend = "write it with commas" if cells == 1 and separator == "," and ";" in header[0] else "mend it"
                reason = f"line {number}: the number of cells is {len(record)}, and the header has {cells}: {mend}."
            # Tables with tabs know quotes less often than those with commas.
            if not reason and separator == "\t" and len(consumed) > 1 and any("\t" in cell for cell in record):
                reason = (
                    f"line {number}: a cell begins with a quote and goes on for {len(consumed)} lines with tabs in them: "
                    'write a quote that belongs to the text twice, in a cell in quotes ("""so"" it is").'
                )
            yield piece, reason
            number += len(consumed)
            consumed.clear()


def _sentences(path: Path, kind: str) -> Iterator[Piece]:
    fields = 0
    for number, lines in conll.sentences(path):
        piece = b"".join(lines) + b"\n"
        reason = _not_utf8(piece, number)
        if not reason:
            fields = fields or conll.number_of_fields(path, kind)
            if found := conll.wrong_line([line.decode("utf-8-sig") for line in lines], kind, fields):
                reason = f"line {number + found[0]}: {found[1]}"
        yield piece, reason
