"""What interrupted runs have left: locks that nobody holds, files half written, workspaces of experiments."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.audits.health.installation import listed
from pipeline.console.findings import Finding

DVC_LOCKS = Path(".dvc/tmp/rwlock")
GIT_LOCKS = ("index.lock", "HEAD.lock", "config.lock")
WORKSPACES = Path(".dvc/tmp/exps/standalone")
# Folders in which stages write, into a neighbor called .NAME.RANDOM, until it is whole. Others in data/ are the user's.
IN_DATA = ("", "split", "backbones", "features")
IN_RESULTS = ("", "runs", "as_is", "figures", "data")


def leftovers() -> list[Finding]:
    found, running = dvc_locks()
    found += [
        Finding("warning", "leftovers", f".git/{name}: git was killed, or is at work", f"rm .git/{name}")
        for name in GIT_LOCKS
        if (Path(".git") / name).is_file()
    ]
    unfinished = sorted(path.as_posix() for path in _unfinished())
    if unfinished and not running:
        message = f"half written by a stage that was killed: {listed(unfinished)}"
        found.append(Finding("warning", "leftovers", message, f"rm -r {' '.join(map(shlex.quote, unfinished))}"))
    if WORKSPACES.is_dir() and not running:
        places = sorted(path.as_posix() for path in WORKSPACES.iterdir() if path.is_dir())
        if places:
            message = f"{len(places)} workspaces of experiments that were interrupted"
            found.append(Finding("warning", "leftovers", message, f"rm -r {' '.join(map(shlex.quote, places))}"))
    return found or [Finding("ok", "leftovers", "none" + (f"; running now: {running}" if running else ""))]


def dvc_locks() -> tuple[list[Finding], str]:
    """Return what is wrong with DVC's list of who reads and writes what, and the command of one who runs now."""
    try:
        entries = list(_holders(json.loads(DVC_LOCKS.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        return [], ""
    except (ValueError, AttributeError, TypeError, KeyError):
        message = f"{DVC_LOCKS} is damaged, and DVC will start nothing"
        return [Finding("problem", "leftovers", message, f"rm {DVC_LOCKS}")], ""
    running, dead, strange = "", set(), set()
    for pid, command in entries:
        actual = _command_of(pid)
        if actual is None:
            dead.add(pid)
        elif "dvc" in actual or "pipeline" in actual:
            running = command
        else:
            strange.add(pid)
    found = []
    if strange:
        message = (
            f"{DVC_LOCKS} says that process {min(strange)} holds files, but that number belongs to another program "
            "by now: DVC would wait for it"
        )
        found.append(Finding("problem", "leftovers", message, f"rm {DVC_LOCKS}"))
    elif dead:
        message = f"{DVC_LOCKS} names process {min(dead)}, which is no more; DVC takes it out itself"
        found.append(Finding("ok", "leftovers", message))
    return found, running


def _holders(locks: Any) -> Iterator[tuple[int, str]]:
    """Yield process and command of every reader and writer in DVC's file. Raises if it is of another form."""
    for readers in locks.get("read", {}).values():
        yield from ((int(reader["pid"]), str(reader["cmd"])) for reader in readers)
    for writer in locks.get("write", {}).values():
        yield int(writer["pid"]), str(writer["cmd"])


def _command_of(pid: int) -> str | None:
    import psutil

    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.AccessDenied:
        return ""
    except psutil.Error:
        return None


def _unfinished() -> Iterator[Path]:
    places = [*(Path("data") / name for name in IN_DATA), *(Path("results") / name for name in IN_RESULTS)]
    for place in places:
        if place.is_dir():
            yield from place.glob(".?*.?*")
