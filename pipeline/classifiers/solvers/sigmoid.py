"""Platt's sigmoids: decisions of a machine to probabilities, one sigmoid a class against the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation import statistics

FOLDS = 5
MAX_STEPS = 100


def folds(labels: np.ndarray, *, seed: int, groups: Sequence[str] = ()) -> list[np.ndarray]:
    """Return the training images to hold out, int (m,) a fold, so that sigmoids are learned from honest decisions.

    Up to `FOLDS`, stratified and shuffled, fewer if a class has fewer images. A class with a single image cannot be
    held out: then none are, and the sigmoids have to be learned from decisions on the images trained on.

    ``groups``: of every image, see `statistics.units`. A group is held out whole: a machine that was trained on images
    of a group is surer of its other images than of new ones. Then a class needs as many groups as there are folds. Only
    a group that has all images of a class is divided, image by image: without it, a machine would not know the class.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    units = statistics.units(len(labels), groups)
    if len(np.unique(units)) == len(labels):
        count = min(FOLDS, int(np.bincount(labels).min()))
        if count < 2:
            return []
        division = StratifiedKFold(count, shuffle=True, random_state=seed)
        return [held for _, held in division.split(np.zeros(len(labels)), labels)]
    units = _divisible(labels, units)
    k = labels.max() + 1
    most = min(FOLDS, *(len(np.unique(units[labels == c])) for c in range(k)))
    for count in range(most, 1, -1):
        division = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
        found = [held for _, held in division.split(np.zeros(len(labels)), labels, units) if len(held)]
        # Where groups hold images of several classes, those of a rare one may all have come into the same fold.
        if all(len(np.unique(np.delete(labels, held))) == k for held in found):
            return found
    return []


def _divisible(labels: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Return units int (n,) in which the images of a group that has all images of a class are each one by itself."""
    found = units.copy()
    for c in range(labels.max() + 1):
        (whole, *others) = np.unique(units[labels == c])
        if not others:
            images = np.flatnonzero(units == whole)
            found[images] = len(units) + images
    return found


def fit(decisions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return slopes and offsets, float64 (2, columns), of 1 / (1 + exp(slope * decision + offset)).

    ``decisions``: float64 (n, columns), a column a class, or one for the second of two, best of images that were held
    out; ``labels`` int (n,); ``weights`` (n,) of the images, as in scikit-learn's ``CalibratedClassifierCV``.
    """
    columns = decisions.shape[1]
    classes = [1] if columns == 1 else range(columns)
    pairs = [_fit_one(decisions[:, column], labels == c, weights) for column, c in enumerate(classes)]
    return np.array(pairs).T


def probabilities(decisions: np.ndarray, sigmoids: np.ndarray) -> np.ndarray:
    """Return float64 (n, k) that sum to 1, or (n,) of the second class if there is one column."""
    from scipy.special import expit

    slopes, offsets = sigmoids
    each = expit(-(slopes * decisions + offsets))
    if each.shape[1] == 1:
        return each[:, 0]
    total = each.sum(axis=1, keepdims=True)
    # Far from every class all sigmoids can underflow to 0: then nothing is known.
    uniform = np.full_like(each, 1 / each.shape[1])
    return np.divide(each, total, out=uniform, where=total > 0)


def _fit_one(decisions: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Newton's method with halved steps, on Platt's smoothed targets (Lin, Lin and Weng 2007)."""
    from scipy.special import expit

    of_positive, of_negative = weights[positive].sum(), weights[~positive].sum()
    targets = np.where(positive, (of_positive + 1) / (of_positive + 2), 1 / (of_negative + 2))
    scale = max(1.0, float(np.abs(decisions).max()))
    inputs = np.stack([decisions / scale, np.ones(len(decisions))])
    place = np.array([0.0, np.log((of_negative + 1) / (of_positive + 1))])

    def loss(place: np.ndarray) -> float:
        exponents = place @ inputs
        return float(weights @ (np.logaddexp(0, exponents) - (1 - targets) * exponents))

    value = loss(place)
    for _ in range(MAX_STEPS):
        estimates = expit(-(place @ inputs))
        gradient = inputs @ (weights * (targets - estimates))
        curvature = (inputs * (weights * estimates * (1 - estimates))) @ inputs.T + 1e-12 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        decrement = float(gradient @ step)
        if decrement < 1e-18 * max(1.0, value):
            break
        length = 1.0
        while loss(place - length * step) > value - 1e-4 * length * decrement + 1e-12 * value and length > 1e-10:
            length /= 2
        place = place - length * step
        value = loss(place)
    return float(place[0] / scale), float(place[1])
