"""Does a store show the records, all of them, and nothing else? Reads, and writes nothing.

What a store should show comes from `Comparison`, whose metrics the caller has computed anew from the saved predictions.
So a metric that somebody typed in, a run that somebody logged by hand and a run that somebody deleted are all found.
What the pipeline itself leaves behind in the course of things (runs of earlier records, of experiments, of other
environments) is no finding.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.console.findings import Finding
from pipeline.console.progress import progress
from pipeline.core import artifacts
from pipeline.tracking import artifact_locations, calls, claims, contents, processes, store
from pipeline.tracking.calls import tag
from pipeline.tracking.contents import Comparison, Method
from pipeline.tracking.store import Connection, Store

if TYPE_CHECKING:
    from mlflow.entities import Run

# The leaderboard holds six digits, and another processor may round the last of them the other way.
TOLERANCE = 1e-5
SHOWN = 4
SYNC = "python -m pipeline sync"
UNFINISHED = ("live", "failed", "killed")
EVIDENCE = ("record.json", "predictions.npz")


def audit(place: Store, comparison: Comparison) -> list[Finding]:
    """Return what is wrong in a store, the worst first; empty if it shows exactly the records.

    Raises TrackingError if the store cannot be read.
    """
    connection = store.look(place, contents.experiment_name(comparison.dataset))
    if connection is None:
        names = ", ".join(method.record.name for method in comparison.methods)
        return [Finding("problem", "missing", f"there is no such experiment, so no run of {names}", SYNC)]
    with store.translated(place):
        found = list(_Audit(connection, comparison).findings())
        found += moved(place)
    return sorted(found, key=lambda finding: finding.level != "problem")


def moved(place: Store, check: str = "moved") -> list[Finding]:
    """Return a problem if a project was copied or moved, and its store does not know it yet. Raises sqlite3.Error."""
    if not place.own or not (origins := artifact_locations.original_projects(place.database)):
        return []
    message = (
        f"this project was copied or moved from {', '.join(origins)}, and its MLflow store still looks for artifacts "
        "there; `sync` corrects the paths"
    )
    return [Finding("problem", check, message, SYNC)]


def agrees(received: float | None, expected: float | None) -> bool:
    """Return whether a metric is what it should be, up to `TOLERANCE`; None and NaN are a value of their own each."""
    if received is None or expected is None:
        return received is expected
    both_undefined = math.isnan(received) and math.isnan(expected)
    return both_undefined or math.isclose(received, expected, rel_tol=TOLERANCE, abs_tol=1e-12)


class _Audit:
    """The runs of an experiment as they are, and the methods as they should be."""

    def __init__(self, connection: Connection, comparison: Comparison):
        self.client = connection.client
        self.comparison = comparison
        self.records = {method.record_digest: method for method in comparison.methods}
        self.active = calls.search(connection, "")
        self.deleted = calls.search(connection, "", deleted=True)
        self.by_id = {run.info.run_id: run for run in self.active}

    def findings(self) -> Iterator[Finding]:
        methods = self.comparison.methods
        for method in progress(methods, total=len(methods), label="auditing", unit="methods"):
            yield from self.of_method(method)
        for run in self.active:
            if not _is_ours(run):
                yield self.of_hand(run)
            elif tag(run, "level") == "method":
                yield from self.of_others_method(run)
            else:
                yield from self.of_others_candidate(run)
        yield from self.deleted_history()

    # --- what should be there --------------------------------------------------------------------------------------

    def of_method(self, method: Method) -> Iterator[Finding]:
        """Yield what is wrong with the runs of one record."""
        runs = [run for run in self.active if _is_method(run) and tag(run, "record") == method.record_digest]
        if not runs:
            yield self.gone(method)
        by_environment: dict[str, list[Run]] = {}
        for run in runs:
            by_environment.setdefault(tag(run, "environment"), []).append(run)
            if claims.is_complete(run):
                yield from self.of_run(method, run)
            else:
                message = f"{named(run)} is not complete: its sync was stopped, or is under way"
                yield Finding("problem", "incomplete", message, SYNC)
        for same in by_environment.values():
            if len(same) > 1:
                names = " and ".join(named(run) for run in same)
                yield Finding("problem", "doubled", f"{names} show one record from one environment", SYNC)
        yield from self.same_key(method, runs)

    def gone(self, method: Method) -> Finding:
        name = contents.method_name(method.record.network, method.record.method)
        for run in self.deleted:
            if _is_method(run) and tag(run, "record") == method.record_digest:
                message = f"{named(run)}, which showed today's record, was deleted"
                return Finding("problem", "deleted", message, f"{SYNC}  # shows the record again, as a new run")
        return Finding("problem", "missing", f"no run shows the record of {name}", SYNC)

    def same_key(self, method: Method, runs: Sequence[Run]) -> Iterator[Finding]:
        """Yield runs of the same inputs, parameters, code and environment that hold another record."""
        if not method.input_key:
            return
        for other in self.active:
            same = _is_method(other) and tag(other, "input_key") == method.input_key
            if not same or tag(other, "record") in ("", method.record_digest):
                continue
            twins = [run for run in runs if tag(run, "environment") == tag(other, "environment")]
            if twins:
                sure = all(tag(run, "environment_witnessed") == "true" for run in (twins[0], other))
                message = (
                    f"{named(twins[0])} and {named(other)} hold two records from the same inputs, parameters, code "
                    "and environment" + ("" if sure else ", unless one of them was fetched from another machine")
                )
                yield Finding("problem" if sure else "warning", "same key", message, deletion("THE_WRONG_ONE"))

    def of_run(self, method: Method, run: Run) -> Iterator[Finding]:
        """Yield where a complete run differs from its record, and so do its candidates."""
        selected = contents.method_series(method)
        yield from self.metrics(run, contents.method_summary(method), selected)
        yield from self.parameters(run, contents.parameters(method))
        expected = {**contents.lasting_tags(method, self.comparison), "current": "true"}
        shown = {name: tag(run, name) for name in expected}
        wrong = [f"{name} is {shown[name] or 'missing'}" for name, value in expected.items() if shown[name] != value]
        if wrong:
            yield Finding("problem", "tag", f"{named(run)}: {some(wrong)}, against the record", SYNC)
        yield from self.evidence(method, run)
        yield from self.candidates(method, run)

    def candidates(self, method: Method, parent: Run) -> Iterator[Finding]:
        """Yield where the candidates that are nested in a run differ from those of its record."""
        children = _nested(self.active, parent)
        missing = [str(index) for index in range(len(method.record.candidates)) if str(index) not in children]
        if missing:
            what = "deleted" if _nested(self.deleted, parent).keys() >= set(missing) else "missing"
            yield Finding("problem", what, f"{named(parent)} lacks candidates {some(missing)}", SYNC)
        for index, candidate in enumerate(method.record.candidates):
            if str(index) in children:
                child = children[str(index)]
                yield from self.metrics(child, contents.summary(method, index), candidate.history)
                yield from self.parameters(child, contents.parameters(method, index))

    def metrics(
        self, run: Run, summary: Mapping[str, float], series: Mapping[str, Sequence[float]]
    ) -> Iterator[Finding]:
        """Yield metrics that the predictions and the record do not give."""
        last = {contents.series_name(name): values[-1] for name, values in series.items() if values}
        shown = run.data.metrics
        wrong = [name for name, value in (last | summary).items() if not agrees(shown.get(name), value)]
        if wrong:
            expected = last | summary
            said = [f"{name} is {_number(shown.get(name))}, should be {_number(expected[name])}" for name in wrong]
            yield Finding("problem", "metric", f"{named(run)}: {some(said)}", self.mends(run, wrong, summary))
        known = last.keys() | summary.keys()
        others = sorted(name for name in shown if name not in known and not name.startswith("live_"))
        posing = [name for name in others if contents.is_summary(name)]
        if posing:
            message = f"{named(run)}: no record has {some(posing)}"
            yield Finding("problem", "metric", message, f"{deletion(run.info.run_id)}\n{SYNC}")
        elif others and tag(run, "environment_witnessed") != "true":
            yield Finding("warning", "metric", f"{named(run)}: logged by hand: {some(others)}")

    def mends(self, run: Run, wrong: Sequence[str], summary: Mapping[str, float]) -> str:
        """Return what mends metrics: a sync logs a summary anew, but it takes back nothing that stands later."""
        for name in wrong:
            points = self.client.get_metric_history(run.info.run_id, name) if name in run.data.metrics else ()
            if name not in summary or any(point.step > contents.SUMMARY_STEP for point in points):
                return f"{deletion(run.info.run_id)}\n{SYNC}"
        return SYNC

    def parameters(self, run: Run, expected: Mapping[str, str]) -> Iterator[Finding]:
        shown = run.data.params
        wrong = [f"{name} is {shown.get(name)}" for name, value in expected.items() if shown.get(name) != value]
        wrong += [f"{name} is in no record" for name in sorted(shown.keys() - expected.keys())]
        if wrong:
            remedy = f"{deletion(run.info.run_id)}\n{SYNC}"
            yield Finding("problem", "parameter", f"{named(run)}: {some(wrong)}", remedy)

    def evidence(self, method: Method, run: Run) -> Iterator[Finding]:
        """Yield if the files that a run carries are not those it is identified by."""
        there = {file.path for file in self.client.list_artifacts(run.info.run_id)}
        with tempfile.TemporaryDirectory(prefix="bakeoff-") as folder:
            for name in EVIDENCE:
                if name not in there:
                    wrong = "is missing"
                else:
                    copy = Path(self.client.download_artifacts(run.info.run_id, name, folder))
                    same = artifacts.sha256_file(copy) == artifacts.sha256_file(method.directory / name)
                    wrong = "" if same else "is another than that of the record in its tag"
                if wrong:
                    remedy = f"{deletion(run.info.run_id)}\n{SYNC}"
                    yield Finding("problem", "content", f"{named(run)}: {name} {wrong}", remedy)

    # --- what else is there ----------------------------------------------------------------------------------------

    def of_hand(self, run: Run) -> Finding:
        message = f"{named(run)} was not logged by this project: it has none of its tags"
        metrics = [f"{name} {_number(value)}" for name, value in sorted(run.data.metrics.items())]
        shown = f"; it claims {some(metrics)}" if metrics else ""
        return Finding("problem", "by hand", message + shown, deletion(run.info.run_id))

    def of_others_method(self, run: Run) -> Iterator[Finding]:
        state = tag(run, "state")
        if state == "live" and not processes.is_alive(run.data.tags):
            yield Finding("warning", "unfinished", f"{named(run)} was killed, and says that it runs", SYNC)
        elif state == "finished" and tag(run, "record") not in self.records:
            mine = tag(run, "dvc_experiment") == os.environ.get("DVC_EXP_NAME", "")
            if tag(run, "current") == "true" and mine:
                message = f"{named(run)} is tagged as current, and there is no such record"
                yield Finding("problem", "orphan", message, SYNC)

    def of_others_candidate(self, run: Run) -> Iterator[Finding]:
        parent = self.by_id.get(tag(run, contents.PARENT))
        if parent is None:
            # Those of a run that was deleted went with it: that one is the finding.
            if tag(run, contents.PARENT) not in {deleted.info.run_id for deleted in self.deleted}:
                message = f"{named(run)} is a candidate of a run that never was, or was removed for good"
                yield Finding("problem", "orphan", message, f"{deletion(run.info.run_id)}\n{SYNC}")
            return
        method = self.records.get(tag(run, "record"))
        numbers = range(len(method.record.candidates)) if method else None
        strange = numbers is not None and tag(run, "candidate") not in map(str, numbers)
        if strange or tag(parent, "record") != tag(run, "record"):
            message = f"{named(run)} is nested in {named(parent)}, whose record has no such candidate"
            yield Finding("problem", "orphan", message, deletion(run.info.run_id))

    def deleted_history(self) -> Iterator[Finding]:
        """Yield whole runs of earlier records that a person deleted; the pipeline itself deletes doubles only."""
        shown = {tag(run, "record") for run in self.active if _is_method(run)}
        for run in self.deleted:
            if _is_method(run) and claims.is_complete(run) and tag(run, "record") not in shown | self.records.keys():
                message = f"{named(run)}, of an earlier record, was deleted"
                yield Finding("warning", "deleted", message, f"mlflow runs restore --run-id {run.info.run_id}")


def _is_ours(run: Run) -> bool:
    """Return whether a run has the tags of a method's run, finished or not, or of a candidate's."""
    level, recorded = tag(run, "level"), bool(tag(run, "record"))
    if level == "candidate":
        return recorded
    return level == "method" and (tag(run, "state") in UNFINISHED or (recorded and _is_method(run)))


def _is_method(run: Run) -> bool:
    return tag(run, "level") == "method" and tag(run, "state") == "finished"


def _nested(runs: Iterable[Run], parent: Run) -> dict[str, Run]:
    """Return the candidates among ``runs`` that are nested in ``parent``, by their number."""
    return {tag(run, "candidate"): run for run in runs if tag(run, contents.PARENT) == parent.info.run_id}


def named(run: Run) -> str:
    """Return a run's name and the digits of its id that a finding shows."""
    return f"{run.info.run_name} ({run.info.run_id[:8]})"


def _number(value: float | None) -> str:
    return "missing" if value is None else f"{value:.6g}"


def some(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def deletion(run_id: str) -> str:
    """Return the command that deletes a run."""
    return f"mlflow runs delete --run-id {run_id}"
