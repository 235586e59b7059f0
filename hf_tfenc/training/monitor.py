"""What one sees of a run: a progress bar or plain lines, log.jsonl, and what a tracker shows."""

import errno
import json
import math
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .tracking import Tracker

LOG_FILE = "log.jsonl"  # in an output folder
PLAIN_LINE_SECONDS = 15.0  # between lines where there is no terminal
# After this share of the steps, a loss this near the baseline has learned nothing.
STUCK_SHARE, STUCK_MARGIN = 0.2, 0.02
STUCK_STEPS = 100  # fewer say nothing: the loss logged is a mean that the first steps of all are part of
SKIPS_SAID = 3


class Monitor:
    """Shows and records one run. Only the main process has one that is `active`; the others' do nothing.

    Args:
        log_file: where one JSON object a logged step is appended.
        total_steps: optimizer steps of the run.
        baseline_loss: what a model that only counts reaches; the line that training must leave below it.
        step: after which step the run goes on.
        log_bytes: where the log stood then. What was logged later is cut off, for these steps are made again.
        tracker: to which losses and speeds are reported too.
    """

    def __init__(
        self,
        log_file: Path,
        total_steps: int,
        baseline_loss: float,
        active: bool,
        step: int = 0,
        log_bytes: int = 0,
        tracker: Tracker | None = None,
    ):
        self.tracker = tracker
        self.active, self.total_steps, self.baseline_loss = active, total_steps, baseline_loss
        self.terminal = active and sys.stderr.isatty()
        self.bar = tqdm(
            total=total_steps,
            initial=step,
            disable=not self.terminal,
            unit="step",
            dynamic_ncols=True,
            smoothing=0.05,
        )
        self.log = log_file.open("ab", buffering=0) if active else None
        self.log_bytes = 0
        if self.log is not None:
            self.log_bytes = min(log_bytes, self.log.seek(0, os.SEEK_END))
            self.log.truncate(self.log_bytes)
        self.started = self.last_line = time.monotonic()
        self.first_step = step
        self.warned = False
        self.beside = f"counting alone {baseline_loss:.3f}"  # what the bar shows next to the loss

    def step(self, step: int) -> None:
        """One optimizer step is done."""
        if self.terminal:
            self.bar.update(step - self.bar.n)

    def training(self, record: dict[str, Any]) -> None:
        """A logged step: `step epoch loss learning_rate grad_norm tokens tokens_per_second`."""
        self.write(record)
        self.report({f"train/{name}": value for name, value in record.items() if name != "step"}, record["step"])
        if not self.active:
            return
        line = (
            f"epoch {record['epoch']:.1f} · loss {record['loss']:.3f} ({self.beside}) · "
            f"{record['tokens_per_second']:,.0f} tokens/s"
        )
        if self.terminal:
            self.bar.set_description_str(line)
        elif time.monotonic() - self.last_line > PLAIN_LINE_SECONDS:
            self.last_line = time.monotonic()
            left = (
                (self.last_line - self.started)
                * (self.total_steps - record["step"])
                / (record["step"] - self.first_step)
            )
            self.say(f"step {record['step']}/{self.total_steps} · {line} · {clock(left)} left")
        if not self.warned and record["step"] >= max(STUCK_STEPS, STUCK_SHARE * self.total_steps):
            self.warned = True
            if record["loss"] > self.baseline_loss - STUCK_MARGIN:
                self.say(
                    f"The loss {record['loss']:.3f} has not come below {self.baseline_loss:.3f}, which counting alone reaches: "
                    "nothing is learned yet beyond how often things occur. Most often a lower --learning_rate, "
                    "a longer --warmup_steps or pre-norm, as in the modern- presets, mends it."
                )

    def evaluation(self, record: dict[str, Any]) -> None:
        """An evaluation, with `eval_loss` and whatever else the task measures."""
        self.write(record)
        measured = {name: value for name, value in record.items() if name.startswith("eval_")}
        self.report({name.replace("_", "/", 1): value for name, value in measured.items()}, record["step"])
        self.beside = f"held out {record['eval_loss']:.3f}"
        shown = " · ".join(
            f"{name.removeprefix('eval_').replace('_', ' ')} {record[name]:.3f}"
            for name in ("eval_loss", "eval_accuracy", "eval_f1", "eval_macro_f1", "eval_mrr", "eval_spearman")
            if name in record
        )
        self.say(f"step {record['step']}: held-out {shown}")

    def epoch_end(self, record: dict[str, Any]) -> None:
        """A finished epoch, with `train_loss`, the average over its items."""
        self.write(record)
        self.report({"train/epoch_loss": record["train_loss"]}, record["step"])
        self.say(f"epoch {record['epoch']:.4g}: average loss {record['train_loss']:.3f}")

    def skipped(self, record: dict[str, Any], grad_norm: float, in_a_row: int) -> None:
        """A step that was skipped, with the rows it was made of. Only the first few in a row are said aloud."""
        self.write(record)
        if in_a_row > SKIPS_SAID:
            return
        rows = record["rows"]
        self.say(
            f"step {record['step']} is skipped: its loss is {record['loss']:g} and the norm of its gradient "
            f"{grad_norm:g}, over the rows {', '.join(map(str, rows[:8]))}{', …' * (len(rows) > 8)} of the training split."
        )

    def report(self, values: dict[str, float], step: int) -> None:
        """Values to the tracker, if there is one."""
        if self.tracker is not None:
            self.tracker.log(values, step)

    def write(self, record: dict[str, Any]) -> None:
        """Append a line to the log. Training goes on where the disk is full, and so does the log when it no longer is."""
        if self.log is None:
            return
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        line = (json.dumps(finite) + "\n").encode()
        try:
            self.log.truncate(self.log_bytes)  # half a line that did not fit before
            if self.log.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.log_bytes += len(line)
        except OSError as error:
            self.say(f"A line of {self.log.name} is lost: {error.strerror or error}.")

    def sync(self) -> int:
        """Bring the log to the disk, and return its length in bytes."""
        if self.log is not None:
            with suppress(OSError):  # a full disk costs lines, and stops nothing
                os.fsync(self.log.fileno())
        return self.log_bytes

    def say(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self.active:
            tqdm.write(text, file=sys.stderr if self.terminal else sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        self.bar.close()
        if self.tracker is not None:
            self.tracker.close()
        if self.log is not None:
            self.log.close()


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
