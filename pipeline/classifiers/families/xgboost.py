"""Gradient-boosted trees: XGBoost's histogram method, stopped early by the log loss on validation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pydantic

from pipeline.classifiers.search import family, search_space
from pipeline.classifiers.solvers import boosting
from pipeline.console.errors import reading

if TYPE_CHECKING:
    import xgboost

MODEL_FILE = "model.ubj"


class Grid(search_space.Grid):
    """Named as in XGBoost, but ``feature_fraction`` (its ``colsample_bytree``) as in LightGBM."""

    max_depth: search_space.Values[Annotated[int, pydantic.Field(ge=1, le=30)]]
    learning_rate: search_space.Values[search_space.Fraction]
    feature_fraction: search_space.Values[search_space.Fraction]
    min_child_weight: search_space.Values[search_space.NotNegative]
    reg_lambda: search_space.Values[search_space.NotNegative]


class Params(boosting.Params):
    grid: Grid


@dataclass(frozen=True)
class Model:
    preparation: family.Preparation
    booster: xgboost.Booster

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        return self.preparation.probabilities(self.booster.inplace_predict(self.preparation.features(features)))

    def cost(self) -> tuple[int, int]:
        # One line a node: a split or a leaf.
        return sum(len(tree.splitlines()) for tree in self.booster.get_dump()), 0

    def save(self, directory: Path) -> None:
        self.preparation.save(directory)
        (directory / MODEL_FILE).write_bytes(self.booster.save_raw("ubj"))


class Fitter(family.Fitter):
    """Bins the features once for each class weight: bins hold equal weights, not equal numbers of images."""

    def __init__(self, task: family.Task, params: Params):
        import xgboost

        super().__init__(task, params)
        self._xgboost = xgboost
        self._binned: dict[tuple[str | None, str | None], tuple[xgboost.QuantileDMatrix, xgboost.DMatrix]] = {}

    def fit(self, parameters: dict[str, Any], start: family.Model | None = None) -> family.Fit:
        prepared = self.task.prepared(parameters["scale"])
        loss = "logloss" if prepared.k == 2 else "mlogloss"
        settings = {
            "objective": "binary:logistic" if prepared.k == 2 else "multi:softprob",
            "eval_metric": loss,
            "tree_method": "hist",
            "max_depth": parameters["max_depth"],
            "learning_rate": parameters["learning_rate"],
            "colsample_bytree": parameters["feature_fraction"],
            "min_child_weight": parameters["min_child_weight"],
            "reg_lambda": parameters["reg_lambda"],
            "seed": self.task.seed % 2**31,  # XGBoost stores it as a signed number
            "nthread": self.task.threads,
        }
        if prepared.k > 2:
            settings["num_class"] = prepared.k
        training, validation = self._matrices(prepared, parameters["scale"], parameters["class_weight"])
        evaluated: dict[str, dict[str, list[float]]] = {}
        booster = self._xgboost.train(
            settings,
            training,
            num_boost_round=self.params.trees,
            evals=[(validation, "validation")],
            early_stopping_rounds=self.params.patience,
            evals_result=evaluated,
            verbose_eval=False,
        )
        history = evaluated["validation"][loss]
        best = booster.best_iteration + 1
        model = Model(prepared.preparation, booster[:best])
        return boosting.fit(model, self.task, self.params, history=history, best=best)

    def _matrices(
        self, prepared: family.Prepared, scale: str | None, class_weight: str | None
    ) -> tuple[xgboost.QuantileDMatrix, xgboost.DMatrix]:
        if (scale, class_weight) not in self._binned:
            weights = family.sample_weights(prepared.labels, class_weight)
            features, labels = prepared.preparation.examples(self.task.validation)
            threads = self.task.threads
            self._binned[scale, class_weight] = (
                self._xgboost.QuantileDMatrix(prepared.features, prepared.labels, weight=weights, nthread=threads),
                self._xgboost.DMatrix(features, labels, nthread=threads),
            )
        return self._binned[scale, class_weight]


def load(directory: Path) -> Model:
    import xgboost

    with reading(directory / MODEL_FILE):
        booster = xgboost.Booster(model_file=str(directory / MODEL_FILE))
    return Model(family.Preparation.load(directory), booster)
