"""The learning curves of one training, as a PNG file.

Apart from the figures of the comparison: a change to those must not train a network again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.show.plotting import COLORS, epoch_axis, figure_file, mark_learning_rates


def draw(history: Mapping[str, Sequence[float]], *, best_epoch: int, title: str, path: Path) -> None:
    """Draw one Keras run: accuracy and loss by epoch, train and validation, and where the learning rate changed.

    ``history`` holds loss, accuracy, val_loss, val_accuracy and learning_rate, one value an epoch. ``best_epoch``,
    counted from 0, is the one whose weights were kept.
    """
    with figure_file(path, width=9.5, height=3.9) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        left, right = figure.subplots(1, 2)
        for axes, metric in ((left, "accuracy"), (right, "loss")):
            epochs = np.arange(1, len(history[metric]) + 1)
            values = history[f"val_{metric}"]
            axes.plot(epochs, history[metric], color=COLORS[1], linestyle="--", marker="o", markersize=3, label="train")
            axes.plot(epochs, values, color=COLORS[0], marker="o", markersize=3, linewidth=2, label="validation")
            axes.plot(
                best_epoch + 1,
                values[best_epoch],
                marker="*",
                markersize=14,
                color=COLORS[0],
                markeredgecolor="white",
                linestyle="none",
                label=f"kept: epoch {best_epoch + 1}, {values[best_epoch]:.3f}",
                zorder=4,
            )
            axes.set_title(metric, pad=14)
            epoch_axis(axes, len(epochs))
            mark_learning_rates(axes, history["learning_rate"])
            axes.legend(loc="best")
