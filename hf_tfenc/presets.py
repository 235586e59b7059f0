"""Named configurations: three families in four sizes.

`classic` is the textbook encoder, `bert` and `modern` lie exactly in the corners where weights go both ways with
transformers' BERT and ModernBERT.
"""

from typing import Any

from .configuration_tfenc import TfEncConfig

# Classic: the encoder of "Attention Is All You Need", and of torch.nn.TransformerEncoder. Only its initial weights are
# ours; recipes/classic.yaml tells why.
CLASSIC: dict[str, Any] = {}

# BERT (Devlin et al. 2019), as transformers.BertConfig has it.
BERT: dict[str, Any] = {
    "position_embedding_type": "learned",
    "type_vocab_size": 2,
    "embedding_norm": True,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "attention_dropout": 0.1,
    "mlp_dropout": 0.0,
    "pooling": "cls",
    "pooler_activation": "tanh",
    "head_transform": "lm",
}

# ModernBERT (Warner et al. 2024), as transformers.ModernBertConfig has it.
MODERN: dict[str, Any] = {
    "position_embedding_type": "rotary",
    "norm_position": "pre",
    "embedding_norm": True,
    "final_norm": True,
    "first_attention_norm": False,
    "hidden_act": "gelu",
    "gated_mlp": True,
    "attention_bias": False,
    "mlp_bias": False,
    "norm_bias": False,
    "head_bias": False,
    "head_transform": "all",
    "sliding_window": 64,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 160_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    },
    "max_position_embeddings": 8192,
    "embedding_dropout": 0.0,
    "hidden_dropout": 0.0,
    "mlp_dropout": 0.0,
    "classifier_dropout": 0.0,
    "residual_initializer_scale": None,
}


def _size(hidden: int, layers: int, heads: int, intermediate: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
    }


def _classic_start(hidden: int) -> dict[str, float]:
    """Initial weights under which the textbook encoder learns context soon, by width."""
    unit = round(hidden**-0.5, 4)  # keeps the scale of what passes through
    return {
        "initializer_range": unit,
        "embedding_initializer_range": round(0.35 * unit, 4),  # after the scale, half the positions' size
        "query_key_initializer_range": unit,
        "residual_initializer_scale": 0.1,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "classic-tiny": CLASSIC | _classic_start(128) | _size(128, 4, 2, 512),
    "classic-small": CLASSIC | _classic_start(256) | _size(256, 4, 4, 1024),
    "classic-base": CLASSIC | _classic_start(512) | _size(512, 6, 8, 2048),
    "classic-large": CLASSIC | _classic_start(1024) | _size(1024, 6, 16, 4096),
    "bert-tiny": BERT | _size(128, 4, 2, 512),
    "bert-small": BERT | _size(512, 4, 8, 2048),
    "bert-base": BERT | _size(768, 12, 12, 3072),
    "bert-large": BERT | _size(1024, 24, 16, 4096),
    "modern-tiny": MODERN | _size(128, 4, 2, 256),
    "modern-small": MODERN | _size(384, 10, 6, 576),
    "modern-base": MODERN | _size(768, 22, 12, 1152),
    "modern-large": MODERN | _size(1024, 28, 16, 2624),
}


def preset_config(name: str, **options: Any) -> TfEncConfig:
    """The configuration called `name`, with `options` over it.

    Raises:
        ValueError: an unknown name, or options that do not go together.
    """
    if name not in PRESETS:
        raise ValueError(f"{name!r} is not a preset; there are {', '.join(PRESETS)}.")
    chosen = PRESETS[name] | options
    if name.startswith("modern") and "layer_types" not in chosen:
        # Every third layer sees the whole sequence, beginning with the first.
        chosen["layer_types"] = [
            "sliding_attention" if index % 3 else "full_attention" for index in range(chosen["num_hidden_layers"])
        ]
    return TfEncConfig(**chosen)
