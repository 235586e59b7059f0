"""The training loop on Accelerate, and only that: one loop for all tasks and all device set-ups.

The textbook's loop is `Trainer.train` and `training_step`. What stands around it makes it exact: the loss is a sum over
items divided by their number in the whole step, so the gradient does not depend on how the step is split.
"""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from datasets import Dataset
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from ..data.batching import TrainingBins
from ..data.collators import EncodedRows, numpy_column, to_device
from ..data.streaming import EncodedStream, StreamedBins, StreamedRows
from ..tasks import Batch, Task
from .arguments import Arguments, RunError, launch_command
from .checkpointing import OutputFolder
from .compilation import compile_for_training
from .evaluation import Evaluation
from .monitor import Monitor
from .optimization import OPTIMIZERS, make_schedule, skip_unless
from .precision import compute_in_bfloat16
from .signals import Interrupted, StopSignals, ignore_in_worker
from .state import load_optimizer, load_rng, rng_file

# Metrics that are better the lower they are.
LOSSES = {"eval_loss", "eval_loss_per_byte", "eval_perplexity"}


class StepResult(NamedTuple):
    """What one optimizer step tells, the same in all processes."""

    loss: Tensor  # mean over the items of the whole step
    items: Tensor  # their number
    grad_norm: Tensor
    verdict: Callable[[], list[bool]]  # gives the two below; whoever asks waits for the device

    @property
    def finite(self) -> bool:
        """Whether loss and gradient were; else the step was skipped, and the weights are as they were."""
        return self.verdict()[0]

    @property
    def stop(self) -> bool:
        """Whether any process had been asked to stop."""
        return self.verdict()[1]


class Taken(NamedTuple):
    """A step that the device may still be at work on."""

    result: StepResult
    tokens: int  # of this process
    step: int
    epoch: int
    first_bin: int


def training_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[Batch],
    task: Task,
    max_grad_norm: float = 0.0,
    stop: Callable[[], bool] = lambda: False,
) -> StepResult:
    """One optimizer step over some micro-batches in each process.

    All processes meet here three times: to count items, to add up gradients (in the last micro-batch's backward pass),
    and to add up the loss and hear whether one of them was asked to `stop`. A step whose loss or gradient is not finite
    is skipped by all of them.
    """
    items = torch.stack([task.count_items(batch) for batch in micro_batches]).sum()
    items = accelerator.reduce(items, reduction="sum")
    optimizer.zero_grad()
    total = task.backward(accelerator, model, micro_batches, items)
    total, stops = accelerator.reduce(torch.stack([total, torch.full_like(total, stop())]), reduction="sum")
    grad_norm = torch.as_tensor(accelerator.clip_grad_norm_(model.parameters(), max_grad_norm or float("inf")))
    grad_norm = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm
    finite = torch.isfinite(total + grad_norm)
    result = StepResult(total, items, grad_norm, copy_to_host(torch.stack([finite, stops > 0])))
    # float16's loss scaling skips by itself, and lowers the scale.
    if skip_unless(finite, optimizer, accelerator) or accelerator.scaler is not None or result.finite:
        optimizer.step()
    return result


def copy_to_host(flags: Tensor) -> Callable[[], list[bool]]:
    """Start a copy of some flags to the CPU. Calling the result gives them, and waits for that copy alone."""
    if flags.device.type != "cuda":
        return flags.tolist
    copy, arrived = flags.to("cpu", non_blocking=True), torch.cuda.Event()
    arrived.record()

    def read() -> list[bool]:
        arrived.synchronize()
        return copy.tolist()

    return read


def in_groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches, one after another."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group


@dataclass
class Progress:
    """Where a run is: with weights, optimizer and random numbers, all that its next step depends on."""

    global_step: int = 0
    epoch: int = 0
    consumed_bins: int = 0  # of this epoch
    bookmark: Sequence[int] | None = None  # of a stream: where to look for the next bin
    evaluation_due: bool = False  # after this step, and not yet made
    best_name: str = ""  # of the metric that says which model is the best
    best_metric: float | None = None  # the higher, the better
    best_loss: float = 0.0  # of that model
    best_step: int = 0
    skipped_in_a_row: int = 0
    tokens: int = 0
    epoch_loss: float = 0.0  # summed over the items of this epoch, up to the last logged step
    epoch_items: int = 0
    logged_loss: float = 0.0  # the same since the last logged step
    logged_items: int = 0
    logged_tokens: int = 0
    train_loss: float = 0.0  # mean of the last finished epoch
    seconds: float = 0.0  # of training, evaluations included


class Totals:
    """Sums since the last logged step, kept on the device so that a step need not wait for it."""

    def __init__(self, loss: float = 0.0, items: int = 0, tokens: int = 0) -> None:
        self.loss: Tensor | float = loss
        self.items: Tensor | int = items
        self.tokens = self.tokens_before = tokens
        self.started = time.monotonic()

    def add(self, loss: Tensor, items: Tensor, tokens: int) -> None:
        """A step's mean loss and its number of items in all processes, and the tokens of this process."""
        self.loss = self.loss + loss * items
        self.items = self.items + items
        self.tokens += tokens

    def read(self) -> tuple[float, int, int]:
        """Summed loss, items, and tokens of all processes. The CPU waits for the device here."""
        return float(self.loss), int(self.items), sum(gather_object([self.tokens]))

    def tokens_per_second(self, tokens: int) -> float:
        """The speed at which `tokens` in all processes were worked on; those before an interruption do not count."""
        return (tokens - self.tokens_before) / (time.monotonic() - self.started)


class Trainer:
    """Trains a model on encoded rows, evaluates and saves it now and then, and keeps the best one.

    Args:
        model: a head of the encoder, on any device.
        train_rows, eval_rows: what `task.encode` returned, or a stream to train on.
        signals: what asks the run to stop.
        progress: where the run is, if it goes on from a checkpoint.
    """

    def __init__(
        self,
        args: Arguments,
        task: Task,
        model: nn.Module,
        train_rows: Dataset | EncodedStream,
        eval_rows: Dataset,
        accelerator: Accelerator,
        signals: StopSignals | None = None,
        progress: Progress | None = None,
    ):
        self.args, self.task, self.accelerator = args, task, accelerator
        self.signals = signals or StopSignals()
        self.progress = progress or Progress()
        processes = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
        self.train_bins: TrainingBins | StreamedBins
        lengths = np.array([], dtype=np.int64)
        if isinstance(train_rows, Dataset):
            lengths = numpy_column(train_rows, "length")
        arrangement, self.collate = task.training_batches(lengths)
        order = (arrangement, args.seed, args.gradient_accumulation_steps)
        if isinstance(train_rows, EncodedStream):
            bookmark = self.progress.bookmark
            self.train_bins = StreamedBins(train_rows, *order, **processes, bookmark=bookmark, gather=gather_object)
            self.train_loader = self.loader(StreamedRows())
        else:
            self.train_bins = TrainingBins(lengths, *order, **processes)
            self.train_loader = self.loader(EncodedRows(train_rows))
        self.evaluation = Evaluation(task, eval_rows, args.per_device_eval_batch_size, accelerator)
        self.total_steps = args.max_steps or self.progress.global_step + self.steps_left()

        compute_in_bfloat16(accelerator, model.to(accelerator.device))
        optimizer = OPTIMIZERS[args.optim](model, args)
        # The schedule stays unprepared: a prepared one would step once for each process.
        self.schedule = make_schedule(optimizer, args, self.total_steps)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        # Only training is compiled: batches of an evaluation differ in shape.
        self.training_model: Any = self.model
        if args.torch_compile:
            self.training_model = compile_for_training(self.model, args)
        self.totals, self.started = Totals(), time.monotonic()
        # A GPU works on one step while the next is handed to it, so what became of a step is heard one step later.
        self.lag = int(accelerator.device.type == "cuda")
        self.taken: deque[Taken] = deque()
        self.stop_asked = False
        self.learning_rate: float | Tensor = 0.0  # of the last step
        self.grad_norm = torch.zeros(())
        if args.metric_for_best_model is not None:  # else it would be missed after the first epoch
            one = eval_rows.select(range(1))
            measured = Evaluation(task, one, 1, accelerator).measure(accelerator.unwrap_model(self.model))
            self.metric_for_best(task.metrics(measured or {}))

    def steps_left(self) -> int:
        """Optimizer steps to the end of the last epoch, for the number of processes that there are now."""
        assert isinstance(self.train_bins, TrainingBins) and self.args.num_train_epochs  # a stream has max_steps
        first, consumed = self.progress.epoch, self.progress.consumed_bins
        epochs = range(first, self.args.num_train_epochs)
        return sum(self.train_bins.steps(epoch, consumed if epoch == first else 0) for epoch in epochs)

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of the first epoch, which others hardly differ from; of a stream nobody knows it."""
        return self.train_bins.steps(0) if isinstance(self.train_bins, TrainingBins) else None

    def loader(self, rows: torch.utils.data.Dataset) -> DataLoader:
        """Training batches. Accelerate shards no loader: the bins are this process's own already."""
        workers = self.args.dataloader_num_workers
        return DataLoader(
            rows,
            batch_sampler=self.train_bins,
            collate_fn=self.collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.accelerator.device.type == "cuda",
            generator=torch.Generator(),  # else each pass would draw from the numbers that dropout draws from
            worker_init_fn=ignore_in_worker,
        )

    # --- Training ---

    def train(self, monitor: Monitor, output: OutputFolder) -> dict[str, float]:
        """Epochs of steps, evaluations and checkpoints.

        Returns:
            `train_loss` (the last epoch's average), `train_runtime` in seconds with evaluations, `train_steps` and
            `train_tokens_per_second`

        Raises:
            Interrupted: after a signal, with everything saved.
            RunError: nothing more can be learned.
            SaveError: a run that was stopped, or that nothing more can be learned in, could not be saved.
        """
        self.monitor, self.output = monitor, output
        args, progress = self.args, self.progress
        self.started = time.monotonic() - progress.seconds
        self.totals = Totals(
            progress.logged_loss,
            progress.logged_items,
            progress.logged_tokens if self.accelerator.is_main_process else 0,
        )
        if progress.evaluation_due or (progress.best_metric is None and progress.global_step >= self.total_steps):
            self.evaluate_and_keep()
        while progress.global_step < self.total_steps:
            self.train_bins.begin(progress.epoch, progress.consumed_bins)
            self.model.train()
            for batches in in_groups(self.train_loader, args.gradient_accumulation_steps):
                self.step(batches)
                ended = self.train_bins.share(progress.consumed_bins) == 1
                last = progress.global_step == self.total_steps
                if last or progress.global_step % args.logging_steps == 0 or ended:
                    self.log()
                if last or ended:
                    self.end_epoch(ended)
                progress.evaluation_due = last or self.is_due(args.eval_steps, ended)
                if progress.skipped_in_a_row >= args.max_skipped_steps:
                    self.give_up()
                if self.stop_asked:
                    self.stop()
                evaluated = progress.evaluation_due
                if evaluated:
                    self.evaluate_and_keep()
                    self.model.train()
                if last or self.is_due(args.save_steps, evaluated):
                    self.save()
                if last:
                    break
                self.output.publish(progress.global_step)
        runtime = time.monotonic() - self.started
        return {
            "train_loss": progress.train_loss,
            "train_runtime": runtime,
            "train_steps": progress.global_step,
            "train_tokens_per_second": progress.tokens / runtime,
        }

    def is_due(self, every: int | None, otherwise: bool) -> bool:
        """Whether something that happens each `every` steps happens after this one; if not said, as `otherwise`."""
        return otherwise if every is None else self.progress.global_step % every == 0

    def step(self, batches: list[Batch]) -> None:
        """One optimizer step."""
        progress = self.progress
        tokens = sum(map(self.task.count_tokens, batches))
        batches = [to_device(batch, self.accelerator.device) for batch in batches]
        with self.signals.kept_from_children():  # compilers, torch's and Triton's
            result = training_step(
                self.accelerator,
                self.training_model,
                self.optimizer,
                batches,
                self.task,
                self.args.max_grad_norm,
                lambda: self.signals.received,
            )
        self.taken.append(Taken(result, tokens, progress.global_step + 1, progress.epoch, progress.consumed_bins))
        progress.global_step += 1
        progress.consumed_bins += self.train_bins.bins_per_step
        self.learning_rate, self.grad_norm = self.schedule.get_last_lr()[0], result.grad_norm
        self.schedule.step()
        self.settle(self.lag)
        self.monitor.step(progress.global_step)

    def settle(self, left: int = 0) -> None:
        """Hear what became of the steps taken, but for the last `left`."""
        while len(self.taken) > left:
            taken = self.taken.popleft()
            if taken.result.finite:
                self.progress.skipped_in_a_row = 0
                self.totals.add(taken.result.loss, taken.result.items, taken.tokens)
            else:
                self.skipped(taken)
            self.stop_asked |= taken.result.stop

    def log(self) -> None:
        """A logged step, over all steps since the one before."""
        self.settle()
        progress, (loss, items, tokens) = self.progress, self.totals.read()
        progress.epoch_loss += loss
        progress.epoch_items += items
        progress.tokens += tokens
        self.monitor.training(
            {
                "step": progress.global_step,
                "epoch": self.epoch_now,
                "loss": loss / items if items else math.nan,
                "learning_rate": self.learning_rate,
                "grad_norm": float(self.grad_norm),
                "tokens": progress.tokens,
                "tokens_per_second": self.totals.tokens_per_second(tokens),
            }
        )
        self.totals = Totals()

    def end_epoch(self, ended: bool) -> None:
        """Log an epoch's average; at an epoch's true end the next one begins."""
        progress = self.progress
        progress.train_loss = progress.epoch_loss / max(progress.epoch_items, 1)
        record = {"step": progress.global_step, "epoch": self.epoch_now, "train_loss": progress.train_loss}
        self.monitor.epoch_end(record)
        if ended:
            progress.epoch, progress.consumed_bins = progress.epoch + 1, 0
            progress.epoch_loss, progress.epoch_items = 0.0, 0

    @property
    def epoch_now(self) -> float:
        return round(self.progress.epoch + self.train_bins.share(self.progress.consumed_bins), 4)

    # --- What stops a run, and what survives ---

    def skipped(self, taken: Taken) -> None:
        """Count a step whose loss or gradient was not finite, and name its rows."""
        self.progress.skipped_in_a_row += 1
        loss, norm = float(taken.result.loss), float(taken.result.grad_norm)
        if self.accelerator.scaler is None or not math.isfinite(loss):  # float16 finds its scale by such steps
            rows = self.train_bins.rows(taken.epoch, taken.first_bin)
            record = {"step": taken.step, "skipped": True, "loss": loss, "rows": rows}
            self.monitor.skipped(record, norm, self.progress.skipped_in_a_row)

    def give_up(self) -> NoReturn:
        """End a run that had too many such steps in a row, with its last good state saved. Raises RunError."""
        progress = self.progress
        skipped, progress.skipped_in_a_row = progress.skipped_in_a_row, 0  # a run that goes on has all of them again
        saved = "The last whole checkpoint, if there is one, holds the last good state"
        metrics = self.evaluate()
        if metrics is not None and math.isfinite(metrics["eval_loss"]):  # the weights are sound, so it was the rows
            self.save(required=True)
            saved = "A checkpoint holds the last good state"
        raise RunError(
            f"{skipped} steps in a row, up to step {progress.global_step}, had a loss or a gradient that is not finite and "
            "were skipped: lower --learning_rate or lengthen --warmup_steps (with --resume_with_changes), or look at the "
            f"rows that log.jsonl names. {saved}."
        )

    def stop(self) -> NoReturn:
        """Save everything and end the run. Raises Interrupted."""
        self.save(required=True)
        name = self.signals.name or "a signal to another process"
        raise Interrupted(
            f"Stopped by {name} after step {self.progress.global_step:,}. To go on from there: {launch_command(self.args)}"
        )

    def save(self, required: bool = False) -> None:
        """Write a checkpoint."""
        self.settle()
        progress, scaler = self.progress, self.accelerator.scaler
        progress.logged_loss, progress.logged_items, progress.logged_tokens = self.totals.read()
        progress.seconds = time.monotonic() - self.started
        if isinstance(self.train_bins, StreamedBins):
            progress.bookmark = self.train_bins.bookmark(progress.consumed_bins)
        state = {
            "progress": asdict(progress),
            "scaler": None if scaler is None else scaler.state_dict(),
            "log_bytes": self.monitor.sync(),
        }
        self.output.save(
            progress.global_step, self.model, self.optimizer, state, progress.best_step, required=required
        )

    def restore(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Go on as if nothing had happened since `checkpoint`. The model was loaded from it before."""
        step = self.progress.global_step
        set_seed(self.args.seed + step, device_specific=True)  # for processes that were not there then
        if step:
            self.schedule.last_epoch = step - 1
            self.schedule.step()
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if state["run"]["options"]["optim"] == self.args.optim:
            load_optimizer(checkpoint, self.accelerator.unwrap_model(self.model), self.optimizer)
        own = checkpoint / rng_file(self.accelerator.process_index)
        if own.exists():
            load_rng(own)

    # --- Evaluation ---

    def evaluate_and_keep(self) -> None:
        """Evaluate, and keep the model if it is the best so far, or the last one and the last is wanted."""
        paused, progress = time.monotonic(), self.progress
        metrics = self.evaluate(self.signals)
        if metrics is None:
            self.stop()
        loss = metrics["eval_loss"]
        self.monitor.evaluation({"step": progress.global_step, "epoch": self.epoch_now} | metrics)
        if not math.isfinite(loss):
            raise RunError(
                f"The held-out loss is {loss} at step {progress.global_step}, so training has diverged: lower "
                "--learning_rate, lengthen --warmup_steps, or clip with --max_grad_norm 1."
            )
        last = progress.global_step == self.total_steps
        name, value = self.metric_for_best(metrics)
        if progress.best_name != name:
            progress.best_name, progress.best_metric = name, None
        # Of models that a coarse metric cannot tell apart, the one with the lower loss.
        best = progress.best_metric is None or (value, -loss) > (progress.best_metric, -progress.best_loss)
        wanted = best or (last and not self.args.load_best_model_at_end)
        kept = wanted and self.output.keep(self.model)
        if kept:
            progress.best_metric, progress.best_loss, progress.best_step = value, loss, progress.global_step
        progress.evaluation_due = wanted and not kept  # a run that goes on will try again
        self.totals.started += time.monotonic() - paused  # evaluation is no part of the training speed

    def metric_for_best(self, metrics: dict[str, float]) -> tuple[str, float]:
        """What models are compared by, and its value, the higher the better: that of a loss with its sign turned.

        Raises:
            RunError: there is no such metric.
        """
        asked = self.args.metric_for_best_model
        names = self.task.best if asked is None else (f"eval_{asked.removeprefix('eval_')}",)
        name = next((name for name in names if name in metrics), None)
        if name is None:
            known = ", ".join(name.removeprefix("eval_") for name in metrics)
            raise RunError(f"--metric_for_best_model {asked} is not measured here; {known} are.")
        value = -metrics[name] if name in LOSSES else metrics[name]
        return name, value if math.isfinite(value) else -sys.float_info.max  # which JSON can write

    def evaluate(self, signals: StopSignals | None = None) -> dict[str, float] | None:
        """Metrics over all evaluation rows.

        Args:
            signals: what asks the run to stop; then there is no result, in all processes alike.
        """
        model = self.accelerator.unwrap_model(self.model)  # the wrapped one has processes wait for each other
        measured = self.evaluation.measure(model, signals)
        return None if measured is None else self.evaluation.metrics(measured)
