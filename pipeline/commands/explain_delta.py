"""Say why a metric differs between two revisions: how much of it data, params and code are responsible for.

Every combination of the two revisions' data, params and code is checked out in a temporary clone and run by DVC, which
runs what the combination changes; the clones share the project's DVC cache and feature store, because nothing is being
audited here. New entries stay in that cache until `dvc gc` removes them.
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path

from pipeline.audits.review import clones, delta, delta_report, environments, locks, materials, replay, report, variants
from pipeline.audits.review.delta_report import Delta
from pipeline.audits.review.variants import Outcome, Revision
from pipeline.console.progress import announce, say
from pipeline.evaluation import metrics
from pipeline.features import feature_store

SECONDS_BETWEEN_LINES = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="REV1", help="the revision to start from")
    parser.add_argument("second", metavar="REV2", help="the revision whose difference is explained")
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=["accuracy", "roc_auc"],
        choices=metrics.NAMES,
        metavar="METRIC",
        help="on the test part (default: accuracy roc_auc)",
    )


def main(arguments: argparse.Namespace) -> int:
    project = Path().absolute()
    first, second = (variants.read(project, name) for name in (arguments.first, arguments.second))
    changed = variants.changed(first, second)
    names = (arguments.first, arguments.second)
    packages = tuple(environments.between(first.packages, second.packages))
    claimed = tuple(variants.claimed(each, arguments.metrics) for each in (first, second))
    if not changed:
        say(f"Nothing that a stage reads differs between {names[0]} and {names[1]}: data, params and code are the same")
        if packages:
            say(delta_report.packages(names, packages))
        if claimed[0] != claimed[1]:
            say("Their committed metrics differ all the same: `python -m pipeline review` says which of them reproduce")
        return 0
    explained = functools.partial(
        Delta, names, (first.commit, second.commit), tuple(changed), packages=packages, claimed=claimed
    )
    wanted = delta.combinations(changed)
    announce(f"{', '.join(changed)} differ: {len(wanted)} combinations to run, each as far as it is new")
    outcomes: dict[delta.Combination, Outcome] = {}
    started = time.monotonic()
    for number, some in enumerate(wanted, start=1):
        left = f", about {replay.spoken(_left(started, number - 1, len(wanted)))} left" if number > 1 else ""
        announce(f"[{number}/{len(wanted)}] {delta_report.named(some, explained(outcomes))}{left}")
        outcomes[some] = _outcome(project, first, second, some, arguments.metrics)
        if outcomes[some].values is None:
            announce(f"    no result: {outcomes[some].reason}")
    found = explained(outcomes)
    place = Path(report.FOLDER) / f"delta-{first.commit[:12]}-{second.commit[:12]}"
    files = delta_report.write(place, found)
    say(delta_report.summary(found))
    say(f"written: {', '.join(map(str, files))}")
    return 0 if all(outcomes[end].values is not None for end in (frozenset(), frozenset(changed))) else 1


def _left(started: float, done: int, total: int) -> float:
    return (time.monotonic() - started) / done * (total - done)


def _outcome(project: Path, first: Revision, second: Revision, some: delta.Combination, names: list[str]) -> Outcome:
    cache = materials.cache_of(project)
    said = [time.monotonic()]

    def tick() -> None:
        if time.monotonic() - said[0] >= SECONDS_BETWEEN_LINES:
            said[0] = time.monotonic()
            announce("    still running")

    with clones.temporary_place() as place:
        try:
            clone = variants.build(project, first, second, some, place / "clone")
        except locks.ReviewError as error:
            return Outcome(None, str(error))
        return variants.run(
            clone,
            place / "work",
            cache=None if cache is None else cache.parent.parent,
            store=feature_store.from_environment().directory.resolve(),
            metrics=names,
            tick=tick,
        )
