"""Gradient-boosted trees: LightGBM, stopped early by the log loss on validation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pydantic

from pipeline.classifiers import family, search

if TYPE_CHECKING:
    import lightgbm

MODEL_FILE = "model.txt"


class Grid(search.Grid):
    """Named as in LightGBM."""

    num_leaves: search.Values[Annotated[int, pydantic.Field(ge=2, le=131072)]]
    learning_rate: search.Values[search.Fraction]
    feature_fraction: search.Values[search.Fraction]
    min_data_in_leaf: search.Values[Annotated[int, pydantic.Field(ge=1, le=2**31 - 1)]]


class Params(search.Search):
    """``trees``: the most there can be, a class if there are more than two. ``patience``: trees without improvement."""

    trees: Annotated[int, pydantic.Field(ge=1)]
    patience: Annotated[int, pydantic.Field(ge=1)]
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
    """Train one candidate. Not converged: the validation loss still improved when the last tree was built."""
    import lightgbm

    preparation = family.Preparation.learn(train, n_classes=n_classes, scale=parameters["scale"])
    features, labels = preparation.examples(train)
    weights = family.sample_weights(labels, parameters["class_weight"])
    k = len(preparation.seen)
    loss = "binary_logloss" if k == 2 else "multi_logloss"
    settings = {
        "objective": "binary" if k == 2 else "multiclass",
        "num_class": 1 if k == 2 else k,
        "metric": loss,
        "num_leaves": parameters["num_leaves"],
        "learning_rate": parameters["learning_rate"],
        "feature_fraction": parameters["feature_fraction"],
        "min_data_in_leaf": parameters["min_data_in_leaf"],
        "seed": seed % 2**31,  # LightGBM reads it as a signed 32-bit number
        "num_threads": threads,
        "deterministic": True,
        "force_row_wise": True,  # else the layout is chosen by a timing
        "verbosity": -1,
    }
    training = lightgbm.Dataset(features, labels, weight=weights, params=settings)
    evaluated: dict[str, dict[str, list[float]]] = {}
    booster = lightgbm.train(
        settings,
        training,
        num_boost_round=params.trees,
        valid_sets=[training.create_valid(*preparation.examples(validation))],
        valid_names=["validation"],
        callbacks=[
            lightgbm.early_stopping(params.patience, verbose=False),
            lightgbm.record_evaluation(evaluated),
        ],
    )
    history = [float(value) for value in evaluated["validation"][loss]]
    best = booster.best_iteration
    # The number of threads is a property of the machine, not of the model.
    text = re.sub(r"\[num_threads: \d+\]", "[num_threads: 0]", booster.model_to_string(num_iteration=best))
    return family.Fit(
        Model(preparation, lightgbm.Booster(model_str=text)),
        converged=len(history) - best >= params.patience,
        notes={"best_iteration": best},
        history={"validation_log_loss": history},
    )


def load(directory: Path) -> Model:
    import lightgbm

    return Model(family.Preparation.load(directory), lightgbm.Booster(model_file=str(directory / MODEL_FILE)))
