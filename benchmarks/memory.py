"""How much memory a large text file needs, from the file to a trained step.

    python benchmarks/memory.py --output benchmarks/results/memory_cpu.md

Makes a text file of `--gigabytes`, of words drawn from the built-in corpus as often as they stand there, and gives it to
train.py with its default options but for few steps and held-out rows. What is added up twice a second is the anonymous
resident memory of train.py and all its child processes, which is what nobody can take from them; pages of files and
of the cache of tokenized rows come and go as there is room.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from hf_tfenc.data.stdlib_corpus import stdlib_documents

TRAIN = Path(__file__).parents[1] / "train.py"
OPTIONS = ["--max_steps", "50", "--max_eval_samples", "2000", "--eval_steps", "50"]
WORDS_A_LINE = 15


def write_text(path: Path, size: int) -> None:
    """Lines of random words, until there are `size` bytes of them."""
    counts = Counter(word for text in stdlib_documents()["train"]["text"] for word in text.split())
    words, weights = np.array([*counts]), np.array([*counts.values()])
    random = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < size:
            lines = random.choice(words, (10_000, WORDS_A_LINE), p=weights / weights.sum())
            file.writelines(" ".join(line) + "\n" for line in lines)


def tree(process: int) -> Iterator[int]:
    """A process and what came of it."""
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from tree(int(child))


def anonymous_memory(process: int) -> int:
    """Bytes of anonymous resident memory of a process and its children."""
    total = 0
    for number in tree(process):
        try:
            lines = Path(f"/proc/{number}/status").read_text().splitlines()
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--output", type=Path, help="write the table here, as Markdown")
    asked = parser.parse_args()
    phases: dict[str, list[float]] = {}  # peak and seconds of each
    phase = "tokenizer and tokenizing"
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        write_text(text, int(asked.gigabytes * 1e9))
        command = [sys.executable, str(TRAIN), "--train_file", str(text), "--output_dir", f"{folder}/out", *OPTIONS]
        environment = {"HF_DATASETS_CACHE": f"{folder}/cache", "HF_HUB_OFFLINE": "1"}
        program = subprocess.Popen(
            ["env", *(f"{name}={value}" for name, value in environment.items()), *command],
            stdout=subprocess.PIPE,
            text=True,
        )

        def watch() -> None:
            while program.poll() is None:
                began = time.monotonic()
                peak, seconds = phases.get(phase, [0.0, 0.0])
                now = anonymous_memory(program.pid)
                time.sleep(0.5)
                phases[phase] = [max(peak, now / 2**30), seconds + time.monotonic() - began]

        watcher = threading.Thread(target=watch)
        watcher.start()
        assert program.stdout is not None
        rows = ""
        for line in program.stdout:
            print(line, end="", flush=True)
            if line.startswith("train: "):
                rows, phase = line.strip(), "training and evaluation"
        watcher.join()
        if program.returncode:
            sys.exit(f"train.py ended with {program.returncode}.")
    lines = ["| | peak, GiB | seconds |", "|---|---|---|"]
    lines += [f"| {name} | {peak:.2f} | {seconds:.0f} |" for name, (peak, seconds) in phases.items()]
    machine = f"{asked.gigabytes:g} GB of text ({rows}); {platform.machine()}, {torch.get_num_threads()} threads, "
    machine += f"Python {platform.python_version()}, torch {torch.__version__}"
    print(*lines, machine, sep="\n")
    if asked.output:
        asked.output.write_text("\n".join([__doc__ or "", *lines, "", machine, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
