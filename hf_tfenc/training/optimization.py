"""Optimizers and learning-rate schedules, by name. A new one is one line in a table."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, get_scheduler

from .muon import Muon
from .precision import REPLICATED

if TYPE_CHECKING:
    from .arguments import Arguments

# Wider layers want smaller steps; 0.5 was best of what was tried at width 128 (benchmarks/results/recipes.md).
LEARNING_RATE_TIMES_WIDTH = 0.5
WEIGHT_DECAY = 0.2
FUSED_DEVICES = {"cpu", "cuda", "mps"}


def weight_decay(args: "Arguments") -> float:
    """The decay the options name. Adam's own form of it mixes with the gradient's scale, so Adam has none by default."""
    if args.weight_decay is not None:
        return args.weight_decay
    return 0.0 if args.optim == "adam" else WEIGHT_DECAY


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict]:
    """Weight matrices decay; norms and biases do not."""
    parameters = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def peak_learning_rate(model: PreTrainedModel, args: "Arguments") -> float:
    """The learning rate the options name, or one that suits the model's width."""
    if args.learning_rate is not None:
        return args.learning_rate
    return round(LEARNING_RATE_TIMES_WIDTH / model.config.hidden_size, 6)


def adam(
    kind: type[torch.optim.Adam], parameters: Iterable[nn.Parameter], learning_rate: float, args: "Arguments"
) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015) or AdamW (Loshchilov & Hutter 2019), fused into one kernel where the device has one."""
    groups = parameter_groups(parameters, weight_decay(args))
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return kind(
        groups,
        lr=learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        fused=devices <= FUSED_DEVICES,
    )


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the matrices inside the layers, AdamW for embeddings, output layers, norms and biases: one optimizer.

    Muon (Jordan et al. 2024) steps along the orthogonal matrix nearest to the momentum. Its updates have the size of
    AdamW's, so one learning rate serves both.
    """

    found_inf: Tensor | None = None  # as torch's fused optimizers have it: a step changes nothing where it is not 0

    def __init__(self, model: PreTrainedModel, args: "Arguments"):
        hidden: list[nn.Parameter] = []
        other: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            (hidden if parameter.ndim == 2 and ".layers." in f".{name}" else other).append(parameter)
        learning_rate = peak_learning_rate(model, args)
        self.muon = Muon(hidden, learning_rate, weight_decay(args))
        self.adamw = adam(torch.optim.AdamW, other, learning_rate, args)
        self._step_supports_amp_scaling = bool(self.adamw.defaults["fused"])
        super().__init__(self.muon.param_groups + self.adamw.param_groups, {})
        self._share()

    def _share(self) -> None:
        """Both parts work on this optimizer's own groups and state, so there is one of each to save and to schedule."""
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self.muon.state = self.adamw.state = self.state

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.muon.found_inf = self.adamw.found_inf = self.found_inf  # type: ignore[attr-defined]
        self.muon.step()
        self.adamw.step()


def skip_unless(finite: Tensor, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> bool:
    """Have the next step change nothing where `finite` is false, without a look at it that would wait for the device.

    Returns:
        whether the optimizer can do that: torch's fused ones can, over parameters that are not cut into pieces
    """
    inner: Any = getattr(optimizer, "optimizer", optimizer)
    able = getattr(inner, "_step_supports_amp_scaling", False) and accelerator.distributed_type in REPLICATED
    if able:
        inner.found_inf = (~finite).float()
    return able


OPTIMIZERS: dict[str, Callable[[PreTrainedModel, "Arguments"], torch.optim.Optimizer]] = {
    "adamw": lambda model, args: adam(torch.optim.AdamW, model.parameters(), peak_learning_rate(model, args), args),
    "adam": lambda model, args: adam(torch.optim.Adam, model.parameters(), peak_learning_rate(model, args), args),
    "muon": MuonWithAdamW,
}

# Our names for transformers' schedules. All of them warm up; warmup_stable_decay falls over its last 30 %.
SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant_with_warmup",
    "warmup_stable_decay": "warmup_stable_decay",
}
DECAY_SHARE = 0.3


def warmup_steps(args: "Arguments", total_steps: int) -> int:
    """Steps of warm-up: a number of steps, or below 1 a share of all of them."""
    return round(args.warmup_steps * total_steps) if args.warmup_steps < 1 else round(args.warmup_steps)


def make_schedule(
    optimizer: torch.optim.Optimizer, args: "Arguments", total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate's course over `total_steps` optimizer steps. Raises ValueError where it only warms up."""
    name, warmup = SCHEDULES[args.lr_scheduler_type], warmup_steps(args, total_steps)
    if warmup >= max(total_steps, 1):
        raise ValueError(
            f"--warmup_steps {args.warmup_steps:g} is no less than the {total_steps} steps of this run: give fewer, or a "
            "share of them such as 0.05."
        )
    decay = min(round(DECAY_SHARE * total_steps), total_steps - warmup)
    return get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=total_steps,
        scheduler_specific_kwargs={"num_decay_steps": decay} if name == "warmup_stable_decay" else {},
    )
