"""The sections as PNG files with the same bytes every time, from their JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.audits.fairness import variance
from pipeline.audits.fairness.study_pages import KINDS
from pipeline.evaluation.leaderboard import LABELS
from pipeline.show.plotting import COLORS, GREY, figure_file, legible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LOOKS = 30  # beside each other; the page lists all
SHARE_COLORS = (COLORS[0], COLORS[1], COLORS[2], COLORS[4], "#BBBBBB")


def leakage_plot(found: Mapping[str, Any], path: Path) -> None:
    """Draw every split's test accuracy by family and kind, and beside it the gaps with their intervals."""
    families = found["families"]
    kinds = list(next(iter(families.values()))["kinds"])
    rows = [(name, kind) for name in families for kind in kinds]
    with figure_file(path, width=12.0, height=1.6 + 0.5 * len(rows)) as figure:
        left, right = figure.subplots(1, 2)
        for position, (name, kind) in enumerate(rows):
            reached, color = families[name]["kinds"][kind], COLORS[list(KINDS).index(kind)]
            values = reached["by_split"]
            left.plot(values, [position] * len(values), "o", color=color, alpha=0.35, markersize=5)
            left.plot(reached["accuracy"], position, "|", color=color, markersize=22, markeredgewidth=2.5)
        _name_rows(left, [f"{name}\n{KINDS[kind]}" for name, kind in rows])
        left.set(xlabel="test accuracy", title="each split, and the mean")
        _draw_gaps(right, found)


def _draw_gaps(axes: Axes, found: Mapping[str, Any]) -> None:
    gaps = [(name, kind, gap) for name, one in found["families"].items() for kind, gap in one["gaps"].items()]
    axes.axvline(0, color=GREY, linewidth=1, linestyle=(0, (2, 2)))
    for position, (_, kind, gap) in enumerate(gaps):
        color = COLORS[list(KINDS).index(kind)]
        for offset, way, marker in ((-0.12, "over_images", "o"), (0.12, "over_splits", "s")):
            value, low, high = (_percent(gap[way][key]) for key in ("value", "low", "high"))
            label = {"over_images": "same images", "over_splits": "over splits"}[way] if not position else None
            axes.plot([low, high], [position + offset] * 2, color=color, linewidth=2)
            axes.plot(
                value,
                position + offset,
                marker,
                color=color,
                markersize=6,
                markerfacecolor=color if way == "over_images" else "white",
                label=label,
            )
    _name_rows(axes, [f"{name}\n{KINDS[kind]}" for name, kind, _ in gaps])
    axes.set(xlabel="points of accuracy", title="what a random split flatters")
    axes.legend(loc="best")


def variance_plot(found: Mapping[str, Any], path: Path) -> None:
    """Draw the shares of variance of every family as one bar: of all candidates, and of the selected ones."""
    families = found["sources"]["families"]
    crossed = f"{variance.SPLIT_FACTOR}{variance.SEPARATOR}{variance.CANDIDATE_FACTOR}"
    names = (*variance.FACTORS, crossed, "rest")
    bars = []
    for name, one in families.items():
        for what, components in (("all candidates", one["components"]), ("selected", one["selected"]["components"])):
            shares = {which: each["share"] or 0.0 for which, each in components.items()}
            rest = sum(share for which, share in shares.items() if which not in names)
            bars.append((f"{name}, {what}", [shares.get(which, 0.0) for which in names[:-1]] + [rest]))
    with figure_file(path, width=9.0, height=1.7 + 0.42 * len(bars)) as figure:
        axes = figure.subplots()
        for position, (_, shares) in enumerate(bars):
            starts = np.concatenate([[0.0], np.cumsum(shares)[:-1]])
            axes.barh([position] * len(shares), shares, left=starts, color=SHARE_COLORS, height=0.6)
        for name, color in zip(names, SHARE_COLORS, strict=True):
            axes.barh(0, 0, color=color, label=name)
        _name_rows(axes, [name for name, _ in bars])
        axes.set(xlim=(0, 1), xlabel="share of the variance of test accuracy")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(names), borderaxespad=0.2)


def ranks_plot(found: Mapping[str, Any], path: Path) -> None:
    """Draw for validation and test in which share of the resamples each method has each place."""
    ranks, titles = found["ranks"], found["titles"]
    count = len(titles)
    with figure_file(path, width=4.5 + 0.7 * count, height=1.8 + 0.36 * count) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, part in zip(panels, ("validation", "test"), strict=True):
            shares = np.array([ranks[part]["runs"][run]["shares"] for run in titles])
            image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axes.grid(False)
            axes.spines[:].set_visible(False)
            axes.set_xticks(range(count), [str(place) for place in range(1, count + 1)])
            axes.set(xlabel="place", title=part)
            for row, run in enumerate(titles):
                axes.plot(
                    ranks[part]["runs"][run]["place"] - 1,
                    row,
                    "o",
                    color=COLORS[1],
                    markersize=5,
                    label="on the part itself" if not row else None,
                )
        panels[0].set_yticks(range(count), [legible(title) for title in titles.values()])
        panels[1].legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
        bar = figure.colorbar(image, ax=list(panels), shrink=0.8, label="share of resamples")
        bar.outline.set_visible(False)


def optimism_plot(found: Mapping[str, Any], path: Path) -> None:
    """Draw validation, corrected and test score of every method, and of the choice among all."""
    rows = [*found["runs"], {**found["champion"], "title": "the champion, best of all"}]
    with figure_file(path, width=9.0, height=1.7 + 0.42 * len(rows)) as figure:
        axes = figure.subplots()
        for position, one in enumerate(rows):
            test, corrected = one["test"], one["corrected"]
            # Of the first row alone, or the legend would name every row's.
            names = [None] * 3 if position else ["test, with its interval", "validation, which chose", "bias-corrected"]
            low, high, value = (_number(test[key]) for key in ("low", "high", "value"))
            axes.plot([low, high], [position] * 2, color="#555555", linewidth=1.6)
            axes.plot(value, position, "o", color="#555555", label=names[0])
            axes.plot(
                _number(one["validation"]),
                position - 0.22,
                "D",
                markersize=5,
                markerfacecolor="white",
                markeredgecolor=COLORS[1],
                label=names[1],
            )
            center = np.nan if corrected is None else _number(corrected["value"])
            axes.plot(center, position + 0.22, "s", markersize=5, color=COLORS[0], label=names[2])
        _name_rows(axes, [one["title"] for one in rows])
        axes.set_xlabel(LABELS[found["metric"]])
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)


def looks_plot(found: Mapping[str, Any], path: Path) -> None:
    """Draw the test scores of the last looks, the oldest on the left, the champion marked."""
    shown = list(reversed(found["looks"][:MOST_LOOKS]))
    with figure_file(path, width=3.0 + 0.9 * len(shown), height=4.2) as figure:
        axes = figure.subplots()
        for place, look in enumerate(shown):
            same = look["test_part"] == "same"
            values = list(look["scores"].values())
            axes.plot(
                [place] * len(values),
                values,
                "o",
                color=COLORS[0] if same else GREY,
                alpha=0.5,
                markersize=5,
                label="method" if place == len(shown) - 1 else None,
            )
            axes.plot(
                place,
                _number(look["champion_score"]),
                "*",
                color=COLORS[1],
                markersize=14,
                markeredgecolor="white",
                label="champion" if place == len(shown) - 1 else None,
            )
        axes.set_xticks(range(len(shown)), [look["commit"] or "now" for look in shown], rotation=30, ha="right")
        axes.set(ylabel=f"test {LABELS[found['metric']]}", xlim=(-0.5, len(shown) - 0.5))
        axes.set_title("looks at the test scores (grey: of another test part)", fontsize=10)
        axes.legend(loc="best")


OF_SECTION: Mapping[str, Mapping[str, Callable[[Mapping[str, Any], Path], None]]] = {
    "leakage": {"leakage.png": leakage_plot},
    "variance": {"variance.png": variance_plot, "ranks.png": ranks_plot},
    "optimism": {"optimism.png": optimism_plot},
    "looks": {"looks.png": looks_plot},
}


def _name_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), ["\n".join(map(legible, name.split("\n"))) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def _percent(value: float | None) -> float:
    return 100 * _number(value)


def _number(value: float | None) -> float:
    return np.nan if value is None else value
