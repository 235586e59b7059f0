"""Where rows come from: the built-in corpus, or files on this machine. Nothing here touches the network."""

import glob
import hashlib
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Features, Value
from pandas.api.types import is_string_dtype

from .stdlib_corpus import stdlib_documents

logger = logging.getLogger(__name__)

FileOption = str | Path | list[str] | list[Path]
SampleBy = Literal["document", "paragraph", "line"]

KINDS = {
    ".txt": "text",
    ".text": "text",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".lz4"}  # `datasets` opens these by itself
TEXT_COLUMNS = ("text", "sentence", "content", "document", "body")  # by convention, the first that is there
SPLIT_NAMES = re.compile(r"(train|training|valid|validation|val|dev|test|eval)(?![a-z])", re.IGNORECASE)

FEWEST_ROWS = 100  # below this, 5 % are too few rows to measure on
BLOCK_CHARACTERS = 2000
# As much as fits, up to a line break; in a line longer than that, up to white space; in a word longer than that, all.
BLOCK = re.compile(
    rf"(?s:.{{0,{BLOCK_CHARACTERS - 1}}}(?:\n|\Z)|.{{0,{BLOCK_CHARACTERS - 1}}}\s|.{{{BLOCK_CHARACTERS}}})"
)


@dataclass(frozen=True)
class Column:
    """A column that a task asks for.

    Args:
        name: what the rows that a task gets call it.
        kind: what its values are.
        conventional: names by convention, the first that is there.
        given: the user's own, where an option names it.
        option: that option, for messages.
        required: whether there must be one.
    """

    name: str
    kind: Literal["text", "label", "words", "tags", "number"]
    conventional: tuple[str, ...]
    given: str | None = None
    option: str = ""
    required: bool = True


@dataclass(frozen=True)
class Source:
    """Where the rows of a run come from."""

    train_file: FileOption | None = None
    validation_file: FileOption | None = None
    test_file: FileOption | None = None
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    dataset_revision: str | None = None
    sample_by: SampleBy = "document"
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    validation_share: float = 0.05
    skip_bad_rows: bool = False


def load_splits(source: Source, columns: list[Column], built_in: Callable[[], DatasetDict]) -> DatasetDict:
    """Splits `train`, `validation` and maybe `test`, with the columns that a task asks for."""
    if len(columns) == 1 and columns[0].name == "text" and source.test_file is None:
        return load_text_splits(
            source.train_file,
            source.validation_file,
            columns[0].given,
            source.sample_by,
            source.max_train_samples,
            source.max_eval_samples,
            source.validation_share,
        )
    if source.train_file is None:
        splits = built_in()
    else:
        files = {"train": source.train_file, "validation": source.validation_file, "test": source.test_file}
        splits = DatasetDict({split: _read_table(split, file) for split, file in files.items() if file is not None})
        if "validation" not in splits:
            parts = splits["train"].train_test_split(source.validation_share, seed=0)
            splits["train"], splits["validation"] = parts["train"], parts["test"]
    for split, limit in (("train", source.max_train_samples), ("validation", source.max_eval_samples)):
        if limit is not None and limit < len(splits[split]):
            splits[split] = splits[split].select(range(limit))
    return DatasetDict({split: _named_columns(rows, columns) for split, rows in splits.items()})


def _read_table(split: str, file: FileOption) -> Dataset:
    files, kind = _find_files(f"--{split}_file", file)
    read = {"csv": Dataset.from_csv, "json": Dataset.from_json, "parquet": Dataset.from_parquet}
    if kind not in read:
        raise ValueError(f"--{split}_file {_named(files)} is {kind}: this task reads json(l), csv and parquet.")
    return read[kind](_escaped(files))


def _named_columns(rows: Dataset, columns: list[Column]) -> Dataset:
    chosen = {}
    for column in columns:
        there = [name for name in (column.given, *column.conventional) if name in rows.column_names]
        if there and (column.given is None or there[0] == column.given):
            chosen[there[0]] = column.name
        elif column.required or column.given is not None:
            raise ValueError(f"There is no column {column.given or column.name}: name one with {column.option}.")
    return rows.select_columns(list(chosen)).rename_columns({k: v for k, v in chosen.items() if k != v})


def load_text_splits(
    train_file: FileOption | None,
    validation_file: FileOption | None = None,
    text_column: str | None = None,
    sample_by: SampleBy = "document",
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    validation_share: float = 0.05,
) -> DatasetDict:
    """Splits `train` and `validation`, each with the one column `text`: strings, none of them empty.

    A file option is a path, a folder, a pattern such as "data/*.jsonl", or a list of these; without a `train_file`,
    the built-in corpus is read. `sample_by` says what a row of a plain text file is. Without a `validation_file`,
    about `validation_share` of the rows are held out: by a hash of their text, so that neither their order nor a
    repeated row matters, and a text held out once stays so when rows are added. The samples options keep the first rows.
    Raises ValueError or OSError with one sentence that names the option, the file and, where it is one, the row.
    """
    if sample_by not in get_args(SampleBy):
        raise ValueError(f"sample_by is {sample_by!r}: it must be one of {', '.join(get_args(SampleBy))}.")
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share is {validation_share}: it must lie between 0 and 1.")
    for option, limit in (("max_train_samples", max_train_samples), ("max_eval_samples", max_eval_samples)):
        if limit is not None and limit < 1:
            raise ValueError(f"{option} is {limit}: it must be at least 1.")

    if train_file is None:
        splits = stdlib_documents().select_columns("text")
    elif validation_file is None:
        splits = _hold_out(_read_rows("--train_file", train_file, text_column, sample_by), validation_share)
    else:
        splits = DatasetDict({"train": _read_rows("--train_file", train_file, text_column, sample_by)})
    if validation_file is not None:
        splits["validation"] = _read_rows("--validation_file", validation_file, text_column, sample_by)
        _log_shared_rows(splits)

    for split, limit in (("train", max_train_samples), ("validation", max_eval_samples)):
        if limit is not None and limit < len(splits[split]):
            splits[split] = splits[split].select(range(limit))
    return splits


# --- Which files, and of what kind -----------------------------------------------------------------------------------


def _find_files(option: str, value: FileOption) -> tuple[list[Path], str]:
    """The files that `value` names, in a fixed order, and their one kind."""
    files: list[Path] = []
    for name in value if isinstance(value, list) else [value]:
        path = Path(name).expanduser()
        if path.is_dir():
            files += _files_in_folder(option, path)
        elif path.is_file():
            files.append(path)
        elif glob.has_magic(str(name)):
            found = [match for match in map(Path, glob.glob(str(path), recursive=True)) if match.is_file()]
            if not found:
                raise FileNotFoundError(f"{option} {name} matches no file: check the pattern.")
            files += sorted(found)
        else:
            raise FileNotFoundError(f"{option} {name}: there is no such file or folder, check the path.")
    if not files:
        raise ValueError(f"{option} names no file: give at least one, or leave the option out.")
    # A file named outright is plain text unless its name says otherwise (wiki.train.tokens, notes.md).
    return files, _one_kind(f"{option}:", {path: _kind(path) or "text" for path in files})


def _files_in_folder(option: str, folder: Path) -> list[Path]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    visible = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    kinds = {path: kind for path in visible if (kind := _kind(path))}
    if not kinds:
        raise ValueError(f"{option} {folder}: the folder holds no file that ends in {', '.join(KINDS)}.")
    if others := [path.name for path in visible if path not in kinds]:
        logger.info("In %s, %d files of other kinds are left out (%s).", folder, len(others), _listed(others))
    _one_kind(f"{option} {folder}:", kinds)
    splits = {match[1].lower(): path.name for path in kinds if (match := SPLIT_NAMES.match(path.name))}
    if len(splits) > 1:
        raise ValueError(
            f"{option} {folder}: its files belong to different splits ({_listed(list(splits.values()))}): "
            f"give those of one split alone, by a pattern such as '{folder}/{next(iter(splits))}*'."
        )
    return list(kinds)


def _kind(path: Path) -> str | None:
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return KINDS.get(name.suffix.lower())


def _one_kind(where: str, kinds: dict[Path, str]) -> str:
    examples = {kind: path for path, kind in kinds.items()}
    if len(examples) > 1:
        mixed = ", ".join(f"{path.name} is {kind}" for kind, path in examples.items())
        raise ValueError(f"{where} files of different kinds cannot be mixed ({mixed}): give those of one kind.")
    return next(iter(examples))


# --- From files to one column of strings -----------------------------------------------------------------------------


def _read_rows(option: str, value: FileOption, text_column: str | None, sample_by: SampleBy) -> Dataset:
    """The rows of the files that `value` names: the column `text`, empty rows left out."""
    files, kind = _find_files(option, value)
    where = f"{option} {_named(files)}"
    filled = [path for path in files if path.stat().st_size]  # a file without a byte is an error to most readers
    if not filled:
        raise _no_text(where)
    try:
        rows, with_text = _read(option, filled, kind, text_column, sample_by)
    except ValueError:
        for path in filled if len(filled) > 1 else []:
            _read(option, [path], kind, text_column, sample_by)  # says which file it was, and which row of it
        raise

    if not len(with_text):
        raise _no_text(where)
    (column,) = rows.column_names
    if empty := len(rows) - len(with_text):
        logger.info("%s: %d of %d rows are empty and left out.", where, empty, len(rows))
    if column == "text":
        return with_text
    if text_column is None:
        logger.info("%s: the text is taken from the column %r; --text_column names another.", where, column)
    return with_text.rename_column(column, "text")


def _read(
    option: str, files: list[Path], kind: str, text_column: str | None, sample_by: SampleBy
) -> tuple[Dataset, Dataset]:
    """The column of text, under its own name: of all rows, and of those that have text."""
    where = f"{option} {_named(files)}"
    with _reading(where, files, kind):
        types = _column_types(files, kind)
    column = _choose_column(where, types, text_column)
    with _reading(where, files, kind):
        rows = _load(files, kind, types, column, sample_by).select_columns(column)
    _check_strings(where, rows, column)
    with _reading(where, files, kind):  # bytes that are not UTF-8 may pass the reader, and come up only here
        # Arrow's large strings and dictionaries become plain strings, so that both splits have one type.
        rows = rows if rows.features[column] == Value("string") else rows.cast_column(column, Value("string"))
        return rows, rows.filter(_has_text, input_columns=column, batched=True)


def _column_types(files: list[Path], kind: str) -> dict[str, str]:
    """Each column's type, "string" for those of strings."""
    if kind == "text":
        return {"text": "string"}
    if kind == "parquet":
        schema = pq.read_schema(files[0])
    elif kind == "json":
        schema = Dataset.from_json(_escaped(files)).data.schema  # kept in the cache, so `_load` does not read it again
    else:
        head = pd.read_csv(files[0], nrows=1000, **_csv_options(kind))
        return {name: "string" if is_string_dtype(head[name]) else str(head[name].dtype) for name in head}
    return {field.name: "string" if pa.types.is_large_string(field.type) else str(field.type) for field in schema}


def _load(files: list[Path], kind: str, types: dict[str, str], column: str, sample_by: SampleBy) -> Dataset:
    # These constructors and not `load_dataset`, which counts its uses on a server even where the files are local.
    paths = _escaped(files)
    if kind == "text":
        # utf-8-sig, since the mark that some editors put before UTF-8 text is no part of it.
        return Dataset.from_text(paths, sample_by=sample_by, encoding="utf-8-sig")
    if kind == "parquet":
        # By itself it takes the first row group's size for a batch, and fails where that has no row.
        return Dataset.from_parquet(paths, columns=[column], batch_size=10_000)
    if kind == "json":
        return Dataset.from_json(paths)
    # As strings, so that 42 and NA are texts. All columns are read, since pandas finds a row too long only then.
    return Dataset.from_csv(paths, features=Features(dict.fromkeys(types, Value("string"))), **_csv_options(kind))


def _csv_options(kind: str) -> dict[str, Any]:
    # Without index_col, a first row that is too long would move all columns by one.
    return {"sep": "\t" if kind == "tsv" else ",", "na_filter": False, "index_col": False}


def _escaped(files: list[Path]) -> list[str]:
    return [glob.escape(str(path)) for path in files]  # `datasets` takes "[1]" in a name for a pattern


@contextmanager
def _reading(where: str, files: list[Path], kind: str) -> Iterator[None]:
    """Turns what the readers raise, of many classes and wrapped more than once, into one sentence."""
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # they log what they also raise
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a row cut short is text lost
            yield
    except Exception as error:
        if len(files) == 1 and (found := _bad_line(files[0])):
            raise ValueError(f"{where}, {found}") from error
        cause: BaseException = error
        while deeper := cause.__cause__ or cause.__context__:
            cause = deeper
        reason = " ".join(str(cause).split()).rstrip(".") or type(cause).__name__
        if "corresponds to no data" in reason:  # what `datasets` says of a table without rows
            raise _no_text(where) from error
        raise ValueError(f"{where} cannot be read as {kind} ({reason}): mend it, or give another file.") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def _no_text(where: str) -> ValueError:
    return ValueError(f"{where}: there is no text in it, give a file that has some.")


def _bad_line(path: Path) -> str | None:
    """What is wrong with the first line that is not UTF-8 or, in JSON Lines, not JSON."""
    if path.suffix.lower() in {*COMPRESSED, ".parquet"}:
        return None
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = line.decode("utf-8-sig").rstrip()
                if text and path.suffix.lower() in {".jsonl", ".ndjson"}:
                    json.dumps(json.loads(text), ensure_ascii=False).encode()
            except UnicodeDecodeError as error:
                return f"line {number}: the byte 0x{line[error.start]:02x} is not UTF-8: convert the file to UTF-8."
            except UnicodeEncodeError as error:
                half = error.object[error.start].encode("ascii", "backslashreplace").decode()
                return f"line {number}: {half} is half of a surrogate pair, which is no character: take it out."
            except json.JSONDecodeError as error:
                return f"line {number}, character {error.colno}: this is not JSON ({error.msg}): mend the line."
    return None


def _choose_column(where: str, types: dict[str, str], text_column: str | None) -> str:
    columns = ", ".join(f"{name} ({kind})" for name, kind in types.items())
    if text_column is not None:
        if text_column not in types:
            raise ValueError(f"{where} has no column {text_column!r}: give --text_column one of {columns}.")
        return text_column
    strings = [name for name, kind in types.items() if kind == "string"]
    conventional = [name for name in TEXT_COLUMNS if name in types]
    if not conventional and len(strings) != 1:
        raise ValueError(f"{where}: which column holds the text is not plain, say it with --text_column: {columns}.")
    return (conventional or strings)[0]


def _check_strings(where: str, rows: Dataset, column: str) -> None:
    values = rows.data.column(column)
    strings = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    if strings and values.null_count == 0:  # told without reading them
        return
    for number, value in enumerate(rows[column], 1):
        if not isinstance(value, str):
            shown = "null" if value is None else f"{type(value).__name__} {_shortened(repr(value))}"
            raise ValueError(
                f"{where}, row {number}: the column {column!r} holds {shown}, not a string: "
                "mend the row or take it out, or name another column with --text_column."
            )


def _has_text(texts: list[str]) -> list[bool]:
    return [bool(text.strip()) for text in texts]


def _named(files: list[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."


# --- Training and validation -----------------------------------------------------------------------------------------


def _hold_out(rows: Dataset, share: float) -> DatasetDict:
    """About `share` of `rows` in `validation`, the others in `train`; at least one text in each."""
    if len(rows) < FEWEST_ROWS:
        blocks = rows.map(_cut, batched=True, batch_size=1)
        if len(blocks) > len(rows):
            logger.info(
                "%d rows are too few to hold some out, so they are cut into %d blocks of about %d characters.",
                len(rows),
                len(blocks),
                BLOCK_CHARACTERS,
            )
            rows = blocks

    hashes = _hashes(rows)
    if len(np.unique(hashes)) == 1:
        raise ValueError(
            "The training text is one row, or one row repeated, so none can be held out for validation: "
            "give more text, or a --validation_file."
        )
    held_out = hashes < share * 2.0**64
    if held_out.all() or not held_out.any():
        held_out = hashes == hashes.min()
    splits = DatasetDict(
        {"train": rows.select(np.flatnonzero(~held_out)), "validation": rows.select(np.flatnonzero(held_out))}
    )
    logger.info("%d of %d rows are held out for validation.", len(splits["validation"]), len(rows))
    return splits


def _cut(batch: dict[str, list[str]]) -> dict[str, list[str]]:
    return {"text": [block for text in batch["text"] for block in BLOCK.findall(text) if block.strip()]}


def _hashes(rows: Dataset) -> np.ndarray:
    """A hash of each row's text: uint64, shape (rows,), evenly spread."""
    return rows.map(_hash, batched=True, remove_columns="text").data.column("hash").to_numpy()


def _hash(batch: dict[str, list[str]]) -> dict[str, np.ndarray]:
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in batch["text"])
    return {"hash": np.frombuffer(digests, dtype="<u8")}


def _log_shared_rows(splits: DatasetDict) -> None:
    shared = np.isin(_hashes(splits["validation"]), _hashes(splits["train"])).sum()
    if shared:
        logger.warning(
            "%d of %d validation rows are also training rows, word for word: the measurement flatters by as much.",
            shared,
            len(splits["validation"]),
        )
