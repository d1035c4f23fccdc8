"""Sweeps on other splits: groups reach the families, and what validation cannot select is undefined, not an error."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.classifiers import repeated_splits
from pipeline.classifiers.solvers import sigmoid
from pipeline.commands import split_seeds
from pipeline.config import schema
from pipeline.core import params
from pipeline.core.params import Params
from pipeline.data import sources, splits

LINEAR = {"search": "grid", "grid": {"C": [0.01, 0.1], "scale": ["standard"], "class_weight": [None]}}
RBF = {
    "search": "grid",
    "exact_up_to": 10,
    "components": 20,
    "grid": {"C": [1.0, 3.0], "gamma": ["scale"], "scale": ["standard"], "class_weight": [None]},
}


@pytest.fixture
def values(root: Path) -> dict[str, Any]:
    found = params.load(root / params.PARAMS_FILE)
    found["classifiers"] = {"linear_svm": LINEAR, "rbf_svm": RBF}
    found["selection"] = {"metric": "roc_auc", "positive_class": "b"}
    return found


@pytest.fixture
def pool() -> repeated_splits.Pool:
    """Images of two classes, four of a group."""
    labels = np.arange(80) // 4 % 2
    images = [
        sources.SourceImage(f"{row}.png", "ab"[label], "", f"g{row // 4}", f"{row:064x}")
        for row, label in enumerate(labels)
    ]
    features = np.random.default_rng(0).standard_normal((80, 6)).astype(np.float32) + labels[:, None]
    return repeated_splits.Pool(tuple(images), features.astype(np.float32), ("a", "b"), labels)


def parts(*, of_validation: slice) -> np.ndarray:
    found = np.array(["train"] * 60 + ["test"] * 20, dtype="<U10")
    found[of_validation] = "validation"
    return found


def test_a_sweep_on_another_split_knows_the_groups_of_its_training_images(values, pool, monkeypatch):
    seen = []
    monkeypatch.setattr(sigmoid, "folds", lambda labels, *, seed, groups: seen.append(groups) or [])
    divided = parts(of_validation=slice(8, 24))
    repeated_splits.sweep(Params(values, values), "linear_svm", pool, divided, seed=0)
    expected = [image.group for image, part in zip(pool.images, divided, strict=True) if part == "train"]
    assert seen == [expected] * 2


def test_a_sweep_on_another_split_names_an_approximation(values, pool):
    found = repeated_splits.sweep(Params(values, values), "rbf_svm", pool, parts(of_validation=slice(8, 24)), seed=0)
    assert [candidate.name for candidate in found.candidates] == [
        "C=1, Nystroem of 20 images",
        "C=3, Nystroem of 20 images",
    ]


def test_validation_of_one_class_selects_nothing_by_roc_auc(values, pool):
    found = repeated_splits.sweep(Params(values, values), "linear_svm", pool, parts(of_validation=slice(8, 12)), seed=0)
    assert found.selected is None and all(math.isnan(score) for score in found.scores)


def test_split_seeds_reports_what_is_undefined_and_goes_on(values, pool, tmp_path, monkeypatch, capsys):
    def assign(*_: Any, seed: int, **__: Any) -> list[str]:
        if seed == 1:
            raise splits.SplitError("The class 'b' has 3 images in 1 groups, too few for one in every part")
        return parts(of_validation=slice(8, 12) if seed == 2 else slice(8, 24)).tolist()

    monkeypatch.setattr(params, "load", lambda: values)
    monkeypatch.setattr(schema, "check", lambda _: None)
    monkeypatch.setattr(repeated_splits, "read_pool", lambda _: pool)
    monkeypatch.setattr(splits, "assign", assign)
    output = tmp_path / "seeds.json"
    asked = argparse.Namespace(seeds=[0, 1, 2], backbone=None, classifiers=["linear_svm"], output=output)
    assert split_seeds.main(asked) == 0
    said = capsys.readouterr().out
    assert "seed 1: undefined. The class 'b' has 3 images" in said and "(sd over 1 runs)" in said
    assert "seed 2, linear_svm: undefined. Validation has images of one class only" in said
    first, *others = json.loads(output.read_text(encoding="utf-8"))
    assert 0.5 < first["test_accuracy"] <= 1
    assert [each["seed"] for each in others] == [1, 2]
    assert all(each["selected"] is each["validation_accuracy"] is each["test_accuracy"] is None for each in others)
