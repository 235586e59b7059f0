"""One run at a time in an output folder."""

import errno
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
        """Take a folder that is there. Raises OptionError if another process has it."""
        self.release()
        if fcntl is None:
            return
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
        self.file = file

    def release(self) -> None:
        """Let go of it."""
        if self.file is not None:
            self.path.unlink(missing_ok=True)
            self.file.close()
            self.file = None

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()
