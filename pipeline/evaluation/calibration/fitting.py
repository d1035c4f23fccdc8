"""Calibrators fitted to validation, pure.

What a calibrator does to the validation images themselves must be judged by `cross_fitted`: each image by a calibrator
that has not seen its label.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.core import seeds
from pipeline.evaluation import statistics
from pipeline.evaluation.calibration.calibrators import Calibrator, Isotonic, Kind, Temperature, logarithms, powers

FOLDS = 5
# Where validation has no mistake, or is right no more often than by chance, the loss has its minimum at 0 or infinity.
TEMPERATURES = (0.1, 10.0)


def fit(kind: Kind, probabilities: np.ndarray, labels: np.ndarray) -> Calibrator:
    """Return the calibrator that suits probabilities (n, classes) with labels int (n,); n may be 0.

    What the labels say nothing about is left as it is: everything if there is no image, with `Isotonic` a class that no
    image has or every image has.
    """
    return _fit_temperature(probabilities, labels) if kind == "temperature" else _fit_isotonic(probabilities, labels)


def folds(labels: np.ndarray, *, seed: int, groups: Sequence[str] = ()) -> np.ndarray:
    """Return the fold of each image, int (n,) in 0..`FOLDS`-1: classes are dealt out evenly, in an order drawn.

    ``groups``: see `statistics.units`. Units stay whole, and are dealt out by the class of their first image.
    """
    member = statistics.units(len(labels), groups)
    first = labels[np.unique(member, return_index=True)[1]]
    order = seeds.generator(seed, "calibration").permutation(len(first))
    order = order[np.argsort(first[order], kind="stable")]
    found = np.empty(len(first), dtype=np.int64)
    # On through all classes, so that small classes do not all begin in the first fold.
    found[order] = np.arange(len(first)) % FOLDS
    return found[member]


def can_fit(labels: np.ndarray, folds: np.ndarray, *, every_class: bool = False) -> bool:
    """Return whether the images outside of each fold tell of two classes, or ``every_class`` in ``labels``."""
    wanted = len(np.unique(labels)) if every_class else 2
    return all(len(np.unique(labels[folds != fold])) >= wanted for fold in np.unique(folds))


def cross_fitted(kind: Kind, probabilities: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return calibrated probabilities, float64 (n, classes): each fold's by a calibrator fitted on the other folds."""
    found = np.empty(probabilities.shape, dtype=np.float64)
    for fold in np.unique(folds):
        held = folds == fold
        found[held] = fit(kind, probabilities[~held], labels[~held]).apply(probabilities[held])
    return found


def _fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> Temperature:
    from scipy.optimize import brentq

    scores = logarithms(probabilities)
    true = np.take_along_axis(scores, labels[:, None], axis=1)
    # No temperature changes the loss of an image whose class was ruled out.
    counts = np.isfinite(true[:, 0])
    scores, true = scores[counts], true[counts]
    if not len(scores):
        return Temperature(1.0)
    finite = np.where(np.isfinite(scores), scores, 0)

    def slope(log_temperature: float) -> float:
        """Return the derivative of the log loss by 1 / temperature, which rises: the loss is convex in it."""
        found = powers(scores / np.exp(log_temperature))
        expected = (found * finite).sum(axis=1) / found.sum(axis=1)
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
