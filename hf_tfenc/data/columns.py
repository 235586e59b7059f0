"""From a source's columns to those that a task needs: which ones they are, and whether each row's values will do."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Value

from .values import BadValue, Kind, Reader, commonest_label_type, shown

logger = logging.getLogger(__name__)

TEXT_COLUMNS = ("text", "sentence", "content", "document", "body")  # the conventional names of a text
ROW_NUMBER = "number of the row"  # a column that no task asks for


@dataclass(frozen=True)
class Column:
    """One column that a task needs from its source.

    What the kinds hold: text, a string with more than white space in it; words, a list of strings that are not empty;
    tags, a list of strings, as many as the row has words; number, a finite float; label, one type in all rows: a
    string, an int, a bool, a float, or a list of strings or of ints. Class labels become their names.
    """

    name: str  # what it is called in the rows a task gets
    kind: Kind
    conventional: tuple[str, ...]  # names by convention, the first that is there
    given: str | None = None  # the user's own name for it
    option: str = ""  # which option that is, for messages
    required: bool = True  # an optional column that is not there is absent from the rows


class Origin(Protocol):
    """Rows somewhere, before it is known which of their columns are wanted."""

    @property
    def where(self) -> str: ...  # for messages: the option and its value

    @property
    def plain_text(self) -> bool: ...  # what a row is can be chosen

    @property
    def untyped(self) -> bool: ...  # all values are strings, numbers among them

    @property
    def damaged(self) -> int: ...  # rows that were left out already

    @property
    def example(self) -> str | None: ...  # one of them, and what is wrong with it

    def types(self) -> dict[str, str]: ...

    def load(self, columns: list[str]) -> Dataset: ...

    def numbers(self, rows: int) -> np.ndarray: ...  # of the rows that `load` returns

    def place(self, number: int) -> str: ...  # of the row with this number, for messages


class NoLabels(ValueError):
    """Not one row has a label."""


def no_rows(where: str) -> ValueError:
    return ValueError(f"{where}: there is no text in it, give a file that has some.")


def take(
    origin: Origin, columns: Sequence[Column], chosen: dict[str, str], skip_bad_rows: bool, numbered: bool = False
) -> Dataset:
    """The rows of `origin` with the columns a task needs, under the task's names and each of one type.

    Args:
        chosen: the source's column for each of the task's, from `choose`
        skip_bad_rows: count and leave out the rows that will not do; otherwise the first of them is a ValueError
        numbered: add the column `ROW_NUMBER`: where each row stands in its source, from 1
    """
    wanted = [column for column in columns if column.name in chosen]
    rows = origin.load(list(chosen.values()))
    if not len(rows):
        raise no_rows(origin.where)

    text_alone = [column.kind for column in wanted] == ["text"]
    if text_alone and _are_strings(rows, chosen[wanted[0].name]):  # told without reading them
        readers = {wanted[0].name: Reader(chosen[wanted[0].name], "text", "string")}
        bad: dict[int, _Bad] = {}
    else:
        readers = {column.name: _reader(origin, rows, column, chosen[column.name]) for column in wanted}
        bad = dict(_bad_rows(rows, list(readers.values()), empty_texts_are_bad=not text_alone))
    _report(origin, bad, len(rows), {chosen[column.name]: column.option for column in wanted}, skip_bad_rows)
    features = Features({name: reader.feature for name, reader in readers.items()})
    if numbered:
        rows = rows.add_column(ROW_NUMBER, origin.numbers(len(rows)))
        features[ROW_NUMBER] = Value("int64")
    if bad:
        rows = rows.select(np.setdiff1d(np.arange(len(rows)), list(bad)))

    rows = rows.rename_columns({old: new for new, old in chosen.items() if new != old})
    if text_alone:
        rows = _without_empty(origin.where, rows, wanted[0].name)
    if rows.features == features:
        return rows.select_columns(list(features))
    return rows.map(
        _convert,
        batched=True,
        fn_kwargs={"readers": readers},
        features=features,
        remove_columns=[name for name in rows.column_names if name != ROW_NUMBER],
        desc="Reading columns",
    )


# --- Which columns ---------------------------------------------------------------------------------------------------


def choose(where: str, types: dict[str, str], columns: Sequence[Column]) -> dict[str, str]:
    """The source's column for each of a task's: the one the user names, else the first of the conventional names.

    A text has no need of a conventional name where only one column is left that holds strings.
    """
    listed = ", ".join(f"{name} ({kind})" for name, kind in types.items())
    required = [column.name for column in columns if column.required]
    if 0 < len(types) < len(required):
        raise ValueError(
            f"{where} has no column but {listed}, and a row is {' and '.join(required)}: give a file with a column for "
            "each, or let its name end in what it is, such as .csv or .conll, for others are read as plain text."
        )
    if len(types) == 1 and (separators := [mark for mark in ";|\t" if mark in next(iter(types))]):
        raise ValueError(
            f"{where} has one column, {next(iter(types))!r}: its cells seem to be separated by {separators[0]!r}; write a "
            "csv with commas, or a tsv with tabs."
        )
    chosen = {column.name: column.given for column in columns if column.given is not None}
    for column in columns:
        if column.given is not None and column.given not in types:
            raise ValueError(f"{where} has no column {column.given!r}: give {column.option} one of {listed}.")
    twice = [name for name, count in Counter(chosen.values()).items() if count > 1]
    if twice:
        options = " and ".join(column.option for column in columns if column.given == twice[0])
        raise ValueError(f"{where}: {options} both name the column {twice[0]!r}: give each its own.")

    for column in columns:
        free = [name for name in (*column.conventional, column.name) if name in types and name not in chosen.values()]
        if column.given is None and free:
            chosen[column.name] = free[0]
    for column in columns:
        if column.name in chosen or not column.required:
            continue
        strings = [name for name, kind in types.items() if kind == "string" and name not in chosen.values()]
        if column.kind != "text" or len(strings) != 1:
            option = f", say it with {column.option}" if column.option else ""
            raise ValueError(f"{where}: which column holds the {column.name} is not plain{option}: {listed}.")
        chosen[column.name] = strings[0]

    return {column.name: chosen[column.name] for column in columns if column.name in chosen}


def log_guesses(where: str, columns: Sequence[Column], chosen: dict[str, str]) -> None:
    """Say in one line which columns of other names than the task's own were chosen, by convention or for lack of others."""
    guessed = [c for c in columns if c.given is None and chosen.get(c.name, c.name) != c.name]
    if not guessed:
        return
    pairs = ", ".join(
        f"{chosen[column.name]!r} for {column.name}"
        + " (the only one of strings)" * (chosen[column.name] not in column.conventional)
        for column in guessed
    )
    options = [column.option for column in guessed if column.option]
    hint = f"; {' and '.join(options)} name{'s another' if len(options) == 1 else ' others'}" if options else ""
    by_convention = " by convention" * all(chosen[column.name] in column.conventional for column in guessed)
    logger.info("%s: columns%s are %s%s.", where, by_convention, pairs, hint)


# --- What each row holds ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bad:
    """What is wrong with a row, and in which column."""

    reason: str
    column: str | None = None


def _reader(origin: Origin, rows: Dataset, column: Column, source: str) -> Reader:
    feature = rows.features[source]
    feature = getattr(feature, "feature", feature)  # of a list's elements
    names = tuple(feature.names) if isinstance(feature, ClassLabel) else None
    types = {"text": "string", "words": "list string", "tags": "list string", "number": "float64"}
    reader = Reader(source, column.kind, types.get(column.kind, "string"), names, origin.untyped)
    if column.kind not in ("label", "tags"):
        return reader
    values = (value for batch in _decodable(rows).iter(batch_size=1000) for value in batch[source])
    if column.kind == "tags":
        if isinstance(feature, Value | ClassLabel):
            return reader
        tags = (tag for value in values if isinstance(value, list) for tag in value)
        return replace(reader, tag_type=commonest_label_type(tags, reader))
    label_type = commonest_label_type(values, reader)
    if label_type is None:
        other = f": name another with {column.option}" if column.option else ""
        raise NoLabels(f"{origin.where}: no row has a label in the column {source!r}{other}.")
    return replace(reader, type=label_type)


def undecodable(rows: Dataset) -> dict[int, _Bad]:
    """Rows with strings whose bytes are no UTF-8, which a parquet file may hold unnoticed."""
    found: dict[int, _Bad] = {}
    for column in rows.column_names:
        values = rows.data.column(column)
        if _is_valid(values):
            continue
        for row, value in enumerate(values):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                byte = f"the byte 0x{error.object[error.start]:02x}"
                found.setdefault(row, _Bad(f"the column {column!r} holds {byte}, which is not UTF-8", column))
    return found


def _decodable(rows: Dataset) -> Dataset:
    left_out = list(undecodable(rows))
    return rows.select(np.setdiff1d(np.arange(len(rows)), left_out)) if left_out else rows


def _is_valid(values: pa.ChunkedArray) -> bool:
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _bad_rows(rows: Dataset, readers: list[Reader], empty_texts_are_bad: bool) -> Iterator[tuple[int, _Bad]]:
    """(index, what is wrong) of each row that holds a value that will not do."""
    left_out = undecodable(rows)
    yield from left_out.items()
    numbers = (row for row in range(len(rows)) if row not in left_out)
    for batch in _decodable(rows).iter(batch_size=1000):
        for values in zip(*(batch[reader.column] for reader in readers), strict=True):
            row = next(numbers)
            if bad := _bad_row(values, readers, empty_texts_are_bad):
                yield row, bad


def _bad_row(values: tuple[Any, ...], readers: list[Reader], empty_texts_are_bad: bool) -> _Bad | None:
    lengths = {}
    for reader, value in zip(readers, values, strict=True):
        if reader.kind == "text" and not empty_texts_are_bad and isinstance(value, str):
            continue
        try:
            found = reader(value)
        except BadValue as error:
            return _Bad(f"the column {reader.column!r} holds {shown(value)}, {error}", reader.column)
        if reader.kind in ("words", "tags"):
            lengths[reader.column] = len(found)
    if len(set(lengths.values())) > 1:
        counts = " and ".join(f"{count} in {column!r}" for column, count in lengths.items())
        return _Bad(f"its lists have unequal lengths, {counts}")
    return None


def _convert(batch: dict[str, list], readers: dict[str, Reader]) -> dict[str, list]:
    return {name: [reader(value) for value in batch[name]] for name, reader in readers.items()}


def _report(
    origin: Origin, bad: dict[int, _Bad], number_of_rows: int, options: dict[str, str], skip_bad_rows: bool
) -> None:
    """One sentence with the first bad row: an error, or with `skip_bad_rows` a warning."""
    if not bad and not origin.damaged:
        return
    if not origin.damaged:
        first = min(bad)
        example = f"{origin.place(origin.numbers(number_of_rows)[first])}: {bad[first].reason}"
        if not skip_bad_rows:
            option = options.get(bad[first].column or "")
            other = f", or name another column with {option}" if option else ""
            raise ValueError(f"{example}: mend the row, leave it out with --skip_bad_rows{other}.")
    else:
        example = str(origin.example).rstrip(".")
    if len(bad) == number_of_rows:
        raise ValueError(f"{origin.where}: no row is left without the bad ones, such as {example}.")
    logger.warning(
        "%s: %d of %d rows are bad and left out, such as %s.",
        origin.where,
        len(bad) + origin.damaged,
        number_of_rows + origin.damaged,
        example,
    )


# --- Text alone ------------------------------------------------------------------------------------------------------


def _are_strings(rows: Dataset, column: str) -> bool:
    values = rows.data.column(column)
    strings = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    return strings and values.null_count == 0 and _is_valid(values)


def _without_empty(where: str, rows: Dataset, column: str) -> Dataset:
    filled = rows.filter(_has_text, input_columns=column, batched=True)
    if not len(filled):
        raise no_rows(where)
    if empty := len(rows) - len(filled):
        logger.info("%s: %d of %d rows are empty and left out.", where, empty, len(rows))
    return filled


def _has_text(texts: list[str]) -> list[bool]:
    return [bool(text.strip()) for text in texts]
