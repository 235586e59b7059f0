"""A step of Muon over the matrices of an encoder: one matrix after another, as torch takes them, and by shape.

    python benchmarks/muon.py --output benchmarks/results/muon_cpu.md

The matrices of the layers of each preset, with random gradients; steps of the two alternate, and times are medians.
That both make the same of the matrices is checked first, up to what bfloat16 leaves open.
"""

import argparse
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from hf_tfenc import TfEncModel
from hf_tfenc.presets import preset_config
from hf_tfenc.training.muon import Muon

OPTIONS = {"lr": 1e-3, "weight_decay": 0.1}
SIZES = ("tiny", "small", "base")


def matrices(size: str, device: torch.device) -> list[nn.Parameter]:
    torch.manual_seed(0)
    found = [p for p in TfEncModel(preset_config(f"modern-{size}")).layers.parameters() if p.ndim == 2]
    found = [nn.Parameter(matrix.detach().to(device)) for matrix in found]
    for matrix in found:
        matrix.grad = 1e-3 * torch.randn_like(matrix)
    return found


def seconds(optimizer: torch.optim.Optimizer, device: torch.device) -> float:
    """Of a step, with what a GPU has still to do."""
    started = time.perf_counter()
    optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--sizes", nargs="*", default=SIZES if torch.cuda.is_available() else SIZES[:2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, help="write the table here, as Markdown")
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines = ["| | matrices | torch's, ms | by shape, ms | |", "|---|---|---|---|---|"]
    for size in asked.sizes:
        theirs, ours = matrices(size, device), matrices(size, device)
        before = [matrix.detach().clone() for matrix in ours]
        optimizers = torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **OPTIONS), Muon(ours, **OPTIONS)
        for optimizer in optimizers:
            optimizer.step()
        for one, other, first in zip(theirs, ours, before, strict=True):
            assert (one - other).norm() <= 0.05 * (one - first).norm()
        rounds = [[seconds(optimizer, device) for optimizer in optimizers] for _ in range(asked.rounds)]
        one, other = (1000 * statistics.median(times) for times in zip(*rounds, strict=True))
        lines.append(f"| modern-{size} | {len(ours)} | {one:.1f} | {other:.1f} | {one / other:.2f} × |")
        print(lines[-1], flush=True)
    name = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    machine = f"{name}, Python {platform.python_version()}, torch {torch.__version__}"
    print(*lines, machine, sep="\n")
    if asked.output:
        asked.output.write_text("\n".join([str(__doc__), *lines, "", machine, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
