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
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from pipeline import params
from pipeline.classifiers import family, logistic_regression, newton, rbf_svm, search, sigmoid, table

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
    "rbf_svm": ({"C": 3.0, "gamma": "scale", **COMMON}, {"exact_up_to": 10_000, "components": 100}),
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
    task = family.Task(train, validation, n_classes=n_classes, seed=SEED, threads=threads)
    return module.Fitter(task, checked).fit(parameters)


def sweep(
    name: str, train: family.Examples, validation: family.Examples, *, grid: dict[str, Any]
) -> list[tuple[dict[str, Any], family.Fit]]:
    """Fit a grid as a sweep does; return the points with their fits."""
    module = family.find(name)
    block = params.parse({"search": "grid", "grid": grid, **CASES[name][1]}, module.Params, where=name)
    points = [candidate.parameters for candidate in search.candidates(block, seed=0)]
    n_classes = len(np.unique(train[1]))
    task = family.Task(train, validation, n_classes=n_classes, seed=SEED, threads=2)
    return list(zip(points, family.fit_all(module.Fitter(task, block), points), strict=True))


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


@pytest.mark.parametrize("dataset", ["breast_cancer", "wine", "digits"])
@pytest.mark.parametrize("scale", [None, "standard"])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_logistic_regression_along_a_path_agrees_with_plain_scikit_learn(dataset, scale, class_weight):
    """Plain fits with their tolerance at 1e-10: at its default of 1e-4 scikit-learn itself is up to 1e-3 off."""
    train, validation, _ = data(dataset)
    grid = {"C": [0.001, 0.1, 10.0], "scale": [scale], "class_weight": [class_weight]}
    for point, shared in sweep("logistic_regression", train, validation, grid=grid):
        scaling = [StandardScaler()] if scale else []
        machine = LogisticRegression(
            C=point["C"], class_weight=class_weight, max_iter=100_000, tol=1e-10, solver="newton-cholesky"
        )
        plain = make_pipeline(*scaling, machine).fit(train[0].astype(np.float64), train[1])
        expected = plain.predict_proba(validation[0].astype(np.float64))
        np.testing.assert_allclose(shared.validation, expected, atol=1e-5)
        np.testing.assert_array_equal(shared.validation.argmax(axis=1), expected.argmax(axis=1))


@pytest.mark.parametrize("dataset", ["breast_cancer", "wine", "digits"])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_svms_that_share_a_kernel_agree_with_plain_scikit_learn(dataset, class_weight, monkeypatch):
    """Both with a tight tolerance: at LIBSVM's own, the rounding of a kernel value can move where it stops.

    gamma is a number here, because "scale" means another one in each of scikit-learn's folds.
    """
    monkeypatch.setattr(rbf_svm, "TOLERANCE", 1e-9)
    train, validation, _ = data(dataset)
    grid = {"C": [1.0, 10.0], "gamma": [0.01, 0.1], "scale": ["standard"], "class_weight": [class_weight]}
    folds = StratifiedKFold(rbf_svm.FOLDS, shuffle=True, random_state=SEED)
    weights = family.sample_weights(train[1], class_weight)
    scaler = StandardScaler().fit(train[0].astype(np.float64))
    for point, shared in sweep("rbf_svm", train, validation, grid=grid):
        machine = SVC(C=point["C"], gamma=point["gamma"], tol=1e-9)
        plain = CalibratedClassifierCV(machine, method="sigmoid", cv=folds, ensemble=False)
        plain.fit(scaler.transform(train[0].astype(np.float64)), train[1], sample_weight=weights)
        expected = plain.predict_proba(scaler.transform(validation[0].astype(np.float64)))
        np.testing.assert_allclose(shared.validation, expected, atol=1e-5)
        np.testing.assert_allclose(shared.model.predict_proba(validation[0]), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["lightgbm", "catboost"])
def test_boosting_on_shared_data_sets_gives_the_bytes_of_fits_on_their_own(name, tmp_path):
    train, validation, _ = data("breast_cancer")
    first, *_ = CASES[name]
    grid = {key: [value] for key, value in first.items()}
    grid |= {"class_weight": [None, "balanced"], "learning_rate": [0.1, 0.2]}
    grid |= {"min_data_in_leaf": [3, 9]} if name == "lightgbm" else {"depth": [2, 3]}
    for number, (point, shared) in enumerate(sweep(name, train, validation, grid=grid)):
        alone = fit(name, train, validation, n_classes=2, **point).model
        assert saved(shared.model, tmp_path / f"{number}-shared") == saved(alone, tmp_path / f"{number}-alone")


@families
def test_probabilities_of_validation_come_with_the_fit(name):
    train, (features, labels), _ = data("wine")
    labels = labels.copy()
    labels[:3] = 4  # classes that training never saw count too: validation is scored as a whole
    fitted = fit(name, train, (features, labels), n_classes=5)
    assert fitted.validation.dtype == np.float32
    np.testing.assert_allclose(fitted.validation, fitted.model.predict_proba(features), atol=1e-6)


@families
def test_a_fit_depends_on_no_fit_before_it(name, tmp_path):
    train, validation, _ = data("wine")
    parameters, extra = CASES[name]
    grid = {key: [value] for key, value in parameters.items()} | {"class_weight": [None, "balanced"]}
    block = params.parse({"search": "grid", "grid": grid, **extra}, family.find(name).Params, where=name)
    fitter = family.find(name).Fitter(family.Task(train, validation, n_classes=3, seed=0, threads=2), block)
    first = saved(fitter.fit(parameters).model, tmp_path / "first")
    fitter.fit({**parameters, "class_weight": "balanced"})
    assert saved(fitter.fit(parameters).model, tmp_path / "again") == first


def test_logistic_regression_begins_at_the_nearest_solution_of_its_own_path():
    train, validation, _ = data("wine")
    grid = {"C": [0.01, 10.0, 0.1, 1.0], "scale": ["standard"], "class_weight": [None, "balanced"]}
    points = [point for point, _ in sweep("logistic_regression", train, validation, grid=grid)]
    block = params.parse({"search": "grid", "grid": grid}, logistic_regression.Params, where="logistic_regression")
    fitter = logistic_regression.Fitter(family.Task(train, validation, n_classes=3, seed=0, threads=1), block)
    assert [fitter.start(points, index) for index in range(8)] == [None, None, 0, 1, 0, 1, 4, 5]


def test_logistic_regression_needs_fewer_steps_from_a_neighbor_than_from_nothing():
    train, validation, _ = data("digits")
    near = fit("logistic_regression", train, validation, n_classes=10, C=1.0)
    parameters = {**CASES["logistic_regression"][0], "C": 1.1}
    block = params.parse(
        {"search": "grid", "grid": {key: [value] for key, value in parameters.items()}},
        logistic_regression.Params, where="logistic_regression",
    )  # fmt: skip
    fitter = logistic_regression.Fitter(family.Task(train, validation, n_classes=10, seed=0, threads=1), block)
    warm, cold = fitter.fit(parameters, near.model), fitter.fit(parameters)
    assert warm.notes["iterations"] < cold.notes["iterations"]
    np.testing.assert_allclose(warm.validation, cold.validation, atol=1e-5)


def test_logistic_regression_that_ran_out_of_iterations_is_reported(monkeypatch):
    train, validation, _ = data("wine")
    assert fit("logistic_regression", train, validation, n_classes=3).converged
    monkeypatch.setattr(logistic_regression, "MAX_ITERATIONS", 2)
    stopped = fit("logistic_regression", train, validation, n_classes=3)
    assert not stopped.converged
    assert stopped.notes == {"iterations": 2}


@pytest.mark.parametrize("factor_after", [0, 10_000])
def test_logistic_regression_is_the_same_with_and_without_a_cholesky_factor(factor_after, monkeypatch):
    train, validation, _ = data("digits")
    usual = fit("logistic_regression", train, validation, n_classes=10, C=10.0)
    monkeypatch.setattr(newton, "FACTOR_AFTER", factor_after)
    other = fit("logistic_regression", train, validation, n_classes=10, C=10.0)
    assert usual.converged and other.converged
    np.testing.assert_allclose(other.validation, usual.validation, atol=1e-5)


@pytest.mark.parametrize("C", [1e-8, 1e6])
def test_logistic_regression_converges_at_any_penalty_also_when_classes_are_separable(C):
    train, validation, _ = data("wine")
    fitted = fit("logistic_regression", train, validation, n_classes=3, C=C)
    assert fitted.converged
    assert np.isfinite(fitted.validation).all()


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
    kernel = rbf_kernel(prepare(test), prepare(model.vectors), gamma=float(model.gamma))
    ours = rbf_svm.decide(kernel, model.counts, model.dual, model.intercepts)
    plain = machine.decision_function(scaler.transform(test.astype(np.float64))).reshape(len(test), -1)
    np.testing.assert_allclose(ours, plain, atol=1e-3)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("spread", [0.1, 5.0, 500.0])
def test_sigmoids_agree_with_scikit_learn(weighted, spread):
    random = np.random.default_rng(0)
    labels = np.arange(200) % 2
    decisions = spread * (random.normal(size=200) + labels)
    weights = random.uniform(0.5, 2, size=200) if weighted else np.ones(200)
    machine = Threshold()
    everything = [(np.arange(200), np.arange(200))]
    calibrated = CalibratedClassifierCV(machine, method="sigmoid", cv=everything, ensemble=False)
    expected = calibrated.fit(decisions[:, None], labels, sample_weight=weights).predict_proba(decisions[:, None])
    ours = sigmoid.probabilities(decisions[:, None], sigmoid.fit(decisions[:, None], labels, weights))
    np.testing.assert_allclose(ours, expected[:, 1], atol=1e-5)


class Threshold(ClassifierMixin, BaseEstimator):
    """A machine whose decision is its only feature."""

    def fit(self, X, y, sample_weight=None):
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, X):
        return X[:, 0]

    def predict(self, X):
        return self.classes_[(X[:, 0] > 0).astype(int)]


@datasets
def test_above_its_limit_the_svm_is_approximated_says_so_and_decides_nearly_as_the_exact_one(dataset, capsys):
    train, (features, labels), test = data(dataset)
    k = len(np.unique(labels))
    exact = fit("rbf_svm", train, (features, labels), n_classes=k)
    assert "approximation" not in exact.notes
    assert "Nystroem" not in capsys.readouterr().out
    limit = {"exact_up_to": len(train[1]) - 1, "components": 60}
    close = fit("rbf_svm", train, (features, labels), n_classes=k, block=limit)
    assert close.notes == {"approximation": "nystroem", "components": 60, "folds": 5}
    assert "approximated with 60 of them (Nystroem)" in capsys.readouterr().out
    agree = close.model.predict_proba(test).argmax(axis=1) == exact.model.predict_proba(test).argmax(axis=1)
    assert agree.mean() > 0.95
    assert (close.validation.argmax(axis=1) == labels).mean() > 0.9


def test_an_approximate_svm_costs_its_components_and_is_saved_whole(tmp_path):
    train, validation, test = data("wine")
    limit = {"exact_up_to": 0, "components": 20}
    model = fit("rbf_svm", train, validation, n_classes=3, block=limit).model
    assert model.cost() == (20 * 13 + 3 * 20 + 3 + 6, 20 * 13 + 3 * 20)
    model.save(tmp_path)
    np.testing.assert_array_equal(rbf_svm.load(tmp_path).predict_proba(test), model.predict_proba(test))


def test_an_approximate_svm_takes_all_images_when_there_are_fewer_than_components():
    train, validation, _ = data("wine")
    limit = {"exact_up_to": 0, "components": 10_000}
    assert fit("rbf_svm", train, validation, n_classes=3, block=limit).notes["components"] == len(train[1])


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
        module.Fitter(family.Task(train, validation, n_classes=3, seed=seed, threads=2), block).fit(parameters).model
        for seed in (0, 1)
    )
    assert not np.array_equal(first.predict_proba(test), second.predict_proba(test))
