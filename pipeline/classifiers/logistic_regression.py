"""Logistic regression: scikit-learn, L-BFGS, L2 penalty; softmax over all classes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.classifiers import family, search

MODEL_FILE = "model.npz"
MAX_ITERATIONS = 1000


class Grid(search.Grid):
    """``C``: inverse of the strength of the penalty."""

    C: search.Values[search.Positive]


class Params(search.Search):
    grid: Grid


@dataclass(frozen=True)
class Model:
    """``weights`` float64 (rows, width) and ``intercepts`` (rows,): a row a class, or one for the second of two.

    Plain arrays, because a pickle ties the file to one version of scikit-learn and runs code when it is opened.
    """

    preparation: family.Preparation
    weights: np.ndarray
    intercepts: np.ndarray

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        from scipy.special import softmax

        logits = self.preparation.features(features) @ self.weights.T + self.intercepts
        if logits.shape[1] == 1:
            logits = np.hstack([np.zeros_like(logits), logits])
        return self.preparation.probabilities(softmax(logits, axis=1))

    def cost(self) -> tuple[int, int]:
        return self.weights.size + self.intercepts.size, self.weights.size

    def save(self, directory: Path) -> None:
        self.preparation.save(directory)
        np.savez(directory / MODEL_FILE, weights=self.weights, intercepts=self.intercepts)


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
    """Train one candidate; ``validation``, ``params`` and ``seed`` are not needed. Not converged: out of iterations."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    preparation = family.Preparation.learn(train, n_classes=n_classes, scale=parameters["scale"])
    features, labels = preparation.examples(train)
    weights = family.sample_weights(labels, parameters["class_weight"])
    # In float32 L-BFGS stalls before its tolerance when the penalty is weak.
    classifier = LogisticRegression(C=parameters["C"], max_iter=MAX_ITERATIONS)
    with threadpool_limits(threads), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        classifier.fit(features.astype(np.float64), labels, sample_weight=weights)
    return family.Fit(
        Model(preparation, classifier.coef_, classifier.intercept_),
        converged=not any(issubclass(warning.category, ConvergenceWarning) for warning in caught),
        notes={"iterations": int(classifier.n_iter_.max())},
    )


def load(directory: Path) -> Model:
    with np.load(directory / MODEL_FILE, allow_pickle=False) as arrays:
        return Model(family.Preparation.load(directory), arrays["weights"], arrays["intercepts"])
