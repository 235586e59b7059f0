"""Pictures of a run."""

import json
import logging
from pathlib import Path

logger = logging.getLogger(__name__)

# Told apart by colour-blind eyes, and by lightness in print (Okabe & Ito 2008).
TRAINING, HELD_OUT, BASELINE = "#56B4E9", "#D55E00", "#000000"


def plot_loss(log_file: Path, baseline_loss: float | None, picture: Path) -> None:
    """Draw training loss, held-out loss and learning rate over steps, and the line of a model that only counts.

    Without matplotlib there is no picture, and one log line says so.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning(f"{picture.name} is not drawn: matplotlib comes with pip install 'hf_tfenc[train]'.")
        return
    records = [json.loads(line) for line in log_file.read_text(encoding="utf-8").splitlines()]
    training = [r for r in records if "learning_rate" in r]
    held_out = [r for r in records if "eval_loss" in r]

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    loss_axes, rate_axes = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    loss_axes.plot([r["step"] for r in training], [r["loss"] for r in training], color=TRAINING, label="training")
    loss_axes.plot(
        [r["step"] for r in held_out], [r["eval_loss"] for r in held_out], "o-", color=HELD_OUT, label="held out"
    )
    if baseline_loss is not None:
        loss_axes.axhline(baseline_loss, color=BASELINE, linestyle="--", linewidth=1, label="counting alone")
    loss_axes.set_ylabel("loss")
    loss_axes.legend(frameon=False)
    rate_axes.plot([r["step"] for r in training], [r["learning_rate"] for r in training], color=BASELINE, linewidth=1)
    rate_axes.set_ylabel("learning rate")
    rate_axes.set_xlabel("step")
    for axes in (loss_axes, rate_axes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(picture, dpi=150)
