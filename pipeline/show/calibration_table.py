"""What calibration did, method by method, as a person reads it: beside the leaderboard, from its entries."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from pipeline.evaluation.calibration import fitting
from pipeline.evaluation.leaderboard import CALIBRATION_METRICS, CONSOLE, LABELS, Entry, shown, title_of

ABOUT = (
    "Before → after calibration, which was fitted on validation for each method's selected candidate and chose "
    "nothing: the leaderboard is of the probabilities as the models give them. After, on validation, means cross-"
    f"fitted in {fitting.FOLDS} folds: no image is judged by a calibrator that has seen its label. A dash: without "
    "one of the folds, validation has images of one class only, or none."
)


def text(entries: Sequence[Entry]) -> str:
    """Return aligned columns for a console, empty without calibration."""
    rows = _rows(entries)
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([textwrap.fill(ABOUT, CONSOLE), *lines])


def markdown(entries: Sequence[Entry]) -> str:
    """Return a section of leaderboard.md, empty without calibration."""
    rows = _rows(entries)
    if not rows:
        return ""
    header, *others = ["| " + " | ".join(row) + " |" for row in rows]
    rule = "| --- | --- | " + " | ".join(["---:"] * (len(rows[0]) - 2)) + " |"
    return "\n".join(["## Calibration", "", header, rule, *others, "", ABOUT]) + "\n"


def _rows(entries: Sequence[Entry]) -> list[list[str]]:
    """Return the header and a row a method, or nothing: validation by log loss and ECE, test by all metrics."""
    if not entries[0]["calibration"]:
        return []
    columns = [("validation", "log_loss"), ("validation", "expected_calibration_error")]
    columns += [("test", metric) for metric in CALIBRATION_METRICS]
    header = ["method", "calibrator", *(f"{part} {LABELS[metric]}" for part, metric in columns)]
    return [header] + [
        [
            title_of(one),
            one["calibration"]["calibrator"],
            *(_arrow(one["calibration"][part][metric]) for part, metric in columns),
        ]
        for one in entries
    ]


def _arrow(values: dict[str, float | None]) -> str:
    return f"{shown(values['before'])} → {shown(values['after'])}"
