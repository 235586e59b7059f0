"""CoNLL and CoNLL-U: a token a line, a blank line after each sentence.

`datasets` reads them too, and splits words at every blank, fills in missing columns, and keeps the ranges of
CoNLL-U's multiword tokens: what is read here is checked.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import Features, List, Value

from .compression import open_bytes

# https://universaldependencies.org/format.html; FORM is called words here, and HEAD is left out, being no tag.
CONLLU_COLUMNS = {"words": 1, "lemma": 2, "upos": 3, "xpos": 4, "feats": 5, "deprel": 7}
CONLLU_FIELDS = 10


def features(path: Path, kind: str) -> Features:
    """The columns of a file.

    CoNLL: words, tags (the last column) and column_2, column_3 ... for those between. CoNLL-U: `CONLLU_COLUMNS`, and
    text, which is null where a sentence has no such comment.
    """
    if kind == "conllu":
        return Features({"text": Value("string")} | {name: List(Value("string")) for name in CONLLU_COLUMNS})
    for _, lines in sentences(path):
        cells = _tokens(lines)
        if cells:
            return Features({name: List(Value("string")) for name in _names(len(cells[0]))})
    return Features({"words": List(Value("string"))})


def rows(paths: list[Path], kind: str, version: Any = None) -> Iterator[dict[str, Any]]:
    """The sentences of files. Raises ValueError for a line with more or fewer columns than it should have."""
    for path in paths:
        fields = number_of_fields(path, kind)
        for number, lines in sentences(path):
            text = [line.decode("utf-8-sig") for line in lines]
            if found := wrong_line(text, kind, fields):
                raise ValueError(f"line {number + found[0]}: {found[1]}")
            row = _conllu_row(text) if kind == "conllu" else _conll_row(text)
            if row["words"]:  # a block of comments alone is no sentence
                yield row


def sentences(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """(number of the first line, lines) of each block between blank lines."""
    block: list[bytes] = []
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                block.append(line)
            elif block:
                yield number - len(block), block
                block = []
    if block:
        yield number - len(block) + 1, block


def number_of_fields(path: Path, kind: str) -> int:
    return CONLLU_FIELDS if kind == "conllu" else len(features(path, kind))


def wrong_line(lines: list[str], kind: str, fields: int) -> tuple[int, str] | None:
    """Index of the first of a sentence's lines with another number of columns than `fields`, and what is wrong."""
    for index, line in enumerate(lines):
        cells = _cells(line, kind)
        if cells is not None and len(cells) != fields:
            expected = "CoNLL-U has 10" if kind == "conllu" else f"the file's first line has {fields}"
            return index, f"the number of columns is {len(cells)}, and {expected}: mend the line."
    return None


def _cells(line: str, kind: str) -> list[str] | None:
    """The columns of a token's line; None for other lines."""
    if kind == "conllu":
        return None if line.startswith("#") else line.rstrip("\r\n").split("\t")
    line = line.rstrip(" \t\r\n")
    if line.startswith("-DOCSTART-"):
        return None
    # Between tabs a word may hold a blank, and between blanks one that does not break (10 000).
    return line.split("\t") if "\t" in line else [cell for cell in line.split(" ") if cell]


def _tokens(lines: Iterable[bytes]) -> list[list[str]]:
    cells = [_cells(line.decode("utf-8-sig", errors="replace"), "conll") for line in lines]
    return [row for row in cells if row is not None]


def _names(fields: int) -> list[str]:
    between = [f"column_{number}" for number in range(2, fields)]
    return ["words", *between, "tags"] if fields > 1 else ["words"]


def _conll_row(lines: list[str]) -> dict[str, Any]:
    cells = [row for line in lines if (row := _cells(line, "conll")) is not None]
    if not cells:
        return {"words": []}
    return {name: list(column) for name, column in zip(_names(len(cells[0])), zip(*cells, strict=True), strict=True)}


def _conllu_row(lines: list[str]) -> dict[str, Any]:
    text = next((line.partition("=")[2].strip() for line in lines if line.startswith("# text =")), None)
    cells = [row for line in lines if (row := _cells(line, "conllu")) is not None]
    words = [row for row in cells if row[0].isdigit()]  # 3-4 is a multiword token, 8.1 an empty node
    return {"text": text} | {name: [row[field] for row in words] for name, field in CONLLU_COLUMNS.items()}
