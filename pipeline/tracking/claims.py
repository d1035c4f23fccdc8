"""Who fills a run, so that two machines do not fill the same one, and which of several equal runs stays.

An MLflow server has no locks. A run that is not whole carries a claim instead, and what was created twice all the same,
because two machines looked before either had created it or because a request was sent twice, is sorted out afterwards
(docs/decisions/0015).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pipeline.tracking import calls, contents, models
from pipeline.tracking.calls import tag
from pipeline.tracking.store import Connection

if TYPE_CHECKING:
    from mlflow.entities import Run

# The tag that says "true" of a run that is all there, and before that, who is at work on it and since when. A claim is
# good for a while only, because its process may be dead.
COMPLETE = "complete"
SECONDS = 600
SECONDS_BETWEEN_RENEWALS = 60


def is_complete(run: Run) -> bool:
    return tag(run, COMPLETE) == "true"


def claim(connection: Connection) -> str:
    """Return the value of the tag `COMPLETE` with which this process claims a run, from now on."""
    return f"{connection.claimant} {time.time():.0f}"


def renew(connection: Connection, run: Run) -> None:
    """Keep other machines away from a run that is not complete; a claim soon to end is renewed."""
    who, _, since = tag(run, COMPLETE).partition(" ")
    fresh = who == connection.claimant and time.time() - int(since) < SECONDS_BETWEEN_RENEWALS
    if connection.store.database is None and not is_complete(run) and not fresh:
        calls.log(connection.client, run, tags={COMPLETE: claim(connection)})


def is_claimed_elsewhere(connection: Connection, run: Run) -> bool:
    """Return whether another machine may be at work on a run now. On this one, the lock keeps others away."""
    who, _, since = tag(run, COMPLETE).partition(" ")
    if who == connection.claimant or not since.isdecimal():
        return False
    return abs(time.time() - int(since)) < SECONDS


def one_per_environment(connection: Connection, runs: list[Run]) -> list[Run]:
    """Return the runs of one record without repetitions, which are deleted: the oldest complete one stays.

    Runs that another machine may be at work on are never deleted. ``runs`` loses what was deleted.
    """
    elsewhere = {run.info.run_id for run in runs if is_claimed_elsewhere(connection, run)}

    def preference(run: Run) -> tuple:
        return not is_complete(run), run.info.run_id not in elsewhere, run.info.start_time, run.info.run_id

    kept: dict[str, Run] = {}
    for run in sorted(runs, key=preference):
        first = kept.setdefault(tag(run, "environment"), run)
        if first is run or run.info.run_id in elsewhere:
            continue
        if tag(run, "environment_witnessed") == "true":
            calls.log(connection.client, first, tags={"environment_witnessed": "true"})
        models.delete(connection.client, connection.experiment, run)
        connection.client.delete_run(run.info.run_id)
        runs[:] = [other for other in runs if other.info.run_id != run.info.run_id]
    return list(kept.values())


def children_of(
    connection: Connection, parent: Run, candidates: Iterable[Run], *, parents: set[str]
) -> tuple[dict[str, Run], dict[str, Run]]:
    """Return the candidates' runs, by the candidate's number, that are nested in ``parent``, and those to take over.

    The latter's parent was deleted. ``parents``: every active run of the record. Any more of either are deleted.
    """
    known: dict[str, Run] = {}
    orphans: dict[str, Run] = {}
    surplus: list[Run] = []
    for run in sorted(candidates, key=lambda run: not is_complete(run)):
        if tag(run, contents.PARENT) == parent.info.run_id:
            found = known
        elif tag(run, contents.PARENT) not in parents and tag(run, "environment") == tag(parent, "environment"):
            found = orphans
        else:
            continue
        if found.setdefault(tag(run, "candidate"), run) is not run:
            surplus.append(run)
    surplus += [run for number, run in orphans.items() if number in known]
    for run in surplus:
        connection.client.delete_run(run.info.run_id)
    return known, {number: run for number, run in orphans.items() if number not in known}
