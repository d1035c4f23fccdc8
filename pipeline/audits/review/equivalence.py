"""Are two sets of predictions of the same images worth the same? By paired intervals of the differences in metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pydantic

from pipeline.core import seeds
from pipeline.core.params import Block
from pipeline.evaluation import metrics, statistics

# Means over images of how wrong a probability is. All other metrics are shares, from 0 to 1.
LOSSES = frozenset({"log_loss", "brier"})


class EquivalenceParams(Block):
    """Equivalent: the interval of the difference in a metric, replayed minus claimed, lies within -margin..margin.

    An interval that merely holds zero would call any two results equal as long as there are few images. ``margin`` is
    of shares: accuracy, areas under curves, F1, the calibration error. A loss has another scale: its margin is
    ``loss_margin`` x what predictions lose that give every class the same probability.
    """

    margin: float = pydantic.Field(gt=0, lt=1)
    loss_margin: float = pydantic.Field(gt=0, lt=1)
    confidence: float = pydantic.Field(ge=0.5, lt=1)
    bootstrap_samples: int = pydantic.Field(ge=100)


@dataclass(frozen=True)
class Difference:
    """How far one metric of the replayed predictions is from that of the claimed ones, on the same images.

    ``close``: every probability is within the tolerance, so nothing but ties and halves can move a metric.
    """

    metric: str
    claimed: float
    replayed: float
    low: float
    high: float
    margin: float
    close: bool = False

    @property
    def equivalent(self) -> bool:
        """Whether the whole interval lies within the margin; False where it is undefined."""
        return self.close or (-self.margin <= self.low and self.high <= self.margin)

    def __str__(self) -> str:
        difference = f"{self.replayed - self.claimed:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"
        beyond = "" if self.equivalent else f", not within ±{self.margin:.2g}"
        return f"{self.metric} {self.replayed:.4f} instead of {self.claimed:.4f}, difference {difference}{beyond}"


def differences(
    claimed: np.ndarray,
    replayed: np.ndarray,
    labels: np.ndarray,
    *,
    names: Iterable[str],
    positive: int | None,
    params: EquivalenceParams,
    groups: Sequence[str] = (),
    calibration_bins: int = 15,
    close: bool = False,
) -> dict[str, Difference]:
    """Return {metric: difference} of probabilities (n, classes) on the same n labelled images.

    Both are measured on the same resamples of the units (see `statistics.units`), but for accuracy: see
    `statistics.accuracy_difference`. A metric that is undefined on the labels is left out. Raises ValueError if the
    shapes differ.
    """
    if claimed.shape != replayed.shape:
        raise ValueError(f"predictions must have one shape, received {claimed.shape} and {replayed.shape}")
    names = tuple(names)
    uniform = np.full(claimed.shape, 1 / claimed.shape[1])
    sides = {
        side: metrics.Evaluation(probabilities, labels, positive=positive, calibration_bins=calibration_bins)
        for side, probabilities in (("claimed", claimed), ("replayed", replayed), ("uniform", uniform))
    }
    values = {side: evaluation.measure(names=names) for side, evaluation in sides.items()}
    drawn = _resampled(sides, groups, [name for name in names if name != "accuracy"], params)
    units = len(set(statistics.units(len(labels), groups)))
    found = {}
    for name in names:
        before, after, guessed = (float(values[side][name][0]) for side in sides)
        if math.isnan(after - before):
            continue
        if name == "accuracy":
            _, low, high = statistics.accuracy_difference(
                sides["claimed"].correct, sides["replayed"].correct, groups, confidence=params.confidence
            )
        else:
            largest = metrics.largest(name, claimed.shape[1])
            _, low, high = statistics.resampled_interval(
                after - before, drawn[name], confidence=params.confidence, units=units, limits=(-largest, largest)
            )
        margin = params.loss_margin * guessed if name in LOSSES else params.margin
        found[name] = Difference(name, before, after, low, high, margin, close)
    return found


def _resampled(
    sides: Mapping[str, metrics.Evaluation], groups: Sequence[str], names: list[str], params: EquivalenceParams
) -> dict[str, np.ndarray]:
    """Return {metric: replayed minus claimed on each resample of the units}."""
    if not names:
        return {}
    measures: Mapping[str, statistics.Measure] = {
        side: lambda weights, evaluation=sides[side]: evaluation.measure(weights, names)
        for side in ("claimed", "replayed")
    }
    found = statistics.bootstrap(
        measures,
        len(sides["claimed"]),
        samples=params.bootstrap_samples,
        generator=seeds.generator(0, "review"),
        groups=groups,
    )
    return {name: found["replayed"][name] - found["claimed"][name] for name in names}


def changed_predictions(claimed: np.ndarray, replayed: np.ndarray) -> int:
    """Return for how many images the most probable class is another one."""
    return int((claimed.argmax(axis=-1) != replayed.argmax(axis=-1)).sum())
