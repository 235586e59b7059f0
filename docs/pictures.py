"""Draw the pictures of the tour.

    python docs/pictures.py [FOLDER]      # into docs/, if not said otherwise

They show what the package computes: its own table of positions, and its own masks.
"""

import sys
from pathlib import Path

import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from hf_tfenc import TfEncConfig
from hf_tfenc.modeling_tfenc import attention_masks, find_packing, sinusoidal_table
from hf_tfenc.publish.plots import DPI, plot_positions

LENGTH, PADDING, WINDOW, SEQUENCES = 8, 3, 1, (3, 4, 1)


def seen(
    attention_mask: torch.Tensor | None = None, position_ids: torch.Tensor | None = None, **options
) -> torch.Tensor:
    """Which keys each query sees in a row of LENGTH tokens: (queries, keys) bool."""
    config = TfEncConfig(d_model=8, nhead=1, num_layers=1, attn_implementation="eager", **options)
    x = torch.zeros(1, LENGTH, config.hidden_size)
    packing = find_packing((1, LENGTH), attention_mask, position_ids, None)
    (mask,) = attention_masks(config, x, attention_mask, packing).values()
    return mask[0, 0] == 0  # what is added to the scores: very negative where a key is hidden


def masks() -> dict[str, torch.Tensor]:
    """By name, what is seen under each mask: (queries, keys) bool."""
    padded = torch.tensor([[1] * (LENGTH - PADDING) + [0] * PADDING])
    positions = torch.cat([torch.arange(length) for length in SEQUENCES])[None]
    window = {"layer_types": ["sliding_attention"], "sliding_window": WINDOW}
    return {
        "padding": seen(padded),
        "look-ahead": seen(is_causal=True),
        "both": seen(padded, is_causal=True),
        "sliding window": seen(**window),
        "packed sequences": seen(position_ids=positions),
    }


def draw_masks(picture: Path) -> None:
    """Each mask as a square of cells: dark where a query (row) sees a key (column)."""
    drawn = masks()
    figure = Figure(figsize=(2.3 * len(drawn), 2.8), layout="constrained")
    for axes, (name, mask) in zip(figure.subplots(1, len(drawn), sharey=True), drawn.items(), strict=True):
        axes.pcolormesh(mask, cmap=ListedColormap(["white", "#0072B2"]), vmin=0, vmax=1, edgecolors="#999999", lw=0.5)
        axes.set_title(name, fontsize=11)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("key")
    figure.axes[0].set_ylabel("query")
    figure.axes[0].invert_yaxis()  # shared: the first query on top in all of them
    figure.savefig(picture, dpi=DPI)


def main(folder: Path) -> None:
    plot_positions(sinusoidal_table(100, 128), folder / "positions.png")
    draw_masks(folder / "masks.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
