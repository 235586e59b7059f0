"""Tasks: how rows are encoded, which head learns them, what is measured. One file a task, all of one shape."""

from .causal_lm import CausalLM
from .embedding import Embedding
from .masked_lm import MaskedLM
from .sequence_classification import SequenceClassification
from .task import Batch, Measurement, Task, join
from .token_classification import TokenClassification

TASKS: dict[str, type[Task]] = {
    "mlm": MaskedLM,
    "causal-lm": CausalLM,
    "sequence-classification": SequenceClassification,
    "token-classification": TokenClassification,
    "embedding": Embedding,
}

__all__ = ["TASKS", "Batch", "Measurement", "Task", "join"]
