"""The few things done to MLflow runs, each of them harmless when done twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.core import provenance
from pipeline.tracking import contents
from pipeline.tracking.store import Connection

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

# A call may carry 1,000 entries in all, of them 100 parameters and 100 tags.
METRICS_A_BATCH = 800
ENTRIES_A_BATCH = 100
# The file that says where a run was computed, and the tag with its digest, which says that the file is there.
ENVIRONMENT_FILE = "environment.json"
ENVIRONMENT_TAG = "environment_record"


def tag(run: Run, name: str) -> str:
    """Return a tag's value, or an empty string."""
    return run.data.tags.get(name, "")


def method_name(run: Run) -> str:
    """Return the name under which results/runs has, or had, what a method's run shows."""
    # Before runs had the tag `network`, that of networks without pretraining was called `backbone`, too.
    return f"{tag(run, 'network') or tag(run, 'backbone')}-{tag(run, 'method')}"


def search(connection: Connection, condition: str, *, deleted: bool = False) -> list[Run]:
    """Return the active runs of the experiment that meet a condition, newest first; or instead the ``deleted`` ones."""
    from mlflow.entities import ViewType

    kind = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
    found: list[Run] = []
    token = None
    while True:
        page = connection.client.search_runs(
            [connection.experiment], condition, kind, max_results=1000, page_token=token
        )
        found += page
        token = page.token
        if not token:
            return found


def insist(call: Callable[..., object], *arguments: object) -> None:
    """Call once more if the server refuses the first time.

    Of two machines that insert the same row at once, say a tag of the experiment, a server on PostgreSQL refuses one
    with a UniqueViolation; the next time, the row is there and is updated or left alone.
    """
    from mlflow.exceptions import MlflowException

    try:
        call(*arguments)
    except MlflowException as error:
        if error.error_code != "BAD_REQUEST":
            raise
        call(*arguments)


def log(
    client: MlflowClient,
    run: Run,
    summary: Mapping[str, float] | None = None,
    *,
    parameters: Mapping[str, str] | None = None,
    series: Mapping[str, Sequence[float]] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Log what the run does not show yet, the tags last; a summary that changed gets a later time than the old."""
    from mlflow.entities import Metric, Param, RunTag

    start, shown = run.info.start_time, run.data
    metrics = [
        Metric(name, value, round(time.time() * 1000) if name in shown.metrics else start, contents.SUMMARY_STEP)
        for name, value in (summary or {}).items()
        if shown.metrics.get(name) != value
    ]
    metrics += _missing_points(client, run, series or {})
    params = [Param(*entry) for entry in (parameters or {}).items() if entry[0] not in shown.params]
    changed = {name: value for name, value in (tags or {}).items() if shown.tags.get(name) != value}
    # Every call costs the store several transactions: together, unless there is more than a call may carry.
    last_metrics = len(metrics) // METRICS_A_BATCH * METRICS_A_BATCH
    last_params = len(params) // ENTRIES_A_BATCH * ENTRIES_A_BATCH
    run_id = run.info.run_id
    for first in range(0, last_metrics, METRICS_A_BATCH):
        client.log_batch(run_id, metrics=metrics[first : first + METRICS_A_BATCH])
    for first in range(0, last_params, ENTRIES_A_BATCH):
        client.log_batch(run_id, params=params[first : first + ENTRIES_A_BATCH])
    rest = metrics[last_metrics:], params[last_params:], [RunTag(*tag) for tag in changed.items()]
    if any(rest):
        client.log_batch(run_id, *rest)
    run.data.tags.update(changed)


def _missing_points(client: MlflowClient, run: Run, series: Mapping[str, Sequence[float]]) -> list[Metric]:
    """Return the points of the series that the run lacks; a live run has its own, with their times."""
    from mlflow.entities import Metric

    points = []
    for name, values in series.items():
        key = contents.series_name(name)
        history = client.get_metric_history(run.info.run_id, key) if key in run.data.metrics else ()
        done = {point.step for point in history}
        steps = enumerate(values, start=contents.FIRST_STEP)
        points += [Metric(key, value, run.info.start_time, step) for step, value in steps if step not in done]
    return points


def log_environment(client: MlflowClient, run_id: str, record: Mapping[str, Any], *, witnessed: bool) -> None:
    """Keep what is known of where a run was computed (`provenance.environment_record`); it identifies nothing.

    ``witnessed``: as in `contents.environment_tags`.
    """
    said = {"witnessed": witnessed, **record}
    client.log_dict(run_id, said, ENVIRONMENT_FILE)
    client.set_tag(run_id, ENVIRONMENT_TAG, provenance.digest(said))


def terminate(client: MlflowClient, run: Run) -> None:
    """Close a run at the time it ended, if that is known."""
    if run.info.status != "FINISHED":
        client.set_terminated(run.info.run_id, "FINISHED", run.info.end_time or run.info.start_time)
