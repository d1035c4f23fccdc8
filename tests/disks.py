"""Small file systems of their own, which tests can fill to the last byte."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(place: Path, *, kilobytes: int) -> Iterator[Path]:
    """Mount a file system of so many kilobytes at ``place``. Skips where this user may not mount."""
    if os.geteuid() != 0:
        pytest.skip("needs to be root to mount a small file system")
    place.mkdir(exist_ok=True)
    options = f"size={kilobytes}k,mode=755"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs to mount a small file system: {done.stderr.strip()}")
    try:
        yield place
    finally:
        # Lazily: a server that a test left behind must not keep the rest of the tests from running.
        subprocess.run(["umount", "-l", place], check=True)
