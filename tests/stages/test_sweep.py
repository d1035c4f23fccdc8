from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets

from pipeline.classifiers import table
from pipeline.classifiers.families import logistic_regression
from pipeline.classifiers.search import watchdog
from pipeline.classifiers.solvers import sigmoid
from pipeline.config import params_file
from pipeline.console.progress import NoLog
from pipeline.core import artifacts
from pipeline.core.params import Params, ParamsError
from pipeline.evaluation import metrics
from pipeline.stages import sweep

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("benign", "malignant")
NETWORK_COST = {"parameters": 1000, "multiply_adds": 2000, "bytes": 3000}
RUN = Path("results/runs/tiny-logistic_regression")
ONE = {"scale": ["standard"], "class_weight": [None]}
BLOCKS = {
    "catboost": {
        "search": "grid",
        "trees": 5,
        "patience": 2,
        "grid": {"depth": [2], "learning_rate": [0.3], "l2_leaf_reg": [3.0], "feature_fraction": [0.5], **ONE},
    },
    "gradient_boosting": {
        "search": "grid",
        "trees": 5,
        "patience": 2,
        "grid": {
            "max_leaf_nodes": [4],
            "learning_rate": [0.3],
            "max_features": [0.5],
            "min_samples_leaf": [5],
            "l2_regularization": [0.0],
            **ONE,
        },
    },
    "k_nearest_neighbors": {
        "search": "grid",
        "grid": {"n_neighbors": [3, 9], "metric": ["cosine"], "weights": ["distance"], **ONE},
    },
    "lightgbm": {
        "search": "grid",
        "trees": 5,
        "patience": 2,
        "grid": {"num_leaves": [4], "learning_rate": [0.3], "feature_fraction": [0.5], "min_data_in_leaf": [5], **ONE},
    },
    "linear_svm": {"search": "grid", "grid": {"C": [0.01, 0.1], **ONE}},
    "logistic_regression": {"search": "grid", "grid": {"C": [0.0001, 0.1, 1.0], **ONE}},
    "random_forest": {
        "search": "grid",
        "grid": {"n_estimators": [5, 9], "max_features": [0.3], "min_samples_leaf": [2], **ONE},
    },
    "rbf_svm": {
        "search": "grid",
        "exact_up_to": 10_000,
        "components": 50,
        "grid": {"C": [1.0], "gamma": ["scale"], **ONE},
    },
    "xgboost": {
        "search": "grid",
        "trees": 5,
        "patience": 2,
        "grid": {
            "max_depth": [2],
            "learning_rate": [0.3],
            "feature_fraction": [0.5],
            "min_child_weight": [1.0],
            "reg_lambda": [1.0],
            **ONE,
        },
    },
}
TPE = {
    "search": "tpe",
    "candidates": 14,
    "grid": {"C": {"low": 0.0001, "high": 100.0, "log": True}, "scale": ["standard"], "class_weight": [None]},
}
VALUES = {
    "seed": 0,
    "repeats": 1,
    "compute": {"threads": 2, "batch_size": 16},
    "selection": {"metric": "accuracy", "positive_class": "malignant"},
    "classifiers": BLOCKS,
}


class Steps(NoLog):
    def __init__(self):
        self.taken = []

    def step(self, step, metrics):
        self.taken.append((step, dict(metrics)))


def write_project(root: Path) -> None:
    """Write what the stages before a sweep leave: a manifest and features, here the breast cancer data."""
    features, labels = sklearn.datasets.load_breast_cancer(return_X_y=True)
    parts = np.resize(["train", "train", "validation", "test"], len(labels))
    rows = [
        {
            "path": f"{part}/{CLASSES[label]}/{row}.png",
            "label": CLASSES[label],
            "split": part,
            "group": row,
            "stratum": "",
            "sha256": f"{row:064x}",
        }
        for row, (part, label) in enumerate(zip(parts, labels, strict=True))
    ]
    artifacts.write_csv(root / artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS, rows)
    directory = root / artifacts.FEATURES / "tiny"
    directory.mkdir(parents=True)
    for part in artifacts.PARTS:
        np.save(directory / f"{part}.npy", features[parts == part].astype(np.float32))
    artifacts.write_json(directory / "meta.json", {"cost": NETWORK_COST})


@pytest.fixture
def project(tmp_path, monkeypatch):
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(classifier: str = "logistic_regression", log: NoLog | None = None) -> None:
    reads = [key.format(backbone="tiny", classifier=classifier) for key in sweep.READS]
    sweep.main(Params(VALUES, reads), backbone="tiny", classifier=classifier, log=log or NoLog())


def test_the_record_of_a_classifier_says_what_its_features_were_fed(project, capsys):
    run()
    assert artifacts.read_record(RUN / "record.json").ablation is None
    meta = artifacts.FEATURES / "tiny" / "meta.json"
    artifacts.write_json(meta, artifacts.read_json(meta) | {"ablation": "fed pixels / 255"})
    capsys.readouterr()
    run()
    assert artifacts.read_record(RUN / "record.json").ablation == "fed pixels / 255"
    assert "ablation: the features are those of tiny fed pixels / 255" in capsys.readouterr().out


def contents(directory: Path) -> dict[str, bytes]:
    files = (file for file in sorted(directory.rglob("*")) if file.is_file())
    return {file.relative_to(directory).as_posix(): file.read_bytes() for file in files}


def test_a_sweep_keeps_every_candidate_and_the_model_that_validation_prefers(project):
    run()
    record = artifacts.read_record(RUN / "record.json")
    predictions = artifacts.read_predictions(RUN / "predictions.npz")
    labels = artifacts.read_part("validation").labels
    assert [candidate.name for candidate in record.candidates] == ["C=0.0001", "C=0.1", "C=1"]
    assert predictions.validation.shape == (3, len(labels), 2)
    assert record.selected == metrics.select(predictions.validation, labels, metric="accuracy", positive=1) != 0
    model = logistic_regression.load(RUN)
    for part, saved in (("validation", predictions.validation[record.selected]), ("test", predictions.test)):
        features = np.load(artifacts.FEATURES / "tiny" / f"{part}.npy")
        np.testing.assert_array_equal(model.predict_proba(features), saved)


def test_the_record_says_what_went_in_and_what_the_model_costs(project):
    run()
    record = artifacts.read_record(RUN / "record.json")
    features = "data/features/tiny"
    assert record.name == RUN.name
    assert record.classes == list(CLASSES)
    assert record.parameters["classifiers.logistic_regression"] == BLOCKS["logistic_regression"]
    assert sorted(record.inputs) == [
        *(f"{features}/{name}" for name in ("meta.json", "test.npy", "train.npy", "validation.npy")),
        "data/split/manifest.csv",
    ]
    assert all(digest == artifacts.sha256_file(Path(path)) for path, digest in record.inputs.items())
    files = sum((RUN / name).stat().st_size for name in ("model.npz", "preparation.npz"))
    assert record.cost == artifacts.Cost(
        trainable_parameters=31, total_parameters=1031, model_bytes=3000 + files, multiply_adds=2030
    )
    assert artifacts.read_json(RUN / "features.json") == {"cost": NETWORK_COST}


def test_every_candidate_is_logged_with_its_validation_score(project):
    log = Steps()
    run(log=log)
    predictions = artifacts.read_predictions(RUN / "predictions.npz")
    labels = artifacts.read_part("validation").labels
    scores = [metrics.score("accuracy", each, labels, positive=1) for each in predictions.validation]
    assert log.taken == [(index, {"validation_accuracy": score}) for index, score in enumerate(scores)]


def test_the_groups_of_the_manifest_reach_whoever_divides_training_images(project, monkeypatch):
    seen = []
    monkeypatch.setattr(sigmoid, "folds", lambda labels, *, seed, groups: seen.append(tuple(groups)) or [])
    run("linear_svm")
    assert set(seen) == {artifacts.read_part("train").groups}


def test_candidates_of_an_approximation_say_so_and_the_others_do_not(project, monkeypatch):
    def names() -> list[str]:
        run("rbf_svm")
        record = artifacts.read_record(project / "results/runs/tiny-rbf_svm/record.json")
        return [candidate.name for candidate in record.candidates]

    plain = names()
    monkeypatch.setitem(BLOCKS["rbf_svm"], "exact_up_to", 100)
    assert plain == ["C=1, gamma=scale, scale=standard, class_weight=none"]
    assert names() == [f"{plain[0]}, Nystroem of 50 images"]


@pytest.mark.parametrize("classifier", sorted(table.FAMILIES))
def test_two_sweeps_write_the_same_bytes_and_leave_no_cache(project, classifier):
    directory = project / f"results/runs/tiny-{classifier}"
    run(classifier)
    first = contents(directory)
    run(classifier)
    assert contents(directory) == first
    assert list(sweep.CACHE.iterdir()) == []
    assert str(project).encode() not in b"".join(first.values())


def test_a_sweep_killed_while_it_removes_its_cache_leaves_nothing_that_looks_kept(project, monkeypatch):
    run()
    undisturbed = contents(RUN)
    remove = tempfile.TemporaryDirectory.cleanup

    def killed(doomed):
        if Path(doomed.name).resolve().parent != sweep.CACHE.resolve():
            return remove(doomed)
        doomed._finalizer.detach()
        next(Path(doomed.name).rglob("candidate.json")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tempfile.TemporaryDirectory, "cleanup", killed)
        run()
    run()
    assert contents(RUN) == undisturbed


def test_a_killed_sweep_goes_on_where_it_was_and_ends_in_the_same_bytes(project, monkeypatch):
    run()
    undisturbed = contents(RUN)
    shutil.rmtree(RUN)
    fitted = []
    fit = logistic_regression.Fitter.fit

    def killed(self, parameters, start=None):
        if len(fitted) == 2:
            raise KeyboardInterrupt
        fitted.append(parameters["C"])
        return fit(self, parameters, start)

    monkeypatch.setattr(logistic_regression.Fitter, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert not RUN.exists()

    def resumed(self, parameters, start=None):
        fitted.append(parameters["C"])
        assert start is not None  # the solution next to it on the path, which the killed sweep found
        return fit(self, parameters, start)

    monkeypatch.setattr(logistic_regression.Fitter, "fit", resumed)
    log = Steps()
    run(log=log)
    assert fitted == [0.0001, 0.1, 1.0]
    assert len(log.taken) == 3
    assert contents(RUN) == undisturbed
    assert list(sweep.CACHE.iterdir()) == []


def test_candidates_kept_for_other_features_are_not_used(project, monkeypatch):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(metrics, "select", killed)
        run()
    assert list(sweep.CACHE.rglob("model.npz"))
    for part in artifacts.PARTS:
        path = artifacts.FEATURES / "tiny" / f"{part}.npy"
        np.save(path, np.load(path)[:, ::-1])
    run()
    after_kill = contents(RUN)
    run()
    assert contents(RUN) == after_kill


def test_another_selection_metric_fits_nothing_again(project, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(metrics, "select", interrupted)
        run()
    monkeypatch.setattr(logistic_regression.Fitter, "fit", interrupted)
    monkeypatch.setitem(VALUES, "selection", {"metric": "log_loss", "positive_class": "malignant"})
    log = Steps()
    run(log=log)
    assert [list(values) for _, values in log.taken] == [["validation_log_loss"]] * 3
    assert artifacts.read_record(RUN / "record.json").parameters["selection"]["metric"] == "log_loss"


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_no_byte_but_the_parameter(project, monkeypatch, threads):
    for classifier in ("k_nearest_neighbors", "linear_svm", "logistic_regression", "random_forest", "rbf_svm"):
        directory = project / f"results/runs/tiny-{classifier}"
        monkeypatch.setitem(VALUES, "compute", {"threads": 3, "batch_size": 16})
        run(classifier)
        expected = contents(directory)
        monkeypatch.setitem(VALUES, "compute", {"threads": threads, "batch_size": 16})
        run(classifier)
        found = contents(directory)
        assert {name for name in found if found[name] != expected[name]} == {"record.json"}


def test_the_labels_of_test_images_change_nothing(project):
    run()
    before = contents(RUN)
    text = artifacts.MANIFEST.read_text()
    swapped = [
        line.replace(",benign,", ",?,").replace(",malignant,", ",benign,").replace(",?,", ",malignant,")
        if ",test," in line
        else line
        for line in text.splitlines()
    ]
    artifacts.write_text(artifacts.MANIFEST, "\n".join(swapped) + "\n")
    assert artifacts.MANIFEST.read_text() != text
    run()
    after = contents(RUN)
    assert {name for name in before if before[name] != after[name]} == {"record.json"}  # the manifest's digest
    old = artifacts.Record.model_validate_json(before["record.json"]).model_dump(exclude={"inputs"})
    assert artifacts.read_record(RUN / "record.json").model_dump(exclude={"inputs"}) == old


def test_missing_features_and_unknown_families_are_errors_that_name_them(project):
    with pytest.raises(ParamsError, match="there is no family"):
        run("nearest_neighbor")
    (artifacts.FEATURES / "tiny" / "test.npy").unlink()
    with pytest.raises(artifacts.ArtifactError, match=r"data/features/tiny/test\.npy is missing"):
        run()


def test_a_sweep_imports_neither_tensorflow_nor_mlflow_nor_the_table_of_families(project):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.stages.test_sweep import BLOCKS, run\n"
        "sys.modules.pop('pipeline.classifiers.table')  # this test module imports it\n"
        "[run(classifier) for classifier in BLOCKS]\n"
        "unwanted = {'tensorflow', 'keras', 'mlflow', 'openvino', 'optuna', 'pipeline.classifiers.table'}\n"
        "print('imported', sorted(unwanted & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "imported []"


def test_a_tpe_search_killed_and_resumed_proposes_the_same_points_and_ends_in_the_same_bytes(project, monkeypatch):
    monkeypatch.setitem(VALUES["classifiers"], "logistic_regression", TPE)
    run()
    undisturbed = contents(RUN)
    record = artifacts.read_record(RUN / "record.json")
    assert len({candidate.name for candidate in record.candidates}) == 14
    shutil.rmtree(RUN)
    fit, fitted = logistic_regression.Fitter.fit, []

    def killed(self, parameters, start=None):
        if len(fitted) in (4, 12):  # among the draws, and among what was learned
            fitted.append(None)
            raise KeyboardInterrupt
        fitted.append(parameters["C"])
        return fit(self, parameters, start)

    monkeypatch.setattr(logistic_regression.Fitter, "fit", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run()
    run()
    assert [C for C in fitted if C] == [candidate.parameters["C"] for candidate in record.candidates]
    assert contents(RUN) == undisturbed


def test_another_selection_metric_begins_a_tpe_search_anew(project, monkeypatch):
    monkeypatch.setitem(VALUES["classifiers"], "logistic_regression", {**TPE, "candidates": 2})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(metrics, "select", interrupted)
        run()
    monkeypatch.setattr(logistic_regression.Fitter, "fit", interrupted)
    monkeypatch.setitem(VALUES, "selection", {"metric": "log_loss", "positive_class": "malignant"})
    with pytest.raises(KeyboardInterrupt):
        run()


def test_a_candidate_that_takes_too_long_stops_the_sweep_and_the_next_one_goes_on_from_those_before(project):
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from pipeline.classifiers.families import logistic_regression; from tests.stages.test_sweep import run\n"
        "fit = logistic_regression.Fitter.fit\n"
        "slow = sys.argv[2] == 'slow'\n"
        "def maybe_slow(self, parameters, start=None):\n"
        "    print('fits', parameters['C'], flush=True)\n"
        "    while slow and parameters['C'] == 1.0: fit(self, parameters, start)\n"
        "    return fit(self, parameters, start)\n"
        "logistic_regression.Fitter.fit = maybe_slow\n"
        "run()"
    )

    def sweep_with(limit: str, how: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, watchdog.CANDIDATE_TIMEOUT: limit}
        command = [sys.executable, "-c", code, str(ROOT), how]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    stopped = sweep_with("3", "slow")
    assert stopped.returncode == watchdog.STATUS, stopped.stderr
    assert "error: logistic_regression: candidate 3/3, C=1: stopped after 3 s." in stopped.stderr
    assert "classifiers.logistic_regression" in stopped.stderr and watchdog.CANDIDATE_TIMEOUT in stopped.stderr
    assert not RUN.exists()
    resumed = sweep_with("60", "fast")
    assert resumed.returncode == 0, resumed.stderr
    assert [line for line in resumed.stdout.splitlines() if line.startswith("fits")] == ["fits 1.0"]
    after_stop = contents(RUN)
    run()
    assert contents(RUN) == after_stop


def test_a_bad_time_limit_is_an_error_before_anything_is_fitted(project, monkeypatch):
    monkeypatch.setattr(logistic_regression.Fitter, "fit", interrupted)
    monkeypatch.setenv(watchdog.CANDIDATE_TIMEOUT, "soon")
    with pytest.raises(watchdog.TimeoutSettingError, match="received 'soon'"):
        run()


MAJORITY = '''
"""Says what share of training each class has, whatever the image."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pydantic

from pipeline.classifiers.search import family, search_space as search


class Grid(search.Grid):
    smoothing: search.Values[Annotated[int, pydantic.Field(ge=0)]]


class Params(search.Search):
    grid: Grid


@dataclass(frozen=True)
class Model:
    shares: np.ndarray

    def predict_proba(self, features):
        return np.tile(self.shares, (len(features), 1))

    def cost(self):
        return self.shares.size, 0

    def save(self, directory):
        np.save(directory / "shares.npy", self.shares)


class Fitter(family.Fitter):
    def fit(self, parameters, start=None):
        labels = self.task.train[1]
        counts = np.bincount(labels, minlength=self.task.n_classes) + parameters["smoothing"]
        model = Model((counts / counts.sum()).astype(np.float32))
        return family.Fit(model, model.predict_proba(self.task.validation[0]))


def load(directory):
    return Model(np.load(directory / "shares.npy"))
'''


def test_a_new_family_is_one_module_a_line_in_the_table_and_a_block_of_params(project, stages, values):
    """In a copy of the package: nothing else has to know of it, not even dvc.yaml."""
    shutil.copytree(ROOT / "pipeline", project / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, project / name)
    package = project / "pipeline" / "classifiers"
    (package / "families" / "majority.py").write_text(MAJORITY, encoding="utf-8")
    table_file = package / "table.py"
    entry = '    "majority": "pipeline.classifiers.families.majority",\n}'
    table_file.write_text(table_file.read_text(encoding="utf-8").rstrip().removesuffix("}") + entry, encoding="utf-8")
    grid = {"smoothing": [0, 10], "scale": [None], "class_weight": [None]}
    classifiers = {**values["classifiers"], "majority": {"search": "grid", "grid": grid}}
    params_file.override(project / "params.yaml", {"classifiers": classifiers})
    code = (
        "from pipeline.core import params; from pipeline.config import schema; from pipeline.console.progress import NoLog; from pipeline.stages import sweep\n"
        "values = params.load(); schema.check(values)\n"
        "values['selection']['positive_class'] = 'malignant'\n"
        "reads = [key.format(backbone='tiny', classifier='majority') for key in sweep.READS]\n"
        "sweep.main(params.Params(values, reads), backbone='tiny', classifier='majority', log=NoLog())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=project)
    record = artifacts.read_record(project / "results/runs/tiny-majority/record.json")
    assert [candidate.name for candidate in record.candidates] == ["smoothing=0", "smoothing=10"]
    from dvc.repo import Repo

    # Not by `Repo.init`, whose logger may hold the stream that an earlier test captured.
    (project / ".dvc").mkdir()
    (project / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n", encoding="utf-8")
    with Repo(str(project)) as repo:
        names = [stage.addressing for stage in repo.index.stages]
    assert "sweep@efficientnet_lite0-majority" in names
    assert len(names) == len(stages) + 1
