"""Folders that a reader finds whole or not at all: the model at the top of an output folder, and its checkpoints.

A checkpoint loads with `from_pretrained` and holds the training state beside the model. It is written in a hidden
folder, synced, sealed with a manifest, and renamed into place; only then is an older one removed. Whatever moment the
process is killed at, the newest checkpoint that verifies is a whole one.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..tokenization import save_tokenizer
from .lora import ADAPTER_FOLDER, has_adapters, merged_state_dict, write_adapters
from .state import OPTIMIZER_FILE, disk_errors, rng_file, save_optimizer, save_rng, whole_state_dict

if TYPE_CHECKING:
    from ..publish.hub import Uploads

logger = logging.getLogger(__name__)

MANIFEST, STATE_FILE = "manifest.json", "trainer_state.json"
NAME = re.compile(r"checkpoint-(\d+)")


class SaveError(OSError):
    """A checkpoint that a run was to end with could not be written, in all of its processes alike."""


class CheckpointError(ValueError):
    """A checkpoint is not what its manifest says; the message names the file."""


# --- The model at the top of an output folder ------------------------------------------------------------------------


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Write weights, configuration, code and tokenizer into `folder`, beside what else is there.

    Everything is first written and synced in a folder beside it, then renamed into place, weights last: whoever kills
    the process at any moment finds the old model or the new one, and never half a file.
    Raises OSError, and then the old model is untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        write_model(model, tokenizer, beside, state_dict)
        written = [file for file in beside.rglob("*") if file.is_file()]
        files = sorted(written, key=lambda file: (file.suffix == ".safetensors", file.name))
        for file in files:
            _sync(file)
        for file in files:
            target = folder / file.relative_to(beside)
            target.parent.mkdir(exist_ok=True)
            os.replace(file, target)
        _sync(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """What `from_pretrained` needs, in one file of weights. `state_dict` stands in for weights that lie in pieces.

    Adapters are merged into it, and also lie beside it by themselves.
    """
    with disk_errors():
        if has_adapters(model):
            state_dict = merged_state_dict(model)
            write_adapters(model, folder)
        model.save_pretrained(folder, state_dict=state_dict, max_shard_size="1TB")
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
    mode = (folder / "config.json").stat().st_mode
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)  # safetensors are written for the owner alone


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    beside = path.with_name(f".{path.name}.saving")
    beside.write_text(text, encoding="utf-8")
    _sync(beside)
    os.replace(beside, path)


# --- Checkpoints -----------------------------------------------------------------------------------------------------


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step:06}"


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was made, by its name."""
    match = NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in an output folder, whole or not, the oldest first."""
    return sorted((path for path in folder.glob("checkpoint-*") if step_of(path) >= 0), key=step_of)


def unfinished_path(checkpoint: Path) -> Path:
    """Where a checkpoint is written until it is whole."""
    return checkpoint.with_name(f".{checkpoint.name}.saving")


def _replaced_path(checkpoint: Path) -> Path:
    return checkpoint.with_name(f".{checkpoint.name}.replaced")


def seal(checkpoint: Path) -> None:
    """Write the manifest of the files in `unfinished_path(checkpoint)`, sync them all, and move them into place."""
    beside = unfinished_path(checkpoint)
    files = [path for path in sorted(beside.rglob("*")) if path.is_file()]
    manifest = {
        path.relative_to(beside).as_posix(): {"size": path.stat().st_size, "sha256": _digest(path)} for path in files
    }
    for path in files:
        _sync(path)
    write_text(beside / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    for inner in {path.parent for path in files} | {beside}:
        _sync(inner)
    replaced = _replaced_path(checkpoint)
    if checkpoint.exists():
        os.rename(checkpoint, replaced)  # `tidy` brings it back if we get no further
    try:
        os.rename(beside, checkpoint)
    except OSError:
        with suppress(OSError):
            os.rename(replaced, checkpoint)
        raise
    _sync(checkpoint.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def reseal(checkpoint: Path, changed: Iterable[str]) -> None:
    """Write of some files, relative to the checkpoint, into its manifest what they are now."""
    manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    for name in changed:
        manifest[name] = {"size": (checkpoint / name).stat().st_size, "sha256": _digest(checkpoint / name)}
    write_text(checkpoint / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def verify(checkpoint: Path) -> None:
    """Read all of a checkpoint and compare it with its manifest.

    Raises:
        CheckpointError: a file is missing, of another size or content, or not in the manifest.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in manifest.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint} has no readable {MANIFEST}") from error
    present = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*") if path.is_file()}
    for name in sorted(expected.keys() | present.keys()):
        if name not in present:
            raise CheckpointError(f"{checkpoint} lacks {name}")
        if name not in expected:
            if name != MANIFEST and not Path(name).name.startswith("."):
                raise CheckpointError(f"{checkpoint} holds {name}, which its {MANIFEST} does not list")
            continue
        size, digest = expected[name]
        if present[name].stat().st_size != size:
            raise CheckpointError(f"{name} in {checkpoint} has {present[name].stat().st_size} bytes, not {size}")
        if _digest(present[name]) != digest:
            raise CheckpointError(f"{name} in {checkpoint} is not what was written: its sha256 differs")


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that verifies. Each newer one that does not is named in a warning."""
    for checkpoint in reversed(checkpoints(folder)):
        try:
            verify(checkpoint)
            return checkpoint
        except (CheckpointError, OSError) as error:
            logger.warning("%s: this checkpoint is skipped.", error)
    return None


def rotate(folder: Path, limit: int, keep: Iterable[int]) -> None:
    """Remove all but the newest `limit` checkpoints, never one of the steps in `keep`."""
    kept = set(keep)
    for checkpoint in checkpoints(folder)[:-limit]:
        if step_of(checkpoint) not in kept:
            going = _replaced_path(checkpoint)
            os.rename(checkpoint, going)  # at once, so that none is ever found half removed
            shutil.rmtree(going, ignore_errors=True)


def set_aside_newer(folder: Path, step: int) -> list[Path]:
    """Rename checkpoints after `step`, so that a run that goes back to it never takes one of them for its own."""
    newer = [checkpoint for checkpoint in checkpoints(folder) if step_of(checkpoint) > step]
    aside = []
    for checkpoint in newer:
        target, number = checkpoint.with_name(f"{checkpoint.name}.set-aside"), 1
        while target.exists():
            number += 1
            target = checkpoint.with_name(f"{checkpoint.name}.set-aside-{number}")
        aside.append(checkpoint.rename(target))
    return aside


def tidy(folder: Path) -> None:
    """Remove what a killed process left half done, and bring back a checkpoint that it was about to replace."""
    for path in folder.glob(".checkpoint-*.replaced"):
        original = path.with_name(path.name.removeprefix(".").removesuffix(".replaced"))
        with suppress(OSError, CheckpointError):  # one that was being removed has lost files
            if not original.exists():
                verify(path)
                os.rename(path, original)
    for pattern in (".checkpoint-*.replaced", ".*.saving", ".saving-*", ".shared-*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def put_back(folder: Path, step: int) -> bool:
    """Put the model of the checkpoint after `step` at the top again. Whether it is there."""
    checkpoint = checkpoint_path(folder, step)
    try:
        verify(checkpoint)
    except CheckpointError:
        return False
    state = {STATE_FILE, MANIFEST, OPTIMIZER_FILE}
    paths = [*checkpoint.iterdir(), *(checkpoint / ADAPTER_FOLDER).glob("*")]
    files = [path for path in paths if path.is_file() and path.name not in state and "rng" not in path.name]
    for file in sorted(files, key=lambda file: (file.suffix == ".safetensors", file.name)):
        beside, target = folder / f".{file.name}.saving", folder / file.relative_to(checkpoint)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(file, beside)
        _sync(beside)
        os.replace(beside, target)
    return True


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What `trainer_state.json` holds."""
    return json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))


# --- Saving by all processes together --------------------------------------------------------------------------------


def together(work: Callable[[], None]) -> None:
    """Do `work` in every process; where it fails in one, raise OSError in all, so that none waits for another."""
    failed: str | None = None
    try:
        work()
    except (OSError, CheckpointException) as error:
        failed = " ".join(str(error).split())
    if failures := [text for text in gather_object([failed]) if text]:
        raise OSError(failures[0])


class OutputFolder:
    """Where a run saves: the best model at the top, its checkpoints beside it. All processes call its methods together.

    Args:
        limit: checkpoints that stay, besides that of the best model.
        run: what every checkpoint notes of the run, as JSON.
        uploads: what is told, in the main process, that the folder has changed.
    """

    def __init__(
        self,
        path: Path,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        limit: int,
        run: dict[str, Any],
        uploads: "Uploads | None" = None,
    ):
        self.path, self.accelerator, self.tokenizer, self.limit, self.run = path, accelerator, tokenizer, limit, run
        self.uploads = uploads if accelerator.is_main_process else None
        self.changed = False  # since it was last published

    def keep(self, model: nn.Module) -> bool:
        """Put the model at the top of the folder. Whether that went well; if not, the one before stays there."""
        model = self.accelerator.unwrap_model(model)
        weights = whole_state_dict(model)
        try:
            together(lambda: self._on_main(save_model, model, self.tokenizer, self.path, weights))
        except OSError as error:
            logger.warning("The best model could not be saved in %s (%s); training goes on.", self.path, error)
            return False
        self.changed = True
        return True

    def save(
        self, step: int, model: nn.Module, optimizer: Optimizer, state: dict[str, Any], best_step: int, required: bool
    ) -> None:
        """Write a checkpoint, and only then remove an old one.

        Args:
            state: of the run, as JSON; `read_state` gives it back, with `run` beside it.
            required: whether the run ends with this checkpoint, and must not end without it.

        Raises:
            SaveError: in all processes, if it is required and could not be written. Older checkpoints are untouched.
        """
        checkpoint = checkpoint_path(self.path, step)
        try:
            self._write(checkpoint, self.accelerator.unwrap_model(model), optimizer, state | {"run": self.run})
            together(lambda: self._on_main(rotate, self.path, self.limit, {step, best_step}))
            self.changed = True
        except OSError as error:
            if required:
                raise SaveError(
                    f"{checkpoint} could not be saved ({error}); older checkpoints are untouched."
                ) from error
            logger.warning("%s could not be saved (%s); training goes on without it.", checkpoint, error)

    def publish(self, step: int) -> None:
        """Have the folder uploaded if it has changed, in the background."""
        if self.uploads is not None:
            if self.changed:
                self.uploads.offer(f"Step {step}")
            self.uploads.poll()
        self.changed = False

    def _write(self, checkpoint: Path, model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
        main, beside, weights = self.accelerator.is_main_process, unfinished_path(checkpoint), whole_state_dict(model)

        def make() -> None:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)

        def write() -> None:
            write_model(model, self.tokenizer, beside, weights)
            (beside / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

        rng = beside / rng_file(self.accelerator.process_index)
        try:
            together(lambda: self._on_main(make))
            together(lambda: save_rng(rng))
            # By itself, since processes wait for each other in it: none of them may have failed just before.
            together(lambda: save_optimizer(beside, model, optimizer, main))
            together(lambda: self._on_main(write))
            together(lambda: self._on_main(seal, checkpoint))
        except OSError:
            self._on_main(shutil.rmtree, beside, ignore_errors=True)
            raise

    def _on_main(self, work: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        if self.accelerator.is_main_process:
            work(*args, **kwargs)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # a folder cannot be opened there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
