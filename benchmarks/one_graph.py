"""A compiled run over rows of varied length: how many graphs it makes, and how long the GPU waits.

    python benchmarks/one_graph.py --output benchmarks/results/one_graph_h200.md

Two runs of train.py's `run` on the built-in corpus, of the same options but for `--torch_compile`: packed rows, 500
steps, several epochs, an evaluation after each 150 steps. Printed are the graphs that were made and made anew, the losses
of both runs, the median time of a step, and how much of it the GPU was at work, from a profile of ten steps.
"""

import argparse
import itertools
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity

from hf_tfenc.training import run as training_run
from hf_tfenc.training.arguments import Arguments
from hf_tfenc.training.trainer import Trainer

OPTIONS: dict[str, Any] = {
    "preset": "modern-base", "max_seq_length": 512, "packing": "packed", "tokens_per_batch": 16_384, "bf16": True,
    "optim": "adamw", "learning_rate": 3e-4, "lr_scheduler_type": "linear", "max_steps": 500, "logging_steps": 25,
    "eval_steps": 150, "save_steps": 500, "dataloader_num_workers": 4,
}  # fmt: skip
PROFILED = range(400, 410)


class Watched(Trainer):
    """A trainer that notes when its steps were handed over, and what the GPU did in some of them."""

    def step(self, batches: list) -> None:
        step = self.progress.global_step
        gpu = self.accelerator.device.type == "cuda"
        if step == PROFILED.start and gpu:
            torch.cuda.synchronize()  # else the step before, still under way, would count too
            self.profiler = torch.profiler.profile(activities=[ProfilerActivity.CUDA])
            self.profiler.start()
        super().step(batches)
        if step + 1 == PROFILED.stop and gpu:
            torch.cuda.synchronize()
            self.profiler.stop()
            events = [e for e in self.profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
            kernels = [e for e in events if "Optimizer.step" not in e.name]
            WATCHED["busy"] = sum(e.time_range.elapsed_us() for e in kernels) / 1e6 / len(PROFILED)
        WATCHED.setdefault("times", []).append(time.perf_counter())
        WATCHED["graphs"] = counters["stats"]["unique_graphs"]


WATCHED: dict[str, Any] = {}


def watched_run(folder: Path, compiled: bool, options: dict[str, Any]) -> dict[str, Any]:
    WATCHED.clear()
    counters.clear()
    args = Arguments(output_dir=str(folder), torch_compile=compiled, **options)
    metrics = training_run.run(args)
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = {record["step"]: record["loss"] for record in records if "loss" in record}
    times = WATCHED["times"]
    between = [b - a for a, b in itertools.pairwise(times)]
    whole = statistics.median(between[len(between) // 4 : len(between) // 2])
    return {"losses": losses, "step": whole, "eval_loss": metrics["eval_loss"]} | WATCHED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the table here, as Markdown")
    parser.add_argument("--options", type=json.loads, default={}, help="of the runs, over those here, as JSON")
    asked = parser.parse_args()
    training_run.Trainer = Watched  # type: ignore[misc]
    options = OPTIONS | asked.options
    with tempfile.TemporaryDirectory() as folder:
        runs = {c: watched_run(Path(folder, str(c)), c, options) for c in (True, False)}
    lines = ["| | graphs | step, ms | GPU at work, ms | waiting | held-out loss |", "|---|---|---|---|---|---|"]
    for compiled, found in runs.items():
        busy = found.get("busy", 0.0)
        lines.append(
            f"| {'compiled' if compiled else 'not compiled'} | {found['graphs']} | {found['step'] * 1e3:.1f} | "
            f"{busy * 1e3:.1f} | {1 - busy / found['step']:.1%} | {found['eval_loss']:.4f} |"
        )
    lines += ["", "| average loss up to step | compiled | not compiled |", "|---|---|---|"]
    for step, loss in runs[True]["losses"].items():
        lines.append(f"| {step} | {loss:.4f} | {runs[False]['losses'][step]:.4f} |")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    machine = f"{device}, Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    print(*lines, machine, sep="\n")
    if asked.output:
        asked.output.write_text("\n".join([__doc__ or "", *lines, "", machine, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
