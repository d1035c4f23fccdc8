"""Gradient-boosted trees: scikit-learn's histogram ones, stopped early by the log loss on validation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic

from pipeline.classifiers.search import family, search_space
from pipeline.classifiers.solvers import boosting
from pipeline.classifiers.solvers.trees import Tree, Trees
from pipeline.console.errors import reading

MODEL_FILE = "model.npz"
BASELINE_FILE = "baseline.npy"
BINS = 255  # as many as scikit-learn makes


class Grid(search_space.Grid):
    """Named as in scikit-learn. ``max_features``: the share that a split chooses from."""

    max_leaf_nodes: search_space.Values[Annotated[int, pydantic.Field(ge=2)]]
    learning_rate: search_space.Values[search_space.Fraction]
    max_features: search_space.Values[search_space.Fraction]
    min_samples_leaf: search_space.Values[Annotated[int, pydantic.Field(ge=1)]]
    l2_regularization: search_space.Values[search_space.NotNegative]


class Params(boosting.Params):
    grid: Grid


@dataclass(frozen=True)
class Model:
    """``baseline`` float64 (columns,): scores before the first tree, a column a class, or one for the second of two.

    The trees of the columns take turns; their leaves hold one number.
    """

    preparation: family.Preparation
    baseline: np.ndarray
    trees: Trees

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        from scipy.special import expit, softmax

        prepared = self.preparation.features(features)
        scores = self.baseline + self.trees.sums(prepared, classes=len(self.baseline))
        return self.preparation.probabilities(expit(scores[:, 0]) if scores.shape[1] == 1 else softmax(scores, axis=1))

    def cost(self) -> tuple[int, int]:
        return self.trees.size() + self.baseline.size, 0

    def save(self, directory: Path) -> None:
        self.preparation.save(directory)
        self.trees.save(directory / MODEL_FILE)
        np.save(directory / BASELINE_FILE, self.baseline)


class Bins:
    """``edges``: float64 arrays, one a feature; value x is in bin i if edges[i - 1] < x <= edges[i].

    The bins of scikit-learn when images weigh the same. Weighted ones it would find one quantile at a time, which took
    three quarters of a fit; numbers of bins instead of features it takes as they are.
    """

    def __init__(self, features: np.ndarray):
        shares = np.linspace(0, 100, BINS + 1)[1:-1]
        self.edges = []
        for column in features.T:
            values = np.unique(column).astype(np.float64)
            if len(values) <= BINS:
                self.edges.append((values[:-1] + values[1:]) / 2)
            else:
                quantiles = np.percentile(column.astype(np.float64), shares, method="averaged_inverted_cdf")
                self.edges.append(np.unique(quantiles))

    def numbers(self, features: np.ndarray) -> np.ndarray:
        """Return the bin of every value, uint8 (n, width)."""
        result = np.empty(features.shape, dtype=np.uint8)
        for column, edges in enumerate(self.edges):
            result[:, column] = np.searchsorted(edges, features[:, column], side="left")
        return result

    def tree(self, nodes: np.ndarray) -> Tree:
        """Return a tree that scikit-learn grew on numbers of bins as one of the features."""
        feature = np.where(nodes["is_leaf"], -1, nodes["feature_idx"].astype(np.int64))
        # A threshold on numbers of bins lies between two of them.
        last = np.floor(nodes["num_threshold"]).astype(np.int64)
        pairs = zip(feature, last, strict=True)
        threshold = np.array([self.edges[each][number] if each >= 0 else 0.0 for each, number in pairs])
        # scikit-learn's are unsigned.
        left, right = nodes["left"].astype(np.int64), nodes["right"].astype(np.int64)
        return Tree(feature, threshold, left, right, nodes["value"][:, None])


class Fitter(family.Fitter):
    """Bins the features once."""

    def __init__(self, task: family.Task, params: Params):
        import sklearn.ensemble

        super().__init__(task, params)
        self._sklearn = sklearn.ensemble
        self._binned: dict[str | None, tuple[Bins, np.ndarray, family.Examples]] = {}

    def fit(self, parameters: dict[str, Any], start: family.Model | None = None) -> family.Fit:
        from threadpoolctl import threadpool_limits

        prepared = self.task.prepared(parameters["scale"])
        bins, training, (known, labels) = self._examples(prepared, parameters["scale"])
        booster = self._sklearn.HistGradientBoostingClassifier(
            max_iter=self.params.trees,
            max_leaf_nodes=parameters["max_leaf_nodes"],
            learning_rate=parameters["learning_rate"],
            max_features=parameters["max_features"],
            min_samples_leaf=parameters["min_samples_leaf"],
            l2_regularization=parameters["l2_regularization"],
            early_stopping=True,
            n_iter_no_change=self.params.patience,
            tol=0,
            random_state=self.task.seed,
        )
        weights = family.sample_weights(prepared.labels, parameters["class_weight"])
        # scikit-learn takes the number of threads from OpenMP alone.
        with threadpool_limits(self.task.threads, user_api="openmp"):
            booster.fit(training, prepared.labels, sample_weight=weights, X_val=known, y_val=labels)
        # The first score is of no tree at all, and scikit-learn keeps the trees without improvement, too.
        history = [-float(value) for value in booster.validation_score_[1:]]
        best = int(np.argmin(history)) + 1
        grown = [bins.tree(each.nodes) for iteration in booster._predictors[:best] for each in iteration]
        model = Model(prepared.preparation, booster._baseline_prediction[0], Trees.of(grown))
        return boosting.fit(model, self.task, self.params, history=history, best=best)

    def _examples(self, prepared: family.Prepared, scale: str | None) -> tuple[Bins, np.ndarray, family.Examples]:
        """Return the bins and, in numbers of bins, the training features and the labeled ones of validation."""
        if scale not in self._binned:
            bins = Bins(prepared.features)
            known, labels = prepared.preparation.examples(self.task.validation)
            self._binned[scale] = bins, bins.numbers(prepared.features), (bins.numbers(known), labels)
        return self._binned[scale]


def load(directory: Path) -> Model:
    with reading(directory / BASELINE_FILE):
        baseline = np.load(directory / BASELINE_FILE, allow_pickle=False)
    return Model(family.Preparation.load(directory), baseline, Trees.load(directory / MODEL_FILE))
