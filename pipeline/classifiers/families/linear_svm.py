"""Linear support vector machine: squared hinge loss, each class against the rest, probabilities by Platt's sigmoids.

The loss and the penalty are those of scikit-learn's ``LinearSVC``, but the intercept is not penalized. Balanced class
weights are weights of images, in every machine of a class against the rest: the same as ``LinearSVC.fit`` with such
``sample_weight``. With more than two classes ``LinearSVC(class_weight="balanced")`` is something else: only the one
class is weighted there, and all of the rest weigh 1. Newton's method along the path of ``C``, as for logistic
regression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.classifiers.search import family, search_space
from pipeline.classifiers.solvers import newton, sigmoid, squared_hinge
from pipeline.core import npz

MODEL_FILE = "model.npz"


class Grid(search_space.Grid):
    """``C``: inverse of the strength of the penalty."""

    C: search_space.Values[search_space.Positive]


class Params(search_space.Search):
    grid: Grid


@dataclass(frozen=True)
class Model:
    """``weights`` float64 (rows, width) and ``intercepts`` (rows,): a row a class, or one for the second of two;
    ``sigmoids`` (2, rows). Plain arrays, because a pickle runs code when it is opened.

    The class with the highest probability is the prediction; it can differ from the one with the highest decision.
    """

    preparation: family.Preparation
    weights: np.ndarray
    intercepts: np.ndarray
    sigmoids: np.ndarray

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        return self.probabilities(self.preparation.features(features))

    @family.one_blas_thread
    def probabilities(self, prepared: np.ndarray) -> np.ndarray:
        """Return what `predict_proba` does, from features that are prepared already."""
        decisions = prepared @ self.weights.T + self.intercepts
        return self.preparation.probabilities(sigmoid.probabilities(decisions, self.sigmoids))

    def cost(self) -> tuple[int, int]:
        return self.weights.size + self.intercepts.size + self.sigmoids.size, self.weights.size

    def save(self, directory: Path) -> None:
        self.preparation.save(directory)
        arrays = {"weights": self.weights, "intercepts": self.intercepts, "sigmoids": self.sigmoids}
        npz.save(directory / MODEL_FILE, **arrays)


class Fitter(family.Fitter):
    """Scales and centers once, begins at the nearest solution of the path, and each fold at the whole's solution.

    The sigmoids are learned from decisions on training images that were held out (`sigmoid.folds`); class weights count
    in them too. Not converged: out of iterations.
    """

    def __init__(self, task: family.Task, params: Params):
        # Before BLAS is limited to one thread, so that the limit reaches SciPy's copy of it.
        import sklearn.model_selection  # noqa: F401

        super().__init__(task, params)
        self._solvers: dict[str | None, tuple[newton.Solver, np.ndarray]] = {}

    def start(self, points: Sequence[dict[str, Any]], index: int) -> int | None:
        return newton.nearest_on_path(points, index)

    @family.one_blas_thread
    def fit(self, parameters: dict[str, Any], start: Model | None = None) -> family.Fit:
        prepared = self.task.prepared(parameters["scale"])
        if parameters["scale"] not in self._solvers:
            self._solvers[parameters["scale"]] = newton.centered(self.task, parameters["scale"])
        solver, mean = self._solvers[parameters["scale"]]
        weights = family.sample_weights(prepared.labels, parameters["class_weight"])
        held_out = sigmoid.folds(prepared.labels, seed=self.task.seed, groups=self.task.groups)
        begin = None if start is None else (start.weights.T, start.intercepts + start.weights @ mean)
        machine = squared_hinge.train(solver, prepared.labels, weights, held_out, C=parameters["C"], start=begin)
        found = np.ascontiguousarray(machine.weights.T)
        model = Model(
            prepared.preparation,
            weights=found,
            intercepts=machine.intercepts - found @ mean,
            sigmoids=sigmoid.fit(machine.decisions, prepared.labels, weights),
        )
        return family.Fit(
            model,
            model.probabilities(prepared.validation),
            converged=machine.converged,
            notes={"iterations": machine.steps, "folds": len(held_out)},
        )


def load(directory: Path) -> Model:
    names = dict.fromkeys(("weights", "intercepts", "sigmoids"), np.floating)
    return Model(family.Preparation.load(directory), **npz.load(directory / MODEL_FILE, **names))
