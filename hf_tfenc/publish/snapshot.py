"""What of a folder is for others, as it is at one moment, ready to be uploaded."""

import json
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig

from ..training.arguments import CONFIG_FILE
from ..training.checkpointing import NAME, STATE_FILE, reseal
from ..training.monitor import LOG_FILE
from ..training.resume import METRICS_FILE
from ..training.tracking import RUN_ID_FILE
from .card import CARD_FILE, NEW_CARD_FILE, RESULTS_FOLDER, card_text, is_ours, public_name, saved_arguments

# Training state, pickles, what was said of other data, and what trackers keep, which names this machine. Hidden files
# are locks and what is half written.
AT_HOME = (
    ".*", "*.lock", "__pycache__", "eval-*", "predictions.jsonl", NEW_CARD_FILE, "*.bin", "*.ckpt", "*.pickle", "*.pkl",
    "*.pt", "*.pth", "tensorboard", RUN_ID_FILE,
)  # fmt: skip
STATE = ("checkpoint-*", "manifest.json", "optimizer", "optimizer.safetensors", "rng_rank*", "trainer_state.json")
HUB_OPTIONS = ("dataset_name", "model_name_or_path", "tokenizer_name")  # a Hub id, or a path
LARGE = 1_000_000  # bytes, from which files are linked and not copied: a run replaces these and never writes into them
PATH_OPTIONS = ("train_file", "validation_file", "test_file", "output_dir", "resume_from_checkpoint")


def public_files(folder: Path, include_checkpoints: bool = False) -> list[Path]:
    """The files of a folder that are for others, relative to it.

    Args:
        include_checkpoints: training state too, as far as it is whole
    """
    hidden = AT_HOME if include_checkpoints else AT_HOME + STATE

    def goes(path: Path) -> bool:
        return not any(
            fnmatch(part, pattern) for part in path.parts for pattern in hidden if part != RESULTS_FOLDER
        ) and not any(fnmatch(part, "checkpoint-*.*") for part in path.parts)  # set aside

    files = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in files if goes(path)]


@contextmanager
def snapshot(folder: Path, repo_id: str, include_checkpoints: bool = False) -> Iterator[Path]:
    """What is to be uploaded of a folder, as it is now, in a folder beside it that is removed in the end."""
    beside = take_snapshot(folder, repo_id, include_checkpoints)
    try:
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def take_snapshot(folder: Path, repo_id: str, include_checkpoints: bool = False) -> Path:
    """The same, to be removed by the caller."""
    beside = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder if os.access(folder, os.W_OK) else None))
    rewritten: defaultdict[Path, list[str]] = defaultdict(list)  # in each checkpoint
    try:
        for path in public_files(folder, include_checkpoints):
            target = beside / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if rewrite := REWRITTEN.get(path.name):
                target.write_text(rewrite((folder / path).read_text(encoding="utf-8")), encoding="utf-8")
                if NAME.fullmatch(path.parts[0]):
                    rewritten[beside / path.parts[0]].append(Path(*path.parts[1:]).as_posix())
            elif path.name != LOG_FILE and (folder / path).stat().st_size >= LARGE:
                _link(folder / path, target)
            else:
                shutil.copyfile(folder / path, target)
        for checkpoint, names in rewritten.items():
            reseal(checkpoint, names)
        if card := card_for(folder, repo_id):
            (beside / CARD_FILE).unlink()
            (beside / CARD_FILE).write_text(card, encoding="utf-8")
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return beside


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)  # not a link that leads elsewhere from here
    except OSError:  # a file system without links, or another one
        shutil.copyfile(source, target)


def public_options(text: str) -> str:
    """A train_config.yaml without the folders of this machine."""
    try:
        options = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(
            f"{CONFIG_FILE} is no YAML ({' '.join(str(error).split())}): mend it, or remove it."
        ) from error
    if not isinstance(options, dict):
        return text
    return yaml.safe_dump(without_folders(options), sort_keys=False, allow_unicode=True)


def without_folders(options: dict[str, Any]) -> dict[str, Any]:
    """Options with the names of files and folders alone."""
    options = dict(options)
    for name in (*PATH_OPTIONS, *HUB_OPTIONS):
        value = options.get(name)
        if isinstance(value, list):
            options[name] = [Path(entry).name for entry in value]
        elif value is not None:
            options[name] = Path(value).name if name in PATH_OPTIONS else public_name(value)
    return options


def public_state(text: str) -> str:
    """A checkpoint's trainer_state.json without the folders of this machine."""
    state = json.loads(text)
    state["run"]["options"] = without_folders(state["run"]["options"])
    return json.dumps(state, indent=2) + "\n"


def public_adapter(text: str) -> str:
    """The same of an adapter_config.json."""
    config = json.loads(text)
    if base := config.get("base_model_name_or_path"):
        config["base_model_name_or_path"] = public_name(base)
    return json.dumps(config, indent=2) + "\n"


REWRITTEN = {CONFIG_FILE: public_options, "adapter_config.json": public_adapter, STATE_FILE: public_state}


def card_for(folder: Path, repo_id: str) -> str | None:
    """The card of a finished run, whose snippets load from `repo_id`; None where it is the user's own, or none."""
    try:
        if not is_ours((folder / CARD_FILE).read_text(encoding="utf-8")):
            return None
        metrics = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
        args, config = saved_arguments(folder), AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, AttributeError):  # it stays as it is
        return None
    return card_text(folder, args, config, metrics, repo_id)
