"""How training is compiled."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from .arguments import CUDA_GRAPHS, Arguments, OptionError


def check_compilation(args: Arguments, accelerator: Accelerator) -> None:
    """Raises OptionError where CUDA graphs are asked for, and the run is not on one GPU."""
    if args.torch_compile_mode == CUDA_GRAPHS:
        mend = "choose --torch_compile_mode default."
        if accelerator.device.type != "cuda":
            raise OptionError(f"CUDA graphs are for a GPU, and this run is on {accelerator.device.type}: {mend}")
        if accelerator.num_processes > 1:
            raise OptionError(f"CUDA graphs are for one process, and there are {accelerator.num_processes}: {mend}")


def compile_for_training(model: nn.Module, args: Arguments) -> Any:
    """The model with its forward and backward pass compiled; packed batches have one shape, and make one graph."""
    return compile_in_mode(model, args.torch_compile_mode, dynamic=False if args.packing == "packed" else None)


def compile_in_mode(model: nn.Module, mode: str, dynamic: bool | None = None) -> Any:
    """A model over the same weights, compiled in a mode of torch's, whose gradients add up over micro-batches.

    In the mode reduce-overhead its kernels are recorded as CUDA graphs, which a step starts as a whole: where they are
    short, the processor takes longer to start them one by one.
    """
    called: Any = torch.compile(model, dynamic=dynamic, mode=mode)
    if mode == CUDA_GRAPHS:
        called.register_forward_pre_hook(keep_gradients)
    return called


def keep_gradients(model: nn.Module, inputs: Any) -> None:
    """Give the gradients of a step's micro-batch memory of their own: the next one writes to where they lie."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad = parameter.grad.clone()
