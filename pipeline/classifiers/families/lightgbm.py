"""Gradient-boosted trees: LightGBM, stopped early by the log loss on validation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pydantic

from pipeline.classifiers.search import family, search_space
from pipeline.classifiers.solvers import boosting
from pipeline.console.errors import reading

if TYPE_CHECKING:
    import lightgbm

MODEL_FILE = "model.txt"


class Grid(search_space.Grid):
    """Named as in LightGBM."""

    num_leaves: search_space.Values[Annotated[int, pydantic.Field(ge=2, le=131072)]]
    learning_rate: search_space.Values[search_space.Fraction]
    feature_fraction: search_space.Values[search_space.Fraction]
    min_data_in_leaf: search_space.Values[Annotated[int, pydantic.Field(ge=1, le=2**31 - 1)]]


class Params(boosting.Params):
    grid: Grid


@dataclass(frozen=True)
class Model:
    preparation: family.Preparation
    booster: lightgbm.Booster

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        return self.preparation.probabilities(self.booster.predict(self.preparation.features(features)))

    def cost(self) -> tuple[int, int]:
        # A tree with n leaves has n - 1 splits.
        leaves = re.findall(r"^num_leaves=(\d+)$", self.booster.model_to_string(), flags=re.MULTILINE)
        return sum(2 * int(count) - 1 for count in leaves), 0

    def save(self, directory: Path) -> None:
        self.preparation.save(directory)
        (directory / MODEL_FILE).write_text(self.booster.model_to_string(), encoding="utf-8", newline="\n")


class Fitter(family.Fitter):
    """Bins the features once."""

    def __init__(self, task: family.Task, params: Params):
        import lightgbm

        super().__init__(task, params)
        self._lightgbm = lightgbm
        self._binned: dict[tuple[str | None, str | None, int], tuple[lightgbm.Dataset, lightgbm.Dataset]] = {}

    def fit(self, parameters: dict[str, Any], start: family.Model | None = None) -> family.Fit:
        prepared = self.task.prepared(parameters["scale"])
        loss = "binary_logloss" if prepared.k == 2 else "multi_logloss"
        settings = {
            "objective": "binary" if prepared.k == 2 else "multiclass",
            "num_class": 1 if prepared.k == 2 else prepared.k,
            "metric": loss,
            "num_leaves": parameters["num_leaves"],
            "learning_rate": parameters["learning_rate"],
            "feature_fraction": parameters["feature_fraction"],
            **self._shared(parameters),
        }
        training, validation = self._datasets(prepared, parameters)
        evaluated: dict[str, dict[str, list[float]]] = {}
        booster = self._lightgbm.train(
            settings,
            training,
            num_boost_round=self.params.trees,
            valid_sets=[validation],
            valid_names=["validation"],
            callbacks=[
                self._lightgbm.early_stopping(self.params.patience, verbose=False),
                self._lightgbm.record_evaluation(evaluated),
            ],
        )
        history = evaluated["validation"][loss]
        best = booster.best_iteration
        # The number of threads is a property of the machine, not of the model.
        text = re.sub(r"\[num_threads: \d+\]", "[num_threads: 0]", booster.model_to_string(num_iteration=best))
        model = Model(prepared.preparation, self._lightgbm.Booster(model_str=text))
        return boosting.fit(model, self.task, self.params, history=history, best=best)

    def _shared(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the settings that binning looks at, and those that are the same for all candidates."""
        return {
            # LightGBM leaves out the features that no split of so many images can use.
            "min_data_in_leaf": parameters["min_data_in_leaf"],
            "seed": self.task.seed % 2**31,  # LightGBM reads it as a signed 32-bit number
            "num_threads": self.task.threads,
            "deterministic": True,
            # Else the layout is chosen by a timing. This is the faster one for as many features as networks have.
            "force_col_wise": True,
            "verbosity": -1,
        }

    def _datasets(
        self, prepared: family.Prepared, parameters: dict[str, Any]
    ) -> tuple[lightgbm.Dataset, lightgbm.Dataset]:
        # Apart for each class weight, because a data set that had weights cannot be given ones without effect.
        key = parameters["scale"], parameters["class_weight"], parameters["min_data_in_leaf"]
        if key not in self._binned:
            settings = self._shared(parameters)
            weights = family.sample_weights(prepared.labels, parameters["class_weight"])
            training = self._lightgbm.Dataset(prepared.features, prepared.labels, weight=weights, params=settings)
            known = prepared.preparation.examples(self.task.validation)
            validation = training.create_valid(*known, params=settings)
            self._binned[key] = training.construct(), validation.construct()
        return self._binned[key]


def load(directory: Path) -> Model:
    import lightgbm

    with reading(directory / MODEL_FILE):
        text = (directory / MODEL_FILE).read_text(encoding="utf-8")
        if "\nend of parameters\n" not in text:  # LightGBM would end the whole process
            raise ValueError("its end is missing")
        booster = lightgbm.Booster(model_str=text)
    return Model(family.Preparation.load(directory), booster)
