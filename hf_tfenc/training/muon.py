"""Muon over all matrices of a shape at once."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Muon(torch.optim.Muon):
    """torch's Muon, with the same state and the same numbers, in less time (benchmarks/results/muon_h100.md).

    torch takes one matrix after another, and those of an encoder are too small to keep a device busy; here the matrices
    of a shape are one stack. Where FSDP2 has cut them into pieces the step is torch's own.

    Args:
        params: matrices
        lr, weight_decay: as AdamW would have them, whose size of update Muon's are scaled to (Liu et al. 2025)
    """

    found_inf: Tensor | None = None  # as torch's fused optimizers have it: a step changes nothing where it is not 0

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float):
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError where the state is of another kind of step than this one."""
        for group in state_dict["param_groups"]:
            if (kind := (group["nesterov"], group["adjust_lr_fn"])) != (True, "match_rms_adamw"):
                raise ValueError(f"nesterov and adjust_lr_fn are {kind}; this Muon's are True and 'match_rms_adamw'.")
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change each matrix that has a gradient, and its momentum. There is no loss to be computed anew."""
        if closure is not None:
            raise ValueError("This optimizer takes no closure: compute the gradients before the step.")
        if any(isinstance(matrix, DTensor) for group in self.param_groups for matrix in group["params"]):
            super().step()
            return
        for group in self.param_groups:
            of_shape: defaultdict[Any, list[nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    of_shape[matrix.shape, matrix.device, matrix.dtype].append(matrix)
            for matrices in of_shape.values():
                self.step_of_one_shape(matrices, group)

    def step_of_one_shape(self, matrices: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Change matrices of one shape, device and precision, all of which have gradients, and their momenta."""
        skipped = matrices[0].new_zeros(()).bool() if self.found_inf is None else self.found_inf.reshape(()) > 0
        directions = []
        for matrix in matrices:
            state, gradient = self.state[matrix], matrix.grad
            assert gradient is not None
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            gradient = torch.where(skipped, state["momentum_buffer"], gradient)  # towards which it does not move
            momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
            directions.append(gradient.lerp(momentum, group["momentum"]).bfloat16())  # Nesterov's
        updates = orthogonal(torch.stack(directions), group["ns_coefficients"], group["ns_steps"], group["eps"])
        # A matrix with orthogonal rows or columns has entries of root mean square 1 / sqrt(the longer side).
        scale = 0.2 * math.sqrt(max(matrices[0].shape))
        kept = torch.where(skipped, 1.0, 1 - group["lr"] * group["weight_decay"])
        for matrix, update in zip(matrices, updates.masked_fill(skipped, 0), strict=True):
            matrix.mul_(kept)
            matrix.add_(update, alpha=-group["lr"] * scale)


def orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Nearly the orthogonal matrix nearest to each of a stack, by the iteration of Jordan et al. (2024).

    `X <- a X + (b G + c G²) X` with `G = X Xᵀ` draws all singular values of X towards 1.

    Args:
        matrices: bfloat16, (matrices, rows, columns)
        coefficients: a, b and c
        eps: the least norm that a matrix is divided by, as its singular values must begin at 1 or below
    """
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices  # the smaller of the two products
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
