"""The section on test looks: every distinct comparison in git's history and what MLflow knows besides, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import tracking
from pipeline.audits.fairness import history, test_set_history
from pipeline.audits.fairness.test_set_history import Look
from pipeline.console.progress import announce
from pipeline.core import artifacts, provenance

SECONDS_FOR_MLFLOW = 30.0


def section(*, metric: str, dataset: str, mlflow: bool) -> dict[str, Any]:
    """Return the looks, newest first, and how many came before the claim, which is what the working tree shows.

    A claim that returns to scores of long ago was made when they were first published; looks since then are ``later``.

    ``mlflow``: whether to ask the store, too; one that cannot be reached fails nothing. Raises BakeoffError without
    git.
    """
    points = history.points()
    found = test_set_history.looks(points)
    current = test_set_history.test_part_of(points[-1].state.lock)
    claim = _claim(found, points[-1])
    at = len(found) if claim is None else found.index(claim)
    rows = [
        _row(look, metric, current, is_claim=look is claim, later=number > at)
        for number, look in reversed(list(enumerate(found)))
    ]
    return {
        "metric": metric,
        "shallow": history.is_shallow(),
        "looks": rows,
        "earlier": _counted(found[:at], current),
        "later": _counted(found[at + 1 :], current),
        "scores": len({score for look in found if look.test_part == current for score in _scores(look)}),
        "mlflow": _mlflow(found, current, metric=metric, dataset=dataset) if mlflow else None,
    }


def _counted(found: Sequence[Look], current: str | None) -> dict[str, int]:
    same = [look for look in found if look.test_part == current]
    return {
        "inside": sum(look.inside for look in same),
        "elsewhere": sum(not look.inside for look in same),
        "other_test_parts": len(found) - len(same),
    }


def _claim(found: Sequence[Look], now: test_set_history.Point) -> Look | None:
    """Return the look that the working tree shows, None if it shows no test scores."""
    alike = test_set_history.looks([now])
    if not alike:
        return None
    same = (alike[0].scores, alike[0].test_part)
    return next((look for look in found if (look.scores, look.test_part) == same), None)


def _row(look: Look, metric: str, current: str | None, *, is_claim: bool, later: bool) -> dict[str, Any]:
    point = look.point
    best = look.scores.get(look.champion or "", {})
    return {
        "commit": point.commit and point.commit[:12],
        "date": point.date,
        "subject": point.subject,
        "inside": look.inside,
        "claim": is_claim,
        "later": later,
        "test_part": "unknown" if look.test_part is None else "same" if look.test_part == current else "other",
        "champion": look.champion,
        "champion_score": best.get(metric),
        "scores": {run: of_run[metric] for run, of_run in sorted(look.scores.items()) if metric in of_run},
        "new": list(look.new),
        "vouched": look.vouched,
        "changed": dict(look.changed),
    }


def _scores(look: Look) -> set[tuple[str, str, float]]:
    return {(run, metric, value) for run, of_run in look.scores.items() for metric, value in of_run.items()}


def _mlflow(found: Sequence[Look], current: str | None, *, metric: str, dataset: str) -> dict[str, Any]:
    """Return how many models MLflow has a score of on today's test part, and which scores were never committed."""
    part = artifacts.read_part("test")
    digest = provenance.digest(list(zip(part.paths, part.sha256, strict=True)))
    try:
        scores = tracking.scores(tracking.locate(), dataset, metric=metric, seconds=SECONDS_FOR_MLFLOW)
    except tracking.TrackingError as error:
        announce(f"warning: {error}")  # which names places of this machine
        return {"unavailable": "the store cannot be read"}
    if scores is None:
        return {"unavailable": "there is no store, or nothing of this data set in it"}
    here = [score for score in scores if score.test_part in (digest, "")]
    known = {
        (run, value)
        for look in found
        if look.test_part == current
        for run, name, value in _scores(look)
        if name == metric
    }
    unknown: Mapping[tuple[str, float], bool] = {
        (score.run, score.value): score.deleted for score in here if (score.run, score.value) not in known
    }
    return {
        "unavailable": None,
        "models": len(here),
        "never_committed": [
            {"run": run, "score": value, "deleted": deleted} for (run, value), deleted in sorted(unknown.items())
        ],
    }
