"""One conformance suite for every classifier family, on the small real data sets that scikit-learn carries."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from pipeline import params
from pipeline.classifiers import family, logistic_regression, rbf_svm, table

COMMON = {"scale": "standard", "class_weight": None}
BOOSTING = {"trees": 60, "patience": 10}
# Family -> (one candidate, the keys of its block besides the search).
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "catboost": (
        {"depth": 3, "learning_rate": 0.2, "feature_fraction": 0.5, "l2_leaf_reg": 3.0, "scale": None,
         "class_weight": None},
        BOOSTING,
    ),
    "lightgbm": (
        {"num_leaves": 5, "learning_rate": 0.2, "feature_fraction": 0.5, "min_data_in_leaf": 5, "scale": None,
         "class_weight": None},
        BOOSTING,
    ),
    "logistic_regression": ({"C": 0.1, **COMMON}, {}),
    "rbf_svm": ({"C": 3.0, "gamma": "scale", **COMMON}, {}),
}  # fmt: skip
ROOT = Path(__file__).resolve().parent.parent
SEED = 4_000_000_000  # child seeds use all 32 bits

families = pytest.mark.parametrize("name", sorted(CASES))
datasets = pytest.mark.parametrize("dataset", ["breast_cancer", "wine"])


@cache
def data(dataset: str) -> tuple[family.Examples, family.Examples, np.ndarray]:
    """Return train and validation as (features float32, labels), and the features of test."""
    features, labels = getattr(sklearn.datasets, f"load_{dataset}")(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    features, labels = features[order].astype(np.float32), labels[order]
    a, b = len(labels) // 2, 3 * len(labels) // 4
    return (features[:a], labels[:a]), (features[a:b], labels[a:b]), features[b:]


def fit(
    name: str,
    train: family.Examples,
    validation: family.Examples,
    *,
    n_classes: int,
    threads: int = 2,
    block: dict[str, Any] | None = None,
    **changes: Any,
) -> family.Fit:
    module = family.find(name)
    parameters, extra = CASES[name]
    parameters = {**parameters, **changes}
    grid = {key: [value] for key, value in parameters.items()}
    checked = params.parse({"search": "grid", "grid": grid, **extra, **(block or {})}, module.Params, where=name)
    return module.fit(
        parameters, train, validation, n_classes=n_classes, params=checked, seed=SEED, threads=threads
    )


def saved(model: family.Model, directory: Path) -> dict[str, bytes]:
    directory.mkdir()
    model.save(directory)
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir())}


def assert_probabilities(probabilities: np.ndarray, shape: tuple[int, int]) -> None:
    assert probabilities.dtype == np.float32
    assert probabilities.shape == shape
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_every_family_of_the_table_is_under_this_suite():
    assert sorted(table.FAMILIES) == sorted(CASES)
    assert all(family.find(name).__name__ == module for name, module in table.FAMILIES.items())


def test_an_unknown_family_is_an_error_that_names_it():
    for name in ("lgbm", "search", "../catboost"):
        with pytest.raises(params.ParamsError, match=f"there is no family pipeline/classifiers/{name}.py"):
            family.find(name)


def test_checking_params_imports_no_learning_library():
    code = (
        "import sys; from pipeline import params; from pipeline.classifiers import family, table\n"
        "values = params.load()['classifiers']\n"
        "[params.parse(values[name], family.find(name).Params, where=name) for name in table.FAMILIES]\n"
        "print({'sklearn', 'lightgbm', 'catboost', 'scipy', 'tensorflow'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@families
@datasets
def test_learns_real_data_and_gives_probabilities(name, dataset):
    train, validation, test = data(dataset)
    k = len(np.unique(train[1]))
    model = fit(name, train, validation, n_classes=k).model
    assert_probabilities(model.predict_proba(test), (len(test), k))
    assert (model.predict_proba(validation[0]).argmax(axis=1) == validation[1]).mean() > 0.9


@families
@datasets
def test_saving_and_loading_changes_no_probability_and_no_cost(name, dataset, tmp_path):
    train, validation, test = data(dataset)
    model = fit(name, train, validation, n_classes=4).model
    model.save(tmp_path)
    loaded = family.find(name).load(tmp_path)
    np.testing.assert_array_equal(loaded.predict_proba(test), model.predict_proba(test))
    assert loaded.cost() == model.cost()


@families
def test_same_seed_gives_the_same_bytes_in_another_process(name, tmp_path):
    train, validation, test = data("wine")
    here = saved(fit(name, train, validation, n_classes=3).model, tmp_path / "here")
    code = (
        "import sys; from pathlib import Path; from tests.test_classifiers import data, fit, saved\n"
        f"saved(fit({name!r}, *data('wine')[:2], n_classes=3).model, Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], cwd=ROOT, check=True)
    assert {file.name: file.read_bytes() for file in sorted((tmp_path / "there").iterdir())} == here
    one, other = (family.find(name).load(tmp_path / place).predict_proba(test) for place in ("here", "there"))
    np.testing.assert_array_equal(one, other)


@families
@datasets
def test_the_number_of_threads_is_not_in_the_model(name, dataset, tmp_path):
    train, validation, _ = data(dataset)
    one, two = (fit(name, train, validation, n_classes=3, threads=threads).model for threads in (1, 2))
    assert saved(one, tmp_path / "one") == saved(two, tmp_path / "two")


@families
def test_training_writes_nothing_into_the_working_directory(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(name, *data("wine")[:2], n_classes=3)
    assert list(tmp_path.iterdir()) == []


@families
def test_balanced_classes_raise_the_probability_of_the_rare_one(name):
    (features, labels), validation, test = data("breast_cancer")
    rare = np.flatnonzero(labels == 0)[:15]
    rows = np.concatenate([rare, np.flatnonzero(labels == 1)])
    train = features[rows], labels[rows]
    plain, balanced = (
        fit(name, train, validation, n_classes=2, class_weight=weight).model.predict_proba(test)[:, 0].mean()
        for weight in (None, "balanced")
    )
    assert balanced > plain


@families
def test_a_class_missing_from_train_has_probability_zero_and_labels_keep_their_columns(name):
    (features, labels), (validation_features, validation_labels), test = data("wine")
    spread = np.array([1, 3, 4])  # of six classes; 0, 2 and 5 have no training image
    validation_labels = spread[validation_labels]
    validation_labels[:3] = 5  # which training never saw
    model = fit(name, (features, spread[labels]), (validation_features, validation_labels), n_classes=6).model
    probabilities = model.predict_proba(test)
    assert_probabilities(probabilities, (len(test), 6))
    assert (probabilities[:, [0, 2, 5]] == 0).all()
    contiguous = fit(name, (features, labels), data("wine")[1], n_classes=3).model.predict_proba(test)
    assert (spread[contiguous.argmax(axis=1)] == probabilities.argmax(axis=1)).mean() > 0.9


@families
def test_a_class_missing_from_validation_is_still_predicted(name):
    train, (features, labels), test = data("wine")
    model = fit(name, train, (features[labels != 2], labels[labels != 2]), n_classes=3).model
    assert 2 in model.predict_proba(test).argmax(axis=1)


@families
def test_a_class_with_a_single_image_is_trained_on(name):
    (features, labels), validation, test = data("wine")
    rows = np.concatenate([np.flatnonzero(labels != 2), np.flatnonzero(labels == 2)[:1]])
    probabilities = fit(name, (features[rows], labels[rows]), validation, n_classes=3).model.predict_proba(test)
    assert_probabilities(probabilities, (len(test), 3))
    assert (probabilities[:, 2] > 0).any()


@families
@pytest.mark.parametrize("scale", [None, "standard"])
def test_constant_features_do_no_harm(name, scale):
    (features, labels), (validation_features, validation_labels), test = data("wine")

    def widen(array: np.ndarray) -> np.ndarray:
        return np.hstack([array, np.full((len(array), 5), 0.1, dtype=np.float32)])

    train = widen(features), labels
    model = fit(name, train, (widen(validation_features), validation_labels), n_classes=3, scale=scale).model
    assert_probabilities(model.predict_proba(widen(test)), (len(test), 3))


@families
def test_features_without_any_difference_are_refused(name):
    (features, labels), validation, _ = data("wine")
    with pytest.raises(family.ClassifierError, match="all 13 features are constant"):
        fit(name, (np.full_like(features, 2.5), labels), validation, n_classes=3)


@families
def test_a_single_class_is_refused(name):
    (features, labels), validation, _ = data("wine")
    with pytest.raises(family.ClassifierError, match=r"two or more of the classes 0\.\.2, received \[1\]"):
        fit(name, (features, np.ones_like(labels)), validation, n_classes=3)


@pytest.mark.parametrize("name", ["lightgbm", "catboost"])
def test_boosting_without_a_validation_image_of_a_known_class_is_refused(name):
    train, (features, labels), _ = data("wine")
    with pytest.raises(family.ClassifierError, match="none of 44 images has one of the classes"):
        fit(name, train, (features, np.full_like(labels, 4)), n_classes=5)


@families
def test_training_changes_neither_its_features_nor_its_labels(name):
    train, validation, _ = data("wine")
    before = [array.copy() for array in (*train, *validation)]
    fit(name, train, validation, n_classes=3, class_weight="balanced")
    for array, copy in zip((*train, *validation), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@families
def test_a_family_can_predict_one_image_as_it_predicts_many(name):
    train, validation, test = data("wine")
    model = fit(name, train, validation, n_classes=3).model
    alone = np.concatenate([model.predict_proba(test[row : row + 1]) for row in range(5)])
    np.testing.assert_allclose(alone, model.predict_proba(test)[:5], rtol=1e-6)


# --- one family at a time ------------------------------------------------------------------------------------------


@datasets
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_logistic_regression_agrees_with_plain_scikit_learn(dataset, class_weight):
    train, validation, test = data(dataset)
    k = len(np.unique(train[1]))
    model = fit("logistic_regression", train, validation, n_classes=k, class_weight=class_weight).model
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight=class_weight, max_iter=1000))
    plain.fit(train[0].astype(np.float64), train[1])
    np.testing.assert_allclose(model.predict_proba(test), plain.predict_proba(test.astype(np.float64)), atol=1e-4)


def test_logistic_regression_that_ran_out_of_iterations_is_reported_and_warns_nobody(monkeypatch, recwarn):
    train, validation, _ = data("wine")
    assert fit("logistic_regression", train, validation, n_classes=3).converged
    monkeypatch.setattr(logistic_regression, "MAX_ITERATIONS", 2)
    stopped = fit("logistic_regression", train, validation, n_classes=3)
    assert not stopped.converged
    assert stopped.notes == {"iterations": 2}
    assert not [warning for warning in recwarn if issubclass(warning.category, ConvergenceWarning)]


def test_logistic_regression_costs_one_weight_a_feature_and_class():
    train, validation, _ = data("wine")
    assert fit("logistic_regression", train, validation, n_classes=3).model.cost() == (3 * 13 + 3, 3 * 13)


@pytest.mark.parametrize("dataset", ["breast_cancer", "wine", "digits"])
def test_svm_decides_as_scikit_learn_does(dataset):
    train, validation, test = data(dataset)
    k = len(np.unique(train[1]))
    model = fit("rbf_svm", train, validation, n_classes=k).model
    scaler = StandardScaler().fit(train[0].astype(np.float64))
    machine = SVC(C=3.0).fit(scaler.transform(train[0].astype(np.float64)), train[1])
    prepare = model.preparation.features
    ours = model._decisions(rbf_kernel(prepare(test), prepare(model.vectors), gamma=float(model.gamma)))
    plain = machine.decision_function(scaler.transform(test.astype(np.float64))).reshape(len(test), -1)
    np.testing.assert_allclose(ours, plain, atol=1e-3)


def test_svm_gives_the_same_model_when_libsvm_computes_the_kernel(monkeypatch):
    train, validation, test = data("wine")
    before = fit("rbf_svm", train, validation, n_classes=3).model.predict_proba(test)
    monkeypatch.setattr(rbf_svm, "LARGEST_KERNEL", 0)
    after = fit("rbf_svm", train, validation, n_classes=3).model.predict_proba(test)
    np.testing.assert_allclose(after, before, atol=1e-3)


@pytest.mark.parametrize(("images", "folds"), [(1, 0), (2, 2), (4, 4), (12, 5)])
def test_svm_calibrates_on_as_many_folds_as_its_rarest_class_allows(images, folds):
    (features, labels), validation, _ = data("wine")
    rows = np.concatenate([np.flatnonzero(labels != 2), np.flatnonzero(labels == 2)[:images]])
    assert fit("rbf_svm", (features[rows], labels[rows]), validation, n_classes=3).notes["folds"] == folds


@pytest.mark.parametrize("name", ["lightgbm", "catboost"])
@datasets
def test_boosting_keeps_the_trees_up_to_the_lowest_validation_loss(name, dataset):
    train, validation, _ = data(dataset)
    k = len(np.unique(train[1]))
    fitted = fit(name, train, validation, n_classes=k, learning_rate=0.5, block={"trees": 400})
    history = fitted.history["validation_log_loss"]
    best = fitted.notes["best_iteration"]
    assert fitted.converged
    assert best == np.argmin(history) + 1
    assert len(history) == best + BOOSTING["patience"]
    probabilities = fitted.model.predict_proba(validation[0])
    log_loss = -np.log(probabilities[np.arange(len(probabilities)), validation[1]]).mean()
    assert log_loss == pytest.approx(history[best - 1], rel=1e-4)


@pytest.mark.parametrize("name", ["lightgbm", "catboost"])
def test_boosting_that_still_improved_at_its_last_tree_is_not_converged(name):
    train, validation, _ = data("breast_cancer")
    fitted = fit(name, train, validation, n_classes=2, learning_rate=0.01, block={"trees": 5})
    assert not fitted.converged
    assert fitted.notes["best_iteration"] == len(fitted.history["validation_log_loss"]) == 5


@pytest.mark.parametrize("name", ["lightgbm", "catboost"])
def test_trees_cost_their_leaves_and_splits_and_no_multiply_adds(name):
    train, validation, _ = data("breast_cancer")
    fitted = fit(name, train, validation, n_classes=2, learning_rate=0.01, block={"trees": 5})
    full_tree = {"lightgbm": 5 + 4, "catboost": 8 + 3}[name]
    assert fitted.model.cost() == (5 * full_tree, 0)


def test_another_seed_draws_other_features():
    train, validation, test = data("wine")
    module = family.find("lightgbm")
    parameters, extra = CASES["lightgbm"]
    grid = {key: [value] for key, value in parameters.items()}
    block = params.parse({"search": "grid", "grid": grid, **extra}, module.Params, where="lightgbm")
    first, second = (
        module.fit(parameters, train, validation, n_classes=3, params=block, seed=seed, threads=2).model
        for seed in (0, 1)
    )
    assert not np.array_equal(first.predict_proba(test), second.predict_proba(test))
