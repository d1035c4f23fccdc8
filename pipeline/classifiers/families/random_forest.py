"""Random forest: scikit-learn grows the trees, which are kept as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pydantic

from pipeline.classifiers.search import family, search_space
from pipeline.classifiers.solvers.trees import Tree, Trees

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.tree import DecisionTreeClassifier

MODEL_FILE = "model.npz"


class Grid(search_space.Grid):
    """Named as in scikit-learn. ``max_features``: the share that a split chooses from."""

    n_estimators: search_space.Values[Annotated[int, pydantic.Field(ge=1)]]
    max_features: search_space.Values[search_space.Fraction]
    min_samples_leaf: search_space.Values[Annotated[int, pydantic.Field(ge=1)]]


class Params(search_space.Search):
    grid: Grid


@dataclass(frozen=True)
class Model:
    """The mean of the trees' probabilities, whose leaves hold those of the k classes."""

    preparation: family.Preparation
    trees: Trees

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        # The trees were grown on float32, and their thresholds lie between such numbers.
        prepared = self.preparation.features(features).astype(np.float32)
        return self.preparation.probabilities(self.trees.sums(prepared) / len(self.trees.roots))

    def cost(self) -> tuple[int, int]:
        return self.trees.size(), 0

    def save(self, directory: Path) -> None:
        self.preparation.save(directory)
        self.trees.save(directory / MODEL_FILE)


class Fitter(family.Fitter):
    """Grows one forest for all numbers of trees: the first n trees of a forest are the forest of n trees.

    Tree by tree the threads share the work; none of them decides anything.
    """

    def __init__(self, task: family.Task, params: Params):
        import sklearn.ensemble

        super().__init__(task, params)
        self._sklearn = sklearn.ensemble
        self._forests: dict[tuple[Any, ...], RandomForestClassifier] = {}

    def fit(self, parameters: dict[str, Any], start: family.Model | None = None) -> family.Fit:
        prepared = self.task.prepared(parameters["scale"])
        forest = self._forest(parameters)
        count = parameters["n_estimators"]
        if len(getattr(forest, "estimators_", [])) < count:
            # Even equal weights change which images scikit-learn draws for a tree.
            balanced = parameters["class_weight"] is not None
            weights = family.sample_weights(prepared.labels, "balanced") if balanced else None
            forest.set_params(n_estimators=count).fit(prepared.features, prepared.labels, sample_weight=weights)
        model = Model(prepared.preparation, Trees.of([_tree(each) for each in forest.estimators_[:count]]))
        return family.Fit(model, model.predict_proba(self.task.validation[0]))

    def _forest(self, parameters: dict[str, Any]) -> RandomForestClassifier:
        key = tuple(value for name, value in sorted(parameters.items()) if name != "n_estimators")
        if key not in self._forests:
            self._forests[key] = self._sklearn.RandomForestClassifier(
                max_features=parameters["max_features"],
                min_samples_leaf=parameters["min_samples_leaf"],
                n_jobs=self.task.threads,
                random_state=self.task.seed,
                warm_start=True,
            )
        return self._forests[key]


def _tree(grown: DecisionTreeClassifier) -> Tree:
    nodes = grown.tree_
    shares = nodes.value[:, 0, :]
    return Tree(nodes.feature, nodes.threshold, nodes.children_left, nodes.children_right, shares)


def load(directory: Path) -> Model:
    return Model(family.Preparation.load(directory), Trees.load(directory / MODEL_FILE))
