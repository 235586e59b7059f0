"""The training state that lies beside the model in a checkpoint: optimizer and random numbers, as safetensors.

Tensors keep their bits. Nothing else is stored of an optimizer: learning rates, decays and betas come from the options.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor

OPTIMIZER_FILE, OPTIMIZER_FOLDER = "optimizer.safetensors", "optimizer"
SCALAR = ":scalar"  # after the name of what has no dimension; sharded files do not keep such a shape


@contextmanager
def disk_errors() -> Iterator[None]:
    """A full disk as the OSError that it is; safetensors has an error of its own."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has cut the parameters into one piece a process."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_state_dict(model: nn.Module) -> dict[str, Tensor] | None:
    """The weights of a sharded model, put together on the main process's CPU; None where nothing is sharded.

    All processes must call it; the others get an empty mapping.
    """
    if not is_sharded(model):
        return None
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return {name: state[name] for name in state if name not in tied}  # type: ignore[misc]  # written once, as from one tensor


# --- Optimizer -------------------------------------------------------------------------------------------------------


def _entries(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Each tensor of the optimizer's state, named parameter/entry."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{name_of[id(parameter)]}/{entry}{SCALAR * (value.ndim == 0)}": value.reshape(value.shape or (1,))
        for parameter, state in optimizer.state.items()
        for entry, value in state.items()
    }


def save_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, is_main: bool) -> None:
    """Write the state of `optimizer`; under FSDP2 each process writes its own pieces, so all must call.

    Args:
        model: unwrapped, with the optimizer's own parameters.
    """
    entries = _entries(model, optimizer)
    if is_sharded(model):
        writer = dcp.HuggingFaceStorageWriter(str(folder / OPTIMIZER_FOLDER), save_distributed=True)
        dcp.save(entries, storage_writer=writer)
    elif is_main:
        with disk_errors():
            save_file({name: value.contiguous() for name, value in entries.items()}, folder / OPTIMIZER_FILE)


def load_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give `optimizer` the state that a checkpoint holds, whole or in pieces, for `model` whole or in pieces."""
    parameters = dict(model.named_parameters())
    if (folder / OPTIMIZER_FOLDER).is_dir():
        entries: dict[str, Tensor] = _empty_entries(folder / OPTIMIZER_FOLDER, parameters)
        dcp.load(entries, storage_reader=dcp.HuggingFaceStorageReader(str(folder / OPTIMIZER_FOLDER)))
    else:
        entries = {
            name: _cut_like(value, parameters[name.rsplit("/", 1)[0]])
            for name, value in load_file(folder / OPTIMIZER_FILE).items()
        }
    index_of = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in entries.items():
        name, entry = key.rsplit("/", 1)
        if entry.endswith(SCALAR):
            entry, value = entry.removesuffix(SCALAR), value.reshape(())
        state.setdefault(index_of[id(parameters[name])], {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _empty_entries(folder: Path, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Room for each entry in the files of `folder`, cut as its parameter is."""
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return {
        name: torch.zeros(1) if name.endswith(SCALAR) else torch.zeros_like(parameters[name.rsplit("/", 1)[0]].data)
        for name in names
    }


def _cut_like(value: Tensor, parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value.to(mesh.device_type), mesh, placements)


# --- Random numbers --------------------------------------------------------------------------------------------------


def rng_file(rank: int) -> str:
    return f"rng_rank{rank}.safetensors"


def save_rng(path: Path) -> None:
    """Write the state of every generator that this process draws from."""
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=True)
    _, numpy_words, position, has_gauss, numpy_gauss = numpy_state
    tensors = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *words]),
        "python_gauss": _optional(gauss),
        "numpy": torch.tensor([position, *map(int, numpy_words)]),
        "numpy_gauss": _optional(numpy_gauss if has_gauss else None),
    }
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    with disk_errors():
        save_file(tensors, path)


def load_rng(path: Path) -> None:
    """Set them again. Numbers of a device that this machine lacks are left out."""
    tensors = load_file(path)
    torch.set_rng_state(tensors["torch"])
    version, *words = tensors["python"].tolist()
    gauss = tensors["python_gauss"].tolist()
    random.setstate((version, tuple(words), gauss[0] if gauss else None))
    position, *numpy_words = tensors["numpy"].tolist()
    gauss = tensors["numpy_gauss"].tolist()
    state: dict[str, Any] = {"key": np.array(numpy_words, dtype=np.uint32), "pos": position}
    np.random.set_state(
        {"bit_generator": "MT19937", "state": state, "has_gauss": len(gauss), "gauss": gauss[0] if gauss else 0.0}
    )
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


def _optional(value: float | None) -> Tensor:
    return torch.tensor([] if value is None else [value], dtype=torch.float64)
