"""Records to runs: adds what a store lacks, completes what an interruption left, and changes nothing else.

A finished run is identified by the digest of its record and predictions. A run that a stage logged live and that ended
in this record is adopted and completed; it keeps its times. One that only repeats what the store already holds for the
same environment is removed. The tag ``complete`` is written last, so an interrupted sync is continued by the next, and
numbers added here carry the run's own start time, so that writing one twice is writing it once.

Several machines may do this to one server at once, and a request that took too long may be sent twice. A run that is
not complete carries a claim (`claims.claim`), and others leave it alone for a while; what was created twice all the
same is found by a second look, and one of the two is removed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.console.progress import progress, say
from pipeline.core import artifacts, provenance
from pipeline.tracking import calls, claims, contents, models, processes, store, view
from pipeline.tracking.calls import tag
from pipeline.tracking.contents import Comparison, Method, text
from pipeline.tracking.store import Connection, Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True)
class Report:
    """What a sync did.

    ``experiment``: its id in the store. ``warnings``: what a person should know. ``problems``: what a person must see
    to, such as two records from the same inputs, or runs that could not be completed now.
    """

    experiment: str
    methods: int
    candidates: int
    added: int
    warnings: tuple[str, ...]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        there = self.methods + self.candidates - self.added
        return f"{self.methods} methods and {self.candidates} candidates: {self.added} added, {there} already there"


def sync(place: Store, comparison: Comparison, *, seconds: float | None = None) -> Report:
    """Make the store show the comparison, saying so a line a method.

    Raises TrackingError if it cannot be reached, read or written, or when it has taken more than ``seconds``; what was
    added until then stays, and the next sync goes on from there.
    """
    # Not Path.exists, which raises where the folder may not be read: a store never fails a stage.
    is_new = place.database is not None and not os.path.exists(place.database)
    say("MLflow: creating the store, which takes some seconds" if is_new else "MLflow: opening the store")

    def fill() -> Report:
        connection = store.connect(place, contents.experiment_name(comparison.dataset), seconds=seconds)
        with connection.translated(), store.lock(place, "sync", connection.deadline):
            return _Sync(connection, comparison).run()

    return store.within(place, seconds, fill)


class _Sync:
    """One pass over the methods, with the runs of the store as they were at its start."""

    def __init__(self, connection: Connection, comparison: Comparison):
        self.connection = connection
        self.comparison = comparison
        self.environment = provenance.digest(dict(comparison.environment))
        self.runs = calls.search(self.connection, "tags.level = 'method'")
        self.added = 0
        self.warnings: dict[str, None] = {}
        self.problems: dict[str, None] = {}
        self.elsewhere: list[str] = []

    @property
    def client(self) -> MlflowClient:
        return self.connection.client

    def run(self) -> Report:
        self.save_views()
        self.close_dead_runs()
        methods = self.comparison.methods
        # The UI lists the newest first, and the methods come best first.
        for position, method in enumerate(reversed(methods)):
            before = self.added
            self.method(method, position)
            name = contents.method_name(method.record.network, method.record.method)
            say(f"MLflow: {position + 1}/{len(methods)} {name}: {_added(self.added - before)}")
        if self.elsewhere or (self.added and self.connection.store.database is None):
            self.look_again()
        self.mark_current()
        candidates = sum(len(method.record.candidates) for method in methods)
        return Report(
            self.connection.experiment, len(methods), candidates, self.added, tuple(self.warnings), tuple(self.problems)
        )

    def method(self, method: Method, position: int) -> None:
        # In this order: a candidate whose parent another machine has just created would look like an orphan.
        children = self.of_record("candidate", method)
        found = self.of_record("method", method)
        runs = claims.one_per_environment(self.connection, found) or [self.create(method, position)]
        parents = {run.info.run_id for run in (*found, *runs)}
        self.runs = [run for run in self.runs if tag(run, "record") != method.record_digest] + runs
        self.shout_if_not_deterministic(method, runs)
        for run in runs:
            if claims.is_claimed_elsewhere(self.connection, run):
                self.elsewhere.append(method.record.name)
                continue
            claims.renew(self.connection, run)
            self.candidates(method, run, children, parents=parents)
            self.complete_method(method, run)

    def of_record(self, level: str, method: Method) -> list[Run]:
        return calls.search(self.connection, f"tags.level = '{level}' and tags.record = '{method.record_digest}'")

    def look_again(self) -> None:
        """Remove what another machine, or a request sent twice, has doubled since; name what others still work on."""
        self.elsewhere = []
        for position, method in enumerate(reversed(self.comparison.methods)):
            self.method(method, position)
        if self.elsewhere:
            minutes = claims.SECONDS // 60
            self.problems[
                f"not complete in MLflow: {', '.join(self.elsewhere)}. Another machine is adding them now, or was "
                f"stopped while it did: call `python -m pipeline sync` again, after at most {minutes} minutes"
            ] = None

    def save_views(self) -> None:
        """Keep the saved views around the metric that chooses today."""
        known = self.client.get_experiment(self.connection.experiment).tags
        wanted = view.tags(
            self.comparison.selected_by,
            smaller_is_better=self.comparison.smaller_is_better,
            repeated=any(method.repeats > 1 for method in self.comparison.methods),
        )
        for name, value in wanted.items():
            if known.get(name) != value:
                calls.insist(self.client.set_experiment_tag, self.connection.experiment, name, value)

    # --- a method's run --------------------------------------------------------------------------------------------

    def create(self, method: Method, position: int) -> Run:
        record = method.record
        tags = contents.method_tags(
            network=record.network, method=record.method, stage=record.stage, dataset=self.comparison.dataset
        )
        tags |= contents.environment_tags(self.comparison.environment, self.environment, witnessed=False)
        tags |= contents.origin_tags(record.stage)
        tags |= {"record": method.record_digest, "state": "finished", "current": "true"}
        tags[claims.COMPLETE] = claims.claim(self.connection)
        tags |= self.changing_tags(method)
        if method.input_key:
            tags["input_key"] = method.input_key
        return self.client.create_run(
            self.connection.experiment,
            # When it was computed is nobody's knowledge any more; the place in the list is what the time is good for.
            start_time=_now() + 1000 * position,
            run_name=contents.method_name(record.network, record.method),
            tags=tags,
        )

    def changing_tags(self, method: Method) -> dict[str, str]:
        """Return the tags that another comparison of the same record may change."""
        note = contents.description(method, self.comparison.selected_by)
        return {contents.NOTE: note, **contents.lasting_tags(method, self.comparison)}

    def complete_method(self, method: Method, run: Run) -> None:
        calls.log(self.client, run, contents.method_summary(method), tags=self.changing_tags(method))
        if method.champion:
            self.log_files(run, "comparison", self.comparison.files)
        if method.explained:
            self.log_files(run, "explanation", method.explained)
        if claims.is_complete(run):
            # The record is the same, but another comparison may calibrate its model, or no longer.
            if tag(run, models.CALIBRATION) != models.calibration_digest(method):
                self.log_model(method, run)
            return
        self.added += 1
        calls.log(self.client, run, parameters=contents.parameters(method), series=contents.method_series(method))
        self.log_inputs(run)
        for name in ("record.json", "predictions.npz", "history.csv", "curves.png", "augmentation.png"):
            if (method.directory / name).exists():
                self.client.log_artifact(run.info.run_id, str(method.directory / name))
        if self.comparison.environment_record and not tag(run, calls.ENVIRONMENT_TAG):
            # Only where the record was first seen, unless the stage itself has logged its own.
            calls.log_environment(self.client, run.info.run_id, self.comparison.environment_record, witnessed=False)
        if not self.log_model(method, run):
            return
        calls.terminate(self.client, run)
        calls.log(self.client, run, tags={claims.COMPLETE: "true"})

    def log_model(self, method: Method, run: Run) -> bool:
        """Log the model that the run does not have yet; return whether it has it now."""
        if missing := models.log(self.client, self.connection.experiment, run, method):
            self.warnings[f"{method.record.name}: the model is not in MLflow yet, because {missing} is not here"] = None
            return False
        if tag(run, models.CALIBRATION) != models.calibration_digest(method):
            calls.log(self.client, run, tags={models.CALIBRATION: models.calibration_digest(method)})
        return True

    def log_inputs(self, run: Run) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        known = {entry.dataset.name for entry in self.client.get_run(run.info.run_id).inputs.dataset_inputs}
        entries = [
            DatasetInput(
                models.dataset(Dataset, self.comparison.dataset, part), [InputTag("mlflow.data.context", part.part)]
            )
            for part in self.comparison.parts
        ]
        missing = [entry for entry in entries if entry.dataset.name not in known]
        if missing:
            calls.insist(self.client.log_inputs, run.info.run_id, missing)

    def log_files(self, run: Run, name: str, paths: Sequence[Path]) -> None:
        """Keep files and directories on a run, in the folder ``name``; again only when one of them changed."""
        digest = provenance.digest({path.name: artifacts.sha256_path(path) for path in paths})
        if tag(run, name) == digest:
            return
        for path in paths:
            log = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
            log(run.info.run_id, str(path), f"{name}/{path.name}" if path.is_dir() else name)
        calls.log(self.client, run, tags={name: digest})

    # --- its candidates --------------------------------------------------------------------------------------------

    def candidates(self, method: Method, parent: Run, children: Iterable[Run], *, parents: set[str]) -> None:
        """Give ``parent`` one nested run a candidate. Runs whose parent was deleted are taken over.

        ``parents``: every active run of the record, whoever works on it.
        """
        known, orphans = claims.children_of(self.connection, parent, children, parents=parents)
        told = progress(
            method.record.candidates,
            total=len(method.record.candidates),
            label=f"MLflow: {method.record.name}",
            unit="candidates",
        )
        for index, candidate in enumerate(told):
            claims.renew(self.connection, parent)
            child = known.get(str(index))
            if child is None and str(index) in orphans:
                child = orphans[str(index)]
                calls.log(self.client, child, tags={contents.PARENT: parent.info.run_id})
            if child is None:
                child = self.create_candidate(method, parent, index)
            if claims.is_complete(child):
                calls.log(self.client, child, contents.summary(method, index))
                continue
            self.added += 1
            calls.terminate(self.client, child)
            calls.log(
                self.client,
                child,
                contents.summary(method, index),
                parameters=contents.parameters(method, index),
                series=candidate.history,
                tags={claims.COMPLETE: "true"},
            )

    def create_candidate(self, method: Method, parent: Run, index: int) -> Run:
        record, candidate = method.record, method.record.candidates[index]
        shared = (
            "method",
            "stage",
            "network",
            "backbone",
            "dataset",
            "environment",
            "input_key",
            "dvc_experiment",
            "git_commit",
            "git_dirty",
            "mlflow.source.name",
            "mlflow.source.type",
            "mlflow.source.git.commit",
            "mlflow.user",
        )
        tags = {name: parent.data.tags[name] for name in shared if name in parent.data.tags}
        tags |= {
            contents.PARENT: parent.info.run_id,
            "level": "candidate",
            "candidate": str(index),
            "record": method.record_digest,
            "selected": text(index == record.selected),
            "converged": text(candidate.converged),
            "current": "true",
        }
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
            if tag(run, "state") not in ("live", "failed", "killed") or processes.is_alive(run.data.tags):
                continue
            if tag(run, "input_key") in keys:
                self.client.delete_run(run.info.run_id)
                self.runs.remove(run)
            elif tag(run, "state") == "live":
                calls.log(self.client, run, tags={"state": "killed"})
                self.client.set_terminated(run.info.run_id, "KILLED")

    def shout_if_not_deterministic(self, method: Method, runs: Sequence[Run]) -> None:
        for run in runs:
            for other in self.runs:
                same = method.input_key and tag(other, "input_key") == method.input_key
                if not same or tag(other, "record") in (method.record_digest, "") or not _same_environment(run, other):
                    continue
                for one, another in ((run, other), (other, run)):
                    calls.log(self.client, one, tags={"not_deterministic": another.info.run_id})
                sure = all(tag(one, "environment_witnessed") == "true" for one in (run, other))
                said = (
                    f"NOT DETERMINISTIC: {method.record.name} ended in two different records from the same inputs, "
                    f"parameters, code and environment: runs {run.info.run_id} and {other.info.run_id}, now tagged "
                    "not_deterministic."
                    + ("" if sure else " (Unless one of them was fetched: no log shows where both were computed.)")
                )
                (self.problems if sure else self.warnings)[said] = None

    def mark_current(self) -> None:
        """Tag the runs of today's records as current and no other: inside a DVC experiment none of that experiment, and
        outside none of the workspace, so that both can be compared."""
        current = {method.record_digest for method in self.comparison.methods}
        mine = os.environ.get("DVC_EXP_NAME", "")
        for run in self.runs:
            is_current = tag(run, "record") in current
            if not is_current and tag(run, "dvc_experiment") != mine:
                continue
            if tag(run, "state") != "finished" or tag(run, "current") == text(is_current):
                continue
            demoted = {} if is_current else {"champion": "false"}
            children = calls.search(self.connection, f"tags.`{contents.PARENT}` = '{run.info.run_id}'")
            for one in (*children, run):
                calls.log(self.client, one, tags={"current": text(is_current)} | demoted)


def _added(count: int) -> str:
    return f"{count} run{'s' if count > 1 else ''} added" if count else "nothing to add"


def _same_environment(one: Run, other: Run) -> bool:
    return tag(one, "environment") == tag(other, "environment")


def _now() -> int:
    return int(time.time() * 1000)
