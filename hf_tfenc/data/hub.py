"""Datasets by name: on the Hugging Face Hub, or in a folder laid out as there (README.md with `configs:`)."""

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, Features, IterableDataset, Value
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.utils import logging as hub_logging

from .columns import Origin
from .files import AT_START, SPLITS, STREAM_ROWS, Files, SampleBy, kind_of, root_cause
from .streaming import Part, TextStream

logger = logging.getLogger(__name__)

STREAMED_ROWS = 10_000  # of a split that is streamed, and is to be had at once
# What a configuration says about files, which we read as it does, and not about how to read them.
PLAIN_OPTIONS = {"name", "version", "data_dir", "data_files", "description", "sep", "comment_prefix"}


@dataclass(frozen=True)
class Loaded:
    """Rows of one split that `datasets` has read; an `Origin`."""

    where: str
    rows: Dataset | IterableDataset
    version: str = ""  # of the dataset
    plain_text: bool = False
    untyped = False
    damaged = 0
    example = None

    def types(self) -> dict[str, str]:
        strings = (Value("string"), Value("large_string"))
        features = self.rows.features
        if features is None:  # of a stream: its first rows tell
            features = Features.from_arrow_schema(next(self.rows.with_format("arrow").iter(STREAM_ROWS)).schema)
        return {name: "string" if feature in strings else type(feature).__name__ for name, feature in features.items()}

    stream_types = types

    def load(self, columns: list[str]) -> Dataset:
        rows = self.rows.select_columns(columns)
        return rows if isinstance(rows, Dataset) else Dataset.from_list(list(rows.take(STREAMED_ROWS)))

    def numbers(self, rows: int) -> np.ndarray:
        """The number of each of the rows that `load` returns, from 1."""
        return np.arange(1, rows + 1)

    def stream(self, column: str) -> TextStream:
        """One of the columns, read as it is needed, in the order of the dataset."""

        def read() -> Iterator[list[Any]]:
            try:
                for batch in self.rows.select_columns([column]).with_format("arrow").iter(STREAM_ROWS):
                    yield batch.column(column).to_pylist()
            except Exception as error:  # of many classes, from many readers
                raise OSError(f"{self.where} can be read no further ({root_cause(error)}).") from error

        return TextStream([Part(self.where, read)], self.version)

    def place(self, number: int) -> str:
        return f"{self.where}, row {number}"


def dataset_origins(
    name: str,
    config_name: str | None,
    revision: str | None,
    sample_by: SampleBy,
    training: bool,
    streaming: bool = False,
) -> dict[str, Origin]:
    """The rows of a dataset's splits, under the names train, validation and test.

    For `training` there is a split to train on: where the dataset has but one split, that. With `streaming`, nothing is
    downloaded before it is read, and of a split other than the one to train on, 10,000 rows at most are read.
    Raises ValueError or OSError with one sentence.
    """
    where = f"--dataset_name {name}" + (f" ({config_name})" if config_name else "")
    folder = Path(name).expanduser()
    if folder.is_dir() and revision is not None:
        raise ValueError(f"--dataset_revision {revision} is of the Hub, and {where} is a folder: leave it out.")
    try:
        # An absolute path, since `datasets` takes a few plain names (json, text) for its own.
        path = str(folder.resolve()) if folder.is_dir() else name
        with quiet_hub():
            builder = datasets.load_dataset_builder(path, config_name, revision=revision)
        if folder.is_dir() and _is_plain(builder):
            found: dict[str, Origin] = {
                str(split): Files.of("--dataset_name", [Path(file) for file in files], sample_by)
                for split, files in builder.config.data_files.items()
            }
        else:
            options = {"sample_by": sample_by} if getattr(builder.config, "sample_by", None) == "line" else {}
            loaded = datasets.load_dataset(path, config_name, revision=revision, streaming=streaming, **options)
            found = {
                str(split): Loaded(
                    f"{where}, split {split}", rows, str(builder.hash), hasattr(builder.config, "sample_by")
                )
                for split, rows in loaded.items()
            }
    except DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"{where} is no folder here, and the Hugging Face Hub has no such dataset, or only for some: "
            "check the name, or log in with `hf auth login`."
        ) from error
    except ConnectionError as error:
        raise ConnectionError(
            f"{where} is no folder here, and the Hugging Face Hub cannot be reached: "
            "check the connection, or give files with --train_file."
        ) from error
    except Exception as error:  # of many classes, from many readers
        raise ValueError(
            f"{where} cannot be read ({root_cause(error)}): check its name, configuration and files."
        ) from error
    return _standard_splits(where, found, training)


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Without a line for each of the five times that the Hub is tried."""
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)


def _is_plain(builder: Any) -> bool:
    """Whether our own readers, with their messages for bad rows, read the files as this configuration says."""
    config = builder.config
    usual = type(config)()
    options = {field.name for field in dataclasses.fields(config)} - PLAIN_OPTIONS
    files = [Path(file) for split in (config.data_files or {}).values() for file in split]
    separators = {"csv": ",", "tsv": "\t"}
    return (
        bool(files)
        and builder.info.features is None
        and all(getattr(config, option) == getattr(usual, option) for option in options)
        and all(kind_of(file) for file in files)
        and all(getattr(config, "sep", ",") == separators.get(kind_of(file) or "", ",") for file in files)
    )


def _standard_splits(where: str, found: dict[str, Origin], training: bool) -> dict[str, Origin]:
    names: dict[str, str] = {}
    # Of several, the one that has the standard name itself, then the one that begins with it (validation_matched).
    for name in sorted(found, key=lambda name: (SPLITS.get(name) != name, name.lower() not in SPLITS)):
        if match := AT_START.match(name):
            names.setdefault(SPLITS[match[1].lower()], name)
    if len(found) == 1 and (training or not names):
        names = {"train": next(iter(found))}
    if training and "train" not in names:
        raise ValueError(
            f"{where} has no split to train on, only {', '.join(found)}: give rows with --train_file, "
            "and a file of these with --validation_file or --test_file."
        )
    unused = [name for name in found if name not in names.values()]
    renamed = [f"{standard} is its split {name!r}" for standard, name in names.items() if standard != name]
    if renamed or unused:
        left = f"the splits left out are {', '.join(unused)}" if unused else ""
        logger.info("%s: %s.", where, "; ".join(filter(None, [", ".join(renamed), left])))
    return {standard: found[names[standard]] for standard in ("train", "validation", "test") if standard in names}
