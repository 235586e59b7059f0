"""Tasks: how rows are encoded, which head learns them, what is measured. One file a task, all of one shape."""

from typing import TYPE_CHECKING, Any, Protocol

from datasets import Dataset, DatasetDict
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .masked_lm import MaskedLM

if TYPE_CHECKING:
    from ..training.arguments import Arguments


class Task(Protocol):
    """What the training loop asks of a task."""

    auto_class: Any  # the Auto class of the head
    config_options: dict[str, Any]  # set in the configuration of a new model

    def __init__(self, args: "Arguments", tokenizer: PreTrainedTokenizerBase): ...

    def encode(self, splits: DatasetDict) -> DatasetDict:
        """Rows of the source to rows with `input_ids` and `length`."""

    def collator(self, training: bool) -> Any:
        """From a list of encoded rows to a batch."""

    def count_items(self, batch: dict[str, Tensor]) -> Tensor:
        """How many items the loss of a batch is a sum over."""

    def measure(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, float]:
        """Sums over one evaluation batch, to be added up over batches and processes."""

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Metrics of a split from its sums; `eval_loss` is among them."""

    def baseline_loss(self, train: Dataset, evaluation: Dataset) -> float:
        """The loss of a model that only counts, known before the first step."""

    def baselines(self, train: Dataset, evaluation: Dataset) -> dict[str, float]:
        """Metrics of such models, to stand beside the trained one's."""

    def examples(self, model: nn.Module, evaluation: Dataset, count: int = 5) -> list[str]:
        """Held-out examples of what the model says."""

    def summary(self, metrics: dict[str, Any]) -> str:
        """The result in a few lines."""


TASKS: dict[str, type[Task]] = {"mlm": MaskedLM}
