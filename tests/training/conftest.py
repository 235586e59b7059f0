"""A model small enough to train in a test, and no state of one run left for the next."""

import json
import logging
import os

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from hf_tfenc.training.arguments import Arguments

TINY = {
    "preset": "classic-tiny",
    "config_overrides": json.dumps(
        {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ),
    "vocab_size": 300,
    "max_seq_length": 32,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "learning_rate": 0.01,
    "logging_steps": 1,
    "cpu_threads": 1,
}


def with_tiny(options):
    """Options over those of a tiny run; a trained model has a shape already."""
    no_preset = {"preset": None} if options.get("model_name_or_path") else {}
    return {name: value for name, value in {**TINY, **no_preset, **options}.items() if value is not None}


@pytest.fixture
def tiny(tmp_path):
    """Options of a tiny run, with others over them."""

    def tiny(**options):
        return Arguments(**{"output_dir": str(tmp_path / "out"), **with_tiny(options)})

    return tiny


@pytest.fixture
def tiny_argv(tmp_path):
    """The same as a command line."""

    def tiny_argv(**options):
        options = {"output_dir": tmp_path / "out", **with_tiny(options)}
        return [f"--{name}={value}" for name, value in options.items()]

    return tiny_argv


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch, tmp_path_factory):
    """What a run sets for its process, set back."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
    logger, environment = logging.getLogger("hf_tfenc"), dict(os.environ)
    level, threads, bars = logger.level, torch.get_num_threads(), datasets.is_progress_bar_enabled()
    torch.set_num_threads(1)  # tests share their cores
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.set_num_threads(threads)
    logger.setLevel(level)
    if bars:
        datasets.enable_progress_bars()
    os.environ.clear()
    os.environ.update(environment)
