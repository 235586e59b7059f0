"""Being asked to stop: SIGTERM, SIGUSR1 (how clusters announce that a job will be taken off) and Ctrl-C."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]
# Set by `accelerate launch` and torchrun. The former hands on no signal, and either may be killed outright: when the
# launcher is gone, its processes stop as if told so themselves.
LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")


class Interrupted(KeyboardInterrupt):
    """A run has stopped because it was asked to, and nothing is lost.

    As Ctrl-C, it passes by those who handle every Exception: what was being read has nothing wrong with it.
    """


class StopSignals:
    """Between `with` and its end, SIGTERM and SIGUSR1 end the run in order; while `deferred`, they and Ctrl-C wait.

    A second Ctrl-C never waits. What the process did with signals before is restored.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.defers = False
        self.launcher = os.getppid() if any(name in os.environ for name in LAUNCHERS) else None
        self.before: dict[int, Any] = {}
        self.ended = threading.Event()

    def __enter__(self) -> "StopSignals":
        # A thread that the system hands signals to while the main one is closed to them; Python's handlers run all the same.
        threading.Thread(target=self.ended.wait, daemon=True).start()
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.ended.set()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While there is something to save: the loop asks `received` between steps, saves, and stops."""
        self.defers = True
        try:
            yield
        finally:
            self.defers = False

    @contextmanager
    def kept_from_children(self) -> Iterator[None]:
        """Processes that are started meanwhile do not hear them: a compiler must not end before the step that waits for it.

        A cluster signals a job's whole process group, and without its compilers the step would fail. A second Ctrl-C may
        leave them at work until the kernel that they have begun is done.
        """
        if not hasattr(signal, "pthread_sigmask"):
            yield
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        if self.defers:
            if number == signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise Interrupted(f"Stopped by {self.name}; there was nothing to save.")

    @property
    def received(self) -> bool:
        """Whether this process has been asked to stop."""
        if self.name is None and self.launcher not in (None, os.getppid()):
            self.name = "the end of its launcher"
        return self.name is not None


def ignore_in_worker(_: int) -> None:
    """For workers that load data: a signal to the whole process group is their parent's to obey."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
