"""What a review asks of MLflow, and what it leaves there: durations, witnessed environments, and its verdict."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from pipeline.tracking import calls, contents, store
from pipeline.tracking.calls import tag
from pipeline.tracking.store import Connection, Store

# A review that waits for its replay does not wait long for a store.
SECONDS = 60.0
ENVIRONMENT = "environment."
FOLDER = "review"


def durations(place: Store, dataset: str) -> dict[str, float]:
    """Return {stage: seconds} of the runs that logged themselves while they were computed, the newest of each stage.

    Raises TrackingError. Nothing if the store does not exist: asking creates none.
    """
    found: dict[str, float] = {}
    with _opened(place, dataset) as connection:
        for run in _runs(connection, "tags.environment_witnessed = 'true'"):
            info = run.info
            if info.end_time and info.start_time and info.end_time > info.start_time:
                found.setdefault(_stage(run.data.tags), (info.end_time - info.start_time) / 1000)
    return found


def environments(place: Store, dataset: str, records: Collection[str]) -> dict[str, list[dict[str, str]]]:
    """Return {record digest: the environments in which MLflow saw it being computed}. Raises TrackingError."""
    found: dict[str, list[dict[str, str]]] = {}
    with _opened(place, dataset) as connection:
        for run in _runs(connection, "tags.environment_witnessed = 'true'"):
            if tag(run, "record") in records:
                tags = run.data.tags
                known = {name.removeprefix(ENVIRONMENT): tags[name] for name in tags if name.startswith(ENVIRONMENT)}
                found.setdefault(tag(run, "record"), []).append(known)
    return found


def attach(
    place: Store, dataset: str, verdicts: Mapping[str, Mapping[str, str]], files: Iterable[Path], *, name: str
) -> int:
    """Leave a review on the runs of the records that it checked, and return on how many. Raises TrackingError.

    ``verdicts``: record digest -> tags. ``name``: the folder of the files among a run's artifacts, below `FOLDER`.
    """
    files, count = list(files), 0
    with _opened(place, dataset) as connection:
        for run in _runs(connection, ""):
            if (tags := verdicts.get(tag(run, "record"))) is None:
                continue
            for file in files:
                connection.client.log_artifact(run.info.run_id, str(file), f"{FOLDER}/{name}")
            calls.log(connection.client, run, tags=tags)
            count += 1
    return count


@contextlib.contextmanager
def _opened(place: Store, dataset: str) -> Iterator[Connection | None]:
    """Yield a connection, None to a file that does not exist."""
    # Not Path.exists, which raises where a folder may not be read.
    if place.database is not None and not os.path.exists(place.database):
        yield None
        return
    connection = store.connect(place, contents.experiment_name(dataset), seconds=SECONDS)
    with connection.translated():
        yield connection


def _runs(connection: Connection | None, condition: str) -> list:
    if connection is None:
        return []
    wanted = "tags.level = 'method'"
    return calls.search(connection, f"{wanted} and {condition}" if condition else wanted)


def _stage(tags: Mapping[str, str]) -> str:
    """Return the name that dvc.yaml gives the stage of a run."""
    stage, network = tags.get("stage", ""), tags.get("network", "")
    return f"{stage}@{network}-{tags.get('method', '')}" if stage == "sweep" else f"{stage}@{network}"
