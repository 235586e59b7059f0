"""Held-out loss against time: our recipe of base size, and transformers' BERT and ModernBERT in the usual loop.

    python benchmarks/time_to_loss.py --data FOLDER --seconds 300 --output benchmarks/results/time_to_loss_h100.md

The folder holds text as on the Hub, with a validation split. All contenders read the same rows, windows of at most 512
tokens of one tokenizer, 65,536 tokens a step at most, and are measured on the same held-out rows with the same 15 % of
the tokens masked.

- Ours: `recipes/pretrain-base.yaml`, by the package's own step, on packed rows.
- BERT and ModernBERT: 128 rows a step in random order, padded to 512, the model compiled, autocast in bfloat16, fused
  AdamW, gradients clipped to 1, 15 % of the tokens masked. BERT's learning rate rises and falls linearly, ModernBERT's
  stays and falls at the end.

The peak of each contender's learning rate is the best of those tried (`--learning_rates`), by the held-out loss after
`--tuning_steps` steps over which the rate takes its whole course.

Where there is no GPU nothing is compiled, all is float32, and rows are padded to the longest of a step; `--options` and
`--peer_sizes` make the models, rows and steps smaller.

In the race a learning rate's course is laid over the time that a contender has, not over steps. The clock stops while a
model is compiled, before its first step, and while it is measured.
"""

import argparse
import copy
import itertools
import json
import math
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
from hf_tfenc.training.reading import source_of
from hf_tfenc.training.trainer import training_step

RECIPE = Path(__file__).parents[1] / "recipes" / "pretrain-base.yaml"
EVALUATIONS, HELD_OUT_ROWS = 20, 512
RATES = {"hf_tfenc": [1e-3, 2e-3, 4e-3], "BERT": [5e-5, 1e-4, 2e-4, 4e-4], "ModernBERT": [2e-4, 5e-4, 1e-3]}
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
    def __init__(self, model: nn.Module, schedule: str, task: MaskedLM, rows: Any, accelerator: Accelerator):
        self.accelerator, self.schedule = accelerator, SCHEDULES[schedule]
        self.model = model.to(accelerator.device)
        self.optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, betas=(0.9, 0.98), fused=True)
        self.compiled = torch.compile(model) if accelerator.device.type == "cuda" else model
        masking = copy.copy(task)
        masking.args = copy.copy(task.args)
        masking.args.mlm_probability = 0.15
        length = task.args.max_seq_length
        multiple = length if accelerator.device.type == "cuda" else 8
        self.collate = PaddedCollator(task.tokenizer.pad_token_id, masking.label_row(True), length, multiple, False)
        self.rows, self.rows_per_step = rows, task.args.tokens_per_batch // length

    def places(self) -> Iterator[list[tuple[int, int]]]:
        """Epoch and row of each row of a step, epoch after epoch without an end, so that no worker starts anew."""
        for epoch in itertools.count():
            order = torch.Generator().manual_seed(epoch)
            sampler = BatchSampler(RandomSampler(self.rows, generator=order), self.rows_per_step, drop_last=True)
            yield from ([(epoch, row) for row in rows] for rows in sampler)

    def batches(self, workers: int) -> Iterator[Batch]:
        places: Any = self.places()
        yield from DataLoader(
            EncodedRows(self.rows), batch_sampler=places, collate_fn=self.collate, num_workers=workers, pin_memory=torch.cuda.is_available()
        )  # fmt: skip

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
        return Theirs(bert, "linear", task, rows, accelerator)
    known = {f"{kind}_token_id": getattr(task.tokenizer, f"{kind}_token_id") for kind in ("cls", "sep", "bos", "eos")}
    modern = ModernBertForMaskedLM._from_config(
        ModernBertConfig(**vocabulary(task) | known | sizes), attn_implementation="sdpa"
    )
    return Theirs(modern, "warmup_stable_decay", task, rows, accelerator)


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


def set_rate(runner: Ours | Theirs, rate: float) -> None:
    for group in runner.optimizer.param_groups:
        group["lr"] = rate


def restart(runner: Ours | Theirs, weights: dict[str, torch.Tensor]) -> None:
    """Give the model its first weights again, and the optimizer no memory."""
    runner.model.load_state_dict(weights)
    getattr(runner.optimizer, "optimizer", runner.optimizer).state.clear()
    runner.model.train()


def losses_by_rate(
    runner: Ours | Theirs, weights: dict[str, torch.Tensor], rates: list[float], steps: int, held_out: list[Batch], workers: int
) -> dict[float, float]:  # fmt: skip
    """The held-out loss after so many steps with each of these peaks of the learning rate."""
    losses = {}
    for rate in rates:
        restart(runner, weights)
        for step, batch in enumerate(itertools.islice(runner.batches(workers), steps)):
            set_rate(runner, rate * runner.schedule(step / steps))
            runner.step(batch)
        losses[rate] = round(held_out_loss(runner.model, held_out, runner.accelerator.device), 4)
        print(f"learning rate {rate:g}: {losses[rate]} after {steps} steps", flush=True)
    return losses


def race(
    runner: Ours | Theirs, rate: float, held_out: list[Batch], seconds: float, workers: int
) -> list[dict[str, float]]:
    """Points of the curve: seconds, steps, real tokens, held-out loss."""
    device, batches = runner.accelerator.device, runner.batches(workers)
    first = next(batches)  # the workers have started
    curve = [{"seconds": 0.0, "steps": 0, "tokens": 0, "loss": held_out_loss(runner.model, held_out, device)}]
    elapsed, steps, tokens = 0.0, 0, 0
    batches = itertools.chain([first], batches)
    while elapsed < seconds:
        if device.type == "cuda":
            torch.cuda.synchronize()
        started, until = time.perf_counter(), min(seconds, elapsed + seconds / EVALUATIONS)
        while (now := elapsed + time.perf_counter() - started) < until:
            set_rate(runner, rate * runner.schedule(min(1.0, now / seconds)))
            tokens += runner.step(next(batches))
            steps += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
        elapsed += time.perf_counter() - started
        loss = held_out_loss(runner.model, held_out, device)
        curve.append({"seconds": round(elapsed, 1), "steps": steps, "tokens": tokens, "loss": round(loss, 4)})
        print(curve[-1], flush=True)
    return curve


def compile_step(runner: Ours | Theirs, workers: int) -> None:
    """Make two steps, at a learning rate at which nothing is learned."""
    set_rate(runner, 0.0)
    for batch in itertools.islice(runner.batches(workers), 2):
        runner.step(batch)


def time_to(curve: list[dict[str, float]], loss: float) -> float | None:
    """When a curve first came down to a loss, between two points by a line."""
    for before, after in itertools.pairwise(curve):
        if after["loss"] <= loss:
            share = (before["loss"] - loss) / max(before["loss"] - after["loss"], 1e-9)
            return before["seconds"] + max(0.0, share) * (after["seconds"] - before["seconds"])
    return None


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each contender, with when it came to the last loss of each peer that was measured too."""
    peers = [name for name in ("BERT", "ModernBERT") if name in found]
    heads = ["", "learning rate (others tried)", "steps", "tokens/s", "last loss"]
    heads += [f"{peer}'s last loss at" for peer in peers]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, record in found.items():
        curve, best = record["curve"], record["learning_rate"]
        others = ", ".join(f"{float(rate):g}" for rate in record["tried"] if float(rate) != best)
        last = curve[-1]
        cells = [
            name, f"{best:g} ({others})", f"{last['steps']:,}", f"{last['tokens'] / last['seconds']:,.0f}", f"{last['loss']:.3f}"
        ]  # fmt: skip
        for peer in peers:
            theirs = found[peer]["curve"][-1]
            reached = time_to(curve, theirs["loss"])
            ratio = f"{reached:.0f} s, {theirs['seconds'] / reached:.2f} × as fast" if reached else "never"
            cells.append("its own" if name == peer else ratio)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


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
    parser.add_argument("--learning_rates", type=json.loads, default=RATES, help="that each contender tries, as JSON")
    parser.add_argument("--tuning_steps", type=int, default=250)
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

    found: dict[str, dict[str, Any]] = {}
    if asked.curves and asked.curves.exists():
        found = json.loads(asked.curves.read_text())
    for name in asked.only:
        print(name, flush=True)
        runner = contender(name, task, rows["train"], accelerator, asked)
        weights = copy.deepcopy(runner.model.state_dict())
        compile_step(runner, asked.workers)
        tried = losses_by_rate(
            runner, weights, asked.learning_rates[name], asked.tuning_steps, held_out, asked.workers
        )
        rate = min(tried, key=lambda rate: (math.isnan(tried[rate]), tried[rate]))
        restart(runner, weights)
        curve = race(runner, rate, held_out, asked.seconds, asked.workers)
        found[name] = {"curve": curve, "learning_rate": rate, "tried": tried}
        if name == "hf_tfenc" and asked.save:
            accelerator.unwrap_model(runner.model).save_pretrained(asked.save)
            tokenizer.save_pretrained(asked.save)
        del runner
        accelerator.free_memory()
        torch.compiler.reset()
        if asked.curves:
            asked.curves.write_text(json.dumps(found))
    lines = table(found)
    machine = f"{torch.cuda.get_device_name() if gpu else platform.machine()}, Python {platform.python_version()}, "
    machine += f"torch {torch.__version__}, transformers {transformers.__version__}; {tokens:,} tokens of text"
    print(*lines, machine, sep="\n")
    if asked.output:
        picture = asked.output.with_suffix(".png")
        draw({name: record["curve"] for name, record in found.items()}, picture)
        body = ["", *lines, "", f"![]({picture.name})", "", machine, ""]
        asked.output.write_text("\n".join([__doc__ or "", *body]), encoding="utf-8")


if __name__ == "__main__":
    main()
