"""Tokens a second of a whole training step, beside transformers' own models of the same width and depth.

    python benchmarks/masked_lm_speed.py --output benchmarks/results/masked_lm_speed_cpu.md

All models see the same batches of the built-in corpus (rows of at most 128 tokens, 20 % masked, 16 rows a step), in
the same loop: our `training_step` with AdamW and clipping. Rounds alternate between the models, and the table gives
the median step of each, because a machine's speed drifts.
"""

import argparse
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import BertForMaskedLM, ModernBertForMaskedLM

from hf_tfenc import TfEncForMaskedLM
from hf_tfenc.data.batching import PaddedBins, TrainingBins
from hf_tfenc.data.collators import EncodedRows, numpy_column
from hf_tfenc.data.stdlib_corpus import stdlib_documents
from hf_tfenc.presets import preset_config
from hf_tfenc.publish.convert import to_bert_config, to_modernbert_config
from hf_tfenc.tasks.masked_lm import MaskedLM
from hf_tfenc.tokenization import train_tokenizer
from hf_tfenc.training.arguments import Arguments
from hf_tfenc.training.optimization import OPTIMIZERS
from hf_tfenc.training.trainer import training_step

CASES = [("tiny", 4096), ("tiny", 30_522), ("small", 30_522)]  # our default job's vocabulary, and BERT's
WARM_UP, STEPS, ROUNDS = 2, 6, 5


def models(size: str, vocab_size: int) -> dict[str, torch.nn.Module]:
    """Ours and theirs of one size, dropout as each family has it."""
    shape = {"vocab_size": vocab_size, "max_position_embeddings": 512, "sparse_prediction": True}
    bert, modern = preset_config(f"bert-{size}", **shape), preset_config(f"modern-{size}", **shape)
    return {
        "transformers BERT": BertForMaskedLM(to_bert_config(bert)),
        "hf_tfenc bert": TfEncForMaskedLM(bert),
        "transformers ModernBERT": ModernBertForMaskedLM(to_modernbert_config(modern)),
        "hf_tfenc modern": TfEncForMaskedLM(modern),
    }


def measure(
    found: dict[str, torch.nn.Module], batches: list, accelerator: Accelerator, task: MaskedLM, args: Arguments
) -> dict[str, float]:
    """Tokens a second of each model: the median over steps, in rounds that alternate between the models."""
    prepared = {}
    for name, model in found.items():
        model.to(accelerator.device).train()
        prepared[name] = accelerator.prepare(model, OPTIMIZERS["adamw"](model, args))
    seconds: dict[str, list[float]] = {name: [] for name in prepared}
    for _ in range(ROUNDS):
        for name, (model, optimizer) in prepared.items():
            theirs = name.startswith("transformers")
            for index, batch in enumerate(batches):
                inputs = {key: t for key, t in batch.items() if not (theirs and key == "prediction_positions")}
                start = time.perf_counter()
                training_step(accelerator, model, optimizer, [inputs], task, 1.0)
                if accelerator.device.type == "cuda":
                    torch.cuda.synchronize()
                if index >= WARM_UP:
                    seconds[name].append((time.perf_counter() - start) / int(batch["attention_mask"].sum()))
    return {name: 1 / statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the table here, as Markdown")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    accelerator = Accelerator()

    args = Arguments(max_seq_length=128, per_device_train_batch_size=16, mlm_probability=0.2, learning_rate=1e-4)
    splits = stdlib_documents().select_columns("text")
    task = MaskedLM(args, train_tokenizer(splits["train"]["text"][:], 4096, model_max_length=128))
    rows = task.encode(splits)["train"]
    bins = TrainingBins(numpy_column(rows, "length"), PaddedBins(16), seed=0)
    loader = DataLoader(EncodedRows(rows), batch_sampler=bins, collate_fn=task.collator(training=True))
    batches = [batch for batch, _ in zip(loader, range(WARM_UP + STEPS), strict=False)]
    batches = [{name: tensor.to(accelerator.device) for name, tensor in batch.items()} for batch in batches]

    lines = ["| size | vocabulary | model | tokens/s | against its peer | against BERT |", "|---|---|---|---|---|---|"]
    for size, vocab_size in CASES:
        speed = measure(models(size, vocab_size), batches, accelerator, task, args)
        for name, value in speed.items():
            peer = {"hf_tfenc bert": "transformers BERT", "hf_tfenc modern": "transformers ModernBERT"}.get(name, name)
            ratios = f"{value / speed[peer]:.2f} × | {value / speed['transformers BERT']:.2f} ×"
            lines.append(f"| {size} | {vocab_size:,} | {name} | {value:,.0f} | {ratios} |")
            print(lines[-1], flush=True)
    machine = (
        f"{accelerator.device.type}, {options.threads} threads, {platform.processor() or platform.machine()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    table = "\n".join(lines)
    print(machine)
    if options.output:
        command = f"    python benchmarks/masked_lm_speed.py --output {options.output}"
        options.output.write_text(f"{__doc__}\n{table}\n\n{machine}\n\n{command}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
