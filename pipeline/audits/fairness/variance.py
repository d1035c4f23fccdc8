"""Where a difference of test accuracies comes from: split, seed, hyper-parameters. Pure.

A crossed design without repetition: every candidate is fitted with every seed on every split. The model has a random
effect for each factor and each set of factors; the effect of all factors together is not told from the rest.

Components are the analysis-of-variance estimators (Searle, Casella and McCulloch 1992, "Variance Components",
chapter 4): the expected mean square of a set A of factors is

    E[MS_A] = sum over sets B that contain A of  (product of the numbers of levels of factors outside B) * sigma^2_B,

which is solved from the largest set down. An estimate below 0 is shown as 0.

So each component is a sum of mean squares with factors c. Its interval is that of a chi-squared variable with the
degrees of freedom (sum c MS)^2 / sum((c MS)^2 / df) (Satterthwaite 1946, "An Approximate Distribution of Estimates of
Variance Components"): rough, above all where a component is small beside the rest, but it shows what two seeds cannot.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.evaluation import statistics

SPLIT_FACTOR, SEED_FACTOR, CANDIDATE_FACTOR = FACTORS = ("split", "seed", "hyper-parameters")
SEPARATOR = " x "


def components(values: np.ndarray, factors: Sequence[str] = FACTORS) -> dict[str, float]:
    """Return {set of factors: variance component, not below 0} of values with one axis a factor, one value a cell.

    A factor with a single level has no component, nor has a set that contains it: it is 0.
    """
    squares, weights = _solved(values)
    found = {axes: sum(weight * squares[which] for which, weight in of.items()) for axes, of in weights.items()}
    return {name: max(0.0, found.get(axes, 0.0)) for name, axes in _named_sets(values, factors).items()}


def intervals(
    values: np.ndarray, factors: Sequence[str] = FACTORS, *, confidence: float
) -> dict[str, tuple[float, float]]:
    """Return {set of factors: bounds of its component}; NaN where the estimate is 0, and for a bound at infinity."""
    from scipy.stats import chi2

    squares, weights = _solved(values)
    bounds = {}
    for axes, of in weights.items():
        terms = {which: weight * squares[which] for which, weight in of.items()}
        value = sum(terms.values())
        if value <= 0:
            continue
        freedom = value**2 / sum(term**2 / _freedom(values, which) for which, term in terms.items())
        quantiles = chi2.ppf([(1 + confidence) / 2, (1 - confidence) / 2], freedom)
        with np.errstate(divide="ignore"):
            low, high = freedom * value / quantiles
        bounds[axes] = float(low), float(high) if math.isfinite(high) else math.nan
    return {name: bounds.get(axes, (math.nan, math.nan)) for name, axes in _named_sets(values, factors).items()}


def _named_sets(values: np.ndarray, factors: Sequence[str]) -> dict[str, tuple[int, ...]]:
    sets = [axes for size in range(1, values.ndim + 1) for axes in itertools.combinations(range(values.ndim), size)]
    return {SEPARATOR.join(factors[axis] for axis in axes): axes for axes in sets}


def _solved(values: np.ndarray) -> tuple[dict[tuple[int, ...], float], dict[tuple[int, ...], dict]]:
    """Return the mean square of every set of factors, and what each component is made of: {set: {set: factor}}."""
    active = [axis for axis in range(values.ndim) if values.shape[axis] > 1]
    # Of constant values the differences are exactly 0, the rounded means are not.
    squares = _mean_squares(values - values.flat[0], active)
    weights: dict[tuple[int, ...], dict[tuple[int, ...], float]] = {}
    for axes in sorted(squares, key=len, reverse=True):
        outside = _outside(values, axes, active)
        found = {axes: 1 / outside}
        for other in [known for known in weights if set(axes) < set(known)]:
            share = _outside(values, other, active) / outside
            for which, weight in weights[other].items():
                found[which] = found.get(which, 0.0) - share * weight
        weights[axes] = found
    return squares, weights


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
            outside = _outside(values, axes, active)
            found[axes] = outside * float((effect**2).sum()) / _freedom(values, axes)
    return found


def _freedom(values: np.ndarray, axes: Sequence[int]) -> int:
    return math.prod(values.shape[axis] - 1 for axis in axes)


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


def summary(values: np.ndarray, factors: Sequence[str] = FACTORS, *, confidence: float) -> dict[str, Any]:
    """Return {set of factors: {sd, low, high, share}}; ``low`` and ``high`` are the bounds of the sd."""
    found = components(values, factors)
    of_all, bounds = shares(found), intervals(values, factors, confidence=confidence)
    return {
        name: {
            "sd": math.sqrt(value),
            "low": math.sqrt(bounds[name][0]),
            "high": math.sqrt(bounds[name][1]),
            "share": of_all[name],
        }
        for name, value in found.items()
    }


def sampling_variance(hits: np.ndarray, groups: Sequence[str], *, population: int) -> float:
    """Return the variance of an accuracy over draws of test images, or of their whole groups, where they have one.

    Of single images p (1 - p) / n; of groups that of a ratio (Cochran 1977, "Sampling Techniques", section 6.3). Times
    1 - n / ``population``: the n images, or groups, are drawn without replacement from so many (section 2.6).
    """
    member = statistics.units(len(hits), groups)
    drawn = int(member.max()) + 1
    with_replacement = float((np.bincount(member, weights=hits - hits.mean()) ** 2).sum()) / len(hits) ** 2
    return (1 - drawn / population) * with_replacement


def agreement(validation: np.ndarray, test: np.ndarray) -> float:
    """Return Kendall's tau-b of candidates' scores on validation and on test; NaN where one of them never varies."""
    from scipy.stats import kendalltau

    if len(set(validation.tolist())) < 2 or len(set(test.tolist())) < 2:
        return math.nan
    return float(kendalltau(validation, test).statistic)
