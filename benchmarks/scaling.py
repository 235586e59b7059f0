"""What a training step costs against the length of its rows, and against the size of the model.

    python benchmarks/scaling.py --output benchmarks/results/scaling_h100.md

A step is some 65,536 tokens (on a CPU 2,048) in rows of one length, 15 % of them masked: forward, backward, AdamW, on a
GPU in bfloat16, nothing compiled. Ours with local windows in two layers of three, as in the `modern-` presets, with every
layer global, and in BERT's shape; transformers' ModernBERT, which has the windows, and BERT, which has none, with
positions enough.
Tables give tokens a second, medians of three steps after a first; a dash is out of memory.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from picture import draw
from torch import nn
from transformers import BertForMaskedLM, ModernBertForMaskedLM

from hf_tfenc import TfEncForMaskedLM
from hf_tfenc.presets import preset_config
from hf_tfenc.publish.convert import to_bert_config, to_modernbert_config
from hf_tfenc.training.precision import compute_in_bfloat16

LENGTHS, SIZES = (128, 256, 512, 1024, 2048, 4096, 8192), ("tiny", "small", "base", "large")
VOCABULARY, LONGEST, MASKED = 30_528, 8192, 0.15
GLOBAL = {"layer_types": None, "sliding_window": None}


def models(size: str, accelerator: Accelerator) -> dict[str, Callable[[], nn.Module]]:
    """What makes each contender."""
    dropout = {f"{part}_dropout": 0.0 for part in ("embedding", "hidden", "attention", "mlp", "classifier")}
    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": LONGEST} | dropout
    modern, bert = preset_config(f"modern-{size}", **shape), preset_config(f"bert-{size}", **shape)

    def ours(family: str = "modern", **options: Any) -> nn.Module:
        model = TfEncForMaskedLM(preset_config(f"{family}-{size}", **shape | options))
        compute_in_bfloat16(accelerator, model.to(accelerator.device))
        return model

    return {
        "hf_tfenc modern": ours,
        "hf_tfenc modern, all global": lambda: ours(**GLOBAL),
        "hf_tfenc bert": lambda: ours("bert"),
        "ModernBERT": lambda: ModernBertForMaskedLM._from_config(
            to_modernbert_config(modern), attn_implementation="sdpa"
        ),
        "BERT": lambda: BertForMaskedLM._from_config(to_bert_config(bert), attn_implementation="sdpa"),
    }


def batch_of(rows: int, length: int, device: torch.device) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=random)
    chosen = torch.rand(ids.shape, generator=random) < MASKED
    return {"input_ids": ids.to(device), "labels": ids.masked_fill(~chosen, -100).to(device)}


def seconds(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor], own: bool) -> float:
    """Of one step."""
    device = batch["input_ids"].device
    inputs: dict[str, Any] = dict(batch)
    if own:
        inputs["prediction_positions"] = (batch["labels"].flatten() != -100).nonzero()[:, 0]
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        loss = model(**inputs).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(
    size: str, lengths: tuple[int, ...], tokens: int, rounds: int, accelerator: Accelerator
) -> list[list[str]]:
    """For each length the speed of each contender, in words."""
    device, cells = accelerator.device, [list[str]() for _ in lengths]
    for name, make in models(size, accelerator).items():
        torch.manual_seed(0)
        model = make().to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        for row, length in zip(cells, lengths, strict=True):
            batch = batch_of(max(1, tokens // length), length, device)
            try:
                times = [seconds(model, optimizer, batch, name.startswith("hf_tfenc")) for _ in range(rounds + 1)][1:]
                row.append(f"{batch['labels'].numel() / statistics.median(times):,.0f}")
            except RuntimeError as error:  # cuBLAS and cuDNN have errors of their own for it
                if "memory" not in str(error).lower() and "ALLOC" not in str(error):
                    raise
                row.append("–")
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            print(f"{size}, {length:,}, {name}: {row[-1]}", flush=True)
        del model, optimizer
        accelerator.free_memory()
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the tables here, as Markdown, and the picture beside it")
    parser.add_argument("--size", default="base" if torch.cuda.is_available() else "tiny", choices=SIZES)
    parser.add_argument("--sizes", nargs="*", default=SIZES if torch.cuda.is_available() else SIZES[:2])
    parser.add_argument("--lengths", nargs="*", type=int, default=LENGTHS)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    tokens = 65_536 if gpu else 2048
    accelerator = Accelerator(mixed_precision="bf16" if gpu else "no", cpu=not gpu)
    head = "| | " + " | ".join(models(options.size, accelerator)) + " |"
    rule = "|---" * (head.count("|") - 1) + "|"
    lines = [f"## Length of the rows ({options.size})", "", head, rule]
    for length, row in zip(
        options.lengths,
        measure(options.size, tuple(options.lengths), tokens, options.rounds, accelerator),
        strict=True,
    ):
        lines.append(f"| {length:,} | {' | '.join(row)} |")
    lines += ["", "## Size of the model (rows of 512)", "", head, rule]
    for size in options.sizes:
        (row,) = measure(size, (512,), tokens, options.rounds, accelerator)
        lines.append(f"| {size} | {' | '.join(row)} |")
    machine = f"{torch.cuda.get_device_name() if gpu else platform.machine()}, Python {platform.python_version()}, "
    machine += f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(*lines, machine, sep="\n")
    if options.output:
        picture = f"![]({options.output.with_suffix('.png').name})"
        options.output.write_text("\n".join([__doc__ or "", *lines, "", picture, "", machine, ""]), encoding="utf-8")
        draw(options.output)


if __name__ == "__main__":
    main()
