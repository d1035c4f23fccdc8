"""How far a number can be trusted: bootstrap intervals, paired tests, correction for many comparisons. Pure.

Images are resampled as they are, without strata, and every method is measured on the same resamples. So the difference
of two methods has an interval of its own, much narrower than the two intervals suggest. Images of one group are alike:
whole groups are drawn, and a group takes sides in a paired test as one (docs/decisions/0024).

The percentile interval takes its bounds from the resampled values as they are (Efron and Tibshirani 1993, chapter 13).
It is honest about sampling the images of this split; it knows nothing of another split, seed or training run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pydantic

from pipeline.params import Block

# Of one array of weights: 8 MiB of float64, which the metrics copy a few times over.
ELEMENTS_AT_ONCE = 1 << 20

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

    Resamples in which the metric is undefined (NaN: they drew one class only) are left out. The bounds of a metric that
    resampling biases, such as the expected calibration error, can miss the value itself.
    """
    defined = resampled[~np.isnan(resampled)]
    if not len(defined) or np.isnan(value):
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def accuracy_interval(value: float, resampled: np.ndarray, *, confidence: float, units: int) -> Interval:
    """Return the percentile interval of an accuracy; of 0 or 1 that of the binomial (Clopper and Pearson 1934).

    Resampling images that are all right, or all wrong, would say that nothing else is possible. ``units``: how many are
    drawn, see `units`.
    """
    beyond = ((1 - confidence) / 2) ** (1 / units)
    if value == 1:
        return Interval(value, beyond, 1.0)
    if value == 0:
        return Interval(value, 0.0, 1 - beyond)
    return percentile_interval(value, resampled, confidence=confidence)


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


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the order received (Holm 1979): step down, never above 1."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
