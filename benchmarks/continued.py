"""What continued pre-training gives: a small BERT from transformers, taken on by us to the text of another domain.

    python benchmarks/continued.py --general FOLDER --domain FOLDER --output benchmarks/results/continued_cpu.md

transformers' own BertForMaskedLM learns general English under transformers' own Trainer. train.py takes it on to the
texts of the domain, without their labels: once with its tokenizer, once with a new one. Then each of these learns the
domain's classes from a few labelled rows each, as does the same BERT with random weights, and is measured on the test
split. `--general` holds parquet files with a column `text`; `--domain` holds train.csv and test.csv with the columns
`text` and `label_text`, of which a tenth of train.csv is held out.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_tfenc.tokenization import train_tokenizer

TRAIN = Path(__file__).parents[1] / "train.py"
SIZE = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
LENGTH, VOCABULARY, DOMAIN_VOCABULARY = 64, 4096, 4096
TRAINED = "the BERT of transformers"


class Stop(TrainerCallback):
    """Ends a training after so many seconds; the learning rate is constant after its warm-up."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = time.monotonic() > self.end


def general_bert(source: Path, minutes: float, folder: Path) -> dict[str, Any]:
    """Make and train a BERT with transformers alone but for the tokenizer; leave it in `folder`, untrained in `random`."""
    texts = pd.read_parquet(sorted(source.glob("train*.parquet"))[0], columns=["text"])["text"].iloc[:20_000].tolist()
    tokenizer = train_tokenizer(texts[:5000], VOCABULARY, "wordpiece", model_max_length=LENGTH)
    ids = [token for row in tokenizer(texts, add_special_tokens=False)["input_ids"] for token in row]
    inner = LENGTH - 2
    rows = [
        [tokenizer.cls_token_id, *ids[begin : begin + inner], tokenizer.sep_token_id]
        for begin in range(0, len(ids) - inner, inner)
    ]
    config = BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=LENGTH, pad_token_id=tokenizer.pad_token_id, **SIZE
    )
    model = BertForMaskedLM(config)
    arguments = TrainingArguments(
        str(folder / "trainer"),
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=100,
        report_to=[],
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        seed=1,
    )
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    for part in ("random", "bert"):
        if part == "bert":
            data = Dataset.from_dict({"input_ids": rows})
            trainer = Trainer(model, arguments, collate, data, callbacks=[Stop(60 * minutes)])
            trainer.train()
        model.save_pretrained(folder / part)
        tokenizer.save_pretrained(folder / part)
    return {"steps": trainer.state.global_step, "tokens": trainer.state.global_step * 16 * LENGTH}


def split_domain(source: Path, shots: int, folder: Path) -> dict[str, int]:
    """Write train, validation and test rows, and `shots` labelled rows of each class."""
    rows = pd.read_csv(source / "train.csv").sample(frac=1, random_state=1)
    held_out = len(rows) // 10
    parts = {"validation": rows[:held_out], "train": rows[held_out:], "test": pd.read_csv(source / "test.csv")}
    parts["few"] = parts["train"].groupby("label_text").head(shots)
    for name, part in parts.items():
        part[["text", "label_text"]].rename(columns={"label_text": "label"}).to_csv(
            folder / f"{name}.csv", index=False
        )
    return {name: len(part) for name, part in parts.items()}


def program(*arguments: Any) -> None:
    """Run one of our commands in a process of its own."""
    ended = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(map(str, arguments))} ended with {ended.returncode}: {ended.stderr[-2000:]}")


def train(folder: Path, threads: int, **options: Any) -> dict[str, Any]:
    """The metrics of a run of train.py."""
    options |= {"output_dir": folder, "cpu_threads": threads, "seed": 1, "max_seq_length": LENGTH}
    program(TRAIN, *(f"--{name}={value}" for name, value in options.items()))
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--general", type=Path, required=True, help="a folder of parquet files with a column text")
    parser.add_argument("--domain", type=Path, required=True, help="a folder with train.csv and test.csv")
    parser.add_argument("--minutes", type=float, default=5, help="for training the BERT")
    parser.add_argument("--epochs", type=int, default=6, help="of continued pre-training on the domain's texts")
    parser.add_argument("--shots", type=int, default=10, help="labelled rows of each class")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write the table here, as Markdown")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    with tempfile.TemporaryDirectory() as made:
        folder, threads = Path(made), options.threads
        general = general_bert(options.general, options.minutes, folder)
        print(general, flush=True)
        sizes = split_domain(options.domain, options.shots, folder)
        files = {"validation_file": folder / "validation.csv", "text_column": "text"}
        program("-m", "hf_tfenc.cli", "convert", folder / "bert", folder / "converted")
        program(
            "-m", "hf_tfenc.cli", "eval", folder / "converted", "--task", "mlm", "--test_file", folder / "validation.csv",
            "--text_column", "text", "--output_dir", folder / "before", "--max_seq_length", LENGTH,
        )  # fmt: skip
        before = json.loads((folder / "before" / "metrics.json").read_text(encoding="utf-8"))
        texts = files | {"train_file": folder / "train.csv", "num_train_epochs": options.epochs, "learning_rate": 5e-4}
        texts |= {"model_name_or_path": folder / "bert", "per_device_train_batch_size": 32}
        continued = {
            f"{TRAINED}, continued": train(folder / "continued", threads, **texts),
            f"{TRAINED}, continued with a new tokenizer": train(
                folder / "new", threads, **texts, train_tokenizer=True, vocab_size=DOMAIN_VOCABULARY,
                tokenizer_type="wordpiece",
            ),
        }  # fmt: skip
        folders = dict(zip(continued, (folder / "continued", folder / "new"), strict=True))
        rows = {"random weights": (folder / "random", None, 0.0), TRAINED: (folder / "bert", before, 0.0)}
        rows |= {name: (folders[name], metrics, metrics["train_runtime"]) for name, metrics in continued.items()}
        lines = ["| from | loss per byte of held-out texts | test accuracy | continued for |", "|---|---|---|---|"]
        few = files | {"task": "sequence-classification", "train_file": folder / "few.csv", "label_column": "label"}
        few |= {"test_file": folder / "test.csv", "num_train_epochs": 15, "learning_rate": 5e-4}
        for number, (name, (start, metrics, seconds)) in enumerate(rows.items()):
            scores = train(folder / f"tuned-{number}", threads, model_name_or_path=start, **few)
            loss = "" if metrics is None else f"{metrics['eval_loss_per_byte']:.3f}"
            lines.append(
                f"| {name} | {loss} | {scores['test_accuracy']:.3f} | {f'{seconds:.0f} s' if seconds else ''} |"
            )
            print(lines[-1], flush=True)

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {threads} thread(s)"
    facts = (
        f"BERT: {SIZE['num_hidden_layers']} layers of width {SIZE['hidden_size']}, {VOCABULARY} tokens, "
        f"{general['steps']} steps on {general['tokens']:,} tokens in {options.minutes:g} minutes. Domain: "
        f"{sizes['train']:,} texts, {sizes['few']:,} of them labelled ({options.shots} a class), {sizes['test']:,} test "
        f"rows. {device}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}; one seed."
    )
    print(facts)
    if options.output:
        rest = f"--minutes {options.minutes:g} --epochs {options.epochs} --shots {options.shots} --threads {threads}"
        command = (
            f"    python benchmarks/continued.py --general FOLDER --domain FOLDER {rest} --output {options.output}"
        )
        text = "\n".join(lines)
        options.output.write_text(f"# {__doc__}\n{text}\n\n{facts}\n\n{command}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
