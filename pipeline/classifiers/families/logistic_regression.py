"""Logistic regression with an L2 penalty, softmax over all classes; Newton's method along the path of ``C``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.classifiers.search import family, search_space
from pipeline.classifiers.solvers import newton
from pipeline.core import npz

MODEL_FILE = "model.npz"
MAX_ITERATIONS = 100


class Grid(search_space.Grid):
    """``C``: inverse of the strength of the penalty."""

    C: search_space.Values[search_space.Positive]


class Params(search_space.Search):
    grid: Grid


@dataclass(frozen=True)
class Model:
    """``weights`` float64 (rows, width) and ``intercepts`` (rows,): a row a class, or one for the second of two.

    Plain arrays, because a pickle ties the file to one version of a library and runs code when it is opened.
    """

    preparation: family.Preparation
    weights: np.ndarray
    intercepts: np.ndarray

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        return self.probabilities(self.preparation.features(features))

    @family.one_blas_thread
    def probabilities(self, prepared: np.ndarray) -> np.ndarray:
        """Return what `predict_proba` does, from features that are prepared already."""
        from scipy.special import softmax

        scores = prepared @ self.weights.T + self.intercepts
        if scores.shape[1] == 1:
            scores = np.hstack([np.zeros_like(scores), scores])
        return self.preparation.probabilities(softmax(scores, axis=1))

    def cost(self) -> tuple[int, int]:
        return self.weights.size + self.intercepts.size, self.weights.size

    def save(self, directory: Path) -> None:
        self.preparation.save(directory)
        npz.save(directory / MODEL_FILE, weights=self.weights, intercepts=self.intercepts)


class Fitter(family.Fitter):
    """Scales and centers once, and begins at the nearest solution of the path. Not converged: out of iterations."""

    draws = False

    def __init__(self, task: family.Task, params: Params):
        super().__init__(task, params)
        self._solvers: dict[str | None, tuple[newton.Solver, np.ndarray]] = {}

    def start(self, points: Sequence[dict[str, Any]], index: int) -> int | None:
        return newton.nearest_on_path(points, index)

    def fit(self, parameters: dict[str, Any], start: Model | None = None) -> family.Fit:
        prepared = self.task.prepared(parameters["scale"])
        if parameters["scale"] not in self._solvers:
            self._solvers[parameters["scale"]] = newton.centered(self.task, parameters["scale"])
        solver, mean = self._solvers[parameters["scale"]]
        weights = family.sample_weights(prepared.labels, parameters["class_weight"])
        loss = Binary(prepared.labels, weights) if prepared.k == 2 else Softmax(prepared.labels, weights)
        if start is None:
            begin = np.zeros((len(mean), loss.columns)), np.zeros(loss.columns)
        else:
            begin = start.weights.T, start.intercepts + start.weights @ mean
        solution = solver.minimize(loss, *begin, penalty=1 / parameters["C"], max_steps=MAX_ITERATIONS)
        found = np.ascontiguousarray(solution.weights.T)
        model = Model(prepared.preparation, found, solution.intercepts - found @ mean)
        return family.Fit(
            model,
            model.probabilities(prepared.validation),
            converged=solution.converged,
            notes={"iterations": solution.steps},
        )


class Binary:
    """The logistic loss of the second of two classes: one column. ``labels`` int (n,) 0 or 1, ``weights`` (n,)."""

    columns = 1

    def __init__(self, labels: np.ndarray, weights: np.ndarray):
        from scipy.special import expit

        self._expit, self._labels, self._weights = expit, labels[:, None], weights[:, None]

    def at(self, scores: np.ndarray, rows: slice) -> tuple[float, np.ndarray, np.ndarray]:
        labels, weights = self._labels[rows], self._weights[rows]
        probabilities = self._expit(scores)
        value = float((weights * np.logaddexp(0, np.where(labels, -scores, scores))).sum())
        return value, weights * (probabilities - labels), weights * probabilities * (1 - probabilities)

    def curvature_times(self, curvature: np.ndarray, scores: np.ndarray, rows: slice) -> np.ndarray:
        return curvature * scores

    def diagonal(self, curvature: np.ndarray, rows: slice) -> np.ndarray:
        return curvature


class Softmax:
    """The cross-entropy of more than two classes. ``labels`` int (n,) in 0..k-1, ``weights`` (n,)."""

    def __init__(self, labels: np.ndarray, weights: np.ndarray):
        self.columns = int(labels.max()) + 1
        self._labels, self._weights = labels, weights[:, None]

    def at(self, scores: np.ndarray, rows: slice) -> tuple[float, np.ndarray, np.ndarray]:
        labels, weights = self._labels[rows, None], self._weights[rows]
        scores = scores - scores.max(axis=1, keepdims=True)
        probabilities = np.exp(scores)
        total = probabilities.sum(axis=1, keepdims=True)
        probabilities /= total
        value = float((weights * (np.log(total) - np.take_along_axis(scores, labels, axis=1))).sum())
        gradient = probabilities.copy()
        gradient[np.arange(len(gradient)), labels[:, 0]] -= 1
        return value, weights * gradient, probabilities

    def curvature_times(self, curvature: np.ndarray, scores: np.ndarray, rows: slice) -> np.ndarray:
        mean = (curvature * scores).sum(axis=1, keepdims=True)
        return self._weights[rows] * curvature * (scores - mean)

    def diagonal(self, curvature: np.ndarray, rows: slice) -> np.ndarray:
        return self._weights[rows] * curvature * (1 - curvature)


def load(directory: Path) -> Model:
    arrays = npz.load(directory / MODEL_FILE, weights=np.floating, intercepts=np.floating)
    return Model(family.Preparation.load(directory), **arrays)
