"""One conformance suite for every classifier family, on the small real data sets that scikit-learn carries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.classifiers import table
from pipeline.classifiers.search import family
from pipeline.console.errors import ArtifactError
from pipeline.core import params
from tests.families import BOOSTERS, CASES, data, data_labels, fit, saved

ROOT = Path(__file__).resolve().parents[2]

families = pytest.mark.parametrize("name", sorted(CASES))
datasets = pytest.mark.parametrize("dataset", ["breast_cancer", "wine"])


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
        with pytest.raises(params.ParamsError, match=f"there is no family pipeline/classifiers/families/{name}.py"):
            family.find(name)


def test_checking_params_imports_no_learning_library():
    code = (
        "import sys; from pipeline.core import params; from pipeline.classifiers.search import family; from pipeline.classifiers import table\n"
        "values = params.load()['classifiers']\n"
        "[params.parse(values[name], family.find(name).Params, where=name) for name in table.FAMILIES]\n"
        "print({'sklearn', 'lightgbm', 'catboost', 'xgboost', 'optuna', 'scipy', 'tensorflow'} & set(sys.modules))"
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
def test_a_model_that_is_cut_off_is_an_error_that_names_the_file(name, tmp_path):
    train, validation, _ = data("wine")
    model = tmp_path / "model"
    for file, whole in saved(fit(name, train, validation, n_classes=3).model, model).items():
        for content in (b"", b"text", whole[: len(whole) // 20], whole[: len(whole) // 2], whole[: -len(whole) // 8]):
            (model / file).write_bytes(content)
            with pytest.raises(ArtifactError, match=f"{file} is damaged or of another kind"):
                family.find(name).load(model)
        (model / file).unlink()
        with pytest.raises(ArtifactError, match=f"{file} is"):
            family.find(name).load(model)
        (model / file).write_bytes(whole)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    """Return a directory of what another process saved for every family."""
    directory = tmp_path_factory.mktemp("elsewhere")
    code = (
        "import sys; from pathlib import Path; from tests.families import CASES, data, fit, saved\n"
        "for name in CASES: saved(fit(name, *data('wine')[:2], n_classes=3).model, Path(sys.argv[1]) / name)"
    )
    subprocess.run([sys.executable, "-c", code, str(directory)], cwd=ROOT, check=True)
    return directory


@families
def test_same_seed_gives_the_same_bytes_in_another_process(name, elsewhere, tmp_path):
    train, validation, test = data("wine")
    here = saved(fit(name, train, validation, n_classes=3).model, tmp_path / "here")
    assert {file.name: file.read_bytes() for file in sorted((elsewhere / name).iterdir())} == here
    places = (tmp_path / "here", elsewhere / name)
    one, other = (family.find(name).load(place).predict_proba(test) for place in places)
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
@pytest.mark.parametrize("images", [1, 2])
def test_a_class_with_one_or_two_images_is_trained_on(name, images):
    (features, labels), validation, test = data("wine")
    rows = np.concatenate([np.flatnonzero(labels != 2), np.flatnonzero(labels == 2)[:images]])
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
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("part", ["training", "validation"])
def test_features_that_are_not_finite_or_huge_are_refused_before_anything_is_fitted(name, part, value):
    train, validation, _ = ((examples[0].copy(), examples[1]) for examples in (*data("wine")[:2], data("wine")[0]))
    broken = train[0] if part == "training" else validation[0]
    broken[5, 3] = value
    with pytest.raises(family.ClassifierError, match=rf"features of {part} must be finite .* feature 3 of image 5"):
        fit(name, train, validation, n_classes=3)


@families
@pytest.mark.parametrize("factor", [1e-4, 1e9])
def test_features_of_any_other_size_are_learned(name, factor):
    (features, labels), (validation_features, validation_labels), test = data("wine")
    factor = np.float32(factor)
    fitted = fit(name, (features * factor, labels), (validation_features * factor, validation_labels), n_classes=3)
    assert (fitted.model.predict_proba(test * factor).argmax(axis=1) == data_labels("wine")).mean() > 0.8


@families
def test_a_single_feature_is_enough(name):
    (features, labels), (validation_features, validation_labels), test = data("wine")
    one = slice(6, 7)
    model = fit(name, (features[:, one], labels), (validation_features[:, one], validation_labels), n_classes=3).model
    assert_probabilities(model.predict_proba(test[:, one]), (len(test), 3))
    assert (model.predict_proba(test[:, one]).argmax(axis=1) == data_labels("wine")).mean() > 0.6


@families
def test_three_images_of_two_classes_are_fewer_than_neighbors_folds_and_leaves_ask_for(name):
    (features, labels), validation, test = data("wine")
    rows = [*np.flatnonzero(labels == 0)[:2], *np.flatnonzero(labels == 1)[:1]]
    model = fit(name, (features[rows], labels[rows]), validation, n_classes=3).model
    assert_probabilities(model.predict_proba(test), (len(test), 3))


@families
def test_images_that_repeat_under_the_same_and_another_label_do_no_harm(name):
    (features, labels), validation, test = data("wine")
    features, labels = np.repeat(features, 3, axis=0), np.repeat(labels, 3)
    labels = np.where(np.arange(len(labels)) % 9 == 0, (labels + 1) % 3, labels)
    model = fit(name, (features, labels), validation, n_classes=3).model
    assert_probabilities(model.predict_proba(test), (len(test), 3))
    assert (model.predict_proba(test).argmax(axis=1) == data_labels("wine")).mean() > 0.8


@families
def test_fifty_classes_are_told_apart(name):
    draw = np.random.default_rng(0)
    centers = draw.normal(size=(50, 20), scale=3)
    labels = np.repeat(np.arange(50), 8)
    features = (centers[labels] + draw.normal(size=(400, 20))).astype(np.float32)
    train, rest = np.arange(400) % 8 < 6, np.arange(400) % 8 >= 6
    few = {"trees": 15} if name in BOOSTERS else {}
    examples = (features[rest], labels[rest])
    model = fit(name, (features[train], labels[train]), examples, n_classes=50, block=few).model
    assert_probabilities(model.predict_proba(features[rest]), (100, 50))
    assert (model.predict_proba(features[rest]).argmax(axis=1) == labels[rest]).mean() > 0.5


@families
def test_a_single_class_is_refused(name):
    (features, labels), validation, _ = data("wine")
    with pytest.raises(family.ClassifierError, match=r"two or more of the classes 0\.\.2, received \[1\]"):
        fit(name, (features, np.ones_like(labels)), validation, n_classes=3)


@pytest.mark.parametrize("name", BOOSTERS)
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
