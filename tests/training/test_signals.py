"""A signal is noted while there is something to save; and what was there before is restored."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from hf_tfenc.training.signals import SIGNALS, Interrupted, StopSignals, ignore_in_worker


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted(number):
    before = [signal.getsignal(each) for each in SIGNALS]
    with StopSignals() as signals, signals.deferred():
        assert not signals.received
        os.kill(os.getpid(), number)
        assert signals.received and signals.name == signal.Signals(number).name
        if number == signal.SIGINT:
            assert signal.getsignal(number) == signal.SIG_DFL  # a second one ends the process
        else:
            os.kill(os.getpid(), number)  # more of the same change nothing
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_where_there_is_nothing_to_save_a_signal_ends_the_run_at_once(number):
    with StopSignals() as signals:
        with signals.deferred():
            pass
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Interrupted):
            os.kill(os.getpid(), number)


def test_what_handles_every_exception_does_not_hold_up_a_stop():
    with StopSignals(), pytest.raises(Interrupted):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception as error:  # as readers do, which turn what they meet into a sentence on the file
            pytest.fail(f"handled: {error}")


@pytest.mark.parametrize("launcher", ["ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", None])
def test_the_end_of_the_launcher_counts_as_a_signal(monkeypatch, launcher):
    for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    if launcher is not None:
        monkeypatch.setenv(launcher, "x")
    signals = StopSignals()
    assert not signals.received
    orphaned = os.getppid() + 1  # an orphan that nobody launched may be meant to be one
    monkeypatch.setattr(os, "getppid", lambda: orphaned)
    assert signals.received == (launcher is not None)


@pytest.mark.parametrize("kept", [True, False])
def test_a_signal_to_all_does_not_end_a_compiler_that_a_step_waits_for(kept):
    """The step goes on to its end, and the signal is noted then at the latest."""
    with StopSignals() as signals, signals.deferred():
        with signals.kept_from_children() if kept else contextlib.nullcontext():
            child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            child.stdin.write(b"x\n")
            child.stdin.flush()
            assert child.stdout.readline() == b"x\n", "it runs"
            for process in (child.pid, os.getpid()):
                os.kill(process, signal.SIGTERM)
            child.stdin.close()
            assert child.wait() == (0 if kept else -signal.SIGTERM)
            child.stdout.close()
        assert signals.received


def test_a_second_ctrl_c_ends_a_step_that_keeps_signals_from_compilers():
    """Though the main thread is closed to them, and there is no other thread but the one that hears them."""
    program = (
        "import time; from hf_tfenc.training.signals import StopSignals\n"
        "with StopSignals() as signals, signals.deferred(), signals.kept_from_children():\n"
        "    print('step', flush=True)\n"
        "    for _ in range(1000):\n"
        "        time.sleep(0.01)\n"
        "        if signals.received: break\n"
        "    print('noted' if signals.received else 'not noted', flush=True)\n"
        "    time.sleep(10)\n"
    )
    alone = os.environ | {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=alone) as process:
        for said in ("step\n", "noted\n"):
            assert process.stdout.readline() == said
            process.send_signal(signal.SIGINT)
        assert process.wait() == -signal.SIGINT


def test_workers_leave_signals_to_their_parent(monkeypatch):
    set_to = {}
    monkeypatch.setattr(signal, "signal", lambda number, handler: set_to.update({number: handler}))
    ignore_in_worker(0)
    assert set_to == dict.fromkeys(SIGNALS, signal.SIG_IGN)
