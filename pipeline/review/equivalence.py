"""Are two sets of predictions of the same images worth the same? By the paired bootstrap of differences in metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pydantic

from pipeline import metrics, seeds, statistics
from pipeline.params import Block


class EquivalenceParams(Block):
    """Equivalent: the interval of the difference in a metric, replayed minus claimed, lies within -margin..margin.

    An interval that merely holds zero would call any two results equal as long as there are few images.
    """

    margin: float = pydantic.Field(gt=0, lt=1)
    confidence: float = pydantic.Field(ge=0.5, lt=1)
    bootstrap_samples: int = pydantic.Field(ge=100)


@dataclass(frozen=True)
class Difference:
    """How far one metric of the replayed predictions is from that of the claimed ones, on the same images."""

    metric: str
    claimed: float
    replayed: float
    low: float
    high: float

    def within(self, margin: float) -> bool:
        """Whether the whole interval lies within the margin; False where it is undefined."""
        return -margin <= self.low and self.high <= margin

    def __str__(self) -> str:
        difference = f"{self.replayed - self.claimed:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"
        return f"{self.metric} {self.replayed:.4f} instead of {self.claimed:.4f}, difference {difference}"


def differences(
    claimed: np.ndarray,
    replayed: np.ndarray,
    labels: np.ndarray,
    *,
    names: Iterable[str],
    positive: int | None,
    params: EquivalenceParams,
) -> dict[str, Difference]:
    """Return {metric: difference} of probabilities (n, classes) on the same n labelled images.

    Both are measured on the same resamples of the images. A metric that is undefined on the labels is left out. Raises
    ValueError if the shapes differ.
    """
    if claimed.shape != replayed.shape:
        raise ValueError(f"predictions must have one shape, received {claimed.shape} and {replayed.shape}")
    names = tuple(names)
    sides = {
        side: metrics.Evaluation(probabilities, labels, positive=positive)
        for side, probabilities in (("claimed", claimed), ("replayed", replayed))
    }
    values = {side: evaluation.measure(names=names) for side, evaluation in sides.items()}
    measures: Mapping[str, statistics.Measure] = {
        side: lambda weights, evaluation=evaluation: evaluation.measure(weights, names)
        for side, evaluation in sides.items()
    }
    resampled = statistics.bootstrap(
        measures, len(labels), samples=params.bootstrap_samples, generator=seeds.generator(0, "review")
    )
    found = {}
    for name in names:
        before, after = (float(values[side][name][0]) for side in sides)
        drawn = resampled["replayed"][name] - resampled["claimed"][name]
        interval = statistics.percentile_interval(after - before, drawn, confidence=params.confidence)
        if not math.isnan(interval.low):
            found[name] = Difference(name, before, after, interval.low, interval.high)
    return found


def changed_predictions(claimed: np.ndarray, replayed: np.ndarray) -> int:
    """Return for how many images the most probable class is another one."""
    return int((claimed.argmax(axis=-1) != replayed.argmax(axis=-1)).sum())
