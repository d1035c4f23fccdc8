"""Builds and runs combinations of two revisions: data of one, params of another, code of either."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline import tracking
from pipeline.audits.review import clones, environments, evidence, locks, materials
from pipeline.audits.review.delta import FACTORS, Combination
from pipeline.audits.review.replay import without_places
from pipeline.console.errors import BakeoffError
from pipeline.core import artifacts, params

CODE = ("pipeline", "dvc.yaml")
DATA = "data"
# Of params.yaml, what no stage reads.
UNREAD = ("review",)
TARGET = "compare"
REASON_LINES = 3


@dataclass(frozen=True)
class Revision:
    """A commit and what in it can change a result. ``data`` and ``code``: git's listings of the files; ``data_places``:
    where data lies. ``packages``: requirements.lock, which no combination installs. ``claims``: the leaderboard, None
    without one."""

    commit: str
    params: Mapping[str, Any]
    data: str
    code: str
    data_places: tuple[str, ...]
    packages: str
    claims: Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True)
class Outcome:
    """What came of a combination. ``values``: {(run or champion, metric): value} on test, None if it has no result;
    ``reason``: then why. ``test``: what tells its test part from others, by images and labels."""

    values: Mapping[tuple[str, str], float] | None
    reason: str = ""
    test: str | None = None


def read(project: Path, revision: str) -> Revision:
    """Return what a revision consists of. Raises ReviewError if there is none, or no params.yaml in it."""
    commit = clones.commit_of(project, revision)
    text = clones.git(project, "show", f"{commit}:./{params.PARAMS_FILE}")
    values = {name: value for name, value in yaml.safe_load(text).items() if name not in UNREAD}
    path = params.lookup(values, "dataset.path")
    places = (DATA,) if Path(path).is_absolute() or locks.related(DATA, path) else (DATA, path)
    return Revision(
        commit=commit,
        params=values,
        data=clones.git(project, "ls-tree", "-r", commit, "--", *places),
        code=clones.git(project, "ls-tree", "-r", commit, "--", *CODE),
        data_places=places,
        packages=_committed(project, commit, environments.LOCK) or "",
        claims=_leaderboard(_committed(project, commit, artifacts.LEADERBOARD.as_posix())),
    )


def _committed(project: Path, commit: str, path: str) -> str | None:
    try:
        return clones.git(project, "show", f"{commit}:./{path}")
    except locks.ReviewError:
        return None


def _leaderboard(text: str | None) -> list[Mapping[str, Any]] | None:
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return None


def changed(first: Revision, second: Revision) -> list[str]:
    """Return which factors differ between two revisions."""
    return [name for name in FACTORS if getattr(first, name) != getattr(second, name)]


def claimed(revision: Revision, metrics: Sequence[str]) -> dict[tuple[str, str], float] | None:
    """Return the metrics that a revision's own leaderboard claims, None if it has none."""
    return None if revision.claims is None else _values(revision.claims, metrics)


def build(project: Path, first: Revision, second: Revision, combination: Combination, destination: Path) -> Path:
    """Check a combination out, with its raw data; return the project in it. Raises ReviewError if it has none."""
    of = {name: second if name in combination else first for name in FACTORS}
    clone = clones.clone(project, of["code"].commit, destination)
    clones.git(clone, "checkout", "--quiet", of["params"].commit, "--", str(params.PARAMS_FILE))
    if of["data"] is not of["code"]:
        places = dict.fromkeys([*of["code"].data_places, *of["data"].data_places])
        for place in places:
            if clones.git(clone, "ls-files", "--", place):
                clones.git(clone, "rm", "-r", "--quiet", "--", place)
        for place in places:
            if clones.git(clone, "ls-tree", of["data"].commit, "--", place):
                clones.git(clone, "checkout", "--quiet", of["data"].commit, "--", place)
    path = params.lookup(of["params"].params, "dataset.path")
    untracked = None if _tracks(of["params"], path) else locks.digest(project / path)
    materials.place_raw_data(project, clone, materials.cache_of(project), claimed=untracked)
    materials.place_weights(project, clone)
    return clone


def _tracks(revision: Revision, path: str) -> bool:
    """Whether git or DVC has the data of a path at a revision; if not, the present version is the only one."""
    listed = [line.partition("\t")[2] for line in revision.data.splitlines()]
    return any(locks.related(path, name) or name == f"{path}.dvc" for name in listed)


def run(
    clone: Path, place: Path, *, cache: Path | None, store: Path, metrics: Sequence[str], tick: Callable[[], None]
) -> Outcome:
    """Let DVC run what a combination needs, and return its metrics, or why it has none.

    ``cache``: the root of a DVC cache that combinations share; ``store``: of features. ``place``: for a log and MLflow.
    """
    place.mkdir(parents=True, exist_ok=True)
    log = place / "log.txt"
    environment = clones.environment(
        BAKEOFF_FEATURE_STORE=str(store), MLFLOW_TRACKING_URI=tracking.Store.at(place / "mlflow.db").uri
    )

    def called(*command: str) -> int:
        log.unlink(missing_ok=True)
        return clones.run(command, cwd=clone, environment=environment, log=log, tick=tick)

    if cache is not None and called("dvc", "cache", "dir", "--local", str(cache)):
        return Outcome(None, _reason(log, clone))
    # The combination's own code says whether it takes these params.
    if called("python", "-m", "pipeline", "prune", "--dry-run"):
        return Outcome(None, _reason(log, clone))
    called("dvc", "checkout", "--quiet", "--allow-missing")  # what of the code's own results fits saves its computation
    if called("dvc", "repro", TARGET):
        return Outcome(None, _reason(log, clone))
    try:
        entries = artifacts.read_json(clone / artifacts.LEADERBOARD)
        return Outcome(_values(entries, metrics), test=evidence.test_part(clone / evidence.SPLIT_TABLE))
    except BakeoffError as error:
        return Outcome(None, str(error))


def _values(entries: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[tuple[str, str], float]:
    found = {}
    for entry in entries:
        for metric in metrics:
            score = entry["test"].get(metric, {}).get("value")
            for name in [entry["run"], *(["champion"] if entry["champion"] else [])] if score is not None else ():
                found[name, metric] = score
    return found


def _reason(log: Path, clone: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("error", "ERROR", "params.yaml"))] or lines
    return without_places(" ".join(said[:REASON_LINES]), clone) or "it failed without a word"
