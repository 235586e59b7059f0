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

FOLDER, WEIGHTS = "adapter", "adapter_model.safetensors"
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

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    inside = [name for name in linear if "layers." in name]
    wanted = args.lora_target_modules or sorted({name.rsplit(".", 1)[-1] for name in inside})
    for module in wanted:
        if not any(name.endswith(f".{module}") for name in inside):
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in inside}))
            raise OptionError(f"--lora_target_modules {module} is no linear layer of the model's layers: {known} are.")
    config = LoraConfig(
        r=args.lora_r or 0,
        lora_alpha=args.lora_alpha if args.lora_alpha is not None else 2 * (args.lora_r or 0),
        lora_dropout=args.lora_dropout,
        target_modules=[name for name in inside if name.rsplit(".", 1)[-1] in wanted],
        modules_to_save=sorted({name.rsplit(".", 1)[0] for name in begun_anew}) or None,
        # The names of modules are ours, so the adapter fits a model of ours alone.
        base_model_name_or_path=args.model_name_or_path if family == TfEncConfig.model_type else None,
    )
    inject_adapter_in_model(LoraConfig(**{**config.to_dict(), "modules_to_save": None}), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = ".lora_" in name or name in begun_anew
    setattr(model, CONFIG, config)


def has_adapters(model: nn.Module) -> bool:
    return hasattr(model, CONFIG)


def write_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Write the trained weights alone, as PEFT does, into `folder/adapter`."""
    (folder / FOLDER).mkdir()
    getattr(model, CONFIG).save_pretrained(folder / FOLDER)
    save_file(_trained(model), folder / FOLDER / WEIGHTS)


def load_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Give the adapters the weights that a checkpoint has.

    Raises:
        OptionError: with them the model is not the one that was saved: its frozen weights are others now.
    """
    weights = load_file(folder / FOLDER / WEIGHTS)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in _trained(model):
            parameters[_inner_name(name)].copy_(weights[name])
    saved = read_weights(str(folder))
    for name, tensor in merged_state_dict(model).items():
        if not torch.allclose(tensor.float(), saved[name].float(), atol=ROUNDING, rtol=ROUNDING):
            raise OptionError(
                f"{name} in the model that --model_name_or_path names is not what it was when {folder} was saved: "
                "give the same model, or train anew in another --output_dir."
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


def _trained(model: PreTrainedModel) -> dict[str, Tensor]:
    """The trained weights under PEFT's names."""
    return {
        PREFIX + name.replace(f".{NAME}.", "."): parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _inner_name(name: str) -> str:
    name = name.removeprefix(PREFIX)
    return name.replace(".weight", f".{NAME}.weight") if ".lora_" in name else name
