"""A Gaussian kernel's machine in time linear in the images: Nystroem's features and the squared hinge loss.

Kernel values with a few training images, drawn at random and made orthogonal, give features whose products approximate
the kernel (Williams and Seeger 2001); on them the machine is linear. Its weights are folded back into kernel values, so
predicting costs no more than with that many support vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.classifiers.search import family
from pipeline.classifiers.solvers import newton, squared_hinge
from pipeline.core import seeds

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
        self._solver = newton.Solver(task, mapped)

    def train(self, labels: np.ndarray, weights: np.ndarray, held_out: list[np.ndarray], *, C: float) -> Machine:
        """Train on all images, and once without each of ``held_out``, whose decisions are taken from there."""
        machine = squared_hinge.train(self._solver, labels, weights, held_out, C=C)
        return Machine(
            dual=(self._rotation @ machine.weights).T,
            intercepts=machine.intercepts - self._mean @ machine.weights,
            decisions=machine.decisions,
            converged=machine.converged,
        )


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return squared Euclidean distances, float64 (n, m), of the rows of float64 (n, width) and (m, width)."""
    distances = a @ b.T
    distances *= -2
    distances += np.einsum("ij,ij->i", a, a)[:, None]
    distances += np.einsum("ij,ij->i", b, b)
    return np.maximum(distances, 0, out=distances)
