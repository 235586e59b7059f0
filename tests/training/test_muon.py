"""Muon over stacks of matrices, beside torch's own and beside a singular value decomposition."""

import copy

import pytest
import torch
from torch import nn

from hf_tfenc.training.muon import Muon, orthogonal

SHAPES = [(48, 32), (32, 48), (48, 32), (32, 32), (48, 32), (1, 7)]
OPTIONS = {"lr": 0.02, "weight_decay": 0.1}


def matrices() -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in SHAPES]


def steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], count: int) -> None:
    for number in range(count):
        random = torch.Generator().manual_seed(number)
        for place, parameter in enumerate(parameters):
            parameter.grad = torch.randn(parameter.shape, generator=random)
            if place == 2 and number == 0:  # a part that had nothing to do in the first step
                parameter.grad = None
        optimizer.step()


def test_it_is_torchs():
    ours, theirs, before = matrices(), matrices(), matrices()
    stacked, one_by_one = Muon(ours, **OPTIONS), torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **OPTIONS)
    steps(stacked, ours, 3)
    steps(one_by_one, theirs, 3)
    for mine, other, first in zip(ours, theirs, before, strict=True):
        assert (other - first).norm() > 0.01
        assert (mine - other).norm() < 0.01 * (other - first).norm(), mine.shape  # products in bfloat16
        torch.testing.assert_close(stacked.state[mine], one_by_one.state[other], rtol=0, atol=0)


def test_their_states_can_be_exchanged():
    ours, theirs = matrices(), matrices()
    one_by_one = torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **OPTIONS)
    steps(one_by_one, theirs, 2)
    stacked = Muon(ours, **OPTIONS)
    stacked.load_state_dict(copy.deepcopy(one_by_one.state_dict()))
    for mine, other in zip(ours, theirs, strict=True):
        mine.data.copy_(other.data)
    before = [matrix.detach().clone() for matrix in theirs]
    steps(stacked, ours, 1)
    steps(one_by_one, theirs, 1)
    for mine, other, first in zip(ours, theirs, before, strict=True):
        assert (mine - other).norm() <= 0.01 * (other - first).norm(), mine.shape


@pytest.mark.parametrize("shape", [(3, 24, 16), (3, 16, 24), (1, 16, 16)])
def test_orthogonal_matrices_keep_the_directions_and_level_the_singular_values(shape):
    given = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    (group,) = Muon(matrices(), **OPTIONS).param_groups
    found = orthogonal(given.bfloat16(), group["ns_coefficients"], group["ns_steps"], group["eps"]).float()
    left, values, right = torch.linalg.svd(given, full_matrices=False)
    leveled = left.mT @ found @ right.mT  # diagonal in the same directions
    diagonal = leveled.diagonal(dim1=1, dim2=2)
    assert values.min() < 0.3 * values.max()
    assert diagonal.min() > 0.4 and diagonal.max() < 1.3
    assert (leveled - torch.diag_embed(diagonal)).abs().max() < 0.05


def test_a_matrix_of_zeros_stays_one():
    matrix = nn.Parameter(torch.zeros(4, 4))
    matrix.grad = torch.zeros(4, 4)
    Muon([matrix], **OPTIONS).step()
    assert not matrix.any()
