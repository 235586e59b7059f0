"""Measuring a model on a whole split, each row counted once on whatever number of processes."""

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.batching import EvaluationBins
from ..data.collators import EncodedRows, numpy_column, to_device
from ..tasks import Measurement, Task, join
from .precision import compute_in_bfloat16
from .signals import StopSignals

BAR_AFTER = 3.0  # seconds; a short evaluation needs none
DIGITS = 6  # of a metric; the last bits of float32 depend on how many rows are computed at once


class Evaluation:
    """Measures models on one split.

    Args:
        rows: what `task.encode` returned of it.
        batch_size: rows of a batch; no metric depends on it.
    """

    def __init__(self, task: Task, rows: Dataset, batch_size: int, accelerator: Accelerator):
        self.task, self.accelerator = task, accelerator
        self.bins = EvaluationBins(
            numpy_column(rows, "length"), batch_size, accelerator.process_index, accelerator.num_processes
        )
        self.loader = DataLoader(
            EncodedRows(rows),
            batch_sampler=self.bins,
            collate_fn=task.collator(training=False),
            pin_memory=accelerator.device.type == "cuda",
            generator=torch.Generator(),  # else each pass would draw from the numbers that dropout draws from
        )

    @torch.no_grad()
    def measure(self, model: nn.Module, signals: StopSignals | None = None) -> Measurement | None:
        """What the task measures, of all rows in all processes, and `row`, the number of each of them, in that order.

        Args:
            model: not a wrapped one, in which processes wait for each other.
            signals: what asks the run to stop; then there is no result, in all processes alike.
        """
        compute_in_bfloat16(self.accelerator, model.eval())
        parts = []
        hidden = None if self.accelerator.is_main_process else True  # None: where there is no terminal
        bar = tqdm(self.loader, "Evaluating", unit="batch", leave=False, delay=BAR_AFTER, disable=hidden)
        for rows, batch in zip(self.bins, bar, strict=True):
            if signals is not None and self._any_process(signals.received):
                return None
            on_device = to_device(batch, self.accelerator.device)
            with self.accelerator.autocast():  # which a model that was not prepared would lack
                measured = self.task.measure(model, on_device)
            if rows:  # else it stands in for none, so that all processes have the same number of batches
                parts.append({"row": np.array([row for _, row in rows]), **measured})
        return join([part for part in gather_object([join(parts)]) if part])

    def metrics(self, measured: Measurement) -> dict[str, float]:
        """The task's metrics, to as many digits as are the same for any batch size and number of processes."""
        return {name: float(f"{value:.{DIGITS}g}") for name, value in self.task.metrics(measured).items()}

    def _any_process(self, condition: bool) -> bool:
        """Whether a condition holds in one process at least."""
        if self.accelerator.num_processes == 1:
            return condition
        flag = torch.tensor(float(condition), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum") > 0)
