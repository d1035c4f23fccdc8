"""Linear machines under the squared hinge loss: each class against the rest, or the second of two against the first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.classifiers.solvers import newton

MAX_ITERATIONS = 100


@dataclass(frozen=True)
class Machine:
    """``weights`` float64 (width, columns) and ``intercepts`` (columns,); ``decisions`` (n, columns) of the training
    images, held out where asked; ``steps`` of Newton's method for the machine that all images train.
    """

    weights: np.ndarray
    intercepts: np.ndarray
    decisions: np.ndarray
    steps: int
    converged: bool


class SquaredHinge:
    """weight * max(0, 1 - sign * score)^2, as in LIBLINEAR. ``signs`` (n, columns) of -1 and 1, ``weights`` (n,)."""

    def __init__(self, signs: np.ndarray, weights: np.ndarray):
        self._signs, self._weights, self.columns = signs, weights[:, None], signs.shape[1]

    def at(self, scores: np.ndarray, rows: slice) -> tuple[float, np.ndarray, np.ndarray]:
        signs, weights = self._signs[rows], self._weights[rows]
        missing = np.maximum(0, 1 - signs * scores)
        return float((weights * missing**2).sum()), -2 * weights * signs * missing, 2 * weights * (missing > 0)

    def curvature_times(self, curvature: np.ndarray, scores: np.ndarray, rows: slice) -> np.ndarray:
        return curvature * scores

    def diagonal(self, curvature: np.ndarray, rows: slice) -> np.ndarray:
        return curvature


def train(
    solver: newton.Solver,
    labels: np.ndarray,
    weights: np.ndarray,
    held_out: list[np.ndarray],
    *,
    C: float,
    start: tuple[np.ndarray, np.ndarray] | None = None,
) -> Machine:
    """Train on all images from ``start`` (weights, intercepts), and from there once without each of ``held_out``.

    ``labels`` int (n,) in 0..k-1, ``weights`` (n,) of the images. Decisions on images that are held out come from the
    machine that did not see them; they weigh nothing there, so that no part of the features is copied.
    """
    k = int(labels.max()) + 1
    positive = labels[:, None] == np.arange(k) if k > 2 else labels[:, None] == 1
    signs = np.where(positive, 1.0, -1.0)

    def solve(weights: np.ndarray, start: tuple[np.ndarray, np.ndarray]) -> newton.Solution:
        return solver.minimize(SquaredHinge(signs, weights), *start, penalty=1 / C, max_steps=MAX_ITERATIONS)

    features = solver.features
    nothing = np.zeros((features.shape[1], signs.shape[1])), np.zeros(signs.shape[1])
    whole = solve(weights, nothing if start is None else start)
    decisions, converged = features @ whole.weights + whole.intercepts, whole.converged
    for held in held_out:
        without = weights.copy()
        without[held] = 0
        fold = solve(without, (whole.weights, whole.intercepts))
        decisions[held] = features[held] @ fold.weights + fold.intercepts
        converged = converged and fold.converged
    return Machine(whole.weights, whole.intercepts, decisions, whole.steps, converged)
