"""Make probabilities mean what they say, by what validation saw; pure, without a library where they are applied.

A calibrator is fitted on the validation predictions of a method's selected candidate and maps any row of class
probabilities to another. What it does to validation itself must be judged by `cross_fitted`: each image by a
calibrator that has not seen its label.

Calibrated probabilities are float64: in float32, rounding could make two classes equal that were not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline import seeds

Kind = Literal["temperature", "isotonic"]

FOLDS = 5
# Where validation has no mistake, or is right no more often than by chance, the loss has its minimum at 0 or infinity.
TEMPERATURES = (0.1, 10.0)


@dataclass(frozen=True)
class Temperature:
    """All log probabilities divided by one number (Guo et al. 2017, "On Calibration of Modern Neural Networks").

    Above 1 it makes predictions less sure. The order of the classes stays, and a probability of exactly 0 stays 0.
    """

    temperature: float

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Return float64 (n, classes) for probabilities (n, classes)."""
        powers = _softmax(_logarithms(probabilities) / self.temperature)
        return powers / powers.sum(axis=1, keepdims=True)

    def describe(self) -> dict[str, Any]:
        return {"kind": "temperature", "temperature": self.temperature}


@dataclass(frozen=True)
class Isotonic:
    """A rising step-like map for each class against the rest, then rows divided by their sum (Zadrozny and Elkan 2002).

    ``maps``: for each class its knots, float64 (2, m): probabilities and what they become, linear between two knots and
    level outside. None leaves the class's probabilities as they are. With two classes there is one map, of the second.
    A row that becomes 0 for all classes stays what it was.
    """

    maps: tuple[np.ndarray | None, ...]

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Return float64 (n, classes) for probabilities (n, classes)."""
        before = probabilities.astype(np.float64)
        if len(self.maps) == 1:
            second = _mapped(before[:, 1], self.maps[0])
            return np.stack([1 - second, second], axis=1)
        after = np.stack([_mapped(before[:, column], knots) for column, knots in enumerate(self.maps)], axis=1)
        total = after.sum(axis=1, keepdims=True)
        return np.divide(after, total, out=before.copy(), where=total > 0)

    def describe(self) -> dict[str, Any]:
        maps = [None if knots is None else {"from": knots[0].tolist(), "to": knots[1].tolist()} for knots in self.maps]
        return {"kind": "isotonic", "maps": maps}


Calibrator = Temperature | Isotonic


def fit(kind: Kind, probabilities: np.ndarray, labels: np.ndarray) -> Calibrator:
    """Return the calibrator that suits probabilities (n, classes) with labels int (n,); n may be 0.

    What the labels say nothing about is left as it is: everything if there is no image, with `Isotonic` a class that no
    image has or every image has.
    """
    return _fit_temperature(probabilities, labels) if kind == "temperature" else _fit_isotonic(probabilities, labels)


def folds(labels: np.ndarray, *, seed: int) -> np.ndarray:
    """Return the fold of each image, int (n,) in 0..`FOLDS`-1: classes are dealt out evenly, in an order drawn."""
    order = seeds.generator(seed, "calibration").permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    found = np.empty(len(labels), dtype=np.int64)
    # On through all classes, so that small classes do not all begin in the first fold.
    found[order] = np.arange(len(labels)) % FOLDS
    return found


def cross_fitted(kind: Kind, probabilities: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return calibrated probabilities, float64 (n, classes): each fold's by a calibrator fitted on the other folds."""
    found = np.empty(probabilities.shape, dtype=np.float64)
    for fold in np.unique(folds):
        held = folds == fold
        found[held] = fit(kind, probabilities[~held], labels[~held]).apply(probabilities[held])
    return found


def from_description(description: Mapping[str, Any]) -> Calibrator:
    """Return the calibrator that `describe` described, which holds all its numbers. Raises ValueError for another."""
    if description["kind"] == "temperature":
        return Temperature(float(description["temperature"]))
    if description["kind"] == "isotonic":
        maps = description["maps"]
        return Isotonic(tuple(None if knots is None else np.array([knots["from"], knots["to"]]) for knots in maps))
    raise ValueError(f"kind must be temperature or isotonic, received {description['kind']!r}")


def in_words(description: Mapping[str, Any]) -> str:
    """Return a calibrator's name as a table or a console shows it."""
    if description["kind"] == "temperature":
        return f"temperature {description['temperature']:.3g}"
    return description["kind"]


def _fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> Temperature:
    from scipy.optimize import brentq

    scores = _logarithms(probabilities)
    true = np.take_along_axis(scores, labels[:, None], axis=1)
    # No temperature changes the loss of an image whose class was ruled out.
    counts = np.isfinite(true[:, 0])
    scores, true = scores[counts], true[counts]
    if not len(scores):
        return Temperature(1.0)
    finite = np.where(np.isfinite(scores), scores, 0)

    def slope(log_temperature: float) -> float:
        """Return the derivative of the log loss by 1 / temperature, which rises: the loss is convex in it."""
        powers = _softmax(scores / np.exp(log_temperature))
        expected = (powers * finite).sum(axis=1) / powers.sum(axis=1)
        return float(np.mean(expected - true[:, 0]))

    low, high = np.log(TEMPERATURES)
    if slope(low) <= 0:
        best = low
    elif slope(high) >= 0:
        best = high
    else:
        best = brentq(slope, low, high, xtol=1e-9)
    return Temperature(float(f"{np.exp(best):.6g}"))


def _fit_isotonic(probabilities: np.ndarray, labels: np.ndarray) -> Isotonic:
    columns: Sequence[int] = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    return Isotonic(tuple(_knots(probabilities[:, column], labels == column) for column in columns))


def _knots(scores: np.ndarray, is_class: np.ndarray) -> np.ndarray | None:
    if not is_class.any() or is_class.all():
        return None
    from sklearn.isotonic import IsotonicRegression

    regression = IsotonicRegression(y_min=0, y_max=1, increasing=True)
    regression.fit(scores.astype(np.float64), is_class.astype(np.float64))
    return np.stack([regression.X_thresholds_, regression.y_thresholds_])


def _mapped(scores: np.ndarray, knots: np.ndarray | None) -> np.ndarray:
    return scores if knots is None else np.interp(scores, *knots)


def _logarithms(probabilities: np.ndarray) -> np.ndarray:
    """Return float64 logarithms, minus infinity where a probability is 0."""
    values = probabilities.astype(np.float64)
    return np.log(values, out=np.full_like(values, -np.inf), where=values > 0)


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Return exponentials in proportion to the softmax of each row, the largest of them 1."""
    return np.exp(scores - scores.max(axis=1, keepdims=True))
