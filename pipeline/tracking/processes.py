"""Whether the process that logs a live run still runs."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import psutil


def start_of(pid: int) -> str:
    """Return when a process started, as text: its number alone may have been given to a later process.

    Raises psutil.Error if there is no such process.
    """
    return f"{psutil.Process(pid).create_time():.2f}"


def is_alive(tags: Mapping[str, str]) -> bool:
    """Return whether the process in a run's tags runs. On another host nobody can tell, so it counts as alive."""
    if tags.get("host") != socket.gethostname():
        return True
    try:
        return start_of(int(tags["pid"])) == tags["process_start"]
    except (psutil.Error, KeyError, ValueError):
        return False
