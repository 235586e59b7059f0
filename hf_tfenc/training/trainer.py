"""The training loop on Accelerate, and only that: one loop for all tasks and all device set-ups.

The textbook's loop is `Trainer.train` and `training_step`. What stands around it makes it exact: the loss is a sum over
items divided by their number in the whole step, so the gradient does not depend on how the step is split.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data.batching import EvaluationBins, TrainingBins
from ..data.collators import EncodedRows
from ..tasks import Batch, Task, join
from .arguments import Arguments
from .monitor import Monitor
from .optimization import OPTIMIZERS, make_schedule

DIGITS = 6  # of a metric; the last bits of float32 depend on how many rows are computed at once


def training_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[Batch],
    task: Task,
    max_grad_norm: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """One optimizer step over some micro-batches in each process.

    All processes meet here three times: to count items, to add up gradients (in the last micro-batch's backward pass),
    and to add up the loss.

    Returns:
        the mean loss over the items of the whole step, their number, and the norm of the gradient
    """
    items = torch.stack([task.count_items(batch) for batch in micro_batches]).sum()
    items = accelerator.reduce(items, reduction="sum")
    optimizer.zero_grad()
    total = task.backward(accelerator, model, micro_batches, items)
    grad_norm = accelerator.clip_grad_norm_(model.parameters(), max_grad_norm or float("inf"))
    optimizer.step()
    return accelerator.reduce(total, reduction="sum"), items, torch.as_tensor(grad_norm)


def in_groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches, one after another."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group


class Totals:
    """Sums since the last logged step, kept on the device so that a step need not wait for it."""

    def __init__(self) -> None:
        self.loss: Tensor | float = 0.0
        self.items: Tensor | int = 0
        self.tokens = 0
        self.started = time.monotonic()

    def add(self, loss: Tensor, items: Tensor, tokens: int) -> None:
        """A step's mean loss and its number of items in all processes, and the tokens of this process."""
        self.loss = self.loss + loss * items
        self.items = self.items + items
        self.tokens += tokens

    def read(self) -> tuple[float, int, int, float]:
        """Summed loss, items, tokens of all processes, and seconds. The CPU waits for the device here."""
        tokens = sum(gather_object([self.tokens]))
        return float(self.loss), int(self.items), tokens, time.monotonic() - self.started


class Trainer:
    """Trains a model on encoded rows, evaluates it now and then, and tells the caller which model is the best.

    Args:
        model: a head of the encoder, on any device.
        train_rows, eval_rows: what `task.encode` returned.
    """

    def __init__(
        self,
        args: Arguments,
        task: Task,
        model: nn.Module,
        train_rows: Dataset,
        eval_rows: Dataset,
        accelerator: Accelerator,
    ):
        self.args, self.task, self.accelerator = args, task, accelerator
        processes = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
        self.train_bins = TrainingBins(
            train_rows.with_format("numpy")["length"][:],
            args.per_device_train_batch_size,
            args.seed,
            args.gradient_accumulation_steps,
            **processes,
        )
        eval_bins = EvaluationBins(
            eval_rows.with_format("numpy")["length"][:], args.per_device_eval_batch_size, **processes
        )
        self.train_loader = self.loader(train_rows, self.train_bins, training=True)
        self.eval_loader = self.loader(eval_rows, eval_bins, training=False)
        self.steps_per_epoch = self.train_bins.steps_per_epoch
        self.total_steps = args.max_steps or (args.num_train_epochs or task.epochs) * self.steps_per_epoch
        self.eval_steps = args.eval_steps or self.steps_per_epoch

        model.to(accelerator.device)
        optimizer = OPTIMIZERS[args.optim](model, args)
        # The schedule stays unprepared: a prepared one would step once for each process.
        self.schedule = make_schedule(optimizer, args, self.total_steps)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.global_step, self.best_loss = 0, float("inf")

    def loader(self, rows: Dataset, bins: Any, training: bool) -> DataLoader:
        """Batches in the order of `bins`. Accelerate shards no loader: the bins are this process's own already."""
        workers = self.args.dataloader_num_workers if training else 0
        return DataLoader(
            EncodedRows(rows),
            batch_sampler=bins,
            collate_fn=self.task.collator(training),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.accelerator.device.type == "cuda",
            generator=torch.Generator(),  # else each pass would draw from the numbers that dropout draws from
        )

    def on_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in batch.items()}

    def due(self, every: int) -> bool:
        """Whether something that happens each `every` steps, and at the end, happens after this step."""
        return self.global_step % every == 0 or self.global_step == self.total_steps

    def train(self, monitor: Monitor, keep: Callable[[nn.Module], None]) -> dict[str, float]:
        """Epochs of steps. `keep` is handed the model each time it is the best one so far.

        Returns:
            `train_loss` (the last epoch's average), `train_runtime` in seconds with evaluations, `train_steps` and
            `train_tokens_per_second`
        """
        args, started, all_tokens, average = self.args, time.monotonic(), 0, 0.0
        for epoch in range(-(-self.total_steps // self.steps_per_epoch)):
            self.train_bins.epoch = epoch
            self.model.train()
            epoch_loss, epoch_items, totals = 0.0, 0, Totals()
            for batches in in_groups(self.train_loader, args.gradient_accumulation_steps):
                tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
                batches = [self.on_device(batch) for batch in batches]
                loss, items, grad_norm = training_step(
                    self.accelerator, self.model, self.optimizer, batches, self.task, args.max_grad_norm
                )
                learning_rate = self.schedule.get_last_lr()[0]
                if not self.accelerator.optimizer_step_was_skipped:  # float16 skips a step that overflowed
                    self.schedule.step()
                self.global_step += 1
                totals.add(loss, items, tokens)
                monitor.step(self.global_step)

                if self.due(args.logging_steps) or self.due(self.steps_per_epoch):
                    loss_sum, item_sum, token_sum, seconds = totals.read()
                    epoch_loss, epoch_items, totals = epoch_loss + loss_sum, epoch_items + item_sum, Totals()
                    all_tokens += token_sum
                    monitor.training(
                        {
                            "step": self.global_step,
                            "epoch": self.epoch_now,
                            "loss": loss_sum / max(item_sum, 1),
                            "learning_rate": learning_rate,
                            "grad_norm": float(grad_norm),
                            "tokens": all_tokens,
                            "tokens_per_second": token_sum / seconds,
                        }
                    )
                    self.refuse_divergence(loss_sum)
                if self.due(self.eval_steps):
                    paused = time.monotonic()
                    self.evaluate_and_keep(monitor, keep)
                    self.model.train()
                    totals.started += time.monotonic() - paused  # evaluation is no part of the training speed
                if self.global_step == self.total_steps:
                    break
            average = epoch_loss / max(epoch_items, 1)
            monitor.epoch_end({"step": self.global_step, "epoch": self.epoch_now, "train_loss": average})
        runtime = time.monotonic() - started
        return {
            "train_loss": average,
            "train_runtime": runtime,
            "train_steps": self.global_step,
            "train_tokens_per_second": all_tokens / runtime,
        }

    @property
    def epoch_now(self) -> float:
        return round(self.global_step / self.steps_per_epoch, 4)

    def evaluate_and_keep(self, monitor: Monitor, keep: Callable[[nn.Module], None]) -> None:
        metrics = self.evaluate()
        monitor.evaluation({"step": self.global_step, "epoch": self.epoch_now} | metrics)
        self.refuse_divergence(metrics["eval_loss"])
        last = self.global_step == self.total_steps
        if metrics["eval_loss"] < self.best_loss or (last and not self.args.load_best_model_at_end):
            self.best_loss = min(self.best_loss, metrics["eval_loss"])
            keep(self.accelerator.unwrap_model(self.model))

    def refuse_divergence(self, loss: float) -> None:
        """Stop where nothing more can be learned. Raises ValueError, in all processes alike."""
        if not math.isfinite(loss):
            raise ValueError(
                f"The loss is {loss} at step {self.global_step}, so training has diverged: "
                "lower --learning_rate, lengthen --warmup_steps, or clip with --max_grad_norm 1."
            )

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Metrics over all evaluation rows, each counted once on whatever number of processes."""
        self.model.eval()
        # Not the wrapped one, in which processes wait for each other: some may have fewer batches, or none.
        model = self.accelerator.unwrap_model(self.model)
        measured = join([self.task.measure(model, self.on_device(batch)) for batch in self.eval_loader])
        metrics = self.task.metrics(join([part for part in gather_object([measured]) if part]))
        return {name: float(f"{value:.{DIGITS}g}") for name, value in metrics.items()}
