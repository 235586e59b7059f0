"""A loss over all rows of an optimizer step, at the memory of one micro-batch: cached gradients (Gao et al. 2021).

Each micro-batch is embedded twice. The first time without a graph; the loss of all vectors together, those of other
processes included, then says what the gradient of each vector is. The second time, under the same dropout, this gradient
goes on into the weights. What results is the gradient of one forward pass over everything.
"""

import contextlib
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import gather
from torch import Tensor, nn

from .task import Batch


def cached_backward(
    accelerator: Accelerator,
    model: nn.Module,
    batches: list[Batch],
    embed: Callable[[nn.Module, Batch], Tensor],
    beside: tuple[str, ...],
    loss_of: Callable[..., Tensor],
) -> Tensor:
    """Gradients of `loss_of(vectors, *beside)` over the rows of all micro-batches of all processes.

    All processes meet here: to gather vectors, and to add up gradients in the last backward pass. The loss must not
    depend on the order of rows.

    Args:
        embed: of a batch, (rows, ...) float32
        beside: what else of a batch the loss needs, each (rows, ...)

    Returns:
        this process's part of the loss; all parts are the same, and add up to it
    """
    alone = len(batches) == 1  # its graph can be kept
    states, kept = [], []
    for batch in batches:
        states.append(RandomState(accelerator.device))
        with contextlib.nullcontext() if alone else torch.no_grad():
            kept.append(embed(model, batch))
    sizes = [len(vectors) for vectors in kept]
    own = torch.cat(kept).detach().requires_grad_()
    others = [torch.cat([batch[name] for batch in batches]) for name in beside]
    loss = loss_of(*gathered(accelerator, own, others))
    (gradients,) = torch.autograd.grad(loss, own)

    for index, (batch, state, gradient) in enumerate(zip(batches, states, gradients.split(sizes), strict=True)):
        last = index == len(batches) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            if alone:
                (vectors,) = kept
            else:
                state.restore()
                vectors = embed(model, batch)
            # Processes' gradients are averaged, and the loss is one for all of them.
            accelerator.backward((vectors * gradient).sum() * accelerator.num_processes)
    return loss.detach() / accelerator.num_processes


def gathered(accelerator: Accelerator, own: Tensor, others: list[Tensor]) -> list[Tensor]:
    """The rows of all processes, this one's first and with their graph."""
    if accelerator.num_processes == 1:
        return [own, *others]
    counts = gather(torch.tensor([len(own)], device=own.device)).tolist()
    joined = []
    for tensor in (own, *others):
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor.detach()
        parts = gather(padded).split(max(counts))
        foreign = [
            part[:count]
            for process, (part, count) in enumerate(zip(parts, counts, strict=True))
            if process != accelerator.process_index
        ]
        joined.append(torch.cat([tensor, *foreign]))
    return joined


class RandomState:
    """The random numbers that come next, on the CPU and on a device."""

    def __init__(self, device: torch.device):
        self.device, self.cpu = device, torch.get_rng_state()
        self.of_device = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.of_device is not None:
            torch.get_device_module(self.device).set_rng_state(self.of_device)
