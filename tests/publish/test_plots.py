"""The picture of a run."""

import json
import logging
import sys

import pytest

from hf_tfenc.publish.plots import plot_loss

RECORDS = [
    {"step": 1, "epoch": 0.5, "loss": 5.0, "learning_rate": 0.0},
    {"step": 2, "epoch": 1.0, "loss": None, "learning_rate": 0.1},  # not a number, as JSON says it
    {"step": 2, "epoch": 1.0, "eval_loss": 4.5, "eval_accuracy": 0.1},
    {"step": 2, "epoch": 1.0, "train_loss": 4.8},
]


@pytest.mark.parametrize("baseline_loss", [6.0, None])
@pytest.mark.parametrize("records", [RECORDS, RECORDS[:1], []])
def test_a_picture_is_drawn(tmp_path, records, baseline_loss):
    pytest.importorskip("matplotlib")
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    plot_loss(tmp_path / "log.jsonl", baseline_loss, tmp_path / "loss.png")
    picture = (tmp_path / "loss.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n") and len(picture) > 5000


def test_what_is_drawn(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, path, **_: drawn.append(self))
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    plot_loss(tmp_path / "log.jsonl", 6.0, tmp_path / "loss.png")
    losses, rates = drawn[0].axes
    training, held_out, unigram = losses.lines
    assert list(training.get_xdata()) == [1, 2] and training.get_ydata()[0] == 5.0
    assert (list(held_out.get_xdata()), list(held_out.get_ydata())) == ([2], [4.5])
    assert set(unigram.get_ydata()) == {6.0} and list(rates.lines[0].get_ydata()) == [0.0, 0.1]
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["training", "held out", "counting alone"]


def test_without_matplotlib_one_line_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (tmp_path / "log.jsonl").write_text("")
    with caplog.at_level(logging.INFO, logger="hf_tfenc"):
        plot_loss(tmp_path / "log.jsonl", 6.0, tmp_path / "loss.png")
    (record,) = caplog.records
    assert record.getMessage() == "loss.png is not drawn: matplotlib comes with pip install 'hf_tfenc[train]'."
    assert not (tmp_path / "loss.png").exists()
