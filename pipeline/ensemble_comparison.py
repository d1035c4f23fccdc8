"""What the weighted mean of all methods reaches beside the champion (docs/decisions/0025)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline import ensembles, leaderboard, metrics, statistics
from pipeline.calibration import fitting
from pipeline.comparison import Method, Protocol, Resampled, point_values, resampled_measures, with_intervals


def beside_champion(ranked: Sequence[Method], resampled: Resampled, protocol: Protocol) -> dict[str, Any] | None:
    """Return the ensemble of methods that `comparison.rank` ordered; None unless params.yaml asks for it.

    ``members``: run, title and weight of those that were picked. ``champion``, ``ensemble``: ``cross_fitted`` {metric:
    value} on validation and ``test`` {metric: {value, low, high}}; all of ``cross_fitted`` is None where a fold leaves
    nothing to choose by. ``against_champion``: see `statistics.paired_test`, and the ``difference`` in the metric that
    chose, ensemble minus champion.
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
    sides = {
        who: {
            "cross_fitted": crossed[who],
            "test": with_intervals(evaluation, drawn[who], protocol.compare.confidence, protocol.units["test"]),
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
        "against_champion": _against_champion(champion.test, test, drawn, protocol),
    }


def _on_validation(ranked: Sequence[Method]) -> np.ndarray:
    return np.stack([method.validation.probabilities for method in ranked])


def _cross_fitted(ranked: Sequence[Method], protocol: Protocol) -> dict[str, dict[str, float | None]]:
    """Return what champion and ensemble reach on each fold when both are chosen on the other folds.

    Undefined, for both, if some fold's other images cannot choose: there are none, or all are of one class and ROC-AUC
    is what chooses.
    """
    probabilities, labels, metric = _on_validation(ranked), protocol.validation.labels, protocol.selection.metric
    folds = fitting.folds(labels, seed=protocol.seed, groups=protocol.groups("validation"))

    def can_choose(fold: int) -> bool:
        others = folds != fold
        # Whether a metric is defined depends on the labels alone.
        return others.any() and not math.isnan(
            metrics.score(metric, probabilities[0][others], labels[others], positive=protocol.positive)
        )

    def pick(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return ensembles.pick(probabilities, labels, picks=protocol.compare.ensemble)

    def champion(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
        found = metrics.select(probabilities, labels, metric=metric, positive=protocol.positive)
        return np.eye(len(ranked), dtype=np.int64)[found]

    choices = {"champion": champion, "ensemble": pick}
    if not all(can_choose(fold) for fold in np.unique(folds)):
        return {who: dict.fromkeys(metrics.NAMES) for who in choices}
    crossed = {who: ensembles.cross_fitted(probabilities, labels, folds, choose) for who, choose in choices.items()}
    return {who: point_values(protocol.evaluate(found, labels)) for who, found in crossed.items()}


def _against_champion(
    champion: metrics.Evaluation,
    ensemble: metrics.Evaluation,
    drawn: Mapping[str, Mapping[str, np.ndarray]],
    protocol: Protocol,
) -> dict[str, Any]:
    metric = protocol.selection.metric
    paired = statistics.paired_test(champion.correct, ensemble.correct, protocol.groups("test"))
    reached = [float(each.measure(names=[metric])[metric][0]) for each in (ensemble, champion)]
    difference = statistics.percentile_interval(
        reached[0] - reached[1],
        drawn["ensemble"][metric] - drawn["champion"][metric],
        confidence=protocol.compare.confidence,
    )
    return {
        "only_champion_right": paired.only_first_right,
        "only_ensemble_right": paired.only_second_right,
        "p": leaderboard.number(paired.p),
        "difference": leaderboard.numbers(difference._asdict()),
    }
