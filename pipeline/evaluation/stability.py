"""How far a comparison could have ended otherwise on other images: places under resampling, and paired disagreement.

From the same resamples as the intervals. By the first training of every method, as those are.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.evaluation import leaderboard, metrics, rankings, statistics
from pipeline.evaluation.comparison import Method, Protocol, Resampled


def pairs(ranked: Sequence[Method]) -> list[dict[str, Any]]:
    """Return for each two methods how many test images only the first, and only the second, is right about."""
    hits = {method.record.name: method.test.correct for method in ranked}
    return [
        {
            "first": first,
            "second": second,
            "only_first_right": int((hits[first] & ~hits[second]).sum()),
            "only_second_right": int((hits[second] & ~hits[first]).sum()),
        }
        for first, second in itertools.combinations(hits, 2)
    ]


def ranks(ranked: Sequence[Method], resampled: Resampled, protocol: Protocol) -> dict[str, Any]:
    """Return how stable the ranking is on validation and on test, and Kendall's tau between the two.

    Of a part: ``runs``, {run: its ``place``, and ``shares``, of the resamples in which it has place 1, 2, ...}, and
    ``kendall_tau`` of the places in a resample with those on the part itself, mean and interval.
    """
    metric = protocol.selection.metric
    validation = _places([method.validation.measure(names=[metric, "log_loss"]) for method in ranked], metric)[0]
    test = _places([method.test.measure(names=[metric, "log_loss"]) for method in ranked], metric)[0]
    between = float(rankings.kendall_tau(test[np.newaxis], validation)[0])
    found: dict[str, Any] = {"kendall_tau_of_validation_and_test": leaderboard.number(between)}
    for part, places in (("validation", validation), ("test", test)):
        drawn = _places([resampled[part][method.record.name] for method in ranked], metric)
        taus = rankings.kendall_tau(drawn, places)
        interval = statistics.resampled_interval(
            float(taus.mean()), taus, confidence=protocol.compare.confidence, units=protocol.units[part], limits=(-1, 1)
        )
        rows = zip(ranked, places, rankings.shares(drawn), strict=True)
        found[part] = {
            "kendall_tau": leaderboard.numbers(interval._asdict()),
            "runs": {
                method.record.name: {
                    "place": int(place),
                    "shares": [leaderboard.number(float(share)) for share in row],
                }
                for method, place, row in rows
            },
        }
    return found


def _places(measured: Sequence[Mapping[str, np.ndarray]], metric: str) -> np.ndarray:
    """Return the places int64 (samples, methods) of methods from {metric: (samples,)} of each."""
    values, losses = (np.stack([each[name] for each in measured], axis=1) for name in (metric, "log_loss"))
    return rankings.places(values, losses, lower_is_better=metric in metrics.LOWER_IS_BETTER)
