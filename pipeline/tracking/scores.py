"""Which models a store has a test score of, for whoever asks how often the test part was looked at. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.tracking import contents, store
from pipeline.tracking.calls import method_name, tag
from pipeline.tracking.store import Connection, Store

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True, order=True)
class Score:
    """A model's score. ``run``: network and method; ``record``: the digest of its record and predictions.

    ``test_part``: the digest of the list of test images, empty if unknown. ``deleted``: the run is in the bin.
    """

    run: str
    value: float
    record: str
    test_part: str
    deleted: bool


def scores(place: Store, dataset: str, *, metric: str, seconds: float | None = None) -> list[Score] | None:
    """Return what the store holds of a metric on test for a data set's methods, sorted; None where there is no store.

    One a record, however many runs show it; runs in the bin count, too. Raises TrackingError if it cannot be reached or
    read within ``seconds``.
    """
    connection = store.look(place, contents.experiment_name(dataset), seconds=seconds)
    if connection is None:
        return None
    found: dict[tuple[str, str], Score] = {}
    with store.translated(place):
        for run in _methods(connection):
            value = run.data.metrics.get(f"test_{metric}")
            if value is None:
                continue
            name = method_name(run)
            part, deleted = tag(run, "dataset.test.sha256"), run.info.lifecycle_stage == "deleted"
            one = Score(name, value, tag(run, "record"), part, deleted)
            key = one.record or run.info.run_id, part
            if key not in found or found[key].deleted:
                found[key] = one
    return sorted(found.values())


def _methods(connection: Connection) -> list[Run]:
    from mlflow.entities import ViewType

    found: list[Run] = []
    token = None
    while True:
        page = connection.client.search_runs(
            [connection.experiment],
            "tags.level = 'method'",
            run_view_type=ViewType.ALL,
            max_results=1000,
            page_token=token,
        )
        found += page
        token = page.token
        if not token:
            return found
