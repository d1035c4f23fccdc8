"""What a running stage tells the outside: progress on the console, steps to a log.

Progress goes to standard error: a bar on a terminal, otherwise a plain line every few seconds, so that a log file
stays readable and nobody looks at a silent screen.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 5.0


class Log(Protocol):
    """Receives what a stage learns while it runs. Implementations never raise: a log never fails a stage."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one finished step: an epoch, or a candidate of a sweep."""


class NoLog:
    """A log that keeps nothing."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        pass


def say(message: str) -> None:
    """Print one line now, also when standard output is a pipe."""
    print(message, flush=True)


def announce(message: str) -> None:
    """Say on standard error what is about to take seconds: progress, not a result."""
    print(message, file=sys.stderr, flush=True)


def progress(items: Iterable[Item], *, total: int, label: str, unit: str = "") -> Iterator[Item]:
    """Yield ``items`` while showing how many of ``total`` are done and how long the rest will take."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=label, unit=f" {unit}" if unit else "it", leave=False)
        return
    started = shown = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - shown >= SECONDS_BETWEEN_LINES and done < total:
            shown = now
            left = (now - started) / done * (total - done)
            announce(f"{label}: {done}/{total} {unit}".rstrip() + f", about {left:.0f} s left")
