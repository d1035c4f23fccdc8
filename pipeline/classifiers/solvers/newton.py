"""Newton's method for linear models: a convex loss of the scores plus an L2 penalty, solved tightly.

Minimizes over weights (width, columns) and intercepts (columns,), which are not penalized,

    sum over rows of loss(features @ weights + intercepts)  +  penalty / 2 * ||weights||^2

The objective and its gradient are computed in float64. Each step solves H d = -gradient by conjugate gradients (Nocedal
and Wright 2006, algorithm 7.1) in float32: a direction need not be exact, and a product with H, two passes over the
features, then takes a quarter of the time. When a step takes many of them, a Cholesky factor of H (with its curvature
averaged over the columns) preconditions the following ones; near the solution of a neighbor on a regularization path,
one factor lasts for the whole fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pipeline.classifiers.search import family

# Of sqrt(g' H^-1 g): the distance to the optimum in the norm of H, so scores of undecided images are this exact.
TOLERANCE = 1e-6
MAX_PRODUCTS = 300  # with H, in one step
FACTOR_AFTER = 50  # products in one step, after which a Cholesky factor is worth its cost
COLUMNS_AT_ONCE = 160  # of the matrix that is factored


class Loss(Protocol):
    """A convex loss of the scores of all rows; ``rows`` says which ones are asked about."""

    columns: int

    def at(self, scores: np.ndarray, rows: slice) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the sum of losses, its gradient (rows, columns), and what the other two need, an array of its own."""

    def curvature_times(self, curvature: np.ndarray, scores: np.ndarray, rows: slice) -> np.ndarray:
        """Return the product of the second derivative with a direction (rows, columns)."""

    def diagonal(self, curvature: np.ndarray, rows: slice) -> np.ndarray:
        """Return the diagonal of the second derivative, (rows, columns)."""


@dataclass(frozen=True)
class Solution:
    """``weights`` float64 (width, columns), ``intercepts`` (columns,), and the number of Newton steps."""

    weights: np.ndarray
    intercepts: np.ndarray
    steps: int
    converged: bool


class Solver:
    """Fits any number of models to the same ``features``, float64 (n, width) whose means are 0.

    The means must be 0 because intercepts are preconditioned apart from the weights.
    """

    def __init__(self, task: family.Task, features: np.ndarray):
        # Loaded before BLAS is limited to one thread, so that the limit reaches its copy of BLAS.
        from scipy.linalg import lapack

        self.lapack, self.map = lapack, task.map
        self.features, self.blocks = features, family.blocks(len(features))
        self.rough = features.astype(np.float32)

    @family.one_blas_thread
    def minimize(
        self, loss: Loss, weights: np.ndarray, intercepts: np.ndarray, *, penalty: float, max_steps: int
    ) -> Solution:
        """Return the minimum, found from a starting point; not converged: ``max_steps`` were not enough."""
        objective = _Objective(self, loss, penalty)
        point = objective.at(np.vstack([weights, intercepts]))
        inverse, products = objective.scaled_identity(point), 0
        for step in range(max_steps + 1):
            if products > FACTOR_AFTER:
                inverse = objective.factored(point)
            direction, decrement, products = objective.direction(point, inverse)
            if decrement <= TOLERANCE**2 or step == max_steps:
                converged = decrement <= TOLERANCE**2
                return Solution(point.place[:-1], point.place[-1], step, converged)
            point = objective.along(point, direction)
        raise AssertionError("unreachable")


def centered(task: family.Task, scale: str | None) -> tuple[Solver, np.ndarray]:
    """Return the solver for a task's features under one scaling, and what it takes off them, (width,): their means."""
    features = task.prepared(scale).features
    if scale:
        return Solver(task, features), np.zeros(features.shape[1])
    mean = features.mean(axis=0, dtype=np.float64)
    return Solver(task, features - mean), mean


def nearest_on_path(points: Sequence[dict[str, Any]], index: int) -> int | None:
    """Return the earlier candidate that is a good start: the one whose ``C`` is nearest, on a logarithmic scale.

    Only those with the same values of everything else count.
    """
    own = {**points[index], "C": None}
    same = [other for other in range(index) if {**points[other], "C": None} == own]
    return min(same, key=lambda other: abs(math.log(points[other]["C"] / points[index]["C"])), default=None)


@dataclass(frozen=True)
class _Point:
    """The objective at one ``place`` (width + 1, columns), intercepts in the last row."""

    place: np.ndarray
    value: float
    gradient: np.ndarray
    curvature: list[np.ndarray]


_Inverse = Callable[[np.ndarray], np.ndarray]


class _Objective:
    def __init__(self, solver: Solver, loss: Loss, penalty: float):
        self._solver, self._loss, self._penalty = solver, loss, penalty

    def at(self, place: np.ndarray) -> _Point:
        def one(rows: slice) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
            features = self._solver.features[rows]
            value, gradient, curvature = self._loss.at(features @ place[:-1] + place[-1], rows)
            return value, features.T @ gradient, gradient.sum(axis=0), curvature

        values, gradients, sums, curvature = zip(*self._solver.map(one, self._solver.blocks), strict=True)
        gradient = np.vstack([sum(gradients) + self._penalty * place[:-1], sum(sums)])
        return _Point(place, sum(values) + self._penalty / 2 * (place[:-1] ** 2).sum(), gradient, list(curvature))

    def direction(self, point: _Point, inverse: _Inverse) -> tuple[np.ndarray, float, int]:
        """Return Newton's direction, the squared norm of the gradient under ``inverse``, and the products it took."""
        curvature = [part.astype(np.float32) for part in point.curvature]
        residual = -point.gradient
        direction, search = np.zeros_like(residual), inverse(residual)
        first = now = float((residual * search).sum())
        # Ever more exact towards the end, as far as float32 goes, so that few steps are left there.
        enough = max(1e-6, min(0.01, first**0.5)) * first
        count = 0
        while now > max(enough, 0.1 * TOLERANCE**2) and count < MAX_PRODUCTS:
            product = self._product(curvature, search)
            bend = float((search * product).sum())
            if bend <= 0:  # nothing but rounding is left
                break
            direction += now / bend * search
            residual -= now / bend * product
            preconditioned = inverse(residual)
            before, now = now, float((residual * preconditioned).sum())
            search = preconditioned + now / before * search
            count += 1
        return direction, first, count

    def _product(self, curvature: list[np.ndarray], direction: np.ndarray) -> np.ndarray:
        """Return H times a direction."""
        weights, intercepts = direction[:-1].astype(np.float32), direction[-1].astype(np.float32)
        blocks = self._solver.blocks

        def one(number: int) -> tuple[np.ndarray, np.ndarray]:
            features = self._solver.rough[blocks[number]]
            scores = features @ weights + intercepts
            scores = self._loss.curvature_times(curvature[number], scores, blocks[number])
            return features.T @ scores.astype(np.float32), scores.sum(axis=0, dtype=np.float64)

        products, sums = zip(*self._solver.map(one, range(len(blocks))), strict=True)
        return np.vstack([sum(products) + self._penalty * direction[:-1], sum(sums)])

    def along(self, point: _Point, direction: np.ndarray) -> _Point:
        """Return the first of the steps 1, 1/2, 1/4, ... that lowers the objective as Armijo's rule asks."""
        slope = float((point.gradient * direction).sum())
        noise = 1e-12 * abs(point.value)
        for halvings in range(60):
            length = 0.5**halvings
            new = self.at(point.place + length * direction)
            if new.value <= point.value + 1e-4 * length * slope + noise:
                break
        return new

    def scaled_identity(self, point: _Point) -> _Inverse:
        # H is at least the penalty, so under this inverse the norm of the gradient is never too small.
        intercepts = self._intercepts(self._diagonals(point))
        return lambda vector: np.vstack([vector[:-1] / self._penalty, vector[-1] / intercepts])

    def factored(self, point: _Point) -> _Inverse:
        """Return the inverse of H with the curvature averaged over the columns."""
        diagonals = self._diagonals(point)
        mean = diagonals.mean(axis=1, keepdims=True).astype(np.float32)
        features = self._solver.rough
        width = features.shape[1]
        matrix = np.zeros((width, width), dtype=np.float32, order="F")

        def fill(first: int) -> None:  # the lower triangle is enough
            chosen = slice(first, first + COLUMNS_AT_ONCE)
            matrix[first:, chosen] = features[:, first:].T @ (mean * features[:, chosen])

        list(self._solver.map(fill, range(0, width, COLUMNS_AT_ONCE)))
        matrix[np.diag_indices(width)] += self._penalty
        factor, failed = self._solver.lapack.spotrf(matrix, lower=1, overwrite_a=1)
        if failed:  # the penalty is below the rounding of the rest
            return self.scaled_identity(point)
        intercepts, solve = self._intercepts(diagonals), self._solver.lapack.spotrs
        return lambda vector: np.vstack(
            [solve(factor, vector[:-1].astype(np.float32), lower=1)[0], vector[-1] / intercepts]
        )

    def _diagonals(self, point: _Point) -> np.ndarray:
        """Return the diagonal of the loss's curvature, (n, columns)."""
        pairs = zip(point.curvature, self._solver.blocks, strict=True)
        return np.concatenate([self._loss.diagonal(curvature, rows) for curvature, rows in pairs])

    @staticmethod
    def _intercepts(diagonals: np.ndarray) -> np.ndarray:
        return np.maximum(diagonals.sum(axis=0), 1e-12)
