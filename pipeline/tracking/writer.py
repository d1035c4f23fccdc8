"""The process that writes a running stage's log: JSON lines from standard input to one MLflow run.

The first line says what is about to be computed; then a line a step; the last says how it ended. If the input ends
without that line, the stage was killed. What went wrong with the store goes to standard output, with status 1.

Lines are read as they come, whatever the store does: the pipe never fills, so it never holds up the stage. Steps that
came while the store was busy are sent together.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.core import provenance
from pipeline.core.params import Run
from pipeline.tracking import calls, claims, contents, processes, run_inputs, store
from pipeline.tracking.store import Connection

if TYPE_CHECKING:
    from mlflow.entities import Metric

STEPS_A_CALL = 200
STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


def main(lines: Iterable[str]) -> int:
    messages = received(lines)
    begin = next(filter(None, messages))[0]
    inputs = run_inputs.Inputs(**{**begin["inputs"], "paths": tuple(begin["inputs"]["paths"])})
    place = store.locate()
    try:
        key = inputs.key()
        connection = store.connect(place, contents.experiment_name(begin["dataset"]))
        with connection.translated():
            _write(connection, begin, messages, key)
    except (store.TrackingError, ValueError) as error:
        print(error)
        return 1
    return 0


def received(lines: Iterable[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield the messages in lists: the first alone, later all that have come since the last list was taken.

    An empty list says that none has come for a while.
    """
    waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in lines:
            waiting.put(line)
        waiting.put(None)

    threading.Thread(target=read, daemon=True).start()
    most = 1
    while True:
        try:
            taken = [waiting.get(timeout=processes.SECONDS_BETWEEN_SIGNS)]
        except queue.Empty:
            yield []
            continue
        while len(taken) < most and not waiting.empty():
            taken.append(waiting.get())
        # A stage that is killed while it writes leaves a part of a line.
        whole = [json.loads(line) for line in taken if line is not None and line.endswith("\n")]
        if whole:
            yield whole
        if None in taken:
            return
        most = STEPS_A_CALL


def _write(
    connection: Connection, begin: Mapping[str, Any], messages: Iterable[list[dict[str, Any]]], key: str
) -> None:
    from mlflow.entities import RunTag
    from mlflow.exceptions import MlflowException

    client = connection.client
    where = provenance.environment_record()  # now: by the end, somebody may have changed the code
    _remove_dead(connection, key)
    run_id = client.create_run(
        connection.experiment,
        start_time=begin["time"],
        run_name=contents.method_name(begin["run"]["network"], begin["run"]["method"]),
        tags=_tags(begin, key),
    ).info.run_id
    state, end, record = "killed", None, None
    signed = time.monotonic()
    for taken in messages:
        if time.monotonic() - signed >= processes.SECONDS_BETWEEN_SIGNS:
            signed = time.monotonic()
            with contextlib.suppress(MlflowException):  # Others may take it for dead; the next step finds out why.
                client.set_tag(run_id, *processes.sign())
        points = [point for message in taken if "step" in message for point in _points(message)]
        for first in range(0, len(points), calls.METRICS_A_BATCH):
            client.log_batch(run_id, points[first : first + calls.METRICS_A_BATCH])
        if taken and "end" in taken[-1]:
            state, end, record = taken[-1]["end"], taken[-1]["time"], taken[-1]["record"]
            break
    tags = {"state": state}
    if record:  # From here on it may be adopted, first of all by this machine.
        tags |= {"record": record, claims.COMPLETE: claims.claim(connection)}
    client.log_batch(run_id, tags=[RunTag(*tag) for tag in tags.items()])
    client.set_terminated(run_id, STATUS[state], end)
    # Last: a store that keeps files slowly must not hold up the rest.
    calls.log_environment(client, run_id, where, witnessed=True)


def _points(message: Mapping[str, Any]) -> list[Metric]:
    from mlflow.entities import Metric

    step = message["step"] + contents.FIRST_STEP
    metrics = {contents.series_name(name): value for name, value in message["metrics"].items()}
    return [Metric(name, value, message["time"], step) for name, value in metrics.items()]


def _tags(begin: Mapping[str, Any], key: str) -> dict[str, str]:
    run = Run(**begin["run"])
    environment = provenance.environment()
    tags = contents.method_tags(network=run.network, method=run.method, stage=run.stage, dataset=begin["dataset"])
    tags |= contents.environment_tags(environment, provenance.digest(environment), witnessed=True)
    tags |= contents.origin_tags(run.stage)
    return tags | processes.tags_of(begin["pid"]) | {"input_key": key, "state": "live"}


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
