"""The whole pipeline in a temporary clone, on a few real images with the real network."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import sqlite3
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.commands import demo
from pipeline.config import params_file
from pipeline.core import artifacts, params

ONE_CANDIDATE = {"scale": ["standard"], "class_weight": ["balanced"]}
TINY = {
    "dataset.limit": 80,
    "classifiers": {
        "logistic_regression": {"search": "grid", "grid": {"C": [0.01, 0.1], **ONE_CANDIDATE}},
        "rbf_svm": {
            "search": "grid",
            "exact_up_to": 1000,
            "components": 10,
            "grid": {"C": [1.0], "gamma": ["scale"], **ONE_CANDIDATE},
        },
    },
    "head.epochs": 2,
    "fine_tune.epochs": 1,
    "fine_tune.unfreeze": {"from_layer": None, "last_layers": None, "last_blocks": 1},
    "scratch.epochs": 2,
    "scratch.input_size": 32,
    "explain.images": 1,
    "explain.patterns": {"filters": 1, "steps": 2, "input_size": 32},
    "compare.bootstrap_samples": 200,
}
RUNS = {
    "efficientnet_lite0-logistic_regression",
    "efficientnet_lite0-rbf_svm",
    "efficientnet_lite0-head",
    "efficientnet_lite0-fine_tune",
    "small_convnet-scratch",
}
pytestmark = pytest.mark.timeout(1500)


def prepare(root: Path, destination: Path) -> None:
    demo.copy_project(root, destination, leave_out=demo.RESULTS)
    params_file.override(destination / "params.yaml", TINY)
    demo.commit(destination, "Tiny")


def run(directory: Path, *command: str, check: bool = True) -> str:
    finished = subprocess.run(
        command, cwd=directory, env=demo.environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert not check or finished.returncode == 0, finished.stdout
    return finished.stdout


def lock_of(directory: Path) -> dict:
    return yaml.safe_load((directory / "dvc.lock").read_text())["stages"]


def query(directory: Path, sql: str) -> list[tuple]:
    with sqlite3.connect(directory / ".mlflow" / "mlflow.db") as database:
        return database.execute(sql).fetchall()


def test_every_declared_run_is_on_the_leaderboard_with_whole_artifacts(finished):
    entries = json.loads((finished / "results" / "leaderboard.json").read_text())
    assert {entry["run"] for entry in entries} == RUNS
    assert sum(entry["champion"] for entry in entries) == 1
    for entry in entries:
        for score in entry["test"].values():
            assert score["low"] <= score["high"]
        directory = finished / "results" / "runs" / entry["run"]
        record = artifacts.read_record(directory / "record.json")
        predictions = artifacts.read_predictions(directory / "predictions.npz")
        assert predictions.validation.shape == (len(record.candidates), 12, 2)
        assert predictions.test.shape == (20, 2)
        assert entry["cost"]["total_parameters"] >= entry["cost"]["trainable_parameters"] > 0
    for name in ("head", "fine_tune"):
        directory = finished / "results" / "runs" / f"efficientnet_lite0-{name}"
        assert (directory / "history.csv").read_text().startswith("epoch,loss,accuracy,val_loss,val_accuracy")
        for picture in ("curves.png", "augmentation.png"):
            assert (directory / picture).read_bytes().startswith(b"\x89PNG")


def test_no_output_holds_a_path_a_time_or_a_machine(finished):
    forbidden = [str(finished), platform.node(), os.path.expanduser("~") + "/"]
    for file in (finished / "results").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not [word for word in forbidden if len(word) > 3 and word.encode() in content], file


def test_a_second_repro_does_nothing(finished):
    assert "Running stage" not in run(finished, "dvc", "repro")


def test_touching_one_grid_re_runs_that_family_and_what_depends_on_it(finished):
    path = finished / "params.yaml"
    before = path.read_bytes()
    try:
        params_file.override(path, {"classifiers.rbf_svm.grid.C": [2.0]})
        would_run = [
            line.split("'")[1] for line in run(finished, "dvc", "repro", "--dry").splitlines() if "Running" in line
        ]
    finally:
        path.write_bytes(before)
    assert would_run == ["sweep@efficientnet_lite0-rbf_svm", "compare", "track"]


def test_mlflow_holds_every_method_and_candidate_once_and_again_after_the_store_is_gone(finished):
    def counts() -> dict[str, int]:
        return {
            "methods": query(
                finished,
                "select count(*) from runs r where lifecycle_stage='active' and not exists "
                "(select 1 from tags t where t.run_uuid=r.run_uuid and t.key='mlflow.parentRunId')",
            )[0][0],
            "runs": query(finished, "select count(*) from runs where lifecycle_stage='active'")[0][0],
            "repeated points": query(
                finished,
                "select count(*) from (select 1 from metrics m join runs r using (run_uuid)"
                " where lifecycle_stage='active' group by run_uuid, key, step having count(*)>1)",
            )[0][0],
        }

    first = counts()
    assert first["methods"] == len(RUNS)
    assert first["runs"] > len(RUNS)
    assert first["repeated points"] == 0
    run(finished, "python", "-m", "pipeline", "sync")
    assert counts() == first
    shutil.rmtree(finished / ".mlflow")
    lock = (finished / "dvc.lock").read_bytes()
    assert "Running stage 'track'" in run(finished, "dvc", "repro")
    assert counts() == first
    assert (finished / "dvc.lock").read_bytes() == lock


def test_metrics_of_every_method_have_the_same_names_in_mlflow(finished):
    names = {}
    for run_uuid, key in query(finished, "select run_uuid, key from latest_metrics"):
        names.setdefault(run_uuid, set()).add(key)
    methods = [keys for keys in names.values() if "test_accuracy" in keys]
    assert len(methods) == len(RUNS)
    for keys in methods:
        assert {"validation_accuracy", "validation_log_loss", "test_roc_auc", "test_accuracy_low"} <= keys


def test_predict_gives_the_numbers_that_were_evaluated(finished):
    manifest = finished / "data" / "split" / "manifest.csv"
    part = artifacts.read_part("test", manifest)
    # One that classifies features, one with a pretrained network of its own, one without.
    for name in ("efficientnet_lite0-rbf_svm", "efficientnet_lite0-fine_tune", "small_convnet-scratch"):
        expected = artifacts.read_predictions(finished / "results" / "runs" / name / "predictions.npz").test
        files = [f"data/split/{path}" for path in part.paths[:3]]
        output = run(
            finished,
            "python",
            "-m",
            "pipeline",
            "predict",
            "--run",
            name,
            "--top",
            "2",
            "--format",
            "json",
            "--output",
            "p.json",
            *files,
        )
        rows = json.loads((finished / "p.json").read_text())
        assert [row["path"] for row in rows] == files, output
        received = [
            [{e["label"]: e["probability"] for e in row["top"]}[label] for label in part.classes] for row in rows
        ]
        np.testing.assert_allclose(received, expected[:3], atol=2e-6, err_msg=name)


def test_predict_refuses_a_network_that_the_classifier_was_not_trained_on(finished):
    spec = finished / "data" / "backbones" / "efficientnet_lite0" / "spec.json"
    before = spec.read_bytes()
    try:
        spec.write_bytes(before.replace(b"avg_pool", b"avg_pole"))
        command = ("python", "-m", "pipeline", "predict", "--run", "efficientnet_lite0-rbf_svm", "data/split/test")
        output = run(finished, *command, check=False)
    finally:
        spec.write_bytes(before)
    assert "is not the network that" in output
    assert "Traceback" not in output


def test_split_seeds_repeats_the_pipelines_own_split_and_draws_others(finished):
    output = run(finished, "python", "-m", "pipeline", "split-seeds", "--seeds", "0", "1", "--output", "seeds.json")
    results = json.loads((finished / "seeds.json").read_text())
    assert [(result["seed"], result["method"]) for result in results] == [
        (seed, method) for seed in (0, 1) for method in ("logistic_regression", "rbf_svm")
    ]
    entries = {entry["method"]: entry for entry in json.loads((finished / "results" / "leaderboard.json").read_text())}
    for result in results[:2]:
        entry = entries[result["method"]]
        assert result["selected"] == entry["candidate"]["name"]
        assert result["test_accuracy"] == pytest.approx(entry["test"]["accuracy"]["value"], abs=1e-5)
    mean = np.mean([result["test_accuracy"] for result in results])
    assert f"all of them: test accuracy {mean:.4f}" in output


def test_fairness_finds_the_claim_and_every_model_in_git_and_mlflow(finished):
    output = run(finished, "python", "-m", "pipeline", "fairness", "--splits", "2")
    index = (finished / "results" / "fairness" / "index.md").read_text()
    assert "not computed" not in index and "The test part was scored never before this claim" in index
    looks, leakage, variance, optimism = (
        json.loads((finished / "results" / "fairness" / f"{name}.json").read_text())["found"]
        for name in ("looks", "leakage", "variance", "optimism")
    )
    (look,) = [look for look in looks["looks"] if look["claim"]]
    assert look["vouched"] and look["scores"].keys() == RUNS, output
    assert looks["mlflow"]["models"] == len(RUNS) and looks["mlflow"]["never_committed"] == []
    # Of 80 images only, no modules can be inferred from the order of the files.
    assert "dataset.limit" in leakage["kinds"]["groups"]["unavailable"]
    assert variance["sources"]["families"].keys() == {"logistic_regression"}
    assert {row["run"] for row in optimism["runs"]} == RUNS
    assert run(finished, "git", "status", "--porcelain", "--", "results/fairness") == ""


def test_predict_says_what_it_could_not_read(finished):
    (finished / "broken.png").write_bytes(b"no image")
    image = artifacts.read_part("test", finished / "data" / "split" / "manifest.csv").paths[0]
    output = run(finished, "python", "-m", "pipeline", "predict", "broken.png", f"data/split/{image}", check=False)
    assert "not classified: broken.png: not an image" in output
    assert f"data/split/{image}" in output
    assert "no image found" in run(finished, "python", "-m", "pipeline", "predict", "none/*.png", check=False)
    command = ("python", "-m", "pipeline", "predict", "--run", "none", "broken.png")
    assert "Choose from: efficientnet" in run(finished, *command, check=False)


def test_dvc_shows_metrics_and_plots(finished):
    metrics = json.loads(run(finished, "dvc", "metrics", "show", "--json"))[""]["data"]
    assert "champion" in metrics["results/metrics.json"]["data"]
    page = run(finished, "dvc", "plots", "show").strip().splitlines()[-1].removeprefix("file://")
    html = Path(page.replace("%20", " ")).read_text()
    assert "leaderboard.png" in html
    assert "https://" not in html


def test_an_experiment_in_a_temporary_workspace_leaves_this_one_alone(finished):
    run(finished, "git", "add", "--all")
    run(finished, "git", "commit", "--quiet", "--message", "Results")
    before = (finished / "dvc.lock").read_bytes()
    run(
        finished, "dvc", "exp", "run", "--temp", "--name", "wider", "-S", "classifiers.logistic_regression.grid.C=[0.5]"
    )
    assert (finished / "dvc.lock").read_bytes() == before
    shown = run(finished, "dvc", "exp", "show", "--csv")
    assert "wider" in shown
    assert "champion" in shown.splitlines()[0]
    tags = query(finished, "select value from tags where key like '%experiment%' and value='wider'")
    assert tags


def test_a_stage_stopped_by_bad_params_has_not_touched_the_results(finished):
    path = finished / "params.yaml"
    before, lock = path.read_bytes(), (finished / "dvc.lock").read_bytes()
    try:
        params_file.override(path, {"split.validation": 0.8})
        output = run(finished, "dvc", "repro", check=False)
    finally:
        path.write_bytes(before)
    assert "split.validation must be less than 0.5, received 0.8" in output
    assert "Traceback" not in output
    assert (finished / "dvc.lock").read_bytes() == lock
    run(finished, "dvc", "checkout")


# Moments to kill a stage at: a text that was said, or one of these.
WRITING = "while it writes its output"
PLACING = "when its output is whole and not yet in place"
KEEPING = "when it has kept some of what frozen layers computed"

KILLER = """
import os, signal

replace = os.replace

def replace_or_die(source, target, **options):
    if str(target) == os.environ["KILLED_AT"]:
        os.killpg(0, signal.SIGKILL)
    replace(source, target, **options)

os.replace = replace_or_die
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "moment"),
    [
        ("dataset", "> python -m pipeline dataset"),
        ("dataset", PLACING),
        ("split", WRITING),
        ("backbone", WRITING),
        ("features", WRITING),
        ("as_is", WRITING),
        ("sweep", "candidate 1/2"),
        ("sweep", PLACING),
        ("features", KEEPING),
        ("head", KEEPING),
        ("head", "\ntraining "),
        ("head", WRITING),
        ("fine_tune", "\ntraining "),
        ("fine_tune", WRITING),
        ("scratch", "\ntraining "),
        ("scratch", WRITING),
        ("explain", WRITING),
        ("compare", "methods, each on"),
        ("compare", PLACING),
        ("track", f"MLflow: 2/{len(RUNS)} "),
    ],
    ids=lambda text: text.strip(),
)
def test_a_killed_stage_ends_in_the_bytes_of_an_undisturbed_run(root, finished, tmp_path, stage, moment):
    """Another clone, given the finished one's results, repeats one stage, is killed at ``moment``, and runs again."""
    clone = tmp_path / "clone"
    clone_of_finished(root, finished, clone)
    target = next(name for name in lock_of(finished) if name.split("@")[0] == stage)
    repro = ("dvc", "repro", "--single-item", "--force", "--no-run-cache", target)
    kill_at(moment, repro, clone, output=Path(lock_of(finished)[target]["outs"][0]["path"]))
    run(clone, *repro)
    for key in ("deps", "outs"):
        assert lock_of(clone)[target].get(key) == lock_of(finished)[target].get(key)
    litter = [path for place in ("data", "results") for path in (clone / place).rglob(".*")]
    assert not [path for path in litter if path.name != ".gitignore"]
    if stage == "track":
        assert_mlflow_shows_every_run_once(clone)


def test_every_stage_is_killed_above(stages):
    (cases,) = [
        mark.args[1]
        for mark in test_a_killed_stage_ends_in_the_bytes_of_an_undisturbed_run.pytestmark
        if mark.name == "parametrize"
    ]
    assert {stage for stage, _ in cases} == {stage.name.partition("@")[0] for stage in stages}


def clone_of_finished(root: Path, finished: Path, clone: Path) -> None:
    """Make a clone with everything that the finished one computed, except its MLflow store."""
    prepare(root, clone)
    run(clone, "dvc", "config", "--local", "cache.dir", str(finished / ".dvc" / "cache"))
    shutil.copy(finished / "dvc.lock", clone)
    run(clone, "dvc", "checkout", "--allow-missing")
    # Not in the cache: small files that git keeps.
    for file in (finished / "results").glob("*.*"):
        shutil.copy(file, clone / "results")


def kill_at(moment: str, command: Sequence[str], clone: Path, *, output: Path) -> None:
    """Run a command in ``clone``; kill it, and every process it started in its group, at ``moment``."""
    said, killer = clone.parent / "said", clone.parent / "killer"
    killer.mkdir()
    (killer / "sitecustomize.py").write_text(KILLER)  # Python executes this when it starts
    killed_at = {"PYTHONPATH": str(killer), "KILLED_AT": str(output) if moment == PLACING else ""}
    with said.open("w") as console:
        process = subprocess.Popen(
            command,
            cwd=clone,
            env=demo.environment() | killed_at,
            start_new_session=True,
            stdout=console,
            stderr=console,
        )
        while moment != PLACING and not reached(moment, said, clone, output):
            assert process.poll() is None, f"ended before it could be killed:\n{said.read_text()}"
            time.sleep(0.002)
        if moment != PLACING:
            os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"was not killed:\n{said.read_text()}"


def reached(moment: str, said: Path, clone: Path, output: Path) -> bool:
    """Whether a text was said, or a file appeared in ``clone``.

    That is the temporary neighbor of ``output``, or of the directory around it, or a file of the feature store.
    """
    if moment == WRITING:
        return any(path.parent.glob(f".{path.name}.*") for path in (clone / output, clone / output.parent))
    if moment == KEEPING:
        return any(clone.glob(".cache/features/*/*.rows"))
    return moment in said.read_text()


def assert_mlflow_shows_every_run_once(directory: Path) -> None:
    active = "from runs r where r.lifecycle_stage='active'"
    tag = "(select value from tags t where t.run_uuid=r.run_uuid and t.key='{}')".format
    records = {name: artifacts.read_record(directory / "results" / "runs" / name / "record.json") for name in RUNS}
    methods = query(
        directory, f"select {tag('method')}, status, {tag('complete')} {active} and {tag('level')}='method'"
    )
    assert sorted(methods) == sorted((record.method, "FINISHED", "true") for record in records.values())
    candidates = query(
        directory,
        f"select {tag('method')}, {tag('candidate')}, status, {tag('complete')} {active} and {tag('level')}='candidate'",
    )
    expected = [
        (record.method, str(index), "FINISHED", "true")
        for record in records.values()
        for index in range(len(record.candidates))
    ]
    assert sorted(candidates) == sorted(expected)
    repeated = query(
        directory,
        f"select run_uuid, key, step from metrics join (select run_uuid {active}) using (run_uuid)"
        " group by run_uuid, key, step having count(*)>1",
    )
    assert repeated == []
    models = query(directory, "select status from logged_models where lifecycle_stage='active'")
    assert len(models) == len(RUNS)
    assert len(set(models)) == 1
    marker = artifacts.read_json(directory / ".mlflow" / "tracked.json")
    assert marker["runs"].keys() == RUNS


@pytest.mark.parametrize(
    "ending",
    [signal.SIGTERM, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGHUP, signal.SIGINT))],
)
def test_the_page_of_mlflow_opens_and_leaves_no_server_behind(finished, tmp_path, ending):
    """However it ends: by Ctrl-C, with its terminal, or with the machine."""
    said = tmp_path / "said"
    with said.open("w") as console:
        process = subprocess.Popen(
            ["python", "-m", "pipeline", "ui", "--port", "5300"],
            cwd=finished,
            env=demo.environment(),
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while "Ctrl-C stops it" not in said.read_text():
            assert process.poll() is None and time.monotonic() < deadline, said.read_text()
            time.sleep(0.2)
        address = re.search(r"MLflow: (http://[^/]+)(/\S+)", said.read_text())
        assert b"<title>MLflow</title>" in urllib.request.urlopen(address[1], timeout=30).read()
        request = urllib.request.Request(
            f"{address[1]}/api/2.0/mlflow/experiments/get?experiment_id={re.search('[0-9]+', address[2])[0]}"
        )
        assert json.load(urllib.request.urlopen(request, timeout=30))["experiment"]["lifecycle_stage"] == "active"
    finally:
        process.send_signal(ending)
        try:
            assert process.wait(30) == 0, said.read_text()
        finally:
            process.kill()
    with pytest.raises(OSError):
        for _ in range(50):  # it ends, but nobody waits for it
            urllib.request.urlopen(f"{address[1]}/health", timeout=5).close()
            time.sleep(0.2)
    assert "Traceback" not in said.read_text()


@pytest.mark.slow
def test_test_labels_change_nothing_that_is_trained_or_predicted(root, finished, tmp_path):
    """Everything before `compare` again, with other labels for the images of the test part.

    Both where a label stands are changed, the manifest and the folder of the image; the rows keep their order.
    """
    clone = tmp_path / "clone"
    clone_of_finished(root, finished, clone)
    permute_test_labels(clone)
    before = artifacts.read_test_labels(finished / artifacts.MANIFEST)
    assert (artifacts.read_test_labels(clone / artifacts.MANIFEST) != before).sum() > 5
    for name in ("data/features", "results/runs"):
        shutil.rmtree(clone / name)
    for name in lock_of(finished):
        stage = name.partition("@")[0]
        if stage in ("features", "sweep", "head", "fine_tune", "scratch"):
            run(clone, *lock_of(finished)[name]["cmd"].split())
    for place in ("data/features", "results/runs"):
        assert trained(clone / place) == trained(finished / place)


def permute_test_labels(clone: Path) -> None:
    """Exchange the labels of two test images of different classes, for as many pairs as there are."""
    manifest = clone / artifacts.MANIFEST
    rows = artifacts.read_csv(manifest, artifacts.MANIFEST_COLUMNS)
    one, other = (
        [row for row in rows if (row["split"], row["label"]) == ("test", label)]
        for label in ("defective", "functional")
    )
    for pair in zip(one, other, strict=False):
        for row, label in zip(pair, [row["label"] for row in reversed(pair)], strict=True):
            path = f"test/{label}/{Path(row['path']).name}"
            (clone / artifacts.SPLIT / row["path"]).rename(clone / artifacts.SPLIT / path)
            row |= {"path": path, "label": label}
    artifacts.write_csv(manifest, artifacts.MANIFEST_COLUMNS, rows)


def trained(place: Path) -> dict[str, object]:
    """Return the content of every file, of records without the digests of what went in."""
    files = {file.relative_to(place).as_posix(): file for file in place.rglob("*") if file.is_file()}
    found: dict[str, object] = {name: file.read_bytes() for name, file in files.items()}
    found |= {
        name: artifacts.read_record(file).model_dump(exclude={"inputs"})
        for name, file in files.items()
        if file.name == "record.json"
    }
    return found


@pytest.mark.slow
def test_two_clones_end_in_the_same_lock(root, finished, tmp_path):
    prepare(root, tmp_path / "other")
    run(tmp_path / "other", "dvc", "repro")
    assert lock_of(tmp_path / "other") == lock_of(finished)


def test_every_test_above_uses_what_params_declare(finished):
    assert {r.name for r in params.declared_runs(params.load(finished / "params.yaml"))} == RUNS
