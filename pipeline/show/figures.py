"""Plots of the comparison, as PNG files with the same bytes every time.

Every function draws what it is given and computes no metric. Methods come in leaderboard order; a method keeps its
color and line style in every figure through ``place``, its position there, and the champion (place 0) is drawn boldest.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.show.plotting import COLORS, GREY, LINE_STYLES, epoch_axis, figure_file, legible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Beyond these counts, text no longer fits.
CLASSES_WITH_COUNTS = 15
CLASSES_WITH_NAMES = 50
PANELS_A_ROW = 4


class Line(NamedTuple):
    """One method's curve: x and y float (points,), ``note`` is shown behind its name."""

    name: str
    place: int
    x: np.ndarray
    y: np.ndarray
    note: str = ""


class Training(NamedTuple):
    """How a method was fitted: one value a step under each key of ``history``; ``best_step`` counts from 0."""

    name: str
    place: int
    history: Mapping[str, Sequence[float]]
    best_step: int | None


class Calibration(NamedTuple):
    """One method's confidence bins: images in each, mean confidence and accuracy (NaN if empty), (bins,) each.

    ``before``: the same before calibration, if there was any.
    """

    name: str
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    note: str = ""
    before: Calibration | None = None


class Bar(NamedTuple):
    """One method's metric on validation, and on test with its interval; NaN where undefined.

    ``validation``: what ranked the method. ``others``: on test, of the trainings after the first.
    """

    name: str
    validation: float
    test: float
    low: float
    high: float
    others: Sequence[float] = ()


def confusion_matrix(counts: np.ndarray, classes: Sequence[str], *, title: str, path: Path) -> None:
    """Draw counts int (classes, classes), rows labels, columns predictions, shaded by the share of the row."""
    support = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, support, out=np.zeros(counts.shape), where=support > 0)
    side = min(12.0, 3.6 + 0.55 * len(classes))
    with figure_file(path, width=side + 0.9, height=side) as figure:
        axes = figure.subplots()
        axes.grid(False)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set(xlabel="predicted", ylabel="label")
        axes.set_title(title, fontsize=10)
        if len(classes) <= CLASSES_WITH_NAMES:
            ticks = range(len(classes))
            # Dollar signs in the name of a class are no formula.
            names = [legible(name).replace("$", r"\$") for name in classes]
            axes.set_xticks(ticks, names, rotation=0 if len(classes) <= 3 else 90)
            axes.set_yticks(ticks, names)
        if len(classes) <= CLASSES_WITH_COUNTS:
            for (row, column), count in np.ndenumerate(counts):
                share = shares[row, column]
                text = f"{count:,}\n{share:.0%}" if len(classes) <= 8 else f"{count:,}"
                axes.text(column, row, text, ha="center", va="center", color="white" if share > 0.5 else "#222222")
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, label="share of the label's images")
        bar.outline.set_visible(False)


def roc(lines: Sequence[Line], *, title: str, path: Path) -> None:
    """Draw ROC curves: x the false positive rate, y the true positive rate."""
    with figure_file(path, width=8.6, height=5.2) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (2, 2)), label="0.500  chance")
        _draw(axes, lines, note="area under the curve")
        axes.set(xlabel="false positive rate", ylabel="true positive rate", title=legible(title), **_unit_square())


def precision_recall(lines: Sequence[Line], *, prevalence: float, title: str, path: Path) -> None:
    """Draw precision over recall in steps, see `curves`; ``prevalence`` is the precision of guessing."""
    with figure_file(path, width=8.6, height=5.2) as figure:
        axes = figure.subplots()
        axes.axhline(prevalence, color=GREY, linewidth=1, linestyle=(0, (2, 2)), label=f"{prevalence:.3f}  chance")
        _draw(axes, lines, note="average precision", drawstyle="steps-pre")
        axes.set(xlabel="recall", ylabel="precision", title=legible(title), **_unit_square())


def reliability(panels: Sequence[Calibration], *, n_classes: int, title: str, path: Path) -> None:
    """Draw for each method its accuracy over its confidence, and below it how many images have that confidence.

    Dashed lines are what both were before calibration.
    """
    columns = min(PANELS_A_ROW, len(panels))
    rows = -(-len(panels) // columns)
    with figure_file(path, width=max(3.0 * columns, 4.5), height=3.9 * rows + 0.4) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        grid = figure.subplots(
            2 * rows, columns, squeeze=False, sharex=True, gridspec_kw={"height_ratios": [3, 1] * rows}
        )
        tallest = max(each.count.max() for panel in panels for each in (panel, panel.before) if each)
        for index in range(rows * columns):
            row, column = divmod(index, columns)
            above, below = grid[2 * row, column], grid[2 * row + 1, column]
            if index >= len(panels):
                above.set_visible(False)
                below.set_visible(False)
                continue
            _draw_calibration(above, below, panels[index], champion=index == 0)
            # The most probable of k classes has at least 1/k.
            above.set(xlim=(1 / n_classes, 1), ylim=(0, 1.02))
            below.set(ylim=(0, tallest * 1.05), xlabel="confidence")
            # Every panel has the same scale, so the first of a row carries the numbers for all.
            above.tick_params(labelleft=column == 0)
            below.tick_params(labelleft=column == 0, labelbottom=True)
            if column == 0:
                above.set_ylabel("accuracy")
                below.set_ylabel("images")


def learning_curves(runs: Sequence[Training], *, path: Path) -> None:
    """Draw how all methods were fitted: networks by epoch, boosted trees by tree; the others are named."""
    networks = [run for run in runs if "val_loss" in run.history]
    boosters = [run for run in runs if "validation_log_loss" in run.history]
    keys = [("accuracy", "val_accuracy", "accuracy"), ("loss", "val_loss", "loss")] if networks else []
    others = [run.name for run in runs if not {"val_loss", "validation_log_loss"} & run.history.keys()]
    legend = -(-len(networks + boosters) // 3)  # lines
    with figure_file(path, width=4.6 * max(1, len(keys) + bool(boosters)), height=4.4 + 0.24 * legend) as figure:
        panels = list(figure.subplots(1, max(1, len(keys) + bool(boosters)), squeeze=False)[0])
        if not networks and not boosters:
            panels[0].set_axis_off()
            panels[0].text(0.5, 0.5, "No method was fitted step by step.", ha="center", va="center", color=GREY)
            return
        for axes, (train, validation, title) in zip(panels, keys, strict=False):
            for run in networks:
                _draw_training(axes, run, validation, train=train)
            axes.set_title(f"networks: {title}")
            epoch_axis(axes, max(len(run.history["val_loss"]) for run in networks))
        if boosters:
            for run in boosters:
                _draw_training(panels[-1], run, "validation_log_loss")
            panels[-1].set(title="boosted trees: log loss", xlabel="trees")
        handles = {
            line.get_label(): line
            for axes in panels
            for line in axes.get_lines()
            if not line.get_label().startswith("_")
        }
        names = [_shown_name(run.name, run.place) for run in (*networks, *boosters)]
        figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=3)
        said = ["thick: validation · thin: train, as augmented and weighted · star: the step that was kept"]
        if others:
            # A line may end between names, not within one.
            said.append(f"without a curve, because not fitted step by step: {', '.join(map(_unbroken, others))}")
        lines = [line for text in said for line in textwrap.wrap(text, 64 * len(panels), break_on_hyphens=False)]
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=9, color="#555555")


def leaderboard(bars: Sequence[Bar], *, label: str, confidence: float, path: Path) -> None:
    """Draw each method's metric on test with its interval, and on validation, best on validation first."""
    with figure_file(path, width=9.0, height=1.7 + 0.42 * len(bars)) as figure:
        axes = figure.subplots()
        for position, bar in enumerate(bars):
            color = COLORS[0] if position == 0 else "#555555"
            width = 2.6 if position == 0 else 1.6
            axes.plot([bar.low, bar.high], [position, position], color=color, linewidth=width, solid_capstyle="round")
            axes.plot(
                bar.test,
                position,
                "o",
                color=color,
                markersize=8 if position == 0 else 6,
                label=f"test, {confidence:.0%} interval" if position == 0 else None,
            )
            axes.plot(
                bar.others,
                [position] * len(bar.others),
                "|",
                color=color,
                markersize=9,
                label="test, other trainings" if position == 0 and len(bar.others) else None,
            )
            chose = "validation, which chose" + (" (mean)" if len(bar.others) else "")
            axes.plot(
                bar.validation,
                position + 0.22,
                "D",
                markersize=5,
                markerfacecolor="white",
                markeredgecolor=COLORS[1],
                label=chose if position == 0 else None,
            )
            axes.annotate(
                "" if np.isnan(bar.test) else f"{bar.test:.3f}",
                (bar.test, position),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=color,
            )
        # The champion's interval as a band, against which the others are read.
        if np.isfinite(bars[0].low):
            axes.axvspan(bars[0].low, bars[0].high, color=COLORS[0], alpha=0.08, linewidth=0)
        axes.set_yticks(range(len(bars)), [_shown_name(bar.name, place) for place, bar in enumerate(bars)])
        axes.get_yticklabels()[0].set_fontweight("bold")
        axes.set(ylim=(len(bars) - 0.4, -0.7), xlabel=label)
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)


def _line_style(place: int) -> dict[str, Any]:
    return {
        "color": COLORS[place % len(COLORS)],
        "linestyle": LINE_STYLES[place // len(COLORS) % len(LINE_STYLES)],
        "linewidth": 2.4 if place == 0 else 1.4,
        "zorder": 3 if place == 0 else 2,
    }


def _shown_name(name: str, place: int) -> str:
    return f"{name} (champion)" if place == 0 else name


def _unbroken(name: str) -> str:
    return name.replace(" ", "\N{NO-BREAK SPACE}")


def _draw(axes: Axes, lines: Sequence[Line], *, note: str, drawstyle: str = "default") -> None:
    for line in lines:
        label = "  ".join(filter(None, [line.note, _shown_name(line.name, line.place)]))
        axes.plot(line.x, line.y, label=label, drawstyle=drawstyle, **_line_style(line.place))
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0, title=note, alignment="left")


def _unit_square() -> dict[str, Any]:
    return {"xlim": (-0.01, 1.01), "ylim": (-0.01, 1.01), "aspect": "equal"}


def _draw_calibration(above: Axes, below: Axes, panel: Calibration, *, champion: bool) -> None:
    color = COLORS[0] if champion else COLORS[5]
    edges = np.linspace(0, 1, len(panel.count) + 1)
    filled = panel.count > 0
    above.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (2, 2)))
    above.bar(edges[:-1][filled], panel.accuracy[filled], np.diff(edges)[filled], align="edge", color=color, alpha=0.35)
    if panel.before:
        seen = panel.before.count > 0
        confidence, accuracy = panel.before.confidence[seen], panel.before.accuracy[seen]
        above.plot(confidence, accuracy, "o--", color=COLORS[1], markersize=3, linewidth=1.2, markerfacecolor="white")
        below.stairs(panel.before.count, edges, color=COLORS[1], linestyle="--", linewidth=1.0)
    above.plot(panel.confidence[filled], panel.accuracy[filled], "o-", color=color, markersize=4, linewidth=1.5)
    name = _shown_name(panel.name.replace(" · ", "\n"), 0 if champion else 1)
    above.set_title("\n".join(filter(None, [name, panel.note])), fontsize=9)
    below.bar(edges[:-1], panel.count, np.diff(edges), align="edge", color=color, edgecolor="white", linewidth=0.5)


def _draw_training(axes: Axes, run: Training, key: str, *, train: str | None = None) -> None:
    style = _line_style(run.place)
    values = run.history[key]
    steps = np.arange(1, len(values) + 1)
    axes.plot(steps, values, label=_shown_name(run.name, run.place), **{**style, "linewidth": 2})
    if train:
        axes.plot(steps, run.history[train], color=style["color"], linewidth=0.8, linestyle=style["linestyle"])
    if run.best_step is not None:
        axes.plot(
            run.best_step + 1,
            values[run.best_step],
            "*",
            color=style["color"],
            markersize=13,
            markeredgecolor="white",
            zorder=4,
        )
