"""On a GPU: a run that was stopped ends with the same bytes, where the same bytes are asked for."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hf_tfenc.training.checkpointing import checkpoints, verify

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
ROOT = Path(__file__).parents[2]
OPTIONS = (
    "--preset bert-tiny --max_train_samples 300 --max_eval_samples 20 --vocab_size 1000 --max_steps 40 --eval_steps 20 "
    "--save_steps 10 --logging_steps 1 --full_determinism"
)


def train(folder, launch, options, stop_at=None):
    launcher = [sys.executable]
    if launch is not None:
        config = str(ROOT / "recipes" / "accelerate" / f"{launch}.yaml")
        launcher += ["-m", "accelerate.commands.launch", "--quiet", "--config_file", config]
    command = [*launcher, str(ROOT / "train.py"), *OPTIONS.split(), *options, "--output_dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while stop_at is not None and process.poll() is None:
            time.sleep(0.01)
            log = folder / "log.jsonl"
            if log.exists() and f'"step": {stop_at},' in log.read_text():
                process.send_signal(signal.SIGTERM)
                break
        output = process.communicate()[0]
    assert (stop_at is None) == (process.returncode == 0), output
    return output


def result(folder):
    last = checkpoints(folder)[-1]
    verify(last)
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("tokens_per_second", None)
    return last.name, (last / "model.safetensors").read_bytes(), records


@pytest.mark.parametrize("precision", [[], ["--bf16"], ["--fp16"]])
@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_a_stopped_run_ends_with_the_same_bytes(tmp_path, precision, optim):
    options = [*precision, "--optim", optim]
    train(tmp_path / "whole", None, options)
    assert "Stopped by SIGTERM" in train(tmp_path / "stopped", None, options, stop_at=15)
    assert "It goes on from" in train(tmp_path / "stopped", None, options)
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("launch", ["ddp", "fsdp2"])
def test_a_stopped_run_on_two_gpus_ends_with_the_same_bytes(tmp_path, launch):
    options = ["--optim", "adamw"]
    train(tmp_path / "whole", launch, options)
    assert "Stopped by" in train(tmp_path / "stopped", launch, options, stop_at=15)
    assert "It goes on from" in train(tmp_path / "stopped", launch, options)
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")
