"""How often the test part was scored: distinct comparisons, and what changed from one to the next. Pure.

A look is a set of test scores that `compare` published in results/metrics.json and that no earlier look published.
Comparing again without another score is no further look. Which test part it looked at, and what it was made from, is in
the dvc.lock of the same commit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.core import artifacts, provenance

METRICS = (artifacts.RESULTS / "metrics.json").as_posix()
COMPARE, DATASET = "compare", "dataset"
CODE = "pipeline/"
# The champion's entry of metrics.json, which repeats one of the others.
CHAMPION = "champion"
SCORE = "test_"


@dataclass(frozen=True)
class State:
    """The files of one commit, or of the working tree, that say what was compared; None for one that is not there.

    ``packages``: any text that changes when the locked packages do.
    """

    lock: Mapping[str, Any] | None
    metrics: bytes | None
    packages: str | None


@dataclass(frozen=True)
class Point:
    """A place in the history. ``before``: the state of its first parent, None for a first commit.

    ``inside``: whether it is in the history of what is checked out; ``commit`` is None for what is not committed.
    """

    state: State
    before: State | None
    commit: str | None
    date: str
    subject: str
    inside: bool


@dataclass(frozen=True)
class Look:
    """Test scores as they were first published. ``scores``: {run: {metric: value}}, empty if they were not kept.

    ``inside``: whether the history of what is checked out has them, there or at a later point.

    ``test_part``: digest of the manifest that was compared on, None if unknown. ``vouched``: whether the lock of the
    same commit holds the digest of the very file. ``new``: runs with a score that is in no earlier look at this test
    part.
    ``changed``: since the look before it in its own history, see `changes`; empty for a first one.
    """

    point: Point
    inside: bool
    scores: Mapping[str, Mapping[str, float]]
    test_part: str | None
    vouched: bool
    new: tuple[str, ...]
    champion: str | None
    changed: Mapping[str, Any]


def looks(points: Iterable[Point]) -> list[Look]:
    """Return the distinct looks among points that come oldest first, oldest first."""
    found: dict[str, Look] = {}
    known: set[tuple[str | None, str, str, float]] = set()
    for point in points:
        published = _published(point.state)
        if published is None:
            continue
        if published in found:
            # A squashed merge publishes again what another branch had first.
            found[published] = dataclasses.replace(found[published], inside=found[published].inside or point.inside)
            continue
        # The look in force at the parent: what led from there to here may have come in several commits.
        earlier = None if point.before is None else found.get(_published(point.before) or "")
        look = _look(point, None if earlier is None else earlier.point.state, known)
        known |= {(look.test_part, *score) for score in _flat(look.scores)}
        found[published] = look
    return list(found.values())


def _look(point: Point, before: State | None, known: set[tuple[str | None, str, str, float]]) -> Look:
    scores = scores_of(point.state.metrics)
    test_part = test_part_of(point.state.lock)
    locked = _outputs(point.state.lock).get(METRICS)
    new = {run for run, metric, value in _flat(scores) if (test_part, run, metric, value) not in known}
    return Look(
        point=point,
        inside=point.inside,
        scores=scores,
        test_part=test_part,
        vouched=point.state.metrics is not None and locked == _md5(point.state.metrics),
        new=tuple(sorted(new)),
        champion=_champion(point.state.metrics),
        changed=changes(before, point.state),
    )


def _published(state: State) -> str | None:
    """Return what identifies the test scores of a state, None if it has none."""
    scores = scores_of(state.metrics)
    if scores:
        return provenance.digest({"test part": test_part_of(state.lock), "scores": scores})
    locked = _outputs(state.lock).get(METRICS)
    return None if locked is None else f"locked {locked}"


def scores_of(metrics: bytes | None) -> dict[str, dict[str, float]]:
    """Return {run: {metric: score on test}} of a metrics.json; empty for what is none."""
    found = _parsed(metrics)
    return {
        run: {name.removeprefix(SCORE): value for name, value in values.items() if name.startswith(SCORE)}
        for run, values in found.items()
        if run != CHAMPION and isinstance(values, Mapping)
    }


def _champion(metrics: bytes | None) -> str | None:
    """Return the run whose scores the champion's entry repeats, where that is only one."""
    found = _parsed(metrics)
    best = found.get(CHAMPION)
    if not isinstance(best, Mapping):
        return None
    same = [
        run
        for run, values in found.items()
        if run != CHAMPION and all(best.get(name) == value for name, value in values.items() if name in best)
    ]
    return same[0] if len(same) == 1 else None


def test_part_of(lock: Mapping[str, Any] | None) -> str | None:
    """Return the digest of the manifest, which lists the test images, that a lock's comparison read."""
    return _dependencies(lock, COMPARE).get(artifacts.MANIFEST.as_posix())


def changes(before: State | None, after: State) -> dict[str, Any]:
    """Return what differs between two locks; empty without one of them.

    ``params``: {dotted key: {before, after}}, without the one that has no such key; a new block is one key.
    ``code``: files of stages that both have; ``stages``: those that only one has. ``data``: inputs of the dataset
    stage. ``split``, ``packages``: whether the manifest, and the locked packages, differ.
    """
    if before is None or before.lock is None or after.lock is None:
        return {}
    first, second = _stages(before.lock), _stages(after.lock)
    old, new = _parameters(before.lock), _parameters(after.lock)
    shared = first.keys() & second.keys()
    files = {path for stage in shared for path in _differing(first[stage], second[stage])}
    sources = _differing(first.get(DATASET, {}), second.get(DATASET, {}))
    moved = test_part_of(before.lock) != test_part_of(after.lock)
    return {
        "params": _differences(old, new),
        "code": sorted(path for path in files if path.startswith(CODE)),
        "data": sorted(path for path in sources if not path.startswith(CODE)),
        "split": moved,
        "stages": sorted(first.keys() ^ second.keys()),
        "packages": before.packages != after.packages,
    }


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= _differences(before, after, f"{prefix}{key}.")
        elif before != after or (key in old) != (key in new):
            sides = {"before": old, "after": new}
            found[f"{prefix}{key}"] = {name: tree[key] for name, tree in sides.items() if key in tree}
    return found


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> set[str]:
    """Return the dependencies that two versions of a stage do not share, or not with the same content."""
    one, other = _digests(first.get("deps")), _digests(second.get("deps"))
    return {path for path in one.keys() | other.keys() if one.get(path) != other.get(path)}


def _parameters(lock: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that the stages of a lock read from params.yaml, nested as it is there."""
    found: dict[str, Any] = {}
    for stage in _stages(lock).values():
        for values in (stage.get("params") or {}).values():
            for key, value in (values or {}).items():
                _insert(found, key.split("."), value)
    return found


def _insert(tree: dict[str, Any], names: Sequence[str], value: Any) -> None:
    """Put a value at a place of nested mappings; a mapping joins the one that is there."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _insert(tree, [*names, name], inner)
        return
    for name in names[:-1]:
        tree = tree.setdefault(name, {})
    tree[names[-1]] = value


def _stages(lock: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return (lock or {}).get("stages") or {}


def _dependencies(lock: Mapping[str, Any] | None, stage: str) -> dict[str, str]:
    return _digests(_stages(lock).get(stage, {}).get("deps"))


def _outputs(lock: Mapping[str, Any] | None) -> dict[str, str]:
    return _digests(_stages(lock).get(COMPARE, {}).get("outs"))


def _digests(entries: Sequence[Mapping[str, Any]] | None) -> dict[str, str]:
    return {entry["path"]: str(entry.get(entry.get("hash", "md5"))) for entry in entries or ()}


def _parsed(metrics: bytes | None) -> Mapping[str, Any]:
    try:
        found = json.loads(metrics or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, Mapping) else {}


def _flat(scores: Mapping[str, Mapping[str, float]]) -> set[tuple[str, str, float]]:
    return {(run, metric, value) for run, of_run in scores.items() for metric, value in of_run.items()}


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
