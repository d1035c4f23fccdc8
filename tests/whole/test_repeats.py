"""Facts of repeats: the first is the run without them, the others differ by their seed alone, and none is lost."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from pipeline.classifiers import table
from pipeline.classifiers.families import lightgbm, logistic_regression
from pipeline.classifiers.search import family
from pipeline.commands import demo
from pipeline.config import params_file
from pipeline.console.progress import NoLog
from pipeline.core import artifacts, seeds
from pipeline.core.params import Params
from pipeline.evaluation import metrics
from pipeline.networks import convnets, graphs
from pipeline.stages import fine_tune, head, scratch, sweep
from pipeline.training import fitting, network_runs
from tests import photographs
from tests.photographs import train
from tests.stages.test_sweep import VALUES, contents, interrupted, write_project
from tests.whole.test_pipeline import ONE_CANDIDATE, TINY, run


def test_the_first_repeat_has_the_root_seed_and_the_others_seeds_of_their_own():
    found = [seeds.repeat_seed(7, number) for number in range(1, 6)]
    assert found[0] == 7
    assert len(set(found)) == 5
    assert found != [seeds.repeat_seed(8, number) for number in range(1, 6)]


# --- classifiers ---------------------------------------------------------------------------------------------------


@pytest.fixture
def features(tmp_path, monkeypatch):
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sweep_with(repeats: int, classifier: str) -> dict[str, bytes]:
    """Run a sweep; return its files."""
    reads = [key.format(backbone="tiny", classifier=classifier) for key in sweep.READS]
    sweep.main(Params(VALUES | {"repeats": repeats}, reads), backbone="tiny", classifier=classifier, log=NoLog())
    return contents(artifacts.RUNS / f"tiny-{classifier}")


def spread_of(classifier: str) -> tuple[artifacts.Record, artifacts.Predictions]:
    directory = artifacts.RUNS / f"tiny-{classifier}"
    return (artifacts.read_record(directory / "record.json"), artifacts.read_predictions(directory / "predictions.npz"))


@pytest.mark.parametrize("classifier", ["lightgbm", "logistic_regression", "rbf_svm"])
def test_repeats_leave_the_first_training_as_it_was(features, classifier):
    alone = sweep_with(1, classifier)
    record, predictions = spread_of(classifier)
    together = sweep_with(3, classifier)
    repeated, all_predictions = spread_of(classifier)
    assert {name for name in alone if alone[name] != together[name]} == {"record.json", "predictions.npz"}
    assert alone.keys() == together.keys()
    np.testing.assert_array_equal(all_predictions.validation, predictions.validation)
    np.testing.assert_array_equal(all_predictions.test, predictions.test)
    assert predictions.repeats == 1 and record.repeats == []
    assert all_predictions.repeats == 3
    assert [repeat.seed for repeat in repeated.repeats] == [seeds.repeat_seed(0, number) for number in (2, 3)]
    left_out = {"repeats", "parameters"}
    assert repeated.model_dump(exclude=left_out) == record.model_dump(exclude=left_out)


@pytest.mark.parametrize("classifier", ["catboost", "lightgbm", "rbf_svm"])
def test_a_family_that_draws_comes_out_differently_with_every_seed(features, classifier):
    sweep_with(3, classifier)
    record, predictions = spread_of(classifier)
    assert record.draws
    chosen = predictions.validation[record.selected]
    assert (predictions.repeats_validation != chosen).any(axis=(1, 2)).all()
    assert (predictions.repeats_validation[0] != predictions.repeats_validation[1]).any()
    assert (predictions.repeats_test[0] != predictions.repeats_test[1]).any()
    # Another seed of the same method, not another method.
    assert np.abs(predictions.repeats_test - predictions.test).mean() < 0.1


def test_a_family_that_draws_nothing_is_not_fitted_again_and_has_no_spread(features, monkeypatch):
    fitted = []
    fit = logistic_regression.Fitter.fit

    def counted(self, parameters, start=None):
        fitted.append(parameters["C"])
        return fit(self, parameters, start)

    monkeypatch.setattr(logistic_regression.Fitter, "fit", counted)
    sweep_with(3, "logistic_regression")
    assert fitted == [0.0001, 0.1, 1.0]
    record, predictions = spread_of("logistic_regression")
    assert not record.draws and len(record.repeats) == 2
    chosen = predictions.validation[record.selected]
    np.testing.assert_array_equal(predictions.repeats_validation, np.stack([chosen, chosen]))
    np.testing.assert_array_equal(predictions.repeats_test, np.stack([predictions.test] * 2))


def test_a_family_that_says_it_draws_nothing_fits_the_same_with_every_seed(features):
    silent = [name for name in table.FAMILIES if not family.find(name).Fitter.draws]
    assert "logistic_regression" in silent
    for classifier in silent:
        reads = [key.format(backbone="tiny", classifier=classifier) for key in sweep.READS]
        found = []
        for seed in (0, 1):
            sweep.main(Params(VALUES | {"seed": seed}, reads), backbone="tiny", classifier=classifier, log=NoLog())
            found.append(spread_of(classifier)[1])
        np.testing.assert_array_equal(found[0].validation, found[1].validation)
        np.testing.assert_array_equal(found[0].test, found[1].test)


def test_a_sweep_killed_in_a_repeat_goes_on_there_and_ends_in_the_same_bytes(features, monkeypatch):
    undisturbed = sweep_with(4, "lightgbm")
    shutil.rmtree(artifacts.RUNS)
    fit, fitted = lightgbm.Fitter.fit, []

    def killed(self, parameters, start=None):
        if len(fitted) == 3:
            raise KeyboardInterrupt
        fitted.append(self.task.seed)
        return fit(self, parameters, start)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(lightgbm.Fitter, "fit", killed)
        sweep_with(4, "lightgbm")

    def counted(self, parameters, start=None):
        fitted.append(self.task.seed)
        return fit(self, parameters, start)

    monkeypatch.setattr(lightgbm.Fitter, "fit", counted)
    assert sweep_with(4, "lightgbm") == undisturbed
    assert len(fitted) == len(set(fitted)) == 4
    assert list(sweep.CACHE.iterdir()) == []


def test_repeats_of_another_candidate_are_not_taken_for_those_of_the_selected_one(features, monkeypatch):
    """What is kept of a killed sweep serves every selection metric, and another metric may select another candidate."""
    block = VALUES["classifiers"]["lightgbm"]
    two = {**block, "grid": {**block["grid"], "num_leaves": [2, 8]}}
    monkeypatch.setitem(VALUES, "classifiers", {"lightgbm": two})
    monkeypatch.setattr(metrics, "select", lambda *_, **__: 1)
    undisturbed = sweep_with(3, "lightgbm")
    monkeypatch.setattr(metrics, "select", lambda *_, **__: 0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(artifacts, "write_record", interrupted)
        sweep_with(3, "lightgbm")
    assert list(sweep.CACHE.rglob("repeat.json"))
    monkeypatch.setattr(metrics, "select", lambda *_, **__: 1)
    assert sweep_with(3, "lightgbm") == undisturbed


# --- networks ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project with a split of small images, dark and bright ones, and a small network as its backbone."""
    root = tmp_path_factory.mktemp("photographs")
    fitting.prepare(threads=2, seed=0)
    photographs.write_project(root)
    return root


@pytest.fixture
def images(project, tmp_path, monkeypatch):
    shutil.copytree(project / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BAKEOFF_FEATURE_STORE", str(tmp_path / "store"))
    tiny = convnets.Convnet(photographs.tiny_convnet, input_size=32, smallest=8)
    monkeypatch.setitem(convnets.CONVNETS, "small_convnet", tiny)
    return tmp_path


@pytest.mark.slow
def test_the_first_training_of_a_network_is_the_same_alone_and_among_others(images, monkeypatch):
    alone = contents(train(scratch, repeats=1))
    steps: list[set[str]] = []

    class Names(NoLog):
        def step(self, step, metrics):
            steps.append(set(metrics))

    directory = train(scratch, log=Names())
    undisturbed = contents(directory)
    predictions = artifacts.read_predictions(directory / "predictions.npz")
    assert {name for name in alone if alone[name] != undisturbed[name]} == {"record.json", "predictions.npz"}
    assert {"augmentation.png", "curves.png", "history.csv"} < alone.keys()
    assert undisturbed.keys() == alone.keys()  # of the other trainings only the predictions are kept
    assert (predictions.repeats_test[0] != predictions.test).any()
    assert [{name.startswith("repeat_2_") for name in names} for names in steps] == [{False}, {True}]

    trained, one = [], network_runs._train

    def killed(model, directory, *, seed, **others):
        trained.append(seed)
        if len(trained) == 2:
            raise KeyboardInterrupt
        one(model, directory, seed=seed, **others)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(network_runs, "_train", killed)
        train(scratch)
    monkeypatch.setattr(network_runs, "_train", killed)
    assert contents(train(scratch)) == undisturbed
    assert trained == [0, seeds.repeat_seed(0, 2), seeds.repeat_seed(0, 2)]
    assert list(network_runs.CACHE.iterdir()) == []


@pytest.mark.slow
def test_fine_tuning_starts_each_repeat_from_the_head_of_that_repeat(images):
    heads = train(head)
    of_heads = artifacts.read_predictions(heads / "predictions.npz")
    kept = contents(heads / "repeats")
    assert kept.keys() == {f"2/{graphs.ARCHITECTURE}", f"2/{graphs.WEIGHTS}"}
    assert kept[f"2/{graphs.WEIGHTS}"] != (heads / graphs.WEIGHTS).read_bytes()
    tuned = artifacts.read_predictions(train(fine_tune) / "predictions.npz")
    for part in ("validation", "test"):
        first, second = getattr(of_heads, part), getattr(of_heads, f"repeats_{part}")
        np.testing.assert_allclose(getattr(tuned, part), first, atol=1e-4)
        np.testing.assert_allclose(getattr(tuned, f"repeats_{part}"), second, atol=1e-4)
        assert np.abs(first - second).max() > 1e-2
    shutil.rmtree(heads / "repeats")
    with pytest.raises(artifacts.ArtifactError, match=r"repeats/2/network\S+ is missing"):
        train(fine_tune)


# --- all of it -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_whole_pipeline_with_repeats_and_calibration(root, tmp_path):
    """In a clone: every run trained twice, calibrated, on the leaderboard and in MLflow, and applied by predict."""
    clone = tmp_path / "clone"
    demo.copy_project(root, clone, leave_out=demo.RESULTS)
    trees = {
        "search": "grid",
        "trees": 10,
        "patience": 5,
        "grid": {
            "num_leaves": [4],
            "learning_rate": [0.3],
            "feature_fraction": [0.3],
            "min_data_in_leaf": [5],
            **ONE_CANDIDATE,
        },
    }
    classifiers = {"logistic_regression": TINY["classifiers"]["logistic_regression"], "lightgbm": trees}
    options = {"classifiers": classifiers, "repeats": 2, "compare.calibration": "temperature"}
    params_file.override(clone / "params.yaml", TINY | options)
    demo.commit(clone, "Tiny, twice")
    run(clone, "dvc", "repro")
    entries = json.loads((clone / "results" / "leaderboard.json").read_text())
    saved = json.loads((clone / "results" / "calibration.json").read_text())
    assert len(entries) == 5 and saved["runs"].keys() == {entry["run"] for entry in entries}
    means = [entry["repeats"]["validation"]["accuracy"]["mean"] for entry in entries]
    assert means == sorted(means, reverse=True)
    for entry in entries:
        assert entry["repeats"]["count"] == 2
        assert entry["repeats"]["draws"] == (entry["method"] != "logistic_regression")
        accuracy = entry["calibration"]["test"]["accuracy"]
        assert accuracy["before"] == accuracy["after"]
        directory = clone / "results" / "runs" / entry["run"]
        predictions = artifacts.read_predictions(directory / "predictions.npz")
        assert (predictions.repeats_test[0] == predictions.test).all() == (entry["method"] == "logistic_regression")
        assert (directory / "repeats").exists() == (entry["method"] == "head")
    shown = run(clone, "python", "-m", "pipeline", "leaderboard")
    assert "±" in shown and "→" in shown
    said = run(clone, "python", "-m", "pipeline", "predict", "data/split/test")
    assert "probabilities calibrated on validation (temperature" in said
    assert "Running stage" not in run(clone, "dvc", "repro")
    assert not list((clone / ".cache").glob("repeats/*")) and not list((clone / ".cache").glob("sweeps/*"))
    with contextlib.closing(sqlite3.connect(clone / ".mlflow" / "mlflow.db")) as database:
        names = [name for (name,) in database.execute("select key from latest_metrics")]
    for name in ("test_accuracy_mean", "validation_accuracy_sd", "calibrated_test_log_loss"):
        assert names.count(name) == 5
    # Live steps of the second training are there, each once.
    assert names.count("repeat_2_val_loss") == 3
