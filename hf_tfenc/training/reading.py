"""From options to encoded rows: the data, the tokenizer, the task that has both."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from ..data.collators import numpy_column
from ..data.sources import Source, load_splits, load_stream
from ..data.streaming import EncodedStream, TextStream
from ..tasks import TASKS, Task
from ..tokenization import load_tokenizer, train_tokenizer
from .arguments import Arguments
from .processes import main_first


@dataclass
class Data:
    """What a run learns from. Of a stream, `splits` and `rows` hold the beginning."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    splits: DatasetDict  # rows as they were read
    rows: DatasetDict  # the same, encoded
    stream: EncodedStream | None


def read(args: Arguments, accelerator: Accelerator, saved: Path | None) -> Data:
    """Read and tokenize the data, and say how much it is.

    Args:
        saved: an output folder or a checkpoint of this run, where there is one; its tokenizer goes on

    Raises:
        ValueError, OSError: one sentence that names the file and the row.
    """
    kind = TASKS[args.task]
    text_stream: TextStream | None = None
    if args.streaming:
        text_stream, splits = main_first(accelerator, lambda: load_stream(source_of(args), kind.columns(args)))
    else:
        splits = main_first(accelerator, lambda: load_splits(source_of(args), kind.columns(args), kind.built_in))
    tokenizer = make_tokenizer(args, accelerator, splits["train"], saved)
    task = kind(args, tokenizer)
    rows = main_first(accelerator, lambda: task.encode_placed(splits))
    for name, encoded in rows.items():
        begins = "a stream that begins with " if args.streaming and name == "train" else ""
        count = f"{len(splits[name]):,} texts, {len(encoded):,} rows, {numpy_column(encoded, 'length').sum():,} tokens"
        accelerator.print(f"{name}: {begins}{count}")
    stream = EncodedStream(text_stream, task.encode_texts, args.shuffle_buffer_size) if text_stream else None
    return Data(task, tokenizer, splits, rows, stream)


def source_of(args: Arguments) -> Source:
    """The data that the options name."""
    return Source(**{f.name: getattr(args, f.name) for f in fields(Source) if hasattr(args, f.name)})


def make_tokenizer(
    args: Arguments, accelerator: Accelerator, train_texts: Any, saved: Path | None
) -> PreTrainedTokenizerBase:
    """The tokenizer the options name, the one that a run saved, or one trained on the training split alone."""
    named = args.tokenizer_name or (None if args.train_tokenizer else args.model_name_or_path) or saved
    if named is not None:
        return load_tokenizer(named)
    trained: list[Any] = [None]
    if accelerator.is_main_process:
        texts = Texts(train_texts, TASKS[args.task])
        trained[0] = train_tokenizer(texts, args.vocab_size, args.tokenizer_type, model_max_length=args.max_seq_length)
    broadcast_object_list(trained)
    return trained[0]


@dataclass
class Texts:
    """The texts of a split, read anew each time that they are asked for, so that they need not fit into memory."""

    rows: Dataset
    task: type[Task]

    def __iter__(self) -> Iterator[str]:
        for batch in self.rows.iter(batch_size=1000):
            yield from self.task.texts(batch)
