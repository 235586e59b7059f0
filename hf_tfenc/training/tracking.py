"""`--report_to`: a run shown by a tracker, as one run however often it is stopped and goes on."""

import importlib.util
import logging
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from .arguments import Arguments, OptionError
from .checkpointing import write_text

logger = logging.getLogger(__name__)

PROJECT = "hf_tfenc"
RUN_ID_FILE = "run_id.txt"  # in the output folder: what the run is called by a tracker that keeps runs elsewhere


def tensorboard(folder: Path, step: int) -> GeneralTracker:
    """Event files in the output folder. Those of steps that are made again are hidden by the new ones."""
    return TensorBoardTracker("tensorboard", logging_dir=folder, purge_step=step + 1)


def trackio(folder: Path, step: int) -> GeneralTracker:
    """trackio's own folder on this machine."""
    return TrackioTracker(PROJECT, name=run_id(folder), resume="allow")


def wandb(folder: Path, step: int) -> GeneralTracker:
    """Weights & Biases, as its own settings say."""
    return WandBTracker(PROJECT, id=run_id(folder), name=run_id(folder), resume="allow")


TRACKERS: dict[str, Callable[[Path, int], GeneralTracker]] = {
    "tensorboard": tensorboard,
    "trackio": trackio,
    "wandb": wandb,
}


class Tracker:
    """Reports a run. What goes wrong on the way stops the report and not the run.

    Args:
        folder: the output folder
        step: after which step the run begins or goes on

    Raises:
        OSError: the report cannot begin.
    """

    def __init__(self, args: Arguments, folder: Path, step: int):
        self.name = args.report_to
        try:
            self.tracker: GeneralTracker | None = TRACKERS[self.name](folder, step)
            self.tracker.start()
            if self.name != "tensorboard":  # which would make another run of each call
                self.tracker.store_init_configuration(scalars(vars(args)))
        except Exception as error:  # each tracker has errors of its own
            raise OSError(
                f"--report_to {self.name} cannot begin ({reason(error)}): mend that, or leave it out."
            ) from error

    def log(self, values: dict[str, float], step: int) -> None:
        """Report values by their names, which are grouped by what stands before a slash."""
        if self.tracker is None:
            return
        try:
            self.tracker.log(values, step=step)
        except Exception as error:
            logger.warning(
                "--report_to %s has ended (%s): the run goes on, and log.jsonl has all of it.",
                self.name,
                reason(error),
            )
            self.tracker = None

    def close(self) -> None:
        if self.tracker is not None:
            with suppress(Exception):
                self.tracker.finish()


def open_tracker(args: Arguments, folder: Path, step: int) -> Tracker | None:
    """The tracker that the options name. Raises OSError where it cannot begin."""
    return None if args.report_to == "none" else Tracker(args, folder, step)


def check_tracker(args: Arguments) -> None:
    """Raises OptionError where the tracker that the options name is not installed."""
    name = args.report_to
    if name != "none" and importlib.util.find_spec(name) is None:
        raise OptionError(f"--report_to {name} needs a package that is not installed: pip install {name}.")


def run_id(folder: Path) -> str:
    """The name of the run in this folder, made when it is first asked for."""
    path = folder / RUN_ID_FILE
    if not path.exists():
        write_text(path, f"{folder.resolve().name}-{uuid.uuid4().hex[:8]}\n")
    return path.read_text(encoding="utf-8").strip()


def scalars(options: dict[str, Any]) -> dict[str, Any]:
    """Options as trackers take them: what is no number and no text is written out."""
    return {
        name: value if isinstance(value, int | float | str | None) else str(value) for name, value in options.items()
    }


def reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".: ") or type(error).__name__
