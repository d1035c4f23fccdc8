"""Can results be kept where they belong: git, DVC's remote, MLflow, the store of kept computations?"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

from pipeline.console import machine
from pipeline.console.findings import Finding

# Of a database that is large; then it counts as whole as far as it was read.
SECONDS_TO_READ = 2.0
STEPS_BETWEEN_LOOKS = 20_000


def git() -> list[Finding]:
    """Check that this is a git clone with a commit: DVC compares with it, and experiments are made of it."""
    if shutil.which("git") is None:
        return [Finding("problem", "git", "git not found, and DVC needs it", "apt install git  # or your system's way")]
    state = machine.repository(Path.cwd())
    if state is None and not Path(".git").exists():
        remedy = "git init && git add --all && git commit --message 'Source archive'"
        return [Finding("problem", "git", "this folder is no git clone, and DVC needs one", remedy)]
    if state is None:
        message = "this git repository has no commit, or belongs to another user, which git refuses"
        return [Finding("problem", "git", message, "git status")]
    changed = state["changed"]
    count = f"{len(changed)} file{'s' if len(changed) > 1 else ''}" if changed else "nothing"
    return [Finding("ok", "git", f"commit {state['commit'][:12]}; different from it, of what decides results: {count}")]


# --- DVC -----------------------------------------------------------------------------------------------------------


def verified_remotes() -> list[Finding]:
    """Check that DVC compares what it fetches from any remote with its digest; it does so only where it is told to."""
    from dvc.config import Config

    config = Config(str(Path(".dvc").absolute()))
    found = []
    for name in (name for name, settings in config["remote"].items() if not settings["verify"]):
        levels = {level: config.load_one(level)["remote"].get(name) for level in config.LEVELS}
        named = [level for level, settings in levels.items() if settings is not None]
        # The last file that says so decides; without one, where the remote is first named.
        level = next((level for level in reversed(named) if "verify" in levels[level]), named[0])
        option = "" if level == "repo" else f"--{level} "
        message = f"{name}: `dvc pull` takes from it whatever is there, also a file that was damaged or exchanged"
        found.append(Finding("warning", "DVC remotes", message, f"dvc remote modify {option}{name} verify true"))
    names = ", ".join(sorted(config["remote"]))
    said = f"what is fetched from {names} is compared with its digest" if names else "none"
    return found or [Finding("ok", "DVC remotes", said)]


def dvc_remote() -> list[Finding]:
    """Check that the remote that `dvc push` and `dvc pull` use answers, if there is one."""
    from dvc.config import Config
    from dvc.fs import get_cloud_fs

    config = Config(str(Path(".dvc").absolute()))
    name = config["core"].get("remote")
    if not name and not config["remote"]:
        return [Finding("ok", "DVC remote", "none; results stay on this machine, and in git what git keeps")]
    if not name:
        known = sorted(config["remote"])
        message = f"none of {', '.join(known)} is the default"
        return [Finding("warning", "DVC remote", message, f"dvc remote default {known[0]}")]
    try:
        kind, settings, path = get_cloud_fs(config, name=name)
        system = kind(**settings)
        there = system.exists(path)
    except Exception as error:  # whatever a driver, the network or a server comes up with
        reason = " ".join(str(error).split()) or type(error).__name__
        message = f"{name} cannot be reached: {reason}"
        return [Finding("problem", "DVC remote", message, f"dvc remote modify {name} --help")]
    if not there and kind.protocol == "local" and not os.access(_nearest(Path(path)), os.W_OK):
        message = f"{name}: {path} is not there and cannot be made: is a disk missing?"
        return [Finding("problem", "DVC remote", message, f"dvc remote modify {name} url /another/path")]
    if not there:
        return [Finding("ok", "DVC remote", f"{name}: {path} is empty; the first `dvc push` makes it")]
    return [Finding("ok", "DVC remote", f"{name}: {path} answers")]


def _nearest(path: Path) -> Path:
    """Return the first folder above a path that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


# --- MLflow --------------------------------------------------------------------------------------------------------


def mlflow() -> list[Finding]:
    """Check the store that `MLFLOW_TRACKING_URI` names, else the project's own: a server answers, a file is whole."""
    from pipeline import tracking

    place = tracking.locate()
    if place.database is not None:
        found = database(place.database)
        whole = found[0].level == "ok" and place.database.exists()
        return (tracking.moved(place, "MLflow") if whole else []) or found
    try:
        with tracking.store.translated(place):
            tracking.store.ask(place)
    except tracking.TrackingError as error:
        message = f"{error}. Results are not affected, and nothing is logged"
        return [Finding("problem", "MLflow", message, "unset MLFLOW_TRACKING_URI  # for the project's own store")]
    return [Finding("ok", "MLflow", f"{place.name} answers")]


def database(file: Path, *, seconds: float = SECONDS_TO_READ) -> list[Finding]:
    """Check an SQLite store by reading it, for no longer than ``seconds``."""
    if not file.exists():
        return [Finding("ok", "MLflow", f"{file} is not there yet; `dvc repro` and `python -m pipeline sync` make it")]
    anew = f"mv {shlex.quote(str(file))} {shlex.quote(f'{file}.broken')} && python -m pipeline sync"
    try:
        # Read-only, so that looking at it neither creates nor repairs anything.
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=1)) as opened:
            end = time.monotonic() + seconds
            opened.set_progress_handler(lambda: time.monotonic() > end, STEPS_BETWEEN_LOOKS)
            tables = {name for (name,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            said = _damage(opened)
    except sqlite3.OperationalError as error:
        busy = "locked" in str(error)
        message = f"{file} cannot be read: {error}"
        remedy = "wait for the process that writes it, or end it" if busy else "python -m pipeline sync"
        return [Finding("warning" if busy else "problem", "MLflow", message, remedy)]
    except sqlite3.DatabaseError as error:
        return [Finding("problem", "MLflow", f"{file} is damaged: {error}", anew)]
    if said:
        return [Finding("problem", "MLflow", f"{file} is damaged: {said}", anew)]
    if "runs" not in tables:
        return [Finding("problem", "MLflow", f"{file} is a database, but none of MLflow's", anew)]
    return [Finding("ok", "MLflow", f"{file}, {file.stat().st_size / 1e6:.1f} MB, whole")]


def _damage(opened: sqlite3.Connection) -> str:
    """Return the first thing that is wrong with a database, empty if nothing is, or if time is up."""
    try:
        (first,) = next(opened.execute("PRAGMA quick_check(1)"))
    except sqlite3.OperationalError as error:
        if "interrupted" in str(error):
            return ""
        raise
    return "" if first == "ok" else str(first)


# --- kept computations ---------------------------------------------------------------------------------------------


def kept_computations() -> list[Finding]:
    """Check the size of the feature store, and whether this machine would compute what it holds."""
    from pipeline.core import provenance
    from pipeline.features import feature_store

    store = feature_store.from_environment()
    if not store.directory.is_dir():
        return [Finding("ok", "kept computations", f"none yet; at most {store.budget / 1e9:g} GB in {store.directory}")]
    if not os.access(store.directory, os.W_OK):
        remedy = "export BAKEOFF_FEATURE_STORE=/another/place"
        return [Finding("problem", "kept computations", f"{store.directory} cannot be written", remedy)]
    spaces = list(store.spaces())
    used = sum(space.bytes for space in spaces)
    said = f"{used / 1e9:.2f} of {store.budget / 1e9:g} GB in {store.directory}"
    found = [Finding("ok", "kept computations", said)]
    if used > store.budget:
        message = f"{said}: what was used longest ago is removed when the next network needs room"
        found = [Finding("warning", "kept computations", message, "export BAKEOFF_FEATURE_STORE_GB=20")]
    here = provenance.environment()
    others = [space for space in spaces if space.environment is not None and space.environment != here]
    if others:
        said = "; ".join(dict.fromkeys(_difference(space.environment, here) for space in others))
        message = (
            f"{len(others)} of {len(spaces)} networks were computed in another environment ({said}). If this one "
            "computes other values, the stage that uses them stops and says so"
        )
        found.append(Finding("warning", "kept computations", message, "python -m pipeline clean-features"))
    return found


def _difference(then: Any, now: Any) -> str:
    changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return ", ".join(f"{name} {then.get(name)}, here {now.get(name)}" for name in changed)
