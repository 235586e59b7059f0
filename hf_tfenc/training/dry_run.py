"""What a run will be: its data described, ten real steps made, and from these the time and the memory of it all."""

import math
import sys
import time
from collections.abc import Iterator
from itertools import count, islice

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict

from ..data.collators import EncodedRows, numpy_column, to_device
from ..data.report import describe, report_lines
from ..tasks import Batch
from .evaluation import Evaluation
from .monitor import clock
from .trainer import Trainer, in_groups, training_step

STEPS = 10
EVALUATION_BATCHES = 10  # in each process, which tell the time of an evaluation


def dry_run(trainer: Trainer, splits: DatasetDict, rows: DatasetDict) -> list[str]:
    """Describe a run that has not begun, in lines of text. All processes meet here; nothing is written.

    Times are by the token, as ten steps and a part of an evaluation take them; reading data, baselines
    and checkpoints are not in them.

    Args:
        splits: the rows of the source
        rows: what the task encoded of them

    Raises:
        ValueError: a step's loss or gradient is not finite.
    """
    args, accelerator, total, epoch = trainer.args, trainer.accelerator, trainer.total_steps, trainer.steps_per_epoch
    assert epoch is not None  # a stream has none, and no dry run
    tokens = {split: int(numpy_column(encoded, "length").sum()) for split, encoded in rows.items()}
    evaluations = math.ceil(total / (args.eval_steps or epoch)) + 1  # and the best model once more, at the end
    token_seconds = ten_steps(trainer, rows["train"])
    train_seconds = token_seconds * tokens["train"] / epoch * total
    evaluated_tokens = evaluations * tokens["validation"] + tokens.get("test", 0)
    eval_seconds = evaluation_seconds(trainer, rows["validation"]) * evaluated_tokens
    memory = max(gather_object([peak_memory(accelerator)]))
    report = describe(splits, rows, trainer.task.tokenizer) if accelerator.is_main_process else {}
    return [
        *report_lines(report, args.max_seq_length),
        f"model: {accelerator.unwrap_model(trainer.model).num_parameters():,} parameters",
        f"steps: {total:,}, {epoch:,} an epoch, with {evaluations:,} evaluations",
        f"time: about {clock(train_seconds + eval_seconds)}, {clock(eval_seconds)} of it for evaluations; "
        f"{1 / token_seconds:,.0f} tokens/s in training",
        f"memory: {memory / 2**30:.2f} GiB of {'the device' if on_cuda(accelerator) else 'RAM'} at the peak"
        + " in the process that needs most" * (accelerator.num_processes > 1),
        "A dry run writes no output folder; the same command without --dry_run begins the run.",
    ]


def ten_steps(trainer: Trainer, rows: Dataset) -> float:
    """Make ten steps, which change the model. The seconds that a token takes, without the first step, which warms up."""
    trainer.model.train()
    started, tokens = 0.0, 0
    for step, batches in enumerate(islice(steps_of(trainer, rows), STEPS)):
        if step == 1:
            started = time.monotonic()
        if step:
            tokens += sum(map(trainer.task.count_tokens, batches))
        batches = [to_device(batch, trainer.accelerator.device) for batch in batches]
        norm = trainer.args.max_grad_norm
        result = training_step(
            trainer.accelerator, trainer.training_model, trainer.optimizer, batches, trainer.task, norm
        )
        # float16 finds its scale by steps that are not finite.
        if not result.finite and (trainer.accelerator.scaler is None or not torch.isfinite(result.loss)):
            raise ValueError(
                f"Step {step + 1} of the dry run has the loss {float(result.loss):g} and a gradient of the norm "
                f"{float(result.grad_norm):g}, which is not finite: lower --learning_rate, or look at the rows."
            )
        if step < trainer.total_steps - 1:
            trainer.schedule.step()
    of_all = sum(gather_object([tokens]))
    return (time.monotonic() - started) / of_all


def steps_of(trainer: Trainer, rows: Dataset) -> Iterator[list[Batch]]:
    """The micro-batches of step after step: first of the longest rows, which need the most memory, then as in the run."""
    accumulated = trainer.args.gradient_accumulation_steps
    if trainer.args.packing == "padded":  # packed batches all have the same shape
        longest = np.argsort(numpy_column(rows, "length"))[-trainer.args.per_device_train_batch_size :]
        batch = trainer.collate(EncodedRows(rows).__getitems__([(0, row) for row in longest.tolist()]))
        yield [batch] * accumulated
    for epoch in count():
        trainer.train_bins.begin(epoch)
        yield from in_groups(trainer.train_loader, accumulated)


def evaluation_seconds(trainer: Trainer, rows: Dataset) -> float:
    """The seconds a token takes in an evaluation, on a part of the rows, evenly spaced."""
    args, accelerator = trainer.args, trainer.accelerator
    wanted = EVALUATION_BATCHES * args.per_device_eval_batch_size * accelerator.num_processes
    part = rows.select(range(0, len(rows), math.ceil(len(rows) / wanted)))
    evaluation = Evaluation(trainer.task, part, args.per_device_eval_batch_size, accelerator)
    started = time.monotonic()
    evaluation.measure(accelerator.unwrap_model(trainer.model))
    return (time.monotonic() - started) / int(numpy_column(part, "length").sum())


def on_cuda(accelerator: Accelerator) -> bool:
    return accelerator.device.type == "cuda"


def peak_memory(accelerator: Accelerator) -> int:
    """The most bytes that this process has held so far: on a GPU of its memory, elsewhere of the machine's."""
    if on_cuda(accelerator):
        return torch.cuda.max_memory_reserved(accelerator.device)
    import resource  # which not every system has

    # In bytes on macOS, in units of 1024 elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
