"""Low-rank adapters (LoRA, Hu et al. 2021), through PEFT: a frozen model learns small matrices beside its own.

W x becomes W x + (alpha / r) B A x, with A (r, in) and B (out, r). The adapters live inside our own class, so training
sees nothing of them. What is saved is the merged model, W + (alpha / r) B A, and beside it the folder `adapter` with the
trained weights alone, which PEFT loads onto the model that training began with.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..configuration_tfenc import TfEncConfig
from ..extras import require
from ..pretrained import read_weights
from .arguments import Arguments, OptionError

ADAPTER_FOLDER, WEIGHTS = "adapter", "adapter_model.safetensors"
NAME = "default"  # PEFT's, for the only adapter of a model
PREFIX = "base_model.model."  # before each name in PEFT's files
CONFIG = "lora_config"  # where a model keeps the configuration of its adapters
ROUNDING = 1e-5  # of merged weights, from one machine to another


def add_adapters(model: PreTrainedModel, args: Arguments, begun_anew: set[str], family: str) -> None:
    """Freeze a model but for new adapters, and for the weights that the checkpoint did not have.

    Raises:
        OptionError: a module that the model does not have.
        OSError: PEFT is missing.
    """
    require("peft", "peft")
    from peft import LoraConfig, inject_adapter_in_model

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and "layers." in name]
    known = sorted({name.rsplit(".", 1)[-1] for name in linear})
    wanted = sorted(set(args.lora_target_modules or known))
    if strangers := [module for module in wanted if module not in known]:
        raise OptionError(
            f"--lora_target_modules {strangers[0]} is no linear layer of the model's layers: {', '.join(known)} are."
        )
    config = LoraConfig(
        r=args.lora_r or 0,
        lora_alpha=args.lora_alpha if args.lora_alpha is not None else 2 * (args.lora_r or 0),
        lora_dropout=args.lora_dropout,
        # The names of modules are ours, so the adapter fits a model of ours alone.
        base_model_name_or_path=args.model_name_or_path if family == TfEncConfig.model_type else None,
    )
    config.target_modules = wanted  # given to the constructor it would become a set, written in any order
    inject_adapter_in_model(config, model)
    anew = begun_anew & dict(model.named_parameters()).keys()
    config.modules_to_save = sorted({name.rsplit(".", 1)[0] for name in anew}) or None
    for name, parameter in model.named_parameters():
        parameter.requires_grad = ".lora_" in name or name in anew
    setattr(model, CONFIG, config)


def has_adapters(model: nn.Module) -> bool:
    return hasattr(model, CONFIG)


def write_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Write the trained weights alone, as PEFT does, into `folder/adapter`."""
    (folder / ADAPTER_FOLDER).mkdir()
    getattr(model, CONFIG).save_pretrained(folder / ADAPTER_FOLDER)
    save_file(_written(model), folder / ADAPTER_FOLDER / WEIGHTS)


def load_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Give the adapters the weights that a checkpoint has.

    Raises:
        OptionError: it has others, or the model that they give is not the one that was saved.
    """
    path = folder / ADAPTER_FOLDER / WEIGHTS
    weights = load_file(path) if path.exists() else {}
    if {name: t.shape for name, t in weights.items()} != {name: t.shape for name, t in _written(model).items()}:
        raise OptionError(
            f"{folder} holds other adapters than the options ask for: they cannot change on the way, so leave --lora_r "
            "and --lora_target_modules as they were."
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[_outer_name(name)])
    saved = read_weights(str(folder))
    for name, tensor in merged_state_dict(model).items():
        same = name in saved and saved[name].shape == tensor.shape
        if not same or not torch.allclose(tensor.float(), saved[name].float(), atol=ROUNDING, rtol=ROUNDING):
            raise OptionError(
                f"{name} is not what it was when {folder} was saved: the model that --model_name_or_path names, or "
                "--lora_alpha, is another; go back to what it was, or train anew in another --output_dir."
            )


@torch.no_grad()
def merged_state_dict(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of the model without adapters that computes the same; tied ones once."""
    modules = dict(model.named_modules())
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if ".lora_" in name or name in tied:
            continue
        if name.endswith(".base_layer.weight"):
            layer: Any = modules[name.removesuffix(".base_layer.weight")]
            tensor = tensor + layer.get_delta_weight(NAME).to(tensor.dtype)
        state[name.replace(".base_layer.", ".")] = tensor
    return state


def _written(model: PreTrainedModel) -> dict[str, Tensor]:
    """The trained weights under PEFT's names, and what else there is in modules that were begun anew: it wants them whole."""
    whole = getattr(model, CONFIG).modules_to_save or ()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {
        _outer_name(name): tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name in trained or name.rsplit(".", 1)[0] in whole
    }


def _outer_name(name: str) -> str:
    return PREFIX + name.replace(f".{NAME}.", ".")
