"""Where a run was computed is told in MLflow, once, by whoever saw it; and it identifies nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from pipeline import tracking
from pipeline.core import artifacts, provenance
from pipeline.tracking import calls, run_inputs
from tests.tracking.test_tracking import (
    RUNS,
    client,
    comparison,
    here,
    live_head,
    method,
    prepare,
    rows,
    runs,
    write_run,
)

# MLflow and what it brings along warn about their own future.
pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project without runs that is the working directory, with an empty store of its own."""
    prepare(tmp_path, empty_database, monkeypatch)
    return tmp_path


def environment_of(run) -> dict:
    path = client().download_artifacts(run.info.run_id, calls.ENVIRONMENT_FILE)
    return json.loads(Path(path).read_text(encoding="utf-8"))


def sync(what: tracking.Comparison) -> tracking.Report:
    return tracking.sync(tracking.locate(), what)


def test_a_stage_tells_where_it_computes_and_a_sync_elsewhere_does_not_overwrite_it(project: Path) -> None:
    (project / "input").write_text("images", encoding="utf-8")
    inputs = run_inputs.Inputs("head", {"backbone": "lite0"}, {"seed": 0}, ("input",), ("pipeline.core.seeds",))
    live_head(inputs)
    (live,) = runs()
    told = environment_of(live)
    assert told["witnessed"] is True
    assert told["decisive"] == provenance.environment()
    assert told["packages"]["mlflow"] and told["git"]["commit"] and "TF_ENABLE_ONEDNN_OPTS" in told["flags"]
    what = here(method(RUNS[1], champion=True, input_key=inputs.key()))
    sync(dataclasses.replace(what, environment_record={"of": "another machine"}))
    (run,) = runs("tags.level = 'method'")
    assert run.info.run_id == live.info.run_id
    assert environment_of(run) == told


def test_a_sync_tells_it_once_and_that_it_saw_no_more_than_the_record() -> None:
    write_run(RUNS[0], candidates=1)
    what = dataclasses.replace(comparison(method(RUNS[0], champion=True)), environment_record={"cpu": "here"})
    sync(what)
    (run,) = runs("tags.level = 'method'")
    assert environment_of(run) == {"cpu": "here", "witnessed": False}
    tags = rows("SELECT run_uuid, key, value FROM tags ORDER BY 1, 2")
    later = dataclasses.replace(what, environment_record={"cpu": "another"})
    assert sync(later).added == 0
    assert environment_of(run) == {"cpu": "here", "witnessed": False}
    assert rows("SELECT run_uuid, key, value FROM tags ORDER BY 1, 2") == tags


def test_another_environment_record_makes_no_other_run() -> None:
    """A driver, a flag or the git state may differ: what computes is the same, so the run is."""
    write_run(RUNS[0], candidates=1)
    for record in ({"git": "one"}, {"git": "two"}):
        sync(dataclasses.replace(comparison(method(RUNS[0], champion=True)), environment_record=record))
    assert len(runs("tags.level = 'method'")) == 1
    assert tracking.audit(tracking.locate(), comparison(method(RUNS[0], champion=True))) == []


def test_no_record_on_disk_holds_any_of_it() -> None:
    record = write_run(RUNS[0], candidates=1)
    assert not {"packages", "flags", "git", "cpu"} & artifacts.Record.model_fields.keys()
    assert "environment" not in record.model_dump()
