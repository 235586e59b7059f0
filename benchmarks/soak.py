"""Kill a run at random moments and let it go on, for as long as one likes: it must always end as if left alone.

    python benchmarks/soak.py --minutes 60
    python benchmarks/soak.py --minutes 600 --processes 2 --options "--train_file my_texts/ --dataloader_num_workers 4"

The run is train.py with these options, as often killed (SIGKILL to all of its processes) as it takes to end. The model
and the log are then compared, byte for byte, with those of a run that was not killed. On a GPU add --full_determinism.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMALL = (
    "--preset classic-tiny --max_train_samples 300 --max_eval_samples 20 --vocab_size 1000 --max_seq_length 64 "
    "--max_steps 300 --eval_steps 50 --save_steps 20 --cpu_threads 1"
)


def start(folder: Path, processes: int, options: list[str]) -> subprocess.Popen:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*launcher, str(ROOT / "train.py"), *options, "--output_dir", str(folder)]
    # A session of its own, so that all of its processes can be killed at once.
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def kill(process: subprocess.Popen) -> None:
    """All processes of a run; torchrun puts each of its own into a session of its own."""
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    for group in [process.pid, *map(int, children)]:
        try:
            os.killpg(os.getpgid(group), signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate()


def result(folder: Path) -> tuple[bytes, list[dict]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("tokens_per_second", None)
    return (folder / "model.safetensors").read_bytes(), records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--options", default="", help="of train.py, over those of a small run")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; the clock if not given")
    args = parser.parse_args()
    choose, end = random.Random(args.seed), time.monotonic() + 60 * args.minutes
    options = [*SMALL.split(), *args.options.split()]
    with tempfile.TemporaryDirectory() as name:
        whole, killed = Path(name) / "whole", Path(name) / "killed"
        started = time.monotonic()
        output = start(whole, args.processes, options).communicate()[0]
        if not (whole / "metrics.json").exists():
            sys.exit(f"The run does not end by itself:\n{output}")
        span, expected, runs, kills = time.monotonic() - started, result(whole), 0, 0
        while time.monotonic() < end:
            finished = False
            while not finished:
                process = start(killed, args.processes, options)
                try:
                    output, finished = process.communicate(timeout=choose.uniform(0, span))[0], True
                except subprocess.TimeoutExpired:
                    kill(process)
                    kills += 1
            if process.returncode or result(killed) != expected:
                kept = Path(tempfile.mkdtemp(prefix="soak-"))
                shutil.copytree(Path(name), kept, dirs_exist_ok=True)
                sys.exit(f"After {kills} kills the run is another one; both are in {kept}.\n{output}")
            shutil.rmtree(killed)
            runs += 1
            print(f"{runs} runs, {kills} kills: all ended as if left alone", flush=True)


if __name__ == "__main__":
    main()
