"""What a checkpoint costs, and how far a resumed run is from an uninterrupted one.

    python benchmarks/resume.py                     # one process, on a GPU where there is one
    python benchmarks/resume.py --launch ddp fsdp2  # also two processes, by recipes/accelerate/*.yaml

Each row of the second table is train.py run twice to the end and once more stopped by SIGTERM half way and started
again: the largest difference of any final weight, and of any entry of the optimizer's state, between the first two, and
between the first and the resumed one; how far the saved model's held-out loss is from the one measured in training; and
the median speed of the first.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator
from safetensors.torch import load_file

from hf_tfenc import TfEncForMaskedLM
from hf_tfenc.presets import preset_config
from hf_tfenc.tokenization import train_tokenizer
from hf_tfenc.training.arguments import Arguments
from hf_tfenc.training.checkpointing import OutputFolder, newest_whole
from hf_tfenc.training.optimization import OPTIMIZERS
from hf_tfenc.training.state import SCALAR

ROOT = Path(__file__).parents[1]


def time_saves(preset: str, times: int, folder: Path) -> None:
    """The median time of a save of `preset` with AdamW's state, and of verifying it."""
    accelerator = Accelerator()
    model = TfEncForMaskedLM(preset_config(preset, vocab_size=30522)).to(accelerator.device)
    optimizer = OPTIMIZERS["adamw"](model, Arguments(optim="adamw", learning_rate=1e-4))
    ids = torch.randint(5, 30522, (2, 16), device=accelerator.device)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    tokenizer = train_tokenizer(["a text to learn from"] * 3, 300, model_max_length=64)
    output = OutputFolder(folder, accelerator, tokenizer, 2, {})
    saves, keeps = [], []
    for step in range(times):
        started = time.monotonic()
        output.save(step, model, optimizer, {}, 0, required=True)
        saves.append(time.monotonic() - started)
        started = time.monotonic()
        output.keep(model)
        keeps.append(time.monotonic() - started)
    started = time.monotonic()
    newest = newest_whole(folder)
    verified = time.monotonic() - started
    size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    print(
        f"| {preset}, {model.num_parameters() / 1e6:.0f} M | {size / 1e9:.2f} GB | {statistics.median(saves):.2f} s | "
        f"{statistics.median(keeps):.2f} s | {verified:.2f} s | {statistics.median(saves) / 60:.1%} |",
        flush=True,
    )


def train(launch: str | None, folder: Path, options: list[str], stop_at: int | None = None) -> None:
    """One call of train.py; stopped once the log has that step, if given."""
    launcher = [sys.executable]
    if launch is not None:
        config = str(ROOT / "recipes" / "accelerate" / f"{launch}.yaml")
        launcher += ["-m", "accelerate.commands.launch", "--quiet", "--config_file", config]
    command = [*launcher, str(ROOT / "train.py"), *options, "--output_dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        stopped = False
        if stop_at is not None:
            while process.poll() is None and not stopped:
                time.sleep(0.02)
                log = folder / "log.jsonl"
                if log.exists() and f'"step": {stop_at},' in log.read_text():
                    process.send_signal(signal.SIGTERM)
                    stopped = True
        output = process.communicate()[0]
    if (stop_at is not None) != stopped or (not stopped and process.returncode):
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{output}")


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """The final weights and each entry of the optimizer's state, whole or in pieces."""
    last = newest_whole(folder)
    state = load_file(last / "model.safetensors")
    for path in [*last.glob("optimizer.safetensors"), *sorted((last / "optimizer").glob("*.safetensors"))]:
        piece = "" if path.parent == last else f"{path.name}:"
        for name, value in load_file(path).items():  # what is no piece of a parameter lies in any of the files
            state[name if name.endswith(SCALAR) else piece + name] = value
    return state


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> str:
    if a.keys() != b.keys():
        return "other entries"
    if all(value.equal(b[name]) for name, value in a.items()):
        return "equal, byte for byte"
    return f"{max((value.float() - b[name].float()).abs().max().item() for name, value in a.items()):.2g}"


def reloaded(folder: Path) -> float:
    """How far the held-out loss of the saved model is from the one measured in training, whole or in pieces."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    best = min(record["eval_loss"] for record in records if "eval_loss" in record)
    return abs(json.loads((folder / "metrics.json").read_text())["eval_loss"] - best)


def speed(folder: Path) -> float:
    """Median tokens a second of the logged steps, the first left out."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return statistics.median([record["tokens_per_second"] for record in records if "grad_norm" in record][1:])


def compare(name: str, launch: str | None, options: list[str], folder: Path, steps: int) -> None:
    runs = {run: folder / run for run in ("first", "second", "resumed")}
    options = [*options, "--max_steps", str(steps), "--logging_steps", str(steps // 10), "--save_total_limit", "1"]
    train(launch, runs["first"], options)
    train(launch, runs["second"], options)
    train(launch, runs["resumed"], options, stop_at=steps // 2)
    train(launch, runs["resumed"], options)
    first, second, resumed = (state_of(path) for path in runs.values())
    print(
        f"| {name} | {distance(first, second)} | {distance(first, resumed)} | {len(first)} | "
        f"{reloaded(runs['first']):.1e} | {speed(runs['first']):,.0f} |",
        flush=True,
    )
    shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="bert-base")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--launch", nargs="*", default=[], help="also these recipes/accelerate/*.yaml")
    parser.add_argument("--exact", action="store_true", help="also with --full_determinism")
    parser.add_argument("--options", default="", help="more of train.py's options")
    args = parser.parse_args()
    os.environ["HF_TFENC_TRACEBACK"] = "1"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    print(f"{device} × {max(1, torch.cuda.device_count())}, torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}, Python {platform.python_version()}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("| model | a checkpoint | saving it | the best model | verifying | of a minute of training |")
        print("|---|---|---|---|---|---|", flush=True)
        time_saves(args.preset, args.saves, folder / "saves")
        shutil.rmtree(folder / "saves")
        options = ["--preset", args.preset, "--config_overrides", '{"vocab_size": 30522}', *args.options.split()]
        print("\n| run | first to second | first to resumed | entries compared | loss, reloaded | tokens/s |")
        print("|---|---|---|---|---|---|", flush=True)
        compare("one process", None, options, folder / "one", args.steps)
        if args.exact:
            exact = [*options, "--full_determinism"]
            compare("one process, --full_determinism", None, exact, folder / "exact", args.steps)
        for launch in args.launch:
            compare(f"{launch}.yaml", launch, options, folder / launch, args.steps)


if __name__ == "__main__":
    main()
