"""How far a number can be trusted: intervals, paired tests, correction for many comparisons. Pure.

Images of one group are alike, so the unit of every interval and test is a whole group, or an image that has no group
(docs/decisions/0024 and 0026). Accuracies have score intervals. Every other metric is measured on bootstrap resamples,
without strata and the same for every method: so the difference of two methods has an interval of its own, much narrower
than the two intervals suggest.

An interval is honest about sampling the units of this split; it knows nothing of another split, seed or training run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
import pydantic

from pipeline.core.params import Block

# Of one array of weights: 8 MiB of float64, which the metrics copy a few times over.
ELEMENTS_AT_ONCE = 1 << 20
# Below, spreads are estimated from too few units to be trusted, whatever the interval says (docs/decisions/0026).
FEW_UNITS = 30
# 2 to the power of -50 is more than anybody reads of a bound.
HALVINGS = 50
# Sums in another order differ by less than this; differences of metrics that do so are ties.
ROUNDING = 1e-12

Measure = Callable[[np.ndarray], Mapping[str, np.ndarray]]


class CompareParams(Block):
    """How the comparison is made."""

    confidence: float = pydantic.Field(ge=0.5, lt=1)
    bootstrap_samples: int = pydantic.Field(ge=100)
    calibration_bins: int = pydantic.Field(ge=2)
    calibration: Literal["temperature", "isotonic"] | None
    ensemble: int | None = pydantic.Field(ge=1)


class Interval(NamedTuple):
    """A measured value and the bounds of its interval; NaN where it is undefined."""

    value: float
    low: float
    high: float


class PairedTest(NamedTuple):
    """How often exactly one of two methods is right about an image, and the exact p-value of that."""

    only_first_right: int
    only_second_right: int
    p: float


def units(n: int, groups: Sequence[str] = ()) -> np.ndarray:
    """Return int64 (n,), which of the units 0, 1, ... each of n images belongs to, in the order of the images.

    ``groups``: of every image. A group is one unit; an image whose group is "" is one by itself, as all are without
    ``groups``.
    """
    numbers: dict[str, int] = {}
    names = (name or f"\0{index}" for index, name in enumerate(groups or [""] * n))
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def resamples(
    n: int, *, samples: int, generator: np.random.Generator, groups: Sequence[str] = ()
) -> Iterator[np.ndarray]:
    """Yield bootstrap resamples of n images, float64 (s, n) at a time: how often each image was drawn.

    The s add up to ``samples``; how many come at a time depends on memory only and changes nothing. As many units are
    drawn as there are (see `units`), each with all its images (Field and Welsh 2007, "Bootstrapping clustered data"):
    without groups each row sums to n.
    """
    member = units(n, groups)
    count = int(member.max()) + 1
    at_once = max(1, ELEMENTS_AT_ONCE // n)
    for start in range(0, samples, at_once):
        rows = min(at_once, samples - start)
        drawn = generator.integers(0, count, size=(rows, count)) + np.arange(rows)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        yield times if count == n else times[:, member]


def bootstrap(
    measures: Mapping[str, Measure],
    n: int,
    *,
    samples: int,
    generator: np.random.Generator,
    groups: Sequence[str] = (),
) -> dict[str, dict[str, np.ndarray]]:
    """Return {method: {metric: float64 (samples,)}}, entry i of every array measured on the same i-th resample.

    A measure maps weights (s, n) to {metric: (s,)}. ``groups``: see `resamples`.
    """
    pieces: dict[str, dict[str, list[np.ndarray]]] = {method: {} for method in measures}
    for weights in resamples(n, samples=samples, generator=generator, groups=groups):
        for method, measure in measures.items():
            for metric, values in measure(weights).items():
                pieces[method].setdefault(metric, []).append(values)
    return {
        method: {metric: np.concatenate(values) for metric, values in by_metric.items()}
        for method, by_metric in pieces.items()
    }


def percentile_interval(value: float, resampled: np.ndarray, *, confidence: float) -> Interval:
    """Return ``value`` with the bounds that hold the central ``confidence`` share of ``resampled``.

    Efron and Tibshirani 1993, chapter 13. Resamples in which the metric is undefined (NaN: they drew one class only)
    are left out. The bounds of a metric that resampling biases, such as the expected calibration error, can miss the
    value.
    """
    defined = resampled[~np.isnan(resampled)]
    if not len(defined) or np.isnan(value):
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def resampled_interval(
    value: float, resampled: np.ndarray, *, confidence: float, units: int, limits: tuple[float, float] = (0.0, 1.0)
) -> Interval:
    """Return the percentile interval, each bound moved away from ``value`` as far as so few units ask for.

    The distances are multiplied by t(units - 1) / z * sqrt(units / (units - 1)): resamples of few units vary too
    little, and their spread is itself an estimate (after the expanded percentile interval of Hesterberg 2015, "What
    teachers should know about the bootstrap"). ``units``: how many were drawn. ``limits``: the smallest and the largest
    value that there is. Of a single unit the bounds are NaN.
    """
    _, low, high = percentile_interval(value, resampled, confidence=confidence)
    if units < 2 or math.isnan(low):
        return Interval(value, np.nan, np.nan)
    more = _student(units, confidence) / _normal(confidence) * math.sqrt(units / (units - 1)) - 1
    low, high = low - more * abs(low - value), high + more * abs(high - value)
    return Interval(value, max(limits[0], low), min(limits[1], high))


def accuracy_interval(right: np.ndarray, groups: Sequence[str] = (), *, confidence: float) -> Interval:
    """Return the interval of an accuracy: Wilson's (1927), or with groups the one of `_score_or_ratio`.

    With groups, its lower bound is never above that of a part in which every unit is right, units / (units + z^2), and
    its upper bound never below that of one in which every unit is wrong. The spread between the units that were drawn
    says nothing of others: without this rule, one mistake would promise more than none.

    ``right``: bool (n,), which images are classified right.
    """
    share, z = float(right.mean()), _normal(confidence)
    n = len(right)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    low, high = _score_or_ratio(right.astype(np.int64), groups, (middle - half, middle + half), confidence=confidence)
    count = int(units(n, groups).max()) + 1
    if count < n:
        low, high = min(low, count / (count + z * z)), max(high, z * z / (count + z * z))
    return Interval(share, max(min(low, share), 0.0), min(max(high, share), 1.0))


def accuracy_difference(
    first_right: np.ndarray, second_right: np.ndarray, groups: Sequence[str] = (), *, confidence: float
) -> Interval:
    """Return the interval of the second accuracy minus the first, of two methods on the same images, bool (n,) each.

    All differences that the score test of paired shares does not reject (Tango 1998), or with groups the interval of
    `_score_or_ratio`. Resampling would say that nothing can differ if no image of these does.
    """
    ahead = second_right.astype(np.int64) - first_right
    value = float(ahead.mean())
    score = _tango(float((ahead < 0).mean()), float((ahead > 0).mean()), len(ahead), confidence=confidence)
    low, high = _score_or_ratio(ahead, groups, score, confidence=confidence)
    return Interval(value, max(min(low, value), -1.0), min(max(high, value), 1.0))


def _score_or_ratio(
    values: np.ndarray, groups: Sequence[str], score: tuple[float, float], *, confidence: float
) -> tuple[float, float]:
    """Return the bounds of the mean of ``values``, int (n,): with groups, those of a ratio of two sums over units
    (Cochran 1977, section 6.3), by t(units - 1), and never narrower than ``score``, those of n independent images.

    Of a single unit the bounds are infinite: it tells of no spread.
    """
    member = units(len(values), groups)
    n, count = len(values), int(member.max()) + 1
    if count == n:
        return score
    if count == 1:
        return -math.inf, math.inf
    mean = float(values.mean())
    residuals = np.bincount(member, weights=values) - mean * np.bincount(member)
    half = _student(count, confidence) * math.sqrt(count / (count - 1) * float((residuals**2).sum())) / n
    return min(score[0], mean - half), max(score[1], mean + half)


def _tango(lost: float, won: float, trials: int, *, confidence: float) -> tuple[float, float]:
    """Return the bounds of won - lost, the shares of so many trials that only one of two methods gets right."""
    z, observed = _normal(confidence), won - lost

    def rejected(difference: float) -> bool:
        # The variance is that of the most likely shares which have this difference.
        b = -(won + lost) + (2 - won + lost) * difference
        c = -lost * difference * (1 - difference)
        share = (math.sqrt(max(b * b - 8 * c, 0.0)) - b) / 4
        return trials * (observed - difference) ** 2 > z * z * (2 * share + difference * (1 - difference))

    bounds = []
    for end in (-1.0, 1.0):
        inside, outside = observed, end
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
        bounds.append(inside)
    return bounds[0], bounds[1]


def _normal(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _student(units: int, confidence: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, units - 1))


def paired_test(first_right: np.ndarray, second_right: np.ndarray, groups: Sequence[str] = ()) -> PairedTest:
    """Return the exact two-sided test of two methods on the same images, bool (n,) each.

    Under the null hypothesis the two are exchangeable in every unit (see `units`): by how many of its images the first
    is ahead has either sign with chance one half. p is the chance that the sum over units is as far from 0 as the
    observed one (Fisher's randomization test of pairs). Without groups this is McNemar's exact test (Dietterich 1998).
    Methods that are never right alone differ in nothing: p is 1.
    """
    ahead = first_right.astype(np.int64) - second_right
    sums = np.zeros(len(ahead), np.int64)
    np.add.at(sums, units(len(ahead), groups), ahead)
    return PairedTest(int((ahead > 0).sum()), int((ahead < 0).sum()), _sign_flip(sums))


def _sign_flip(values: np.ndarray) -> float:
    """Return the chance that the sum of ``values``, int (k,), each with a random sign, is as far from 0 as theirs."""
    from scipy.stats import binom

    chances = np.ones(1)  # of a sum of -reach, ..., reach
    sizes, counts = np.unique(np.abs(values[values != 0]), return_counts=True)
    for size, count in zip(sizes, counts, strict=True):
        # The sum of `count` signs has the values -count, -count + 2, ..., count.
        spaced = np.zeros(2 * size * count + 1)
        spaced[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, spaced)
    reach = len(chances) // 2
    distance = np.abs(np.arange(-reach, reach + 1))
    return min(float(chances[distance >= abs(int(values.sum()))].sum()), 1.0)


def permutation_test(
    measure: Callable[[np.ndarray], np.ndarray],
    n: int,
    *,
    samples: int,
    generator: np.random.Generator,
    groups: Sequence[str] = (),
) -> float:
    """Return the two-sided p-value of a difference in any metric between two methods on the same n images.

    Under the null hypothesis the two are exchangeable in every unit (see `units`): ``samples`` times, all predictions
    of a unit change sides with chance one half. p is the share of differences as far from 0 as the observed one, itself
    among them (Phipson and Smyth 2010). Those that are undefined are left out; NaN if the observed one is.

    ``measure``: maps weights (s, 2n), of the first method's predictions and behind them the second's, to the metric,
    float64 (s,).
    """
    member = units(n, groups)
    count = int(member.max()) + 1

    def distance(changed: np.ndarray) -> np.ndarray:
        return np.abs(measure(np.hstack([changed, 1 - changed])) - measure(np.hstack([1 - changed, changed])))

    observed = distance(np.zeros((1, n)))[0]
    if np.isnan(observed):
        return math.nan
    as_far, defined = 1, 1
    at_once = max(1, ELEMENTS_AT_ONCE // (2 * n))
    for start in range(0, samples, at_once):
        drawn = generator.integers(0, 2, size=(min(at_once, samples - start), count))
        found = distance(drawn.astype(np.float64)[:, member])
        as_far += int((found >= observed - ROUNDING).sum())
        defined += int((~np.isnan(found)).sum())
    return as_far / defined


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the order received (Holm 1979): step down, never above 1.

    NaN, of a test that could not be made, stays so and does not count.
    """
    corrected = [math.nan] * len(p_values)
    largest, left = 0.0, int(np.count_nonzero(~np.isnan(p_values)))
    for index in np.argsort(p_values, kind="stable")[:left]:  # NaN comes last
        largest = max(largest, min(1.0, left * p_values[index]))
        corrected[index] = largest
        left -= 1
    return corrected
