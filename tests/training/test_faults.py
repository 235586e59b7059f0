"""A save that is broken off at any of its file operations, or finds no room: nothing that was whole is lost."""

import errno
import functools
import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
from launching import Run
from test_resume import result

from hf_tfenc.training.checkpointing import newest_whole, tidy

AUDITED = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.truncate"}
TARGET_STEP = 4


@pytest.fixture
def options(tiny, texts, tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("\n".join(texts[:60]))

    def options(name="out", **others):
        changed = {
            "output_dir": str(tmp_path / name),
            "train_file": [str(path)],
            "sample_by": "line",
            "max_steps": 6,
            "eval_steps": 2,
            "save_total_limit": 1,
            "optim": "adamw",
        }
        args = tiny(**changed | others)
        return {name: value for name, value in vars(args).items() if value is not None}

    return options


# --- Killed in a save ------------------------------------------------------------------------------------------------


class Killer:
    """Ends its process at the n-th file operation, and counts them: what is opened to be written, moved, removed,
    synced. Weights are written in one operation of another language, which is ended before it, half way, and after it."""

    def __init__(self, n):
        self.left, self.dead = n, False

    def operation(self):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def audit(self, event, arguments):
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in AUDITED or writing:
            self.operation()

    def watch(self):
        sync = os.fsync
        os.fsync = lambda descriptor: (self.operation(), sync(descriptor))
        import safetensors.torch

        serialize = safetensors.torch.serialize_file

        def in_three(tensors, path, **kwargs):
            self.operation()
            serialize(tensors, path, **kwargs)
            if self.left == 0:
                os.truncate(path, Path(path).stat().st_size // 2)
            self.operation()
            self.operation()

        safetensors.torch.serialize_file = in_three
        sys.addaudithook(self.audit)


def walk(method, copies):
    """In a process to be: where `method` saves after TARGET_STEP, let children die at one operation of it after another,
    each in a copy of the output folder of its own, which stays as it is found then."""
    from hf_tfenc.training.checkpointing import OutputFolder
    from hf_tfenc.training.trainer import Trainer

    save, step = getattr(OutputFolder, method), Trainer.step
    done = {"steps": 0}

    def counted(*args):
        done["steps"] += 1
        return step(*args)

    def walked(self, *args, **kwargs):
        folder, n, status = self.path, 0, None
        while done["steps"] == TARGET_STEP and status != 0:
            self.path = Path(copies) / str(n)
            shutil.copytree(folder, self.path)
            numbers = random.getstate()
            if (child := os.fork()) == 0:
                signal.alarm(60)  # one that hangs ends by another signal
                random.setstate(numbers)  # which Python seeds anew in a child
                Killer(n).watch()
                save(self, *args, **kwargs)
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            assert status in (0, signal.SIGKILL), status
            n += 1
        self.path = folder
        return save(self, *args, **kwargs)

    setattr(OutputFolder, method, walked)
    Trainer.step = counted


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("method", "fewest"), [("save", 50), ("keep", 20)])
@pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_a_save_killed_at_any_file_operation_loses_nothing(options, tmp_path, method, fewest, every):
    """Every state that a kill can leave is looked at; the quick test lets one in twelve of them go on to the end."""
    copies = tmp_path / "copies"
    copies.mkdir()
    Run(options("whole"), tmp_path / "log", before=functools.partial(walk, method, copies)).finish()
    expected = result(tmp_path / "whole")
    found = sorted(copies.iterdir(), key=lambda copy: int(copy.name))
    assert len(found) >= fewest
    for copy in found:
        tidy(copy)
    steps = [newest_whole(copy).name for copy in found]
    if method == "save":  # the old one until the new one is whole, and from then on the new one
        assert set(steps) == {"checkpoint-000002", "checkpoint-000004"} and steps == sorted(steps)
    chosen = found[::every]
    for start in range(0, len(chosen), 2):
        runs = [(copy, Run(options(f"copies/{copy.name}"), f"{copy}.log")) for copy in chosen[start : start + 2]]
        for copy, run in runs:
            assert "It goes on from" in run.finish()
            assert result(copy) == expected, run.output
            assert not [path.name for path in copy.iterdir() if path.name.startswith(".")]


# --- No room ---------------------------------------------------------------------------------------------------------


def no_room(call, steps):
    """In a process to be: let a function fail, as on a full disk, while it saves after these steps."""
    from hf_tfenc.training import checkpointing
    from hf_tfenc.training.trainer import Trainer

    module, name = {"weights": (checkpointing, "write_model"), "sync": (os, "fsync"), "rename": (os, "rename")}[call]
    function, step, done = getattr(module, name), Trainer.step, {"steps": 0}

    def counted(*args):
        done["steps"] += 1
        return step(*args)

    def full(*args, **kwargs):
        if done["steps"] in steps:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return function(*args, **kwargs)

    setattr(module, name, full)
    Trainer.step = counted


@pytest.mark.parametrize("call", ["weights", "sync", "rename"])
def test_a_disk_that_is_full_for_a_while_stops_nothing(options, tmp_path, call):
    Run(options("whole"), tmp_path / "log").finish()
    before = functools.partial(no_room, call, {4})
    said = Run(options("full"), tmp_path / "full.log", before=before).finish()
    assert f"{tmp_path / 'full'}/checkpoint-000004 could not be saved ([Errno 28] No space left on device)" in said
    assert result(tmp_path / "full")["state"] == result(tmp_path / "whole")["state"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_disk_that_stays_full_leaves_the_last_whole_checkpoint(options, tmp_path, processes):
    before = functools.partial(no_room, "weights", {3, 4, 5, 6})
    run = Run(options("full"), tmp_path / "log", processes, before=before)
    assert run.wait() == [0] * processes, run.output  # the model at the top is an older one
    assert run.output.count("could not be saved") == 4
    assert newest_whole(tmp_path / "full").name == "checkpoint-000002"

    never = Run(
        options("never"), tmp_path / "never.log", processes, before=functools.partial(no_room, "weights", range(9))
    )
    assert never.wait() == [2] * processes
    assert "never holds no model, for none could be saved there" in never.output


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_stopped_and_cannot_save_says_so(options, tmp_path, processes):
    run = Run(
        options(max_steps=2000, save_steps=3),
        tmp_path / "log",
        processes,
        before=functools.partial(no_room, "weights", range(4, 2001)),
    )
    run.wait_for("could not be saved")
    run.send(signal.SIGTERM)
    assert run.wait() == [2] * processes
    said = "could not be saved ([Errno 28] No space left on device); older checkpoints are untouched"
    assert run.output.count(said) == 1
    assert newest_whole(tmp_path / "out").name == "checkpoint-000003"


def test_one_process_that_cannot_write_stops_no_other(options, tmp_path):
    """The random numbers of each process are its own to write."""
    run = Run(options(), tmp_path / "log", 2, before=functools.partial(second_has_no_room, 4))
    said = run.finish()
    assert said.count("checkpoint-000004 could not be saved") == 1
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert newest_whole(tmp_path / "out").name == "checkpoint-000006"


def second_has_no_room(step):
    if os.environ["RANK"] == "1":
        from hf_tfenc.training import checkpointing

        save_rng = checkpointing.save_rng

        def full(path):
            if f"{step:06}" in str(path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            save_rng(path)

        checkpointing.save_rng = full
