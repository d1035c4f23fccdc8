"""How far a number can be trusted: bootstrap intervals, paired tests, correction for many comparisons. Pure.

Images are resampled as they are, without strata, and every method is measured on the same resamples. So the difference
of two methods has an interval of its own, much narrower than the two intervals suggest.

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


class Interval(NamedTuple):
    """A measured value and the bounds of its interval; NaN where it is undefined."""

    value: float
    low: float
    high: float


class PairedTest(NamedTuple):
    """How often exactly one of two methods is right about an image, and the exact McNemar p-value of that."""

    only_first_right: int
    only_second_right: int
    p: float


def resamples(n: int, *, samples: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield bootstrap resamples of n images, float64 (s, n) at a time: how often each image was drawn.

    The s add up to ``samples``; each row sums to n. How many come at a time depends on memory only and changes nothing.
    """
    at_once = max(1, ELEMENTS_AT_ONCE // n)
    for start in range(0, samples, at_once):
        count = min(at_once, samples - start)
        drawn = generator.integers(0, n, size=(count, n)) + np.arange(count)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)


def bootstrap(
    measures: Mapping[str, Measure], n: int, *, samples: int, generator: np.random.Generator
) -> dict[str, dict[str, np.ndarray]]:
    """Return {method: {metric: float64 (samples,)}}, entry i of every array measured on the same i-th resample.

    A measure maps weights (s, n) to {metric: (s,)}.
    """
    pieces: dict[str, dict[str, list[np.ndarray]]] = {method: {} for method in measures}
    for weights in resamples(n, samples=samples, generator=generator):
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


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> PairedTest:
    """Return the exact two-sided McNemar test of two methods on the same images, bool (n,) each.

    Under the null hypothesis each image on which exactly one is right favors either with chance one half (Dietterich
    1998). Methods that are never right alone differ in nothing: p is 1.
    """
    from scipy.stats import binomtest

    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    if only_first + only_second == 0:
        return PairedTest(0, 0, 1.0)
    return PairedTest(only_first, only_second, float(binomtest(only_first, only_first + only_second).pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the order received (Holm 1979): step down, never above 1."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
