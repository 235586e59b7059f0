"""What one sees of a run, and what stays in log.jsonl."""

import io
import json
import sys

import pytest

from hf_tfenc.training import monitor as monitor_module
from hf_tfenc.training.monitor import Monitor, clock

RECORD = {
    "step": 1,
    "epoch": 0.1,
    "loss": 5.0,
    "learning_rate": 0.1,
    "grad_norm": 1.0,
    "tokens": 9,
    "tokens_per_second": 1234.5,
}


@pytest.fixture
def monitor(tmp_path):
    made = Monitor(tmp_path / "log.jsonl", total_steps=100, baseline_loss=6.0, active=True)
    yield made
    made.close()


def logged(path):
    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (path / "log.jsonl").read_text().splitlines()]


def test_log_holds_each_record_as_it_comes(monitor, tmp_path):
    records = [RECORD, {"step": 2, "epoch": 0.2, "eval_loss": 4.5}, {"step": 3, "epoch": 1.0, "train_loss": 4.4}]
    for write, record in zip((monitor.training, monitor.evaluation, monitor.epoch_end), records, strict=True):
        write(record)
    assert logged(tmp_path) == records  # before it is closed
    position = monitor.sync()
    monitor.training(RECORD | {"step": 99})
    Monitor(tmp_path / "log.jsonl", 100, 6.0, active=True, step=3, log_bytes=position).training(RECORD)
    assert logged(tmp_path) == [*records, RECORD]  # what came after the checkpoint is made again
    Monitor(tmp_path / "log.jsonl", 100, 6.0, active=True).training(RECORD)
    assert logged(tmp_path) == [RECORD]


@pytest.mark.parametrize("written", [0, 7])
def test_a_full_disk_costs_a_line_and_no_more(monitor, tmp_path, capsys, written):
    class Full:
        """A file that takes so many bytes of each line."""

        def __init__(self, file):
            self.file, self.name = file, file.name

        def write(self, line):
            if not written:
                raise OSError(28, "No space left on device")
            return self.file.write(line[:written])

        def __getattr__(self, name):
            return getattr(self.file, name)

    monitor.training(RECORD)
    whole, monitor.log = monitor.log, Full(monitor.log)
    monitor.training(RECORD | {"step": 2})
    assert "log.jsonl is lost: No space left on device." in capsys.readouterr().out
    monitor.log = whole
    monitor.training(RECORD | {"step": 3})
    assert [record["step"] for record in logged(tmp_path)] == [RECORD["step"], 3]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_json_cannot_say_is_null(monitor, tmp_path, value):
    monitor.training(RECORD | {"loss": value})
    monitor.evaluation({"step": 1, "eval_loss": value})
    assert [record.get("loss", record.get("eval_loss")) for record in logged(tmp_path)] == [None, None]


def test_lines_without_a_terminal(monitor, capsys, monkeypatch):
    monitor.training(RECORD)
    assert capsys.readouterr().out == ""  # not one for every step
    monkeypatch.setattr(monitor_module, "PLAIN_LINE_SECONDS", -1)
    monitor.started -= 10
    monitor.step(10)
    monitor.training(RECORD | {"step": 10})
    monitor.evaluation({"step": 10, "epoch": 0.1, "eval_loss": 4.5678, "eval_accuracy": 0.25, "eval_other": 1.0})
    monitor.epoch_end({"step": 10, "epoch": 1.0, "train_loss": 4.4})
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "step 10/100 · epoch 0.1 · loss 5.000 (counting alone 6.000) · 1,234 tokens/s · 1:30 left",
        "step 10: held-out loss 4.568 · accuracy 0.250",
        "epoch 1: average loss 4.400",
    ]
    assert err == ""


def test_a_bar_in_a_terminal(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monitor = Monitor(tmp_path / "log.jsonl", total_steps=100, baseline_loss=6.0, active=True)
    monitor.bar.ncols, monitor.bar.dynamic_ncols, monitor.bar.mininterval = 120, None, 0
    monitor.training(RECORD)
    monitor.step(40)
    monitor.evaluation({"step": 40, "eval_loss": 4.5})
    monitor.training(RECORD | {"step": 41})
    monitor.close()
    shown = terminal.getvalue()
    assert "epoch 0.1 · loss 5.000 (counting alone 6.000) · 1,234 tokens/s:  40%" in shown and "40/100" in shown
    assert "step 40: held-out loss 4.500\n" in shown
    assert "epoch 0.1 · loss 5.000 (held out 4.500) · 1,234 tokens/s:  40%" in shown.rpartition("4.500\n")[2]


@pytest.mark.parametrize(
    ("total", "steps_and_losses", "warns"),
    [
        (500, [(50, 6.5), (100, 5.99)], True),
        (500, [(100, 6.3)], True),
        (500, [(150, 5.995), (200, 5.99)], True),
        (500, [(99, 6.0)], False),
        (500, [(100, 5.9), (150, 6.0)], False),
        (500, [(50, 6.0), (100, 5.5)], False),
        (1000, [(199, 6.0)], False),
        (60, [(20, 6.3), (60, 6.0)], False),
    ],
)
def test_a_run_that_learned_nothing_is_told_so_once(tmp_path, capsys, total, steps_and_losses, warns):
    monitor = Monitor(tmp_path / "log.jsonl", total, baseline_loss=6.0, active=True)
    for step, loss in steps_and_losses:
        monitor.training(RECORD | {"step": step, "loss": loss})
    out = capsys.readouterr().out
    assert out.count("has not come below 6.000, which counting alone reaches") == warns
    assert ("--learning_rate" in out) == warns


def test_other_processes_are_silent(tmp_path, capsys):
    monitor = Monitor(tmp_path / "log.jsonl", total_steps=10, baseline_loss=6.0, active=False)
    monitor.step(5)
    monitor.training(RECORD | {"step": 5, "loss": 6.0})
    monitor.evaluation({"step": 5, "eval_loss": 4.5})
    monitor.epoch_end({"step": 5, "epoch": 1.0, "train_loss": 4.4})
    monitor.close()
    assert capsys.readouterr() == ("", "") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00"), (90_061, "25:01:01")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text
