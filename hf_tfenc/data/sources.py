"""Where rows come from: the Hub, files on this machine, or the built-in corpus. The network is for Hub ids alone."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from datasets import Dataset, DatasetDict, Value

from .collators import numpy_column
from .columns import ROW_NUMBER, TEXT_COLUMNS, Column, NoLabels, Origin, choose, log_guesses, no_rows, take
from .files import FileOption, Files, SampleBy, find_files
from .hub import dataset_origins
from .splits import choose_held_out, hold_out, log_shared_rows, text_hashes
from .stdlib_corpus import stdlib_documents
from .streaming import TextStream
from .values import LABEL_TYPES

__all__ = [
    "TEXT_COLUMNS",
    "Column",
    "FileOption",
    "SampleBy",
    "Source",
    "Splits",
    "load_split",
    "load_splits",
    "load_stream",
]

logger = logging.getLogger(__name__)

# Of a stream: a tokenizer and the models that count are trained on these, and validation texts are taken from them.
HEAD_TEXTS, HEAD_CHARACTERS = 20_000, 20_000_000


@dataclass(frozen=True)
class Source:
    """Which data, as the user says it.

    A file option is a path, a folder, a pattern such as "data/*.jsonl", or a list of these. A folder of training files
    whose names say train, validation (valid, val, dev, eval) and test gives all of these splits.
    """

    train_file: FileOption | None = None
    validation_file: FileOption | None = None
    test_file: FileOption | None = None
    dataset_name: str | None = None  # a Hub id, or a folder laid out as on the Hub
    dataset_config_name: str | None = None
    dataset_revision: str | None = None
    sample_by: SampleBy = "document"  # what a row of a plain text file is
    max_train_samples: int | None = None  # the first rows of a split, and no more
    max_eval_samples: int | None = None  # of validation and of test
    validation_share: float = 0.05  # held out where there is no validation split
    skip_bad_rows: bool = False

    def __post_init__(self) -> None:
        if self.sample_by not in get_args(SampleBy):
            raise ValueError(f"sample_by is {self.sample_by!r}: it must be one of {', '.join(get_args(SampleBy))}.")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share is {self.validation_share}: it must lie between 0 and 1.")
        for option in ("max_train_samples", "max_eval_samples"):
            limit = getattr(self, option)
            if limit is not None and limit < 1:
                raise ValueError(f"{option} is {limit}: it must be at least 1.")
        if self.train_file is not None and self.dataset_name is not None:
            raise ValueError("--train_file and --dataset_name both say where training rows come from: give one.")
        for option in ("dataset_config_name", "dataset_revision"):
            if getattr(self, option) is not None and self.dataset_name is None:
                raise ValueError(f"--{option} {getattr(self, option)} belongs to a --dataset_name: give that too.")


class Splits(DatasetDict):
    """Rows by split, and where they stand in their source.

    Args:
        rows: the rows of each split; a column `ROW_NUMBER` is taken out
        origins: where they are from; the rows of a split that is not among these are of train, or built in
    """

    def __init__(self, rows: dict[str, Dataset], origins: dict[str, Origin]):
        numbered = {split: part for split, part in rows.items() if ROW_NUMBER in part.column_names}
        super().__init__(rows | {split: part.remove_columns(ROW_NUMBER) for split, part in numbered.items()})
        self.origins = origins
        self.numbers: dict[str, np.ndarray] = {  # of each row, (rows,): from 1, through all files
            split: numpy_column(part, ROW_NUMBER) for split, part in numbered.items()
        }

    def place(self, split: str, row: int) -> str:
        """Where the row of a split with this index is, for messages: option, file and number."""
        if split not in self.numbers:
            return f"{split}, row {row + 1}"
        origin = self.origins.get(split) or self.origins["train"]
        return origin.place(int(self.numbers[split][row]))


def load_splits(
    source: Source, columns: Sequence[Column], built_in: Callable[[], DatasetDict] = stdlib_documents
) -> Splits:
    """Splits train, validation and, where there is one, test, with the columns a task asks for, under the task's names.

    Without a `train_file` and a `dataset_name` the rows are `built_in()`, which has those columns. Without validation
    rows, about `validation_share` of the training rows are held out: by a hash of their texts and words, so that
    neither their order nor a repeated row matters, and a text held out once stays so when rows are added. Where text
    is all that is asked for, empty rows are left out; elsewhere they are bad rows.
    Raises ValueError or OSError with one sentence that names the option, the file and, where it is one, the row.
    """
    origins = _origins(source, training=True)
    if not origins and (named := [column for column in columns if column.given is not None]):
        raise ValueError(
            f"{named[0].option} {named[0].given} names a column of your data, and the built-in corpus is read: "
            "give --train_file or --dataset_name, or leave it out."
        )
    if origins and "train" not in origins:
        raise ValueError(
            f"{next(iter(origins.values())).where} is given, and no rows to learn from: give --train_file or "
            "--dataset_name, too."
        )
    splits = DatasetDict()
    numbered = [column.kind for column in columns] != ["text"]  # a task refuses no text
    if not origins:
        corpus = built_in()
        names = [column.name for column in columns if column.name in corpus["train"].column_names]
        splits.update(corpus.select_columns(names))
    said: dict[str, str] = {}
    for split, origin in origins.items():
        chosen = choose(origin.where, origin.types(), columns)
        if chosen != said:
            log_guesses(origin.where, columns, chosen)
            said = chosen
        try:
            splits[split] = take(origin, columns, chosen, source.skip_bad_rows, numbered)
        except NoLabels as error:
            if split != "test" or source.test_file is not None:
                raise
            logger.warning("%s The test split is left out.", error)
    _agree(splits, origins)

    inputs = [c.name for c in columns if c.kind in ("text", "words") and c.name in splits["train"].column_names]
    if "validation" not in splits:
        labels = [c.name for c in columns if c.kind in ("label", "tags") and c.name in splits["train"].column_names]
        splits.update(hold_out(splits["train"], inputs, source.validation_share, labels))
    elif "validation" in origins:
        log_shared_rows(splits, "validation", inputs)
    if "test" in splits:
        log_shared_rows(splits, "test", inputs)

    limits = {
        "train": source.max_train_samples,
        "validation": source.max_eval_samples,
        "test": source.max_eval_samples,
    }
    return Splits({name: _first(splits[name], limits[name]) for name in limits if name in splits}, origins)


def load_stream(source: Source, columns: Sequence[Column]) -> tuple[TextStream, Splits]:
    """The training texts as a stream, and as splits what is known of it before: its first texts, and what is held out.

    The split train holds its first 20,000 texts, fewer where they are longer than 1,000 characters; validation, without rows of its own,
    about `validation_share` of these, chosen as `load_splits` does. A text that is held out is left out of the stream
    wherever it stands.
    Raises ValueError or OSError with one sentence, as `load_splits` does; a row of the stream is told when it is read.
    """
    origins = _origins(source, training=True, streaming=True)
    train = origins.pop("train")
    chosen = choose(train.where, train.stream_types(), columns)
    log_guesses(train.where, columns, chosen)
    stream = replace(train.stream(chosen[columns[0].name]), skip_bad_rows=source.skip_bad_rows)
    texts = stream.first(HEAD_TEXTS, HEAD_CHARACTERS)
    if not texts:
        raise no_rows(train.where)
    splits = DatasetDict(train=Dataset.from_dict({"text": texts}))
    for split, origin in origins.items():
        found = take(origin, columns, choose(origin.where, origin.types(), columns), source.skip_bad_rows)
        splits[split] = _first(found, source.max_eval_samples)
        log_shared_rows(splits, split, ["text"])
    if "validation" not in splits:
        hashes = text_hashes(texts)
        held_out = np.unique(hashes[choose_held_out(hashes, source.validation_share)])[: source.max_eval_samples]
        is_held_out = np.isin(hashes, held_out)
        splits["validation"] = splits["train"].select(np.flatnonzero(is_held_out))
        splits["train"] = splits["train"].select(np.flatnonzero(~is_held_out))
        stream = replace(stream, held_out=held_out)
        logger.info("%d of the first %d texts are held out for validation.", is_held_out.sum(), len(texts))
    return stream, Splits(splits, {})


def load_split(source: Source, columns: Sequence[Column], prefer: Sequence[str] = ("test", "validation")) -> Splits:
    """One split alone, the first of `prefer` that the source has, as test: to evaluate a model that is trained.

    Raises ValueError or OSError with one sentence, as `load_splits` does, and where the source has none of these.
    """
    origins = _origins(source, training=False)
    split = next((split for split in prefer if split in origins), None)
    if split is None:
        has = f"the data has only {' and '.join(origins)}" if origins else "no data is given"
        raise ValueError(f"There are no rows to evaluate on, {has}: name a file with --{prefer[0]}_file.")
    origin = origins[split]
    chosen = choose(origin.where, origin.types(), columns)
    log_guesses(origin.where, columns, chosen)
    rows = take(origin, columns, chosen, source.skip_bad_rows, numbered=True)
    return Splits({"test": _first(rows, source.max_eval_samples)}, {"test": origin})


def _first(rows: Dataset, limit: int | None) -> Dataset:
    return rows if limit is None or limit >= len(rows) else rows.select(range(limit))


def _origins(source: Source, training: bool, streaming: bool = False) -> dict[str, Any]:
    """Where the rows of each split are, the splits in their order; none for those that are built in or held out."""
    found: dict[str, Origin] = {}
    if source.dataset_name is not None:
        found = dataset_origins(
            source.dataset_name,
            source.dataset_config_name,
            source.dataset_revision,
            source.sample_by,
            training,
            streaming,
        )
    if source.train_file is not None:
        found |= _train_files(source.train_file, source.sample_by)
    for split, value in (("validation", source.validation_file), ("test", source.test_file)):
        if value is not None:
            found[split] = _split_files(f"--{split}_file", value, split, source.sample_by)
    found = {split: found[split] for split in ("train", "validation", "test") if split in found}
    # An evaluation may have it from the model's training, on other data.
    if training and source.sample_by != "document" and not any(origin.plain_text for origin in found.values()):
        where = next(iter(found.values())).where if found else "the built-in corpus"
        raise ValueError(f"--sample_by {source.sample_by} is for plain text, and {where} is none: leave it out.")
    for split, origin in found.items():
        if isinstance(origin, Files):
            filled = origin.filled()
            if source.skip_bad_rows:  # a stream is copied nowhere
                filled = replace(filled, forgiving=True) if streaming and split == "train" else filled.mended()
            found[split] = filled
    return found


def _train_files(value: FileOption, sample_by: SampleBy) -> dict[str, Origin]:
    files = find_files("--train_file", value)
    folder = value[0] if isinstance(value, list) else value  # the only thing that gives several splits
    if None in files:
        return {"train": Files.of("--train_file", files[None], sample_by)}
    if "train" not in files:
        raise ValueError(
            f"--train_file {folder}: its files are for {' and '.join(map(str, files))}, and none is for training: "
            "give those for training by a pattern."
        )
    named = ", ".join(f"{split} from {_named([path.name for path in paths])}" for split, paths in files.items())
    logger.info("--train_file %s: the splits are taken from its files' names: %s.", folder, named)
    return {str(split): Files.of("--train_file", paths, sample_by) for split, paths in files.items()}


def _split_files(option: str, value: FileOption, split: str, sample_by: SampleBy) -> Files:
    files = find_files(option, value)
    if None not in files and split not in files:
        raise ValueError(
            f"{option} {value[0] if isinstance(value, list) else value}: its files are for {' and '.join(map(str, files))}, and none is for {split}: "
            "give those that you mean by a pattern."
        )
    return Files.of(option, files.get(None) or files[split], sample_by)


def _named(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _agree(splits: DatasetDict, origins: dict[str, Origin]) -> None:
    """All splits get the columns of `train`, each of the type that it has there: 1.0 and 1 are one number."""
    names = [name for name in splits["train"].column_names if name != ROW_NUMBER]
    others = [split for split in splits if split in origins]
    for split in others:
        if missing := [name for name in names if name not in splits[split].column_names]:
            raise ValueError(
                f"{origins[split].where} has no column for {missing[0]}, and the training rows have one: name it, "
                "or leave it out of both."
            )
        numbered = [ROW_NUMBER] if ROW_NUMBER in splits[split].column_names else []
        splits[split] = splits[split].select_columns([*names, *numbered])
    numbers = [Value("int64"), Value("float64")]
    for name in names:
        train = splits["train"].features[name]
        for split in others:
            feature, row = splits[split].features[name], 0
            if feature == train:
                continue
            unlike = feature not in numbers or train not in numbers
            if not unlike and train == Value("int64"):
                fractions = np.mod(numpy_column(splits[split], name), 1) != 0
                unlike, row = bool(fractions.any()), int(fractions.argmax())
            if unlike:
                found = splits[split][row]
                raise ValueError(
                    f"{origins[split].place(found[ROW_NUMBER])}: its {name} is {_type_name(feature)}, {found[name]!r}, "
                    f"and in the training rows it is {_type_name(train)}: make them alike."
                )
            splits[split] = splits[split].cast_column(name, train)


def _type_name(feature: object) -> str:
    element = getattr(feature, "feature", None)
    dtype = getattr(element or feature, "dtype", str(feature))
    return LABEL_TYPES.get(f"list {dtype}" if element is not None else dtype, str(dtype))
