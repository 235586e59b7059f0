"""What the two language models share: text in windows, losses by the token, and models that count tokens."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict, Features
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data import stdlib_corpus
from ..data.batching import Arrangement
from ..data.collators import LabelRow, numpy_column
from ..data.masking import IGNORE_INDEX
from ..data.packing import PackedBins, PackedCollator
from ..data.sources import TEXT_COLUMNS, Column
from ..tokenization import token_byte_lengths, vocabulary_size
from .task import Batch, Measurement, Task, digits

if TYPE_CHECKING:
    from ..training.arguments import Arguments

EVALUATION_SEED = 0  # what evaluation draws is the same for every run, so that runs can be compared
BASELINE_TOKENS = 20_000_000  # of training text counted at most; beyond, the counts hardly move and memory does


class LanguageModeling(Task):
    """A task on plain text, whose loss is the cross-entropy of some of its tokens."""

    def __init__(self, args: "Arguments", tokenizer: PreTrainedTokenizerBase):
        super().__init__(args, tokenizer)
        self.is_special = np.ones(vocabulary_size(tokenizer), dtype=bool)  # ids that no token has stay so
        self.is_special[list(tokenizer.get_vocab().values())] = False
        self.is_special[tokenizer.all_special_ids] = True
        self.bytes_of = torch.from_numpy(token_byte_lengths(tokenizer))

    @staticmethod
    def columns(args: "Arguments") -> list[Column]:
        """The text."""
        return [Column("text", "text", TEXT_COLUMNS, args.text_column, "--text_column")]

    @staticmethod
    def built_in() -> DatasetDict:
        """Python's own documentation."""
        return stdlib_corpus.stdlib_documents().select_columns("text")

    @staticmethod
    def texts(batch: dict[str, list]) -> Iterable[str]:
        """The text itself."""
        return batch["text"]

    @abstractmethod
    def features(self) -> Features:
        """The columns of encoded rows."""

    @abstractmethod
    def _windows(self, batch: dict[str, list], indices: list[int], split: str) -> dict[str, list]:
        """The windows of some texts."""

    predicted: Callable[[int], int] | None = None  # the length of a row -> how many tokens are, unless nearly all are

    @abstractmethod
    def label_row(self, training: bool) -> LabelRow:
        """What makes inputs and labels of an encoded row."""

    def training_batches(self, lengths: np.ndarray) -> tuple[Arrangement, Callable[[list[dict[str, Any]]], Batch]]:
        """Bins of rows, or rows packed one after another."""
        args = self.args
        if args.packing == "padded":
            return super().training_batches(lengths)
        bins = PackedBins.for_rows(lengths, args.packed_tokens, self.predicted)
        return bins, PackedCollator(
            bins, self.tokenizer.pad_token_id, self.label_row(training=True), args.max_seq_length
        )

    def encode_texts(self, texts: list[str]) -> pa.Table:
        """The rows that `encode` makes of some texts."""
        return pa.Table.from_pydict(
            self._windows({"text": texts}, list(range(len(texts))), "train"), self.features().arrow_schema
        )

    @staticmethod
    def count_items(batch: Batch) -> Tensor:
        """Labelled tokens of a batch: what the loss is a mean over."""
        return (batch["labels"] != IGNORE_INDEX).sum()

    def token_losses(self, logits: Tensor, labels: Tensor, rows: Tensor, count: int) -> Measurement:
        """What some predicted tokens add to the metrics.

        Args:
            logits: (tokens, vocab)
            labels: (tokens,)
            rows: (tokens,), the row of the batch that each token is in
            count: how many rows the batch has
        """
        losses = F.cross_entropy(logits.float(), labels, reduction="none").cpu().double().numpy()
        places = rows.cpu().numpy()
        return {
            "loss": np.bincount(places, weights=losses, minlength=count),  # a sum for each row
            "items": np.bincount(places, minlength=count),
            "correct": int((logits.argmax(dim=-1) == labels).sum()),
            "bytes": int(self.bytes_of[labels.cpu()].sum()),
        }

    def metrics(self, measured: Measurement) -> dict[str, float]:
        """Loss in nats a token and a byte, perplexity, and how often the likeliest token is the right one."""
        total, items = math.fsum(measured["loss"]), max(int(measured["items"].sum()), 1)
        return {
            "eval_loss": total / items,
            "eval_perplexity": float(np.exp(min(total / items, 700))),
            "eval_accuracy": measured["correct"] / items,
            "eval_loss_per_byte": total / max(measured["bytes"], 1),
        }

    def predictions(self, measured: Measurement, source: Dataset, rows: Dataset) -> Iterator[dict[str, Any]]:
        """`tokens` that were predicted, and their mean `loss` in nats; none where there are none."""
        windows = numpy_column(rows, "source")[measured["row"]]
        losses: list[list[float]] = [[] for _ in range(len(source))]
        tokens = np.bincount(windows, weights=measured["items"], minlength=len(source)).astype(int)
        for window, loss in zip(windows.tolist(), measured["loss"].tolist(), strict=True):
            losses[window].append(loss)
        for row, (summands, count) in enumerate(zip(losses, tokens.tolist(), strict=True), 1):
            yield {"row": row, "loss": digits(math.fsum(summands) / count) if count else None, "tokens": count}

    def training_tokens(self, train: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of the training rows one after another, and how often each ordinary one occurs: (vocab,)."""
        chunks, total = [], 0
        for batch in train.with_format("numpy", columns=["input_ids"]).iter(batch_size=1000):
            chunks += list(batch["input_ids"])
            total += sum(map(len, batch["input_ids"]))
            if total >= BASELINE_TOKENS:
                break
        tokens = np.concatenate(chunks).astype(np.int64)
        counts = np.bincount(tokens, minlength=len(self.is_special))
        return tokens, np.where(self.is_special, 0, counts)

    def result_line(self, metrics: dict[str, Any]) -> str:
        """The loss in its three forms."""
        return (
            f"held-out loss {metrics['eval_loss']:.3f} · perplexity {metrics['eval_perplexity']:.1f} · "
            f"loss per byte {metrics['eval_loss_per_byte']:.3f}"
        )
