"""The process that writes a running stage's log: JSON lines from standard input to one MLflow run.

The first line says what is about to be computed; then a line a step; the last says how it ended. If the input ends
without that line, the stage was killed. What went wrong with the store goes to standard output, with status 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import psutil

from pipeline import identity, provenance
from pipeline.params import Run
from pipeline.tracking import calls, contents, processes, store
from pipeline.tracking.store import Connection

STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


def main(lines: Iterable[str]) -> int:
    messages = map(json.loads, lines)
    begin = next(messages)
    inputs = identity.Inputs(**{**begin["inputs"], "paths": tuple(begin["inputs"]["paths"])})
    place = store.locate()
    try:
        key = inputs.key()
        connection = store.connect(place, contents.experiment_name(begin["dataset"]))
        with store.translated(place):
            _write(connection, begin, messages, key)
    except (store.TrackingError, ValueError) as error:
        print(error)
        return 1
    return 0


def _write(connection: Connection, begin: Mapping[str, Any], messages: Iterable[Mapping[str, Any]], key: str) -> None:
    from mlflow.entities import Metric, RunTag

    client = connection.client
    _remove_dead(connection, key)
    run_id = client.create_run(
        connection.experiment,
        start_time=begin["time"],
        run_name=contents.method_name(begin["run"]["network"], begin["run"]["method"]),
        tags=_tags(begin, key),
    ).info.run_id
    state, end, record = "killed", None, None
    for message in messages:
        if "end" in message:
            state, end, record = message["end"], message["time"], message["record"]
            break
        step = message["step"] + contents.FIRST_STEP
        metrics = {contents.series_name(name): value for name, value in message["metrics"].items()}
        client.log_batch(run_id, [Metric(name, value, message["time"], step) for name, value in metrics.items()])
    tags = {"state": state} | ({"record": record} if record else {})
    client.log_batch(run_id, tags=[RunTag(*tag) for tag in tags.items()])
    client.set_terminated(run_id, STATUS[state], end)


def _tags(begin: Mapping[str, Any], key: str) -> dict[str, str]:
    run = Run(**begin["run"])
    environment = provenance.environment()
    tags = contents.method_tags(network=run.network, method=run.method, stage=run.stage, dataset=begin["dataset"])
    tags |= contents.environment_tags(environment, provenance.digest(environment), witnessed=True)
    tags |= contents.origin_tags(run.stage)
    tags |= {"input_key": key, "state": "live", "pid": str(begin["pid"])}
    with contextlib.suppress(psutil.Error):  # It ended already; a run without this tag counts as dead.
        tags["process_start"] = processes.start_of(begin["pid"])
    return tags


def _remove_dead(connection: Connection, key: str) -> None:
    """Delete what interrupted attempts at the same computation left, unless their process still runs."""
    for run in calls.search(connection, f"tags.input_key = '{key}' and tags.level = 'method'"):
        if calls.tag(run, "state") in ("live", "failed", "killed") and not processes.is_alive(run.data.tags):
            connection.client.delete_run(run.info.run_id)


if __name__ == "__main__":
    # Importing MLflow keeps a core busy for seconds; a stage that computes on all of them comes first.
    if hasattr(os, "nice"):
        os.nice(5)
    sys.exit(main(sys.stdin))
