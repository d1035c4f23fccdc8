"""Support vector machine with a Gaussian kernel: scikit-learn (LIBSVM), probabilities by Platt's sigmoids.

Training takes time between the square and the cube of the number of images. Above ``exact_up_to`` of them, a linear
machine on kernel values with ``components`` of the training images takes its place (`nystroem`), and every candidate's
name says so.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic

from pipeline.classifiers.search import family, search_space
from pipeline.classifiers.solvers import nystroem, sigmoid
from pipeline.console.progress import say
from pipeline.core import npz

MODEL_FILE = "model.npz"
TOLERANCE = 1e-3  # of LIBSVM's optimum, as in scikit-learn


def _gamma(value: Any) -> str | float:
    if value == "scale":
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise ValueError("'scale' or a number greater than 0")


class Grid(search_space.Grid):
    """``C``: inverse strength of the penalty. ``gamma``: of the kernel; scale is 1 / (width * variance)."""

    C: search_space.Values[search_space.Positive]
    gamma: search_space.Values[Annotated[Any, pydantic.PlainValidator(_gamma)]]


class Params(search_space.Search):
    """``exact_up_to``: training images; above, an approximation with ``components`` of them is fitted.

    An exact machine keeps two matrices of training images squared in memory, 16 bytes an entry.
    """

    exact_up_to: Annotated[int, pydantic.Field(ge=0)]
    components: Annotated[int, pydantic.Field(ge=1)]
    grid: Grid


@dataclass(frozen=True)
class Model:
    """``vectors`` float32 (m, width), not scaled. Exact: the support vectors, grouped by class, ``counts`` int (k,) a
    class, ``dual`` float64 (k - 1, m) and ``intercepts`` (pairs of classes,) as in LIBSVM. Approximate: the images that
    kernel values are taken with, ``counts`` empty, ``dual`` (k, m) and ``intercepts`` (k,) of each class against the
    rest, one row for the second of two. ``sigmoids``: (2, k), or (2, 1).

    Plain arrays, because a pickle ties the file to one version of scikit-learn and runs code when it is opened.

    The class with the highest probability is the prediction; it can differ from the sign of the decision function,
    which nothing here uses.
    """

    preparation: family.Preparation
    vectors: np.ndarray
    counts: np.ndarray
    dual: np.ndarray
    intercepts: np.ndarray
    gamma: np.ndarray
    sigmoids: np.ndarray

    @family.one_blas_thread
    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        vectors = self.preparation.features(self.vectors).astype(np.float64)
        results = [self._probabilities(features[rows], vectors) for rows in family.blocks(len(features))]
        return np.concatenate(results)

    def _probabilities(self, features: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        prepared = self.preparation.features(features).astype(np.float64)
        kernel = np.exp(-self.gamma * nystroem.squared_distances(prepared, vectors))
        decisions = decide(kernel, self.counts, self.dual, self.intercepts)
        return self.preparation.probabilities(sigmoid.probabilities(decisions, self.sigmoids))

    def cost(self) -> tuple[int, int]:
        parameters = self.vectors.size + self.dual.size + self.intercepts.size + self.sigmoids.size
        return parameters, self.vectors.size + self.dual.size

    def save(self, directory: Path) -> None:
        self.preparation.save(directory)
        arrays = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "preparation"}
        npz.save(directory / MODEL_FILE, **arrays)


def decide(kernel: np.ndarray, counts: np.ndarray, dual: np.ndarray, intercepts: np.ndarray) -> np.ndarray:
    """Return decisions float64 (n, k), or (n, 1) for two classes, from kernel values (n, m) and a `Model`'s arrays.

    An exact machine of more than two classes: votes of all pairs, ties broken by their summed decisions, as in
    scikit-learn's ``SVC(decision_function_shape="ovr")``.
    """
    k = len(counts)
    if k in (0, 2):
        return kernel @ dual.T + intercepts
    ends = np.cumsum(counts)
    of_class = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    votes, confidence = np.zeros((2, len(kernel), k))
    for pair, (i, j) in enumerate(itertools.combinations(range(k), 2)):
        decision = intercepts[pair] + kernel[:, of_class[i]] @ dual[j - 1, of_class[i]]
        decision += kernel[:, of_class[j]] @ dual[i, of_class[j]]
        votes[:, i] += decision >= 0
        votes[:, j] += decision < 0
        confidence[:, i] += decision
        confidence[:, j] -= decision
    return votes + confidence / (3 * (np.abs(confidence) + 1))


class Fitter(family.Fitter):
    """One matrix of distances for all candidates, one kernel for all ``C``, class weights and folds.

    The sigmoids are learned from decisions on training images that were held out (`sigmoid.folds`; the note ``folds``
    says how many times). Weights count in them too: balanced probabilities are those of classes that are equally
    frequent, as in the other families.
    """

    def __init__(self, task: family.Task, params: Params):
        # Before BLAS is limited to one thread, so that the limit reaches SciPy's copy of it.
        import sklearn.svm  # noqa: F401

        super().__init__(task, params)
        self._distances: dict[str | None, _Distances] = {}
        self._approximations: dict[tuple[str | None, float], nystroem.Approximation] = {}
        self._approximate = len(task.train[1]) > params.exact_up_to
        if self._approximate:
            components = min(params.components, len(task.train[1]))
            self.variant = f"Nystroem of {components} images"
            say(
                f"{len(task.train[1])} training images are more than exact_up_to ({params.exact_up_to}): the kernel is "
                f"approximated with {components} of them (Nystroem)"
            )

    @family.one_blas_thread
    def fit(self, parameters: dict[str, Any], start: family.Model | None = None) -> family.Fit:
        prepared = self.task.prepared(parameters["scale"])
        weights = family.sample_weights(prepared.labels, parameters["class_weight"])
        gamma = parameters["gamma"]
        if gamma == "scale":
            gamma = 1 / (prepared.features.shape[1] * float(prepared.features.var(dtype=np.float64)))
        held_out = sigmoid.folds(prepared.labels, seed=self.task.seed, groups=self.task.groups)
        if self._approximate:
            return self._fit_approximate(parameters, prepared, gamma, weights, held_out)
        return self._fit_exact(parameters, prepared, gamma, weights, held_out)

    def _fit_exact(
        self,
        parameters: dict[str, Any],
        prepared: family.Prepared,
        gamma: float,
        weights: np.ndarray,
        held_out: list[np.ndarray],
    ) -> family.Fit:
        scale, labels = parameters["scale"], prepared.labels
        if scale not in self._distances:
            self._distances[scale] = _Distances(self.task, prepared)
        kernel, of_validation = self._distances[scale].kernels(gamma)

        def machine(held: np.ndarray) -> _Machine:
            return _Machine.train(kernel, labels, weights, held, C=parameters["C"])

        nobody = np.empty(0, dtype=np.int64)
        whole, *without = self.task.map(machine, [nobody, *held_out])
        decisions = whole.decide(kernel)
        for held, each in zip(held_out, without, strict=True):
            decisions[held] = each.decide(kernel[held])
        model = Model(
            prepared.preparation,
            vectors=self.task.train[0][whole.support],
            counts=whole.counts,
            dual=whole.dual,
            intercepts=whole.intercepts,
            gamma=np.float64(gamma),
            sigmoids=sigmoid.fit(decisions, labels, weights),
        )
        probabilities = sigmoid.probabilities(whole.decide(of_validation), model.sigmoids)
        notes = {"support_vectors": len(whole.support), "folds": len(held_out)}
        return family.Fit(model, prepared.preparation.probabilities(probabilities), notes=notes)

    def _fit_approximate(
        self,
        parameters: dict[str, Any],
        prepared: family.Prepared,
        gamma: float,
        weights: np.ndarray,
        held_out: list[np.ndarray],
    ) -> family.Fit:
        key = parameters["scale"], gamma
        if key not in self._approximations:
            self._approximations = {
                key: nystroem.Approximation(
                    self.task, prepared.features, gamma=gamma, components=self.params.components
                )
            }
        approximation = self._approximations[key]
        machine = approximation.train(prepared.labels, weights, held_out, C=parameters["C"])
        model = Model(
            prepared.preparation,
            vectors=self.task.train[0][approximation.chosen],
            counts=np.empty(0, dtype=np.int32),
            dual=machine.dual,
            intercepts=machine.intercepts,
            gamma=np.float64(gamma),
            sigmoids=sigmoid.fit(machine.decisions, prepared.labels, weights),
        )
        notes = {"approximation": "nystroem", "components": len(approximation.chosen), "folds": len(held_out)}
        validation = model.predict_proba(self.task.validation[0])
        return family.Fit(model, validation, converged=machine.converged, notes=notes)


class _Distances:
    """Squared distances between the training images (n, n), and of the validation images from them (m, n)."""

    def __init__(self, task: family.Task, prepared: family.Prepared):
        self._map = task.map
        features = prepared.features.astype(np.float64, copy=False)
        validation = prepared.validation.astype(np.float64, copy=False)
        self._blocks = family.blocks(len(features))
        self._training = np.empty((len(features), len(features)))
        self._validation = np.empty((len(validation), len(features)))

        def fill(rows: slice) -> None:  # what lies right of the diagonal is copied below it
            distances = nystroem.squared_distances(features[rows], features[rows.start :])
            self._training[rows, rows.start :] = distances
            self._training[rows.start :, rows] = distances.T
            self._validation[:, rows] = nystroem.squared_distances(validation, features[rows])

        list(task.map(fill, self._blocks))
        self._gamma: float | None = None
        self._kernels = np.empty_like(self._training), np.empty_like(self._validation)

    def kernels(self, gamma: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the kernel between training images, and of validation images with them, until another is asked for."""
        if gamma != self._gamma:
            training, validation = self._kernels

            def fill(rows: slice) -> None:
                np.exp(-gamma * self._training[rows], out=training[rows])
                validation[:, rows] = np.exp(-gamma * self._validation[:, rows])

            list(self._map(fill, self._blocks))
            self._gamma = gamma
        return self._kernels


@dataclass(frozen=True)
class _Machine:
    """What LIBSVM found: ``support`` int (m,) are rows of the training images; the rest is as in `Model`."""

    support: np.ndarray
    counts: np.ndarray
    dual: np.ndarray
    intercepts: np.ndarray

    @classmethod
    def train(
        cls, kernel: np.ndarray, labels: np.ndarray, weights: np.ndarray, held: np.ndarray, *, C: float
    ) -> _Machine:
        """Train on all images but those ``held`` out: these weigh nothing, so that no part of the kernel is copied."""
        from sklearn import config_context
        from sklearn.svm import SVC

        weights = weights.copy()
        weights[held] = 0
        with config_context(assume_finite=True):
            machine = SVC(C=C, kernel="precomputed", tol=TOLERANCE).fit(kernel, labels, sample_weight=weights)
        # LIBSVM drops images without weight and counts those that remain.
        support = np.flatnonzero(weights)[machine.support_]
        return cls(support, machine.n_support_, machine.dual_coef_, machine.intercept_)

    def decide(self, kernel: np.ndarray) -> np.ndarray:
        """Return decisions, float64 (n, k) or (n, 1), from kernel values with all training images."""
        return decide(kernel[:, self.support], self.counts, self.dual, self.intercepts)


def load(directory: Path) -> Model:
    names = dict.fromkeys(("vectors", "dual", "intercepts", "gamma", "sigmoids"), np.floating)
    arrays = npz.load(directory / MODEL_FILE, counts=np.integer, **names)
    return Model(family.Preparation.load(directory), **arrays)
