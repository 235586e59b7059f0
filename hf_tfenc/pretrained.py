"""A pre-trained model, of whichever family, as ours: its configuration, and its weights under our names."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from . import modeling_tfenc
from .configuration_tfenc import LAYER_TYPES, TfEncConfig
from .data.hub import quiet_hub
from .publish.convert import from_bert, from_bert_config, from_modernbert, from_modernbert_config
from .tokenization import HUB_ID

StateDict = dict[str, Tensor]

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class Family(NamedTuple):
    """How checkpoints of another family become ours.

    classifiers: by the end of their class's name, what our class calls the layer that they call `classifier`.
    """

    config: Callable[[Any], TfEncConfig]
    weights: Callable[[StateDict, str], StateDict]
    classifiers: dict[str, str]


FAMILIES = {
    "bert": Family(from_bert_config, from_bert, {"ForMultipleChoice": "score"}),
    "modernbert": Family(
        from_modernbert_config, from_modernbert, {"ForMultipleChoice": "score", "ForQuestionAnswering": "qa_outputs"}
    ),
}


class Pretrained(NamedTuple):
    """What a folder or a repository holds, as ours. `family` is what it was: a key of `FAMILIES`, or `tfenc`."""

    family: str
    config: TfEncConfig
    weights: StateDict


def read_config(name_or_path: str) -> PreTrainedConfig:
    """The configuration of a model of ours, or of one that converts. No code of a repository is run.

    Raises:
        ValueError: it is of another family.
        OSError: there is none.
    """
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir() and not HUB_ID.fullmatch(name_or_path):
        raise OSError(f"There is no folder {name_or_path} to load a model from: check the path.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise OSError(f"The folder {name_or_path} holds no model (no config.json): check the path.")
    try:
        with quiet_hub():
            config = AutoConfig.from_pretrained(folder if folder.is_dir() else name_or_path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".: ")
        if folder.is_dir():
            raise OSError(f"config.json in {name_or_path} cannot be read ({reason}): mend it there.") from error
        raise OSError(f"No folder is called {name_or_path}, and the Hub gives no such model ({reason}).") from error
    if config.model_type not in (TfEncConfig.model_type, *FAMILIES):
        raise ValueError(
            f"{name_or_path} is a {config.model_type} model; only {TfEncConfig.model_type} models, and "
            f"{' and '.join(FAMILIES)} ones, which are converted, can be used here: choose one of those."
        )
    return config


def read_pretrained(name_or_path: str) -> Pretrained:
    """Configuration and weights in a folder or in a repository on the Hub.

    Raises:
        ValueError: another family, or something in it that our classes cannot compute; it is named.
        OSError: no configuration or no weights.
    """
    theirs, weights = read_config(name_or_path), read_weights(name_or_path)
    if theirs.model_type == TfEncConfig.model_type:
        return Pretrained(theirs.model_type, theirs, weights)  # type: ignore[arg-type]
    family = FAMILIES[theirs.model_type]
    head = next(iter(theirs.architectures or []), "")
    classifier = next((ours for end, ours in family.classifiers.items() if head.endswith(end)), "classifier")
    # Files from before 2020 call a norm's two vectors so.
    weights = {re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", key)): t for key, t in weights.items()}
    return Pretrained(theirs.model_type, family.config(theirs), family.weights(weights, classifier))


def read_weights(name_or_path: str) -> StateDict:
    """The weights in a folder or in a repository on the Hub, from one file or several, pickles read as data alone.

    Raises:
        OSError: there are none.
    """
    name_or_path = os.path.expanduser(name_or_path)
    for name in WEIGHT_FILES:
        path = cached_file(name_or_path, name, _raise_exceptions_for_missing_entries=False)
        if path is None:
            continue
        if not name.endswith(".index.json"):
            return read_file(Path(path))
        parts = sorted(set(json.loads(Path(path).read_text(encoding="utf-8"))["weight_map"].values()))
        return {key: t for part in parts for key, t in read_file(Path(cached_file(name_or_path, part))).items()}
    raise OSError(f"{name_or_path} holds no weights (no {WEIGHT_FILES[0]} or {WEIGHT_FILES[2]}): check the path.")


def read_file(path: Path) -> StateDict:
    """The tensors in a file: safetensors, or a pickle of nothing but tensors. Raises OSError where it is neither."""
    if not path.is_file():
        raise OSError(f"There is no file {path}: check the path.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many classes, by what is damaged
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise OSError(f"The weights in {path} cannot be read ({reason}): save them anew as safetensors.") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise OSError(f"{path} is no state dict, which maps names to tensors: save model.state_dict() there.")
    return dict(state)


def with_options(config: TfEncConfig, options: dict[str, Any]) -> TfEncConfig:
    """A configuration with `options` over it, settled and checked as a new one is.

    Rotary bases given for one layer type leave those of the others.
    """
    rope = options.get("rope_parameters")
    if isinstance(rope, dict) and set(rope) <= set(LAYER_TYPES):
        options = options | {"rope_parameters": (config.rope_parameters or {}) | rope}
    known = TfEncConfig.option_names()
    return TfEncConfig(**{name: value for name, value in config.to_dict().items() if name in known} | options)


def build(
    auto_class: Any, config: TfEncConfig, weights: StateDict, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Our model of an Auto class with these weights, in float32 unless `options` say otherwise.

    Returns:
        the model, and what transformers tells of loading: `missing_keys`, `unexpected_keys`, `mismatched_keys`
    """
    with quiet_loading():
        return auto_class._model_mapping[TfEncConfig].from_pretrained(
            None,
            config=config,
            state_dict=weights,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **{"dtype": torch.float32} | options,
        )


def class_of(config: PreTrainedConfig, where: str) -> type[PreTrainedModel]:
    """Our class that a checkpoint was saved from. Raises ValueError, which names `where`, if that was none of ours."""
    name = next(iter(config.architectures or []), "TfEncModel")
    if name not in modeling_tfenc.__all__:
        raise ValueError(f"{where} is a {name}, which is none of our classes: {', '.join(modeling_tfenc.__all__)}.")
    return getattr(modeling_tfenc, name)


def load_whole(kind: Any, name_or_path: str, absent: str = "", **options: Any) -> PreTrainedModel:
    """A saved model of ours, all of whose weights are there, in float32.

    Args:
        kind: one of our classes, or an Auto class
        absent: what to say, in place of the weight's name, where one is missing

    Raises:
        OSError: a file is damaged, or a weight missing or of another shape.
    """
    with quiet_loading(), saved_errors(name_or_path):
        model, loading = kind.from_pretrained(
            name_or_path, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32, **options
        )
    if missing := sorted(loading["missing_keys"]):
        raise OSError(absent or f"The model in {name_or_path} has no {missing[0]}: save it there anew.")
    if misfits := sorted(loading["mismatched_keys"]):
        name, found, wanted = misfits[0]
        raise OSError(
            f"The model in {name_or_path} has {name} of shape {tuple(found)}, and its config.json says "
            f"{tuple(wanted)}: save it there anew."
        )
    return model


@contextmanager
def saved_errors(name_or_path: str) -> Iterator[None]:
    """Damaged weights as an OSError of one sentence."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".: ")
        raise OSError(f"The model in {name_or_path} cannot be read ({reason}): save it there anew.") from error


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without the report of transformers on weights that are missing or too many: the caller says what matters."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
