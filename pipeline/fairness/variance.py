"""Where a difference of test accuracies comes from: split, seed, hyper-parameters. Pure.

A crossed design without repetition: every candidate is fitted with every seed on every split. The model has a random
effect for each factor and each set of factors; the effect of all factors together is not told from the rest.

Components are the analysis-of-variance estimators (Searle, Casella and McCulloch 1992, "Variance Components",
chapter 4): the expected mean square of a set A of factors is

    E[MS_A] = sum over sets B that contain A of  (product of the numbers of levels of factors outside B) * sigma^2_B,

which is solved from the largest set down. An estimate below 0 is shown as 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SPLIT_FACTOR, SEED_FACTOR, CANDIDATE_FACTOR = FACTORS = ("split", "seed", "hyper-parameters")
SEPARATOR = " x "


def components(values: np.ndarray, factors: Sequence[str] = FACTORS) -> dict[str, float]:
    """Return {set of factors: variance component, not below 0} of values with one axis a factor, one value a cell.

    A factor with a single level has no component, nor has a set that contains it: it is 0.
    """
    active = [axis for axis in range(values.ndim) if values.shape[axis] > 1]
    # Of constant values the differences are exactly 0, the rounded means are not.
    squares = _mean_squares(values - values.flat[0], active)
    estimates: dict[tuple[int, ...], float] = {}
    for axes in sorted(squares, key=len, reverse=True):
        above = [other for other in estimates if set(axes) < set(other)]
        explained = sum(_outside(values, other, active) * estimates[other] for other in above)
        estimates[axes] = (squares[axes] - explained) / _outside(values, axes, active)
    sets = [axes for size in range(1, values.ndim + 1) for axes in itertools.combinations(range(values.ndim), size)]
    return {SEPARATOR.join(factors[axis] for axis in axes): max(0.0, estimates.get(axes, 0.0)) for axes in sets}


def _mean_squares(values: np.ndarray, active: Sequence[int]) -> dict[tuple[int, ...], float]:
    """Return the mean square of every set of the factors ``active``."""
    found = {}
    for size in range(1, len(active) + 1):
        for axes in itertools.combinations(active, size):
            # Inclusion and exclusion: what the mean over all other factors leaves after every smaller set.
            effect = sum(
                (-1) ** (size - len(subset)) * _mean_but(values, subset)
                for count in range(size + 1)
                for subset in itertools.combinations(axes, count)
            )
            freedom = math.prod(values.shape[axis] - 1 for axis in axes)
            outside = _outside(values, axes, active)
            found[axes] = outside * float((effect**2).sum()) / freedom
    return found


def _mean_but(values: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Return the means over all axes but some, which are kept, the others with length 1."""
    others = tuple(axis for axis in range(values.ndim) if axis not in axes)
    return values.mean(axis=others, keepdims=True)


def _outside(values: np.ndarray, axes: Sequence[int], active: Sequence[int]) -> int:
    return math.prod(values.shape[axis] for axis in active if axis not in axes)


def shares(found: Mapping[str, float]) -> dict[str, float]:
    """Return each component's share of their sum; all NaN if nothing varies."""
    total = sum(found.values())
    return {name: value / total if total else math.nan for name, value in found.items()}


def summary(found: Mapping[str, float]) -> dict[str, Any]:
    """Return {set of factors: {sd, share}}."""
    of_all = shares(found)
    return {name: {"sd": math.sqrt(value), "share": of_all[name]} for name, value in found.items()}


def sampling_sd(accuracy: float, n: int) -> float:
    """Return the standard deviation of an accuracy on n test images that were drawn independently."""
    return math.sqrt(accuracy * (1 - accuracy) / n)


def agreement(validation: np.ndarray, test: np.ndarray) -> float:
    """Return Kendall's tau-b of candidates' scores on validation and on test; NaN where one of them never varies."""
    from scipy.stats import kendalltau

    if len(set(validation.tolist())) < 2 or len(set(test.tolist())) < 2:
        return math.nan
    return float(kendalltau(validation, test).statistic)
