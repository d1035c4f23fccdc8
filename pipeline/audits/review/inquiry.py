"""Gathers what the causes of a divergence are judged by, and what is wrong with the claims whatever the replay gave."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.audits.review import causes, environments, evidence, locks, plan, tolerance, verdicts
from pipeline.audits.review.causes import Circumstances, Finding
from pipeline.audits.review.locks import Stage
from pipeline.audits.review.replay import Replay
from pipeline.audits.review.sides import Sides
from pipeline.audits.review.tolerance import ToleranceParams
from pipeline.audits.review.verdicts import Metric, Output, ReviewParams, Truth
from pipeline.core import artifacts, run_identity

LEADERBOARD = artifacts.LEADERBOARD.as_posix()
SUMMARY = artifacts.LEADERBOARD.with_name("metrics.json").as_posix()

Witness = Callable[[Collection[str]], Mapping[str, Sequence[Mapping[str, str]]]]
"""Returns {record digest: environments in which MLflow saw it being computed} for some record digests."""


def reasons(
    sides: Sides,
    outputs: Sequence[Output],
    metrics: Sequence[Metric],
    known: Sequence[Finding],
    *,
    replay: Replay,
    differing: Mapping[str, str],
    environment: Mapping[str, str],
    witness: Witness,
) -> list[Finding]:
    """Return why the first stages that are not identical are not, and why the first diverged ones diverged.

    ``known``: what was found before the replay, or is wrong with the claims. ``differing``: {package: how it differs}
    from the claiming revision's requirements. ``environment``: of this machine, as MLflow knows environments. A stage
    that nothing known explains is run once more.
    """
    unlike = {one.stage for one in outputs if one.verdict != verdicts.IDENTICAL}
    diverged = {one.stage for one in outputs if one.verdict == verdicts.DIVERGED}
    if any(one.verdict == verdicts.DIVERGED for one in metrics) and not diverged:
        # Another champion of runs that are equivalent.
        diverged = set(causes.first(sides.pipeline, unlike))
    first = {*causes.first(sides.pipeline, unlike), *causes.first(sides.pipeline, diverged)}
    found: list[Finding] = []
    for stage in sides.pipeline.stages:
        if stage.name not in first:
            continue
        mine = [one for one in outputs if one.stage == stage.name]
        # What is made of the claimed runs has no excuse in other stages.
        by_itself = any(one.basis == verdicts.REMADE for one in mine)
        explained = causes.explained_by(stage.name, sides.pipeline, known, unlike=() if by_itself else unlike)
        failure = sides.executed[stage.name].failure
        needed = environments.needed(_imports(sides, stage))
        packages = [text for name, text in differing.items() if name in needed]
        if failure is not None:
            reads_data = sides.values["dataset"]["path"] in stage.deps
            facts = Circumstances(failure=failure.splitlines()[-1], reads_data=reads_data, environment=packages)
            found += causes.of_divergence(stage.name, explained, facts)
            continue
        recorded = _recorded(sides, stage, environment, witness, needed)
        differs = [*packages, *min(recorded, key=len, default=[])]
        # Where nothing diverged, an environment that is known to differ is reason enough.
        asked = not explained and (stage.name in diverged or not differs)
        facts = Circumstances(
            same_inputs=by_itself or _same_inputs(sides, stage),
            repeated=_repeated(sides, stage, replay) if asked else None,
            environment=differs,
            same_environment=[] in recorded,
            changed_data=[*_changed_rows(sides, stage), *(text for _, text in _copies(sides, stage))],
            contradicts=LEADERBOARD in stage.outs and any(map(_contradicts, mine)),
            unavailable=any(one.unavailable for one in mine),
        )
        found += (causes.of_divergence if stage.name in diverged else causes.of_difference)(
            stage.name, explained, facts
        )
    return list(dict.fromkeys(found))


def remade(
    sides: Sides, outputs: Sequence[Output], *, replay: Replay, truth: Truth | None, params: ReviewParams
) -> list[Output]:
    """Return the outputs; of those that are made from runs, the diverged judged by making them of the claimed runs.

    A table is exact whatever it is made from. So it must be what the stage makes of the very inputs that its claim was
    made from, and then counts as reproduced as well as these are. It is not asked for where these diverged, where they
    are the claimed bytes already, and where the claimed bytes are not here.
    """
    found = list(outputs)
    makers = {one.stage for one in outputs if verdicts.is_run(one.path)}
    for stage in sides.pipeline.stages:
        before = sides.pipeline.before[stage.name]
        mine = [one for one in found if one.stage == stage.name and one.verdict == verdicts.DIVERGED and one.replayed]
        upstream = verdicts.worst(one.verdict for one in found if one.stage in before)
        if not mine or not before & makers or upstream == verdicts.DIVERGED:
            continue
        inputs = _claimed_inputs(sides, stage)
        if not inputs or None in inputs.values():
            continue
        with replay.again(stage, inputs=inputs, why="what does it make of the claimed runs?") as done:
            for one in mine:
                again, _ = verdicts.output(
                    stage.name,
                    one.path,
                    digests=(one.claimed, done.digests[one.path]),
                    claimed=functools.partial(sides.claimed_path, one.path),
                    replayed=sides.clone / one.path,
                    truth=truth,
                    params=params,
                )
                verdict = verdicts.worst([again.verdict, upstream])
                notes = (f"of the claimed runs: {again.verdict}", *again.notes)
                found[found.index(one)] = replace(one, verdict=verdict, basis=verdicts.REMADE, notes=notes)
    return found


def leaks(sides: Sides, outputs: Sequence[Output]) -> list[Finding]:
    """Return the images that both train and test hold, in the replayed split or in the claimed one.

    A leak is known if it is one of the source: its predefined parts, by the table of all images, hold the image twice.
    """
    split = sides.pipeline.producer(evidence.SPLIT_TABLE)
    if split is None:
        return []
    tables = [sides.replayed_path(evidence.SPLIT_TABLE), sides.claimed_path(evidence.SPLIT_TABLE)]
    found = [text for table in dict.fromkeys(tables) if table and table.is_file() for text in evidence.leaks(table)]
    if any(one.stage == split and one.verdict != verdicts.IDENTICAL for one in outputs):
        found += _copies(sides, sides.pipeline.stage(split))
    catalog = sides.replayed_path(evidence.IMAGE_TABLE) or sides.claimed_path(evidence.IMAGE_TABLE)
    known = evidence.predefined_twice(catalog) if catalog else set()
    texts: dict[str, dict[str, None]] = {causes.LEAK: {}, causes.KNOWN_LEAK: {}}
    for sha256, text in found:
        texts[causes.KNOWN_LEAK if sha256 in known else causes.LEAK][text] = None
    return [Finding(kind, split, evidence.counted(list(told))) for kind, told in texts.items() if told]


def disagreements(sides: Sides, tolerance: ToleranceParams) -> tuple[list[Finding], list[str]]:
    """Compute the committed metrics once more from the claimed predictions; return what disagrees, and the names of the
    runs whose claimed predictions cannot be had."""
    board, summary = sides.claimed_path(LEADERBOARD), sides.claimed_path(SUMMARY)
    if board is None:
        return [], []
    found, unknown = evidence.disagreements(
        artifacts.read_json(board),
        artifacts.read_json(summary) if summary else None,
        run=lambda name: sides.claimed_path((artifacts.RUNS / name).as_posix()),
        table=sides.claimed_path(evidence.SPLIT_TABLE),
        values=sides.claimed_values,
        tolerance=tolerance,
    )
    stage = sides.pipeline.producer(LEADERBOARD) or ""
    return [Finding(causes.FABRICATED, stage, evidence.counted(found))] if found else [], unknown


def records(sides: Sides, outputs: Sequence[Output]) -> dict[str, tuple[str, str]]:
    """Return {run: (digest of its claimed record, verdict)} of the runs whose claimed record can be had."""
    found = {}
    for one in outputs:
        place = sides.claimed_path(one.path)
        if place and (place / verdicts.RECORD).is_file():
            found[verdicts.run_name(one.path)] = (run_identity.record_digest(place), one.verdict)
    return found


def _repeated(sides: Sides, stage: Stage, replay: Replay) -> bool:
    with replay.again(stage, inputs={}, why="is it deterministic?") as done:
        return done.digests == sides.executed[stage.name].digests


def _contradicts(one: Output) -> bool:
    """Whether numbers that anybody can read differ, and not merely bytes or pixels."""
    return one.verdict == verdicts.DIVERGED and Path(one.path).suffix in tolerance.TEXTS and not one.unavailable


def _same_inputs(sides: Sides, stage: Stage) -> bool:
    """Whether a stage read, of what other stages make, the very bytes that its claim was made from."""
    claim = sides.claims.get(stage.name)
    read = [path for path in claim.deps if sides.pipeline.producer(path)] if claim else []
    return all(locks.digest(sides.clone / path) == claim.deps[path] for path in read)


def _claimed_inputs(sides: Sides, stage: Stage) -> dict[str, Path | None]:
    """Return what a stage read of other stages that is not the claimed bytes: {path: where those are, if anywhere}."""
    found = {}
    for path in plan.inputs(stage, sides.pipeline, made=()):
        wanted = sides.digest(sides.pipeline.stage(sides.pipeline.producer(path)), path)
        if locks.digest(sides.clone / path) != wanted:
            found[path] = sides.claimed_path(path)
    return found


def _imports(sides: Sides, stage: Stage) -> set[str]:
    """Return what the modules of a stage import, by the names that the code has for it."""
    modules = [sides.clone / path for path in stage.deps if path.endswith(".py")]
    return {name for module in modules if module.is_file() for name in environments.imports(module)}


def _recorded(
    sides: Sides, stage: Stage, environment: Mapping[str, str], witness: Witness, needed: Collection[str]
) -> list[list[str]]:
    """Return, for every environment in which MLflow saw the claim of a stage being computed, how it differs in what the
    stage needs."""
    places = [sides.claimed_path(path) for path in stage.outs]
    digests = [run_identity.record_digest(place) for place in places if place and (place / verdicts.RECORD).is_file()]
    seen = witness(digests) if digests else {}
    return [environments.from_record(one, environment, needed) for found in seen.values() for one in found]


def _changed_rows(sides: Sides, stage: Stage) -> list[str]:
    """Return how the claimed tables of images differ from those that the replay wrote, in words."""
    pairs = [(sides.claimed_path(path), sides.clone / path) for path in stage.outs if Path(path).suffix == ".csv"]
    return [text for claimed, replayed in pairs if claimed for text in evidence.changed_rows(claimed, replayed)]


def _copies(sides: Sides, stage: Stage) -> list[tuple[str, str]]:
    """Return what the claimed folders of the parts, if those are what the stage writes, hold of the test part."""
    folders = {Path(path).name: path for path in stage.outs}
    places = {name: sides.claimed_path(path) for name, path in folders.items() if name in artifacts.PARTS}
    return evidence.copies({name: place for name, place in places.items() if place})
