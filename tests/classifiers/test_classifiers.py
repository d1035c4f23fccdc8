"""What is particular to one classifier family, or to a few; what all have in common is in test_conformance."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from pipeline.classifiers.families import k_nearest_neighbors, logistic_regression, rbf_svm
from pipeline.classifiers.search import family
from pipeline.classifiers.solvers import newton, sigmoid, trees
from pipeline.core import params
from pipeline.evaluation import metrics
from tests.families import BOOSTERS, BOOSTING, CASES, SEED, data, fit, saved, sweep

datasets = pytest.mark.parametrize("dataset", ["breast_cancer", "wine"])


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
    folds = StratifiedKFold(sigmoid.FOLDS, shuffle=True, random_state=SEED)
    weights = family.sample_weights(train[1], class_weight)
    scaler = StandardScaler().fit(train[0].astype(np.float64))
    for point, shared in sweep("rbf_svm", train, validation, grid=grid):
        machine = SVC(C=point["C"], gamma=point["gamma"], tol=1e-9)
        plain = CalibratedClassifierCV(machine, method="sigmoid", cv=folds, ensemble=False)
        plain.fit(scaler.transform(train[0].astype(np.float64)), train[1], sample_weight=weights)
        expected = plain.predict_proba(scaler.transform(validation[0].astype(np.float64)))
        np.testing.assert_allclose(shared.validation, expected, atol=1e-5)
        np.testing.assert_allclose(shared.model.predict_proba(validation[0]), expected, atol=1e-5)


@pytest.mark.parametrize("name", BOOSTERS)
def test_boosting_on_shared_data_sets_gives_the_bytes_of_fits_on_their_own(name, tmp_path):
    train, validation, _ = data("breast_cancer")
    first, *_ = CASES[name]
    grid = {key: [value] for key, value in first.items()}
    grid |= {"class_weight": [None, "balanced"], "learning_rate": [0.1, 0.2]}
    grid |= {
        "catboost": {"depth": [2, 3]},
        "gradient_boosting": {"min_samples_leaf": [3, 9]},
        "lightgbm": {"min_data_in_leaf": [3, 9]},
        "xgboost": {"max_depth": [2, 3]},
    }[name]
    for number, (point, shared) in enumerate(sweep(name, train, validation, grid=grid)):
        alone = fit(name, train, validation, n_classes=2, **point).model
        assert saved(shared.model, tmp_path / f"{number}-shared") == saved(alone, tmp_path / f"{number}-alone")


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
        logistic_regression.Params,
        where="logistic_regression",
    )
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
@pytest.mark.parametrize("name", ["linear_svm", "rbf_svm"])
def test_svms_calibrate_on_as_many_folds_as_their_rarest_class_allows(name, images, folds):
    (features, labels), validation, _ = data("wine")
    rows = np.concatenate([np.flatnonzero(labels != 2), np.flatnonzero(labels == 2)[:images]])
    assert fit(name, (features[rows], labels[rows]), validation, n_classes=3).notes["folds"] == folds


def alike(seed: int, *, groups: int, images: int) -> tuple[family.Examples, list[str]]:
    """Return examples of two classes that come in groups of images which hardly differ, and the groups."""
    generator = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), images)
    centers = generator.standard_normal((groups, 30)) + 0.3 * (np.arange(groups) % 2)[:, None]
    features = centers[group] + 0.3 * generator.standard_normal((len(group), 30))
    return (features.astype(np.float32), group % 2), [f"g{each}" for each in group]


@pytest.mark.parametrize(("name", "C"), [("linear_svm", 0.01), ("rbf_svm", 3.0)])
def test_probabilities_of_new_groups_are_calibrated_where_training_images_come_in_groups(name, C):
    def calibration_error(seed: int, *, told: bool) -> float:
        train, groups = alike(seed, groups=60, images=10)
        (features, labels), _ = alike(seed + 100, groups=400, images=3)
        found = fit(name, train, (features, labels), n_classes=2, groups=groups if told else (), C=C).validation
        return metrics.score("expected_calibration_error", found, labels, positive=1)

    assert np.mean([calibration_error(seed, told=True) for seed in range(3)]) < 0.06
    # What a machine knows of a group's other images makes it too sure, if it is not told.
    assert np.mean([calibration_error(seed, told=False) for seed in range(3)]) > 0.15


def test_folds_of_a_machine_hold_groups_out_whole_and_leave_every_class():
    labels = np.repeat([0, 1, 0, 2, 1, 0, 1, 2], 5)
    groups = [f"g{index // 5}" if index < 35 else "" for index in range(40)]
    found = sigmoid.folds(labels, seed=0, groups=groups)
    assert sorted(np.concatenate(found)) == list(range(40))
    for held in found:
        assert set(np.delete(labels, held)) == {0, 1, 2}
        inside, outside = ({groups[image] for image in rows} for rows in (held, set(range(40)) - set(held.tolist())))
        assert inside & outside <= {""}


def test_folds_are_as_without_groups_where_no_two_images_share_one():
    labels = np.arange(60) % 3
    plain = sigmoid.folds(labels, seed=5)
    for groups in ([""] * 60, [f"g{index}" for index in range(60)]):
        for expected, received in zip(plain, sigmoid.folds(labels, seed=5, groups=groups), strict=True):
            np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize(("groups_of_rare", "folds"), [(1, 5), (2, 2), (4, 4), (9, 5)])
def test_a_rare_class_has_as_many_folds_as_groups_and_its_only_group_is_divided(groups_of_rare, folds):
    labels = np.repeat([0, 1], [100, 18])
    groups = [f"a{index // 5}" for index in range(100)] + [f"b{index % groups_of_rare}" for index in range(18)]
    found = sigmoid.folds(labels, seed=0, groups=groups)
    assert len(found) == folds
    assert all(set(np.delete(labels, held)) == {0, 1} for held in found)
    divided = [name for name in set(groups) if sum(name in {groups[image] for image in held} for held in found) > 1]
    assert divided == (["b0"] if groups_of_rare == 1 else [])


def test_one_group_of_everything_is_divided_and_a_class_of_one_image_still_cannot_be_held_out():
    labels = np.repeat([0, 1], 10)
    assert len(sigmoid.folds(labels, seed=0, groups=["all"] * 20)) == 5
    assert sigmoid.folds(np.append(labels, 2), seed=0, groups=["a"] * 10 + ["b"] * 11) == []


@pytest.mark.parametrize("name", BOOSTERS)
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


@pytest.mark.parametrize("name", BOOSTERS)
def test_boosting_that_still_improved_at_its_last_tree_is_not_converged(name):
    train, validation, _ = data("breast_cancer")
    fitted = fit(name, train, validation, n_classes=2, learning_rate=0.01, block={"trees": 5})
    assert not fitted.converged
    assert fitted.notes["best_iteration"] == len(fitted.history["validation_log_loss"]) == 5


@pytest.mark.parametrize("name", BOOSTERS)
def test_trees_cost_their_leaves_and_splits_and_no_multiply_adds(name):
    train, validation, _ = data("breast_cancer")
    fitted = fit(name, train, validation, n_classes=2, learning_rate=0.01, block={"trees": 5})
    numbers, multiply_adds = fitted.model.cost()
    assert multiply_adds == 0
    if name == "xgboost":  # which prunes: between a single split a tree and all of depth 3
        assert 5 * (2 + 1) <= numbers <= 5 * (8 + 7)
    else:
        full_tree = {"gradient_boosting": 5 + 4, "lightgbm": 5 + 4, "catboost": 8 + 3}[name]
        assert numbers == 5 * full_tree + (name == "gradient_boosting")  # and the score before the first tree


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


@pytest.mark.parametrize("dataset", ["breast_cancer", "wine", "digits"])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_linear_svms_along_a_path_agree_with_plain_scikit_learn(dataset, class_weight):
    """LIBLINEAR penalizes the intercept; so little, with a large ``intercept_scaling``, that it does not matter."""
    train, validation, _ = data(dataset)
    grid = {"C": [0.001, 0.1], "scale": ["standard"], "class_weight": [class_weight]}
    folds = StratifiedKFold(sigmoid.FOLDS, shuffle=True, random_state=SEED)
    weights = family.sample_weights(train[1], class_weight)
    scaler = StandardScaler().fit(train[0].astype(np.float64))
    for point, shared in sweep("linear_svm", train, validation, grid=grid):
        machine = LinearSVC(C=point["C"], dual=False, tol=1e-8, intercept_scaling=1e3, max_iter=100_000)
        plain = CalibratedClassifierCV(machine, method="sigmoid", cv=folds, ensemble=False)
        plain.fit(scaler.transform(train[0].astype(np.float64)), train[1], sample_weight=weights)
        expected = plain.predict_proba(scaler.transform(validation[0].astype(np.float64)))
        np.testing.assert_allclose(shared.validation, expected, atol=1e-4)
        np.testing.assert_array_equal(shared.validation.argmax(axis=1), expected.argmax(axis=1))
        assert shared.converged


@pytest.mark.parametrize(("dataset", "same"), [("breast_cancer", True), ("wine", False)])
def test_balanced_weights_of_a_linear_svm_are_those_of_images_which_linear_svc_knows_of_two_classes_only(dataset, same):
    train, validation, _ = data(dataset)
    k = len(np.unique(train[1]))
    model = fit("linear_svm", train, validation, n_classes=k, class_weight="balanced", C=0.01).model
    features = StandardScaler().fit_transform(train[0].astype(np.float64))
    settings = {"C": 0.01, "dual": False, "tol": 1e-10, "intercept_scaling": 1e3, "max_iter": 100_000}
    by_image = LinearSVC(**settings).fit(features, train[1], family.sample_weights(train[1], "balanced"))
    by_class = LinearSVC(**settings, class_weight="balanced").fit(features, train[1])
    np.testing.assert_allclose(model.weights, by_image.coef_, atol=1e-5)
    assert np.allclose(model.weights, by_class.coef_, atol=1e-3) == same


def test_a_linear_svm_costs_one_weight_a_feature_and_class():
    train, validation, _ = data("wine")
    assert fit("linear_svm", train, validation, n_classes=3).model.cost() == (3 * 13 + 3 + 6, 3 * 13)


@datasets
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("weights", ["uniform", "distance"])
@pytest.mark.parametrize("images_at_once", [7, 10_000])
def test_nearest_neighbors_vote_as_in_scikit_learn_whatever_the_blocks(
    dataset, metric, weights, images_at_once, monkeypatch
):
    train, validation, _ = data(dataset)
    monkeypatch.setattr(k_nearest_neighbors, "ENTRIES_AT_ONCE", images_at_once * len(train[1]))
    grid = {"n_neighbors": [1, 5, 12], "metric": [metric], "weights": [weights], "scale": ["standard"]}
    scaler = StandardScaler().fit(train[0].astype(np.float64))
    for point, shared in sweep("k_nearest_neighbors", train, validation, grid={**grid, "class_weight": [None]}):
        plain = KNeighborsClassifier(point["n_neighbors"], metric=metric, weights=weights, algorithm="brute")
        plain.fit(scaler.transform(train[0].astype(np.float64)), train[1])
        expected = plain.predict_proba(scaler.transform(validation[0].astype(np.float64)))
        np.testing.assert_allclose(shared.validation, expected, atol=1e-6)
        np.testing.assert_array_equal(shared.model.predict_proba(validation[0]), shared.validation)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_of_equally_near_images_the_first_of_training_votes(metric):
    (features, labels), _, _ = data("digits")  # pixels are small integers: the same distance comes up often
    copies = np.tile(features[:50], (40, 1))
    named = np.repeat(np.arange(40) % 10, 50)
    one = {"n_neighbors": 1, "metric": metric, "scale": None}
    model = fit("k_nearest_neighbors", (copies, named), (features, labels), n_classes=10, **one).model
    assert (model.predict_proba(features[:50]).argmax(axis=1) == 0).all()
    reverse = fit("k_nearest_neighbors", (copies, named[::-1]), (features, labels), n_classes=10, **one).model
    assert (reverse.predict_proba(features[:50]).argmax(axis=1) == 9).all()


def test_images_at_distance_zero_outvote_all_others():
    (features, labels), validation, _ = data("wine")
    model = fit("k_nearest_neighbors", (features, labels), validation, n_classes=3, n_neighbors=20).model
    np.testing.assert_array_equal(model.predict_proba(features).max(axis=1), 1)
    np.testing.assert_array_equal(model.predict_proba(features).argmax(axis=1), labels)


def test_when_there_are_fewer_images_than_neighbors_all_vote_and_the_note_says_how_many():
    (features, labels), validation, test = data("wine")
    few = features[:6], labels[:6]
    fitted = fit("k_nearest_neighbors", few, validation, n_classes=3, n_neighbors=50, weights="uniform")
    assert fitted.notes == {"voters": 6}
    shares = np.bincount(labels[:6], minlength=3) / 6
    np.testing.assert_allclose(fitted.model.predict_proba(test), np.tile(shares, (len(test), 1)), rtol=1e-6)


@datasets
@pytest.mark.parametrize("scale", [None, "standard"])
def test_a_forest_of_arrays_predicts_as_scikit_learn_and_the_first_trees_of_a_large_one_are_a_small_one(
    dataset, scale, tmp_path
):
    train, validation, test = data(dataset)
    grid = {"n_estimators": [20, 5, 40], "max_features": [0.3], "min_samples_leaf": [2], "scale": [scale]}
    grid["class_weight"] = [None]
    for number, (point, shared) in enumerate(sweep("random_forest", train, validation, grid=grid)):
        prepare = (
            shared.model.preparation.features
        )  # which differs from StandardScaler's in last digits, and they decide a split
        forest = RandomForestClassifier(
            point["n_estimators"], max_features=0.3, min_samples_leaf=2, random_state=SEED, n_jobs=1
        ).fit(prepare(train[0]), train[1])
        np.testing.assert_allclose(shared.model.predict_proba(test), forest.predict_proba(prepare(test)), atol=1e-6)
        alone = fit("random_forest", train, validation, n_classes=len(forest.classes_), **point).model
        assert saved(shared.model, tmp_path / f"{number}-shared") == saved(alone, tmp_path / f"{number}-alone")


@pytest.mark.parametrize("dataset", ["breast_cancer", "wine", "digits"])
def test_gradient_boosting_on_numbers_of_bins_predicts_as_scikit_learn_on_features(dataset):
    train, validation, test = data(dataset)
    few = {"trees": 20, "patience": 5}
    fitted = fit("gradient_boosting", train, validation, n_classes=len(np.unique(train[1])), block=few)
    plain = HistGradientBoostingClassifier(
        max_iter=20,
        max_leaf_nodes=5,
        learning_rate=0.2,
        max_features=0.5,
        min_samples_leaf=5,
        early_stopping=True,
        n_iter_no_change=5,
        tol=0,
        random_state=SEED,
    ).fit(*train, X_val=validation[0], y_val=validation[1])
    stages = list(plain.staged_predict_proba(test))
    expected = stages[fitted.notes["best_iteration"] - 1]
    np.testing.assert_allclose(fitted.model.predict_proba(test), expected, atol=1e-6)
    assert fitted.history["validation_log_loss"] == pytest.approx(list(-plain.validation_score_[1:]), rel=1e-6)


def test_features_with_more_values_than_bins_are_cut_where_scikit_learn_cuts_them():
    draw = np.random.default_rng(0)
    features = draw.normal(size=(1000, 4)).astype(np.float32)
    labels = (features[:, 0] + features[:, 1] ** 2 > 1).astype(int)
    train, validation = (features[:700], labels[:700]), (features[700:], labels[700:])
    block = {"trees": 10, "patience": 10}
    fitted = fit("gradient_boosting", train, validation, n_classes=2, max_features=1.0, block=block)
    plain = HistGradientBoostingClassifier(
        max_iter=10, max_leaf_nodes=5, learning_rate=0.2, min_samples_leaf=5, random_state=SEED, early_stopping=False
    ).fit(*train)
    assert fitted.notes["best_iteration"] == 10
    np.testing.assert_allclose(fitted.validation, plain.predict_proba(validation[0]), atol=1e-6)


def test_trees_that_are_a_single_leaf_say_the_same_of_every_image():
    leaf = trees.Tree(np.array([-2]), np.zeros(1), np.array([-1]), np.array([-1]), np.array([[0.25, 0.75]]))
    split = trees.Tree(
        feature=np.array([1, -1, -1]),
        threshold=np.array([0.5, 0, 0]),
        left=np.array([1, 0, 0]),
        right=np.array([2, 0, 0]),
        values=np.array([[0, 0], [1, 0], [0, 1]]),
    )
    both = trees.Trees.of([leaf, split])
    features = np.array([[9, 0.5], [9, 0.6]], dtype=np.float32)
    np.testing.assert_array_equal(both.sums(features), [[1.25, 0.75], [0.25, 1.75]])
    np.testing.assert_array_equal(both.sums(features, classes=2), [[0.25, 0.75, 1, 0], [0.25, 0.75, 0, 1]])
    assert both.size() == 1 + 3 * 2
