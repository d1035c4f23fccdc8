"""Gathers what the causes of a divergence are judged by, and what is wrong with the claims whatever the replay gave."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from pipeline import artifacts, identity
from pipeline.review import causes, environments, evidence, locks, verdicts
from pipeline.review.causes import Circumstances, Finding
from pipeline.review.closeness import ToleranceParams
from pipeline.review.locks import Stage
from pipeline.review.replay import Replay
from pipeline.review.sides import Sides
from pipeline.review.verdicts import Output

LEADERBOARD = artifacts.LEADERBOARD.as_posix()
QUALITY = artifacts.LEADERBOARD.with_name("data_quality.json").as_posix()
SUMMARY = artifacts.LEADERBOARD.with_name("metrics.json").as_posix()

Witness = Callable[[Collection[str]], Mapping[str, Sequence[Mapping[str, str]]]]
"""Returns {record digest: environments in which MLflow saw it being computed} for some record digests."""


def reasons(
    sides: Sides,
    outputs: Sequence[Output],
    known: Sequence[Finding],
    *,
    replay: Replay,
    differing: Sequence[str],
    environment: Mapping[str, str],
    witness: Witness,
) -> list[Finding]:
    """Return why the first diverged stages diverged.

    ``known``: what was found before the replay. ``differing``: how packages differ from the claiming revision's
    requirements. ``environment``: of this machine, as MLflow knows environments. A stage that nothing known explains is
    run once more.
    """
    diverged = {one.stage for one in outputs if one.verdict == verdicts.DIVERGED}
    found: list[Finding] = []
    for name in causes.first_diverged(sides.pipeline, diverged):
        explained = causes.explained_by(name, sides.pipeline, known)
        stage, failure = sides.pipeline.stage(name), sides.executed[name].failure
        if failure is not None:
            reads_data = sides.values["dataset"]["path"] in stage.deps
            facts = Circumstances(failure=failure.splitlines()[-1], reads_data=reads_data)
        else:
            recorded = _recorded(sides, stage, environment, witness)
            facts = Circumstances(
                same_inputs=_same_inputs(sides, stage),
                repeated=None if explained else replay.repeat(stage).digests == sides.executed[name].digests,
                environment=[*differing, *min(recorded, key=len, default=[])],
                same_environment=[] in recorded,
                changed_data=_changed_rows(sides, stage) + _copies(sides, stage),
                measures=LEADERBOARD in stage.outs,
            )
        found += causes.of_divergence(name, explained, facts)
    return list(dict.fromkeys(found))


def leaks(sides: Sides, outputs: Sequence[Output]) -> list[Finding]:
    """Return the images that both train and test hold, in the replayed split or in the claimed one.

    A leak is known if the committed record of the data counts at least as many duplicates over the parts: predefined
    parts may have them.
    """
    split = sides.pipeline.producer(evidence.SPLIT_TABLE)
    if split is None:
        return []
    tables = [sides.replayed_path(evidence.SPLIT_TABLE), sides.claimed_path(evidence.SPLIT_TABLE)]
    found = [text for table in dict.fromkeys(tables) if table and table.is_file() for text in evidence.leaks(table)]
    if any(one.stage == split and one.verdict != verdicts.IDENTICAL for one in outputs):
        found += _copies(sides, sides.pipeline.stage(split))
    texts = list(dict.fromkeys(found))
    if not texts:
        return []
    quality = sides.claimed_path(QUALITY)
    admitted = artifacts.read_json(quality).get("duplicates_across_parts", 0) if quality else 0
    kind = causes.KNOWN_LEAK if admitted >= len(texts) else causes.LEAK
    return [Finding(kind, split, evidence.counted(texts))]


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
            found[verdicts.run_name(one.path)] = (identity.record_digest(place), one.verdict)
    return found


def _same_inputs(sides: Sides, stage: Stage) -> bool:
    """Whether a stage read, of what other stages make, the very bytes that its claim was made from."""
    claim = sides.claims.get(stage.name)
    read = [path for path in claim.deps if sides.pipeline.producer(path)] if claim else []
    return all(locks.digest(sides.clone / path) == claim.deps[path] for path in read)


def _recorded(sides: Sides, stage: Stage, environment: Mapping[str, str], witness: Witness) -> list[list[str]]:
    """Return, for every environment in which MLflow saw the claim of a stage being computed, how it differs."""
    places = [sides.claimed_path(path) for path in stage.outs]
    digests = [identity.record_digest(place) for place in places if place and (place / verdicts.RECORD).is_file()]
    seen = witness(digests) if digests else {}
    return [environments.from_record(one, environment) for found in seen.values() for one in found]


def _changed_rows(sides: Sides, stage: Stage) -> list[str]:
    """Return how the claimed tables of images differ from those that the replay wrote, in words."""
    pairs = [(sides.claimed_path(path), sides.clone / path) for path in stage.outs if Path(path).suffix == ".csv"]
    return [text for claimed, replayed in pairs if claimed for text in evidence.changed_rows(claimed, replayed)]


def _copies(sides: Sides, stage: Stage) -> list[str]:
    """Return what the claimed folders of the parts, if those are what the stage writes, hold of the test part."""
    folders = {Path(path).name: path for path in stage.outs}
    places = {name: sides.claimed_path(path) for name, path in folders.items() if name in artifacts.PARTS}
    return evidence.copies({name: place for name, place in places.items() if place})
