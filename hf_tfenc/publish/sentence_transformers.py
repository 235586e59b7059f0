"""What sentence-transformers, and servers that read its folders, need to pool as the model was trained to."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

# Names of before version 5.4 of the library, which newer ones and other servers read too.
TRANSFORMER, POOLING, DENSE = (f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Dense"))
# transformers' names of activations, and what the library loads for them.
ACTIVATIONS = {
    name: f"torch.nn.modules.activation.{kind}"
    for name, kind in {"tanh": "Tanh", "gelu": "GELU", "relu": "ReLU", "silu": "SiLU", "sigmoid": "Sigmoid"}.items()
}


def pools_there(config: PreTrainedConfig) -> bool:
    """Whether sentence-transformers can pool as a model of ours with this configuration does."""
    return config.pooler_activation is None or config.pooler_activation in ACTIVATIONS


def write_modules(model: PreTrainedModel, folder: Path) -> None:
    """Write `modules.json`, the pooling, and a dense layer where the model has a trained one, beside a saved model.

    The vectors are those of our own `pooler_output`; a model whose pooling is `none` gets the mean of its tokens.
    Where the library cannot name the pooler's activation, nothing is written.
    """
    config = model.config
    pooler = getattr(model, "pooler", None)  # heads on top of it were not trained for vectors, or have none
    dense = getattr(pooler, "dense", None) if config.pooler_activation is not None else None
    if isinstance(dense, nn.Linear) and not pools_there(config):
        return
    _write(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": config.hidden_size,
            "pooling_mode_cls_token": config.pooling == "cls",
            "pooling_mode_mean_tokens": config.pooling != "cls",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    modules = [("", TRANSFORMER), ("1_Pooling", POOLING)]
    if isinstance(dense, nn.Linear):
        modules.append(("2_Dense", DENSE))
        options = {
            "in_features": dense.in_features,
            "out_features": dense.out_features,
            "bias": dense.bias is not None,
        }
        _write(
            folder / "2_Dense" / "config.json",
            options | {"activation_function": ACTIVATIONS[config.pooler_activation]},
        )
        weights = {f"linear.{name}": tensor.detach().cpu().contiguous() for name, tensor in dense.state_dict().items()}
        save_file(weights, folder / "2_Dense" / "model.safetensors")
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": kind} for index, (path, kind) in enumerate(modules)
    ]
    _write(folder / "modules.json", listed)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
