"""Gradient-boosted trees: CatBoost, stopped early by the log loss on validation."""

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
    import catboost

MODEL_FILE = "model.cbm"


class Grid(search_space.Grid):
    """Named as in CatBoost, but ``feature_fraction`` (its ``rsm``) as in LightGBM."""

    depth: search_space.Values[Annotated[int, pydantic.Field(ge=1, le=16)]]
    learning_rate: search_space.Values[search_space.Fraction]
    feature_fraction: search_space.Values[search_space.Fraction]
    l2_leaf_reg: search_space.Values[search_space.NotNegative]


class Params(boosting.Params):
    grid: Grid


@dataclass(frozen=True)
class Model:
    preparation: family.Preparation
    booster: catboost.CatBoostClassifier

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        return self.preparation.probabilities(self.booster.predict_proba(self.preparation.features(features)))

    def cost(self) -> tuple[int, int]:
        # CatBoost's trees are symmetric: one split a level. A leaf holds a value for each of more than two classes.
        splits = np.log2(self.booster.get_tree_leaf_counts()).sum()
        return len(self.booster.get_leaf_values()) + int(splits), 0

    def save(self, directory: Path) -> None:
        self.preparation.save(directory)
        self.booster.save_model(str(directory / MODEL_FILE))


class Fitter(family.Fitter):
    """Builds the pools once."""

    def __init__(self, task: family.Task, params: Params):
        import catboost

        super().__init__(task, params)
        self._catboost = catboost
        self._pools: dict[str | None, tuple[catboost.Pool, catboost.Pool]] = {}

    def fit(self, parameters: dict[str, Any], start: family.Model | None = None) -> family.Fit:
        prepared = self.task.prepared(parameters["scale"])
        training, validation = self._pooled(prepared, parameters["scale"])
        training.set_weight(family.sample_weights(prepared.labels, parameters["class_weight"]))
        loss = "Logloss" if prepared.k == 2 else "MultiClass"
        booster = self._catboost.CatBoostClassifier(
            loss_function=loss,
            iterations=self.params.trees,
            depth=parameters["depth"],
            learning_rate=parameters["learning_rate"],
            rsm=parameters["feature_fraction"],
            l2_leaf_reg=parameters["l2_leaf_reg"],
            random_seed=self.task.seed,
            thread_count=self.task.threads,
            use_best_model=True,
            od_type="Iter",
            od_wait=self.params.patience,
            # CatBoost writes catboost_info/ into the working directory, which would dirty the repository.
            allow_writing_files=False,
            logging_level="Silent",
        )
        booster.fit(training, eval_set=validation)
        history = booster.get_evals_result()["validation"][loss]
        best = booster.best_iteration_ + 1
        # CatBoost stores a random identifier, the time, and the number of threads, a property of the machine.
        metadata = booster.get_metadata()
        metadata["model_guid"] = metadata["train_finish_time"] = ""
        metadata["params"] = re.sub(r'"thread_count":\d+', '"thread_count":1', metadata["params"])
        model = Model(prepared.preparation, booster)
        return boosting.fit(model, self.task, self.params, history=history, best=best)

    def _pooled(self, prepared: family.Prepared, scale: str | None) -> tuple[catboost.Pool, catboost.Pool]:
        if scale not in self._pools:
            self._pools[scale] = (
                self._catboost.Pool(prepared.features, prepared.labels),
                self._catboost.Pool(*prepared.preparation.examples(self.task.validation)),
            )
        return self._pools[scale]


def load(directory: Path) -> Model:
    import catboost

    with reading(directory / MODEL_FILE):
        booster = catboost.CatBoostClassifier().load_model(str(directory / MODEL_FILE))
    return Model(family.Preparation.load(directory), booster)
