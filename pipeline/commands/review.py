"""Replay a revision from nothing and say whether its outputs and metrics are reproduced, and if not, why.

Clones the revision into a temporary directory, runs every stage there without the run cache, with an empty feature
store and an MLflow store of its own, and compares what comes out with dvc.lock and the committed metrics. Nothing of
the project changes but results/review/, and in .cache how long the stages took.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import tracking
from pipeline.audits.review import audit, clones, locks, replay, report, verdicts
from pipeline.audits.review.audit import Request, Review
from pipeline.console.progress import announce, say
from pipeline.core import artifacts, params, provenance
from pipeline.tracking import reviews

# What a stage takes before it logs anything.
SECONDS_TO_START = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "revision", nargs="?", default="HEAD", metavar="REV", help="git revision (default: %(default)s)"
    )
    parser.add_argument(
        "--stages",
        nargs="+",
        default=[],
        metavar="STAGE",
        help="replay these alone, such as `sweep` or `sweep@efficientnet_lite0-rbf_svm`; what they "
        "read of the others is taken as claimed",
    )
    parser.add_argument("--against", metavar="REV2", help="compare with what another revision claims")
    parser.add_argument("--quick", action="store_true", help="leave out the longest stages: head, fine_tune, scratch")
    parser.epilog = (
        "The exit status is 0 only if nothing diverged. The temporary directory is made where TMPDIR says "
        "and how results are judged stands in params.yaml under review."
    )


def main(arguments: argparse.Namespace) -> int:
    project = Path().absolute()
    values = params.load()
    judged_by = params.parse(params.lookup(values, "review"), verdicts.ReviewParams, where="review")
    commit = clones.commit_of(project, arguments.revision)
    against = clones.commit_of(project, arguments.against) if arguments.against else None
    place = report.directory(Path(), commit, against, stages=arguments.stages, quick=arguments.quick)
    if report.is_signed(place):
        raise locks.ReviewError(f"{place} holds a review that somebody signed: move it away to review the same again")
    if clones.changed(project) and arguments.revision == "HEAD":
        announce("note: what is reviewed is HEAD; changes that are not committed are not in it")
    dataset = params.lookup(values, "dataset")
    found = audit.review(
        Request(
            project=project,
            revision=arguments.revision,
            params=judged_by,
            environment=provenance.environment(),
            against=arguments.against,
            stages=tuple(arguments.stages),
            quick=arguments.quick,
            durations=_durations(project, dataset),
            witness=lambda records: _witnessed(dataset, records),
        )
    )
    record = found.environment or {"note": "of the review, not of a stage", **provenance.environment_record()}
    date = datetime.date.today().isoformat()
    files = report.write(place, found, params=judged_by, environment=record, date=date)
    say(report.summary(found, files))
    _attach(dataset, found, files, name=place.name, date=date)
    return 1 if found.verdict == verdicts.DIVERGED else 0


def _durations(project: Path, dataset: Mapping[str, Any]) -> dict[str, float]:
    """Return how long stages took: by earlier replays on this machine, or by MLflow if there was none."""
    if known := replay.known_durations(project):
        return known
    announce("asking MLflow how long the stages take")
    try:
        logged = reviews.durations(tracking.locate(), tracking.dataset_name(dataset))
    except (tracking.TrackingError, artifacts.ArtifactError):  # a folder is not split here yet
        return {}
    return {name: seconds + SECONDS_TO_START for name, seconds in logged.items()}


def _witnessed(dataset: Mapping[str, Any], records: Collection[str]) -> Mapping[str, Sequence[Mapping[str, str]]]:
    try:
        return reviews.environments(tracking.locate(), tracking.dataset_name(dataset), records)
    except (tracking.TrackingError, artifacts.ArtifactError) as error:
        print(f"warning: {error}. Where the claims were computed is not known.", file=sys.stderr)
        return {}


def _attach(dataset: Mapping[str, Any], found: Review, files: Sequence[Path], *, name: str, date: str) -> None:
    """Leave the review on the MLflow runs of the records that it checked; a store that is away costs a warning."""
    tags = {
        digest: {"review.verdict": verdict, "review.commit": found.commit, "review.date": date}
        for digest, verdict in found.records.values()
    }
    try:
        count = reviews.attach(tracking.locate(), tracking.dataset_name(dataset), tags, files, name=name)
    except (tracking.TrackingError, artifacts.ArtifactError) as error:
        print(f"warning: {error}. The review is not in MLflow.", file=sys.stderr)
        return
    say(f"MLflow: attached to {count} runs" if count else "MLflow: no run of these records is there")
