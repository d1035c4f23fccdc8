"""What a revision declares in dvc.yaml and claims in dvc.lock, and the digests by which the two are compared."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.console.errors import BakeoffError
from pipeline.core import params

LOCK = Path("dvc.lock")
# What no DVC digest of a directory contains.
IGNORED_FOLDERS = {".git", ".dvc", "__pycache__"}


class ReviewError(BakeoffError):
    """A review that cannot be made: no such revision, no lock, or something that it needs is not here."""


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml, the item of its matrix filled in. Paths are relative to the project, with slashes.

    ``committed``: those of ``outs`` that DVC does not keep, because git does.
    """

    name: str
    command: str
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]
    committed: frozenset[str] = frozenset()

    @property
    def kind(self) -> str:
        """The stage without its item: ``sweep`` of ``sweep@efficientnet_lite0-rbf_svm``."""
        return self.name.partition("@")[0]


@dataclass(frozen=True)
class Claim:
    """What dvc.lock says of one stage: the command, and the digests and values that it ran with and ended in."""

    command: str
    deps: Mapping[str, str]
    params: Mapping[str, Any]
    outs: Mapping[str, str]


@dataclass(frozen=True)
class Pipeline:
    """The stages of a revision in an order in which they can run, and for each the names of all stages before it."""

    stages: tuple[Stage, ...]
    before: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def after(self, name: str) -> list[Stage]:
        """Return the stages that depend on a stage, directly or not, in order."""
        return [stage for stage in self.stages if name in self.before[stage.name]]

    def producer(self, path: str) -> str | None:
        """Return the name of the stage whose output ``path`` is, lies in or contains; None of a file nobody makes."""
        return next((stage.name for stage in self.stages if any(related(path, out) for out in stage.outs)), None)


def claims(text: str | None) -> dict[str, Claim]:
    """Return {stage: claim} of the text of a dvc.lock. Raises ReviewError if it is none."""
    try:
        stages = (yaml.safe_load(text or "") or {}).get("stages", {})
        return {name: _claim(stage) for name, stage in stages.items()}
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise ReviewError(f"{LOCK} cannot be read: {error}") from None


def declared(project: Path) -> Pipeline:
    """Return the stages that dvc.yaml in ``project`` declares with params.yaml there. Raises ReviewError."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(project)) as repo:
            return pipeline([_stage(stage) for stage in repo.index.stages if stage.cmd])
    except DvcException as error:
        raise ReviewError(f"DVC cannot read dvc.yaml with params.yaml: {error}") from None


def pipeline(stages: Iterable[Stage]) -> Pipeline:
    """Return stages in the order received, except that each comes after those whose outputs it reads."""
    waiting, ordered = list(stages), []
    needs = {stage.name: _direct(stage, waiting) for stage in waiting}
    before: dict[str, frozenset[str]] = {}
    while waiting:
        ready = next((stage for stage in waiting if needs[stage.name] <= before.keys()), None)
        if ready is None:
            raise ReviewError(f"dvc.yaml: stages depend on each other: {', '.join(stage.name for stage in waiting)}")
        waiting.remove(ready)
        ordered.append(ready)
        before[ready.name] = needs[ready.name].union(*(before[name] for name in needs[ready.name]))
    return Pipeline(tuple(ordered), before)


def chosen(stages: Sequence[Stage], names: Collection[str]) -> list[Stage]:
    """Return the stages that ``names`` mean, in order: a stage, all items of one, or one item.

    Raises ReviewError if a name means none.
    """
    known = {stage.name for stage in stages} | {stage.kind for stage in stages}
    if unknown := [name for name in names if name not in known]:
        raise ReviewError(f"Unknown stage {unknown[0]!r}. Choose from: {', '.join(sorted(known))}")
    return [stage for stage in stages if stage.name in names or stage.kind in names]


def related(one: str, other: str) -> bool:
    """Whether two paths are the same, or one lies in the other."""
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def digest(path: Path) -> str | None:
    """Return the digest that DVC gives a file or a directory (which ends in .dir); None if there is nothing."""
    if path.is_file():
        return _md5(path)
    if not path.is_dir():
        return None
    entries = [{"md5": _md5(path / name), "relpath": name} for name in names_in(path)]
    text = json.dumps(entries, sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"


def names_in(directory: Path) -> list[str]:
    """Return the files below a directory, relative to it, with slashes and sorted."""
    found = []
    for place, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if name not in IGNORED_FOLDERS]
        found += [(Path(place) / name).relative_to(directory).as_posix() for name in names]
    return sorted(found)


def value(values: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key of params.yaml, `MISSING` without."""
    try:
        return params.lookup(values, key)
    except params.ParamsError:
        return MISSING


class _Missing:
    def __repr__(self) -> str:
        return "missing"


MISSING = _Missing()


def _claim(stage: Mapping[str, Any]) -> Claim:
    def digests(entries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        return {entry["path"]: entry[entry.get("hash", "md5")] for entry in entries}

    values: dict[str, Any] = {}
    for block in (stage.get("params") or {}).values():
        values |= block
    return Claim(stage["cmd"], digests(stage.get("deps", ())), values, digests(stage.get("outs", ())))


def _stage(stage: Any) -> Stage:
    from dvc.dependency import ParamsDependency

    keys = [key for dep in stage.deps if isinstance(dep, ParamsDependency) for key in dep.params]
    return Stage(
        name=stage.name,
        command=stage.cmd,
        deps=tuple(_place(dep) for dep in stage.deps if not isinstance(dep, ParamsDependency)),
        params=tuple(keys),
        outs=tuple(_place(out) for out in stage.outs),
        committed=frozenset(_place(out) for out in stage.outs if not out.use_cache),
    )


def _place(output: Any) -> str:
    return output.def_path.replace(os.sep, "/").rstrip("/")


def _direct(stage: Stage, others: Sequence[Stage]) -> frozenset[str]:
    return frozenset(
        other.name
        for other in others
        if other.name != stage.name and any(related(dep, out) for dep in stage.deps for out in other.outs)
    )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
