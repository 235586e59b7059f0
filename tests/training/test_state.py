"""Optimizer and random numbers come back bit for bit."""

import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_tfenc import TfEncForMaskedLM
from hf_tfenc.presets import preset_config
from hf_tfenc.training.arguments import Arguments
from hf_tfenc.training.optimization import OPTIMIZERS
from hf_tfenc.training.state import load_optimizer, load_rng, save_optimizer, save_rng

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def trained(optim, steps):
    """A model and its optimizer after some steps."""
    torch.manual_seed(0)
    model = TfEncForMaskedLM(preset_config("modern-tiny", vocab_size=30, **SIZES))
    optimizer = OPTIMIZERS[optim](model, Arguments(optim=optim, learning_rate=0.01))
    for step in range(steps):
        one_step(model, optimizer, step)
    return model, optimizer


def one_step(model, optimizer, number):
    ids = torch.randint(5, 30, (2, 8), generator=torch.Generator().manual_seed(number))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("optim", sorted(OPTIMIZERS))
def test_an_optimizer_goes_on_as_if_it_had_not_stopped(tmp_path, optim):
    model, optimizer = trained(optim, 3)
    save_optimizer(tmp_path, model, optimizer, is_main=True)
    fresh, other = trained(optim, 0)
    fresh.load_state_dict(model.state_dict())
    load_optimizer(tmp_path, fresh, other)
    assert len(other.state) == len(optimizer.state)
    for group, same in zip(optimizer.param_groups, other.param_groups, strict=True):
        for parameter, twin in zip(group["params"], same["params"], strict=True):
            for name, value in optimizer.state[parameter].items():
                assert other.state[twin][name].equal(value) and other.state[twin][name].shape == value.shape, name
    for pair in ((model, optimizer), (fresh, other)):
        one_step(*pair, 3)
    assert all(p.equal(q) for p, q in zip(model.parameters(), fresh.parameters(), strict=True))


def test_only_the_main_process_writes_what_is_whole(tmp_path):
    save_optimizer(tmp_path, *trained("adamw", 1), is_main=False)
    assert not any(tmp_path.iterdir())


def draw():
    return [
        torch.rand(3).tolist(),
        torch.randn(3).tolist(),
        random.random(),
        random.gauss(0, 1),
        np.random.rand(2).tolist(),
        float(np.random.randn()),
    ]


@pytest.mark.parametrize("odd", [False, True])  # Gaussian numbers come in pairs, and one may be waiting
def test_random_numbers_go_on_where_they_were(tmp_path, odd):
    if odd:
        random.gauss(0, 1), np.random.randn()
    save_rng(tmp_path / "rng.safetensors")
    expected = [draw() for _ in range(3)]
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    load_rng(tmp_path / "rng.safetensors")
    assert [draw() for _ in range(3)] == expected
    assert load_file(tmp_path / "rng.safetensors").keys() >= {"torch", "python", "numpy"}
