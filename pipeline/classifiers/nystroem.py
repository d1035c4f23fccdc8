"""A Gaussian kernel's machine in time linear in the images: Nystroem's features and the squared hinge loss.

Kernel values with a few training images, drawn at random and made orthogonal, give features whose products approximate
the kernel (Williams and Seeger 2001); on them the machine is linear. Its weights are folded back into kernel values, so
predicting costs no more than with that many support vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline import seeds
from pipeline.classifiers import family, newton

MAX_ITERATIONS = 100
SMALLEST_EIGENVALUE = 1e-10  # of the largest; what lies below is rounding


@dataclass(frozen=True)
class Machine:
    """``dual`` float64 (columns, components) and ``intercepts`` (columns,) of kernel values; a column a class against
    the rest, or one for the second of two. ``decisions``: (n, columns) of the training images, held out where asked.
    """

    dual: np.ndarray
    intercepts: np.ndarray
    decisions: np.ndarray
    converged: bool


class Approximation:
    """``chosen``: int (components,), the training images that kernel values are taken with, all if there are fewer.

    ``features``: prepared ones of the training images, (n, width).
    """

    def __init__(self, task: family.Task, features: np.ndarray, *, gamma: float, components: int):
        n = len(features)
        draw = seeds.generator(task.seed, "nystroem")
        self.chosen = np.sort(draw.choice(n, size=min(components, n), replace=False))
        chosen = features[self.chosen].astype(np.float64)
        values, vectors = np.linalg.eigh(np.exp(-gamma * squared_distances(chosen, chosen)))
        kept = values > SMALLEST_EIGENVALUE * values[-1]
        self._rotation = vectors[:, kept] / np.sqrt(values[kept])
        mapped = np.empty((n, self._rotation.shape[1]))

        def fill(rows: slice) -> None:
            distances = squared_distances(features[rows].astype(np.float64, copy=False), chosen)
            mapped[rows] = np.exp(-gamma * distances) @ self._rotation

        list(task.map(fill, family.blocks(n)))
        self._mean = mapped.mean(axis=0)
        mapped -= self._mean
        self._mapped, self._solver = mapped, newton.Solver(task, mapped)

    def train(
        self, labels: np.ndarray, weights: np.ndarray, held_out: list[np.ndarray], *, C: float
    ) -> Machine:
        """Train on all images, and once without each of ``held_out``, whose decisions are taken from there."""
        k = int(labels.max()) + 1
        positive = labels[:, None] == np.arange(k) if k > 2 else labels[:, None] == 1
        signs = np.where(positive, 1.0, -1.0)
        nothing = np.zeros((self._mapped.shape[1], signs.shape[1])), np.zeros(signs.shape[1])
        whole = self._solve(signs, weights, *nothing, C=C)
        decisions, converged = self._mapped @ whole.weights + whole.intercepts, whole.converged
        for held in held_out:
            without = weights.copy()
            without[held] = 0
            fold = self._solve(signs, without, whole.weights, whole.intercepts, C=C)
            decisions[held] = self._mapped[held] @ fold.weights + fold.intercepts
            converged = converged and fold.converged
        return Machine(
            dual=(self._rotation @ whole.weights).T,
            intercepts=whole.intercepts - self._mean @ whole.weights,
            decisions=decisions,
            converged=converged,
        )

    def _solve(
        self, signs: np.ndarray, weights: np.ndarray, start: np.ndarray, intercepts: np.ndarray, *, C: float
    ) -> newton.Solution:
        loss = SquaredHinge(signs, weights)
        return self._solver.minimize(loss, start, intercepts, penalty=1 / C, max_steps=MAX_ITERATIONS)


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


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return squared Euclidean distances, float64 (n, m), of the rows of float64 (n, width) and (m, width)."""
    distances = a @ b.T
    distances *= -2
    distances += np.einsum("ij,ij->i", a, a)[:, None]
    distances += np.einsum("ij,ij->i", b, b)
    return np.maximum(distances, 0, out=distances)
