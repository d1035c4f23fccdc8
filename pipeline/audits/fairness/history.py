"""The commits that published test scores, read from git: of all branches, tags and DVC experiments in this clone."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline.audits.fairness.test_set_history import METRICS, Point, State
from pipeline.console.errors import BakeoffError

LOCK, PACKAGES = "dvc.lock", "requirements.lock"


class Commit(NamedTuple):
    """``parent``: the first one, empty for a first commit."""

    name: str
    parent: str
    date: str
    subject: str


def points() -> list[Point]:
    """Return every commit that changed the lock or the metrics, oldest first, and last the working tree.

    Raises BakeoffError where there is no git or no repository.
    """
    prefix = _git("rev-parse", "--show-prefix").strip("\n")
    commits = _commits()
    if not commits:
        return [Point(_working_tree(), None, None, "", "not committed", True)]
    inside = set(_git("rev-list", "HEAD").split())
    states = _states(["HEAD", *(name for commit in commits for name in (commit.name, commit.parent) if name)], prefix)
    found = [
        Point(
            states[commit.name],
            states.get(commit.parent),
            commit.name,
            commit.date,
            commit.subject,
            commit.name in inside,
        )
        for commit in commits
    ]
    return [*found, Point(_working_tree(), states["HEAD"], None, "", "not committed", True)]


def is_shallow() -> bool:
    """Return whether older commits are missing, as after `git clone --depth`."""
    return _git("rev-parse", "--is-shallow-repository").strip() == "true"


def _commits() -> list[Commit]:
    """Return the commits, parents before their children.

    Without git's simplification, or a branch whose results were not merged would be left out.
    """
    if _run("rev-parse", "--verify", "--quiet", "HEAD").returncode:
        return []
    listed = _git(
        "log",
        "--all",
        "--full-history",
        "--date-order",
        "--reverse",
        "-z",
        "--date=short",
        "--format=%H%x1f%P%x1f%ad%x1f%s",
        "--",
        LOCK,
        METRICS,
    )
    rows = [entry.split("\x1f", 3) for entry in listed.split("\0") if entry]
    return [Commit(name, parents.partition(" ")[0], date, subject) for name, parents, date, subject in rows]


def _states(names: Sequence[str], prefix: str) -> dict[str, State]:
    """Return the state of every commit. ``prefix``: where in the repository the working directory is."""
    unique = list(dict.fromkeys(names))
    files = [f"{name}:{prefix}{file}" for name in unique for file in (LOCK, METRICS, PACKAGES)]
    objects = dict(zip(files, _objects(files), strict=True))
    wanted = [objects[f"{name}:{prefix}{file}"] for name in unique for file in (LOCK, METRICS)]
    contents = dict(_contents(sorted({name for name in wanted if name})))

    def content(name: str, file: str) -> bytes | None:
        found = objects[f"{name}:{prefix}{file}"]
        return None if found is None else contents[found]

    return {
        name: State(_lock(content(name, LOCK)), content(name, METRICS), packages=objects[f"{name}:{prefix}{PACKAGES}"])
        for name in unique
    }


def _working_tree() -> State:
    lock, metrics, packages = (Path(name) for name in (LOCK, METRICS, PACKAGES))
    return State(
        lock=_lock(lock.read_bytes() if lock.is_file() else None),
        metrics=metrics.read_bytes() if metrics.is_file() else None,
        packages=_git("hash-object", str(packages)).strip() if packages.is_file() else None,
    )


def _objects(files: Sequence[str]) -> list[str | None]:
    """Return the object name of every file, given as COMMIT:PATH; None where there is none."""
    lines = _run("cat-file", "--batch-check=%(objectname)", stdin=_lines(files)).stdout.decode().splitlines()
    return [None if line.endswith(" missing") else line for line in lines]


def _contents(objects: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the content of every object."""
    output = _run("cat-file", "--batch=%(objectsize)", stdin=_lines(objects)).stdout
    place = 0
    for name in objects:
        end = output.index(b"\n", place)
        size = int(output[place:end])
        yield name, output[end + 1 : end + 1 + size]
        place = end + 1 + size + 1


@functools.cache
def _lock(content: bytes | None) -> dict[str, Any] | None:
    """Return a lock's contents; None without one, or for a damaged one: a conflict, or half of it, was committed."""
    try:
        # In C where that is there: 20 times as fast.
        found = yaml.load(content or b"", getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        whole = all(
            isinstance(entry["path"], str)
            for stage in (found.get("stages") or {}).values()
            for kind in ("deps", "outs")
            for entry in stage.get(kind) or ()
        )
    except (yaml.YAMLError, AttributeError, KeyError, TypeError):
        return None
    return found if whole else None


def _lines(names: Sequence[str]) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


def _git(*arguments: str) -> str:
    done = _run(*arguments)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise BakeoffError(f"The history of the test scores needs a git clone; `git {arguments[0]}` says: {said}")
    return done.stdout.decode(errors="replace")


def _run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", *arguments], input=stdin, capture_output=True)
    except FileNotFoundError:
        raise BakeoffError("git not found: install it, DVC needs it") from None
