"""Watches one piece of work that cannot report from within: says that it goes on, and ends a process that never ends.

A time limit must not decide a result, or a slow machine would choose another candidate than a fast one. So what takes
too long is not skipped: it stops the stage, and whoever set the limit decides what to change.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Iterator

from pipeline.console import progress
from pipeline.console.errors import BakeoffError

CANDIDATE_TIMEOUT = "BAKEOFF_CANDIDATE_TIMEOUT"
DEFAULT_SECONDS = 3600.0
STATUS = 124  # as of the command `timeout`
GRACE = 10.0  # seconds for a thread to end the process; native code that never lets one run is ended without words


class TimeoutSettingError(BakeoffError):
    """The limit in the environment is no number of seconds."""


def candidate_timeout() -> float:
    """Return how many seconds the environment gives one candidate. It changes no result, so params.yaml has none.

    Raises TimeoutSettingError.
    """
    text = os.environ.get(CANDIDATE_TIMEOUT, str(DEFAULT_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise TimeoutSettingError(f"{CANDIDATE_TIMEOUT} must be a number of seconds above 0, received {text!r}")
    return seconds


@contextlib.contextmanager
def watched(label: str, *, timeout: float = math.inf, advice: str = "") -> Iterator[None]:
    """Say every few seconds that the body goes on; after ``timeout`` seconds say ``advice`` and end the process.

    Native code cannot be interrupted from Python, so the process ends at once, without cleaning up: safe where
    everything that is kept is written whole.
    """
    started, done = time.monotonic(), threading.Event()

    def watch() -> None:
        while True:
            passed = time.monotonic() - started
            if done.wait(min(progress.SECONDS_BETWEEN_LINES, max(0.0, timeout - passed))):
                return
            passed = time.monotonic() - started
            if passed < timeout:
                progress.announce(f"{label}: {passed:.0f} s")
                continue
            progress.announce(f"error: {label}: stopped after {passed:.0f} s. {advice}".rstrip())
            sys.stdout.flush()
            os._exit(STATUS)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    if timeout < threading.TIMEOUT_MAX / 2:
        faulthandler.dump_traceback_later(timeout + GRACE, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        done.set()
        thread.join()
