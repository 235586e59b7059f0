"""Files on this machine: which ones an option names, what splits they make, and their rows. No network anywhere."""

import glob
import hashlib
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from pandas.api.types import is_string_dtype

from . import conll
from .columns import no_rows
from .compression import is_openable, open_bytes, uncompressed_name
from .damage import are_undamaged, damages, rows_of, undamaged
from .mixed_json import json_dataset, json_values
from .streaming import Part, TextStream

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
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".iob2": "conll",
    ".conllu": "conllu",
}
# A plain text file above so many bytes is no longer one row, which would have to fit into memory several times over.
LONG_DOCUMENT = 16 * 2**20
PART_CHARACTERS = 20_000
STREAM_ROWS = 1000  # read at once
EDGE_BYTES = 4096  # of a file, that tell it from another of the same size

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
    "test": "test",
}
_NAMES = "|".join(sorted(SPLITS, key=len, reverse=True))
SCALAR = re.compile(r"string|bool|u?int[0-9]+|float|double")  # types of pyarrow
AT_START = re.compile(rf"({_NAMES})(?![a-z])", re.IGNORECASE)
AT_END = re.compile(rf".*(?<![a-z])({_NAMES})", re.IGNORECASE)


# --- Which files, of what kind and which split -----------------------------------------------------------------------


def find_files(option: str, value: FileOption) -> dict[str | None, list[Path]]:
    """The files that `value` names, in a fixed order: all of them under None, or, from a folder of splits, by split.

    Raises ValueError or FileNotFoundError with one sentence where there is none.
    """
    files: list[Path] = []
    names = value if isinstance(value, list) else [value]
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            splits = _files_in_folder(option, path)
            if len(splits) > 1 and len(names) == 1:
                return splits
            if len(splits) > 1:
                raise ValueError(
                    f"{option} {path}: its files belong to different splits ({', '.join(map(str, splits))}): "
                    f"give those of one split alone, by a pattern such as '{path}/{next(iter(splits.values()))[0].name}'."
                )
            files += next(iter(splits.values()))
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
    return {None: files}


def _files_in_folder(option: str, folder: Path) -> dict[str | None, list[Path]]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    visible = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    data = [path for path in visible if kind_of(path)]
    if not data:
        raise ValueError(
            f"{option} {folder}: the folder holds no file that ends in {', '.join(KINDS)}: "
            f"a pattern, such as '{folder}/**/*.py', names others, which are read as plain text."
        )
    splits: dict[str | None, list[Path]] = {}
    for path in data:
        if split := _split_of(path.relative_to(folder)):
            splits.setdefault(split, []).append(path)
    if len(splits) < 2:
        # The name's end alone (en_ewt-ud-train.conllu) is trusted only where it holds for every file.
        ends = {path: AT_END.fullmatch(uncompressed_name(path).stem) for path in data}
        splits = {}
        for path, match in ends.items():
            if match and all(ends.values()):
                splits.setdefault(SPLITS[match[1].lower()], []).append(path)
    if len(splits) < 2:
        splits = {None: data}
    used = {path for files in splits.values() for path in files}
    if others := [path.name for path in visible if path not in used]:
        logger.info("In %s, %d files are left out (%s).", folder, len(others), _listed(others))
    one_kind(f"{option} {folder}:", sorted(used))
    return splits


def _split_of(path: Path) -> str | None:
    """The split that the beginning of a file's name, or a folder's whole name, says."""
    for part in path.parts[:-1]:
        if part.lower() in SPLITS:
            return SPLITS[part.lower()]
    match = AT_START.match(path.name)
    return SPLITS[match[1].lower()] if match else None


def kind_of(path: Path) -> str | None:
    return KINDS.get(uncompressed_name(path).suffix.lower())


def one_kind(where: str, files: list[Path]) -> str:
    # A file named outright is plain text unless its name says otherwise (wiki.train.tokens, notes.md).
    examples = {kind_of(path) or "text": path for path in files}
    if len(examples) > 1:
        mixed = ", ".join(f"{path.name} is {kind}" for kind, path in examples.items())
        raise ValueError(f"{where} files of different kinds cannot be mixed ({mixed}): give those of one kind.")
    return next(iter(examples))


# --- Their rows ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    """Rows of files of one kind; an `Origin`."""

    option: str
    files: list[Path]
    kind: str
    sample_by: SampleBy = "document"
    copies: dict[Path, Path] = field(default_factory=dict)  # read in place of some files, without damaged rows
    damaged: int = 0  # how many such rows there are
    example: str | None = None  # the first of them, and what is wrong with it
    undamaged: dict[Path, np.ndarray] = field(default_factory=dict)  # of each file, where some rows are: (rows,), bool
    forgiving: bool = False  # a stream gives None for a row that no reader can read

    @classmethod
    def of(cls, option: str, files: list[Path], sample_by: SampleBy) -> "Files":
        return cls(option, files, one_kind(f"{option}:", files), sample_by)

    @property
    def where(self) -> str:
        return f"{self.option} {self.files[0]}" + (f" and {len(self.files) - 1} more" if len(self.files) > 1 else "")

    @property
    def plain_text(self) -> bool:
        """Whether what a row is can be chosen."""
        return self.kind == "text"

    @property
    def untyped(self) -> bool:
        """Whether all values are strings, numbers among them."""
        return self.kind in ("csv", "tsv")

    def filled(self) -> "Files":
        """Without the files that have no byte, which are an error to most readers."""
        files = [path for path in self.files if path.stat().st_size]
        if not files:
            raise no_rows(self.where)
        return replace(self, files=files)

    def mended(self) -> "Files":
        """The same rows without those that no reader can read."""
        copies: dict[Path, Path] = {}
        reasons: list[str] = []
        for path in self.files:
            with replace(self, files=[path])._reading():
                found = list(damages(path, self.kind, self.sample_by))
            if found:
                copies[path] = _mended_copy(path, self.kind, self.sample_by)
                reasons += [f"{self.option} {path}, {reason}" for reason in found]
        if not reasons:
            return self
        files = [path for path in self.files if copies.get(path, path).stat().st_size]
        if not files:
            raise ValueError(f"{reasons[0]} No row is left without such rows.")
        undamaged = {
            path: np.fromiter(are_undamaged(path, self.kind, self.sample_by), dtype=bool) for path in self.files
        }
        return replace(self, files=files, copies=copies, damaged=len(reasons), example=reasons[0], undamaged=undamaged)

    def _read(self) -> list[Path]:
        return [self.copies.get(path, path) for path in self.files]

    def types(self) -> dict[str, str]:
        """Each column's type, "string" for those of strings."""
        with self._reading():
            return _column_types(self._read(), self.kind)

    def load(self, columns: list[str]) -> Dataset:
        """The rows, with these columns."""
        try:
            with self._reading():
                if len(self.files) > 1 and self.kind in ("json", "parquet"):
                    self._check_types(columns)
                rows = _load(self._read(), self.kind, self.sample_by, columns).select_columns(columns)
                if self.kind == "text" and self.sample_by == "document":
                    for path in filter(_is_long, self._read()):
                        logger.info(
                            "%s is long for one document and becomes rows of about %d characters, cut after lines.",
                            path,
                            PART_CHARACTERS,
                        )
                if self.kind == "tsv" and any(
                    pc.any(pc.match_substring(rows.data.column(c), "\t")).as_py() for c in columns
                ):
                    raise ValueError("a cell holds a tab")  # which line it is, is found out below
                if self.kind == "json":  # its reader lets bytes pass that are not UTF-8
                    rows.data.table.validate(full=True)
                return rows
        except ValueError:
            for path in self.files if len(self.files) > 1 else []:
                replace(self, files=[path]).load(columns)  # says which file it was
            raise

    def _check_types(self, columns: list[str]) -> None:
        """Whether a column of strings is one in all files: readers cast what is in the files after the first."""
        first, *others = self._read()
        types_of = _first_types if self.kind == "json" else partial(_column_types, kind=self.kind)
        of_first = types_of([first])
        for path in others:
            types = types_of([path])
            for name in columns:
                both = of_first.get(name, ""), types.get(name, "")
                if all(map(SCALAR.fullmatch, both)) and (both[0] == "string") != (both[1] == "string"):
                    raise ValueError(f"in {first} {name} is {both[0]}, and in {path} {both[1]}: make them alike")

    def numbers(self, rows: int) -> np.ndarray:
        """The number of each of the rows that `load` returns, from 1, counted through all files."""
        if self.undamaged:
            numbers = np.flatnonzero(np.concatenate([*self.undamaged.values()])) + 1
            if len(numbers) == rows:  # else a long text became many rows
                return numbers
        return np.arange(1, rows + 1)

    def stream(self, column: str) -> TextStream:
        """One of the columns, a part a file, read as it is needed and copied nowhere."""
        parts = [
            Part(f"{self.option} {path}", partial(replace(self, files=[path])._read_batches, column))
            for path in self.files
        ]
        return TextStream(parts, _edges_digest(self.files))

    def stream_types(self) -> dict[str, str]:
        """As `types`, of JSON by its first rows alone."""
        if self.forgiving and (rows := rows_of(self.files[0], self.kind, self.sample_by)):
            whole = list(islice(filter(None, rows), STREAM_ROWS))
            names = whole[0] if whole else {}
            return {name: "string" if any(isinstance(row.get(name), str) for row in whole) else "" for name in names}
        if self.kind != "json":
            return self.types()
        with self._reading():
            return _first_types(self.files)

    def _read_batches(self, column: str) -> Iterator[list[Any]]:
        rows = rows_of(self.files[0], self.kind, self.sample_by) if self.forgiving else None
        if rows is None:
            batches = _stream(self.files[0], self.kind, self.sample_by, column)
        else:
            values = (row and row.get(column) for row in rows)
            batches = iter(lambda: list(islice(values, STREAM_ROWS)), [])
        while True:
            with self._reading():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def place(self, number: int) -> str:
        """Where the row is that `numbers` gives this number: option, file and its number there, from 1."""
        files = list(self.undamaged or self.files)
        columns = list(_column_types(self._read(), self.kind)) if len(files) > 1 else []
        for path in files[:-1]:
            undamaged = self.undamaged.get(path)
            rows = len(_load([path], self.kind, self.sample_by, columns)) if undamaged is None else len(undamaged)
            if number <= rows:
                return f"{self.option} {path}, row {number}"
            number -= rows
        return f"{self.option} {files[-1]}, row {number}"

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turns what the readers raise, of many classes and wrapped more than once, into one sentence."""
        verbosity = datasets.logging.get_verbosity()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # they log what they also raise
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # a row cut short is text lost
                yield
        except Exception as error:
            if len(self.files) == 1 and (found := self._first_damage()):
                raise ValueError(f"{self.where}, {found}") from error
            reason = root_cause(error)
            if "corresponds to no data" in reason:  # what `datasets` says of a table without rows
                raise no_rows(self.where) from error
            raise ValueError(
                f"{self.where} cannot be read as {self.kind} ({reason}): mend it, or give another file."
            ) from error
        finally:
            datasets.logging.set_verbosity(verbosity)

    def _first_damage(self) -> str | None:
        with suppress(Exception):  # of a compressed file that is broken, and has no lines to look at
            return next(damages(self.files[0], self.kind, self.sample_by), None)
        return None


def root_cause(error: BaseException) -> str:
    """What the error began with, on one line and without a full stop."""
    while deeper := error.__cause__ or error.__context__:
        error = deeper
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _column_types(files: list[Path], kind: str) -> dict[str, str]:
    if kind == "text":
        return {"text": "string"}
    if kind in ("conll", "conllu"):
        schema = conll.features(files[0], kind).arrow_schema
    elif kind == "parquet":
        schema = pq.read_schema(files[0])
    elif kind == "json":
        try:
            schema = Dataset.from_json(_escaped(files), on_mixed_types=None).data.schema  # in the cache, for `_load`
        except Exception:  # of several classes; `_load` says what is wrong
            return _first_types(files)
    else:
        head = pd.read_csv(files[0], nrows=1000, **_csv_options(kind))
        return {name: "string" if is_string_dtype(head[name]) else str(head[name].dtype) for name in head}
    return _schema_types(schema)


def _first_types(files: list[Path]) -> dict[str, str]:
    """The types of the first rows of JSON."""
    rows = Dataset.from_json(_escaped(files[:1]), streaming=True)
    if rows.features is not None:
        return _schema_types(rows.features.arrow_schema)
    return _schema_types(next(rows.with_format("arrow").iter(batch_size=STREAM_ROWS)).schema)


def _schema_types(schema: pa.Schema) -> dict[str, str]:
    return {field.name: "string" if pa.types.is_large_string(field.type) else str(field.type) for field in schema}


def _stream(path: Path, kind: str, sample_by: SampleBy, column: str) -> Iterator[list[Any]]:
    """The values of a column, batch after batch."""
    if kind == "text" and sample_by == "document":
        yield from ([row["text"]] for row in _text_parts([path], None))
        return
    if kind == "json":
        yield from json_values(path, _escaped([path])[0], column, STREAM_ROWS)
        return
    rows = _load([path], kind, sample_by, [column], streaming=True).select_columns([column])
    for batch in rows.with_format("arrow").iter(batch_size=STREAM_ROWS):
        yield batch.column(column).to_pylist()


def _edges_digest(files: list[Path]) -> str:
    """A hash of the size, the beginning and the end of each file; names and dates may change."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(EDGE_BYTES)
            file.seek(max(0, size - EDGE_BYTES))
            digest.update(b"%d:%b%b" % (size, head, file.read(EDGE_BYTES)))
    return digest.hexdigest()


def _load(files: list[Path], kind: str, sample_by: SampleBy, columns: list[str], streaming: bool = False) -> Dataset:
    # These constructors and not `load_dataset`, which counts its uses on a server even where the files are local.
    paths = _escaped(files)
    if kind == "text" and sample_by == "document" and any(_is_long(path) for path in files):
        return Dataset.from_generator(
            _text_parts,
            features=Features({"text": Value("string")}),
            gen_kwargs={"paths": files, "version": [(_stamp(path), PART_CHARACTERS) for path in files]},
        )
    if kind == "text":
        # utf-8-sig, since the mark that some editors put before UTF-8 text is no part of it.
        return Dataset.from_text(paths, sample_by=sample_by, encoding="utf-8-sig", streaming=streaming)
    if kind == "parquet":
        # By itself it takes the first row group's size for a batch, and fails where that has no row.
        rows_at_once = STREAM_ROWS if streaming else 10_000
        return Dataset.from_parquet(paths, columns=columns, batch_size=rows_at_once, streaming=streaming)
    if kind == "json":
        return json_dataset(files, paths, columns, [_stamp(path) for path in files])
    if kind in ("conll", "conllu"):
        return Dataset.from_generator(
            conll.rows,
            features=conll.features(files[0], kind),
            gen_kwargs={"paths": files, "kind": kind, "version": [_stamp(path) for path in files]},
            streaming=streaming,
        )
    # As strings, so that 42 and NA are texts. All columns are read, since pandas finds a row too long only then.
    names = pd.read_csv(files[0], nrows=0, **_csv_options(kind)).columns
    return Dataset.from_csv(
        paths, features=Features(dict.fromkeys(names, Value("string"))), streaming=streaming, **_csv_options(kind)
    )


def _csv_options(kind: str) -> dict[str, Any]:
    # Without index_col, a first row that is too long would move all columns by one.
    return {"sep": "\t" if kind == "tsv" else ",", "na_filter": False, "index_col": False}


def _escaped(files: list[Path]) -> list[str]:
    return [glob.escape(str(path)) for path in files]  # `datasets` takes "[1]" in a name for a pattern


def _is_long(path: Path) -> bool:
    return path.stat().st_size > LONG_DOCUMENT and is_openable(path)


def _text_parts(paths: list[Path], version: Any) -> Iterator[dict[str, str]]:
    """Each file's text, whole or in parts that end with a line; nothing between them is lost."""
    for path in paths:
        with TextIOWrapper(open_bytes(path), encoding="utf-8-sig") as file:
            size = PART_CHARACTERS if _is_long(path) else -1
            while part := file.read(size):
                yield {"text": part + (file.readline(PART_CHARACTERS) if size > 0 else "")}


def _stamp(path: Path) -> tuple[int, int]:
    """What tells a version of a file from another, where the cache's key would know the name alone."""
    return path.stat().st_size, path.stat().st_mtime_ns


def _mended_copy(path: Path, kind: str, sample_by: SampleBy) -> Path:
    """A copy of the file without its damaged rows, in the cache."""
    key = hashlib.sha256(repr((str(path.resolve()), _stamp(path), sample_by)).encode()).hexdigest()[:16]
    copy = Path(datasets.config.HF_DATASETS_CACHE) / "hf_tfenc_mended" / key / uncompressed_name(path).name
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=copy.parent) as beside:
            with (Path(beside) / copy.name).open("wb") as file:
                file.writelines(undamaged(path, kind, sample_by))
            (Path(beside) / copy.name).replace(copy)  # at once, for other processes may be waiting for it
    return copy


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
