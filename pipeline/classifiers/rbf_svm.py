"""Support vector machine with a Gaussian kernel: scikit-learn (LIBSVM), probabilities by Platt's sigmoids."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic

from pipeline.classifiers import family, search

MODEL_FILE = "model.npz"
FOLDS = 5
# Up to here all kernel values are computed once, as one matrix product (n * n float64, 800 MB), and shared by the fits
# of the folds; beyond, LIBSVM computes them as it needs them.
LARGEST_KERNEL = 10_000


def _gamma(value: Any) -> str | float:
    if value == "scale":
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise ValueError("'scale' or a number greater than 0")


class Grid(search.Grid):
    """``C``: inverse strength of the penalty. ``gamma``: of the kernel; scale is 1 / (width * variance)."""

    C: search.Values[search.Positive]
    gamma: search.Values[Annotated[Any, pydantic.PlainValidator(_gamma)]]


class Params(search.Search):
    grid: Grid


@dataclass(frozen=True)
class Model:
    """``vectors`` float32 (m, width), not scaled, grouped by class; ``counts`` int (k,) of them a class.

    ``dual`` float64 (k - 1, m) and ``intercepts`` (pairs of classes,) as in LIBSVM; ``sigmoids`` (2, k), or (2, 1) for
    the second of two classes. Plain arrays, because a pickle ties the file to one version of scikit-learn and runs
    code when it is opened.

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

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        from scipy.special import expit
        from sklearn.metrics.pairwise import rbf_kernel

        prepared = self.preparation.features(features).astype(np.float64)
        vectors = self.preparation.features(self.vectors).astype(np.float64)
        decisions = self._decisions(rbf_kernel(prepared, vectors, gamma=float(self.gamma)))
        slopes, offsets = self.sigmoids
        probabilities = expit(-(slopes * decisions + offsets))
        if len(self.counts) == 2:
            return self.preparation.probabilities(probabilities[:, 0])
        total = probabilities.sum(axis=1, keepdims=True)
        # Far from every class all sigmoids can underflow to 0: then nothing is known.
        uniform = np.full_like(probabilities, 1 / len(self.counts))
        return self.preparation.probabilities(np.divide(probabilities, total, out=uniform, where=total > 0))

    def cost(self) -> tuple[int, int]:
        parameters = self.vectors.size + self.dual.size + self.intercepts.size + self.sigmoids.size
        return parameters, self.vectors.size + self.dual.size

    def save(self, directory: Path) -> None:
        self.preparation.save(directory)
        arrays = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "preparation"}
        np.savez(directory / MODEL_FILE, **arrays)

    def _decisions(self, kernel: np.ndarray) -> np.ndarray:
        """Return float64 (n, k), or (n, 1) for two classes, from kernel values (n, m).

        More than two classes: votes of all pairs, ties broken by their summed decisions, as in scikit-learn's
        ``SVC(decision_function_shape="ovr")``.
        """
        k = len(self.counts)
        if k == 2:
            return kernel @ self.dual.T + self.intercepts
        ends = np.cumsum(self.counts)
        of_class = [slice(end - count, end) for end, count in zip(ends, self.counts, strict=True)]
        votes, confidence = np.zeros((2, len(kernel), k))
        for pair, (i, j) in enumerate(itertools.combinations(range(k), 2)):
            decision = self.intercepts[pair] + kernel[:, of_class[i]] @ self.dual[j - 1, of_class[i]]
            decision += kernel[:, of_class[j]] @ self.dual[i, of_class[j]]
            votes[:, i] += decision >= 0
            votes[:, j] += decision < 0
            confidence[:, i] += decision
            confidence[:, j] -= decision
        return votes + confidence / (3 * (np.abs(confidence) + 1))


def fit(
    parameters: dict[str, Any],
    train: family.Examples,
    validation: family.Examples,
    *,
    n_classes: int,
    params: Params,
    seed: int,
    threads: int,
) -> family.Fit:
    """Train one candidate; ``validation`` and ``params`` are not needed.

    The sigmoids are learned from decisions on training images that were held out, in up to five folds, fewer if a
    class has fewer images. A class with a single image cannot be held out; then they are learned from the decisions on
    the images trained on, and the note ``folds`` is 0. Weights count in the sigmoids too: balanced probabilities are
    those of classes that are equally frequent, as in the other families.
    """
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.metrics.pairwise import rbf_kernel
    from sklearn.model_selection import StratifiedKFold
    from sklearn.svm import SVC
    from threadpoolctl import threadpool_limits

    preparation = family.Preparation.learn(train, n_classes=n_classes, scale=parameters["scale"])
    features, labels = preparation.examples(train)
    weights = family.sample_weights(labels, parameters["class_weight"])
    everything = np.arange(len(labels))
    folds = min(FOLDS, int(np.bincount(labels).min()))
    cv = StratifiedKFold(folds, shuffle=True, random_state=seed) if folds > 1 else [(everything, everything)]
    features = features.astype(np.float64)
    gamma = parameters["gamma"]
    gamma = 1 / (features.shape[1] * features.var()) if gamma == "scale" else gamma
    with threadpool_limits(threads):
        small = len(features) <= LARGEST_KERNEL
        kernel, inputs = ("precomputed", rbf_kernel(features, gamma=gamma)) if small else ("rbf", features)
        machine = SVC(C=parameters["C"], kernel=kernel, gamma=gamma)
        calibrated = CalibratedClassifierCV(machine, method="sigmoid", cv=cv, ensemble=False)
        calibrated.fit(inputs, labels, sample_weight=weights)
    (fitted,) = calibrated.calibrated_classifiers_
    machine = fitted.estimator
    model = Model(
        preparation,
        vectors=train[0][machine.support_],
        counts=machine.n_support_,
        dual=machine.dual_coef_,
        intercepts=machine.intercept_,
        gamma=np.float64(gamma),
        sigmoids=np.array([[sigmoid.a_, sigmoid.b_] for sigmoid in fitted.calibrators]).T,
    )
    return family.Fit(model, notes={"support_vectors": len(machine.support_), "folds": folds if folds > 1 else 0})


def load(directory: Path) -> Model:
    with np.load(directory / MODEL_FILE, allow_pickle=False) as arrays:
        return Model(family.Preparation.load(directory), **arrays)
