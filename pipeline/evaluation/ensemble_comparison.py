"""What the weighted mean of all methods reaches beside the champion (docs/decisions/0025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.evaluation import ensembles, leaderboard, metrics
from pipeline.evaluation.calibration import fitting
from pipeline.evaluation.comparison import (
    Method,
    Protocol,
    Resampled,
    paired,
    point_values,
    resampled_measures,
    with_intervals,
)


def beside_champion(ranked: Sequence[Method], resampled: Resampled, protocol: Protocol) -> dict[str, Any] | None:
    """Return the ensemble of methods that `comparison.rank` ordered; None unless params.yaml asks for it.

    ``members``: run, title and weight of those that were picked. ``champion``, ``ensemble``: ``cross_fitted`` {metric:
    value} on validation and ``test`` {metric: {value, low, high}}; all of ``cross_fitted`` is None where a fold leaves
    nothing to choose by. ``against_champion``: see `comparison.paired`; ``difference`` is ensemble minus champion.
    """
    if protocol.compare.ensemble is None:
        return None
    champion = ranked[0]
    counts = ensembles.pick(_on_validation(ranked), protocol.validation.labels, picks=protocol.compare.ensemble)
    combined = ensembles.mean(np.stack([method.test.probabilities for method in ranked]), counts)
    test = protocol.evaluate(combined, protocol.test_labels)
    drawn = {
        "champion": resampled["test"][champion.record.name],
        "ensemble": resampled_measures({"test": {"ensemble": test.measure}}, protocol)["test"]["ensemble"],
    }
    crossed = _cross_fitted(ranked, protocol)
    compared, difference = paired(champion.test, test, drawn["champion"], drawn["ensemble"], protocol)
    sides = {
        who: {
            "cross_fitted": crossed[who],
            "test": with_intervals(evaluation, drawn[who], "test", protocol),
        }
        for who, evaluation in (("champion", champion.test), ("ensemble", test))
    }
    return {
        "selected_by": protocol.selection.metric,
        "picks": int(counts.sum()),
        "members": [
            {
                "run": ranked[index].record.name,
                "title": ranked[index].title,
                "weight": leaderboard.number(counts[index] / counts.sum()),
            }
            for index in np.argsort(-counts, kind="stable")
            if counts[index]
        ],
        **sides,
        "against_champion": {
            "tested": protocol.selection.metric,
            "only_champion_right": compared.only_first_right,
            "only_ensemble_right": compared.only_second_right,
            "p": leaderboard.number(compared.p),
            "difference": leaderboard.numbers(difference._asdict()),
        },
    }


def _on_validation(ranked: Sequence[Method]) -> np.ndarray:
    return np.stack([method.validation.probabilities for method in ranked])


def _cross_fitted(ranked: Sequence[Method], protocol: Protocol) -> dict[str, dict[str, float | None]]:
    """Return what champion and ensemble reach on each fold when both are chosen on the other folds.

    Undefined, for both, if some fold's other images cannot choose: they are of one class, or a class is missing and
    the metric that chooses takes every class against the others.
    """
    probabilities, labels, metric = _on_validation(ranked), protocol.validation.labels, protocol.selection.metric
    folds = fitting.folds(labels, seed=protocol.seed, groups=protocol.groups("validation"))

    def pick(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return ensembles.pick(probabilities, labels, picks=protocol.compare.ensemble)

    def champion(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
        found = metrics.select(probabilities, labels, metric=metric, positive=protocol.positive)
        return np.eye(len(ranked), dtype=np.int64)[found]

    choices = {"champion": champion, "ensemble": pick}
    if not fitting.can_fit(labels, folds, every_class=metric in metrics.OF_RANKS):
        return {who: dict.fromkeys(metrics.NAMES) for who in choices}
    crossed = {who: ensembles.cross_fitted(probabilities, labels, folds, choose) for who, choose in choices.items()}
    return {who: point_values(protocol.evaluate(found, labels)) for who, found in crossed.items()}
