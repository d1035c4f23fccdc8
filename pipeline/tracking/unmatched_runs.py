"""What a store shows beside today's records: is it of a record at all, and of one that anybody committed? Reads only.

`audit` asks whether the store shows the records of today. This asks the opposite of everything else there. A run of an
earlier record, or of a DVC experiment, carries the record and the predictions that its tag names, and its scores follow
from them; a run that somebody logged by hand, whatever its tags say, does not. Apart from `audit`, because no stage
needs it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.console.findings import Finding
from pipeline.console.progress import progress
from pipeline.core import artifacts, run_identity
from pipeline.tracking import calls, claims, contents, store
from pipeline.tracking.audit import EVIDENCE, SYNC, UNFINISHED, agrees, deletion, named, some
from pipeline.tracking.calls import method_name, tag
from pipeline.tracking.contents import Comparison, Method
from pipeline.tracking.store import Connection, Store

if TYPE_CHECKING:
    from mlflow.entities import Run

RESULTS = ("test_", "validation_", "calibrated_")

Measured = Callable[[str, np.ndarray], Mapping[str, float]]
"""Returns {metric: value} of probabilities for the images of a part of today; nothing if they are of other images."""
Known = Mapping[str, Sequence[Mapping[str, float]]]
"""{run: [{metric: score on test}]} of everything that git has."""


class Carried(NamedTuple):
    """The record and the predictions among a run's files."""

    record: artifacts.Record
    predictions: artifacts.Predictions


def strangers(place: Store, comparison: Comparison, *, measured: Measured, known: Known | None) -> list[Finding]:
    """Return what in a store follows from no record, and what no commit knows, the worst first.

    ``measured``: what the labels of validation and test make of predictions. ``known``: None where git cannot tell.
    Raises TrackingError if the store cannot be read.
    """
    connection = store.look(place, contents.experiment_name(comparison.dataset))
    if connection is None:
        return []
    with store.translated(place):
        found = list(_Strangers(connection, comparison, measured, known).findings())
    return sorted(found, key=lambda finding: finding.level != "problem")


class _Strangers:
    def __init__(self, connection: Connection, comparison: Comparison, measured: Measured, known: Known | None):
        self.connection = connection
        self.methods = {method.record_digest: method for method in comparison.methods}
        self.digests = {part.part: part.sha256 for part in comparison.parts}
        self.measured = measured
        self.metrics = {name for method in comparison.methods for found in method.validation for name in found}
        self.live = {contents.series_name(f"validation_{name}") for name in self.metrics}
        self.known = known
        self.runs = calls.search(connection, "")

    def findings(self) -> Iterator[Finding]:
        methods = [run for run in self.runs if tag(run, "level") == "method"]
        for run in progress(methods, total=len(methods), label="auditing", unit="runs"):
            if tag(run, "state") in UNFINISHED:
                yield from self.without_record(run)
            elif tag(run, "state") != "finished" or claims.is_claimed_elsewhere(self.connection, run):
                continue
            elif tag(run, "record") in self.methods:
                yield from self.of_today(self.methods[tag(run, "record")], run)
            elif tag(run, "record"):
                yield from self.of_earlier(run)

    def without_record(self, run: Run) -> Iterator[Finding]:
        """Yield the scores of a run without a record, which can have none: a stage that runs logs steps alone.

        It may have ended in a record, and another run of the stage came before any sync.
        """
        if scores := [name for name in sorted(run.data.metrics) if self.poses(name) and self.is_summed_up(run, name)]:
            yield _by_hand(run, f"does not carry the record that its tag names, and claims {_numbers(run, scores)}")

    def is_summed_up(self, run: Run, name: str) -> bool:
        if name.startswith(RESULTS):
            return True
        points = self.connection.client.get_metric_history(run.info.run_id, name)
        return any(point.step < contents.FIRST_STEP for point in points)

    def of_today(self, method: Method, run: Run) -> Iterator[Finding]:
        """Yield metrics that neither the record nor a running stage gives; those that `audit` names are left to it."""
        series = {contents.series_name(name) for name in contents.method_series(method)}
        expected = series | contents.method_summary(method).keys() | self.live
        others = sorted(name for name in run.data.metrics.keys() - expected if not contents.is_summary(name))
        if posing := [name for name in others if self.poses(name)]:
            message = f"{named(run)}: no record has {_numbers(run, posing)}"
            remedy = f"{deletion(run.info.run_id)}\n{SYNC}"
            yield Finding("problem", "metric", message, remedy)
        elif others and tag(run, "environment_witnessed") == "true":
            yield Finding("warning", "metric", f"{named(run)}: logged by hand: {_numbers(run, others)}")

    def of_earlier(self, run: Run) -> Iterator[Finding]:
        """Yield what is wrong with a run of another record than today's."""
        there = {file.path for file in self.connection.client.list_artifacts(run.info.run_id)}
        if not claims.is_complete(run) and there.isdisjoint(EVIDENCE):
            yield from self.without_record(run)
            return
        try:
            carried = self.carried(run, there)
        except artifacts.ArtifactError:
            yield _by_hand(run, "does not carry the record that its tag names")
            return
        wrong = self.wrong_scores(run, carried.record.selected, carried, of=run)
        for child in self.runs:
            if tag(child, contents.PARENT) == run.info.run_id:
                wrong += self.wrong_candidate(child, carried, of=run)
        if wrong:
            message = f"{named(run)}, of an earlier record: {some(wrong)}"
            yield Finding("problem", "metric", message, deletion(run.info.run_id))
        elif self.known is not None and not self.is_known(run):
            message = f"{named(run)} has test scores that no commit and no experiment of this clone has"
            yield Finding("warning", "unknown", message)

    def carried(self, run: Run, there: Collection[str]) -> Carried:
        """Return what a run carries. Raises ArtifactError unless it is what its tag names."""
        client = self.connection.client
        if not set(EVIDENCE) <= set(there):
            raise artifacts.ArtifactError("missing")
        with tempfile.TemporaryDirectory(prefix="bakeoff-") as folder:
            for name in EVIDENCE:
                client.download_artifacts(run.info.run_id, name, folder)
            if run_identity.record_digest(Path(folder)) != tag(run, "record"):
                raise artifacts.ArtifactError("another")
            record, predictions = (Path(folder) / name for name in EVIDENCE)
            return Carried(artifacts.read_record(record), artifacts.read_predictions(predictions))

    def wrong_candidate(self, child: Run, carried: Carried, *, of: Run) -> list[str]:
        number = tag(child, "candidate")
        if number not in map(str, range(len(carried.record.candidates))):
            return [f"its record has no candidate {number or child.info.run_name}"]
        return [f"candidate {number}: {said}" for said in self.wrong_scores(child, int(number), carried, of=of)]

    def wrong_scores(self, shown: Run, candidate: int, carried: Carried, *, of: Run) -> list[str]:
        """Return, in words, the scores on today's parts that the predictions of a candidate do not give.

        ``of``: the method's run, which says what the parts are.
        """
        predicted = {"validation": carried.predictions.validation[candidate], "test": carried.predictions.test}
        found = []
        for part, probabilities in predicted.items():
            if tag(of, f"dataset.{part}.sha256") != self.digests[part]:
                continue
            for name, value in self.measured(part, probabilities).items():
                claimed = shown.data.metrics.get(f"{part}_{name}")
                if claimed is not None and not agrees(claimed, value):
                    found.append(f"{part}_{name} is {claimed:.6g}, its predictions give {value:.6g}")
        return found

    def poses(self, name: str) -> bool:
        """Return whether a metric, by its name, is a score."""
        return any(metric in name for metric in self.metrics)

    def is_known(self, run: Run) -> bool:
        """Whether git has these very scores of this method, in any commit or experiment."""
        shown = {name: value for name, value in run.data.metrics.items() if name.startswith("test_")}
        return any(
            all(agrees(shown.get(f"test_{name}"), value) for name, value in scores.items())
            for scores in (self.known or {}).get(method_name(run), ())
        )


def _numbers(run: Run, names: Sequence[str]) -> str:
    return some([f"{name} {run.data.metrics[name]:.6g}" for name in names])


def _by_hand(run: Run, what: str) -> Finding:
    return Finding("problem", "by hand", f"{named(run)} {what}", deletion(run.info.run_id))
