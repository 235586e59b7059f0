"""The configuration of the encoder: one class whose options reach the textbook encoder, BERT and ModernBERT.

This file travels with every checkpoint. It imports transformers, huggingface_hub and nothing of the package.
"""

import difflib
import math
from dataclasses import fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Written into every config.json, so that each head loads from each checkpoint and not the saved one alone.
AUTO_MAP = {
    "AutoConfig": "configuration_tfenc.TfEncConfig",
    "AutoModel": "modeling_tfenc.TfEncModel",
    "AutoModelForMaskedLM": "modeling_tfenc.TfEncForMaskedLM",
    "AutoModelForCausalLM": "modeling_tfenc.TfEncForCausalLM",
    "AutoModelForSequenceClassification": "modeling_tfenc.TfEncForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_tfenc.TfEncForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_tfenc.TfEncForQuestionAnswering",
    "AutoModelForMultipleChoice": "modeling_tfenc.TfEncForMultipleChoice",
}

# What transformers itself hands to a configuration beside its fields: by its constructors, or from a saved file.
TRANSFORMERS_KEYS = {
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "quantization_config",
    "tie_last_hidden_states",
    "tokenizer_class",
    "torch_dtype",
    "transformers_weights",
    "use_cache",
}

LAYER_TYPES = ("full_attention", "sliding_attention")
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


@strict
class TfEncConfig(PreTrainedConfig):
    """Configuration of a [`TfEncModel`]. The defaults are the textbook encoder of "Attention Is All You Need".

    Named configurations of all three families, in four sizes, are in `hf_tfenc.presets`.

    Args:
        vocab_size: number of token ids.
        hidden_size: width of the residual stream (`d_model`).
        num_hidden_layers: number of encoder layers (`num_layers`).
        num_attention_heads: heads of each attention (`nhead`); divides `hidden_size`.
        intermediate_size: width inside the feed-forward block (`dim_feedforward`).
        max_position_embeddings: longest sequence, in tokens (`max_len`). A limit for sinusoidal and learned
            positions; only a record of the training length for rotary ones.
        type_vocab_size: number of segment ids; 0 for none.
        position_embedding_type: `sinusoidal` (a fixed table added to the embeddings), `learned` (a trained table
            added to the embeddings), `rotary` (queries and keys rotated in each layer) or `none`.
        embedding_scale: factor on the token embeddings, never on the positions. By default the square root of
            `hidden_size` with sinusoidal positions, whose entries are of order 1, and 1 otherwise.
        norm_position: `post` normalizes after each residual sum, `pre` the input of each sub-layer.
        embedding_norm: layer norm after the embeddings.
        final_norm: layer norm after the last layer.
        first_attention_norm: with `pre`, False leaves out the norm before the first attention.
        layer_norm_eps: added to the variance in each layer norm.
        hidden_act: activation in the feed-forward block, by its name in transformers' `ACT2FN`.
        gated_mlp: multiply the activated half of a doubled up-projection by the other half.
        attention_bias, mlp_bias, norm_bias, head_bias, decoder_bias: which of the parts have bias vectors.
        layer_types: for each layer `full_attention` or `sliding_attention`; all full by default.
        sliding_window: in sliding layers a token sees keys at a distance of at most this many tokens; under the
            look-ahead mask it sees the last `sliding_window` tokens, itself included.
        rope_parameters: `{"rope_theta": base, "rope_type": "default"}`, or one such dict for each layer type.
        is_causal: the look-ahead mask: no token sees a later one.
        pooling: what stands for a whole sequence: its first token (`cls`), the `mean` of its tokens, or `none`.
        pooler_activation: a dense layer and this activation after pooling (BERT: `tanh`); None for neither.
        head_transform: where a dense layer, an activation and a norm precede the output layer: `none`, `lm` (before
            the vocabulary projection only) or `all` heads.
        classifier_activation: the activation of that transform.
        tie_word_embeddings: the vocabulary projection shares the token embedding's weight.
        sparse_prediction: in training, project labelled positions alone to the vocabulary; `logits` is then None.
        embedding_dropout, hidden_dropout, attention_dropout, mlp_dropout, classifier_dropout: dropout after the
            embeddings, on each residual branch, on attention weights, inside the feed-forward block, before a
            classifier.
        initializer_range: standard deviation of the initial weights of linear layers.
        embedding_initializer_range: the same for the token, position and segment tables; `initializer_range` if None.
        query_key_initializer_range: the same for the query projection, and the key projection then starts equal to it:
            a score is at first an inner product, greatest between tokens at near positions. None for no such start.
        residual_initializer_scale: factor on that deviation for the two projections of each layer that write into
            the residual stream; None for 1 / sqrt(2 * num_hidden_layers).
        task_specific_params: what a task must remember of its training rows, by the task's name.

    Raises:
        ValueError: a keyword that is no option, or options that do not go together.
    """

    model_type = "tfenc"
    attribute_map = {
        "d_model": "hidden_size",
        "nhead": "num_attention_heads",
        "num_layers": "num_hidden_layers",
        "dim_feedforward": "intermediate_size",
        "max_len": "max_position_embeddings",
    }

    vocab_size: int = 32_000
    hidden_size: int = 512
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    cls_token_id: int | None = None
    sep_token_id: int | None = None
    mask_token_id: int | None = None

    position_embedding_type: Literal["sinusoidal", "learned", "rotary", "none"] = "sinusoidal"
    embedding_scale: float | int | None = None
    rope_parameters: dict | None = None

    norm_position: Literal["post", "pre"] = "post"
    embedding_norm: bool = False
    final_norm: bool = False
    first_attention_norm: bool = True
    layer_norm_eps: float | int = 1e-5

    hidden_act: str = "relu"
    gated_mlp: bool = False
    attention_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    head_bias: bool = True
    decoder_bias: bool = True

    layer_types: list[str] | None = None
    sliding_window: int | None = None
    is_causal: bool = False

    pooling: Literal["cls", "mean", "none"] = "cls"
    pooler_activation: str | None = None
    head_transform: Literal["none", "lm", "all"] = "none"
    classifier_activation: str = "gelu"
    tie_word_embeddings: bool = True
    sparse_prediction: bool = False

    embedding_dropout: float | int = 0.1
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    mlp_dropout: float | int = 0.1
    classifier_dropout: float | int = 0.1

    initializer_range: float | int = 0.02
    embedding_initializer_range: float | int | None = None
    query_key_initializer_range: float | int | None = None
    residual_initializer_scale: float | int | None = 1.0

    task_specific_params: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for alias, name in self.attribute_map.items():
            if alias in kwargs:
                setattr(self, name, kwargs.pop(alias))
        self._refuse_unknown(kwargs)

        if self.embedding_scale is None:
            self.embedding_scale = (
                math.sqrt(max(self.hidden_size, 1)) if self.position_embedding_type == "sinusoidal" else 1.0
            )
        if self.layer_types is None:
            self.layer_types = ["full_attention"] * self.num_hidden_layers
        if self.position_embedding_type == "rotary":
            self.rope_parameters = self._rope_parameters_by_layer_type()
        kwargs["auto_map"] = dict(AUTO_MAP)
        super().__post_init__(**kwargs)
        self.validate_architecture()  # @strict runs it again, but wraps its sentence into two lines of its own

    @classmethod
    def option_names(cls) -> list[str]:
        """Every keyword that the constructor takes for the architecture, the textbook's words included."""
        return [field.name for field in fields(cls)] + list(cls.attribute_map)

    @property
    def position_limit(self) -> int | None:
        """The most tokens that a row may have; None where positions go on without an end."""
        return self.max_position_embeddings if self.position_embedding_type in ("sinusoidal", "learned") else None

    @classmethod
    def foreign_names(cls) -> set[str]:
        """Keywords of the constructor that say nothing of the architecture: they are transformers' own."""
        own = {*cls.__annotations__, *cls.attribute_map, "id2label", "label2id", "num_labels", "problem_type"}
        return ({field.name for field in fields(cls)} | TRANSFORMERS_KEYS) - own

    def _refuse_unknown(self, kwargs: dict[str, Any]) -> None:
        for key in kwargs:
            if key not in TRANSFORMERS_KEYS and not key.startswith("_"):
                nearest = difflib.get_close_matches(key, self.option_names(), n=1)
                hint = f" Did you mean {nearest[0]!r}?" if nearest else " TfEncConfig's docstring lists the options."
                raise ValueError(f"{key!r} is not an option of TfEncConfig.{hint}")

    def _rope_parameters_by_layer_type(self) -> dict[str, dict]:
        given = self.rope_parameters or {}
        shared = {key: value for key, value in given.items() if key not in LAYER_TYPES}
        default = {"rope_type": "default", "rope_theta": 10_000.0} | shared
        for kind, parameters in given.items():
            if kind in LAYER_TYPES and not isinstance(parameters, dict | None):
                raise ValueError(
                    f"rope_parameters of {kind} are {parameters!r}; write them as {{'rope_theta': 10000.0}}."
                )
        return {kind: default | (given.get(kind) or {}) for kind in sorted(set(self.layer_types or ()))}

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Nothing to convert: `rope_parameters` is settled before transformers asks, and no older form exists."""
        return kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """As in transformers, but an unknown key is kept with one warning: a newer version may have written it."""
        known = set(cls.option_names()) | TRANSFORMERS_KEYS
        unknown = {k: v for k, v in config_dict.items() if k not in known and not k.startswith("_")}
        result = super().from_dict({k: v for k, v in config_dict.items() if k not in unknown}, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        for key, value in unknown.items():
            setattr(config, key, value)
        if unknown:
            names = ", ".join(sorted(unknown))
            logger.warning_once(f"config.json has keys that this version of TfEncConfig does not know: {names}.")
        return result

    def validate_architecture(self) -> None:
        """Check what cannot work.

        Raises:
            ValueError: one sentence with the values and the mend.
        """
        heads, width, positions = self.num_attention_heads, self.hidden_size, self.position_embedding_type
        layer_types = self.layer_types or []
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.max_position_embeddings < 1:
            raise ValueError(f"max_position_embeddings is {self.max_position_embeddings}; it must be at least 1.")
        if self.type_vocab_size < 0:
            raise ValueError(f"type_vocab_size is {self.type_vocab_size}; it must be at least 0.")
        deviations = ("initializer_range", "embedding_initializer_range", "query_key_initializer_range")
        for name in ("layer_norm_eps", "residual_initializer_scale", *deviations):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be below 0.")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(f"problem_type {self.problem_type!r} is none of {', '.join(PROBLEM_TYPES)}.")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id is {self.pad_token_id}, outside the vocabulary of {self.vocab_size} tokens."
            )
        if not (self.embedding_scale or 0) > 0:
            raise ValueError(f"embedding_scale is {self.embedding_scale}; it must be above 0.")
        if width % heads:
            raise ValueError(f"hidden_size {width} is not divisible by num_attention_heads {heads}; change either.")
        if positions == "sinusoidal" and width % 2:
            raise ValueError(f"Sinusoidal positions come in pairs of sine and cosine; hidden_size {width} is odd.")
        if positions == "rotary" and (width // heads) % 2:
            raise ValueError(
                f"Rotary positions turn pairs of features; hidden_size {width} over {heads} heads is "
                f"{width // heads} a head, which is odd."
            )
        if len(layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types names {len(layer_types)} layers, num_hidden_layers is {self.num_hidden_layers}; "
                "they must agree."
            )
        if wrong := sorted(set(layer_types) - set(LAYER_TYPES)):
            raise ValueError(f"layer_types holds {wrong[0]!r}; each entry is one of {', '.join(LAYER_TYPES)}.")
        if "sliding_attention" in layer_types and (self.sliding_window is None or self.sliding_window < 1):
            raise ValueError(
                f"layer_types has sliding_attention and sliding_window is {self.sliding_window}; "
                "set it to the number of tokens seen to each side."
            )
        if positions != "rotary" and self.rope_parameters is not None:
            raise ValueError(f"rope_parameters go with rotary positions; position_embedding_type is {positions!r}.")
        for parameters in (self.rope_parameters or {}).values():
            if parameters.get("rope_type") != "default" or set(parameters) != {"rope_type", "rope_theta"}:
                raise ValueError(
                    f"rope_parameters {parameters} are not supported; for each layer type give only rope_theta."
                )
            if not isinstance(parameters["rope_theta"], int | float) or not parameters["rope_theta"] > 0:
                raise ValueError(f"rope_theta is {parameters['rope_theta']!r}; it must be a number above 0.")
        for name in ("hidden_act", "classifier_activation", "pooler_activation"):
            activation = getattr(self, name)
            if activation is not None and activation not in ACT2FN:
                raise ValueError(f"{name} {activation!r} is no activation of transformers; one is {sorted(ACT2FN)}.")
        if self.pooler_activation is not None and self.pooling == "none":
            raise ValueError(
                f"pooler_activation {self.pooler_activation!r} needs pooling cls or mean; pooling is none."
            )
        for name in (field.name for field in fields(self) if field.name.endswith("_dropout")):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a dropout rate lies in [0, 1).")


TfEncConfig.register_for_auto_class()

__all__ = ["TfEncConfig"]
