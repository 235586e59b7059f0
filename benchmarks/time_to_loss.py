"""Held-out loss against time: our recipe of base size, and transformers' BERT and ModernBERT in the usual loop.

    python benchmarks/time_to_loss.py --data FOLDER --seconds 300 --output benchmarks/results/time_to_loss_h100.md

The folder holds text as on the Hub, with a validation split. All contenders read the same rows, windows of at most 512
tokens of one tokenizer, 65,536 tokens a step at most, and are measured on the same held-out rows with the same 15 % of
the tokens masked.

- Ours: `recipes/pretrain-base.yaml`, by the package's own step, on packed rows.
- BERT and ModernBERT: 128 rows a step in random order, padded to 512, the model compiled, autocast in bfloat16, fused
  AdamW, gradients clipped to 1, 15 % of the tokens masked. BERT's learning rate rises and falls linearly, ModernBERT's
  stays and falls at the end; its peak is `--learning_rate`.

Where there is no GPU nothing is compiled, all is float32, and rows are padded to the longest of a step; `--options` and
`--peer_sizes` make the models, rows and steps smaller.

A learning rate's course is laid over the time that a contender has, not over steps. The clock stops while a model is
compiled, before its first step, and while it is measured.
"""

import argparse
import copy
import itertools
import json
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from accelerate import Accelerator
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from hf_tfenc import TfEncForMaskedLM
from hf_tfenc.data.batching import EvaluationBins, TrainingBins
from hf_tfenc.data.collators import EncodedRows, PaddedCollator, numpy_column, to_device
from hf_tfenc.data.sources import load_splits
from hf_tfenc.presets import preset_config
from hf_tfenc.publish.plots import new_figure, save
from hf_tfenc.tasks.masked_lm import MaskedLM
from hf_tfenc.tokenization import load_tokenizer, train_tokenizer
from hf_tfenc.training.arguments import Arguments
from hf_tfenc.training.optimization import DECAY_SHARE, OPTIMIZERS
from hf_tfenc.training.precision import compute_in_bfloat16
from hf_tfenc.training.run import source_of
from hf_tfenc.training.trainer import training_step

RECIPE = Path(__file__).parents[1] / "recipes" / "pretrain-base.yaml"
EVALUATIONS, HELD_OUT_ROWS = 15, 512
TRAINED_ON = 4000  # texts, for the tokenizer
Batch = dict[str, Any]
Step = Callable[[Batch], int]  # makes an optimizer step, and returns how many real tokens it was over


def linear(share: float) -> float:
    """A twentieth of the time up, then down to nothing."""
    return min(share / 0.05, (1 - share) / 0.95)


def warmup_stable_decay(share: float) -> float:
    return max(0.0, min(1.0, share / 0.05, (1 - share) / DECAY_SHARE))


SCHEDULES = {"linear": linear, "warmup_stable_decay": warmup_stable_decay}


def arguments(data: str, options: dict[str, Any]) -> Arguments:
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    return Arguments(**recipe | {"dataset_name": data} | options)


# --- Contenders: a model, its optimizer, its batches, its step ----------------------------------------------------------


class Ours:
    def __init__(self, task: MaskedLM, rows: Any, accelerator: Accelerator):
        args, self.accelerator, self.task = task.args, accelerator, task
        config = preset_config(args.preset or "", **vocabulary(task) | args.parsed_config_overrides())
        config.sparse_prediction = True
        self.model: nn.Module = TfEncForMaskedLM(config).to(accelerator.device)
        compute_in_bfloat16(accelerator, self.model)
        self.prepared, self.optimizer = accelerator.prepare(self.model, OPTIMIZERS[args.optim](self.model, args))
        self.compiled = (
            torch.compile(self.prepared, dynamic=False) if accelerator.device.type == "cuda" else self.prepared
        )
        self.schedule = SCHEDULES[args.lr_scheduler_type]
        self.lengths = numpy_column(rows, "length")
        arrangement, self.collate = task.training_batches(self.lengths)
        self.bins, self.rows = TrainingBins(self.lengths, arrangement, args.seed), rows

    def batches(self, workers: int) -> Iterator[Batch]:
        loader = DataLoader(
            EncodedRows(self.rows), batch_sampler=self.bins, collate_fn=self.collate, num_workers=workers, pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
        )  # fmt: skip
        epoch = 0
        while True:
            self.bins.begin(epoch)
            yield from loader
            epoch += 1

    def step(self, batch: Batch) -> int:
        tokens = self.task.count_tokens(batch)
        inputs = to_device(batch, self.accelerator.device)
        training_step(
            self.accelerator, self.compiled, self.optimizer, [inputs], self.task, self.task.args.max_grad_norm
        )
        return tokens


class Theirs:
    def __init__(
        self, model: nn.Module, schedule: str, rate: float, task: MaskedLM, rows: Any, accelerator: Accelerator
    ):
        self.accelerator, self.schedule = accelerator, SCHEDULES[schedule]
        self.model = model.to(accelerator.device)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True
        )
        self.compiled = torch.compile(model) if accelerator.device.type == "cuda" else model
        masking = copy.copy(task)
        masking.args = copy.copy(task.args)
        masking.args.mlm_probability = 0.15
        length = task.args.max_seq_length
        multiple = length if accelerator.device.type == "cuda" else 8
        self.collate = PaddedCollator(task.tokenizer.pad_token_id, masking.label_row(True), length, multiple, False)
        self.rows, self.rows_per_step = rows, task.args.tokens_per_batch // length

    def batches(self, workers: int) -> Iterator[Batch]:
        for epoch in range(1000):
            order = torch.Generator().manual_seed(epoch)
            sampler = BatchSampler(RandomSampler(self.rows, generator=order), self.rows_per_step, drop_last=True)
            indices = [[(epoch, row) for row in rows] for rows in sampler]
            yield from DataLoader(
                EncodedRows(self.rows),
                batch_sampler=indices,
                collate_fn=self.collate,
                num_workers=workers,
                pin_memory=torch.cuda.is_available(),
            )

    def step(self, batch: Batch) -> int:
        tokens = int(batch["attention_mask"].sum())
        device = self.accelerator.device
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = self.compiled(**to_device(batch, device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return tokens


def vocabulary(task: MaskedLM) -> dict[str, Any]:
    return {
        "vocab_size": -(-len(task.tokenizer) // 64) * 64, "pad_token_id": task.tokenizer.pad_token_id,
        "max_position_embeddings": task.args.max_seq_length,
    }  # fmt: skip


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def contender(
    name: str, task: MaskedLM, rows: Any, accelerator: Accelerator, asked: argparse.Namespace
) -> Ours | Theirs:
    torch.manual_seed(0)
    sizes = json.loads(asked.peer_sizes)
    if name == "hf_tfenc":
        return Ours(task, rows, accelerator)
    if name == "BERT":
        bert = BertForMaskedLM._from_config(
            BertConfig(**vocabulary(task) | NO_DROPOUT | sizes), attn_implementation="sdpa"
        )
        return Theirs(bert, "linear", asked.learning_rate, task, rows, accelerator)
    known = {f"{kind}_token_id": getattr(task.tokenizer, f"{kind}_token_id") for kind in ("cls", "sep", "bos", "eos")}
    modern = ModernBertForMaskedLM._from_config(
        ModernBertConfig(**vocabulary(task) | known | sizes), attn_implementation="sdpa"
    )
    return Theirs(modern, "warmup_stable_decay", asked.learning_rate, task, rows, accelerator)


# --- A race ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def held_out_loss(model: nn.Module, batches: list[Batch], device: torch.device) -> float:
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        inputs = to_device(batch, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        kept = inputs["labels"] != -100
        total += float(nn.functional.cross_entropy(logits[kept].float(), inputs["labels"][kept], reduction="sum"))
        count += int(kept.sum())
    model.train()
    return total / count


def race(runner: Ours | Theirs, held_out: list[Batch], seconds: float, workers: int) -> list[dict[str, float]]:
    """Points of the curve: seconds, steps, real tokens, held-out loss."""
    device, optimizer = runner.accelerator.device, runner.optimizer
    peaks = [group["lr"] for group in optimizer.param_groups]
    batches = runner.batches(workers)
    before = copy.deepcopy(runner.model.state_dict())
    runner.model.train()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for _ in range(2):  # compiles; at this rate nothing is learned
        runner.step(next(batches))
    runner.model.load_state_dict(before)
    inner = getattr(optimizer, "optimizer", optimizer)
    inner.state.clear()
    curve = [{"seconds": 0.0, "steps": 0, "tokens": 0, "loss": held_out_loss(runner.model, held_out, device)}]
    elapsed, steps, tokens = 0.0, 0, 0
    while elapsed < seconds:
        if device.type == "cuda":
            torch.cuda.synchronize()
        started, until = time.perf_counter(), min(seconds, elapsed + seconds / EVALUATIONS)
        while (now := elapsed + time.perf_counter() - started) < until:
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * runner.schedule(min(1.0, now / seconds))
            tokens += runner.step(next(batches))
            steps += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
        elapsed += time.perf_counter() - started
        loss = held_out_loss(runner.model, held_out, device)
        curve.append({"seconds": round(elapsed, 1), "steps": steps, "tokens": tokens, "loss": round(loss, 4)})
        print(curve[-1], flush=True)
    return curve


def time_to(curve: list[dict[str, float]], loss: float) -> float | None:
    """When a curve first came down to a loss, between two points by a line."""
    for before, after in itertools.pairwise(curve):
        if after["loss"] <= loss:
            share = (before["loss"] - loss) / max(before["loss"] - after["loss"], 1e-9)
            return before["seconds"] + max(0.0, share) * (after["seconds"] - before["seconds"])
    return None


def draw(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    if (figure := new_figure(path, 7, 4)) is None:
        return
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot([p["seconds"] for p in curve[1:]], [p["loss"] for p in curve[1:]], marker=".", label=name)
    axes.set(xlabel="seconds of training", ylabel="held-out loss, nats a masked token")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder laid out as on the Hub")
    parser.add_argument("--only", nargs="*", default=["hf_tfenc", "BERT", "ModernBERT"])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--learning_rate", type=float, default=5e-4, help="of the peers")
    parser.add_argument("--peer_sizes", default="{}", help="options of their configurations, as JSON")
    parser.add_argument("--options", default="{}", help="over the recipe's, as JSON")
    parser.add_argument("--tokenizer", help="a folder; trained on some of the texts if not given")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--curves", type=Path, help="a JSON file to keep the curves in, and to take others' from")
    parser.add_argument("--save", type=Path, help="a folder for the model that ours becomes")
    parser.add_argument("--output", type=Path, help="write the table here, as Markdown, and the picture beside it")
    asked = parser.parse_args()
    gpu = torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision="bf16" if gpu else "no", cpu=not gpu)
    args = arguments(asked.data, json.loads(asked.options))
    splits = load_splits(source_of(args), MaskedLM.columns(args))
    texts = splits["train"].select(range(min(TRAINED_ON, len(splits["train"]))))["text"][:]
    tokenizer = (
        load_tokenizer(asked.tokenizer)
        if asked.tokenizer
        else train_tokenizer(texts, args.vocab_size, model_max_length=args.max_seq_length)
    )
    task = MaskedLM(args, tokenizer)
    rows = task.encode(splits)
    tokens = int(numpy_column(rows["train"], "length").sum())
    print(f"{len(rows['train']):,} rows, {tokens:,} tokens; {len(rows['validation']):,} held-out rows", flush=True)
    few = rows["validation"].select(range(min(HELD_OUT_ROWS, len(rows["validation"]))))
    bins = EvaluationBins(numpy_column(few, "length"), 32)
    held_out = list(DataLoader(EncodedRows(few), batch_sampler=bins, collate_fn=task.collator(training=False)))

    curves: dict[str, list[dict[str, float]]] = {}
    if asked.curves and asked.curves.exists():
        curves = json.loads(asked.curves.read_text())
    for name in asked.only:
        print(name, flush=True)
        runner = contender(name, task, rows["train"], accelerator, asked)
        curves[name] = race(runner, held_out, asked.seconds, asked.workers)
        if name == "hf_tfenc" and asked.save:
            accelerator.unwrap_model(runner.model).save_pretrained(asked.save)
            tokenizer.save_pretrained(asked.save)
        del runner
        accelerator.free_memory()
        torch.compiler.reset()
        if asked.curves:
            asked.curves.write_text(json.dumps(curves))
    aim = curves["BERT"][-1]["loss"] if "BERT" in curves else None
    lines = [
        "| | steps | tokens/s | last loss | seconds to BERT's last loss | BERT's time over it |",
        "|---|---|---|---|---|---|",
    ]
    for name, curve in curves.items():
        last, reached = curve[-1], None if aim is None else time_to(curve, aim)
        ratio = "" if not reached else f"{curves['BERT'][-1]['seconds'] / reached:.2f} ×"
        lines.append(
            f"| {name} | {last['steps']:,} | {last['tokens'] / last['seconds']:,.0f} | {last['loss']:.3f} | "
            f"{'never' if reached is None else f'{reached:.0f}'} | {ratio} |"
        )
    machine = f"{torch.cuda.get_device_name() if gpu else platform.machine()}, Python {platform.python_version()}, "
    machine += f"torch {torch.__version__}, transformers {transformers.__version__}; {tokens:,} tokens of text"
    print(*lines, machine, sep="\n")
    if asked.output:
        picture = asked.output.with_suffix(".png")
        draw(curves, picture)
        body = ["", *lines, "", f"![]({picture.name})", "", machine, ""]
        asked.output.write_text("\n".join([__doc__ or "", *body]), encoding="utf-8")


if __name__ == "__main__":
    main()
