"""bfloat16 without the casts of autocast."""

import functools
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

# Where each process has all parameters, whole.
REPLICATED = {DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU}


class _Forward(nn.Module):
    """A model under the forward function that it had."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.forward = model, model.forward


def compute_in_bfloat16(accelerator: Accelerator, model: nn.Module) -> None:
    """Where a run is in bfloat16, cast a model's weights once in each forward pass, and compute in bfloat16 throughout.

    The weights themselves, their gradients and the optimizer's state stay float32. Autocast would cast at each
    operation, and hold the residual stream in float32: on a GPU that is memory and time. What needs float32 (rotary
    angles, sums of a normalization, softmax, loss) says so itself. Sharded models have accelerate's policy, which does
    the same.
    """
    if accelerator.mixed_precision != "bf16" or accelerator.distributed_type not in REPLICATED:
        return
    if hasattr(model, "cast_forward"):  # `prepare` may have wrapped it since
        return
    kept = _Forward(model)

    @functools.wraps(model.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        weights = {name: parameter.to(torch.bfloat16) for name, parameter in kept.named_parameters()}
        with torch.autocast(accelerator.device.type, enabled=False):
            return torch.func.functional_call(kept, weights, args, kwargs)

    model.forward = model.cast_forward = forward  # type: ignore[method-assign, assignment]
