"""What the tests of classifiers share: a small candidate of every family, small real data, and fitting as a sweep does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets

from pipeline.classifiers.search import family, search_space
from pipeline.core import params

COMMON = {"scale": "standard", "class_weight": None}
UNSCALED = {"scale": None, "class_weight": None}
BOOSTING = {"trees": 60, "patience": 10}
# Family -> (one candidate, the keys of its block besides the search).
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "catboost": (
        {"depth": 3, "learning_rate": 0.2, "feature_fraction": 0.5, "l2_leaf_reg": 3.0, **UNSCALED},
        BOOSTING,
    ),
    "gradient_boosting": (
        {
            "max_leaf_nodes": 5,
            "learning_rate": 0.2,
            "max_features": 0.5,
            "min_samples_leaf": 5,
            "l2_regularization": 0.0,
            **UNSCALED,
        },
        BOOSTING,
    ),
    "k_nearest_neighbors": ({"n_neighbors": 5, "metric": "euclidean", "weights": "distance", **COMMON}, {}),
    "lightgbm": (
        {"num_leaves": 5, "learning_rate": 0.2, "feature_fraction": 0.5, "min_data_in_leaf": 5, **UNSCALED},
        BOOSTING,
    ),
    "linear_svm": ({"C": 0.1, **COMMON}, {}),
    "logistic_regression": ({"C": 0.1, **COMMON}, {}),
    "random_forest": ({"n_estimators": 30, "max_features": 0.5, "min_samples_leaf": 1, **UNSCALED}, {}),
    "rbf_svm": ({"C": 3.0, "gamma": "scale", **COMMON}, {"exact_up_to": 10_000, "components": 100}),
    "xgboost": (
        {
            "max_depth": 3,
            "learning_rate": 0.2,
            "feature_fraction": 0.5,
            "min_child_weight": 1.0,
            "reg_lambda": 1.0,
            **UNSCALED,
        },
        BOOSTING,
    ),
}
BOOSTERS = sorted(name for name, (_, extra) in CASES.items() if "trees" in extra)
SEED = 4_000_000_000  # child seeds use all 32 bits


@cache
def data(dataset: str) -> tuple[family.Examples, family.Examples, np.ndarray]:
    """Return train and validation as (features float32, labels), and the features of test."""
    features, labels = getattr(sklearn.datasets, f"load_{dataset}")(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    features, labels = features[order].astype(np.float32), labels[order]
    a, b = len(labels) // 2, 3 * len(labels) // 4
    return (features[:a], labels[:a]), (features[a:b], labels[a:b]), features[b:]


def data_labels(dataset: str) -> np.ndarray:
    """Return the labels of the images whose features `data` returns as test."""
    _, labels = getattr(sklearn.datasets, f"load_{dataset}")(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return labels[order][3 * len(labels) // 4 :]


def fit(
    name: str,
    train: family.Examples,
    validation: family.Examples,
    *,
    n_classes: int,
    threads: int = 2,
    block: dict[str, Any] | None = None,
    groups: Sequence[str] = (),
    **changes: Any,
) -> family.Fit:
    module = family.find(name)
    parameters, extra = CASES[name]
    parameters = {**parameters, **changes}
    grid = {key: [value] for key, value in parameters.items()}
    checked = params.parse({"search": "grid", "grid": grid, **extra, **(block or {})}, module.Params, where=name)
    task = family.Task(train, validation, n_classes=n_classes, seed=SEED, threads=threads, groups=groups)
    return module.Fitter(task, checked).fit(parameters)


def sweep(
    name: str, train: family.Examples, validation: family.Examples, *, grid: dict[str, Any]
) -> list[tuple[dict[str, Any], family.Fit]]:
    """Fit a grid as a sweep does; return the points with their fits."""
    module = family.find(name)
    block = params.parse({"search": "grid", "grid": grid, **CASES[name][1]}, module.Params, where=name)
    points = [candidate.parameters for candidate in search_space.candidates(block, seed=0)]
    n_classes = len(np.unique(train[1]))
    task = family.Task(train, validation, n_classes=n_classes, seed=SEED, threads=2)
    return list(zip(points, family.fit_all(module.Fitter(task, block), points), strict=True))


def saved(model: family.Model, directory: Path) -> dict[str, bytes]:
    directory.mkdir()
    model.save(directory)
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir())}
