"""What `sync --check` finds in a store: faults planted one by one in a real one, each with what mends it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import pytest

from pipeline import tracking
from pipeline.commands import sync as sync_command
from pipeline.core import artifacts
from pipeline.tracking import artifact_locations, claims, contents
from pipeline.tracking.unmatched_runs import strangers
from tests import mlflow_servers
from tests.tracking.test_tracking import RUNS, client, comparison, method, prepare, runs, the_method, write_run

# MLflow and what it brings along warn about their own future.
pytestmark = [pytest.mark.filterwarnings("ignore")]

SYNC = "python -m pipeline sync"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> tuple[Path, tracking.Comparison]:
    """A project whose store shows two methods."""
    root = tmp_path_factory.mktemp("audited")
    with pytest.MonkeyPatch.context() as patch:
        prepare(root, empty_database, patch)
        write_run(RUNS[0], candidates=3)
        write_run(RUNS[1], candidates=1, seed=1)
        what = comparison(method(RUNS[0], champion=True), method(RUNS[1]))
        tracking.sync(tracking.locate(), what)
    return root, what


@pytest.fixture
def shown(
    filled: tuple[Path, tracking.Comparison], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tracking.Comparison:
    """What the store in use shows: a copy of the filled one, for faults to be planted in."""
    (tmp_path / ".mlflow").mkdir()
    shutil.copy(filled[0] / ".mlflow" / "mlflow.db", tmp_path / ".mlflow")
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(filled[0])
    artifact_locations.correct(tmp_path / ".mlflow" / "mlflow.db")
    return filled[1]


def audit(what: tracking.Comparison) -> list[tuple[str, str]]:
    return [(finding.level, finding.subject) for finding in tracking.audit(tracking.locate(), what)]


def experiment() -> str:
    return client().get_experiment_by_name("bakeoff-elpv").experiment_id


def candidate(name: str = "C=2"):
    (found,) = [run for run in runs("tags.level = 'candidate'") if run.info.run_name == name]
    return found


def tags_of(run) -> dict[str, str]:
    """What somebody who imitates a run would copy."""
    return {name: value for name, value in run.data.tags.items() if name != "mlflow.runName"}


def digest() -> str:
    return hashlib.sha256(tracking.locate().database.read_bytes()).hexdigest()


def test_a_synced_store_shows_the_records_and_looking_writes_nothing(shown: tracking.Comparison) -> None:
    before = digest()
    assert tracking.audit(tracking.locate(), shown) == []
    assert digest() == before


# --- faults --------------------------------------------------------------------------------------------------------


def delete_run() -> None:
    client().delete_run(the_method().info.run_id)


def delete_candidate() -> None:
    client().delete_run(candidate().info.run_id)


def fabricate_metric() -> None:
    client().log_metric(the_method().info.run_id, "test_accuracy", 0.99, int(time.time() * 1000), step=0)


def fabricate_candidates_metric() -> None:
    client().log_metric(candidate().info.run_id, "validation_roc_auc", 0.99, int(time.time() * 1000), step=0)


def fabricate_bound() -> None:
    client().log_metric(the_method().info.run_id, "test_accuracy_low", 0.79, int(time.time() * 1000), step=0)


def fabricate_metric_of_a_later_step() -> None:
    client().log_metric(the_method().info.run_id, "test_accuracy", 0.99, int(time.time() * 1000), step=7)


def fabricate_epoch() -> None:
    client().log_metric(the_method("head · lite0").info.run_id, "val_loss", 0.1, int(time.time() * 1000), step=4)


def invent_metric() -> None:
    client().log_metric(the_method().info.run_id, "test_f2", 0.99)


def invent_parameter() -> None:
    client().log_param(the_method().info.run_id, "magic", "42")


def exchange_champion() -> None:
    client().set_tag(the_method("head · lite0").info.run_id, "champion", "true")


def hide() -> None:
    """The saved views of the UI show current runs only."""
    client().set_tag(the_method().info.run_id, "current", "false")


def log_by_hand() -> None:
    run = client().create_run(experiment(), run_name="my best")
    client().log_metric(run.info.run_id, "accuracy", 0.999)


def imitate() -> None:
    """Somebody else's numbers under the pipeline's own tags."""
    tags = {**tags_of(the_method()), "record": "f" * 64, "input_key": "", "current": "true"}
    client().create_run(experiment(), run_name="better", tags=tags)


def double() -> None:
    run = client().create_run(experiment(), run_name="twin", tags=tags_of(the_method()))
    client().set_tag(run.info.run_id, claims.COMPLETE, f"lock {time.time():.0f}")


def orphan_candidate() -> None:
    tags = {**tags_of(candidate()), contents.PARENT: "0" * 32, "candidate": "9"}
    client().create_run(experiment(), run_name="C=9", tags=tags)


def nest_by_hand() -> None:
    tags = {**tags_of(candidate()), "candidate": "9"}
    client().create_run(experiment(), run_name="C=9", tags=tags)


def compute_differently() -> None:
    """The same inputs, environment and all, and another record, both seen by the stage itself."""
    run = the_method()
    client().set_tag(run.info.run_id, "environment_witnessed", "true")
    tags = {**tags_of(run), "record": "e" * 64, "current": "false", "environment_witnessed": "true"}
    client().create_run(experiment(), run_name="again", tags=tags)


def interrupt() -> None:
    client().set_tag(the_method().info.run_id, claims.COMPLETE, "lock 0")


FAULTS: list[tuple[Callable[[], None], str, str]] = [
    (delete_run, "deleted", "sync"),
    (delete_candidate, "deleted", "sync"),
    (fabricate_metric, "metric", "sync"),
    (fabricate_candidates_metric, "metric", "sync"),
    (fabricate_bound, "metric", "sync"),
    (fabricate_metric_of_a_later_step, "metric", "delete"),
    (fabricate_epoch, "metric", "delete"),
    (invent_metric, "metric", "delete"),
    (invent_parameter, "parameter", "delete"),
    (exchange_champion, "tag", "sync"),
    (hide, "tag", "sync"),
    (log_by_hand, "by hand", "delete"),
    (imitate, "orphan", "sync"),
    (orphan_candidate, "orphan", "delete"),
    (nest_by_hand, "orphan", "delete"),
    (interrupt, "incomplete", "sync"),
]


@pytest.mark.parametrize(("plant", "kind", "remedy"), FAULTS, ids=[plant.__name__ for plant, _, _ in FAULTS])
def test_a_planted_fault_is_found_alone_and_its_remedy_mends_it(
    shown: tracking.Comparison, plant: Callable[[], None], kind: str, remedy: str
) -> None:
    plant()
    before = digest()
    (finding,) = tracking.audit(tracking.locate(), shown)
    assert digest() == before
    assert (finding.level, finding.subject) == ("problem", kind)
    commands = finding.remedy.splitlines()
    assert commands[0].startswith("mlflow runs delete --run-id " if remedy == "delete" else SYNC)
    for command in commands:
        if command.startswith("mlflow"):
            client().delete_run(command.rpartition(" ")[2])
        else:
            tracking.sync(tracking.locate(), shown)
    assert tracking.audit(tracking.locate(), shown) == []


def test_the_message_names_the_run_the_metric_and_both_values(shown: tracking.Comparison) -> None:
    fabricate_metric()
    (finding,) = tracking.audit(tracking.locate(), shown)
    run_id = the_method().info.run_id
    assert finding.message == f"logistic_regression · lite0 ({run_id[:8]}): test_accuracy is 0.99, should be 0.8"


def test_a_double_is_found_and_removed_by_sync(shown: tracking.Comparison) -> None:
    double()
    assert {kind for _, kind in audit(shown)} == {"doubled", "incomplete"}
    tracking.sync(tracking.locate(), shown)
    assert audit(shown) == []


def test_two_records_of_one_key_are_found_unless_one_was_computed_elsewhere(shown: tracking.Comparison) -> None:
    compute_differently()
    assert audit(shown) == [("problem", "same key")]
    other = next(run for run in runs() if run.info.run_name == "again")
    client().set_tag(other.info.run_id, "environment_witnessed", "false")
    assert audit(shown) == [("warning", "same key")]
    client().set_tag(other.info.run_id, "environment", "another")
    assert audit(shown) == []


def test_files_that_are_not_those_of_the_record_are_found(shown: tracking.Comparison) -> None:
    place = Path(url2pathname(urlparse(the_method().info.artifact_uri).path)) / "predictions.npz"
    before = place.read_bytes()
    try:
        place.write_bytes(before[:-1] + b"?")
        found = tracking.audit(tracking.locate(), shown)
        place.unlink()
        missing = tracking.audit(tracking.locate(), shown)
    finally:
        place.write_bytes(before)
    assert [finding.subject for finding in (*found, *missing)] == ["content"] * 2
    assert "predictions.npz is another than that of the record" in found[0].message
    assert "predictions.npz is missing" in missing[0].message


def test_a_deleted_run_of_an_earlier_record_is_a_warning_that_can_be_taken_back(
    shown: tracking.Comparison, tmp_path: Path
) -> None:
    run = the_method()
    client().set_tag(run.info.run_id, "record", "d" * 64)
    client().set_tag(run.info.run_id, "input_key", "of other parameters")
    for child in runs("tags.level = 'candidate'"):
        if child.data.tags[contents.PARENT] == run.info.run_id:
            client().set_tag(child.info.run_id, "record", "d" * 64)
    tracking.sync(tracking.locate(), shown)
    assert audit(shown) == []
    client().delete_run(run.info.run_id)
    found = tracking.audit(tracking.locate(), shown)
    warnings = [finding for finding in found if finding.level == "warning"]
    assert [finding.subject for finding in warnings] == ["deleted"]
    client().restore_run(warnings[0].remedy.rpartition(" ")[2])
    assert audit(shown) == []


def test_runs_of_dvc_experiments_are_no_orphans(shown: tracking.Comparison) -> None:
    imitate()
    run = next(run for run in runs() if run.info.run_name == "better")
    client().set_tag(run.info.run_id, "dvc_experiment", "wider")
    assert audit(shown) == []


def test_a_killed_stages_run_is_a_warning(shown: tracking.Comparison) -> None:
    import socket

    tags = {"level": "method", "state": "live", "host": socket.gethostname(), "pid": "1", "process_start": "0.00"}
    client().create_run(experiment(), run_name="killed", tags=tags)
    assert audit(shown) == [("warning", "unfinished")]


def test_a_store_that_is_not_there_is_not_made(shown: tracking.Comparison, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "elsewhere"))
    (finding,) = tracking.audit(tracking.locate(), shown)
    assert (finding.level, finding.subject, finding.remedy) == ("problem", "missing", SYNC)
    assert not (tmp_path / "elsewhere").exists()


def test_a_database_without_mlflows_tables_is_left_as_it_is(
    shown: tracking.Comparison, tmp_path: Path, monkeypatch
) -> None:
    file = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE mine (x)")
    before = file.read_bytes()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    assert audit(shown) == [("problem", "missing")]
    assert file.read_bytes() == before


def test_a_store_that_cannot_be_read_is_an_error_in_bounded_time(shown: tracking.Comparison, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(tracking.TrackingError, match="Connection refused"):
        audit(shown)
    assert time.monotonic() - started < 10


@pytest.mark.slow
def test_a_server_is_audited_by_questions_alone(
    filled: tuple[Path, tracking.Comparison], empty_database: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(filled[0])
    with mlflow_servers.sqlite_server(tmp_path, empty_database) as server:
        proxy = mlflow_servers.Proxy(server)
        try:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
            assert audit(filled[1]) == [("problem", "missing")]
            assert not proxy.count("create")
            tracking.sync(tracking.locate(), filled[1])
            proxy.requests.clear()
            assert audit(filled[1]) == []
            asked = {path.rpartition("/")[2] for path in proxy.requests}
            run_id = the_method().info.run_id
            client().log_metric(run_id, "test_accuracy", 0.99, int(time.time() * 1000), step=0)
            assert audit(filled[1]) == [("problem", "metric")]
        finally:
            proxy.close()
    assert not asked & {"create", "update", "delete", "log-batch", "log-metric", "set-tag", "set-experiment-tag"}
    assert {"search", "get-by-name"} <= asked


@pytest.mark.parametrize(
    ("received", "expected", "agree"),
    [
        (0.5, 0.5, True),
        (0.843751, 0.84375, True),
        (0.8438, 0.84375, False),
        (0.0, 1e-9, False),
        (None, None, True),
        (None, 0.5, False),
        (0.5, None, False),
        (float("nan"), float("nan"), True),
        (float("nan"), 0.5, False),
    ],
)
def test_metrics_agree_up_to_the_sixth_digit(received, expected, agree) -> None:
    assert tracking.agrees(received, expected) is agree


# --- runs of no record of today ------------------------------------------------------------------------------------


MEASURED = sync_command.measured_by(
    SimpleNamespace(validation=SimpleNamespace(labels=np.arange(20) % 2), test_labels=np.arange(20) % 2)
)


def others(what: tracking.Comparison, known: dict | None = None) -> list[tuple[str, str]]:
    """What is said of everything but today's records, where git has ``known``."""
    found = strangers(tracking.locate(), what, measured=MEASURED, known=known)
    return [(finding.level, finding.subject) for finding in found]


def accuracy(what: tracking.Comparison) -> float:
    """What the first method's predictions give on test, which are those of its first candidate on validation."""
    return what.methods[0].validation[0]["accuracy"]


def age(what: tracking.Comparison) -> tracking.Comparison:
    """Make the first method's run one of an earlier record, with the scores that its predictions give, and return what
    the store is to show today: the other method."""
    client().log_metric(the_method().info.run_id, "test_accuracy", accuracy(what), int(time.time() * 1000), step=0)
    today = dataclasses.replace(what, methods=what.methods[1:])
    tracking.sync(tracking.locate(), today)
    assert the_method().data.tags["current"] == "false"
    return today


def committed(what: tracking.Comparison) -> dict[str, list[dict[str, float]]]:
    return {"lite0-logistic_regression": [{"accuracy": 0.5}, {"accuracy": accuracy(what)}]}


def test_a_synced_store_has_no_strangers_and_looking_for_them_writes_nothing(shown: tracking.Comparison) -> None:
    before = digest()
    assert others(shown, {}) == []
    assert digest() == before


def test_runs_of_earlier_records_are_none_if_git_has_their_scores(shown: tracking.Comparison) -> None:
    today = age(shown)
    assert audit(today) == others(today, committed(shown)) == []
    assert others(today, None) == [], "without git nobody knows"
    assert (
        others(today, {}) == others(today, {"lite0-head": [{"accuracy": accuracy(shown)}]}) == [("warning", "unknown")]
    )


@pytest.mark.parametrize("more", [{}, {"dvc_experiment": "lucky"}, {"environment_witnessed": "true"}])
def test_a_run_logged_by_hand_under_the_pipelines_tags_is_found_whatever_they_are(shown, more) -> None:
    tags = {**tags_of(the_method()), "record": "f" * 64, "input_key": "", "current": "false", **more}
    run = client().create_run(experiment(), run_name="better", tags=tags)
    client().log_metric(run.info.run_id, "test_accuracy", 0.999)
    assert audit(shown) == [], "of today's records nothing is wrong"
    before = digest()
    (finding,) = strangers(tracking.locate(), shown, measured=MEASURED, known={})
    assert digest() == before
    assert (finding.level, finding.subject) == ("problem", "by hand")
    assert "better" in finding.message and "does not carry the record that its tag names" in finding.message
    client().delete_run(finding.remedy.rpartition(" ")[2])
    assert others(shown, {}) == []


def test_a_run_logged_by_hand_with_the_files_of_another_is_found(shown: tracking.Comparison, tmp_path: Path) -> None:
    tags = {**tags_of(the_method()), "record": "f" * 64, "current": "false", "input_key": ""}
    run = client().create_run(experiment(), run_name="better", tags=tags)
    for name in ("record.json", "predictions.npz"):
        client().log_artifact(run.info.run_id, str(shown.methods[0].directory / name))
    assert others(shown, {}) == [("problem", "by hand")]


def test_a_live_run_that_no_sync_came_to_is_none_unless_it_claims_a_score(shown: tracking.Comparison) -> None:
    """The stage ended in a record, and was run again before the store was filled."""
    tags = {"level": "method", "state": "finished", "record": "f" * 64, "current": "false"}
    run = client().create_run(experiment(), run_name="overtaken", tags=tags)
    client().log_metric(run.info.run_id, "accuracy", 0.8, step=1)
    assert others(shown, {}) == []
    client().log_metric(run.info.run_id, "accuracy", 0.999)
    assert others(shown, {}) == [("problem", "by hand")]


def test_a_score_that_an_earlier_runs_predictions_do_not_give_is_found(shown: tracking.Comparison) -> None:
    today = age(shown)
    client().log_metric(the_method().info.run_id, "test_accuracy", 0.99, int(time.time() * 1000) + 1000, step=0)
    assert others(today, committed(shown)) == [("problem", "metric")]


def test_a_score_of_an_earlier_candidate_and_a_candidate_that_never_was_are_found(shown: tracking.Comparison) -> None:
    child = candidate("C=2")
    today = age(shown)
    client().log_metric(child.info.run_id, "validation_accuracy", 0.99, int(time.time() * 1000) + 1000, step=0)
    assert others(today, committed(shown)) == [("problem", "metric")]
    nest_by_hand()
    client().delete_run(child.info.run_id)
    assert others(today, committed(shown)) == [("problem", "metric")]


def test_scores_on_another_test_part_are_not_measured_on_this_one(shown: tracking.Comparison) -> None:
    today = age(shown)
    for part in artifacts.PARTS:
        client().set_tag(the_method().info.run_id, f"dataset.{part}.sha256", "of another split")
    client().log_metric(the_method().info.run_id, "test_accuracy", 0.99, int(time.time() * 1000) + 1000, step=0)
    assert others(today, {"lite0-logistic_regression": [{"accuracy": 0.99}]}) == []


@pytest.mark.parametrize("state", ["live", "failed", "killed"])
def test_a_run_without_a_record_has_no_score(shown: tracking.Comparison, state: str) -> None:
    tags = {"level": "method", "state": state, "record": "f" * 64}
    run = client().create_run(experiment(), run_name="on its way", tags=tags)
    client().log_metric(run.info.run_id, "live_validation_accuracy", 0.8, step=1)
    client().log_metric(run.info.run_id, "val_loss", 0.8, step=1)
    assert others(shown, {}) == []
    client().log_metric(run.info.run_id, "test_accuracy", 0.999)
    assert others(shown, {}) == [("problem", "by hand")]


@pytest.mark.parametrize("witnessed", ["true", "false"])
@pytest.mark.parametrize("name", ["accuracy", "calibrated_test_accuracy", "live_test_accuracy", "best roc_auc"])
def test_a_score_that_no_record_has_is_found_on_every_run(
    shown: tracking.Comparison, name: str, witnessed: str
) -> None:
    client().set_tag(the_method().info.run_id, "environment_witnessed", witnessed)
    client().log_metric(the_method().info.run_id, name, 0.999)
    (finding,) = strangers(tracking.locate(), shown, measured=MEASURED, known={})
    assert (finding.level, finding.subject) == ("problem", "metric")
    assert f"no record has {name} 0.999" in finding.message


def test_steps_of_a_live_run_are_no_findings_and_another_metric_is_a_warning(shown: tracking.Comparison) -> None:
    run = the_method("head · lite0").info.run_id
    client().set_tag(run, "environment_witnessed", "true")
    client().log_metric(run, "live_validation_accuracy", 0.8, step=1)
    assert others(shown) == []
    client().log_metric(run, "beauty", 1.0)
    assert others(shown) == [("warning", "metric")]


def test_what_git_has_are_the_test_scores_of_every_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert sync_command.committed() is None
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    for value in (0.8, 0.9, 0.9):
        scores = {"test_accuracy": value, "validation_accuracy": 0.7}
        artifacts.write_json(Path("results/metrics.json"), {"champion": scores, "lite0-head": scores})
        subprocess.run([*git, "add", "--all"], check=True)
        subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "x"], check=True)
    assert sync_command.committed() == {"lite0-head": [{"accuracy": 0.8}, {"accuracy": 0.9}]}


# --- the leaderboard and the lock ----------------------------------------------------------------------------------


def test_a_fabricated_number_of_the_leaderboard_is_found(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    undefined = {"value": None, "low": None, "high": None}
    scores = {"accuracy": {"value": 0.8, "low": 0.7, "high": 0.9}, "roc_auc": undefined}
    board = [{"run": "lite0-head", "validation": scores, "test": scores}]
    artifacts.write_json(artifacts.LEADERBOARD, board)
    assert list(sync_command.of_leaderboard(board)) == []
    better = {**scores, "accuracy": {"value": 0.8, "low": 0.75, "high": 0.9}}
    artifacts.write_json(artifacts.LEADERBOARD, [{**board[0], "test": better}])
    (finding,) = sync_command.of_leaderboard(board)
    assert finding.level == "problem"
    assert "lite0-head: test.accuracy.low is 0.75, should be 0.7" in finding.message


def check(directory: Path) -> subprocess.CompletedProcess[str]:
    from pipeline.commands import demo

    command = ["python", "-m", "pipeline", "sync", "--check"]
    return subprocess.run(command, cwd=directory, env=demo.environment(), capture_output=True, text=True)


@pytest.mark.timeout(1500)
def test_a_finished_pipeline_passes_its_audit_and_a_typed_in_number_does_not(finished: Path) -> None:
    """The whole command on real runs: first as `dvc repro` has left them, then after three manipulations."""
    done = check(finished)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith("metrics that their predictions give: nothing is wrong")
    database, record = finished / ".mlflow" / "mlflow.db", finished / "results/runs/efficientnet_lite0-head/history.csv"
    board = finished / "results" / "leaderboard.json"
    before = {path: path.read_bytes() for path in (database, record, board)}
    try:
        with contextlib.closing(sqlite3.connect(database)) as opened:
            opened.execute("UPDATE latest_metrics SET value = 0.999 WHERE key = 'test_roc_auc'")
            opened.commit()
        record.write_bytes(before[record] + b"3,0,1,0,1,0\n")
        board.write_bytes(before[board].replace(b'"rank": 1', b'"rank": 9', 1))
        done = check(finished)
    finally:
        for path, content in before.items():
            path.write_bytes(content)
    assert done.returncode == 1
    said = " ".join(done.stdout.split())
    assert "results/runs/efficientnet_lite0-head was modified since dvc.lock was written" in said
    assert "-> rm -rf results/runs/efficientnet_lite0-head && dvc checkout results/runs/eff" in done.stdout
    assert "test_roc_auc is 0.999" in done.stdout
    assert "problem  leaderboard" in done.stdout and "rank is 9, should be 1" in said
    assert "Traceback" not in done.stderr
    assert check(finished).returncode == 0
