"""Pictures of a run, of what a model confuses, and of what lies inside it.

Without matplotlib no picture is drawn, and one log line says so.
"""

import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

# Told apart by colour-blind eyes, and by lightness in print (Okabe & Ito 2008).
TRAINING, HELD_OUT, BASELINE = "#56B4E9", "#D55E00", "#000000"
# The same to colour-blind eyes as to others, and ever lighter, so that print keeps the order (Nuñez et al. 2018).
COLOUR_MAP = "cividis"
DPI = 150
WRITTEN_OUT = 20  # labels, up to which a number fits into each cell
LONGEST_LABEL = 32  # characters, beyond which it is cut


def plot_loss(log_file: Path, baseline_loss: float | None, picture: Path) -> None:
    """Draw a run over its steps: losses with the line of a model that only counts, learning rate, throughput.

    Args:
        log_file: the run's log.jsonl
        baseline_loss: in the unit of the losses; None for no line
    """
    if (figure := new_figure(picture, 8, 6.5)) is None:
        return
    records = [json.loads(line) for line in log_file.read_text(encoding="utf-8").splitlines()]
    training = [r for r in records if "learning_rate" in r]
    held_out = [r for r in records if "eval_loss" in r]

    def line(axes: "Axes", some: list[dict], name: str, style: str = "-", **look: Any) -> None:
        axes.plot([r["step"] for r in some], [r[name] for r in some], style, **look)

    losses, rates, speeds = figure.subplots(3, 1, sharex=True, height_ratios=[4, 1, 1])
    line(losses, training, "loss", color=TRAINING, label="training")
    line(losses, held_out, "eval_loss", "o-", color=HELD_OUT, label="held out")
    if baseline_loss is not None:
        losses.axhline(baseline_loss, color=BASELINE, linestyle="--", linewidth=1, label="counting alone")
    losses.set_ylabel("loss")
    losses.legend(frameon=False)
    line(rates, training, "learning_rate", color=BASELINE, linewidth=1)
    rates.set_ylabel("learning rate")
    line(speeds, training, "tokens_per_second", color=BASELINE, linewidth=1)
    speeds.set_ylabel("tokens / s")
    speeds.set_ylim(bottom=0)
    speeds.set_xlabel("step")
    for axes in (losses, rates, speeds):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    save(figure, picture)


def plot_confusion(labels: Sequence[str], counts: ArrayLike, picture: Path) -> None:
    """Draw which class is taken for which: a row for each true class, a column for each predicted one.

    Colours are shares of a row, so that rare classes are seen as well as common ones; numbers, where they fit, are
    counts.

    Args:
        labels: names of the classes
        counts: (classes, classes), rows by their true and predicted class

    Raises:
        ValueError: as many counts as there are pairs of labels are expected.
    """
    counts = square(labels, counts, "counts")
    if (figure := new_figure(picture, *table_size(labels))) is None:
        return
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes = heat_map(figure, shares, "share of the true class", 0, 1)
    name_cells(axes, labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(labels) <= WRITTEN_OUT:
        write_cells(axes, shares > 0.5, [[f"{count:g}" if count else "" for count in row] for row in counts])
    save(figure, picture)


def plot_similarity(labels: Sequence[str], matrix: ArrayLike, picture: Path) -> None:
    """Draw how near some texts lie to each other.

    Args:
        labels: the texts, or names of them
        matrix: (texts, texts) cosine similarities

    Raises:
        ValueError: as many similarities as there are pairs of labels are expected.
    """
    matrix = square(labels, matrix, "matrix")
    if (figure := new_figure(picture, *table_size(labels))) is None:
        return
    lowest = min(0.0, float(matrix.min(initial=0)))
    axes = heat_map(figure, matrix, "cosine similarity", lowest, 1)
    name_cells(axes, labels)
    if len(labels) <= WRITTEN_OUT:
        light = matrix > (lowest + 1) / 2
        write_cells(axes, light, [[f"{value:.2f}" for value in row] for row in matrix])
    save(figure, picture)


# What a task may have drawn of it, by the kind of its picture.
PLOTS = {"confusion": plot_confusion, "similarity": plot_similarity}
QUOTING = {"similarity"}  # those that show texts


def plot_positions(table: ArrayLike, picture: Path) -> None:
    """Draw a positional encoding.

    Args:
        table: (positions, features)
    """
    if (figure := new_figure(picture, 8, 4.5)) is None:
        return
    table = np.asarray(table)
    limit = float(np.abs(table).max(initial=0)) or 1.0
    axes = heat_map(figure, table, "value", -limit, limit, aspect="auto")
    axes.set_xlabel("feature")
    axes.set_ylabel("position")
    save(figure, picture)


# --- What pictures share ---------------------------------------------------------------------------------------------


def new_figure(picture: Path, width: float, height: float) -> "Figure | None":
    """An empty figure, in inches; None, and a log line, where there is no matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning(f"{picture.name} is not drawn: matplotlib comes with pip install 'hf_tfenc[train]'.")
        return None
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", picture: Path) -> None:
    """Write the picture; a character that the font lacks is drawn as a box, and not told one by one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from (current )?font")
        figure.savefig(picture, dpi=DPI)


def square(labels: Sequence[str], values: ArrayLike, name: str) -> np.ndarray:
    """`values` as an array. Raises ValueError unless there are labels, and a value for each pair of them."""
    array = np.asarray(values)
    if not len(labels):
        raise ValueError(f"There is nothing to draw: labels are empty, and {name} has shape {array.shape}.")
    if array.shape != (len(labels), len(labels)):
        raise ValueError(
            f"{name} has shape {array.shape}; with {len(labels)} labels {(len(labels), len(labels))} is expected."
        )
    return array


def table_size(labels: Sequence[str]) -> tuple[float, float]:
    """Width and height in inches of a square table with a name for each row and column."""
    cell = 0.5 if len(labels) <= WRITTEN_OUT else 0.16
    names = 0.08 * max((len(shortened(label)) for label in labels), default=0)
    return max(cell * len(labels) + names + 2, 4), max(cell * len(labels) + names + 1, 3.5)


def heat_map(figure: "Figure", values: np.ndarray, meaning: str, low: float, high: float, **look: Any) -> "Axes":
    """Values as colours from `low` to `high`, with the bar that says what the colours mean."""
    axes = figure.subplots()
    image = axes.imshow(values, cmap=COLOUR_MAP, vmin=low, vmax=high, interpolation="nearest", **look)
    figure.colorbar(image, ax=axes, label=meaning, shrink=0.8)
    return axes


def name_cells(axes: "Axes", labels: Sequence[str]) -> None:
    """The labels along both sides, as they are: a dollar sign begins no formula."""
    names = [shortened(label) for label in labels]
    size = 9 if len(labels) <= WRITTEN_OUT else 7
    axes.set_xticks(range(len(labels)), names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(len(labels)), names, fontsize=size, parse_math=False)


def write_cells(axes: "Axes", light: np.ndarray, texts: list[list[str]]) -> None:
    """A text in each cell, dark where the cell is light."""
    for row, column in np.ndindex(light.shape):
        colour = "black" if light[row, column] else "white"
        axes.text(column, row, texts[row][column], ha="center", va="center", color=colour, fontsize=9)


def shortened(label: str) -> str:
    line = " ".join(label.split())
    return line if len(line) <= LONGEST_LABEL else line[: LONGEST_LABEL - 1] + "…"
