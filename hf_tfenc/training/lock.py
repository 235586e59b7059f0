"""One run at a time in an output folder."""

import errno
import os
from pathlib import Path
from typing import IO, Any

from .arguments import OptionError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"


class FolderLock:
    """Holds an output folder between `with` and its end. The kernel lets go of it when the process dies.

    The locks are POSIX's, of the process alone: workers that outlive it by some seconds do not hold them.
    """

    def __init__(self, folder: Path, name: str = "--output_dir"):
        self.path, self.name = folder / LOCK_FILE, name
        self.file: IO[bytes] | None = None

    def take(self) -> None:
        """Take a folder that is there, or keep it. Raises OptionError if another process has it."""
        while self.file is None and fcntl is not None:
            file = self.path.open("ab")
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.close()
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise OptionError(
                        f"{self.name} {self.path.parent} is in use by another run, which may still be saving: "
                        "wait until it has ended, or choose another folder."
                    ) from error
                return  # a file system without locks
            if self._names(file):
                self.file = file
            else:
                file.close()

    @property
    def held(self) -> bool:
        """Whether this process has the folder."""
        return self.file is not None

    def release(self) -> None:
        """Let go of it."""
        if self.file is not None:
            if self._names(self.file):
                self.path.unlink(missing_ok=True)
            self.file.close()
            self.file = None

    def _names(self, file: IO[bytes]) -> bool:
        """Whether it is this file that the folder has. The process before may have removed the one that was opened."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()
