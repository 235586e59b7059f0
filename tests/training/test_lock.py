"""One process at a time has a folder, whoever removed which file when."""

import subprocess
import sys

import pytest

from hf_tfenc.training.arguments import OptionError
from hf_tfenc.training.lock import LOCK_FILE, FolderLock, fcntl

pytestmark = pytest.mark.skipif(fcntl is None, reason="this system has no POSIX locks")
TAKE = """
import sys
from pathlib import Path
from hf_tfenc.training.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
try:
    lock.take()
except ValueError as error:
    print(error, flush=True)
else:
    print("taken", flush=True)
sys.stdin.readline()
lock.release()
print("released", flush=True)
"""


class Other:
    """Another process that takes a folder, and has it until it is told to release it."""

    def __init__(self, folder):
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.says = self.process.stdout.readline().strip()

    def release(self):
        self.process.communicate("\n", timeout=60)


def test_a_folder_is_one_processs(tmp_path):
    other = Other(tmp_path)
    assert other.says == "taken"
    with FolderLock(tmp_path) as lock:
        with pytest.raises(OptionError, match="is in use by another run"):
            lock.take()
        other.release()
        lock.take()
        assert lock.held and (tmp_path / LOCK_FILE).exists()
        lock.take()  # it keeps what it has
        another = Other(tmp_path)
        another.release()
        assert "is in use by another run" in another.says
    assert not lock.held and not (tmp_path / LOCK_FILE).exists()


def test_a_file_that_was_removed_while_it_was_opened_is_no_lock(tmp_path, monkeypatch):
    """The process before lets go between this one's opening of the file and its locking of it."""
    lockf, calls = fcntl.lockf, []

    def removed_first(file, kind):
        calls.append(kind)
        if len(calls) == 1:
            (tmp_path / LOCK_FILE).unlink()
        return lockf(file, kind)

    monkeypatch.setattr(fcntl, "lockf", removed_first)
    with FolderLock(tmp_path) as lock:
        lock.take()
        assert len(calls) == 2 and (tmp_path / LOCK_FILE).exists()
        other = Other(tmp_path)
        other.release()
        assert "is in use by another run" in other.says


def test_what_another_process_has_by_now_is_not_removed(tmp_path):
    with FolderLock(tmp_path) as lock:
        lock.take()
        (tmp_path / LOCK_FILE).unlink()  # the folder was removed and made anew
        other = Other(tmp_path)
        assert other.says == "taken"
    assert (tmp_path / LOCK_FILE).exists()
    other.release()
