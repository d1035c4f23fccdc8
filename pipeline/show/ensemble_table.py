"""What an ensemble of the methods reaches beside the champion, as a person reads it: below the leaderboard."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from pipeline.evaluation.calibration import fitting
from pipeline.evaluation.leaderboard import CONSOLE, LABELS, shown, shown_p

ABOUT = (
    "The ensemble is the mean of the methods' probabilities, weighted as often as forward selection picked each by the "
    "log loss on validation (Caruana et al. 2004). It chose nothing and is no method of the leaderboard: its cost is "
    f"that of all its members. Validation is cross-fitted in {fitting.FOLDS} folds for both: no image is judged by "
    "weights, or by a choice of the champion, that saw its label. p is of this one comparison on test, uncorrected."
)
UNDEFINED_ON_VALIDATION = (
    " Here validation is too small for that: without one of the folds it has no image, or lacks a class."
)


def text(found: Mapping[str, Any] | None) -> str:
    """Return aligned columns for a console, empty without an ensemble. ``found``: as `ensemble_comparison` gives it."""
    if not found:
        return ""
    rows = _rows(found)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, textwrap.fill(_members(found), CONSOLE), textwrap.fill(_said(found), CONSOLE)])


def markdown(found: Mapping[str, Any] | None) -> str:
    """Return a section of leaderboard.md, empty without an ensemble."""
    if not found:
        return ""
    header, *others = ["| " + " | ".join(row) + " |" for row in _rows(found)]
    rule = "| --- | " + " | ".join(["---:"] * (len(_rows(found)[0]) - 1)) + " |"
    return "\n".join(["## Ensemble", "", header, rule, *others, "", _members(found), "", _said(found)]) + "\n"


def _rows(found: Mapping[str, Any]) -> list[list[str]]:
    metric = found["selected_by"]
    shown_metrics = list(dict.fromkeys([metric, "log_loss"]))
    parts = ("cross-fitted validation", "test")
    header = ["", *(f"{part} {LABELS[name]}" for part in parts for name in shown_metrics)]
    rows = [header]
    for who in ("champion", "ensemble"):
        validation = [shown(found[who]["cross_fitted"][name]) for name in shown_metrics]
        test = [_with_interval(found[who]["test"][name]) for name in shown_metrics]
        rows.append([who, *validation, *test])
    return rows


def _with_interval(bounds: Mapping[str, float | None]) -> str:
    return f"{shown(bounds['value'])} [{shown(bounds['low'])}, {shown(bounds['high'])}]"


def _members(found: Mapping[str, Any]) -> str:
    return "Weights: " + ", ".join(f"{one['weight']:.2f} {one['title']}" for one in found["members"]) + "."


def _said(found: Mapping[str, Any]) -> str:
    paired = found["against_champion"]
    crossed = found["ensemble"]["cross_fitted"][found["selected_by"]]
    return (
        f"On test, only the ensemble is right {paired['only_ensemble_right']} times, only the champion "
        f"{paired['only_champion_right']} times. Their difference in {LABELS[paired['tested']]} has p "
        f"{shown_p(paired['p'])}. {ABOUT}{UNDEFINED_ON_VALIDATION if crossed is None else ''}"
    )
