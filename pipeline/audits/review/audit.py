"""The review itself: clone, replay, judge, explain. It ends in a `Review`; all that it writes is temporary."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.audits.review import (
    causes,
    clones,
    environments,
    evidence,
    inquiry,
    locks,
    materials,
    plan,
    replay,
    verdicts,
)
from pipeline.audits.review.causes import Finding
from pipeline.audits.review.equivalence import Difference
from pipeline.audits.review.inquiry import Witness
from pipeline.audits.review.locks import Stage
from pipeline.audits.review.replay import Executed, Replay
from pipeline.audits.review.sides import Sides, read_claims
from pipeline.audits.review.verdicts import Metric, Output, ReviewParams
from pipeline.console.progress import announce
from pipeline.core import artifacts, params

# What is wrong whatever the replay gave.
SERIOUS = (causes.FABRICATED, causes.LEAK)


@dataclass(frozen=True)
class Request:
    """What to review. ``against``: the revision whose claims count, None for the same one. ``durations``: {stage:
    seconds} as far as known. ``environment``: of this process, as MLflow knows environments."""

    project: Path
    revision: str
    params: ReviewParams
    environment: Mapping[str, str]
    against: str | None = None
    stages: tuple[str, ...] = ()
    quick: bool = False
    durations: Mapping[str, float] = field(default_factory=dict)
    witness: Witness = lambda records: {}


@dataclass(frozen=True)
class Review:
    """What a review found. ``records``: {run: (record digest, verdict)} of the runs whose claimed record is known.

    ``against``: the commit whose claims count, None for the same one. ``data``: path and digest of the raw data.
    ``findings``: what was wrong before anything ran, or whatever the replay gave; ``causes``: why the first divergences
    or differences happened. ``environment``: of a process started as the stages were, None if it could not be had.
    ``environment_notes``: packages that are not those of requirements.lock. ``not_recomputed``: runs whose committed
    metrics could not be computed once more.
    """

    revision: str
    commit: str
    against: str | None
    data: tuple[str, str]
    outputs: tuple[Output, ...]
    metrics: tuple[Metric, ...]
    findings: tuple[Finding, ...]
    causes: tuple[Finding, ...]
    executed: tuple[Executed, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, Any] | None = None
    environment_notes: tuple[str, ...] = ()
    records: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    not_recomputed: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """The worst of all; diverged also where a claim of a stage that was not replayed cannot be right."""
        replayed = {one.stage for one in self.executed}
        wrong = any(one.kind in SERIOUS or (one.stage and one.stage not in replayed) for one in self.findings)
        found = [one.verdict for one in (*self.outputs, *self.metrics)]
        return verdicts.worst([*found, verdicts.DIVERGED] if wrong else found)


def review(request: Request) -> Review:
    """Replay a revision and judge it. Raises ReviewError before anything runs if something that it needs is missing."""
    project = request.project
    commit = clones.commit_of(project, request.revision)
    claiming = clones.commit_of(project, request.against) if request.against else commit
    with clones.temporary_place() as place:
        clone = clones.clone(project, commit, place / "replay")
        claims_clone = clones.clone(project, claiming, place / "claims")
        sides = Sides.open(project, clone, claims_clone, place / "materials")
        data = _prepare(request, sides)
        known = _known(request, sides)
        chosen = _plan(request, sides, place / "own")
        work = Replay(clone, place / "work", replay.Clock(request.durations))
        skipped = _execute(sides, chosen, work, request.project)
        announce("comparing outputs and metrics with the claims")
        outputs, metrics = _judge(request, sides, skipped, work)
        differing = environments.from_lock(sides.text(environments.LOCK), environments.installed())
        wrong, unknown = inquiry.disagreements(sides, request.params.tolerance)
        reasons = inquiry.reasons(
            sides,
            outputs,
            metrics,
            [*known, *wrong],
            replay=work,
            differing=differing,
            environment=request.environment,
            witness=request.witness,
        )
        return Review(
            revision=request.revision,
            commit=commit,
            against=claiming if request.against else None,
            data=data,
            outputs=tuple(outputs),
            metrics=tuple(metrics),
            findings=(*known, *wrong, *inquiry.leaks(sides, outputs)),
            causes=tuple(reasons),
            executed=tuple(sides.executed.values()),
            left_out=chosen.left_out,
            environment=work.environment_record(),
            environment_notes=tuple(differing.values()),
            records=inquiry.records(sides, outputs),
            not_recomputed=tuple(unknown),
        )


def _prepare(request: Request, sides: Sides) -> tuple[str, str]:
    """Bring raw data and weights into the clone; return the path and the digest of the data."""
    path = params.lookup(sides.values, "dataset.path")
    claimed = next((claim.deps[path] for claim in sides.claims.values() if path in claim.deps), None)
    cache = materials.cache_of(request.project)
    digest = materials.place_raw_data(request.project, sides.clone, cache, claimed=claimed)
    materials.place_weights(request.project, sides.clone)
    return path, digest


def _known(request: Request, sides: Sides) -> list[Finding]:
    """Return what lock and files say without running anything."""
    against = request.against
    when = f"in {request.revision}, compared with {against}" if against else causes.EDITED
    of_clone = functools.cache(lambda path: locks.digest(sides.clone / path))
    found = causes.of_lock(sides.pipeline, sides.claims, sides.values, of_clone, when=when)
    return found + causes.of_committed(
        sides.pipeline, sides.claims, lambda path: locks.digest(sides.claims_clone / path)
    )


def _plan(request: Request, sides: Sides, place: Path) -> plan.Plan:
    """Choose the stages, and make the clone hold of all outputs only those that no replayed stage makes.

    The latter are those of the replayed revision itself, also when it is judged by the claims of another.
    """
    own, claims = sides.claimed, sides.claims
    if request.against:
        own, claims = materials.Claimed(request.project, sides.clone, place), read_claims(sides.clone)
    claimed = {path: digest for claim in claims.values() for path, digest in claim.outs.items()}
    chosen = plan.plan(sides.pipeline, names=request.stages, quick=request.quick, claimed=claimed, find=own.find)
    given = {path: own.find(path, digest) for path, digest in chosen.given.items()}
    for path, source in given.items():
        if source is not None and source != sides.clone / path:
            materials.remove(sides.clone / path)
            materials.copy(source, sides.clone / path)
    for stage in sides.pipeline.stages:
        for path in stage.outs:
            if path not in given:
                materials.remove(sides.clone / path)
    return chosen


def _execute(sides: Sides, chosen: plan.Plan, work: Replay, project: Path) -> dict[str, str]:
    """Run the stages; return {stage: why} of those that could not start, because one before them failed."""
    skipped: dict[str, str] = {}
    try:
        for position, stage in enumerate(chosen.stages, start=1):
            before = sides.pipeline.before[stage.name]
            failed = [name for name in before if name in sides.executed and sides.executed[name].failure is not None]
            if failed:
                skipped[stage.name] = f"not replayed: {min(failed)} failed"
                continue
            waiting = [one.name for one in chosen.stages[position:]]
            done = work.execute(stage, waiting=waiting, count=f"{position}/{len(chosen.stages)}")
            sides.executed[stage.name] = done
            announce(f"    {_first_look(sides, stage, done)}, {replay.spoken(done.seconds)}")
    finally:
        whole = {one.stage: one.seconds for one in sides.executed.values() if one.failure is None}
        replay.keep_durations(project, whole)
    return skipped


def _first_look(sides: Sides, stage: Stage, done: Executed) -> str:
    if done.failure is not None:
        return f"failed: {done.failure.splitlines()[-1]}"
    same = sum(done.digests[path] == sides.digest(stage, path) for path in stage.outs)
    return f"{same} of {len(stage.outs)} outputs identical"


def _judge(
    request: Request, sides: Sides, skipped: Mapping[str, str], work: Replay
) -> tuple[list[Output], list[Metric]]:
    """Return a verdict for every output of the replayed stages, and for every metric if these are among them."""
    table = evidence.SPLIT_TABLE
    truth = evidence.truth(sides.claimed_path(table), sides.clone / table, sides.claimed_values)
    outputs: list[Output] = []
    differences: dict[str, Mapping[str, Difference]] = {}
    for stage in sides.pipeline.stages:
        for path in stage.outs if stage.name in sides.executed or stage.name in skipped else ():
            wanted = sides.digest(stage, path)
            failure = skipped.get(stage.name) or sides.executed[stage.name].failure
            if failure is not None:
                note = failure.splitlines()[-1]
                outputs.append(Output(stage.name, path, verdicts.DIVERGED, "execution", wanted, None, (note,)))
                continue
            one, differences[verdicts.run_name(path)] = verdicts.output(
                stage.name,
                path,
                digests=(wanted, sides.executed[stage.name].digests[path]),
                claimed=functools.partial(sides.claimed_path, path),
                replayed=sides.clone / path,
                truth=truth,
                params=request.params,
            )
            outputs.append(one)
        claim = sides.claims.get(stage.name)
        gone = [path for path in (claim.outs if claim else ()) if path not in stage.outs]
        if stage.name in sides.executed:
            note = "claimed, and no output of this stage any more"
            outputs += [
                Output(stage.name, path, verdicts.DIVERGED, "existence", claim.outs[path], None, (note,))
                for path in gone
            ]
    metrics = _metrics(request, sides, differences)
    outputs = verdicts.settled(outputs, metrics, sides.pipeline)
    return inquiry.remade(sides, outputs, replay=work, truth=truth, params=request.params), metrics


def _metrics(request: Request, sides: Sides, differences: Mapping[str, Mapping[str, Difference]]) -> Sequence[Metric]:
    claimed, replayed = sides.claimed_path(inquiry.LEADERBOARD), sides.replayed_path(inquiry.LEADERBOARD)
    if claimed is None or replayed is None:
        return []
    entries = map(artifacts.read_json, (claimed, replayed))
    return verdicts.metrics_of(*entries, differences=differences, params=request.params)
