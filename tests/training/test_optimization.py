"""Optimizers and schedules: what they do to which parameters, and when."""

import copy
from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from hf_tfenc import TfEncForMaskedLM
from hf_tfenc.presets import preset_config
from hf_tfenc.training.optimization import (
    DECAY_SHARE,
    OPTIMIZERS,
    SCHEDULES,
    make_schedule,
    skip_unless,
    warmup_steps,
)

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    # BERT's corner has every kind of parameter: tables, matrices, biases, norms.
    return TfEncForMaskedLM(preset_config("bert-tiny", **SIZES))


@pytest.fixture
def options(tiny):
    """With nothing left to a default that may change."""

    def options(**given):
        base = {
            "learning_rate": 0.01,
            "weight_decay": 0.1,
            "adam_beta1": 0.8,
            "adam_beta2": 0.95,
            "adam_epsilon": 1e-6,
        }
        return tiny(**{**base, "lr_scheduler_type": "linear", "warmup_steps": 0, **given})

    return options


def give_gradients(model, step):
    torch.manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def steps(model, optimizer, *numbers):
    for number in numbers:
        give_gradients(model, number)
        optimizer.step()


@pytest.mark.parametrize(("name", "plain"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)])
def test_adam_is_the_textbooks(model, options, name, plain):
    reference = copy.deepcopy(model)
    groups = [
        {"params": [p for p in reference.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in reference.parameters() if p.ndim == 1], "weight_decay": 0},
    ]
    expected = plain(groups, lr=0.01, betas=(0.8, 0.95), eps=1e-6, foreach=False, fused=False)
    ours = OPTIMIZERS[name](model, options())
    assert all(group["fused"] for group in ours.param_groups)
    steps(model, ours, 1, 2, 3)
    steps(reference, expected, 1, 2, 3)
    for parameter, same in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter, same, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [1, 3])
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_step_that_is_skipped_on_the_device_was_never_made(model, options, name, bad):
    other, accelerator = copy.deepcopy(model), Accelerator(cpu=True)
    skipping, plain = OPTIMIZERS[name](model, options()), OPTIMIZERS[name](other, options())
    for number in range(1, 5):
        give_gradients(model, number)
        if number == bad:
            for parameter in model.parameters():
                parameter.grad.view(-1)[0] = torch.nan
        assert skip_unless(torch.tensor(number != bad), skipping, accelerator)
        skipping.step()
        if number != bad:
            steps(other, plain, number)
    for parameter, same in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter, same, rtol=0, atol=0)
        states = skipping.state[parameter], plain.state[same]
        torch.testing.assert_close(*states, rtol=0, atol=0)


def test_an_optimizer_that_cannot_skip_says_so(model):
    assert not skip_unless(torch.tensor(True), torch.optim.SGD(model.parameters()), Accelerator(cpu=True))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_matrices_decay_and_norms_and_biases_do_not(model, options, name):
    before = copy.deepcopy(dict(model.named_parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    OPTIMIZERS[name](model, options()).step()
    for key, parameter in model.named_parameters():
        factor = 1 - 0.01 * 0.1 if parameter.ndim > 1 else 1
        torch.testing.assert_close(parameter, before[key] * factor, msg=key)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_parameter_is_in_one_group_and_frozen_ones_in_none(model, options, name):
    model.model.embeddings.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert 0 < len(trained) < len(list(model.parameters()))
    held = [p for group in OPTIMIZERS[name](model, options()).param_groups for p in group["params"]]
    assert len(held) == len(trained) and set(map(id, held)) == set(map(id, trained))


def test_a_step_is_skipped_on_the_device_where_adamw_is_fused_alone(model, options, monkeypatch):
    assert skip_unless(torch.tensor(True), OPTIMIZERS["muon"](model, options()), Accelerator(cpu=True))
    monkeypatch.setattr("hf_tfenc.training.optimization.FUSED_DEVICES", set())
    optimizer = OPTIMIZERS["muon"](model, options())
    assert not skip_unless(torch.tensor(True), optimizer, Accelerator(cpu=True))
    steps(model, optimizer, 1)


def test_muon_takes_the_matrices_of_the_layers(model, options):
    optimizer = OPTIMIZERS["muon"](model, options())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon = {names[id(p)] for p in optimizer.muon.param_groups[0]["params"]}
    assert (
        muon == {name for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2} and len(muon) >= 8
    )
    adamw = {names[id(p)] for group in optimizer.adamw.param_groups for p in group["params"]}
    assert muon | adamw == set(names.values()) and not muon & adamw
    assert any("embed" in name for name in adamw) and any("norm" in name for name in adamw)


def test_muon_steps_along_an_orthogonal_matrix(model, options):
    name, weight = next((n, p) for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2)
    before = weight.detach().clone()
    steps(model, OPTIMIZERS["muon"](model, options(weight_decay=0)), 1)
    singular = torch.linalg.svdvals(weight.detach() - before)
    assert singular.min() > 0.5 * singular.max(), name  # those of a random gradient spread by more than tenfold


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("prepared", [False, True])
def test_a_loaded_state_goes_on_bit_for_bit(model, options, name, prepared):
    def make(model):
        optimizer = OPTIMIZERS[name](model, options())
        return Accelerator(cpu=True).prepare(optimizer) if prepared else optimizer

    optimizer = make(model)
    steps(model, optimizer, 1, 2)
    resumed, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    steps(model, optimizer, 3, 4)

    other = make(resumed)
    other.load_state_dict(state)
    steps(resumed, other, 3, 4)
    for (key, parameter), same in zip(model.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(parameter, same), key
    assert state["state"].keys() == other.state_dict()["state"].keys() == set(range(len(list(model.parameters()))))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_the_schedule_moves_all_groups_of_a_prepared_optimizer(model, options, name):
    optimizer = OPTIMIZERS[name](model, options())
    schedule = make_schedule(optimizer, options(), total_steps=10)
    model, optimizer = Accelerator(cpu=True).prepare(model, optimizer)
    moved = []
    for step in range(3):
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        steps(model, optimizer, 1)
        schedule.step()
        assert all(group["lr"] == pytest.approx(0.01 * (9 - step) / 10) for group in optimizer.param_groups)
        moved.append([(p - old).abs().max().item() for p, old in zip(model.parameters(), before, strict=True)])
    schedule.base_lrs = [0.0] * len(schedule.base_lrs)
    schedule.step()
    before = [p.detach().clone() for p in model.parameters()]
    steps(model, optimizer, 1)
    assert all(
        torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)
    )  # no part goes its own way
    assert all(step > 0 for step in moved[0])


def rates(options, total_steps, **given):
    """The learning rate of each of `total_steps` steps, and the one after."""
    args = options(learning_rate=1.0, **given)
    optimizer = OPTIMIZERS["adamw"](nn.Linear(2, 2), args)
    schedule = make_schedule(optimizer, args, total_steps)
    seen = []
    for _ in range(total_steps + 1):
        seen.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize(
    ("given", "steps"), [(0, 0), (0.1, 10), (0.25, 25), (0.999, 100), (1, 1), (30, 30)]
)  # fmt: skip
def test_warmup_below_1_is_a_share(options, given, steps):
    assert warmup_steps(options(warmup_steps=given), 100) == steps


@pytest.mark.parametrize(
    ("name", "middle", "end"),
    [("linear", 0.5, 0), ("cosine", 0.5, 0), ("constant", 1, 1), ("warmup_stable_decay", 1, 0)],
)
def test_schedules_rise_and_fall(options, name, middle, end):
    seen = rates(options, 100, lr_scheduler_type=name, warmup_steps=0.2)
    assert seen[:21] == pytest.approx([step / 20 for step in range(21)])
    assert seen[60] == pytest.approx(middle) and seen[100] == pytest.approx(end)
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(seen[20:]))
    assert rates(options, 100, lr_scheduler_type=name, warmup_steps=0)[0] == 1


def test_warmup_stable_decay_falls_over_its_last_steps(options):
    seen = rates(options, 100, lr_scheduler_type="warmup_stable_decay", warmup_steps=10)
    fall = round(100 * (1 - DECAY_SHARE))
    assert set(seen[10 : fall + 1]) == {1.0} and seen[fall + 1] < 1 and 0.4 < seen[(fall + 100) // 2] < 0.6


def test_a_long_warmup_shortens_the_fall(options):
    seen = rates(options, 100, lr_scheduler_type="warmup_stable_decay", warmup_steps=0.8)
    assert seen[80] == 1 and seen[100] == pytest.approx(0, abs=1e-6)
    assert all(after > before for before, after in pairwise(seen[:81]))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_warmup_without_an_end_is_refused(options, name):
    with pytest.raises(ValueError, match=r"^--warmup_steps 500 is no less than the 20 steps of this run: give fewer"):
        rates(options, 20, lr_scheduler_type=name, warmup_steps=500)


def test_every_schedule_is_tested():
    assert set(SCHEDULES) == {"linear", "cosine", "constant", "warmup_stable_decay"}
