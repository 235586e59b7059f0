"""The tables of a results page as a picture beside it: speeds as bars, or as curves where a table's rows are lengths.

    python benchmarks/picture.py benchmarks/results/speed_h200.md

speed.py and scaling.py call it; by hand it draws a page that was put together from several runs.
"""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from hf_tfenc.publish.plots import new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Told apart by colour-blind eyes, and by lightness in print (Okabe & Ito 2008).
OURS, THEIRS = "#0072B2", "#BBBBBB"
CURVES = (OURS, "#56B4E9", "#009E73", "#D55E00", "#000000")
Table = tuple[list[str], list[list[str]]]  # head and rows


def tables(page: str) -> dict[str, Table]:
    """The first table under each title of a page."""
    found = {}
    for title, text in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL):
        if rows := re.search(r"(^\|[^\n]*\n)+", text, re.MULTILINE):
            head, _, *lines = ([cell.strip() for cell in row.split("|")[1:-1]] for row in rows[0].splitlines())
            found[title] = (head, lines)
    return found


def number(cell: str) -> float | None:
    """None where there is a dash."""
    return float(cell.replace(",", "")) if cell[:1].isdigit() else None


def bars(axes: "Axes", head: list[str], rows: list[list[str]]) -> None:
    speeds = {row[0]: number(row[head.index("tokens/s")]) or 0.0 for row in reversed(rows)}
    colours = [OURS if name.startswith("hf_tfenc") else THEIRS for name in speeds]
    drawn = axes.barh(list(speeds), list(speeds.values()), color=colours)
    axes.bar_label(drawn, fmt="{:,.0f}", padding=3, fontsize="small")
    axes.set_xlim(0, 1.2 * max(speeds.values()))
    axes.xaxis.set_visible(False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def curves(axes: "Axes", head: list[str], rows: list[list[str]]) -> None:
    for place, (name, colour) in enumerate(zip(head[1:], CURVES, strict=False), 1):
        points = [(number(row[0]), number(row[place])) for row in rows]
        whole = [(x, y) for x, y in points if y is not None]
        axes.plot(*zip(*whole, strict=True), marker="o", color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks([number(row[0]) for row in rows], [row[0] for row in rows])
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("tokens a row")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def draw(page: Path) -> None:
    """Write the picture, which has the page's name; without matplotlib there is none, and a log line says so."""
    shown = {
        title: (curves if number(rows[0][0]) else bars, head, rows)
        for title, (head, rows) in tables(page.read_text(encoding="utf-8")).items()
        if "tokens/s" in head or number(rows[0][0])
    }
    heights = [3.5 if kind is curves else 0.4 + 0.28 * len(rows) for kind, _, rows in shown.values()]
    picture = page.with_suffix(".png")
    if (figure := new_figure(picture, 8, sum(heights) + 0.3)) is None:
        return
    all_axes = figure.subplots(len(shown), height_ratios=heights, squeeze=False)
    for axes, (title, (kind, head, rows)) in zip(all_axes[:, 0], shown.items(), strict=True):
        axes.set_title(f"{title}, tokens/s", loc="left", fontsize="medium")
        kind(axes, head, rows)
    save(figure, picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("page", type=Path, help="Markdown, with a table under each title")
    draw(parser.parse_args().page)
