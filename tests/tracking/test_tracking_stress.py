"""What MLflow does to a pipeline when it is down, slow, silent, refusing or full: nothing but a warning.

And what the pipeline does to MLflow: whatever happened, `sync` leaves every record in the store once. Tested with real
servers over HTTP, a proxy in front of them that misbehaves on request, and disks that are really full.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import importlib
import os
import pickle
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipeline import tracking
from pipeline.commands import demo
from pipeline.commands import sync as sync_command
from pipeline.core import artifacts, provenance
from pipeline.stages import track
from pipeline.tracking import claims, contents, processes, run_inputs
from tests import mlflow_servers
from tests.disks import small_disk
from tests.mlflow_servers import CUT, HANG, PASS, Answer, Proxy, Server
from tests.tracking.test_tracking import RUNS, comparison, method, prepare, write_run

# MLflow and what it brings along warn about their own future.
pytestmark = [pytest.mark.filterwarnings("ignore")]

# By name, because the package has functions of these names.
LIVE, SYNC = (importlib.import_module(f"pipeline.tracking.{name}") for name in ("live", "sync"))
EXPECTED = {"methods": 2, "candidates": 4, "models": 2, "repeated": 0, "unfinished": 0}
# The runs of these tests are in no params.yaml; the fixture `stage` says what the stage and `sync` log.
NOTHING_DECLARED = {
    "backbones": [],
    "classifiers": {},
    "head": {"backbones": []},
    "fine_tune": {"backbones": []},
    "scratch": {"networks": []},
}
KILLS = int(os.environ.get("BAKEOFF_KILLS_OF_SYNC", "8"))

GIT = {f"GIT_{who}_{what}": "bakeoff@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}

# A process on a machine of its own: another name, and locks that no other machine sees.
MACHINE = """
import pickle, socket, sys
socket.gethostname = lambda: sys.argv[1]
from pipeline import tracking
from pipeline.tracking import processes
processes.machine = lambda: sys.argv[1]
what = pickle.load(sys.stdin.buffer)
sys.stdin.close()
print(tracking.sync(tracking.locate(), what), flush=True)
"""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store with MLflow's tables and nothing in them: its migrations take seconds."""
    from mlflow import MlflowClient

    tracking.store.quiet()
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, database: Path
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    if request.param == "sqlite":
        with mlflow_servers.sqlite_server(folder, database) as started:
            yield started
    else:
        with mlflow_servers.postgresql_server(folder) as started:
            yield started


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """The URI of a PostgreSQL; for a module, because a project's temporary folder is closed to its user."""
    with mlflow_servers.postgresql() as uri:
        yield uri


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    started = Proxy(server)
    yield started
    started.close()


@pytest.fixture
def project(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that is the working directory, with two runs, and locks of its own."""
    prepare(tmp_path, database, monkeypatch)
    (tmp_path / "locks").mkdir()
    on_machine(tmp_path / "locks", monkeypatch)
    # Patience is measured where it is the subject; elsewhere a second is enough.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    monkeypatch.setattr(tracking.store, "SECONDS_TO_ANSWER", 1)
    write_run(RUNS[0], candidates=3)
    write_run(RUNS[1], candidates=1, seed=1)
    return tmp_path


def on_machine(locks: Path, patch: pytest.MonkeyPatch) -> None:
    """Give this process, and those that it starts, the locks of another machine."""
    patch.setenv("TMPDIR", str(locks))
    patch.setattr("tempfile.tempdir", None)


@pytest.fixture
def wanted(project: Path) -> tracking.Comparison:
    """What a store is to show, in an experiment of its own, as the environment of this process knows it."""
    return dataclasses.replace(
        comparison(method(RUNS[0], champion=True), method(RUNS[1], input_key=live_inputs().key())),
        dataset=uuid.uuid4().hex[:8],
        environment=provenance.environment(),
    )


@pytest.fixture
def through_proxy(proxy: Proxy, project: Path, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    return proxy


def sync(what: tracking.Comparison, **options: float) -> tracking.Report:
    return tracking.sync(tracking.locate(), what, **options)


def shown(server: str, what: tracking.Comparison) -> dict[str, int]:
    """Count what a store shows of a comparison; "repeated": a second run of one record, environment and candidate."""
    from mlflow import MlflowClient

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name(contents.experiment_name(what.dataset)).experiment_id
    runs = list(client.search_runs([experiment], max_results=1000))
    methods = [run for run in runs if run.data.tags["level"] == "method"]
    candidates = [run for run in runs if run.data.tags["level"] == "candidate"]
    records = {(run.data.tags.get("record"), run.data.tags["environment"]) for run in methods}
    indices = {(run.data.tags[contents.PARENT], run.data.tags["candidate"]) for run in candidates}
    parents = {run.info.run_id for run in methods}
    assert {run.data.tags[contents.PARENT] for run in candidates} <= parents
    assert {run.data.tags["record"] for run in runs if "record" in run.data.tags} == {
        each.record_digest for each in what.methods
    }
    whole = [run for run in runs if run.data.tags[claims.COMPLETE] == "true" and run.info.status == "FINISHED"]
    for run in methods:
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert {"record.json", "predictions.npz", "history.csv"} <= files
    return {
        "methods": len(methods),
        "candidates": len(candidates),
        "models": len(client.search_logged_models([experiment])),
        "repeated": len(methods) - len(records) + len(candidates) - len(indices),
        "unfinished": len(runs) - len(whole),
    }


def results() -> dict[str, str]:
    """The digest of everything that is a result."""
    return {run.name: artifacts.sha256_path(artifacts.RUNS / run.name) for run in RUNS}


@pytest.fixture
def stage(wanted: tracking.Comparison, monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """Return a function that runs the stage `track` and returns how many seconds that took."""
    monkeypatch.setattr(track, "collect", lambda params: wanted)
    artifacts.write_json(artifacts.LEADERBOARD, [])

    def run() -> float:
        started = time.monotonic()
        track.main(None, log=None)
        return time.monotonic() - started

    return run


def command(monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command `sync` on what the fixture `stage` declares; return its status."""
    monkeypatch.setattr("pipeline.core.params.load", lambda: NOTHING_DECLARED)
    return sync_command.main(argparse.Namespace(check=False))


# --- a server that works -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_server_shows_every_record_once_and_nothing_is_added_twice(
    server: Server, wanted: tracking.Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    assert str(sync(wanted)) == "2 methods and 4 candidates: 6 added, 0 already there"
    assert shown(server.uri, wanted) == EXPECTED
    assert str(sync(wanted)) == "2 methods and 4 candidates: 0 added, 6 already there"
    assert shown(server.uri, wanted) == EXPECTED


@pytest.mark.slow
def test_a_second_clone_adds_nothing_to_what_the_first_has_added(
    server: Server, wanted: tracking.Comparison, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    sync(wanted)
    (other,) = machines(project, "elsewhere")
    assert other(wanted) == "2 methods and 4 candidates: 0 added, 6 already there"
    assert shown(server.uri, wanted) == EXPECTED


# --- a server that does not ----------------------------------------------------------------------------------------


def after(count: int, answer: Answer) -> Callable[[Proxy], Callable[[str], Answer]]:
    """Behave well for so many requests, and then no more."""
    return lambda proxy: lambda path: PASS if len(proxy.requests) <= count else answer


OUTAGES = {
    "cuts every connection": after(0, CUT),
    "never answers": after(0, HANG),
    "answers 403": after(0, Answer(403)),
    "answers 500": after(0, Answer(500)),
    "is no MLflow": after(0, Answer(200)),
    "goes away in mid-run": after(25, CUT),
    "falls silent in mid-run": after(25, HANG),
    "becomes read-only": lambda proxy: lambda path: Answer(403) if "create" in path or "log" in path else PASS,
    "has no room for artifacts": lambda proxy: lambda path: Answer(500) if "artifacts" in path else PASS,
}

IN_EVERY_RUN = {"cuts every connection", "falls silent in mid-run", "becomes read-only"}


@pytest.mark.parametrize(
    "outage", [name if name in IN_EVERY_RUN else pytest.param(name, marks=pytest.mark.slow) for name in OUTAGES]
)
def test_an_outage_costs_the_stage_one_warning_and_sync_repairs_it(
    through_proxy: Proxy,
    wanted: tracking.Comparison,
    stage: Callable[[], float],
    outage: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = results()
    through_proxy.behavior = OUTAGES[outage](through_proxy)
    assert stage() < 15
    out, err = capfd.readouterr()
    assert err.startswith(f"warning: the MLflow store {through_proxy.uri} failed: ")
    assert err.endswith("The results are not affected; `python -m pipeline sync` fills MLflow later.\n")
    assert err.count("\n") == 1
    assert len(err) < 600
    assert "Traceback" not in out
    records = {each.record.name: each.record_digest for each in wanted.methods}
    assert artifacts.read_json(track.MARKER)["runs"] == records
    with pytest.raises(tracking.TrackingError, match="the MLflow store"):
        command(monkeypatch)

    through_proxy.behavior = lambda path: PASS
    assert command(monkeypatch) == 0
    assert shown(through_proxy.server.uri, wanted) == EXPECTED
    assert results() == before
    assert "already there" in capfd.readouterr().out


@pytest.mark.slow
def test_a_slow_store_holds_the_stage_up_no_longer_than_it_says(
    through_proxy: Proxy,
    wanted: tracking.Comparison,
    stage: Callable[[], float],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(track, "SECONDS_FOR_MLFLOW", 2.0)
    through_proxy.behavior = lambda path: Answer(before=0.2)
    assert stage() < 10
    assert f"warning: the MLflow store {through_proxy.uri} has taken more than 2 s." in capfd.readouterr().err
    through_proxy.behavior = lambda path: Answer(before=0.02)
    assert command(monkeypatch) == 0  # which waits for as long as it takes
    assert shown(through_proxy.server.uri, wanted) == EXPECTED


@pytest.mark.slow
def test_requests_that_are_answered_too_late_and_sent_twice_leave_nothing_twice(
    through_proxy: Proxy, wanted: tracking.Comparison
) -> None:
    """The server does what it is asked and answers when the client has given up and asks again."""
    late: set[str] = set()

    def behave(path: str) -> Answer:
        count = through_proxy.count(path)
        if not path.endswith(("runs/create", "logged-models", "experiments/create")) or count % 2 == 0:
            return PASS
        late.add(path)
        return Answer(after=1.3)

    through_proxy.behavior = behave
    sync(wanted)
    assert len(late) == 3
    assert shown(through_proxy.server.uri, wanted) == EXPECTED
    assert sync(wanted).added == 0


@pytest.mark.slow
def test_a_password_in_the_uri_is_never_shown(
    proxy: Proxy, stage: Callable[[], float], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri.replace("://", "://user:secret@"))
    stage()
    assert "6 added" in capfd.readouterr().out  # the name and the password do not keep it from being found
    for answer in (Answer(500), CUT, HANG):
        proxy.requests.clear()
        proxy.behavior = lambda path, answer=answer: PASS if path == "/health" else answer
        stage()
        out, err = capfd.readouterr()
        assert "user:***@" in err
        assert "secret" not in out + err


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("postgresql://user:secret@127.0.0.1:9/mlflow", "onnection refused|psycopg"),
        ("mysql+nosuchdriver://127.0.0.1:9/mlflow", "nosuchdriver"),
        ("nonsense://there", "nonsense"),
    ],
)
def test_a_database_that_is_away_and_a_driver_that_is_not_installed_are_one_warning(
    stage: Callable[[], float],
    uri: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert stage() < 15
    err = capfd.readouterr().err
    assert err.startswith("warning: the MLflow store ")
    assert re.search(reason, err)
    assert "secret" not in err
    assert err.count("\n") == 1


# --- a stage that logs live ----------------------------------------------------------------------------------------


def live_inputs() -> run_inputs.Inputs:
    Path("input").write_text("images", encoding="utf-8")
    return run_inputs.Inputs("head", {"backbone": "lite0"}, {"seed": 0}, ("input",), ("pipeline.core.seeds",))


def logged(what: tracking.Comparison, steps: int, *, meanwhile: Callable[[int], None] = lambda step: None) -> float:
    """Run a stage that logs so many steps, and return how many seconds logging and leaving took, `meanwhile` apart."""
    spent = 0.0
    started = time.monotonic()
    with tracking.live(dataset=what.dataset, run=RUNS[1], inputs=live_inputs()) as log:
        spent += time.monotonic() - started
        for step in range(steps):
            meanwhile(step)
            started = time.monotonic()
            log.step(step, {"loss": 1 / (step + 1), "val_loss": 2 / (step + 1)})
            spent += time.monotonic() - started
        started = time.monotonic()
    return spent + time.monotonic() - started


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages of a test have ended when `sync` looks, unlike the process of the test, in which they ran."""
    monkeypatch.setattr(processes, "is_alive", lambda tags: False)


def until(happened: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("ended")
def test_a_store_that_falls_silent_never_holds_up_the_steps_of_a_stage(
    through_proxy: Proxy,
    wanted: tracking.Comparison,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """More steps than a pipe holds, while the writer waits for an answer that does not come."""
    monkeypatch.setattr(LIVE, "SECONDS_TO_FLUSH", 3.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
    through_proxy.behavior = lambda path: HANG if path.endswith("log-batch") else PASS

    def meanwhile(step: int) -> None:
        if step == 1:
            until(lambda: through_proxy.count("log-batch") > 0)

    assert logged(wanted, 5000, meanwhile=meanwhile) < 3.0 + 5.0
    err = capfd.readouterr().err
    assert err.startswith("warning: lite0-head is not logged live: the store has taken more than 3 s.")
    assert err.count("\n") == 1
    through_proxy.behavior = lambda path: PASS
    assert sync(wanted).added == 6
    assert shown(through_proxy.server.uri, wanted) == EXPECTED


@pytest.mark.slow
def test_a_slow_store_gets_every_step_in_few_requests(through_proxy: Proxy, wanted: tracking.Comparison) -> None:
    from mlflow import MlflowClient

    through_proxy.behavior = lambda path: Answer(before=0.5)
    logged(wanted, 400)
    assert through_proxy.count("log-batch") < 12
    client = MlflowClient(through_proxy.server.uri)
    experiment = client.get_experiment_by_name(contents.experiment_name(wanted.dataset))
    (run,) = client.search_runs([experiment.experiment_id])
    points = client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in sorted(points, key=lambda point: point.step)] == list(range(1, 401))


@pytest.mark.usefixtures("ended")
@pytest.mark.parametrize(
    "answer",
    [CUT, pytest.param(HANG, marks=pytest.mark.slow), pytest.param(Answer(403), marks=pytest.mark.slow)],
    ids=["cut", "silent", "read-only"],
)
def test_a_store_that_goes_away_in_mid_run_costs_one_warning(
    through_proxy: Proxy, wanted: tracking.Comparison, answer: Answer, capfd: pytest.CaptureFixture[str]
) -> None:
    def meanwhile(step: int) -> None:
        if step == 5:
            until(lambda: through_proxy.count("log-batch") > 0)
            through_proxy.behavior = lambda path: answer

    assert logged(wanted, 50, meanwhile=meanwhile) < 10
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"warning: lite0-head is not logged live: the MLflow store {through_proxy.uri} failed: ")
    assert err.count("\n") == 1
    through_proxy.behavior = lambda path: PASS
    sync(wanted)
    assert shown(through_proxy.server.uri, wanted) == EXPECTED


@pytest.mark.slow
def test_with_the_settings_of_a_real_pipeline_the_bounds_hold(
    through_proxy: Proxy,
    wanted: tracking.Comparison,
    stage: Callable[[], float],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The bounds that docs/tracking.md states, against a server that accepts and falls silent: nothing is shortened."""
    for name in ("TIMEOUT", "BACKOFF_FACTOR", "BACKOFF_JITTER"):
        monkeypatch.delenv(f"MLFLOW_HTTP_REQUEST_{name}")
    monkeypatch.setattr(tracking.store, "SECONDS_TO_ANSWER", 5)
    for name, value in tracking.SETTINGS.items():
        monkeypatch.setenv(name, value)
    through_proxy.behavior = lambda path: HANG if path.endswith("log-batch") else PASS
    assert logged(wanted, 3) < 30 + 5
    through_proxy.requests.clear()
    through_proxy.behavior = after(10, HANG)(through_proxy)
    assert 20 < stage() < 60  # two requests of 20 s
    through_proxy.behavior = lambda path: HANG
    assert stage() < 10  # 5 s, and what a loaded machine needs for the rest
    assert capfd.readouterr().err.count("warning: ") == 3


def test_a_store_that_keeps_a_call_waiting_for_ever_holds_the_stage_up_no_longer_than_it_says(
    wanted: tracking.Comparison,
    stage: Callable[[], float],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Whatever it waits for, and whatever time limits its driver knows."""
    woken = threading.Event()
    monkeypatch.setattr(SYNC._Sync, "run", lambda self: woken.wait(60))
    monkeypatch.setattr(track, "SECONDS_FOR_MLFLOW", 2.0)
    try:
        assert 2 <= stage() < 10
    finally:
        woken.set()
    err = capfd.readouterr().err
    assert err.startswith(f"warning: the MLflow store {tracking.locate().name} has taken more than 2 s. The results")
    assert err.count("\n") == 1
    assert artifacts.read_json(track.MARKER)["runs"]


@pytest.mark.slow
def test_a_database_that_falls_silent_holds_the_stage_up_no_longer_than_it_says(
    postgresql: str,
    wanted: tracking.Comparison,
    stage: Callable[[], float],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(track, "SECONDS_FOR_MLFLOW", 5.0)
    port = urlsplit(postgresql).port
    with mlflow_servers.relay(port) as relay:
        through = postgresql.replace(str(port), str(relay.port))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", through)
        tracking.store.connect(tracking.locate(), "its tables take seconds")
        monkeypatch.setattr(SYNC._Sync, "save_views", lambda self: relay.silent.set())
        assert 5 <= stage() < 15
        assert relay.silent.is_set()
        err = capfd.readouterr().err
        assert err.startswith(f"warning: the MLflow store {through} has taken more than 5 s. The results are not")
        assert err.count("\n") == 1
        assert stage() < 10  # silent from the first byte on: known after `SECONDS_TO_ANSWER`
        assert capfd.readouterr().err.startswith(f"warning: the MLflow store {through} failed: ")


@pytest.mark.usefixtures("ended")
@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again_ends_complete(
    tmp_path: Path, database: Path, wanted: tracking.Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own server").mkdir()
    with mlflow_servers.sqlite_server(tmp_path / "own server", database) as own:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", own.uri)

        def meanwhile(step: int) -> None:
            if step == 20:
                time.sleep(8)
                own.kill()

        assert logged(wanted, 40, meanwhile=meanwhile) < 30
        with pytest.raises(tracking.TrackingError, match="Connection refused"):
            sync(wanted)
        own.start()
        killer = threading.Timer(0.7, own.kill)
        killer.start()
        with pytest.raises(tracking.TrackingError):
            for _ in range(100):
                sync(wanted)
        killer.join()
        own.start()
        sync(wanted)
        assert shown(own.uri, wanted) == EXPECTED


# --- several machines ----------------------------------------------------------------------------------------------


def machines(project: Path, *names: str) -> list[Callable[[tracking.Comparison], str]]:
    """Return for each machine a function that syncs there, in a process of its own, and returns what it said."""
    return [lambda what, name=name: _finish(_start(project, name, what)) for name in names]


def _start(project: Path, name: str, what: tracking.Comparison) -> subprocess.Popen:
    place = project / f"machine {name}"
    place.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", MACHINE, name],
        env={**os.environ, "TMPDIR": str(place)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    process.stdin.write(pickle.dumps(what))
    process.stdin.close()
    process.stdin = None
    return process


def _finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines()[-1]


def at_once(project: Path, wanted: tracking.Comparison, *names: str) -> list[str]:
    return [_finish(process) for process in [_start(project, name, wanted) for name in names]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [("one", "other"), pytest.param(("same", "same"), marks=pytest.mark.slow)],
    ids=["two machines", "one machine"],
)
def test_two_clones_that_fill_one_server_at_once_leave_every_record_once(
    server: Server, wanted: tracking.Comparison, project: Path, names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    said = at_once(project, wanted, *names)
    # Each waits for the other's lock, or leaves alone what the other is at; in the end nothing is missing or doubled.
    assert shown(server.uri, wanted) == EXPECTED, said
    assert sync(wanted).added == 0


@pytest.mark.slow
def test_two_machines_that_look_before_either_has_written_leave_every_record_once(
    through_proxy: Proxy, wanted: tracking.Comparison, project: Path
) -> None:
    """Both find an empty store, because the first search for a method's runs of each waits for that of the other."""
    both = threading.Barrier(2, timeout=60)
    waited: set[int] = set()

    def behave(path: str) -> Answer:
        count = through_proxy.count("runs/create")
        if path.endswith("runs/create") and count <= 2:
            waited.add(count)
            both.wait()
        return PASS

    through_proxy.behavior = behave
    said = at_once(project, wanted, "one", "other")
    assert waited == {1, 2}
    assert shown(through_proxy.server.uri, wanted) == EXPECTED, said


@pytest.fixture
def other_clone(project: Path, wanted: tracking.Comparison, monkeypatch: pytest.MonkeyPatch) -> tracking.Comparison:
    """What a clone with other parameters is to show: one record of its own, the best, and one that both have."""
    with monkeypatch.context() as patch:
        (project / "clone").mkdir()
        prepare(project / "clone", project / ".mlflow" / "mlflow.db", patch)
        write_run(RUNS[0], candidates=3, seed=7)
        write_run(RUNS[1], candidates=1, seed=1)
        its_own = method(RUNS[0], input_key="key of other parameters")
        shared = dataclasses.replace(method(RUNS[1], champion=True), input_key=wanted.methods[1].input_key)
        assert shared.record_digest == wanted.methods[1].record_digest
        return dataclasses.replace(wanted, methods=(shared, its_own))


def current(server: str, name: str) -> dict[tuple[str, str], int]:
    """Return how many whole runs of methods there are by (record, champion) of those that are tagged as current."""
    from mlflow import MlflowClient

    client = MlflowClient(server)
    found = client.search_runs([client.get_experiment_by_name(name).experiment_id], "tags.level = 'method'")
    assert all(claims.is_complete(run) for run in found)
    tags = [run.data.tags for run in found if run.data.tags["current"] == "true"]
    return dict(collections.Counter((each["record"], each["champion"]) for each in tags))


def expected_of(what: tracking.Comparison) -> dict[tuple[str, str], int]:
    return {(each.record_digest, contents.text(each.champion)): 1 for each in what.methods}


@pytest.mark.slow
def test_of_two_clones_with_other_records_the_last_is_current_and_nothing_of_the_other_is_lost(
    server: Server,
    wanted: tracking.Comparison,
    other_clone: tracking.Comparison,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    name = contents.experiment_name(wanted.dataset)
    (other,) = machines(project, "other")
    assert sync(wanted).added == 6
    assert other(other_clone).endswith("4 added, 2 already there")
    assert current(server.uri, name) == expected_of(other_clone)
    found = tracking.audit(tracking.locate(), wanted)
    assert {finding.subject for finding in found} == {"tag", "orphan"}
    assert {finding.remedy for finding in found} == {"python -m pipeline sync"}

    assert sync(wanted).added == 0
    assert current(server.uri, name) == expected_of(wanted)
    assert tracking.audit(tracking.locate(), wanted) == []
    assert other(other_clone).endswith("0 added, 6 already there")


@pytest.mark.slow
def test_two_clones_with_experiments_of_their_own_leave_each_other_alone(
    server: Server,
    wanted: tracking.Comparison,
    other_clone: tracking.Comparison,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    names = [f"{wanted.dataset} {clone}" for clone in ("one", "other")]
    (other,) = machines(project, "other")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", names[0])
    sync(wanted)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", names[1])
    assert other(other_clone).endswith("6 added, 0 already there")
    assert current(server.uri, names[1]) == expected_of(other_clone)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", names[0])
    assert current(server.uri, names[0]) == expected_of(wanted)
    assert tracking.audit(tracking.locate(), wanted) == []


@pytest.mark.slow
def test_a_run_that_another_machine_is_adding_is_left_alone_for_a_while(
    server: Server,
    wanted: tracking.Comparison,
    stage: Callable[[], float],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)

    def interrupted(self: object, run: object) -> None:
        raise OSError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(SYNC._Sync, "log_inputs", interrupted)
        with pytest.raises(tracking.TrackingError):
            sync(wanted)
    (tmp_path / "elsewhere").mkdir()
    on_machine(tmp_path / "elsewhere", monkeypatch)
    assert command(monkeypatch) == 1
    err = capfd.readouterr().err
    assert err.startswith("error: not complete in MLflow: lite0-head. Another machine is adding them now, or was")
    assert shown_methods(server.uri, wanted) == {"lite0-logistic_regression": "true", "lite0-head": "claimed"}
    monkeypatch.setattr(claims, "SECONDS", 0)
    assert command(monkeypatch) == 0
    assert shown(server.uri, wanted) == EXPECTED


def shown_methods(server: str, what: tracking.Comparison) -> dict[str, str]:
    from mlflow import MlflowClient

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name(contents.experiment_name(what.dataset)).experiment_id
    runs = client.search_runs([experiment], "tags.level = 'method'")
    return {
        f"{run.data.tags['network']}-{run.data.tags['method']}": run.data.tags[claims.COMPLETE]
        if claims.is_complete(run)
        else "claimed"
        for run in runs
    }


@pytest.mark.slow
def test_another_environment_is_a_second_run_and_another_record_in_the_same_one_an_error(
    server: Server,
    wanted: tracking.Comparison,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    stage: Callable[[], float],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    inputs = live_inputs()
    head = dataclasses.replace(wanted.methods[1], input_key=inputs.key(), champion=True)
    alone = dataclasses.replace(wanted, methods=(head,))
    monkeypatch.setattr(track, "collect", lambda params: alone)

    def compute(seed: int) -> None:
        with tracking.live(dataset=wanted.dataset, run=RUNS[1], inputs=inputs):
            write_run(RUNS[1], candidates=1, seed=seed)

    elsewhere = {**wanted.environment, "cpu": "another"}
    sync(dataclasses.replace(alone, environment=elsewhere))  # a machine of another kind was first
    compute(seed=1)
    assert command(monkeypatch) == 0
    assert shown(server.uri, alone) == {**EXPECTED, "candidates": 2}
    compute(seed=2)
    other = dataclasses.replace(method(RUNS[1], champion=True), input_key=inputs.key())
    monkeypatch.setattr(track, "collect", lambda params: dataclasses.replace(alone, methods=(other,)))
    capfd.readouterr()
    assert command(monkeypatch) == 1
    assert capfd.readouterr().err.startswith("error: NOT DETERMINISTIC: lite0-head ended in two different records")
    stage()  # shouts, too, but a stage never fails because of what is in MLflow
    assert "NOT DETERMINISTIC" in capfd.readouterr().err


@pytest.mark.slow
def test_syncs_that_are_killed_at_random_moments_end_complete_and_without_repetition(
    server: Server, wanted: tracking.Comparison, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    # The server goes on with what a killed sync has asked for, and answers later: the patience of the product.
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    (project / "machine here").mkdir()
    on_machine(project / "machine here", monkeypatch)

    def filling() -> subprocess.Popen:
        """Start a sync and return when its first words say that it begins."""
        process = _start(project, "here", what)
        assert process.stdout.readline() == b"MLflow: opening the store\n"
        return process

    what = dataclasses.replace(wanted, dataset=f"{wanted.dataset}-undisturbed")
    process, started = filling(), time.monotonic()
    _finish(process)
    seconds = time.monotonic() - started
    moments, killed = random.Random(0), 0
    for number in range(KILLS):
        what = dataclasses.replace(wanted, dataset=f"{wanted.dataset}-{number}")
        for _ in range(2):
            process = filling()
            moment = moments.uniform(0, seconds)
            time.sleep(moment)
            process.kill()
            process.communicate()
            if process.returncode == -signal.SIGKILL:
                killed += 1
            else:
                seconds = moment  # on a machine that has become less busy, it takes no longer
        sync(what)
        assert shown(server.uri, what) == EXPECTED
    assert killed > KILLS


# --- full and read-only disks --------------------------------------------------------------------------------------


@pytest.fixture
def disk(project: Path) -> Iterator[Path]:
    """A small file system that holds the project's own store."""
    with small_disk(project / "disk", kilobytes=8192) as mounted:
        os.rename(project / ".mlflow" / "mlflow.db", project / "mlflow.db")
        (mounted / "store").mkdir()
        subprocess.run(["cp", project / "mlflow.db", mounted / "store" / "mlflow.db"], check=True)
        yield mounted


@pytest.mark.parametrize(
    "room",
    [
        pytest.param(0, id="for nothing"),
        pytest.param(40, id="for some rows", marks=pytest.mark.slow),
        pytest.param(200, id="for rows and some artifacts", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_under_the_store_is_one_warning_and_sync_completes_it_later(
    disk: Path,
    wanted: tracking.Comparison,
    stage: Callable[[], float],
    room: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    store = f"sqlite:///{disk}/store/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    fill(disk, leaving=room)
    assert stage() < 30
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert err.startswith(f"warning: the MLflow store {store} failed: ")
    assert "full" in err or "No space left on device" in err
    assert err.count("\n") == 1
    (disk / "filler").unlink()
    assert command(monkeypatch) == 0
    assert shown(store, wanted) == EXPECTED


@pytest.mark.slow
def test_live_logging_onto_a_full_disk_is_one_warning(
    disk: Path, wanted: tracking.Comparison, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk}/store/mlflow.db")
    fill(disk, leaving=0)
    assert logged(wanted, 5) < 30
    err = capfd.readouterr().err
    assert err.startswith("warning: lite0-head is not logged live: the MLflow store")
    assert err.count("\n") == 1


def test_a_read_only_store_is_one_warning(
    disk: Path,
    wanted: tracking.Comparison,
    stage: Callable[[], float],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk}/store/mlflow.db")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        assert stage() < 15
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "Read-only file system" in err or "readonly database" in err
    assert command(monkeypatch) == 0


@pytest.fixture
def server_on_disk(disk: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server whose database and artifacts lie on the small disk."""
    own = Server(f"sqlite:///{disk}/store/mlflow.db", disk, messages=project / "server.log")
    own.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", own.uri)
    yield own
    own.kill()


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 40, 200], ids=["for nothing", "for some rows", "for rows and some artifacts"])
def test_a_full_disk_under_a_server_is_one_warning_and_sync_completes_it_later(
    server_on_disk: Server,
    disk: Path,
    wanted: tracking.Comparison,
    stage: Callable[[], float],
    room: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fill(disk, leaving=room)
    assert stage() < 30
    assert one_warning(capfd, server_on_disk)
    (disk / "filler").unlink()
    assert command(monkeypatch) == 0
    assert shown(server_on_disk.uri, wanted) == EXPECTED


@pytest.mark.slow
def test_a_read_only_disk_under_a_server_is_one_warning_and_sync_completes_it_later(
    server_on_disk: Server,
    disk: Path,
    wanted: tracking.Comparison,
    stage: Callable[[], float],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server_on_disk.kill()  # what it has open for writing keeps a disk writable
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        server_on_disk.start()
        assert stage() < 30
    finally:
        server_on_disk.kill()
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert one_warning(capfd, server_on_disk)
    server_on_disk.start()
    assert command(monkeypatch) == 0
    assert shown(server_on_disk.uri, wanted) == EXPECTED


def one_warning(capfd: pytest.CaptureFixture[str], server: Server) -> bool:
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert err.startswith(f"warning: the MLflow store {server.uri} failed: "), err
    return err.count("\n") == 1


def fill(disk: Path, *, leaving: int) -> None:
    """Fill a file system but for so many kilobytes."""
    room = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(room.f_bavail * room.f_frsize - leaving * 1024))


# --- experiments at the same time ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_experiments_of_dvc_at_once_fill_one_store_with_every_run_once(finished: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(finished, clone, symlinks=True)
    for command in (("git", "add", "--all"), ("git", "commit", "--quiet", "--allow-empty", "--message", "Results")):
        subprocess.run(command, cwd=clone, check=True, env=demo.environment() | GIT)
    both: dict[str, subprocess.Popen] = {}
    for name, c in (("one", 0.5), ("other", 0.7)):
        said = tmp_path / name
        command = ("dvc", "exp", "run", "--temp", "--name", name, "-S", f"classifiers.logistic_regression.grid.C=[{c}]")
        with said.open("w") as console:
            both[name] = subprocess.Popen(
                command, cwd=clone, env=demo.environment() | GIT, stdout=console, stderr=console
            )
        # While it prepares an experiment, DVC locks the project.
        until(lambda said=said: "Running stage" in said.read_text(), seconds=600)
    assert both["one"].poll() is None
    for name, process in both.items():
        assert process.wait() == 0, (tmp_path / name).read_text()
        assert "warning: the MLflow store" not in (tmp_path / name).read_text()
    active = "runs r join tags t using (run_uuid) where r.lifecycle_stage='active'"
    with closing(sqlite3.connect(clone / ".mlflow" / "mlflow.db")) as database:
        experiments = dict(
            database.execute(f"select t.value, count(*) from {active} and t.key='dvc_experiment' group by 1").fetchall()
        )
        unfinished = database.execute(
            f"select count(*) from {active} and t.key='complete' and t.value!='true'"
        ).fetchall()
        records = database.execute(
            "select m.value, i.value, count(*) from runs r join tags m using (run_uuid)"
            " left join tags i on i.run_uuid=r.run_uuid and i.key='candidate'"
            " where r.lifecycle_stage='active' and m.key='record' group by 1, 2 having count(*)>1"
        ).fetchall()
    assert experiments.keys() == {"one", "other"}
    assert set(experiments.values()) == {2}  # the method and its one candidate
    assert unfinished == [(0,)]
    assert records == []
