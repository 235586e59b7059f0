"""Uploads to the Hub: of a folder by `hf-tfenc push`, and of a run's folder while the run goes on."""

import logging
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ..data.hub import quiet_hub
from ..training.arguments import Arguments
from .snapshot import snapshot, take_snapshot
from .upload import UploadError, upload

logger = logging.getLogger(__name__)

SECONDS_BETWEEN = 60.0  # the beginnings of two uploads of a run, for the Hub takes some hundred commits an hour
MODEL_FILES = ("config.json", "adapter_config.json")
UPLOAD = Path(__file__).with_name("upload.py")


def push_folder(folder: Path, repo_id: str, private: bool = True, include_checkpoints: bool = False) -> str:
    """Upload a folder with a model.

    Returns:
        one sentence that says where it is

    Raises:
        ValueError: the folder holds no model.
        UploadError: with what to do; what was sent already is not sent again by a second call.
    """
    if not any((folder / name).exists() for name in MODEL_FILES):
        raise ValueError(
            f"{folder} holds no model (no config.json): give the output folder of a run, or another model."
        )
    with quiet_hub(), snapshot(folder, repo_id, include_checkpoints) as beside:
        try:
            return upload(beside, repo_id, private, "Upload model")
        except UploadError as error:
            raise UploadError(f"{folder} was not uploaded to {repo_id}: {error}.") from None


class Uploads:
    """Uploads of a run's output folder while the run goes on: one at a time, each in a process of its own.

    Training never waits for them and cannot be stopped by them. What changes during an upload goes up after it, and of
    several changes the last one. Between `with` and its end; at the end an upload under way is cut.

    Args:
        args: with `push_to_hub`; without it nothing is done
    """

    def __init__(self, args: Arguments):
        self.folder, self.repo_id = Path(args.output_dir or ""), args.hub_model_id or ""
        self.active = args.push_to_hub
        self.visibility = "private" if args.hub_private_repo else "public"
        self.during, self.checkpoints = args.hub_strategy != "end", args.hub_strategy == "all_checkpoints"
        self.process: subprocess.Popen[bytes] | None = None
        self.under_way: Path | None = None  # the snapshot that is being uploaded
        self.waiting: tuple[Path, str] | None = None  # a snapshot and its message
        self.began = -math.inf
        self.said: set[str] = set()

    def offer(self, message: str) -> None:
        """Upload the folder as it is now, as soon as no other upload is under way."""
        if not (self.active and self.during):
            return
        try:
            taken = take_snapshot(self.folder, self.repo_id, self.checkpoints)
        except (OSError, ValueError) as error:
            self._failed(str(error))
            return
        if self.waiting is not None:
            shutil.rmtree(self.waiting[0], ignore_errors=True)
        self.waiting = taken, message
        self.poll()

    def poll(self) -> None:
        """See whether an upload has ended, and begin the next one. It takes no time."""
        if self.process is not None and self.process.poll() is not None:
            self._conclude()
        if self.process is None and self.waiting is not None and time.monotonic() - self.began >= SECONDS_BETWEEN:
            (taken, message), self.waiting = self.waiting, None
            try:
                self._begin(taken, message)
            except OSError as error:
                self._failed(str(error))

    def finish(self) -> str:
        """Upload the finished run, after an upload that is under way, and wait for that.

        Returns:
            one sentence: where it is, or why it is not. A failure loses nothing: the folder stays as it is.
        """
        logger.info("Uploading %s to %s.", self.folder, self.repo_id)
        if self.process is not None:
            self._conclude()
        self.close()
        try:
            self._begin(take_snapshot(self.folder, self.repo_id, self.checkpoints), "Upload model")
            ended, said = self._ended()
        except (OSError, ValueError) as error:
            ended, said = False, str(error).rstrip(".")
        if ended:
            return said
        command = ["hf-tfenc", "push", str(self.folder), "--hub_model_id", self.repo_id]
        command += ["--public"] * (self.visibility == "public") + ["--include_checkpoints"] * self.checkpoints
        return (
            f"The upload to {self.repo_id} failed: {said}. The model is whole in {self.folder}, and this uploads what "
            f"is missing: {shlex.join(command)}"
        )

    def close(self) -> None:
        """Cut an upload that is under way, and remove what was to be uploaded."""
        if self.process is not None:
            with self.process as process:
                process.kill()
            self._clear()
        if self.waiting is not None:
            shutil.rmtree(self.waiting[0], ignore_errors=True)
            self.waiting = None

    def __enter__(self) -> "Uploads":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _begin(self, taken: Path, message: str) -> None:
        self.under_way, self.began = taken, time.monotonic()
        # A file and no module, for the package takes seconds to import; -P, for beside it lie names of other packages.
        command = [sys.executable, "-P", str(UPLOAD), str(taken), self.repo_id, self.visibility, message]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,  # of one sentence
                stderr=subprocess.DEVNULL,
                env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
                start_new_session=True,  # so that Ctrl-C is for the run, which then ends it
            )
        except OSError:
            self._clear()
            raise

    def _conclude(self) -> None:
        """Wait for the upload that is under way, and say what came of it."""
        ended, said = self._ended()
        self._say_once(logging.INFO, said) if ended else self._failed(said)

    def _ended(self) -> tuple[bool, str]:
        """Wait for the upload that is under way. Whether it went well, and the sentence that it said."""
        assert self.process is not None
        with self.process as process:  # its pipes are closed when it has ended, for it ends with the first of them
            lines = process.stdout.read().decode(errors="replace").splitlines() if process.stdout else []
            status = process.wait()
        self._clear()
        return status == 0, lines[-1] if lines else f"its process ended with {status}"

    def _clear(self) -> None:
        if self.under_way is not None:
            shutil.rmtree(self.under_way, ignore_errors=True)
        self.process = self.under_way = None

    def _failed(self, reason: str) -> None:
        self._say_once(
            logging.WARNING, f"The upload to {self.repo_id} failed, and training goes on: {reason.rstrip('.')}."
        )

    def _say_once(self, level: int, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            logger.log(level, text)
