"""Real tokens a second of whole training steps and of embedding, beside what people use today.

    python benchmarks/speed.py --output benchmarks/results/speed_h200.md                    # one GPU, base size
    python benchmarks/speed.py --size small --output benchmarks/results/speed_cpu.md        # a CPU
    python benchmarks/speed.py --work train --tokens 16384                                  # short steps

All contenders see the same rows of random tokens, in one process. Rows are all 512 tokens long, or of varied lengths
(log-normal, median 140, at most 512). A training step is some `--tokens` (65,536, on a CPU 4,096), 15 % of them masked,
with gradient clipping and fused AdamW, without dropout, on a GPU in bfloat16.

- Ours: `training_step` of the package over the batches that `--packing packed` makes, compiled on a GPU. To embed, a
  padded batch and its mask are handed to the model, as to any other.
- transformers' BERT and ModernBERT, and `torch.nn.TransformerEncoder`, in the usual loop: rows in random order, padded
  to 512 where the model is compiled, else to the longest of the batch; autocast; as many micro-batches as make a step,
  of 128 rows (fewer where a step has fewer tokens). To embed, weights are in bfloat16, and rows come 512 at a time or a
  few less, as they divide evenly.

Ours and theirs are of one shape, with the same weights where they can be shared; that their outputs agree is checked
first. Rounds alternate between the contenders, and the tables give medians. MFU counts the products that training needs
(of the vocabulary projection, those at predicted tokens), against 989 TFLOP/s.
"""

import argparse
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from accelerate import Accelerator
from picture import draw
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import BertForMaskedLM, ModernBertForMaskedLM, PreTrainedTokenizerFast

from hf_tfenc import TfEncConfig, TfEncForMaskedLM
from hf_tfenc.data.collators import PaddedCollator, to_device
from hf_tfenc.presets import preset_config
from hf_tfenc.publish.convert import from_bert, from_modernbert, to_bert_config, to_modernbert_config
from hf_tfenc.tasks.masked_lm import MaskedLM
from hf_tfenc.training.arguments import CUDA_GRAPHS, Arguments
from hf_tfenc.training.compilation import compile_in_mode
from hf_tfenc.training.optimization import OPTIMIZERS
from hf_tfenc.training.precision import compute_in_bfloat16
from hf_tfenc.training.trainer import training_step

LENGTH, MEDIAN, SIGMA = 512, 140, 0.7
VOCABULARY, SPECIAL = 30_528, 5
MASKED = 0.15
PEAK = 989e12  # dense bfloat16 products a second of an H100, by its data sheet
DROPOUTS = ("embedding", "hidden", "attention", "mlp", "classifier")
Batch = dict[str, Any]


# --- Rows ------------------------------------------------------------------------------------------------------------


@dataclass
class Rows:
    """Some steps' worth of encoded rows."""

    name: str
    lengths: np.ndarray
    tokens_per_step: int
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        random = np.random.default_rng(0)
        ids = [random.integers(SPECIAL, VOCABULARY, length) for length in self.lengths]
        self.rows = [{"input_ids": row, "epoch": 0, "row": index} for index, row in enumerate(ids)]

    @classmethod
    def uniform(cls, tokens: int, steps: int) -> "Rows":
        return cls("rows of 512", np.full(steps * tokens // LENGTH, LENGTH), tokens)

    @classmethod
    def varied(cls, tokens: int, steps: int) -> "Rows":
        drawn = np.random.default_rng(1).lognormal(np.log(MEDIAN), SIGMA, steps * tokens // 100)
        lengths = drawn.astype(int).clip(8, LENGTH)
        return cls("varied lengths", lengths[: np.searchsorted(lengths.cumsum(), steps * tokens)], tokens)

    @property
    def total(self) -> int:
        return int(self.lengths.sum())


def masked_lm(rows: Rows) -> MaskedLM:
    """The task, with a tokenizer of nothing but numbers."""
    words = {**{f"[{name}]": place for place, name in enumerate(("PAD", "CLS", "SEP", "MASK", "UNK"))}}
    words |= {str(number): number for number in range(SPECIAL, VOCABULARY)}
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "mask", "unk")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "[UNK]")), **named)
    args = Arguments(
        max_seq_length=LENGTH, packing="packed", tokens_per_batch=rows.tokens_per_step, mlm_probability=MASKED,
        max_grad_norm=1.0, learning_rate=1e-4,
    )  # fmt: skip
    return MaskedLM(args, tokenizer)


def padded_batches(rows: Rows, collate: Callable, size: int, length: int | None) -> list[Batch]:
    """Batches of some `size` rows, all alike, in random order, padded to `length`, or to the longest of each."""
    number = -(-len(rows.rows) // size)
    size = -(-len(rows.rows) // number)  # a last one of a few rows would cost a compiled model as much as a whole one
    batches = []
    for first in range(0, len(rows.rows), size):
        batch = collate(rows.rows[first : first + size])
        if length:
            room = (0, length - batch["input_ids"].shape[1], 0, size - len(batch["input_ids"]))
            batch = {name: F.pad(batch[name], room, value=fill) for name, fill in FILLS.items()}
            batch["attention_mask"][:, 0] = 1  # a row that only fills the batch has one token, which nothing predicts
        batches.append({name: batch[name] for name in FILLS})
    return batches


FILLS = {"input_ids": 0, "attention_mask": 0, "labels": -100}


# --- Models ----------------------------------------------------------------------------------------------------------


def config_of(family: str, size: str) -> TfEncConfig:
    options = {f"{part}_dropout": 0.0 for part in DROPOUTS}
    return preset_config(
        f"{'bert' if family == 'torch' else family}-{size}", vocab_size=VOCABULARY, sparse_prediction=True, **options
    )


class TorchEncoder(nn.Module):
    """torch.nn.TransformerEncoder between embeddings and an output layer, as BERT has them."""

    def __init__(self, config: TfEncConfig):
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(LENGTH, config.hidden_size)
        layer = nn.TransformerEncoderLayer(
            config.hidden_size, config.num_attention_heads, config.intermediate_size, 0.0, "gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.num_hidden_layers)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.decoder.weight = self.tokens.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Any:
        x = self.tokens(input_ids) + self.positions.weight[: input_ids.shape[1]]
        x = self.encoder(x, src_key_padding_mask=attention_mask == 0)
        if labels is None:
            return x
        return {"loss": F.cross_entropy(self.decoder(x).flatten(0, 1).float(), labels.flatten())}


def theirs(family: str, config: TfEncConfig) -> nn.Module:
    if family == "torch":
        return TorchEncoder(config)
    kind, convert = {
        "bert": (BertForMaskedLM, to_bert_config),
        "modern": (ModernBertForMaskedLM, to_modernbert_config),
    }[family]
    converted = convert(config)
    converted.sparse_prediction = False
    return kind._from_config(converted, attn_implementation="sdpa")


def ours(family: str, config: TfEncConfig) -> TfEncForMaskedLM:
    return TfEncForMaskedLM._from_config(config, attn_implementation="varlen")


def flops_per_token(config: TfEncConfig, lengths: np.ndarray) -> float:
    """Products of a training step: 2 for each weight and token forward, twice that backward; and the attention's."""
    hidden = config.hidden_size
    layer = 4 * hidden**2 + (3 if config.gated_mlp else 2) * hidden * config.intermediate_size
    head = MASKED * (hidden**2 + hidden * config.vocab_size)
    seen = 0.0
    for kind in config.layer_types or []:
        reach = np.full_like(lengths, 2 * config.sliding_window + 1) if kind == "sliding_attention" else lengths
        seen += float((lengths * np.minimum(lengths, reach)).sum() / lengths.sum())
    return 6 * (config.num_hidden_layers * layer + head) + 12 * hidden * seen


# --- Contenders ------------------------------------------------------------------------------------------------------


@dataclass
class Contender:
    """Something that goes once over all rows."""

    name: str
    family: str
    run: Callable[[], None]
    memory: float = 0.0  # GB at the most, the model's own included
    seconds: list[float] = field(default_factory=list)


def pinned(batches: list[Batch]) -> list[Batch]:
    """The same where a GPU can fetch it by itself."""
    if not torch.cuda.is_available():
        return batches
    return [{k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in batch.items()} for batch in batches]


def compiled_as(how: str, model: nn.Module, dynamic: bool | None = None) -> Any:
    """The model compiled as a contender's name says; an empty one leaves it as it is."""
    modes = {"compiled": "default", "CUDA graphs": CUDA_GRAPHS}
    return compile_in_mode(model, modes[how], dynamic) if how else model


def train_theirs(model: nn.Module, batches: list[Batch], steps: int, device: torch.device, how: str) -> Callable:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    called = compiled_as(how, model)
    micro = -(-len(batches) // steps)

    def run() -> None:
        for first in range(0, len(batches), micro):
            for batch in batches[first : first + micro]:
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    loss = called(**to_device(batch, device))["loss"] / micro
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return run


def train_ours(model: nn.Module, batches: list[Batch], task: MaskedLM, accelerator: Accelerator, how: str) -> Callable:
    compute_in_bfloat16(accelerator, model)
    prepared, optimizer = accelerator.prepare(model, OPTIMIZERS["adamw"](model, task.args))
    called = compiled_as(how, prepared, dynamic=False)

    def run() -> None:
        for batch in batches:
            training_step(accelerator, called, optimizer, [to_device(batch, accelerator.device)], task, 1.0)

    return run


def trainers(rows: Rows, size: str, accelerator: Accelerator) -> Iterator[tuple[str, str, Callable[[], Callable]]]:
    """Name, family, and what makes the contender itself."""
    device, task = accelerator.device, masked_lm(rows)
    gpu = device.type == "cuda"
    bins, collate = task.training_batches(rows.lengths)
    packed = pinned([collate([rows.rows[row] for row in chosen]) for chosen in bins(rows.lengths, 0, 0)])
    pad = PaddedCollator(0, task.label_row(training=True), LENGTH)
    steps = max(1, round(rows.total / rows.tokens_per_step))

    def make_theirs(family: str, how: str) -> Callable:
        batches = pinned(padded_batches(rows, pad, rows.tokens_per_step // LENGTH, LENGTH if how else None))
        model = theirs(family, config_of(family, size)).to(device).train()
        return train_theirs(model, batches, steps, device, how)

    def make_ours(family: str, how: str) -> Callable:
        return train_ours(ours(family, config_of(family, size)).to(device).train(), packed, task, accelerator, how)

    names = {"": "", "compiled": ", compiled", "CUDA graphs": ", CUDA graphs"} if gpu else {"": ""}
    for family, label in LABELS.items():
        for how, name in names.items():
            yield f"{label}{name}", family, lambda f=family, h=how: make_theirs(f, h)
        if family in CONVERT:  # on a GPU compiled in any case
            for how, name in {"compiled": "", "CUDA graphs": ", CUDA graphs"}.items() if gpu else names.items():
                yield f"hf_tfenc {family}{name}", family, lambda f=family, h=how: make_ours(f, h)


@torch.inference_mode()
def embed(model: nn.Module, batches: list[Batch], device: torch.device) -> None:
    for batch in batches:
        inputs = to_device(batch, device)
        model(inputs["input_ids"], attention_mask=inputs["attention_mask"])


def embedders(rows: Rows, size: str, accelerator: Accelerator) -> Iterator[tuple[str, str, Callable[[], Callable]]]:
    device, gpu = accelerator.device, accelerator.device.type == "cuda"
    pad = PaddedCollator(0, masked_lm(rows).label_row(training=True), LENGTH)

    def make(family: str, own: bool, compiled: bool) -> Callable:
        size_of_batch, length = (512, LENGTH if compiled and not own else None) if gpu else (32, None)
        batches = pinned(padded_batches(rows, pad, size_of_batch, length))
        config = config_of(family, size)
        whole: Any = ours(family, config) if own else theirs(family, config)
        model = whole if family == "torch" else whole.base_model
        model = model.to(device, torch.bfloat16 if gpu else torch.float32).eval()
        if compiled and own:
            for layer in model.layers:
                layer.compile(dynamic=True)
        elif compiled:
            model = torch.compile(model)
        return lambda: embed(model, batches, device)

    for family, label in LABELS.items():
        for compiled in (False, True) if gpu else (False,):
            yield f"{label}{', compiled' * compiled}", family, lambda f=family, c=compiled: make(f, False, c)
            if family in CONVERT:
                name = f"hf_tfenc {family}{', layers compiled' * compiled}"
                yield name, family, lambda f=family, c=compiled: make(f, True, c)


# --- Measuring -------------------------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(makers: Iterator, rounds: int, device: torch.device) -> list[Contender]:
    contenders = []
    for name, family, make in makers:
        gpu, started = device.type == "cuda", time.perf_counter()
        if gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        torch.manual_seed(0)
        try:
            contender = Contender(name, family, make())
            contender.run()  # warms up, and compiles
            synchronize(device)
        except RuntimeError as error:  # out of memory, say
            print(f"{name} fails: {str(error).splitlines()[0]}", flush=True)
            continue
        if gpu:
            contender.memory = (torch.cuda.max_memory_allocated() - before) / 1e9
        contenders.append(contender)
        print(f"{name}: ready after {time.perf_counter() - started:.0f} s", flush=True)
    for contender in contenders:  # once more: another shape may have been compiled for
        contender.run()
    for _ in range(rounds):
        for contender in contenders:
            synchronize(device)
            started = time.perf_counter()
            contender.run()
            synchronize(device)
            contender.seconds.append(time.perf_counter() - started)
    return contenders


KERNELS = {
    "attention": ("flash", "fmha", "cudnn", "sdpa", "attention_kernel", "query_gradient", "key_value_gradient"),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "splitk"),
    "optimizer and clipping": ("adam", "multi_tensor", "lpnorm"),
    "norms, activations, sums, copies": ("",),
}


def profile(contender: Contender, steps: int, kinds: list[str]) -> str:
    """Where the GPU's time goes: a row of milliseconds a step by kind of kernel, and what it waits."""
    from torch.profiler import ProfilerActivity

    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as profiler:
        contender.run()
        torch.cuda.synchronize()
    spent, of_kernel = dict.fromkeys(kinds, 0.0), Counter[str]()
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA and "Optimizer.step" not in event.name:
            name = event.name.lower()
            name = "" if name.startswith("triton_") else name  # torch's compiler lists what it fused, and what follows
            kind = next(kind for kind in kinds if any(part in name for part in KERNELS[kind]))
            spent[kind] += event.time_range.elapsed_us() / 1000 / steps
            of_kernel[event.name] += event.time_range.elapsed_us() / 1000 / steps
    print(contender.name, *(f"{ms:8.2f} ms  {name[:100]}" for name, ms in of_kernel.most_common(15)), sep="\n")
    whole = statistics.median(contender.seconds) * 1000 / steps
    cells = [*spent.values(), whole - sum(spent.values()), whole]
    return f"| {contender.name} | {' | '.join(f'{cell:.1f}' for cell in cells)} |"


def table(contenders: list[Contender], rows: Rows, size: str, training: bool) -> list[str]:
    speeds = {contender.name: rows.total / statistics.median(contender.seconds) for contender in contenders}
    lines = ["| | tokens/s | MFU | GB | against BERT | against ModernBERT |", "|---|---|---|---|---|---|"]
    for contender in contenders:
        flops = flops_per_token(config_of(contender.family, size), rows.lengths) / (1 if training else 3)
        ratios = []
        for label in ("BERT", "ModernBERT"):
            best = max((speed for name, speed in speeds.items() if name.split(",")[0] == label), default=None)
            ratios.append(f"{speeds[contender.name] / best:.2f} ×" if best else "")
        gpu = contender.memory > 0
        numbers = (f"{speeds[contender.name] * flops / PEAK:.2f}", f"{contender.memory:.1f}") if gpu else ("", "")
        lines.append(f"| {contender.name} | {speeds[contender.name]:,.0f} | {' | '.join([*numbers, *ratios])} |")
    return lines


@torch.no_grad()
def agreement(size: str, device: torch.device) -> list[str]:
    """The largest difference of two outputs of the same weights, as a share of the largest output."""
    lines = []
    rows = Rows.varied(4096, 1)
    task = masked_lm(rows)
    batch = padded_batches(rows, PaddedCollator(0, task.label_row(training=True), LENGTH), 16, None)[0]
    batch = to_device({name: batch[name] for name in ("input_ids", "attention_mask")}, device)
    kept = batch["attention_mask"].bool()
    for family, convert in CONVERT.items():
        config = config_of(family, size)
        torch.manual_seed(0)
        one = theirs(family, config)
        other = ours(family, config)
        weights = convert(one.state_dict())
        other.load_state_dict(weights, strict=False)
        other.tie_weights()
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        first, second = (model.to(device, dtype).eval()(**batch).logits[kept].float() for model in (one, other))
        difference = float((first - second).abs().max() / first.abs().max())
        lines.append(f"{LABELS[family]} and hf_tfenc {family}, logits of the same weights: {difference:.1e} apart.")
        assert difference < (3e-2 if dtype == torch.bfloat16 else 1e-4), lines[-1]
    return lines


CONVERT: dict[str, Callable] = {"bert": from_bert, "modern": from_modernbert}
LABELS = {"bert": "BERT", "modern": "ModernBERT", "torch": "torch.nn.TransformerEncoder"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the tables here, as Markdown, and the picture beside it")
    parser.add_argument("--size", default="base" if torch.cuda.is_available() else "small")
    parser.add_argument("--only", nargs="*", help="measure contenders of these names alone")
    parser.add_argument("--work", nargs="*", default=["train", "embed"], choices=["train", "embed"])
    parser.add_argument("--rows", nargs="*", default=["uniform", "varied"], choices=["uniform", "varied"])
    parser.add_argument("--tokens", type=int, default=65_536 if torch.cuda.is_available() else 4096, help="of a step")
    parser.add_argument(
        "--profile", action="store_true", help="say where the GPU's time goes, and print the kernels that take most"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of a round")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision="bf16" if gpu else "no", cpu=not gpu)
    print(*agreement(options.size, accelerator.device), sep="\n", flush=True)
    parts = []
    for work in options.work:
        for kind in options.rows:
            rows = getattr(Rows, kind)(options.tokens, options.steps)
            makers = {"train": trainers, "embed": embedders}[work](rows, options.size, accelerator)
            chosen = (maker for maker in makers if not options.only or maker[0] in options.only)
            contenders = measure(chosen, options.rounds, accelerator.device)
            parts.append([f"## {work}, {rows.name}", "", *table(contenders, rows, options.size, work == "train")])
            if options.profile and gpu:
                kinds = [kind for kind in KERNELS if work == "train" or "optimizer" not in kind]
                head = ["", *kinds, "waiting", "all, ms a step"]
                parts[-1] += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
                parts[-1] += [profile(contender, options.steps, kinds) for contender in contenders]
            print(*parts[-1], sep="\n", flush=True)
            del contenders, makers, chosen
            torch.compiler.reset()
    machine = (
        f"{options.tokens:,} tokens a step, {torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    print(machine)
    if options.output:
        body = "\n\n".join("\n".join(part) for part in parts)
        picture = f"![]({options.output.with_suffix('.png').name})"
        options.output.write_text(f"{__doc__}\n{body}\n\n{picture}\n\n{machine}\n", encoding="utf-8")
        draw(options.output)


if __name__ == "__main__":
    main()
