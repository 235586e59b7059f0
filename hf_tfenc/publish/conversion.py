"""What `hf-tfenc convert` does: a whole checkpoint to or from BERT, ModernBERT or torch.nn.TransformerEncoder.

convert.py says how weights and options correspond. Here the pieces meet: both models are made, asked the same, and
compared, and only then is anything written.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_tfenc import TfEncConfig
from ..modeling_tfenc import sinusoidal_table
from ..pretrained import StateDict, build, read_config, read_file, read_pretrained, with_options
from ..tokenization import load_tokenizer, save_tokenizer, vocabulary_size
from ..training.checkpointing import save_model, write_text
from .comparing import largest_difference, sample_batches
from .convert import (
    from_bert_config,
    from_modernbert_config,
    from_torch_config,
    from_torch_encoder,
    to_bert,
    to_bert_config,
    to_modernbert,
    to_modernbert_config,
    to_torch_arguments,
    to_torch_encoder,
)
from .sentence_transformers import write_modules

logger = logging.getLogger(__name__)

STATE_DICT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
TORCH_WEIGHTS, TORCH_ARGUMENTS = "model.safetensors", "encoder.json"
HEADS = (
    "Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering",
    "ForMultipleChoice",
)  # fmt: skip
PREFIXES = {"bert": "Bert", "modernbert": "ModernBert", "tfenc": "TfEnc"}  # of the names of classes
RENAMED_HEADS = {"BertForPreTraining": "ForMaskedLM"}  # less the next-sentence head
COMPARED = ("logits", "prediction_logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output")


class Destination(NamedTuple):
    """How one of our models becomes one of another family, and what that one comes back as."""

    config: Callable[[TfEncConfig], Any]
    weights: Callable[[StateDict], StateDict]
    back: Callable[[Any], TfEncConfig]


DESTINATIONS = {
    "bert": Destination(to_bert_config, to_bert, from_bert_config),
    "modernbert": Destination(to_modernbert_config, to_modernbert, from_modernbert_config),
}


def convert(
    source: str,
    out: Path,
    to: str | None = None,
    tokenizer_name: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> list[str]:
    """Convert a checkpoint: weights, configuration, head and tokenizer.

    Args:
        source: folder or Hub id of a BERT, a ModernBERT or one of ours, or the file of a state dict of
            `torch.nn.TransformerEncoder`.
        out: a folder, new or empty.
        to: `bert`, `modernbert` or `torch` for a model of ours; the others become ours.
        tokenizer_name, overrides: for a state dict, which has neither tokenizer nor configuration.

    Returns:
        what was done, in sentences: what was left out, and by how much outputs on a sample batch differ at most

    Raises:
        ValueError: something cannot be expressed exactly on the other side; the option or weight is named.
        OSError: nothing to read, or `out` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OSError(f"{out} holds something already: choose a new folder.")
    if to not in (None, "torch", *DESTINATIONS):
        raise ValueError(f"--to is {to!r}; it is one of {', '.join(DESTINATIONS)} and torch.")
    if Path(source).suffix in STATE_DICT_SUFFIXES and not Path(source).is_dir():
        if to is not None:
            raise ValueError(f"--to is for a model of ours, and {source} is a state dict: leave it out.")
        return _from_torch(Path(source), out, tokenizer_name, overrides or {})
    if tokenizer_name or overrides:
        raise ValueError(f"--tokenizer_name and --config_overrides are for a state dict; {source} has its own.")
    kind = read_config(source).model_type
    if kind != TfEncConfig.model_type:
        if to is not None:
            raise ValueError(f"--to is for a model of ours, and {source} is a {kind} model: leave it out.")
        return _to_ours(source, out)
    if to is None:
        raise ValueError(f"{source} is a model of ours: say with --to whether it goes to bert, modernbert or torch.")
    return _to_torch(source, out) if to == "torch" else _to_theirs(source, out, to)


# --- BERT and ModernBERT ---------------------------------------------------------------------------------------------


def _to_ours(source: str, out: Path) -> list[str]:
    config = read_config(source)
    name, head = _head(config, source)
    pretrained = read_pretrained(source)
    auto_class = getattr(transformers, "AutoModel" if head == "Model" else f"AutoModel{head}")
    ours, loading = build(auto_class, pretrained.config, pretrained.weights)
    theirs = getattr(transformers, name).from_pretrained(source, dtype=torch.float32)
    report = [_named("Left out, for this head does without", loading["unexpected_keys"])]
    if heads := sorted(key for key in loading["missing_keys"] if "pooler" not in key):
        raise ValueError(f"{source} lacks the weight {heads[0]}: it is no whole {name}.")
    report += [_named("Not in the checkpoint, so begun anew", loading["missing_keys"])]
    skipped = ("pooler_output",) if loading["missing_keys"] else ()
    report += [_comparison(ours, theirs, skipped)]
    return _save(ours, ours, pretrained.weights, source, out, report)


def _to_theirs(source: str, out: Path, family: str) -> list[str]:
    _, config, weights = read_pretrained(source)
    name, head = _head(config, source)
    destination = DESTINATIONS[family]
    ours, loading = build(
        getattr(transformers, "AutoModel" if head == "Model" else f"AutoModel{head}"), config, weights
    )
    if loading["missing_keys"]:
        raise ValueError(f"{source} lacks the weight {sorted(loading['missing_keys'])[0]}: it is no whole {name}.")
    if loading["mismatched_keys"]:
        key, found, wanted = sorted(loading["mismatched_keys"])[0]
        raise ValueError(f"{source} has {key} of shape {tuple(found)}, and its config.json says {tuple(wanted)}.")
    state = dict(ours.state_dict())
    if family == "bert" and config.position_embedding_type == "sinusoidal":
        # The fixed table as a learned one: the same numbers, which further training may then change.
        config = with_options(config, {"position_embedding_type": "learned"})
        body = "" if head == "Model" else "model."
        state[f"{body}embeddings.positions.table.weight"] = sinusoidal_table(
            config.max_position_embeddings, config.hidden_size
        )
    their_config = destination.config(config)
    theirs = getattr(transformers, PREFIXES[family] + head)(their_config)
    theirs.load_state_dict(destination.weights(state))
    back = destination.back(their_config)
    dropouts = [
        f"{option} {getattr(config, option)} here and {getattr(back, option)} there"
        for option in sorted(TfEncConfig.option_names())
        if option.endswith("_dropout") and getattr(config, option) != getattr(back, option)
    ]
    report = [f"In training alone, dropout differs: {'; '.join(dropouts)}."] if dropouts else []
    report += [_comparison(ours, theirs)]
    return _save(theirs, ours, weights, source, out, report)


def _head(config: Any, source: str) -> tuple[str, str]:
    """The class that a checkpoint was saved from, and its end: `Model`, `ForMaskedLM`, …"""
    prefix = PREFIXES[config.model_type]
    name = next(iter(config.architectures or []), f"{prefix}Model")
    head = RENAMED_HEADS.get(name, name.removeprefix(prefix))
    if head not in HEADS:
        names = ", ".join(prefix + known for known in HEADS)
        raise ValueError(f"{source} is a {name}, which has no counterpart; those that have one are {names}.")
    return name, head


def _named(what: str, keys: set[str]) -> str:
    return f"{what}: {', '.join(sorted(keys))}." if keys else ""


def _save(
    model: PreTrainedModel, ours: PreTrainedModel, weights: StateDict, source: str, out: Path, report: list[str]
) -> list[str]:
    """Write the model in the precision that its weights had, the tokenizer as it is, and how `ours` pools."""
    tokenizer, absent = _tokenizer(source)
    save_model(model.to(next(iter(weights.values())).dtype), tokenizer, out)
    if model is not ours and tokenizer is not None:
        _name_tokenizer_as_before(out / "tokenizer_config.json")
    write_modules(ours, out)
    return [*filter(None, report), *absent, f"{out} holds a {type(model).__name__}."]


def _name_tokenizer_as_before(path: Path) -> None:
    """By the name that transformers 4 has for the class of any fast tokenizer; later versions know both."""
    options = json.loads(path.read_text(encoding="utf-8"))
    if options.get("tokenizer_class") == "TokenizersBackend":
        write_text(path, json.dumps(options | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")


def _tokenizer(source: str) -> tuple[PreTrainedTokenizerBase | None, list[str]]:
    try:
        return load_tokenizer(source), []
    except FileNotFoundError:
        return None, [f"{source} holds no tokenizer, so none travels along."]


# --- torch.nn.TransformerEncoder -------------------------------------------------------------------------------------


def _from_torch(path: Path, out: Path, tokenizer_name: str | None, overrides: dict[str, Any]) -> list[str]:
    state = read_file(path)
    tokenizer = load_tokenizer(tokenizer_name) if tokenizer_name else None
    if tokenizer is not None:
        overrides = {"vocab_size": vocabulary_size(tokenizer), "pad_token_id": tokenizer.pad_token_id} | overrides
    if "vocab_size" not in overrides:
        raise ValueError(
            f"{path} has no token embeddings, so they begin anew: name a tokenizer with --tokenizer_name, or give "
            "vocab_size in --config_overrides."
        )
    config = from_torch_config(state, overrides)
    if tokenizer is not None and vocabulary_size(tokenizer) > config.vocab_size:
        raise ValueError(
            f"vocab_size is {config.vocab_size}, and {tokenizer_name} has {vocabulary_size(tokenizer)} tokens: raise it."
        )
    weights = from_torch_encoder(state)
    ours, loading = build(AutoModel, config, weights)
    report = [
        _named("Not in a TransformerEncoder, so begun anew", loading["missing_keys"]),
        _torch_comparison(config, weights),
    ]
    save_model(ours, tokenizer, out)
    return [*filter(None, report), f"{out} holds a {type(ours).__name__}."]


def _to_torch(source: str, out: Path) -> list[str]:
    _, config, weights = read_pretrained(source)
    arguments = to_torch_arguments(config)
    weights = {key.removeprefix("model."): tensor for key, tensor in weights.items()}
    inside = {key: tensor for key, tensor in weights.items() if key.startswith(("layers.", "final_norm."))}
    report = [
        _named(f"Left in {source}, for it is not part of a TransformerEncoder", weights.keys() - inside.keys()),
        _torch_comparison(config, inside),
    ]
    tokenizer, absent = _tokenizer(source)
    out.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        save_tokenizer(tokenizer, out)
    write_text(out / TORCH_ARGUMENTS, json.dumps(arguments, indent=2) + "\n")
    save_file({key: tensor.contiguous() for key, tensor in to_torch_encoder(inside).items()}, out / TORCH_WEIGHTS)
    made = (
        f"{out} holds the state dict of a TransformerEncoder in {TORCH_WEIGHTS}, and its options in {TORCH_ARGUMENTS}."
    )
    return [*filter(None, report), *absent, made]


def torch_encoder(arguments: dict[str, Any]) -> nn.TransformerEncoder:
    """The encoder that `encoder.json` describes: the arguments of its layers, `num_layers` and `final_norm`."""
    layer = {name: value for name, value in arguments.items() if name not in ("num_layers", "final_norm")}
    norm = nn.LayerNorm(layer["d_model"], eps=layer["layer_norm_eps"], bias=layer["bias"])
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(**layer),
        arguments["num_layers"],
        norm if arguments["final_norm"] else None,
        enable_nested_tensor=False,
    )


def _torch_comparison(config: TfEncConfig, weights: StateDict) -> str:
    """Compare what is alike in both: the layers, on vectors that both are given."""
    theirs = torch_encoder(to_torch_arguments(config))
    try:
        theirs.load_state_dict(to_torch_encoder(weights))
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"Weights and configuration do not fit each other ({reason}): mend the one or the other."
        ) from error
    outside = {
        "position_embedding_type": "none",
        "embedding_scale": 1.0,
        "embedding_norm": False,
        "type_vocab_size": 0,
    }
    outside |= {"pooling": "none", "pooler_activation": None, "vocab_size": 1, "pad_token_id": 0}
    ours, _ = build(AutoModel, with_options(config, outside), weights)
    x = torch.randn(3, 16, config.hidden_size, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(16) < torch.tensor([[16], [12], [8]])).long()
    with torch.no_grad():
        result = ours.eval()(inputs_embeds=x, attention_mask=mask).last_hidden_state
        expected = theirs.eval()(x, src_key_padding_mask=mask == 0)
    return _said(largest_difference({"last_hidden_state": result}, {"last_hidden_state": expected}, mask))


def _comparison(ours: PreTrainedModel, theirs: PreTrainedModel, skipped: tuple[str, ...] = ()) -> str:
    """Ask both models the same, padding and segments included, and say by how much they differ.

    Raises:
        ValueError: by more than float32 explains.
    """
    largest = 0.0
    for batch in sample_batches(ours, segments=True):
        with torch.no_grad():
            outputs = [model.eval()(**batch) for model in (ours, theirs)]
        result, expected = (
            {name.removeprefix("prediction_"): output[name] for name in COMPARED if output.get(name) is not None}
            for output in outputs
        )
        compared = result.keys() & expected.keys() - set(skipped)
        expected = {name: expected[name] for name in compared}
        largest = max(largest, largest_difference(result, expected, batch["attention_mask"]))
    return _said(largest)


def _said(largest: float) -> str:
    return f"Outputs of the two models on sample batches differ by {largest:.1e} at most."
