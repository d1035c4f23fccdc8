"""Whether the process that logs a live run still runs: here it is looked up, on other machines it gives signs of life.

The names of hosts decide nothing: two machines, or two containers, may share one and mean two processes by one pid.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import psutil

# Between two signs of life of a writer, and after how many without one it counts as dead where nobody can look it up.
SECONDS_BETWEEN_SIGNS = 60.0
SECONDS_ALIVE = 600
SIGN = "seen"
_PROC = Path("/proc")


def tags_of(pid: int) -> dict[str, str]:
    """Return the tags by which `is_alive` knows a process that logs a run."""
    tags = dict([("machine", machine()), ("pid", str(pid)), sign()])
    with contextlib.suppress(OSError, psutil.Error):  # It ended already; a run without this tag counts as dead.
        tags["process_start"] = start_of(pid)
    return tags


def sign() -> tuple[str, str]:
    """Return the tag that says that the writer of a run lives now."""
    return SIGN, f"{time.time():.0f}"


def is_alive(tags: Mapping[str, str]) -> bool:
    """Return whether the process in a run's tags runs; if it is none of this machine, whether it was seen of late."""
    if tags.get("machine") != machine():
        seen = tags.get(SIGN, "")
        return seen.isdecimal() and abs(time.time() - int(seen)) < SECONDS_ALIVE
    try:
        return start_of(int(tags["pid"])) == tags["process_start"]
    except (OSError, psutil.Error, KeyError, ValueError):
        return False


def machine() -> str:
    """Return what tells apart all places with process ids of their own: running systems, and containers in them.

    A digest, which gives nothing away.
    """
    try:
        place = f"{(_PROC / 'sys/kernel/random/boot_id').read_text()} {os.readlink(_PROC / 'self/ns/pid')}"
    except OSError:  # Not Linux.
        place = f"{socket.gethostname()} {uuid.getnode()}"
    return hashlib.sha256(place.encode()).hexdigest()[:16]


def start_of(pid: int) -> str:
    """Return when a process started, as text: its number alone may have been given to a later process.

    Raises OSError or psutil.Error if there is no such process.
    """
    if (_PROC / "self/stat").exists():
        # In ticks since the system started, which setting its clock does not change; after the name in parentheses.
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
    return f"{psutil.Process(pid).create_time():.2f}"
