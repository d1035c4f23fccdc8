"""The optimism section: validation, bias-corrected and test score of every run and of the champion, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.audits.fairness import optimism
from pipeline.audits.fairness.runs import Run
from pipeline.console.progress import progress
from pipeline.core import seeds
from pipeline.evaluation import leaderboard, metrics
from pipeline.evaluation.statistics import CompareParams


def section(
    runs: Sequence[Run], *, metric: str, compare: CompareParams, seed: int, groups: Sequence[str]
) -> dict[str, Any]:
    """Return a row for every run, in the order of the leaderboard, and one for the choice among all of them.

    The champion is the best of all candidates of all methods: its correction chooses among those. By the first training
    of each method, also where the mean over repeats ranks them. ``groups``: of the validation images, see
    `optimism.corrected`.
    """

    def corrected(evaluations: Sequence[metrics.Evaluation]) -> optimism.Corrected:
        return optimism.corrected(
            evaluations,
            metric=metric,
            samples=compare.bootstrap_samples,
            generator=seeds.generator(seed, "fairness", "optimism"),  # the same resamples for all
            confidence=compare.confidence,
            groups=groups,
        )

    rows = [
        _row(run, corrected(run.candidates) if len(run.candidates) > 1 else None, metric, [run])
        for run in progress(runs, total=len(runs), label="optimism", unit="runs")
    ]
    everything = [candidate for run in runs for candidate in run.candidates]
    champion = runs[0]
    return {
        "metric": metric,
        "samples": compare.bootstrap_samples,
        "confidence": compare.confidence,
        "images": len(champion.candidates[0]),
        "grouped": any(groups),
        "repeats": champion.entry["repeats"]["count"] if champion.entry["repeats"] else 1,
        "runs": rows,
        "champion": _row(champion, corrected(everything) if len(everything) > 1 else None, metric, runs),
    }


def _row(run: Run, corrected: optimism.Corrected | None, metric: str, among: Sequence[Run]) -> dict[str, Any]:
    """Return the row of ``run``, chosen ``among`` the candidates of some runs; of a single one, nothing is corrected.

    ``stops_on_validation``, ``learns_from_scores``: of any of these, what the correction cannot take out.
    """
    validation: Mapping[str, Any] = run.entry["validation"][metric]
    found = None if corrected is None else leaderboard.numbers(corrected._asdict())
    return {
        "run": run.name,
        "title": run.title,
        "candidates": sum(len(each.candidates) for each in among),
        "validation": validation["value"],
        "corrected": found,
        "optimism": _difference(validation["value"], validation["value"] if found is None else found["value"], metric),
        "test": dict(run.entry["test"][metric]),
        "above_test": _difference(validation["value"], run.entry["test"][metric]["value"], metric),
        "stops_on_validation": any(each.stops_on_validation for each in among),
        "learns_from_scores": any(each.learns_from_scores for each in among),
    }


def _difference(validation: float | None, other: float | None, metric: str) -> float | None:
    """Return by how much validation looks better than another score; negative if it looks worse."""
    if validation is None or other is None:
        return None
    return leaderboard.number(other - validation if metric in metrics.LOWER_IS_BETTER else validation - other)
