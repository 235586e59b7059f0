"""Writing a model so that a reader finds all of it or none of it."""

import os
import shutil
import tempfile
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights, configuration, code and tokenizer into `folder`, beside what else is there.

    Everything is first written and synced in a folder beside it, then renamed into place, weights last: whoever kills
    the process at any moment finds the old model or the new one, and never half a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        files = sorted(beside.iterdir(), key=lambda file: (file.suffix == ".safetensors", file.name))
        mode = (beside / "config.json").stat().st_mode  # safetensors are written for the owner alone
        for file in files:
            file.chmod(mode)
            _sync(file)
        for file in files:
            os.replace(file, folder / file.name)
        _sync(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    beside = path.with_name(f".{path.name}.saving")
    beside.write_text(text, encoding="utf-8")
    _sync(beside)
    os.replace(beside, path)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # a folder cannot be opened there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
