"""A compiled run over rows of varied length: how many graphs it makes, and how long the GPU waits.

    python benchmarks/one_graph.py --output benchmarks/results/one_graph_h200.md

Three runs of train.py's `run` on the built-in corpus, of the same options but for `--torch_compile` and
`--torch_compile_mode reduce-overhead` (CUDA graphs): packed rows, 500 steps, several epochs, an evaluation after each 150
steps. Printed are the graphs that were made and made anew, the losses, the median time of a step, how much of it the GPU
was at work, from a profile of ten steps, and the most memory that was allocated.
"""

import argparse
import gc
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
RUNS: dict[str, dict[str, Any]] = {
    "not compiled": {},
    "compiled": {"torch_compile": True},
    "CUDA graphs": {"torch_compile": True, "torch_compile_mode": "reduce-overhead"},
}


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


def watched_run(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    WATCHED.clear()
    counters.clear()
    gpu = torch.cuda.is_available()
    torch.compiler.reset()
    gc.collect()  # the model of the run before
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    metrics = training_run.run(Arguments(output_dir=str(folder), **options))
    if gpu:
        WATCHED["memory"] = torch.cuda.max_memory_allocated()
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
        names = [name for name in RUNS if name != "CUDA graphs" or torch.cuda.is_available()]
        runs = {name: watched_run(Path(folder, name), options | RUNS[name]) for name in names}
    lines = [
        "| | graphs | step, ms | GPU at work, ms | waiting | GB | held-out loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in runs.items():
        busy, memory = found.get("busy", 0.0), found.get("memory", 0)
        lines.append(
            f"| {name} | {found['graphs']} | {found['step'] * 1e3:.1f} | {busy * 1e3:.1f} | {1 - busy / found['step']:.1%} | "
            f"{memory / 1e9:.1f} | {found['eval_loss']:.4f} |"
        )
    lines += ["", f"| average loss up to step | {' | '.join(runs)} |", "|---" * (1 + len(runs)) + "|"]
    for step in runs["not compiled"]["losses"]:
        losses = [f"{found['losses'][step]:.4f}" for found in runs.values()]
        lines.append(f"| {step} | {' | '.join(losses)} |")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    machine = f"{device}, Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    print(*lines, machine, sep="\n")
    if asked.output:
        asked.output.write_text("\n".join([__doc__ or "", *lines, "", machine, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
