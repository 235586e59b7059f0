"""The pictures: what is drawn, not only that something is."""

import json
import logging
import sys
from itertools import pairwise

import numpy as np
import pytest

from hf_tfenc.modeling_tfenc import sinusoidal_table
from hf_tfenc.publish.plots import plot_confusion, plot_loss, plot_positions, plot_similarity

RECORDS = [
    {"step": 1, "epoch": 0.5, "loss": 5.0, "learning_rate": 0.0, "tokens_per_second": 900.0},
    {"step": 2, "epoch": 1.0, "loss": None, "learning_rate": 0.1, "tokens_per_second": 1000.0},  # NaN, as JSON says it
    {"step": 2, "epoch": 1.0, "eval_loss": 4.5, "eval_accuracy": 0.1},
    {"step": 2, "epoch": 1.0, "train_loss": 4.8},
    {"step": 3, "skipped": True, "loss": 1e9, "rows": [7]},
]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, in their order."""
    figure, figures = pytest.importorskip("matplotlib.figure"), []
    save = figure.Figure.savefig

    def savefig(self, path, **options):
        figures.append(self)
        save(self, path, **options)

    monkeypatch.setattr(figure.Figure, "savefig", savefig)
    return figures


def write_log(folder, records):
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / "log.jsonl"


def names(axes):
    """The names along both sides."""
    return [tick.get_text() for tick in axes.get_xticklabels()], [tick.get_text() for tick in axes.get_yticklabels()]


def cells(axes):
    """The texts in the cells, by (row, column)."""
    return {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}


# --- A run -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline_loss", [6.0, None])
@pytest.mark.parametrize("records", [RECORDS, RECORDS[:1], []])
def test_a_picture_is_drawn(tmp_path, records, baseline_loss):
    pytest.importorskip("matplotlib")
    plot_loss(write_log(tmp_path, records), baseline_loss, tmp_path / "loss.png")
    picture = (tmp_path / "loss.png").read_bytes()
    assert picture.startswith(PNG) and len(picture) > 5000


def test_a_run(tmp_path, drawn):
    plot_loss(write_log(tmp_path, RECORDS), 6.0, tmp_path / "loss.png")
    losses, rates, speeds = drawn[0].axes
    training, held_out, unigram = losses.lines
    assert list(training.get_xdata()) == [1, 2] and training.get_ydata()[0] == 5.0
    assert (list(held_out.get_xdata()), list(held_out.get_ydata())) == ([2], [4.5])
    assert held_out.get_marker() == "o"  # one evaluation alone is seen too
    assert set(unigram.get_ydata()) == {6.0}
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["training", "held out", "counting alone"]
    assert list(rates.lines[0].get_ydata()) == [0.0, 0.1]
    assert list(speeds.lines[0].get_ydata()) == [900.0, 1000.0] and speeds.get_ylim()[0] == 0
    assert [axes.get_ylabel() for axes in drawn[0].axes] == ["loss", "learning rate", "tokens / s"]
    assert speeds.get_xlabel() == "step"


def test_a_run_without_a_baseline_has_no_line_for_one(tmp_path, drawn):
    plot_loss(write_log(tmp_path, RECORDS), None, tmp_path / "loss.png")
    assert [line.get_label() for line in drawn[0].axes[0].lines] == ["training", "held out"]


# --- Tables ----------------------------------------------------------------------------------------------------------


def test_confusion(tmp_path, drawn):
    """Of three classes, one of which has no row."""
    sklearn = pytest.importorskip("sklearn.metrics")
    true, predicted = [0, 0, 0, 0, 1, 1], [0, 0, 0, 2, 1, 0]
    labels = [0, 1, 2]
    counts = sklearn.confusion_matrix(true, predicted, labels=labels)
    plot_confusion(["card", "loan", "fee"], counts, tmp_path / "confusion.png")
    axes, bar = drawn[0].axes
    shares = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(
        shares[:2], sklearn.confusion_matrix(true, predicted, labels=labels, normalize="true")[:2]
    )
    assert not shares[2].any()
    assert axes.images[0].get_clim() == (0, 1)
    assert cells(axes) == {
        (0, 0): "3", (0, 1): "", (0, 2): "1",
        (1, 0): "1", (1, 1): "1", (1, 2): "",
        (2, 0): "", (2, 1): "", (2, 2): "",
    }  # fmt: skip
    assert names(axes) == (["card", "loan", "fee"], ["card", "loan", "fee"])
    assert (axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()) == ("predicted", "true", "share of the true class")


def test_many_classes_have_room(tmp_path, drawn):
    """Names that do not run into each other, and no numbers that nobody could read."""
    labels = [f"class {number}" for number in range(77)]
    plot_confusion(labels, np.eye(77), tmp_path / "confusion.png")
    axes = drawn[0].axes[0]
    assert names(axes)[1] == labels and not axes.texts
    boxes = [tick.get_window_extent() for tick in axes.get_yticklabels()]
    assert not any(one.overlaps(other) for one, other in pairwise(boxes))


def test_similarity(tmp_path, drawn):
    vectors = np.array([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    plot_similarity(["one", "two", "three"], vectors @ vectors.T, tmp_path / "similarity.png")
    axes, bar = drawn[0].axes
    np.testing.assert_allclose(axes.images[0].get_array(), [[1, 0.6, -1], [0.6, 1, -0.6], [-1, -0.6, 1]])
    assert axes.images[0].get_clim() == (-1, 1) and bar.get_ylabel() == "cosine similarity"
    assert cells(axes)[0, 1] == "0.60" and cells(axes)[2, 0] == "-1.00"
    assert names(axes) == (["one", "two", "three"],) * 2
    plot_similarity(["one", "two"], [[1, 0.5], [0.5, 1]], tmp_path / "similarity.png")
    assert drawn[1].axes[0].images[0].get_clim() == (0, 1)


@pytest.mark.parametrize("plot", [plot_confusion, plot_similarity])
def test_labels_are_drawn_as_they_are(tmp_path, drawn, plot):
    """A dollar sign begins no formula, a line end no second line, and a long text leaves room for the table."""
    labels = ["$x^2$", "$\\frac", "a\nb", "long " * 20]
    plot(labels, np.eye(4), tmp_path / "picture.png")
    drawn_names = names(drawn[0].axes[0])[1]
    assert drawn_names[:3] == ["$x^2$", "$\\frac", "a b"]
    assert drawn_names[3].endswith("…") and len(drawn_names[3]) == 32
    assert not any(tick.get_parse_math() for tick in drawn[0].axes[0].get_yticklabels())


def test_texts_are_read_on_their_cells(tmp_path, drawn):
    """Dark on light and light on dark: a contrast of 4 at least (WCAG asks 3 of large text, 4.5 of small)."""
    shares = np.linspace(0, 1, 16).reshape(4, 4)
    plot_similarity(list("abcd"), shares, tmp_path / "picture.png")
    axes = drawn[0].axes[0]
    colours = pytest.importorskip("matplotlib.colors")

    def luminance(colour):
        rgb = np.array(colours.to_rgb(colour))
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    for text, share in zip(axes.texts, shares.flat, strict=True):
        light = sorted([luminance(text.get_color()), luminance(axes.images[0].to_rgba(share)[:3])])
        assert (light[1] + 0.05) / (light[0] + 0.05) > 4, share


@pytest.mark.parametrize(
    "plot, name", [(plot_confusion, "counts"), (plot_similarity, "matrix")], ids=["confusion", "similarity"]
)
def test_a_table_that_does_not_fit_its_labels(tmp_path, plot, name):
    with pytest.raises(ValueError) as error:
        plot(["a", "b"], np.eye(3), tmp_path / "picture.png")
    assert str(error.value) == f"{name} has shape (3, 3); with 2 labels (2, 2) is expected."
    with pytest.raises(ValueError, match="labels are empty"):
        plot([], np.zeros((0, 0)), tmp_path / "picture.png")


# --- Positions -------------------------------------------------------------------------------------------------------


def test_positions(tmp_path, drawn):
    table = sinusoidal_table(20, 8)
    plot_positions(table, tmp_path / "positions.png")
    axes, bar = drawn[0].axes
    np.testing.assert_array_equal(axes.images[0].get_array(), table.numpy())
    low, high = axes.images[0].get_clim()
    assert low == -high and high == pytest.approx(1)  # 0 has the colour of the middle
    assert (axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()) == ("feature", "position", "value")
    assert (tmp_path / "positions.png").read_bytes().startswith(PNG)


# --- No matplotlib ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw",
    [
        lambda picture: plot_loss(write_log(picture.parent, []), 6.0, picture),
        lambda picture: plot_confusion(["a"], [[1]], picture),
        lambda picture: plot_similarity(["a"], [[1]], picture),
        lambda picture: plot_positions([[0.0]], picture),
    ],
    ids=["loss", "confusion", "similarity", "positions"],
)
def test_without_matplotlib_one_line_says_so(tmp_path, monkeypatch, caplog, draw):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.INFO, logger="hf_tfenc"):
        draw(tmp_path / "it.png")
    (record,) = caplog.records
    assert record.getMessage() == "it.png is not drawn: matplotlib comes with pip install 'hf_tfenc[train]'."
    assert not (tmp_path / "it.png").exists()


def test_characters_that_the_font_lacks_are_not_told_one_by_one(tmp_path, recwarn):
    pytest.importorskip("matplotlib")
    plot_similarity(["ทีม", "팀"], np.eye(2), tmp_path / "similarity.png")
    assert (tmp_path / "similarity.png").read_bytes().startswith(PNG)
    assert not [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)]
