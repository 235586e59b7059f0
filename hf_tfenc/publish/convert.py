"""Weights and configurations to and from torch.nn.TransformerEncoder, BERT and ModernBERT.

Each family has a table of names, theirs and ours; `#` stands for a layer's number. BERT keeps query, key and value
apart where we keep them in one matrix, so they are joined and split on the way. Nothing is approximated: what the other
side cannot express is an error that names it.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, ModernBertConfig, PreTrainedConfig

from ..configuration_tfenc import TfEncConfig

logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]
Names = dict[str, str]

TORCH_NAMES: Names = {
    "layers.#.self_attn.in_proj_": "layers.#.attention.qkv_proj.",
    "layers.#.self_attn.out_proj.": "layers.#.attention.out_proj.",
    "layers.#.norm1.": "layers.#.attention_norm.",
    "layers.#.linear1.": "layers.#.mlp.up_proj.",
    "layers.#.linear2.": "layers.#.mlp.down_proj.",
    "layers.#.norm2.": "layers.#.mlp_norm.",
    "norm.": "final_norm.",
}
BERT_NAMES: Names = {
    "bert.embeddings.word_embeddings.": "model.embeddings.embed_tokens.",
    "bert.embeddings.position_embeddings.": "model.embeddings.positions.table.",
    "bert.embeddings.token_type_embeddings.": "model.embeddings.segments.",
    "bert.embeddings.LayerNorm.": "model.embeddings.norm.",
    "bert.encoder.layer.#.attention.self.query.": "model.layers.#.attention.q_proj.",
    "bert.encoder.layer.#.attention.self.key.": "model.layers.#.attention.k_proj.",
    "bert.encoder.layer.#.attention.self.value.": "model.layers.#.attention.v_proj.",
    "bert.encoder.layer.#.attention.output.dense.": "model.layers.#.attention.out_proj.",
    "bert.encoder.layer.#.attention.output.LayerNorm.": "model.layers.#.attention_norm.",
    "bert.encoder.layer.#.intermediate.dense.": "model.layers.#.mlp.up_proj.",
    "bert.encoder.layer.#.output.dense.": "model.layers.#.mlp.down_proj.",
    "bert.encoder.layer.#.output.LayerNorm.": "model.layers.#.mlp_norm.",
    "bert.pooler.dense.": "model.pooler.dense.",
    "cls.predictions.transform.dense.": "head.dense.",
    "cls.predictions.transform.LayerNorm.": "head.norm.",
    "cls.predictions.decoder.": "decoder.",
    "cls.predictions.bias": "decoder.bias",
    "qa_outputs.": "qa_outputs.",
    "classifier.": "classifier.",
}
MODERNBERT_NAMES: Names = {
    "model.embeddings.tok_embeddings.": "model.embeddings.embed_tokens.",
    "model.embeddings.norm.": "model.embeddings.norm.",
    "model.layers.#.attn.Wqkv.": "model.layers.#.attention.qkv_proj.",
    "model.layers.#.attn.Wo.": "model.layers.#.attention.out_proj.",
    "model.layers.#.attn_norm.": "model.layers.#.attention_norm.",
    "model.layers.#.mlp.Wi.": "model.layers.#.mlp.up_proj.",
    "model.layers.#.mlp.Wo.": "model.layers.#.mlp.down_proj.",
    "model.layers.#.mlp_norm.": "model.layers.#.mlp_norm.",
    "model.final_norm.": "model.final_norm.",
    "head.dense.": "head.dense.",
    "head.norm.": "head.norm.",
    "decoder.": "decoder.",
    "classifier.": "classifier.",
}
# What BERT has and nobody here uses: the next-sentence head, and a buffer of positions in old files.
BERT_DROPPED = ("cls.seq_relationship.", "bert.embeddings.position_ids")


def _rename(state: Mapping[str, Tensor], names: Names, dropped: tuple[str, ...] = ()) -> StateDict:
    """Rename by prefix. Raises ValueError for a weight that has no counterpart."""
    renamed: StateDict = {}
    for key, tensor in state.items():
        number = re.search(r"\.(\d+)\.", key)
        general = key if number is None else key.replace(number.group(), ".#.", 1)
        prefix = next((prefix for prefix in names if general.startswith(prefix)), None)
        if prefix is not None:
            new = names[prefix] + general.removeprefix(prefix)
            renamed[new if number is None else new.replace(".#.", number.group(), 1)] = tensor
        elif general.startswith(dropped):
            logger.warning("%s has no counterpart on the other side and is left out.", key)
        else:
            raise ValueError(f"The weight {key} has no counterpart on the other side; convert without it.")
    return renamed


def _inverse(names: Names) -> Names:
    return {ours: theirs for theirs, ours in names.items()}


def _with_body(state: Mapping[str, Tensor], body: str) -> tuple[StateDict, bool]:
    """The state dict with its body's prefix, which a headless model's own has not; and whether it was added."""
    if any(key.startswith(body) for key in state):
        return dict(state), False
    return {body + key: tensor for key, tensor in state.items()}, True


def _without_body(state: StateDict, body: str) -> StateDict:
    return {key.removeprefix(body): tensor for key, tensor in state.items()}


def from_torch_encoder(state: Mapping[str, Tensor]) -> StateDict:
    """Weights of a `torch.nn.TransformerEncoder` as those of a `TfEncModel`'s layers; it has no embeddings."""
    return _rename(state, TORCH_NAMES)


def to_torch_encoder(state: Mapping[str, Tensor]) -> StateDict:
    """Weights of a `TfEncModel` as those of a `torch.nn.TransformerEncoder`, which takes embedded input."""
    return _rename(state, _inverse(TORCH_NAMES), dropped=("embeddings.", "pooler."))


def from_bert(state: Mapping[str, Tensor], classifier: str = "classifier") -> StateDict:
    """Weights of a transformers BERT, bare or with a head, as those of our class with the same head.

    Args:
        classifier: what our class calls the layer that theirs calls so: `score` in multiple choice.
    """
    state, bare = _with_body(state, "bert.")
    renamed = _rename(state, BERT_NAMES | {"classifier.": f"{classifier}."}, BERT_DROPPED)
    for key in [key for key in renamed if ".q_proj." in key]:
        parts = [renamed.pop(key.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        renamed[key.replace(".q_proj.", ".qkv_proj.")] = torch.cat(parts)
    return _without_body(renamed, "model.") if bare else renamed


def to_bert(state: Mapping[str, Tensor]) -> StateDict:
    """Weights of one of our classes in the BERT corner as those of transformers' BERT with the same head."""
    state, bare = _with_body(state, "model.")
    for key in [key for key in state if ".qkv_proj." in key]:
        for part, tensor in zip("qkv", state.pop(key).chunk(3), strict=True):
            state[key.replace(".qkv_proj.", f".{part}_proj.")] = tensor
    renamed = _rename(state, _inverse(BERT_NAMES) | {"score.": "classifier."})
    if (bias := renamed.get("cls.predictions.decoder.bias")) is not None:
        renamed["cls.predictions.bias"] = bias  # BERT has it under both names
    return _without_body(renamed, "bert.") if bare else renamed


def from_modernbert(state: Mapping[str, Tensor], classifier: str = "classifier") -> StateDict:
    """Weights of a transformers ModernBERT, bare or with a head, as those of our class with the same head.

    Args:
        classifier: what our class calls the layer that theirs calls so: `qa_outputs` in question answering, `score`
            in multiple choice.
    """
    state, bare = _with_body(state, "model.")
    renamed = _rename(state, MODERNBERT_NAMES | {"classifier.": f"{classifier}."})
    return _without_body(renamed, "model.") if bare else renamed


def to_modernbert(state: Mapping[str, Tensor]) -> StateDict:
    """Weights of one of our classes in the ModernBERT corner as those of ModernBERT with the same head."""
    state, bare = _with_body(state, "model.")
    renamed = _rename(state, _inverse(MODERNBERT_NAMES) | {"qa_outputs.": "classifier.", "score.": "classifier."})
    return _without_body(renamed, "model.") if bare else renamed


# --- Configurations --------------------------------------------------------------------------------------------------

# Names that stand for the same thing on both sides of a family.
SHARED = [
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "pad_token_id",
    "tie_word_embeddings",
    "initializer_range",
]
LABELS = ("id2label", "label2id", "problem_type")

BERT_CORNER: dict[str, Any] = {
    "position_embedding_type": "learned",
    "embedding_scale": 1.0,
    "norm_position": "post",
    "embedding_norm": True,
    "final_norm": False,
    "first_attention_norm": True,
    "gated_mlp": False,
    "attention_bias": True,
    "mlp_bias": True,
    "norm_bias": True,
    "head_bias": True,
    "decoder_bias": True,
    "sliding_window": None,
    "is_causal": False,
    "pooling": "cls",
    "pooler_activation": "tanh",
    "head_transform": "lm",
}
MODERNBERT_CORNER: dict[str, Any] = {
    "type_vocab_size": 0,
    "position_embedding_type": "rotary",
    "embedding_scale": 1.0,
    "norm_position": "pre",
    "embedding_norm": True,
    "final_norm": True,
    "first_attention_norm": False,
    "gated_mlp": True,
    "is_causal": False,
    "pooler_activation": None,
    "head_transform": "all",
}


INSTEAD = "convert it to another one, or leave it as it is."


def _refuse_outside(config: TfEncConfig, corner: dict[str, Any], family: str) -> None:
    for name, value in corner.items():
        if getattr(config, name) != value:
            raise ValueError(f"{family} has {name} {value!r} and this model {getattr(config, name)!r}; {INSTEAD}")


def _copied(source: PreTrainedConfig, names: tuple[str, ...] | list[str]) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}


def from_bert_config(bert: BertConfig) -> TfEncConfig:
    """The configuration under which our classes compute what BERT computes."""
    if bert.is_decoder or bert.add_cross_attention:
        raise ValueError("This BERT is a decoder (is_decoder or add_cross_attention); only encoders convert.")
    return TfEncConfig(
        **BERT_CORNER,
        **_copied(bert, (*SHARED, *LABELS)),
        type_vocab_size=bert.type_vocab_size,
        layer_norm_eps=bert.layer_norm_eps,
        hidden_act=bert.hidden_act,
        classifier_activation=bert.hidden_act,
        embedding_dropout=bert.hidden_dropout_prob,
        hidden_dropout=bert.hidden_dropout_prob,
        attention_dropout=bert.attention_probs_dropout_prob,
        mlp_dropout=0.0,
        classifier_dropout=bert.hidden_dropout_prob if bert.classifier_dropout is None else bert.classifier_dropout,
    )


def to_bert_config(config: TfEncConfig) -> BertConfig:
    """The BERT that computes what this model computes. Raises ValueError, naming the option, where none does."""
    _refuse_outside(config, BERT_CORNER | {"classifier_activation": config.hidden_act}, "BERT")
    if config.type_vocab_size < 1:
        raise ValueError(f"BERT has type_vocab_size of at least 1 and this model 0; {INSTEAD}")
    return BertConfig(
        **_copied(config, (*SHARED, *LABELS)),
        type_vocab_size=config.type_vocab_size,
        layer_norm_eps=config.layer_norm_eps,
        hidden_act=config.hidden_act,
        hidden_dropout_prob=config.hidden_dropout,
        attention_probs_dropout_prob=config.attention_dropout,
        classifier_dropout=config.classifier_dropout,
    )


MODERNBERT_SHARED = (
    *SHARED,
    *LABELS,
    *[
        "bos_token_id",
        "eos_token_id",
        "cls_token_id",
        "sep_token_id",
        "attention_bias",
        "mlp_bias",
        "norm_bias",
        "decoder_bias",
    ],
    *[
        "attention_dropout",
        "embedding_dropout",
        "mlp_dropout",
        "classifier_dropout",
        "classifier_activation",
        "layer_types",
    ],
)


def from_modernbert_config(modern: ModernBertConfig) -> TfEncConfig:
    """The configuration under which our classes compute what ModernBERT computes."""
    used = set(modern.layer_types)
    return TfEncConfig(
        **MODERNBERT_CORNER,
        **_copied(modern, MODERNBERT_SHARED),
        layer_norm_eps=modern.norm_eps,
        hidden_act=modern.hidden_activation,
        head_bias=modern.classifier_bias,
        pooling=modern.classifier_pooling,
        sliding_window=modern.sliding_window,
        rope_parameters={kind: dict(modern.rope_parameters[kind]) for kind in used},
        hidden_dropout=0.0,
        residual_initializer_scale=None,
    )


def to_modernbert_config(config: TfEncConfig) -> ModernBertConfig:
    """The ModernBERT that computes what this model computes. Raises ValueError, naming the option, where none does."""
    _refuse_outside(config, MODERNBERT_CORNER, "ModernBERT")
    if config.pooling == "none":
        raise ValueError(f"ModernBERT has pooling cls or mean and this model none; {INSTEAD}")
    window = {} if config.sliding_window is None else {"local_attention": 2 * config.sliding_window}
    modern = ModernBertConfig(
        **_copied(config, MODERNBERT_SHARED),
        **window,
        norm_eps=config.layer_norm_eps,
        hidden_activation=config.hidden_act,
        classifier_bias=config.head_bias,
        classifier_pooling=config.pooling,
        rope_parameters={kind: dict(parameters) for kind, parameters in (config.rope_parameters or {}).items()},
    )
    for name, value in _older_names(modern).items():
        setattr(modern, name, value)
    return modern


def _older_names(modern: ModernBertConfig) -> dict[str, Any]:
    """What transformers 4, and servers in other languages, read in place of `layer_types` and `rope_parameters`.

    Empty where they cannot say it: every n-th layer, from the first one on, sees all, each kind with a base of its own.
    """
    whole = [kind == "full_attention" for kind in modern.layer_types]
    distance = next((n for n in range(1, len(whole) + 1) if whole == [i % n == 0 for i in range(len(whole))]), None)
    ropes = [modern.rope_parameters[kind] for kind in ("full_attention", "sliding_attention")]
    if distance is None or any(rope.get("rope_type", "default") != "default" for rope in ropes):
        return {}
    names = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta")
    return dict(zip(names, (distance, *(rope["rope_theta"] for rope in ropes)), strict=True))


# Inside the layers of torch.nn.TransformerEncoder; embeddings and heads stand outside and may be anything.
TORCH_CORNER: dict[str, Any] = {
    "first_attention_norm": True,
    "gated_mlp": False,
    "is_causal": False,
    "sliding_window": None,
}
TORCH_ACTIVATIONS = ("relu", "gelu")


def to_torch_arguments(config: TfEncConfig) -> dict[str, Any]:
    """The `torch.nn.TransformerEncoderLayer` that computes what our layers compute, `num_layers` and `final_norm`.

    Raises:
        ValueError: none does; the option is named.
    """
    family = "torch.nn.TransformerEncoder"
    _refuse_outside(config, TORCH_CORNER, family)
    if config.position_embedding_type == "rotary":
        raise ValueError(f"{family} has no position_embedding_type 'rotary' inside its layers; {INSTEAD}")
    if config.hidden_act not in TORCH_ACTIVATIONS:
        raise ValueError(
            f"{family} has hidden_act {' or '.join(TORCH_ACTIVATIONS)} and this model {config.hidden_act!r}; {INSTEAD}"
        )
    if len({config.attention_bias, config.mlp_bias, config.norm_bias}) > 1:
        raise ValueError(
            f"{family} has attention_bias, mlp_bias and norm_bias all alike and this model "
            f"{config.attention_bias}, {config.mlp_bias} and {config.norm_bias}; {INSTEAD}"
        )
    return {
        "d_model": config.hidden_size,
        "nhead": config.num_attention_heads,
        "dim_feedforward": config.intermediate_size,
        "dropout": config.hidden_dropout,
        "activation": config.hidden_act,
        "layer_norm_eps": config.layer_norm_eps,
        "batch_first": True,
        "norm_first": config.norm_position == "pre",
        "bias": config.attention_bias,
        "num_layers": config.num_hidden_layers,
        "final_norm": config.final_norm,
    }


def from_torch_config(state: Mapping[str, Tensor], options: dict[str, Any]) -> TfEncConfig:
    """The configuration of our encoder for a state dict of `torch.nn.TransformerEncoder`.

    Sizes and biases are read from the weights. The rest is the textbook encoder, with `options` over it.

    Raises:
        ValueError: no such state dict, or no `num_attention_heads` in `options`: weights do not tell it.
    """
    first, up = "layers.0.self_attn.in_proj_weight", "layers.0.linear1.weight"
    for name in (first, up):
        if name not in state:
            raise ValueError(f"The state dict has no {name}: save that of the torch.nn.TransformerEncoder itself.")
    if not {"num_attention_heads", "nhead"} & options.keys():
        raise ValueError("Weights do not tell the number of heads: give num_attention_heads in --config_overrides.")
    bias = "layers.0.linear1.bias" in state
    read = {
        "hidden_size": state[first].shape[1],
        "intermediate_size": state[up].shape[0],
        "num_hidden_layers": len({key.split(".")[1] for key in state if key.startswith("layers.")}),
        "final_norm": "norm.weight" in state,
        **dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias"), bias),
    }
    options = {TfEncConfig.attribute_map.get(name, name): value for name, value in options.items()}
    for name, value in read.items():
        if options.get(name, value) != value:
            raise ValueError(
                f"--config_overrides {name} is {options[name]}, and the weights say {value}: leave it out."
            )
    return TfEncConfig(**read | options)
