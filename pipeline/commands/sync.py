"""Add to the MLflow store what it lacks of the records under results/runs, or say where the two differ."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline import tracking
from pipeline.audits import outputs
from pipeline.audits.fairness import history, test_set_history
from pipeline.console import findings
from pipeline.console.errors import BakeoffError
from pipeline.console.findings import Finding
from pipeline.console.progress import announce, say
from pipeline.core import artifacts, params
from pipeline.evaluation import comparison, metrics
from pipeline.stages import compare, track
from pipeline.tracking.unmatched_runs import Known, Measured, strangers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing: compare the store with dvc.lock, the records, and the metrics that the saved predictions "
        "give; exit with status 1 if something is wrong",
    )
    parser.epilog = "The store is the one that MLFLOW_TRACKING_URI names, else .mlflow in the project."


def main(arguments: argparse.Namespace) -> int:
    """Return 1 if a person must see to something: two records from the same inputs, or runs not complete yet.

    With ``--check``: if the store does not show the records, or these are not those of dvc.lock.
    """
    declared = params.Params(params.load(), track.READS)
    if arguments.check:
        return check(declared)
    outputs.refuse_changed_runs()
    report = track.fill(track.collect(declared))
    return 1 if report.problems else 0


def check(declared: params.Params) -> int:
    """Say what is wrong in the store and in the records it shows; return 1 if there is a problem."""
    announce("computing all metrics anew from the saved predictions")
    ranked, protocol = compare.evaluate(declared)
    board = comparison.entries(ranked, comparison.resample(ranked, protocol), protocol)
    store = tracking.locate()
    shown = track.collect(declared, board)
    found = [
        *of_lock(),
        *of_leaderboard(board),
        *tracking.audit(store, shown),
        *strangers(store, shown, measured=measured_by(protocol), known=committed()),
    ]
    if found:
        say(findings.table(found))
    if any("mlflow runs" in finding.remedy for finding in found):
        say(f"\n(`mlflow runs` needs to know the store: export MLFLOW_TRACKING_URI={shlex.quote(store.name)})")
    where = f"{store.name} against {len(board)} records and the metrics that their predictions give"
    say(f"{where}: {findings.verdict(found)}")
    return 1 if findings.count(found, "problem") else 0


def of_lock() -> Iterator[Finding]:
    """Yield the results on disk that are not those of dvc.lock. Raises BakeoffError if DVC cannot read the project."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            declared = [(stage.addressing, output) for stage in repo.index.stages for output in stage.outs]
    except DvcException as error:
        raise BakeoffError(f"DVC cannot compare the results with dvc.lock: {error}") from None
    ours = {
        output.def_path: (stage, output.hash_info and output.hash_info.value)
        for stage, output in declared
        if output.def_path.startswith(f"{artifacts.RESULTS.as_posix()}/")
    }
    for path, digest in outputs.digests(ours):
        stage, recorded = ours[path]
        if digest is not None and recorded is None:
            yield Finding("problem", "lock", f"{path} is in no dvc.lock", "dvc repro")
        elif digest is None or digest != recorded:
            state = "deleted" if digest is None else "modified"
            message = f"{path} was {state} since dvc.lock was written"
            yield Finding("problem", "lock", message, outputs.remedy((stage, path)))


def of_leaderboard(board: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Yield the runs of leaderboard.json of which the predictions and records give anything else."""
    written = {entry["run"]: dict(_leaves(entry)) for entry in artifacts.read_json(artifacts.LEADERBOARD)}
    for entry in board:
        expected, shown = dict(_leaves(entry)), written.get(entry["run"], {})
        wrong = [
            f"{name} is {shown.get(name)}, should be {expected.get(name)}"
            for name in {**expected, **shown}
            if not _same(shown.get(name), expected.get(name))
        ]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            message = f"{artifacts.LEADERBOARD}: {entry['run']}: {wrong[0]}{more}"
            yield Finding("problem", "leaderboard", message, "dvc repro --single-item --force compare")


def measured_by(protocol: comparison.Protocol) -> Measured:
    """Return what measures an earlier run's predictions, by metrics that follow from predictions and labels alone."""
    labels = {"validation": protocol.validation.labels, "test": protocol.test_labels}

    def measured(part: str, probabilities: np.ndarray) -> dict[str, float]:
        if len(probabilities) != len(labels[part]):
            return {}
        # Which class is the positive one makes no difference to these.
        values = metrics.Evaluation(probabilities, labels[part], positive=0).measure(names=("accuracy", "log_loss"))
        return {name: float(value[0]) for name, value in values.items()}

    return measured


def committed() -> Known | None:
    """Return the test scores of every run in every commit and experiment that git has; None without git."""
    try:
        published = [test_set_history.scores_of(point.state.metrics) for point in history.points()]
    except BakeoffError:
        return None
    found: dict[str, list[Mapping[str, float]]] = {}
    for scores in published:
        for run, of_run in scores.items():
            if of_run and of_run not in found.setdefault(run, []):
                found[run].append(of_run)
    return found


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every number, text and null of nested JSON under its dotted name."""
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        yield name, value
        return
    for key, inner in items:
        yield from _leaves(inner, f"{name}.{key}" if name else str(key))


def _same(received: Any, expected: Any) -> bool:
    numbers = all(isinstance(value, int | float) for value in (received, expected))
    return tracking.agrees(received, expected) if numbers else received == expected
