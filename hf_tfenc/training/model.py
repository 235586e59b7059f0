"""The model of a run: new, pre-trained elsewhere, or saved by the run itself."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_tfenc import TfEncConfig
from ..presets import preset_config
from ..pretrained import build, quiet_loading, read_pretrained, with_options
from ..tasks import Task
from ..tasks.labels import Labels
from ..tokenization import load_tokenizer, vocabulary_size
from ..vocabulary import transfer
from .arguments import Arguments, OptionError, RunError, launch_command
from .lora import ADAPTER_FOLDER, add_adapters, load_adapters

logger = logging.getLogger(__name__)


def make_model(
    args: Arguments, task: Task, tokenizer: PreTrainedTokenizerBase, saved: Path | None = None
) -> PreTrainedModel:
    """The model the options name, or a new one of the preset's shape; with the weights of `saved`, if given.

    Raises:
        OptionError: the tokenizer has more tokens than the model, or rows are longer than its positions reach.
        ValueError: the model is neither ours nor one that converts.
    """
    overrides = task.config_options | args.parsed_config_overrides()
    make = new_model if args.model_name_or_path is None else pretrained_model
    model = make(args, task, tokenizer, saved, overrides)
    if (ids := vocabulary_size(tokenizer)) > model.config.vocab_size:
        raise OptionError(
            f"The tokenizer has {ids} tokens, and the model's vocab_size is {model.config.vocab_size}: "
            "use the model's own tokenizer, or a larger vocab_size."
        )
    if task.auto_class is AutoModel and model.config.pooling == "none":
        raise OptionError(
            f"--task {args.task} needs a vector for each text, and the model's pooling is none: give "
            '--config_overrides \'{"pooling": "mean"}\'.'
        )
    positions = model.config.position_limit
    if positions is not None and args.max_seq_length > positions:
        raise OptionError(
            f"--max_seq_length {args.max_seq_length} is longer than the model's {positions} positions: lower it."
        )
    return model


def new_model(
    args: Arguments,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    saved: Path | None,
    overrides: dict[str, Any],
) -> PreTrainedModel:
    """A model of the preset's shape, with random weights or those of `saved`."""
    config = preset_config(str(args.preset), **new_model_options(args, tokenizer) | overrides)
    if saved is None:
        return task.auto_class.from_config(config, **attention_options(args))
    with quiet_loading():
        model, loading = task.auto_class.from_pretrained(
            saved, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **attention_options(args)
        )
    other = [name for name, *_ in loading["mismatched_keys"]]
    if misfits := [*other, *loading["missing_keys"], *loading["unexpected_keys"]]:
        raise OptionError(
            f"{saved} does not fit the model that the options ask for ({misfits[0]} is another, or missing): "
            "its shape cannot change on the way, so leave --preset, --config_overrides and --task as they were."
        )
    return model


def pretrained_model(
    args: Arguments,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    saved: Path | None,
    overrides: dict[str, Any],
) -> PreTrainedModel:
    """The model `--model_name_or_path`, converted if it is a BERT or a ModernBERT and fitted to a tokenizer not its own.

    With `saved` all this has been done, and the weights are those saved; of adapters, those of the adapters alone.
    """
    name = str(args.model_name_or_path)
    family, config, weights = read_pretrained(str(name if args.lora_r else saved or name))
    if saved is None and (args.tokenizer_name or args.train_tokenizer):
        own = load_tokenizer(name)
        if own.get_vocab() != tokenizer.get_vocab():
            weights, overrides = transfer(weights, own, tokenizer), token_options(tokenizer) | overrides
    if "id2label" in overrides:
        weights = fit_labels(weights, Labels.of_config(config), list(overrides["id2label"].values()), name)
    model, loading = build(task.auto_class, with_options(config, overrides), weights, **attention_options(args))
    missing, other_shapes = loading["missing_keys"], [key for key, *_ in loading["mismatched_keys"]]
    check_shapes(name, other_shapes)
    if missing:
        logger.info("Not in %s, so begun anew: %s.", name, ", ".join(sorted(missing)))
    if args.lora_r:
        add_adapters(model, args, {*missing, *other_shapes}, family)
        if saved is not None:
            load_adapters(model, saved)
    elif saved is not None and (saved / ADAPTER_FOLDER).is_dir():
        raise OptionError(f"{saved} holds adapters beside a frozen model: leave --lora_r as it was.")
    return model


def fit_labels(weights: dict[str, Tensor], labels: Labels, wanted: list[str], name: str) -> dict[str, Tensor]:
    """The output layer with its rows in the order of the labels wanted; without one, so that it begins anew, for others.

    Args:
        labels: those that the rows are for
        name: of the model, for the log
    """
    layer = [key for key in weights if key.startswith("classifier.")]
    if not layer or labels.names == wanted:
        return weights
    if set(labels.names) == set(wanted):
        order = torch.tensor([labels.ids[label] for label in wanted])
        return weights | {key: weights[key][order] for key in layer}
    logger.warning("The output layer of %s is for other labels, so it begins anew.", name)
    return {key: weight for key, weight in weights.items() if key not in layer}


def load_best(args: Arguments, task: Task, folder: Path) -> PreTrainedModel:
    """The model at the top of an output folder. Raises RunError where none could be saved there."""
    if not (folder / "model.safetensors").exists():
        raise RunError(
            f"{folder} holds no model, for none could be saved there: mend what the warnings say, and go on with: "
            f"{launch_command(args)}"
        )
    return task.auto_class.from_pretrained(folder, **attention_options(args))


def attention_options(args: Arguments) -> dict[str, Any]:
    """The attention that the options name; else the choice is left to the model."""
    return {"attn_implementation": args.attn_implementation} if args.attn_implementation else {}


def check_kind(name_or_path: str, where: str) -> None:
    """Raises OptionError, which names `where`, if a model is none of ours."""
    kind = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False).model_type
    if kind != TfEncConfig.model_type:
        raise OptionError(
            f"{where} is a {kind} model, and {TfEncConfig.model_type} models are evaluated here: "
            "choose one of those, or convert it first with hf-tfenc convert."
        )


def check_shapes(weights: Any, other_shapes: list[str]) -> None:
    """Say that an output layer for other labels begins anew. Raises OptionError where other weights do not fit."""
    if misfits := [name for name in other_shapes if not name.startswith("classifier.")]:
        raise OptionError(
            f"--model_name_or_path {weights}: {misfits[0]} has another shape there than --config_overrides ask for: "
            "leave the sizes to the model."
        )
    if other_shapes:
        logger.warning("The output layer of %s is for other labels, so it begins anew.", weights)


def new_model_options(args: Arguments, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a new model's configuration takes from the tokenizer and the rows."""
    return token_options(tokenizer) | {"max_position_embeddings": max(512, args.max_seq_length)}


def token_options(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a configuration takes from a tokenizer."""
    return {
        "vocab_size": vocabulary_size(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "mask_token_id": tokenizer.mask_token_id,
    }
