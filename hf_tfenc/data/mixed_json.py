"""JSON in which a column may hold values of different types.

The reader of `datasets` tells types by ten megabytes of a file. Where a later part has others, it writes all strings of
that part as JSON, in quotes; and where the first part has several, it takes the string "7" for a number. So it is told
to read no such file, and these are read here, slowly, each value as it is.
"""

import codecs
import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Value
from datasets.table import InMemoryTable

from .compression import open_bytes


def json_dataset(files: list[Path], escaped: list[str], columns: list[str], version: Any) -> Dataset:
    """All rows of some files, or these columns where a column holds values of different types.

    Args:
        escaped: the files again, as `datasets` takes them
        version: for each file what tells it from others of its name
    """
    try:
        return Dataset.from_json(escaped, on_mixed_types=None)
    except Exception:  # of several classes; what is wrong beside types is raised again here
        with suppress(Exception):
            rows = Dataset.from_generator(
                _encoded,
                features=Features(dict.fromkeys(columns, Value("string"))),
                gen_kwargs={"paths": files, "columns": tuple(columns), "version": version},  # a list would be shards
            )
            return _decoding(rows)
        raise


def json_values(path: Path, escaped: str, column: str, rows_at_once: int) -> Iterator[list[Any]]:
    """The values of a column, batch after batch."""
    count = 0
    with suppress(Exception):
        rows = Dataset.from_json(escaped, streaming=True, on_mixed_types=None).select_columns([column])
        for batch in rows.with_format("arrow").iter(batch_size=rows_at_once):
            yield batch.column(column).to_pylist()
            count += len(batch)
        return
    values = (row.get(column) for row in islice(_objects(path), count, None))
    while batch := list(islice(values, rows_at_once)):
        yield batch


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file: an object a line, or one list of them."""
    with open_bytes(path) as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        first = file.readline()
        if first.lstrip().startswith(b"["):
            yield from json.loads(first + file.read())
            return
        yield from (json.loads(line) for line in chain([first], file) if line.strip())


def _encoded(paths: list[Path], columns: tuple[str, ...], version: Any) -> Iterator[dict[str, str | None]]:
    for row in chain.from_iterable(map(_objects, paths)):
        yield {name: None if row.get(name) is None else json.dumps(row[name]) for name in columns}


def _decoding(rows: Dataset) -> Dataset:
    """The rows with strings of JSON as the values that they stand for; they stay where they are, on the disk."""
    columns = {
        name: pa.chunked_array(
            [pa.ExtensionArray.from_storage(pa.json_(pa.string()), chunk) for chunk in rows.data.column(name).chunks]
        )
        for name in rows.column_names
    }
    return Dataset(InMemoryTable(pa.table(columns)), fingerprint=rows._fingerprint)
