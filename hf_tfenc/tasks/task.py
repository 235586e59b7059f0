"""What a task is: the shape that all of them have."""

import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets.fingerprint import Hasher
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from ..data.batching import Arrangement, PaddedBins
from ..data.sources import Column, Splits
from ..presets import preset_config
from ..tokenization import tokenizer_digest, vocabulary_size

if TYPE_CHECKING:
    from ..training.arguments import Arguments

logger = logging.getLogger(__name__)

BATCH_BYTES = 1_000_000  # of text tokenized at once, for a tokenizer takes hundreds of bytes a token

Batch = dict[str, Any]  # tensors, and numbers that are the same for every batch
ENCODING_VERSION = 3  # of how tasks encode: what an older one left in the cache is not read
PREDICTED_DIGITS = 5
WIDGET_TOKENS = 24

Measurement = dict[str, Any]  # by name a number, which is added up, or an array, which is joined to the others


class RowError(ValueError):
    """What is wrong with a row that a task is given: which split it is in, and its index there."""

    def __init__(self, split: str, row: int, reason: str):
        super().__init__(f"{split}, row {row + 1}: {reason}")
        self.split, self.row, self.reason = split, row, reason


class Picture(NamedTuple):
    """A square of numbers, with a name for each row and column."""

    kind: str  # "confusion" (rows of a true class, by the class predicted) or "similarity" (cosines of texts)
    names: list[str]
    numbers: np.ndarray


class Task(ABC):
    """How rows are encoded, which head learns them, what is measured.

    Args:
        args: the options of the run.
        tokenizer: loaded, or trained on `texts` of the training split; a task may change how it frames a row.

    Raises:
        ValueError: tokenizer and task do not go together.
    """

    auto_class: ClassVar[Any]  # the Auto class of the head
    pipeline_tag: ClassVar[str]  # on the Hub, and of transformers.pipeline
    description: ClassVar[str]  # "trained ... by <description>"
    reported: ClassVar[dict[str, str]]  # the metrics that a card shows, and what each of them is
    counted: ClassVar[dict[str, str]]  # the same for `baselines`
    best: ClassVar[tuple[str, ...]] = ("eval_loss",)  # the first that is measured says which model is the best
    epochs: ClassVar[int]  # over the built-in corpus, or any where no option says how many: some minutes on a laptop
    config_options: dict[str, Any] = {}  # set in the model's configuration; settled once rows are encoded

    token_columns: tuple[str, ...] = ("input_ids",)  # of encoded rows

    def __init__(self, args: "Arguments", tokenizer: PreTrainedTokenizerBase):
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ValueError(
                f"{type(tokenizer).__name__} has no fast (`tokenizers`) backend, which rows are encoded with: choose a "
                "tokenizer with a tokenizer.json."
            )
        self.args, self.tokenizer = args, tokenizer

    # --- Rows and batches ---

    @staticmethod
    @abstractmethod
    def columns(args: "Arguments") -> list[Column]:
        """What the rows of a source must have."""

    @staticmethod
    @abstractmethod
    def built_in() -> DatasetDict:
        """The built-in corpus of this task, with these columns."""

    @staticmethod
    @abstractmethod
    def texts(batch: dict[str, list]) -> Iterable[str]:
        """The text of some rows, which a new tokenizer is trained on."""

    @abstractmethod
    def encode(self, splits: DatasetDict) -> DatasetDict:
        """Rows of the source to rows of numbers, `length` (tokens) among them. What labels there are, `train` says.

        Raises:
            RowError: a row that the task cannot learn or be measured on.
            ValueError: the splits, or all rows together, are such.
        """

    def encode_placed(self, splits: Splits) -> DatasetDict:
        """As `encode`, and a RowError becomes a ValueError with the row's place in its source."""
        try:
            return self.encode(splits)
        except RowError as error:
            raise ValueError(f"{splits.place(error.split, error.row)}: {error.reason}") from error

    def encode_texts(self, texts: list[str]) -> pa.Table:
        """The rows that `encode` makes of some texts of a stream; a task on plain text has it."""
        raise NotImplementedError

    def adopt(self, config: PreTrainedConfig) -> None:  # noqa: B027
        """Take from a trained model what `encode` would learn from the training split: to evaluate without one."""

    @abstractmethod
    def collator(self, training: bool) -> Callable[[list[dict[str, Any]]], Batch]:
        """From a list of encoded rows to a batch."""

    def training_batches(self, lengths: np.ndarray) -> tuple[Arrangement, Callable[[list[dict[str, Any]]], Batch]]:
        """How training rows make micro-batches: which of them, and how these become tensors.

        Args:
            lengths: (rows,), tokens of each row; none of a stream, where nobody knows them yet
        """
        return PaddedBins(self.args.per_device_train_batch_size), self.collator(training=True)

    def count_tokens(self, batch: Batch) -> int:
        """How many tokens of a batch are none of padding."""
        real = batch.get("attention_mask")
        return int((batch["input_ids"] != self.tokenizer.pad_token_id if real is None else real).sum())

    # --- Loss and metrics ---

    @staticmethod
    @abstractmethod
    def count_items(batch: Batch) -> Tensor:
        """How many items the loss of a batch is a sum over."""

    def backward(self, accelerator: Accelerator, model: nn.Module, batches: list[Batch], items: Tensor) -> Tensor:
        """Gradients of one optimizer step over micro-batches. All processes meet here.

        Returns:
            this process's part of the loss; all parts add up to the mean over `items`
        """
        return sum_backward(accelerator, model, batches, lambda batch: model(**batch, num_items_in_batch=items).loss)

    @abstractmethod
    def measure(self, model: nn.Module, batch: Batch) -> Measurement:
        """What one evaluation batch adds to the metrics: numbers to be added up, arrays to be joined."""

    @abstractmethod
    def metrics(self, measured: Measurement) -> dict[str, float]:
        """Metrics of a whole split, `eval_loss` among them, whatever the order of the arrays."""

    @abstractmethod
    def predictions(self, measured: Measurement, source: Dataset, rows: Dataset) -> Iterator[dict[str, Any]]:
        """What the model says of each row of the source, in its order, as JSON takes it.

        Args:
            measured: of a whole split, with `row`, the numbers of the encoded rows in the order of the arrays
            source: the split as `encode` was given it
            rows: the split as `encode` returned it
        """

    # --- What a model that only counts would reach ---

    @abstractmethod
    def baseline_loss(self, train: Dataset, evaluation: Dataset) -> float:
        """The loss of a model that only counts, known before the first step."""

    def step_baseline(self, baseline_loss: float, rows: int) -> float:
        """The same in a training step of so many rows, where a loss depends on their number."""
        return baseline_loss

    @abstractmethod
    def baselines(self, train: Dataset, evaluation: Dataset) -> dict[str, float]:
        """Metrics of such models, to stand beside the trained one's."""

    # --- What it learned, to look at ---

    @abstractmethod
    def examples(self, model: nn.Module, evaluation: Dataset, count: int = 5) -> list[str]:
        """Held-out examples of what the model says."""

    def picture(self, model: nn.Module, evaluation: Dataset, measured: Measurement) -> "Picture | None":
        """What may be drawn of it, from what was measured of the evaluation rows; None where there is nothing."""
        return None

    @abstractmethod
    def summary(self, metrics: dict[str, Any]) -> str:
        """The result in a few lines."""

    @staticmethod
    @abstractmethod
    def usage(where: str, text: str | None = None) -> str:
        """A line or two of Python that use the model in the folder or repository `where`, on a text such as it knows."""

    def widget(self, evaluation: Dataset) -> list[dict[str, Any]]:
        """What the Hub offers to try: a held-out text, or the beginning of it, in the form of its widgets."""
        ids = np.asarray(evaluation[0][self.token_columns[0]])[:WIDGET_TOKENS].tolist()
        return [{"text": " ".join(self.tokenizer.decode(ids, skip_special_tokens=True).split())}]

    @staticmethod
    def next_steps(folder: str, built_in: bool) -> list[str]:
        """Commands to go on with, after a run on the built-in corpus or on a user's own data."""
        return []

    # --- What tasks share ---

    def id_feature(self) -> List:
        """The column type of token ids, as narrow as the vocabulary allows."""
        return List(Value("uint16" if vocabulary_size(self.tokenizer) <= 2**16 else "int32"))

    def map_rows(
        self, splits: DatasetDict, encode: Callable[..., dict[str, list]], features: Features, *settings: Any
    ) -> DatasetDict:
        """Encode each split by `encode(batch, indices, split)`. A second run with the same `settings` reads its cache."""
        return DatasetDict(
            {
                split: rows.map(
                    encode,
                    batched=True,
                    batch_size=batch_rows(rows),
                    with_indices=True,
                    fn_kwargs={"split": split},
                    remove_columns=rows.column_names,
                    features=features,
                    new_fingerprint=self._fingerprint(rows, split, *settings),
                    desc=f"Tokenizing {split}",
                )
                for split, rows in splits.items()
            }
        )

    def log_cut(self, encoded: DatasetDict) -> None:
        """Say of how many rows a text fills all the tokens that it may have, so that it was cut off, or nearly."""
        for split, rows in encoded.items():
            cut = 0
            for batch in rows.with_format("arrow").iter(batch_size=10_000):
                lengths = [pc.list_value_length(batch.column(part)) for part in self.token_columns]
                cut += pc.sum(pc.greater_equal(pc.max_element_wise(*lengths), self.args.max_seq_length)).as_py() or 0
            if cut:
                logger.info("%s: %d of %d rows fill --max_seq_length %d tokens; what is longer is cut off.",
                            split, cut, len(rows), self.args.max_seq_length)  # fmt: skip

    def _fingerprint(self, rows: Dataset, *settings: Any) -> str:
        # By hand, because a tokenizer keeps the truncation it was last called with, and would hash differently.
        cut = [self.tokenizer.truncation_side, self.args.max_seq_length]
        key = [type(self).__name__, ENCODING_VERSION, rows._fingerprint, tokenizer_digest(self.tokenizer), *cut]
        return Hasher.hash([*key, *settings])

    def segments(self) -> bool:
        """Whether the model of this run tells a first text from a second by `token_type_ids`."""
        args = self.args
        if args.model_name_or_path is not None:
            config = AutoConfig.from_pretrained(args.model_name_or_path, trust_remote_code=False)
            return getattr(config, "type_vocab_size", 0) > 0
        return preset_config(str(args.preset), **args.parsed_config_overrides()).type_vocab_size > 0


def own_text(metrics: dict[str, Any]) -> str | None:
    """A held-out text of the user's own, as the widget has it; none of the built-in corpus, nor where none is quoted."""
    widget = metrics.get("widget") or [{}]
    return None if "corpus" in metrics else widget[0].get("text")


def sum_backward(
    accelerator: Accelerator, model: nn.Module, batches: list[Batch], loss_of: Callable[[Batch], Tensor]
) -> Tensor:
    """Gradients of a loss that is a sum over independent items, micro-batch after micro-batch.

    Processes add up their gradients in the last backward pass.

    Returns:
        the sum of this process's losses, without its graph
    """
    total = torch.zeros((), device=accelerator.device)
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            loss = loss_of(batch)
            # Processes' gradients are averaged; a sum over items needs them added up.
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    return total


def join(measurements: list[Measurement]) -> Measurement:
    """Measurements of several batches or processes as one: numbers added up, arrays joined along their first axis."""
    if not measurements:
        return {}
    joined: Measurement = {}
    for name, value in measurements[0].items():
        values = [measurement[name] for measurement in measurements]
        joined[name] = np.concatenate(values) if isinstance(value, np.ndarray) else sum(values)
    return joined


def batch_rows(rows: Dataset) -> int:
    """How many rows are tokenized at once: 1,000, or fewer where they are long."""
    return max(1, min(1000, BATCH_BYTES * len(rows.data) // max(rows.data.nbytes, 1)))


def digits(value: float) -> float:
    """A predicted number to the digits that do not depend on how many rows are computed at once."""
    return float(f"{value:.{PREDICTED_DIGITS}g}")
