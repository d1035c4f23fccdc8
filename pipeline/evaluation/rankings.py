"""Places of methods by their scores, and how stable they are from one resample to the next. Pure.

Places follow the rule of the leaderboard: the metric, then the log loss, then the order in which methods come.
"""

from __future__ import annotations

import numpy as np


def places(values: np.ndarray, losses: np.ndarray, *, lower_is_better: bool) -> np.ndarray:
    """Return the place of every method in every resample, int64 (samples, methods), 1 the best.

    ``values``: the metric that ranks, (samples, methods); undefined (NaN) is last. ``losses``: the log loss, which
    decides between equals. Every row of the result is a permutation of 1..methods.
    """
    keys = values if lower_is_better else -values
    columns = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    order = np.lexsort((columns, losses, keys), axis=-1)
    found = np.empty(values.shape, dtype=np.int64)
    np.put_along_axis(found, order, columns + 1, axis=1)
    return found


def shares(found: np.ndarray) -> np.ndarray:
    """Return float64 (methods, methods): in which share of the resamples a method (row) has a place (column)."""
    count = found.shape[1]
    return np.stack([(found == place).mean(axis=0) for place in range(1, count + 1)], axis=1)


def kendall_tau(found: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return Kendall's tau of every row of places (samples, methods) with the places ``reference`` (methods,).

    The share of pairs of methods in the same order minus the share in opposite order (Kendall 1938): 1 for the same
    ranking, -1 for the reverse one. NaN for a single method.
    """
    first, second = np.triu_indices(found.shape[1], k=1)
    if not len(first):
        return np.full(len(found), np.nan)
    same = np.sign(found[:, first] - found[:, second]) * np.sign(reference[first] - reference[second])
    return same.mean(axis=1)
