"""MLflow shows every record once, whatever happened before; tested on real SQLite stores and real records."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlparse
from urllib.request import url2pathname

import numpy as np
import pandas
import pytest
from PIL import Image

from pipeline import tracking
from pipeline.audits.health import stores
from pipeline.classifiers import table
from pipeline.commands import ui
from pipeline.console.progress import NoLog
from pipeline.core import artifacts, provenance, run_identity
from pipeline.core.params import Params, Run
from pipeline.evaluation import metrics
from pipeline.networks import graphs
from pipeline.serving import predictor
from pipeline.stages import track
from pipeline.tracking import claims, contents, models, processes, run_inputs, store, writer

if TYPE_CHECKING:
    import mlflow

# MLflow and what it brings along warn about their own future.
pytestmark = [pytest.mark.filterwarnings("ignore")]

# Names of folders: with what a URI writes otherwise, and with what a URI may mean otherwise.
ODD_NAMES = ["it's #1 of üñï & 학교 + a=b@c;d", "100% a b%20c%2Fd?e=f"]
CLASSES = ["defective", "functional"]
RUNS = (Run("lite0", "logistic_regression", "sweep"), Run("lite0", "head", "head"))
SYNC = """
import pickle, sys
from pipeline import tracking
tracking.sync(tracking.locate(), pickle.load(sys.stdin.buffer))
"""


@pytest.fixture
def project(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project without runs that is the working directory, with an empty store of its own."""
    prepare(tmp_path, empty_database, monkeypatch)
    return tmp_path


def prepare(root: Path, empty_database: Path, patch: pytest.MonkeyPatch) -> None:
    patch.chdir(root)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "DVC_EXP_NAME"):
        patch.delenv(name, raising=False)
    patch.setenv("PYTHONPATH", str(provenance.ROOT))
    for name in (".mlflow", "backbone", "figures"):
        (root / name).mkdir()
    shutil.copy(empty_database, root / ".mlflow")
    (root / "backbone" / "spec.json").write_text("{}", encoding="utf-8")
    (root / "leaderboard.json").write_text("[]", encoding="utf-8")
    (root / "figures" / "roc.png").write_bytes(b"png")


def write_run(run: Run, *, candidates: int = 3, seed: int = 0) -> artifacts.Record:
    """Write a run's record and predictions as a stage does, and return the record."""
    random = np.random.default_rng(seed)
    epochs = {"loss": [0.7, 0.5, 0.4], "val_loss": [0.8, 0.6, 0.61]}
    record = artifacts.Record(
        stage=run.stage,
        network=run.network,
        method=run.method,
        classes=CLASSES,
        parameters={"seed": seed, "block": {"search": "grid", "C": [0.1, 1.0]}},
        inputs={"data/split/manifest.csv": "0" * 64},
        candidates=[
            artifacts.Candidate(
                name=f"C={index}",
                parameters={"C": index},
                converged=index > 0,
                notes={"iterations": 7},
                history=epochs if run.stage == "head" else {},
            )
            for index in range(candidates)
        ],
        selected=1 if candidates > 1 else 0,
        cost=artifacts.Cost(trainable_parameters=10, total_parameters=20, model_bytes=30, multiply_adds=40),
    )
    directory = artifacts.RUNS / run.name
    validation = random.dirichlet([1, 1], size=(candidates, 20)).astype(np.float32)
    artifacts.write_record(directory / "record.json", record)
    artifacts.write_predictions(directory / "predictions.npz", artifacts.Predictions(validation, validation[0]))
    (directory / "history.csv").write_text("epoch,loss\n", encoding="utf-8")
    (directory / "augmentation.png").write_bytes(b"a picture")
    return record


def method(run: Run, *, champion: bool = False, input_key: str | None = None) -> tracking.Method:
    directory = artifacts.RUNS / run.name
    predictions = artifacts.read_predictions(directory / "predictions.npz")
    labels = np.arange(20) % 2
    return tracking.Method(
        record=artifacts.read_record(directory / "record.json"),
        record_digest=run_identity.record_digest(directory),
        directory=directory.absolute(),
        input_key=input_key or f"key of {run.name}",
        validation=tuple(metrics.compute(candidate, labels, positive=0) for candidate in predictions.validation),
        test={"accuracy": tracking.Interval(0.8, 0.7, 0.9)},
        champion=champion,
        backbone=Path("backbone").absolute() if run.stage == "sweep" else None,
    )


def comparison(*methods: tracking.Method, environment: str = "here") -> tracking.Comparison:
    return tracking.Comparison(
        dataset="elpv",
        selected_by="accuracy",
        smaller_is_better=False,
        parts=tuple(tracking.DataSet(part, 20, hashlib.sha256(part.encode()).hexdigest()) for part in artifacts.PARTS),
        methods=methods,
        environment={"python": "3.11", "machine": environment},
        files=(Path("leaderboard.json").absolute(), Path("figures").absolute()),
    )


@pytest.fixture
def two_methods(project: Path) -> tracking.Comparison:
    write_run(RUNS[0], candidates=3)
    write_run(RUNS[1], candidates=1, seed=1)
    return comparison(method(RUNS[0], champion=True), method(RUNS[1]))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> tuple[Path, tracking.Comparison]:
    """A project whose store shows two methods, for tests that only look."""
    root = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        prepare(root, empty_database, patch)
        write_run(RUNS[0], candidates=3)
        write_run(RUNS[1], candidates=1, seed=1)
        what = comparison(method(RUNS[0], champion=True), method(RUNS[1]))
        assert str(sync(what)) == "2 methods and 4 candidates: 6 added, 0 already there"
    return root, what


@pytest.fixture
def shown(filled: tuple[Path, tracking.Comparison], monkeypatch: pytest.MonkeyPatch) -> tracking.Comparison:
    """What the store shows, with that store as the one in use."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(filled[0]))
    return filled[1]


def sync(what: tracking.Comparison) -> tracking.Report:
    return tracking.sync(tracking.locate(), what)


def sync_elsewhere(what: tracking.Comparison) -> subprocess.Popen:
    """Start a sync in a process of its own."""
    process = subprocess.Popen([sys.executable, "-c", SYNC], stdin=subprocess.PIPE)
    process.stdin.write(pickle.dumps(what))
    process.stdin.close()
    return process


def rows(query: str) -> list[tuple]:
    with closing(sqlite3.connect(tracking.locate().database, timeout=10)) as database:
        return database.execute(query).fetchall()


def state() -> dict[str, list[tuple]]:
    """Everything a store shows, without the random ids."""
    of_run = (
        "FROM {} JOIN runs r USING (run_uuid) "
        "WHERE r.lifecycle_stage = 'active' AND key != 'mlflow.parentRunId' ORDER BY 1, 2, 3, 4"
    )
    return {
        "runs": rows("SELECT name, status FROM runs WHERE lifecycle_stage = 'active' ORDER BY 1, 2"),
        "params": rows(f"SELECT r.name, key, value, 0 {of_run.format('params')}"),
        "metrics": rows(f"SELECT r.name, key, value, step {of_run.format('metrics')}"),
        "tags": rows(f"SELECT r.name, key, value, 0 {of_run.format('tags')}"),
        "inputs": rows("SELECT count(*) FROM inputs"),
        "models": rows("SELECT name, status FROM logged_models WHERE lifecycle_stage = 'active'"),
    }


def client():
    from mlflow import MlflowClient

    return MlflowClient(tracking.locate().uri)


def runs(condition: str = "") -> list:
    found = client().get_experiment_by_name("bakeoff-elpv")
    return client().search_runs([found.experiment_id], condition)


def the_method(name: str = "logistic_regression · lite0") -> mlflow.entities.Run:
    (found,) = [run for run in runs("tags.level = 'method'") if run.info.run_name == name]
    return found


# --- what a store shows --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("shown")
def test_every_method_is_a_run_with_its_candidates_nested() -> None:
    children = runs(f"tags.`mlflow.parentRunId` = '{the_method().info.run_id}'")
    assert [child.info.run_name for child in children] == ["C=0", "C=1", "C=2"]
    assert [child.data.tags["selected"] for child in children] == ["false", "true", "false"]
    assert [child.data.tags["converged"] for child in children] == ["false", "true", "true"]


@pytest.mark.usefixtures("shown")
def test_methods_of_every_kind_carry_the_same_metric_names() -> None:
    shared = {f"validation_{name}" for name in metrics.NAMES}
    assert all(shared <= run.data.metrics.keys() for run in runs())


@pytest.mark.usefixtures("shown")
def test_the_scores_on_test_are_those_of_the_methods_with_the_images_they_are_of() -> None:
    part = hashlib.sha256(b"test").hexdigest()
    found = tracking.scores(tracking.locate(), "elpv", metric="accuracy")
    assert [(one.run, one.value, one.test_part, one.deleted) for one in found] == [
        ("lite0-head", 0.8, part, False),
        ("lite0-logistic_regression", 0.8, part, False),
    ]
    assert len({one.record for one in found}) == 2
    assert tracking.scores(tracking.locate(), "elpv", metric="roc_auc") == []
    assert tracking.scores(tracking.locate(), "folder", metric="accuracy") is None


def test_a_deleted_run_was_a_look_all_the_same(two_methods: tracking.Comparison) -> None:
    sync(two_methods)
    client().delete_run(the_method().info.run_id)
    found = tracking.scores(tracking.locate(), "elpv", metric="accuracy")
    assert sorted(one.deleted for one in found) == [False, True]
    # The same record again is no further model.
    sync(two_methods)
    assert [one.deleted for one in tracking.scores(tracking.locate(), "elpv", metric="accuracy")] == [False, False]


def test_scores_of_runs_that_an_older_version_logged_have_the_name_of_their_method(two_methods) -> None:
    """Otherwise no commit would have them, and a look that git records would count as one that it does not."""
    sync(two_methods)
    old = the_method().info.run_id
    client().delete_tag(old, "network")
    client().set_tag(old, "backbone", "lite0")
    found = tracking.scores(tracking.locate(), "elpv", metric="accuracy")
    assert sorted(one.run for one in found) == ["lite0-head", "lite0-logistic_regression"]


CONNECT = """
import sys
from pipeline import tracking
from pipeline.tracking import store
print(store.connect(tracking.Store(sys.argv[1]), "elpv").experiment)
"""


def test_a_store_whose_creation_was_killed_is_made_by_the_next(tmp_path: Path) -> None:
    """MLflow makes its tables one by one, and fails for ever on a database that has some of them."""
    database, new = tmp_path / "mlflow.db", tmp_path / ".mlflow.db.new"
    command = [sys.executable, "-c", CONNECT, f"sqlite:///{database}"]
    first = subprocess.Popen(command, cwd=provenance.ROOT)
    deadline = time.monotonic() + 120
    while not (new.exists() and new.stat().st_size > 100_000) and time.monotonic() < deadline:
        time.sleep(0.002)
    first.kill()
    first.wait()
    assert new.exists() and not database.stat().st_size, "it was killed too early or too late for this test"
    done = subprocess.run(command, cwd=provenance.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert not list(tmp_path.glob(".mlflow.db.new*"))


def test_a_store_that_was_left_half_made_by_others_says_what_to_do(tmp_path: Path) -> None:
    place = tracking.Store(f"sqlite:///{tmp_path}/mlflow.db")
    with closing(sqlite3.connect(place.database)) as opened:
        opened.execute("create table experiments (experiment_id integer)")
    with pytest.raises(tracking.TrackingError, match=r"half made.*remove .*mlflow\.db, and `python -m pipeline sync`"):
        store.connect(place, "elpv")
    place.database.unlink()
    assert store.connect(place, "elpv").experiment == "1"


def test_asking_for_scores_creates_no_store(tmp_path: Path) -> None:
    place = tracking.Store(f"sqlite:///{tmp_path}/none/mlflow.db")
    assert tracking.scores(place, "elpv", metric="accuracy", seconds=10) is None
    assert list(tmp_path.iterdir()) == []


def test_projects_with_folders_of_one_name_have_experiments_of_their_own_that_stay_when_images_are_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def name(*labels: str, path: str = "data/images") -> str:
        one = {"group": "", "stratum": "", "sha256": "0" * 64}
        rows = [{**one, "path": f"{i}.png", "label": label, "split": "train"} for i, label in enumerate(labels)]
        artifacts.MANIFEST.parent.mkdir(parents=True, exist_ok=True)
        artifacts.write_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS, rows)
        return tracking.dataset_name({"source": "folder", "path": path})

    assert re.fullmatch("images-[0-9a-f]{8}", name("good", "bad"))
    assert name("good", "bad") == name("bad", "good", "good", path="elsewhere/images")
    assert len({name("good", "bad"), name("cat", "dog"), name("cat", "dog", path="data/animals")}) == 3
    artifacts.MANIFEST.unlink()
    for published in ("elpv", "mnist"):
        assert tracking.dataset_name({"source": published, "path": "data/x.json"}) == published


def test_an_experiment_may_be_named_as_mlflow_names_it(two_methods: tracking.Comparison, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of our own")
    assert sync(two_methods).added == 6
    assert sync(two_methods).added == 0
    assert client().get_experiment_by_name("of our own") is not None
    assert client().get_experiment_by_name("bakeoff-elpv") is None
    assert tracking.audit(tracking.locate(), two_methods) == []


@pytest.mark.usefixtures("shown")
def test_test_metrics_with_intervals_are_on_the_methods_alone() -> None:
    expected = {"test_accuracy": 0.8, "test_accuracy_low": 0.7, "test_accuracy_high": 0.9}
    for run in runs():
        of_test = {name: value for name, value in run.data.metrics.items() if name.startswith("test_")}
        assert of_test == (expected if run.data.tags["level"] == "method" else {})


def test_a_methods_run_shows_its_selected_candidate(shown: tracking.Comparison) -> None:
    run = the_method()
    assert run.data.params["C"] == "1"
    assert run.data.params["candidate"] == "C=1"
    assert run.data.metrics["validation_accuracy"] == shown.methods[0].validation[1]["accuracy"]
    assert "Champion" in run.data.tags[contents.NOTE]


def test_nested_parameters_have_dotted_names_and_those_that_are_off_are_null() -> None:
    block = {"head.optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": False}, "head.early_stopping": None}
    assert contents.flatten(block) == {
        "head.optimizer.name": "sgd",
        "head.optimizer.momentum": "0.9",
        "head.optimizer.nesterov": "false",
        "head.early_stopping": "null",
    }


@pytest.mark.usefixtures("shown")
def test_epochs_are_steps_and_start_at_one() -> None:
    history = client().get_metric_history(the_method("head · lite0").info.run_id, "val_loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.8), (2, 0.6), (3, 0.61)]


def test_data_sets_carry_our_digests(shown: tracking.Comparison) -> None:
    run = client().get_run(the_method().info.run_id)
    known = {entry.dataset.name: entry.dataset for entry in run.inputs.dataset_inputs}
    assert known.keys() == {"elpv train", "elpv validation", "elpv test"}
    for part in shown.parts:
        assert part.sha256.startswith(known[f"elpv {part.part}"].digest)
        assert part.sha256 in known[f"elpv {part.part}"].profile
        assert run.data.tags[f"dataset.{part.part}.sha256"] == part.sha256


def test_a_score_without_an_interval_is_shown_alone(two_methods: tracking.Comparison) -> None:
    """Of a single group there is none, but for accuracy."""
    score = track._interval({"value": 0.4, "low": None, "high": None})
    one = dataclasses.replace(two_methods.methods[0], test={"log_loss": score})
    assert contents.description(one, "log_loss").endswith("test log loss **0.400**.")
    assert {name for name in contents.method_summary(one) if name.startswith("test_")} == {"test_log_loss"}


def test_views_and_notes_are_around_the_metric_that_chose(two_methods: tracking.Comparison) -> None:
    losses = {"log_loss": tracking.Interval(0.4, 0.3, 0.5)}
    methods = tuple(dataclasses.replace(one, test=one.test | losses) for one in two_methods.methods)
    sync(two_methods)
    sync(dataclasses.replace(two_methods, methods=methods, selected_by="log_loss", smaller_is_better=True))
    tags = client().get_experiment_by_name("bakeoff-elpv").tags
    state = json.loads(json.loads(tags["mlflow.sharedViewState.methods"])["state"])
    assert state["orderByKey"] == "metrics.`validation_log_loss`"
    assert state["orderByAsc"] is True
    assert {"metrics.`test_log_loss`", "metrics.`test_log_loss_high`"} <= set(state["selectedColumns"])
    assert len(set(state["selectedColumns"])) == len(state["selectedColumns"])
    run = the_method()
    assert "test log loss **0.400** [0.300, 0.500], test accuracy" in run.data.tags[contents.NOTE]
    shown = {column.split("`")[1] for column in state["selectedColumns"] if column.startswith("metrics.")}
    assert shown - {"test_roc_auc"} <= run.data.metrics.keys()


def test_a_network_without_pretraining_is_no_backbone(project: Path) -> None:
    write_run(Run("small", "scratch", "scratch"), candidates=1)
    write_run(RUNS[0], candidates=1)
    sync(comparison(method(Run("small", "scratch", "scratch")), method(RUNS[0], champion=True)))
    backbones = {run.data.tags["network"]: run.data.tags.get("backbone") for run in runs()}
    assert backbones == {"small": None, "lite0": "lite0"}
    logged = client().search_logged_models([runs()[0].info.experiment_id])
    assert {model.tags["network"]: model.tags.get("backbone") for model in logged} == backbones


@pytest.mark.parametrize("family", sorted(table.FAMILIES))
def test_a_models_requirements_are_what_its_code_imports(project: Path, family: str) -> None:
    write_run(Run("lite0", family, "sweep"), candidates=1)
    wanted = {line.partition("==")[0].lower() for line in models.requirements(method(Run("lite0", family, "sweep")))}
    assert {"mlflow", "numpy", "openvino", "pandas", "pillow", "keras"} <= wanted
    assert wanted & {"tensorflow", "tensorflow-cpu"}
    of_scipy = {"gradient_boosting", "linear_svm", "logistic_regression", "rbf_svm"}
    assert ("scipy" in wanted) == (family in of_scipy)
    boosters = {"lightgbm": "lightgbm", "catboost": "catboost", "xgboost": "xgboost", "xgboost-cpu": "xgboost"}
    assert {boosters[name] for name in wanted & boosters.keys()} == {family} & {*boosters.values()}
    assert not wanted & {"dvc", "pytest", "optuna", "joblib"}


def test_repeats_and_calibration_are_metrics_of_the_method_and_series_have_names_of_their_own(project: Path) -> None:
    record = write_run(RUNS[1], candidates=1)
    again = artifacts.Repeat(seed=5, history={"val_loss": [0.9, 0.7]})
    repeated = record.model_copy(update={"repeats": [again]})
    artifacts.write_record(artifacts.RUNS / RUNS[1].name / "record.json", repeated)
    one = dataclasses.replace(
        method(RUNS[1], champion=True),
        repeats=2,
        spread={"test": {"accuracy": (0.75, 0.05)}},
        calibrator={"kind": "temperature", "temperature": 1.5},
        calibrated={"test": {"log_loss": 0.3}},
    )
    sync(comparison(one))
    run = the_method("head · lite0")
    shown = run.data.metrics
    assert (shown["repeats"], shown["test_accuracy_mean"], shown["test_accuracy_sd"]) == (2, 0.75, 0.05)
    assert shown["calibrated_test_log_loss"] == 0.3 and shown["test_accuracy"] == 0.8
    assert "over 2 trainings test accuracy 0.750 ± 0.050" in run.data.tags[contents.NOTE]
    for name, values in (("val_loss", [0.8, 0.6, 0.61]), ("repeat_2_val_loss", [0.9, 0.7])):
        history = client().get_metric_history(run.info.run_id, name)
        assert [(point.step, point.value) for point in history] == list(enumerate(values, start=1))
    tags = client().get_experiment_by_name("bakeoff-elpv").tags
    page = json.loads(json.loads(tags["mlflow.sharedViewState.methods"])["state"])
    assert page["orderByKey"] == "metrics.`validation_accuracy_mean`"
    assert "metrics.`test_accuracy_sd`" in page["selectedColumns"]


def test_another_calibration_of_the_same_record_adds_a_model_and_takes_none_away(
    two_methods: tracking.Comparison,
) -> None:
    sync(two_methods)
    calibrated = tuple(
        dataclasses.replace(one, calibrator={"kind": "temperature", "temperature": 2.0}) for one in two_methods.methods
    )
    both = [("model", "READY")] * 2 + [("model_calibrated", "READY")] * 2
    for what in (dataclasses.replace(two_methods, methods=calibrated), two_methods):
        for _ in range(2):
            report = sync(what)
            assert report.added == 0 and report.warnings == ()
            assert sorted((name, "READY") for name, _ in state()["models"]) == both
    assert {name for _, key, name, _ in state()["tags"] if key == models.CALIBRATION} == {""}


@pytest.mark.usefixtures("shown")
def test_artifacts_and_the_model_are_with_the_method() -> None:
    import mlflow

    run_id = the_method().info.run_id
    files = {file.path for file in client().list_artifacts(run_id)}
    assert files >= {"record.json", "predictions.npz", "history.csv", "augmentation.png"}
    (figure,) = client().list_artifacts(run_id, "comparison/figures")
    assert figure.path == "comparison/figures/roc.png"
    found = client().search_logged_models([the_method().info.experiment_id], f"source_run_id = '{run_id}'")
    model = mlflow.models.Model.load(url2pathname(urlparse(found[0].artifact_location).path))
    assert [column.name for column in model.signature.inputs] == ["image"]
    assert [column.name for column in model.signature.outputs] == ["label", *CLASSES]


# --- nothing twice -------------------------------------------------------------------------------------------------


def test_a_second_sync_changes_nothing(two_methods: tracking.Comparison) -> None:
    sync(two_methods)
    before = state()
    assert sync(two_methods).added == 0
    assert state() == before


@pytest.mark.slow
@pytest.mark.parametrize("runs_in_store", [1, 2, 4])
def test_a_sync_after_a_killed_one_ends_as_an_undisturbed_one(
    two_methods: tracking.Comparison,
    runs_in_store: int,
    project: Path,
    empty_database: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sync(two_methods)
    undisturbed = state()
    (project / "disturbed" / ".mlflow").mkdir(parents=True)
    shutil.copy(empty_database, project / "disturbed" / ".mlflow")
    monkeypatch.setenv("DVC_ROOT", str(project / "disturbed"))
    writer = sync_elsewhere(two_methods)
    while rows("SELECT count(*) FROM runs")[0][0] < runs_in_store:
        time.sleep(0.002)
    writer.kill()
    assert writer.wait() == -signal.SIGKILL
    sync(two_methods)
    assert state() == undisturbed


def test_deleted_runs_come_back_and_candidates_keep_one_parent(two_methods: tracking.Comparison) -> None:
    sync(two_methods)
    before = state()
    client().delete_run(the_method().info.run_id)
    client().delete_run(next(run for run in runs() if run.info.run_name == "C=2").info.run_id)
    assert sync(two_methods).added == 2
    after = state()
    assert after["runs"] == before["runs"]
    parents = {run.data.tags[contents.PARENT] for run in runs("tags.level = 'candidate'")}
    assert parents == {run.info.run_id for run in runs("tags.level = 'method'")}


def test_a_deleted_store_is_filled_again(two_methods: tracking.Comparison, project: Path) -> None:
    sync(two_methods)
    before = state()
    shutil.rmtree(project / ".mlflow")
    assert sync_elsewhere(two_methods).wait() == 0
    assert state() == before


def test_a_new_comparison_replaces_the_values_shown(two_methods: tracking.Comparison) -> None:
    sync(two_methods)
    first, second = two_methods.methods
    better = {"accuracy": tracking.Interval(0.85, 0.75, 0.95)}
    changed = [dataclasses.replace(second, champion=True, test=better), dataclasses.replace(first, champion=False)]
    assert sync(dataclasses.replace(two_methods, methods=tuple(changed))).added == 0
    assert the_method().data.tags["champion"] == "false"
    assert the_method("head · lite0").data.tags["champion"] == "true"
    assert the_method("head · lite0").data.metrics["test_accuracy"] == 0.85


def test_a_new_record_makes_the_old_one_history(two_methods: tracking.Comparison) -> None:
    sync(two_methods)
    write_run(RUNS[0], seed=7)
    new = method(RUNS[0], champion=True, input_key="key of other parameters")
    report = sync(dataclasses.replace(two_methods, methods=(new, two_methods.methods[1])))
    assert report.added == 4
    assert report.warnings == ()
    found = runs("tags.level = 'method' and tags.method = 'logistic_regression'")
    assert {run.data.tags["record"]: run.data.tags["current"] for run in found} == {
        new.record_digest: "true",
        two_methods.methods[0].record_digest: "false",
    }
    assert len(runs("tags.level = 'candidate' and tags.current = 'false'")) == 3


def test_experiments_of_dvc_leave_the_workspaces_runs_current(
    two_methods: tracking.Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(two_methods)
    monkeypatch.setenv("DVC_EXP_NAME", "tried-it")
    write_run(RUNS[0], seed=7)
    sync(comparison(method(RUNS[0], input_key="other")))
    found = runs("tags.level = 'method' and tags.method = 'logistic_regression'")
    assert {run.data.tags.get("dvc_experiment"): run.data.tags["current"] for run in found} == {
        None: "true",
        "tried-it": "true",
    }


# --- what a stage logs while it runs -------------------------------------------------------------------------------


@pytest.fixture
def inputs(project: Path) -> Iterator[run_inputs.Inputs]:
    (project / "input").write_text("images", encoding="utf-8")
    yield run_inputs.Inputs("head", {"backbone": "lite0"}, {"seed": 0}, ("input",), ("pipeline.core.seeds",))


def live_head(inputs: run_inputs.Inputs, seed: int = 0) -> None:
    with tracking.live(dataset="elpv", run=RUNS[1], inputs=inputs) as log:
        for epoch, loss in enumerate([0.7, 0.5, 0.4]):
            log.step(epoch, {"loss": loss, "validation_accuracy": 0.1})
        write_run(RUNS[1], candidates=1, seed=seed)


def here(*methods: tracking.Method) -> tracking.Comparison:
    """The comparison as the process that logged live sees it."""
    return dataclasses.replace(comparison(*methods), environment=provenance.environment())


def test_a_live_run_is_adopted_with_its_times_and_completed(
    inputs: run_inputs.Inputs, capfd: pytest.CaptureFixture[str]
) -> None:
    before = int(time.time() * 1000)
    live_head(inputs)
    assert capfd.readouterr() == ("", "")
    (live,) = runs()
    assert live.info.status == "FINISHED"
    assert before <= live.info.start_time <= live.info.end_time <= time.time() * 1000
    points = client().get_metric_history(live.info.run_id, "loss")

    report = sync(here(method(RUNS[1], champion=True, input_key=inputs.key())))
    run = the_method("head · lite0")
    assert report.added == 2
    assert run.info.run_id == live.info.run_id
    assert (run.info.start_time, run.info.end_time) == (live.info.start_time, live.info.end_time)
    assert client().get_metric_history(run.info.run_id, "loss") == points
    assert [point.step for point in client().get_metric_history(run.info.run_id, "val_loss")] == [1, 2, 3]
    assert run.data.metrics["validation_accuracy"] != 0.1
    assert run.data.tags["environment_witnessed"] == "true"
    assert sync(here(method(RUNS[1], champion=True, input_key=inputs.key()))).added == 0


def test_computing_the_same_again_leaves_one_run(inputs: run_inputs.Inputs) -> None:
    live_head(inputs)
    sync(here(method(RUNS[1], input_key=inputs.key())))
    first = the_method("head · lite0").info.run_id
    live_head(inputs)
    assert len(runs("tags.level = 'method'")) == 2
    assert sync(here(method(RUNS[1], input_key=inputs.key()))).added == 0
    assert the_method("head · lite0").info.run_id == first


def test_the_same_record_from_another_environment_is_a_second_run(inputs: run_inputs.Inputs) -> None:
    live_head(inputs)
    sync(here(method(RUNS[1], input_key=inputs.key())))
    first = the_method("head · lite0")
    client().set_tag(first.info.run_id, "environment", "of another machine")
    live_head(inputs)
    report = sync(here(method(RUNS[1], input_key=inputs.key())))
    assert report.warnings == ()
    found = runs("tags.level = 'method'")
    assert len({run.data.tags["environment"] for run in found}) == len(found) == 2
    assert len(runs("tags.level = 'candidate'")) == 2


def test_two_records_from_the_same_inputs_are_shouted_about(inputs: run_inputs.Inputs) -> None:
    live_head(inputs, seed=1)
    sync(here(method(RUNS[1], input_key=inputs.key())))
    live_head(inputs, seed=2)
    report = sync(here(method(RUNS[1], input_key=inputs.key())))
    assert len(report.problems) == 1
    assert report.problems[0].startswith("NOT DETERMINISTIC: lite0-head ended in two different records")
    one, other = runs("tags.level = 'method'")
    assert one.data.tags["not_deterministic"] == other.info.run_id
    assert other.data.tags["not_deterministic"] == one.info.run_id


def test_another_record_from_another_environment_is_no_cause_to_shout(two_methods: tracking.Comparison) -> None:
    sync(two_methods)
    write_run(RUNS[0], seed=7)
    report = sync(comparison(method(RUNS[0]), environment="elsewhere"))
    assert report.warnings == ()
    assert len(runs("tags.level = 'method' and tags.method = 'logistic_regression'")) == 2


STAGE = """
import sys, time
from pipeline.tracking import run_inputs as identity; from pipeline import tracking
from pipeline.core.params import Run
inputs = identity.Inputs("head", {"backbone": "lite0"}, {"seed": 0}, ("input",), ("pipeline.core.seeds",))
with tracking.live(dataset="elpv", run=Run("lite0", "head", "head"), inputs=inputs) as log:
    log.step(0, {"loss": 0.9})
    time.sleep(600)
"""


def started_stage() -> subprocess.Popen:
    """Start a stage that logs one epoch and then trains for ever; return when its live run is in the store."""
    tracking.store.connect(tracking.locate(), "bakeoff-elpv")
    stage = subprocess.Popen([sys.executable, "-c", STAGE])
    wait_until(lambda: rows("SELECT count(*) FROM metrics")[0][0] > 0)
    return stage


def wait_until(happened, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_stages_run_says_so_and_is_replaced(inputs: run_inputs.Inputs) -> None:
    stage = started_stage()
    stage.kill()
    stage.wait()
    wait_until(lambda: rows("SELECT status FROM runs") == [("KILLED",)])
    live_head(inputs)
    assert [run.info.status for run in runs()] == ["FINISHED"]


@pytest.mark.slow
def test_the_run_of_a_stage_that_still_runs_is_kept(inputs: run_inputs.Inputs) -> None:
    stage = started_stage()
    try:
        live_head(inputs)
        sync(here(method(RUNS[1], input_key=inputs.key())))
        assert sorted(run.info.status for run in runs("tags.level = 'method'")) == ["FINISHED", "RUNNING"]
    finally:
        stage.kill()
        stage.wait()


def test_a_reused_process_id_is_not_taken_for_the_old_process() -> None:
    tags = processes.tags_of(os.getpid())
    assert processes.is_alive(tags)
    assert not processes.is_alive({**tags, "process_start": "1"})
    assert processes.is_alive({**tags, "process_start": "1", "machine": "another"})


@pytest.mark.parametrize(("age", "alive"), [(0, True), (processes.SECONDS_ALIVE + 60, False), (None, False)])
def test_on_another_machine_a_process_is_alive_as_long_as_it_gives_signs_of_life(age: int | None, alive: bool) -> None:
    tags = {**processes.tags_of(os.getpid()), "host": socket.gethostname(), "machine": "another of the same name"}
    tags["seen"] = "" if age is None else f"{time.time() - age:.0f}"
    assert processes.is_alive(tags) is alive


def test_a_container_with_the_name_of_its_host_is_another_machine(tmp_path: Path, monkeypatch) -> None:
    def place(boot: str, namespace: str) -> str:
        proc = tmp_path / f"{boot} {namespace}"
        for folder in ("sys/kernel/random", "self/ns"):
            (proc / folder).mkdir(parents=True, exist_ok=True)
        (proc / "sys/kernel/random/boot_id").write_text(boot)
        if not (proc / "self/ns/pid").is_symlink():
            (proc / "self/ns/pid").symlink_to(namespace)
        monkeypatch.setattr(processes, "_PROC", proc)
        return processes.machine()

    host = place("a", "pid:[1]")
    assert host == place("a", "pid:[1]")
    assert len({host, place("a", "pid:[2]"), place("b", "pid:[1]")}) == 3


@pytest.mark.parametrize("age", [0, 3600], ids=["alive", "cut off by a power cut"])
@pytest.mark.parametrize("known", [True, False], ids=["its record is known", "its record is not known"])
def test_a_live_run_of_another_machine_ends_when_its_signs_of_life_have_ended(
    inputs: run_inputs.Inputs, age: int, known: bool
) -> None:
    live_head(inputs)
    (run,) = runs()
    seen = f"{time.time() - age:.0f}"
    for name, value in {"state": "live", "record": "", "machine": "another", "seen": seen}.items():
        client().set_tag(run.info.run_id, name, value)
    client().update_run(run.info.run_id, "RUNNING")
    sync(here(method(RUNS[1], input_key=inputs.key() if known else "another")))
    status = {one.info.run_id: one.info.status for one in runs()}.get(run.info.run_id)
    assert status == ("RUNNING" if age == 0 else None if known else "KILLED")


def test_the_log_of_a_stage_without_steps_gives_signs_of_life(inputs: run_inputs.Inputs, monkeypatch) -> None:
    monkeypatch.setattr(processes, "SECONDS_BETWEEN_SIGNS", 0.2)
    clock = iter(range(1_000_000))
    monkeypatch.setattr(processes, "sign", lambda: ("seen", str(next(clock))))
    run = dataclasses.asdict(RUNS[1])
    begin = {"dataset": "elpv", "run": run, "inputs": dataclasses.asdict(inputs), "pid": os.getpid(), "time": 1}

    def lines() -> Iterator[str]:
        yield json.dumps(begin) + "\n"
        wait_until(lambda: rows("SELECT max(value + 0) FROM tags WHERE key = 'seen'")[0][0] == 3)
        yield json.dumps({"end": "finished", "record": None, "time": 2}) + "\n"

    assert writer.main(lines()) == 0
    assert [run.info.status for run in runs()] == ["FINISHED"]


def delete_folder(database: Path) -> None:
    shutil.rmtree(database.parent)


def delete_file(database: Path) -> None:
    database.unlink()


def replace_file(database: Path) -> None:
    shutil.copy(database, database.with_name("another"))
    os.replace(database.with_name("another"), database)


def forbid_writing(database: Path) -> None:
    """Do what file permissions do to everybody but root: SQLite cannot make its journal."""
    database.with_name(f"{database.name}-journal").mkdir()


LOSSES = {
    delete_folder: "was removed or replaced",
    delete_file: "was removed or replaced",
    replace_file: "was removed or replaced",
    forbid_writing: "failed: ",
}


@pytest.mark.parametrize("lose", LOSSES, ids=[lose.__name__ for lose in LOSSES])
def test_a_store_that_is_lost_while_a_stage_logs_is_one_warning_with_what_mends_it(
    inputs: run_inputs.Inputs, lose, capfd: pytest.CaptureFixture[str]
) -> None:
    database = tracking.locate().database
    with tracking.live(dataset="elpv", run=RUNS[1], inputs=inputs) as log:
        log.step(0, {"loss": 0.7})
        wait_until(lambda: rows("SELECT count(*) FROM metrics") == [(1,)])
        lose(database)
        log.step(1, {"loss": 0.5})
        write_run(RUNS[1], candidates=1)
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("warning: lite0-head is not logged live: the MLflow store ") and LOSSES[lose] in err
    assert err.endswith("The results are not affected; `python -m pipeline sync` fills MLflow from the records.\n")
    if lose is forbid_writing:
        database.with_name(f"{database.name}-journal").rmdir()
    # Another process, because in this one MLflow keeps the lost file open.
    assert sync_elsewhere(here(method(RUNS[1], champion=True, input_key=inputs.key()))).wait() == 0
    assert rows("SELECT count(*) FROM tags WHERE key = 'complete' AND value = 'true'") == [(2,)]


@pytest.mark.parametrize("lose", [delete_folder, delete_file, replace_file])
def test_a_store_that_is_lost_while_it_is_filled_is_an_error(two_methods, lose, monkeypatch) -> None:
    """SQLite goes on writing to a deleted file, so nothing else would fail."""
    finished = claims.is_complete
    monkeypatch.setattr(claims, "is_complete", lambda run: (lose_once(), finished(run))[1])

    def lose_once() -> None:
        if not lost:
            lost.append(lose(tracking.locate().database))

    lost: list[None] = []
    with pytest.raises(tracking.TrackingError, match="was removed or replaced while it was in use"):
        sync(two_methods)
    assert sync_elsewhere(two_methods).wait() == 0
    assert len(state()["runs"]) == 6 and len(state()["models"]) == 2


def test_a_failed_stage_is_logged_as_failed_and_keeps_its_error(inputs: run_inputs.Inputs) -> None:
    with pytest.raises(ZeroDivisionError), tracking.live(dataset="elpv", run=RUNS[1], inputs=inputs) as log:
        log.step(0, {"loss": 0.9})
        raise ZeroDivisionError
    tracking.store.connect(tracking.locate(), "bakeoff-elpv")
    wait_until(lambda: rows("SELECT status FROM runs") == [("FAILED",)])


# --- stores that are new, away or broken ---------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_may_create_the_store_at_once(two_methods: tracking.Comparison, project: Path) -> None:
    (project / ".mlflow" / "mlflow.db").unlink()
    both = [sync_elsewhere(two_methods) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(runs()) == 6


@pytest.fixture(params=["closed port", "folder is a file", "not a database"])
def broken_store(request: pytest.FixtureRequest, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "closed port":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{probe.getsockname()[1]}")
    elif request.param == "folder is a file":
        shutil.rmtree(project / ".mlflow")
        (project / ".mlflow").write_text("", encoding="utf-8")
    else:
        (project / ".mlflow" / "mlflow.db").write_text("this is no database" * 100, encoding="utf-8")


@pytest.mark.usefixtures("broken_store")
def test_a_broken_store_is_reported_soon(two_methods: tracking.Comparison) -> None:
    started = time.monotonic()
    with pytest.raises(tracking.TrackingError, match=r"the MLflow store .* failed"):
        sync(two_methods)
    assert time.monotonic() - started < 15


@pytest.mark.usefixtures("broken_store")
def test_live_logging_to_a_broken_store_is_one_warning(
    inputs: run_inputs.Inputs, capfd: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    live_head(inputs)
    assert time.monotonic() - started < 30
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("warning: lite0-head is not logged live: the MLflow store")


def test_the_store_is_the_projects_also_in_a_temporary_workspace(tmp_path: Path) -> None:
    odd = tmp_path / "a b%20c"
    store = tracking.locate({"DVC_ROOT": str(odd)})
    assert store.database == odd / ".mlflow" / "mlflow.db"
    assert tracking.locate({"DVC_ROOT": str(odd), "MLFLOW_TRACKING_URI": "http://there"}).uri == "http://there"


@pytest.fixture(params=ODD_NAMES)
def odd(request: pytest.FixtureRequest, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in a folder of which the name is a trial, alone in ``around``."""
    place = project / "around" / request.param
    place.mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(place))
    return place


def test_a_store_lies_in_the_project_and_nothing_beside_it_whatever_the_path_holds(
    two_methods: tracking.Comparison, odd: Path
) -> None:
    assert sync(two_methods).added == 6
    assert list(odd.parent.iterdir()) == [odd] and list(odd.iterdir()) == [odd / ".mlflow"]
    assert {path.name for path in (odd / ".mlflow").iterdir()} == {"mlflow.db", "artifacts", "create.lock", "sync.lock"}
    assert client().list_artifacts(the_method().info.run_id)
    assert tracking.audit(tracking.locate(), two_methods) == []
    assert [finding.level for finding in stores.mlflow()] == ["ok"]


@pytest.mark.slow
def test_the_page_shows_and_sends_artifacts_whatever_the_path_holds(
    two_methods: tracking.Comparison, odd: Path
) -> None:
    sync(two_methods)
    run = the_method()
    (model,) = client().search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    port = ui.free_port(5500)
    server = f"http://{ui.HOST}:{port}"
    with (odd / "messages").open("w+b") as messages, ui.start(tracking.locate(), port, messages) as process:
        try:
            ui.wait_until_ready(server, process, messages)

            def answer(page: str, **query: str) -> bytes:
                with urllib.request.urlopen(f"{server}/{page}?{urlencode(query)}", timeout=30) as response:
                    return response.read()

            listed = json.loads(answer("ajax-api/2.0/mlflow/artifacts/list", run_id=run.info.run_id))
            assert {"record.json", "predictions.npz"} <= {file["path"] for file in listed["files"]}
            sent = answer("get-artifact", path="record.json", run_uuid=run.info.run_id)
            assert sent == (two_methods.methods[0].directory / "record.json").read_bytes()
            page = f"ajax-api/2.0/mlflow/logged-models/{model.model_id}/artifacts/files"
            assert b"python_function" in answer(page, artifact_file_path="MLmodel")
        finally:
            os.killpg(process.pid, signal.SIGTERM)
    assert {path.name for path in odd.iterdir()} == {".mlflow", "messages"} and list(odd.parent.iterdir()) == [odd]


# --- a project that was copied or moved ----------------------------------------------------------------------------


def contents_of(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def places() -> set[str]:
    """Every text in a store's database and artifacts that names a place of this machine."""
    file = tracking.locate().database
    with closing(sqlite3.connect(file)) as database:
        texts = ["\n".join(database.iterdump())]
    texts += [path.read_text("utf-8", "ignore") for path in file.parent.glob("artifacts/**/MLmodel")]
    texts = [re.sub(r"'[^'\n]*/mlruns/0'", "", text) for text in texts]  # where the empty database was made
    return {one for text in texts for one in re.findall(r"(?:file://)?(?<![\w.-])/[\w%.-]+/[^'\"\s]+", text)}


@pytest.fixture
def original(two_methods: tracking.Comparison, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in a folder of its own, whose store shows two methods, one of them registered as a model by a person."""
    place = project / "öriginal"
    shutil.copytree(project / ".mlflow", place / ".mlflow")
    go_to(place, monkeypatch)
    sync(two_methods)
    client().create_registered_model("registered")
    client().create_model_version("registered", the_method().info.artifact_uri)
    return place


def go_to(place: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("DVC_ROOT", str(place))


def assert_whole(place: Path) -> None:
    """The store shows every run and model with its artifacts, all of which lie in ``place``."""
    assert [found for found in places() if not found.startswith(f"{(place / '.mlflow').as_uri()}/")] == []
    for run in runs("tags.level = 'method'"):
        files = {file.path for file in client().list_artifacts(run.info.run_id)}
        assert {"record.json", "predictions.npz"} <= files
    kept = client().search_logged_models([the_method().info.experiment_id])
    assert len(kept) == 2
    assert all(Path(url2pathname(urlparse(one.artifact_location).path), "MLmodel").exists() for one in kept)
    (version,) = client().search_model_versions("name = 'registered'")
    assert version.source == the_method().info.artifact_uri


def test_a_copied_project_finds_all_in_its_own_store_and_leaves_the_original_alone(
    two_methods: tracking.Comparison, original: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before, shown_before = contents_of(original), state()
    copy = shutil.copytree(original, original.with_name("a copy"))
    go_to(copy, monkeypatch)
    capfd.readouterr()
    assert sync(two_methods).added == 0
    assert f"copied or moved from {original}; its store" in capfd.readouterr().out.splitlines()[1]
    assert state() == shown_before
    client().delete_run(the_method().info.run_id)
    assert sync(two_methods).added == 1
    assert "copied or moved" not in capfd.readouterr().out
    assert contents_of(original) == before
    shutil.rmtree(original)
    client().create_model_version("registered", the_method().info.artifact_uri)
    client().delete_model_version("registered", "1")
    assert len(runs("tags.level = 'candidate'")) == 4


def test_a_stage_that_logs_live_is_the_first_to_say_that_its_project_was_copied(
    two_methods: tracking.Comparison,
    original: Path,
    inputs: run_inputs.Inputs,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = contents_of(original)
    go_to(shutil.copytree(original, original.with_name("copy")), monkeypatch)
    capfd.readouterr()
    live_head(inputs)
    out, err = capfd.readouterr()
    assert (out.count("\n"), err) == (1, "") and f"copied or moved from {original};" in out
    assert contents_of(original) == before


@pytest.mark.parametrize("named", [True, False], ids=["named by MLFLOW_TRACKING_URI, too", "by default"])
def test_a_moved_project_is_named_by_who_only_looks_and_put_right_by_sync(
    two_methods: tracking.Comparison, original: Path, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = original.rename(original.with_name("moved %20"))
    go_to(moved, monkeypatch)
    if named:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.locate().uri)
    before = contents_of(moved)
    (finding,) = stores.mlflow()
    assert (finding.level, finding.remedy) == ("problem", "python -m pipeline sync")
    assert f"copied or moved from {original}," in finding.message
    assert "moved" in {finding.subject for finding in tracking.audit(tracking.locate(), two_methods)}
    assert contents_of(moved) == before
    sync(two_methods)
    assert_whole(moved)
    assert tracking.audit(tracking.locate(), two_methods) == []
    assert [finding.level for finding in stores.mlflow()] == ["ok"]


def test_what_an_earlier_copy_kept_with_the_original_is_brought_home(
    two_methods: tracking.Comparison, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(original, original.with_name("copy"))
    go_to(copy, monkeypatch)
    place = Path(url2pathname(urlparse(the_method().info.artifact_uri).path)).relative_to(original)
    shutil.rmtree(copy / place.parent)
    before = contents_of(original)
    sync(two_methods)
    assert contents_of(copy / place) == contents_of(original / place)
    assert contents_of(original) == before
    shutil.rmtree(original)
    assert_whole(copy)


def test_a_link_to_the_project_and_a_store_of_ones_own_choice_are_no_moves(
    two_methods: tracking.Comparison, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = places()
    link = original.with_name("link")
    link.symlink_to(original)
    go_to(link, monkeypatch)
    assert [finding.level for finding in stores.mlflow()] == ["ok"]
    sync(two_methods)
    assert places() == before

    elsewhere = shutil.copytree(original, original.with_name("elsewhere"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.Store.at(elsewhere / ".mlflow" / "mlflow.db").uri)
    assert [finding.level for finding in stores.mlflow()] == ["ok"]
    sync(two_methods)
    assert places() == before


def test_locations_that_a_person_chose_are_left_as_they_are(two_methods, original: Path, monkeypatch) -> None:
    chosen = {"s3://bucket/x/.mlflow/artifacts", "/srv/artifacts", "file:///srv/.mlflow/others", "mlflow-artifacts:/1"}
    for number, location in enumerate(sorted(chosen)):
        client().create_experiment(str(number), location)
    go_to(original.rename(original.with_name("moved")), monkeypatch)
    sync(two_methods)
    assert chosen <= {one.artifact_location for one in client().search_experiments()}


# --- the stage and the commands ------------------------------------------------------------------------------------


@pytest.fixture
def tracked(two_methods: tracking.Comparison, values: dict) -> Params:
    """The parameters of a project in which everything before `track` has run."""
    rows = [(part, index) for part in artifacts.PARTS for index in range(20)]
    artifacts.write_csv(
        artifacts.MANIFEST,
        artifacts.MANIFEST_COLUMNS,
        [
            {
                "path": f"{part}/{CLASSES[index % 2]}/{index}.png",
                "label": CLASSES[index % 2],
                "split": part,
                "group": str(index),
                "stratum": "",
                "sha256": hashlib.sha256(f"{part}{index}".encode()).hexdigest(),
            }
            for part, index in rows
        ],
    )
    undefined = {"value": None, "low": None, "high": None}
    scores = {"accuracy": {"value": 0.8, "low": 0.7, "high": 0.9}, "roc_auc": undefined}
    board = [{"run": run.name, "champion": run is RUNS[0], "test": scores} for run in RUNS]
    artifacts.write_json(artifacts.LEADERBOARD, board)
    declared = {
        **values,
        "backbones": ["lite0"],
        "classifiers": {"logistic_regression": values["classifiers"]["logistic_regression"]},
        "head": {**values["head"], "backbones": ["lite0"]},
        "fine_tune": {**values["fine_tune"], "backbones": []},
        "scratch": {**values["scratch"], "networks": []},
        "explain": {**values["explain"], "runs": ["lite0-head"]},
    }
    return Params(declared, track.READS)


def test_the_stage_fills_the_store_and_leaves_a_marker_of_the_records(
    tracked: Params, two_methods: tracking.Comparison, capsys: pytest.CaptureFixture[str]
) -> None:
    (artifacts.BACKBONES / "lite0").mkdir(parents=True)
    track.main(tracked, log=NoLog())
    assert capsys.readouterr().out.splitlines() == [
        "MLflow: opening the store",
        "MLflow: 1/2 head · lite0: 2 runs added",
        "MLflow: 2/2 logistic_regression · lite0: 4 runs added",
        "MLflow: 2 methods and 4 candidates: 6 added, 0 already there",
    ]
    assert "test_roc_auc" not in the_method().data.metrics
    marker = artifacts.read_json(track.MARKER)
    assert marker["runs"] == {method.record.name: method.record_digest for method in two_methods.methods}


def test_the_stage_survives_a_store_that_is_away(
    tracked: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    track.main(tracked, log=NoLog())
    assert "`python -m pipeline sync` fills MLflow later" in capsys.readouterr().err
    assert set(artifacts.read_json(track.MARKER)["runs"]) == {run.name for run in RUNS}


def test_without_the_backbone_everything_but_the_model_is_shown(
    tracked: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    track.main(tracked, log=NoLog())
    assert "lite0-logistic_regression: the model is not in MLflow yet" in capsys.readouterr().err
    (artifacts.BACKBONES / "lite0").mkdir(parents=True)
    track.main(tracked, log=NoLog())
    said = capsys.readouterr().out
    assert "MLflow: 1/2 head · lite0: nothing to add\nMLflow: 2/2 logistic_regression · lite0: 1 run added\n" in said
    assert "1 added, 5 already there" in said


def test_a_run_of_other_params_is_not_shown_as_computed_from_todays(
    tracked: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sync` and `ui` may be called between an edit and `dvc repro`, whose run then has the input key of these params."""
    monkeypatch.setattr(run_inputs.Inputs, "key", lambda inputs, sha256: "of todays")

    def keys(**different: int) -> list[str | None]:
        for run in RUNS:
            path = artifacts.RUNS / run.name / "record.json"
            current = run_inputs.inputs_of(run, tracked.declared()).params
            artifacts.write_json(path, artifacts.read_json(path) | {"parameters": {**current, **different}})
        return [method.input_key for method in track.collect(tracked).methods]

    assert keys() == ["of todays"] * 2
    assert keys(seed=7) == [None, None]


def test_pages_of_what_a_network_sees_are_shown_with_the_training_that_they_show(tracked: Params) -> None:
    for run in RUNS:  # of these, only the head is to be explained
        about = {"record": run_identity.record_digest(artifacts.RUNS / run.name)}
        artifacts.write_json(artifacts.RESULTS / "explain" / run.name / "explain.json", about)
    explained = artifacts.RESULTS / "explain" / "lite0-head"
    (explained / "gradcam.png").write_bytes(b"png")
    assert [method.explained for method in track.collect(tracked).methods] == [
        (),
        (explained / "explain.json", explained / "gradcam.png"),
    ]
    artifacts.write_json(explained / "explain.json", {"record": "that of an earlier training"})
    assert [method.explained for method in track.collect(tracked).methods] == [(), ()]


def test_pages_of_what_a_network_sees_are_added_once_and_replaced_when_they_change(
    two_methods: tracking.Comparison,
) -> None:
    files = (Path("gradcam.png").absolute(), Path("explain.json").absolute())
    for file in files:
        file.write_bytes(b"first")
    head = dataclasses.replace(two_methods.methods[1], explained=files)
    what = dataclasses.replace(two_methods, methods=(two_methods.methods[0], head))
    sync(two_methods)
    assert str(sync(what)) == "2 methods and 4 candidates: 0 added, 6 already there"
    run = the_method("head · lite0")
    kept = Path(url2pathname(urlparse(run.info.artifact_uri).path)) / "explanation"
    assert {file.name: file.read_bytes() for file in kept.iterdir()} == {file.name: b"first" for file in files}
    before, times = state(), [file.stat().st_mtime_ns for file in kept.iterdir()]
    sync(what)
    assert state() == before
    assert [file.stat().st_mtime_ns for file in kept.iterdir()] == times
    files[0].write_bytes(b"second")
    sync(what)
    assert {file.name: file.read_bytes() for file in kept.iterdir()} == {
        "gradcam.png": b"second",
        "explain.json": b"first",
    }
    # A machine that has no pages takes nothing away.
    sync(two_methods)
    assert len(list(kept.iterdir())) == 2
    assert not client().list_artifacts(the_method().info.run_id, "explanation")


def test_the_ui_takes_the_next_free_port() -> None:
    with socket.socket() as taken:
        taken.bind((ui.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert ui.free_port(port) in range(port + 1, port + ui.PORTS_TO_TRY)


@pytest.mark.slow
def test_the_saved_model_gives_the_probabilities_of_the_predictor_whatever_the_path_holds(odd: Path) -> None:
    import keras
    import mlflow

    run = RUNS[1]
    record = write_run(run, candidates=1)
    images = {"square": "crop", "fill": "edge", "interpolation": "bilinear"}
    parameters = {"images": images, "compute": {"threads": 1, "batch_size": 2}}
    artifacts.write_record(
        artifacts.RUNS / run.name / "record.json", record.model_copy(update={"parameters": parameters})
    )
    layers = [
        keras.layers.Input((8, 8, 3)),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Dense(2, activation="softmax", kernel_initializer="glorot_uniform"),
    ]
    graphs.save(keras.Sequential(layers), artifacts.RUNS / run.name)
    whole = {"tensors": [], "engine": "openvino", "precision": "float32"}
    artifacts.write_json(artifacts.RUNS / run.name / "frozen.json", whole)
    sync(comparison(method(run, champion=True)))

    buffer = io.BytesIO()
    Image.new("RGB", (12, 9), (250, 10, 90)).save(buffer, format="PNG")
    expected = predictor.load(artifacts.RUNS / run.name).probabilities([buffer.getvalue()])
    (saved,) = client().search_logged_models([the_method("head · lite0").info.experiment_id])
    mlflow.set_tracking_uri(tracking.locate().uri)
    # MLflow decodes the path from which it loads once more, so that a model behind "%20" must be copied first.
    served = {"dst_path": tempfile.mkdtemp(dir=Path.cwd())} if "%20" in str(odd) else {}
    model = mlflow.pyfunc.load_model(f"models:/{saved.model_id}", **served)
    answer = model.predict(pandas.DataFrame({"image": [base64.b64encode(buffer.getvalue()).decode()]}))
    assert list(answer.columns) == ["label", *CLASSES]
    assert answer["label"][0] == CLASSES[int(expected[0].argmax())]
    assert np.array_equal(answer[CLASSES].to_numpy(dtype=np.float32), expected)
    with pytest.raises(mlflow.exceptions.MlflowException, match="image in row 0: it must be base64"):
        model.predict(pandas.DataFrame({"image": ["/etc/passwd.png"]}))

    calibrator = {"kind": "temperature", "temperature": 2.0}
    sync(comparison(dataclasses.replace(method(run, champion=True), calibrator=calibrator)))
    (saved,) = client().search_logged_models([the_method("head · lite0").info.experiment_id], "name='model_calibrated'")
    model = mlflow.pyfunc.load_model(saved.artifact_location, **served)
    answer = model.predict(pandas.DataFrame({"image": [base64.b64encode(buffer.getvalue()).decode()]}))
    softer = predictor.load(artifacts.RUNS / run.name, calibrator=calibrator).probabilities([buffer.getvalue()])
    assert np.array_equal(answer[CLASSES].to_numpy(), softer)
    assert softer.max() < expected.max()
    with pytest.raises(mlflow.exceptions.MlflowException, match="image in row 0: it must be base64"):
        model.predict(pandas.DataFrame({"image": ["/etc/passwd.png"]}))
