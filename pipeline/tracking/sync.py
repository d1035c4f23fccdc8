"""Records to runs: adds what a store lacks, completes what an interruption left, and changes nothing else.

A finished run is identified by the digest of its record and predictions. A run that a stage logged live and that ended
in this record is adopted and completed; it keeps its times. One that only repeats what the store already holds for the
same environment is removed. The tag ``complete`` is written last, so an interrupted sync is continued by the next, and
numbers added here carry the run's own start time, so that writing one twice is writing it once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import provenance
from pipeline.tracking import contents, models, processes, store
from pipeline.tracking.contents import Comparison, Method, text
from pipeline.tracking.store import Connection, Store

if TYPE_CHECKING:
    from mlflow.entities import Run

METRICS_A_BATCH = 900
ENTRIES_A_BATCH = 100


@dataclass(frozen=True)
class Report:
    """What a sync did. ``warnings``: what a person must read, such as two records from the same inputs."""

    methods: int
    candidates: int
    added: int
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        there = self.methods + self.candidates - self.added
        return f"{self.methods} methods and {self.candidates} candidates: {self.added} added, {there} already there"


def sync(place: Store, comparison: Comparison) -> Report:
    """Make the store show the comparison. Raises TrackingError if it cannot be reached, read or written."""
    connection = store.connect(place, contents.experiment_name(comparison.dataset))
    with store.lock(place, "sync"), store.translated(place):
        return _Sync(connection, comparison).run()


class _Sync:
    """One pass over the methods, with the runs of the store as they were at its start."""

    def __init__(self, connection: Connection, comparison: Comparison):
        self.connection = connection
        self.client = connection.client
        self.comparison = comparison
        self.environment = provenance.digest(dict(comparison.environment))
        self.runs = self.search("tags.level = 'method'")
        self.added = 0
        self.warnings: list[str] = []

    def run(self) -> Report:
        self.close_dead_runs()
        # The UI lists the newest first, and the methods come best first.
        for position, method in enumerate(reversed(self.comparison.methods)):
            self.method(method, position)
        self.mark_current()
        methods = self.comparison.methods
        candidates = sum(len(method.record.candidates) for method in methods)
        return Report(len(methods), candidates, self.added, tuple(self.warnings))

    def method(self, method: Method, position: int) -> None:
        runs = self.one_per_environment([run for run in self.runs if _tag(run, "record") == method.record_digest])
        if not runs:
            runs = [self.create(method, position)]
            self.runs += runs
        children = self.search(f"tags.level = 'candidate' and tags.record = '{method.record_digest}'")
        self.shout_if_not_deterministic(method, runs)
        for run in runs:
            self.candidates(method, run, children, orphans_of={other.info.run_id for other in runs})
            self.complete_method(method, run)

    # --- a method's run --------------------------------------------------------------------------------------------

    def one_per_environment(self, runs: Sequence[Run]) -> list[Run]:
        """Return the runs of one record without repetitions, which are deleted: the oldest complete one stays."""
        kept: dict[str, Run] = {}
        for run in sorted(runs, key=lambda run: (not _complete(run), run.info.start_time)):
            first = kept.setdefault(_tag(run, "environment"), run)
            if first is not run:
                if _tag(run, "environment_witnessed") == "true":
                    self.set_tags(first, {"environment_witnessed": "true"})
                self.client.delete_run(run.info.run_id)
                self.runs.remove(run)
        return list(kept.values())

    def create(self, method: Method, position: int) -> Run:
        record = method.record
        tags = contents.method_tags(
            network=record.network, method=record.method, stage=record.stage, dataset=self.comparison.dataset
        )
        tags |= contents.environment_tags(self.comparison.environment, self.environment, witnessed=False)
        tags |= contents.origin_tags(record.stage)
        tags |= {"record": method.record_digest, "state": "finished"}
        if method.input_key:
            tags["input_key"] = method.input_key
        return self.client.create_run(
            self.connection.experiment,
            # When it was computed is nobody's knowledge any more; the place in the list is what the time is good for.
            start_time=_now() + 1000 * position,
            run_name=contents.method_name(record.network, record.method),
            tags=tags,
        )

    def complete_method(self, method: Method, run: Run) -> None:
        record = method.record
        changing = {
            "champion": text(method.champion),
            "dataset": self.comparison.dataset,
            contents.NOTE: contents.description(method),
            **{f"dataset.{part.part}.sha256": part.sha256 for part in self.comparison.parts},
        }
        self.set_tags(run, changing)
        self.log(run, contents.method_summary(method))
        if method.champion:
            self.log_comparison(run)
        if _complete(run):
            return
        self.added += 1
        chosen = record.candidates[record.selected]
        self.log(run, {}, parameters=contents.parameters(method), series=chosen.history)
        self.log_inputs(run)
        for name in ("record.json", "predictions.npz", "history.csv", "curves.png"):
            if (method.directory / name).exists():
                self.client.log_artifact(run.info.run_id, str(method.directory / name))
        if missing := models.log(self.client, self.connection.experiment, run, method):
            self.warnings.append(f"{record.name}: the model is not in MLflow yet, because {missing} is not here")
            return
        self.finish(run)

    def log_inputs(self, run: Run) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        known = {entry.dataset.name for entry in self.client.get_run(run.info.run_id).inputs.dataset_inputs}
        entries = [
            DatasetInput(models.dataset(Dataset, self.comparison.dataset, part), [InputTag("mlflow.data.context", part.part)])
            for part in self.comparison.parts
        ]
        missing = [entry for entry in entries if entry.dataset.name not in known]
        if missing:
            self.client.log_inputs(run.info.run_id, missing)

    def log_comparison(self, run: Run) -> None:
        """Keep the leaderboard and the figures on the champion's run; again only when one of them changed."""
        from pipeline.artifacts import sha256_path

        digest = provenance.digest({path.name: sha256_path(path) for path in self.comparison.files})
        if _tag(run, "comparison") == digest:
            return
        for path in self.comparison.files:
            log = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
            log(run.info.run_id, str(path), f"comparison/{path.name}" if path.is_dir() else "comparison")
        self.set_tags(run, {"comparison": digest})

    # --- its candidates --------------------------------------------------------------------------------------------

    def candidates(self, method: Method, parent: Run, children: Iterable[Run], *, orphans_of: set[str]) -> None:
        """Give ``parent`` one nested run a candidate. Runs whose parent was deleted are taken over."""
        known = {_tag(child, "candidate"): child for child in children if _tag(child, contents.PARENT) == parent.info.run_id}
        orphans = {
            _tag(child, "candidate"): child
            for child in children
            if _tag(child, contents.PARENT) not in orphans_of and _tag(child, "environment") == _tag(parent, "environment")
        }
        for index, candidate in enumerate(method.record.candidates):
            child = known.get(str(index))
            if child is None and str(index) in orphans:
                child = orphans[str(index)]
                self.set_tags(child, {contents.PARENT: parent.info.run_id})
            if child is None:
                child = self.create_candidate(method, parent, index)
            if _complete(child):
                self.log(child, contents.summary(method, index))
                continue
            self.added += 1
            self.log(
                child, contents.summary(method, index),
                parameters=contents.parameters(method, index), series=candidate.history,
            )  # fmt: skip
            self.finish(child)

    def create_candidate(self, method: Method, parent: Run, index: int) -> Run:
        record, candidate = method.record, method.record.candidates[index]
        shared = ("method", "stage", "backbone", "dataset", "environment", "input_key", "dvc_experiment", "git_commit",
                  "git_dirty", "mlflow.source.name", "mlflow.source.type", "mlflow.source.git.commit", "mlflow.user")  # fmt: skip
        tags = {name: parent.data.tags[name] for name in shared if name in parent.data.tags}
        tags |= {
            contents.PARENT: parent.info.run_id, "level": "candidate", "candidate": str(index),
            "record": method.record_digest, "selected": text(index == record.selected),
            "converged": text(candidate.converged),
        }  # fmt: skip
        tags |= {f"note.{name}": value for name, value in candidate.notes.items() if isinstance(value, str)}
        return self.client.create_run(
            self.connection.experiment,
            start_time=parent.info.start_time + len(record.candidates) - index,  # the first on top of the list
            run_name=candidate.name,
            tags=tags,
        )

    # --- all runs --------------------------------------------------------------------------------------------------

    def close_dead_runs(self) -> None:
        """Remove live runs that died computing what now has a record, and mark the others as killed."""
        keys = {method.input_key for method in self.comparison.methods}
        for run in list(self.runs):
            if _tag(run, "state") not in ("live", "failed", "killed") or processes.is_alive(run.data.tags):
                continue
            if _tag(run, "input_key") in keys:
                self.client.delete_run(run.info.run_id)
                self.runs.remove(run)
            elif _tag(run, "state") == "live":
                self.set_tags(run, {"state": "killed"})
                self.client.set_terminated(run.info.run_id, "KILLED")

    def shout_if_not_deterministic(self, method: Method, runs: Sequence[Run]) -> None:
        for run in runs:
            for other in self.runs:
                same = method.input_key and _tag(other, "input_key") == method.input_key
                if not same or _tag(other, "record") in (method.record_digest, "") or not _same_environment(run, other):
                    continue
                for one, another in ((run, other), (other, run)):
                    self.set_tags(one, {"not_deterministic": another.info.run_id})
                sure = all(_tag(one, "environment_witnessed") == "true" for one in (run, other))
                self.warnings.append(
                    f"NOT DETERMINISTIC: {method.record.name} ended in two different records from the same inputs, "
                    f"parameters, code and environment: runs {run.info.run_id} and {other.info.run_id}, now tagged "
                    "not_deterministic."
                    + ("" if sure else " (Unless one of them was fetched: no log shows where both were computed.)")
                )

    def mark_current(self) -> None:
        """Tag the runs of today's records as current, and no other of this DVC experiment."""
        current = {method.record_digest for method in self.comparison.methods}
        mine = contents.origin_tags("").get("dvc_experiment", "")
        for run in self.runs:
            is_current = _tag(run, "record") in current
            if not is_current and _tag(run, "dvc_experiment") not in ("", mine):
                continue
            if _tag(run, "state") != "finished" or _tag(run, "current") == text(is_current):
                continue
            children = self.search(f"tags.`{contents.PARENT}` = '{run.info.run_id}'")
            for one in (*children, run):
                self.set_tags(one, {"current": text(is_current)} | ({} if is_current else {"champion": "false"}))

    def search(self, condition: str) -> list[Run]:
        found: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs([self.connection.experiment], condition, max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def set_tags(self, run: Run, tags: Mapping[str, str]) -> None:
        """Write the tags that differ, in the store and in the copy at hand."""
        from mlflow.entities import RunTag

        changed = {name: value for name, value in tags.items() if run.data.tags.get(name) != value}
        if changed:
            self.client.log_batch(run.info.run_id, tags=[RunTag(*tag) for tag in changed.items()])
            run.data.tags.update(changed)

    def log(
        self,
        run: Run,
        summary: Mapping[str, float],
        *,
        parameters: Mapping[str, str] | None = None,
        series: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Log what the run does not show yet. A summary that changed is written after the value it replaces."""
        from mlflow.entities import Metric, Param

        start, shown = run.info.start_time, run.data.metrics
        metrics = [
            Metric(name, value, _now() if name in shown else start, contents.SUMMARY_STEP)
            for name, value in summary.items()
            if shown.get(name) != value
        ]
        for name, values in (series or {}).items():
            key = contents.series_name(name)
            done = {point.step for point in self.client.get_metric_history(run.info.run_id, key)} if key in shown else ()
            steps = enumerate(values, start=contents.FIRST_STEP)
            metrics += [Metric(key, value, start, step) for step, value in steps if step not in done]
        params = [Param(*entry) for entry in (parameters or {}).items() if entry[0] not in run.data.params]
        run_id = run.info.run_id
        _in_batches(metrics, METRICS_A_BATCH, lambda batch: self.client.log_batch(run_id, metrics=batch))
        _in_batches(params, ENTRIES_A_BATCH, lambda batch: self.client.log_batch(run_id, params=batch))

    def finish(self, run: Run) -> None:
        """Close a run at the time it ended, if known, and mark it as complete."""
        if run.info.status != "FINISHED":
            self.client.set_terminated(run.info.run_id, "FINISHED", run.info.end_time or run.info.start_time)
        self.set_tags(run, {"complete": "true"})


def _in_batches(entries: Sequence[Any], size: int, log: Callable[[Sequence[Any]], None]) -> None:
    for start in range(0, len(entries), size):
        log(entries[start : start + size])


def _tag(run: Run, name: str) -> str:
    return run.data.tags.get(name, "")


def _complete(run: Run) -> bool:
    return _tag(run, "complete") == "true"


def _same_environment(one: Run, other: Run) -> bool:
    return _tag(one, "environment") == _tag(other, "environment")


def _now() -> int:
    return int(time.time() * 1000)
