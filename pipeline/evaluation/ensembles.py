"""An ensemble of methods, from their saved probabilities: a weighted mean, with weights that validation picks.

Forward selection with replacement (Caruana et al. 2004, "Ensemble selection from libraries of models"): the method
whose probabilities make the mean better by most is picked, again and again, so that a method's weight is the share of
picks that it got. What selection does to the images that picked must be judged by `cross_fitted`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.evaluation.metrics import SMALLEST_PROBABILITY

Choose = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Probabilities (methods, n, classes) and labels int (n,) to how often each method counts, (methods,)."""


def pick(probabilities: np.ndarray, labels: np.ndarray, *, picks: int) -> np.ndarray:
    """Return how often each method was picked, int64 (methods,), by the log loss on these images.

    ``probabilities``: (methods, n, classes), each row sums to 1. ``labels``: int (n,). The best of the means along the
    way is kept, so at most ``picks`` are made, and never an ensemble worse than its best method. Of equal methods, the
    first is picked.
    """
    # The mean of rows that sum to 1 does so, too: nothing but the probability of the true class enters the log loss.
    true = np.take_along_axis(probabilities.astype(np.float64), labels[None, :, None], axis=2)[:, :, 0]
    counts, total = np.zeros(len(true), dtype=np.int64), np.zeros(len(labels))
    best, lowest = counts, np.inf
    for size in range(1, picks + 1):
        losses = -np.log(np.clip((total + true) / size, SMALLEST_PROBABILITY, 1)).mean(axis=1)
        chosen = int(losses.argmin())
        counts[chosen] += 1
        total += true[chosen]
        if losses[chosen] < lowest:
            best, lowest = counts.copy(), losses[chosen]
    return best


def mean(probabilities: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return float64 (n, classes): the mean of (methods, n, classes), each method counted as often as it was picked."""
    return np.tensordot(counts / counts.sum(), probabilities.astype(np.float64), axes=1)


def cross_fitted(probabilities: np.ndarray, labels: np.ndarray, folds: np.ndarray, choose: Choose) -> np.ndarray:
    """Return float64 (n, classes): each fold's mean with the counts that are chosen on the other folds, int (n,)."""
    found = np.empty(probabilities.shape[1:], dtype=np.float64)
    for fold in np.unique(folds):
        held = folds == fold
        counts = choose(probabilities[:, ~held], labels[~held])
        found[held] = mean(probabilities[:, held], counts)
    return found
