"""Run the same pipeline on 200 images and three methods, in .demo, in a few minutes.

`.demo` is a clone of the project's files with a git repository, a DVC cache and an MLflow store of its own; only
params.yaml differs, and the feature store is the project's. Calling this again goes on where it stopped. Nothing of the
project itself changes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.config import params_file
from pipeline.console.errors import BakeoffError
from pipeline.console.progress import say
from pipeline.core import params, provenance
from pipeline.features import feature_store

DESTINATION = Path(".demo")

OVERRIDES: dict[str, Any] = {
    "dataset.limit": 200,
    "classifiers": {
        "logistic_regression": {
            "search": "grid",
            "grid": {"C": [0.001, 0.01, 0.1], "scale": ["standard"], "class_weight": ["balanced"]},
        }
    },
    "head.epochs": 2,
    "fine_tune.backbones": [],
    "scratch.epochs": 3,
    "explain.runs": ["efficientnet_lite0-head"],
    "compare.bootstrap_samples": 500,
}

# Written by the pipeline, so the copy keeps its own.
RESULTS = ("dvc.lock", "results")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fresh", action="store_true", help="start over: remove .demo first")


def main(arguments: argparse.Namespace) -> int:
    root = provenance.ROOT
    destination = root / DESTINATION
    if arguments.fresh and destination.exists():
        shutil.rmtree(destination)
    copy_project(root, destination, leave_out=RESULTS)
    params_file.override(destination / params.PARAMS_FILE, OVERRIDES)
    commit(destination, "Demo")
    say(f"The pipeline on {OVERRIDES['dataset.limit']} images in {DESTINATION}; at most 5 minutes on 2 cores")
    # What frozen networks make of an image is the same here and there.
    shared = {"BAKEOFF_FEATURE_STORE": str(feature_store.from_environment().directory.resolve())}
    for command in (["dvc", "repro"], ["python", "-m", "pipeline", "leaderboard"]):
        status = subprocess.run(command, cwd=destination, env=environment() | shared).returncode
        if status:
            return status
    # Not `make ui` there, which would build another environment.
    python = os.path.relpath(sys.executable, destination) if root in Path(sys.executable).parents else sys.executable
    say(
        f"\nLook next at {DESTINATION}/results/, and at every run and candidate with:\n"
        f"    cd {DESTINATION} && {python} -m pipeline ui\n"
        f"200 images say nothing about which method is best; `make repro` does. Remove {DESTINATION} when you are done."
    )
    return 0


def copy_project(source: Path, destination: Path, *, leave_out: tuple[str, ...] = ()) -> None:
    """Make ``destination`` hold the files of the git clone ``source``: tracked, or new and not ignored.

    Files that ``source`` no longer has are removed from ``destination`` if its git repository tracks them. Paths in
    ``leave_out``, and what lies under them, are neither copied nor removed. Raises BakeoffError if ``source`` is no
    git clone.
    """
    wanted = _files(source, "--cached", "--others", "--exclude-standard")
    if (destination / ".git").exists():
        for path in _files(destination, "--cached") - wanted:
            if not _is_under(path, leave_out):
                (destination / path).unlink(missing_ok=True)
    for path in sorted(wanted):
        if not _is_under(path, leave_out):
            target = destination / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / path, target, follow_symlinks=False)


def commit(directory: Path, message: str) -> None:
    """Commit every file of ``directory`` that git does not ignore, making it a repository if it is none."""
    if not (directory / ".git").exists():
        _git(directory, "init", "--quiet")
    _git(directory, "add", "--all")
    identity = ("-c", "user.name=Bakeoff", "-c", "user.email=bakeoff@localhost", "-c", "commit.gpgsign=false")
    _git(directory, *identity, "commit", "--quiet", "--no-verify", "--allow-empty", "--message", message)


def environment() -> dict[str, str]:
    """Return the environment for commands in a copy of the project: this interpreter first on PATH, a store of its own.

    Without the variables that name the repository or the MLflow store of the calling process.
    """
    foreign = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "DVC_ROOT", "MLFLOW_TRACKING_URI")
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    # Not resolved: in a virtual environment the interpreter is a link to one outside.
    return {**kept, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])}


def _is_under(path: Path, places: tuple[str, ...]) -> bool:
    return any(path == Path(place) or Path(place) in path.parents for place in places)


def _files(directory: Path, *which: str) -> set[Path]:
    """Return what ``git ls-files`` lists in ``directory`` and exists, relative to it."""
    listed = _git(directory, "ls-files", "-z", *which).split("\0")
    return {Path(name) for name in listed if name and os.path.lexists(directory / name)}


def _git(directory: Path, *arguments: str) -> str:
    if not (directory / ".git").exists() and arguments[0] != "init":
        raise BakeoffError(f"{directory} is no git clone: clone the project, or `git init`, add and commit this copy")
    done = subprocess.run(
        ["git", *arguments], cwd=directory, env=environment(), capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        raise BakeoffError(f"`git {' '.join(arguments)}` failed in {directory}:\n{done.stderr.strip()}")
    return done.stdout
