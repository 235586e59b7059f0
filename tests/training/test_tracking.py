"""A tracker shows what log.jsonl holds, and one run however often it is stopped."""

import importlib.util
import json

import pytest

from hf_tfenc.training import tracking
from hf_tfenc.training.arguments import OptionError
from hf_tfenc.training.run import run
from hf_tfenc.training.tracking import run_id
from hf_tfenc.training.trainer import Trainer


@pytest.fixture
def options(tiny, texts, tmp_path):
    """Options of a run of eight steps that reports to a tracker."""
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    known = {"train_file": [str(tmp_path / "texts.txt")], "sample_by": "line"}
    known |= {"max_steps": 8, "save_steps": 4, "eval_steps": 4}
    return lambda name, **other: tiny(report_to=name, **known | other)


@pytest.fixture
def stop_after(monkeypatch):
    """Break the next run off after some steps, as a kill would."""
    whole = Trainer.step

    def stop_after(steps):
        def step(self, batches):
            if self.progress.global_step == steps:
                monkeypatch.setattr(Trainer, "step", whole)
                raise KeyboardInterrupt
            return whole(self, batches)

        monkeypatch.setattr(Trainer, "step", step)

    return stop_after


class Recorder:
    """A tracker that writes down what it is told; `broken` names the method that fails."""

    def __init__(self, broken=None):
        self.broken, self.told, self.logged = broken, [], []

    def __getattr__(self, name):
        def method(*args, **kwargs):
            self.told.append(name)
            if name == self.broken:
                raise RuntimeError("the server is gone")
            if name == "log":
                self.logged.append((kwargs["step"], args[0]))

        return method


@pytest.fixture
def recorder(monkeypatch):
    """Take the place of trackio."""

    def recorder(broken=None):
        made = Recorder(broken)
        monkeypatch.setitem(tracking.TRACKERS, "trackio", lambda folder, step: made)
        monkeypatch.setattr("hf_tfenc.training.run.check_tracker", lambda args: None)
        return made

    return recorder


def logged(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_tensorboard_shows_one_run_across_a_stop(options, stop_after, tmp_path):
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    stop_after(6)
    with pytest.raises(KeyboardInterrupt):
        run(options("tensorboard"))
    run(options("tensorboard"))
    (folder,) = (tmp_path / "out").glob("tensorboard")
    assert all(path.is_file() for path in folder.iterdir())  # no runs within the run
    events = loading.EventAccumulator(str(folder)).Reload()
    records = [record for record in logged(tmp_path / "out") if "loss" in record]
    shown = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert [step for step, _ in shown] == [record["step"] for record in records] == list(range(1, 9))
    assert [value for _, value in shown] == pytest.approx([record["loss"] for record in records])
    assert [event.step for event in events.Scalars("eval/loss")] == [4, 8]
    assert {"train/learning_rate", "train/tokens_per_second", "eval/accuracy"} <= set(events.Tags()["scalars"])


def test_what_is_logged_is_reported(options, recorder, tmp_path):
    made = recorder()
    run(options("trackio"))
    assert made.told[:2] == ["start", "store_init_configuration"] and made.told[-1] == "finish"
    records = [record for record in logged(tmp_path / "out") if "loss" in record]
    reported = [(step, values) for step, values in made.logged if "train/loss" in values]
    assert [(step, values["train/loss"]) for step, values in reported] == [(r["step"], r["loss"]) for r in records]
    assert [step for step, values in made.logged if "eval/loss" in values] == [4, 8]


def test_a_stopped_run_is_reported_to_its_end(options, recorder, stop_after):
    made = recorder()
    stop_after(2)
    with pytest.raises(KeyboardInterrupt):
        run(options("trackio"))
    assert made.told[-1] == "finish"


def test_a_tracker_that_cannot_begin_is_a_sentence(options, recorder, tmp_path):
    recorder("start")
    with pytest.raises(
        OSError, match=r"--report_to trackio cannot begin \(the server is gone\): mend that, or leave it"
    ):
        run(options("trackio"))
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_a_tracker_that_ends_does_not_end_the_run(options, recorder, caplog):
    made = recorder("log")
    run(options("trackio"))
    assert made.told.count("log") == 1 and "finish" not in made.told
    assert "--report_to trackio has ended (the server is gone): the run goes on" in caplog.text


def test_a_missing_package_is_a_sentence(options, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        OptionError, match="--report_to wandb needs a package that is not installed: pip install wandb"
    ):
        run(options("wandb"))
    assert not (tmp_path / "out").exists()


def test_an_unknown_tracker_is_a_sentence(options):
    with pytest.raises(OptionError, match=r"is 'mlflow'; it is one of none, tensorboard, trackio, wandb\."):
        options("mlflow")


def test_a_run_keeps_its_name(tmp_path):
    name = run_id(tmp_path)
    assert name.startswith(f"{tmp_path.name}-") and run_id(tmp_path) == name
    (tmp_path / "other").mkdir()
    assert run_id(tmp_path / "other") != name


def test_trackio_shows_one_run_across_a_stop(options, stop_after, tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    stop_after(6)
    with pytest.raises(KeyboardInterrupt):
        run(options("trackio"))
    run(options("trackio"))
    assert SQLiteStorage.get_runs("hf_tfenc") == [run_id(tmp_path / "out")]
    steps = [
        row["step"] for row in SQLiteStorage.get_logs("hf_tfenc", run_id(tmp_path / "out")) if "train/loss" in row
    ]
    assert set(steps) == set(range(1, 9))
