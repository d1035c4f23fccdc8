"""Processes measured from outside, in turns, and what follows from the numbers.

Every number is of a whole process, as a user waits for it: wall-clock seconds and the peak of resident memory. Sides
that are compared take turns (ours, rival, ours, rival, ...), so that a machine that slows down slows down both, and
ratios are taken within a turn.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.rows import Row
from pipeline.console.errors import BakeoffError
from pipeline.console.progress import say
from pipeline.core import artifacts, provenance

CACHE = provenance.ROOT / ".cache" / "benchmarks"
SECONDS_BETWEEN_LINES = 15.0
LINES_OF_A_FAILURE = 15


class BenchmarkError(BakeoffError):
    """A benchmark cannot be measured here; the message says why."""


class Run(NamedTuple):
    """One process: wall-clock seconds from start to end, and the largest resident memory in GB.

    Of several processes under one, the largest counts. On Linux the peak begins with what the parent held when it
    started the process, so benchmarks themselves import nothing large.
    """

    seconds: float
    peak_gb: float


@dataclass(frozen=True)
class Job:
    """A process to measure. ``before`` is done ahead of every run, untimed; ``outputs`` must exist afterwards.

    ``reading`` returns the seconds that the process itself measured, where its whole time is not what is asked for.
    """

    name: str
    command: Sequence[str]
    directory: Path
    environment: Mapping[str, str]
    before: Callable[[], None] = lambda: None
    outputs: Sequence[Path] = field(default=())
    reading: Callable[[], float] | None = None


def guarded(main: Callable[[], None]) -> int:
    """Run a benchmark; return the exit status. What the user can mend is printed as one message."""
    try:
        main()
    except BakeoffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def cores() -> int:
    """Return how many cores this process may use: what every side of a comparison is given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parser(description: str | None, *, repeats: int = 5) -> argparse.ArgumentParser:
    """Return the options that every benchmark has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, help="write the rows here; a killed run with the same file goes on")
    options.add_argument("--repeats", type=int, default=repeats, help="runs of every side (default: %(default)s)")
    return options


class Journal:
    """The measurements of one benchmark so far. Kept in a file after each, so a killed benchmark goes on with the next.

    ``path`` None keeps nothing.
    """

    def __init__(self, path: Path | None):
        self._path = path
        self._kept: dict[str, list[float]] = artifacts.read_json(path) if path and path.exists() else {}

    @classmethod
    def beside(cls, rows: Path | None) -> Journal:
        """Return the journal of the benchmark that writes its rows to ``rows``."""
        return cls(rows.with_suffix(".journal.json") if rows else None)

    def take(self, key: str, measured: Callable[[], Run]) -> Run:
        """Return the measurement called ``key``, taking it now unless it is here already."""
        if key not in self._kept:
            self._kept[key] = list(measured())
            if self._path:
                artifacts.write_json(self._path, self._kept)
        return Run(*self._kept[key])


def alternate(jobs: Sequence[Job], *, repeats: int, journal: Journal) -> dict[str, list[Run]]:
    """Measure every job once a turn, ``repeats`` turns; return {name: runs}, the runs in the order of the turns."""
    if repeats < 1:
        raise BenchmarkError(f"--repeats must be at least 1, received {repeats}")
    runs: dict[str, list[Run]] = {job.name: [] for job in jobs}
    for turn in range(1, repeats + 1):
        for job in jobs:
            taken = journal.take(f"{job.name}/{turn}", lambda job=job: measure(job))
            say(f"  {turn}/{repeats} {job.name}: {taken.seconds:.4g} s, {taken.peak_gb:.2f} GB")
            runs[job.name].append(taken)
    return runs


def measure(job: Job) -> Run:
    """Run a job once. Raises BenchmarkError with the end of what it said if it fails or leaves an output out."""
    job.before()
    CACHE.mkdir(parents=True, exist_ok=True)
    log = CACHE / "last.log"
    with log.open("wb") as said:
        started = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in job.command],
            cwd=job.directory,
            env=dict(job.environment),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        run = _wait(process, job.name, started)
    missing = [str(path) for path in job.outputs if not path.exists()]
    if process.returncode or missing:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES_OF_A_FAILURE:]
        problem = f"failed with status {process.returncode}" if process.returncode else f"did not write {missing}"
        raise BenchmarkError(f"{job.name} {problem}. It said last:\n" + "\n".join(f"  {line}" for line in lines))
    return run._replace(seconds=job.reading()) if job.reading else run


def _wait(process: subprocess.Popen, name: str, started: float) -> Run:
    """Wait for a process to end, saying every few seconds that it goes on; kill it if this one is interrupted."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(SECONDS_BETWEEN_LINES):
            say(f"    {name}: {time.perf_counter() - started:.0f} s")

    threading.Thread(target=beat, daemon=True).start()
    try:
        # wait4 and not Popen.wait: the usage of this child alone, of which the kernel keeps the peak.
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        done.set()
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(seconds, usage.ru_maxrss * unit / 1e9)


# --- what follows --------------------------------------------------------------------------------------------------


def seconds(runs: Sequence[Run]) -> float:
    """Return the median of the wall-clock seconds."""
    return statistics.median(run.seconds for run in runs)


def ratio_row(claim: str, *, ours: Sequence[Run], rival: Sequence[Run], target: float | None, detail: str = "") -> Row:
    """Return how many times faster ours is than the rival: median, smallest and largest of the turns' ratios."""
    ratios = [slow.seconds / fast.seconds for fast, slow in zip(ours, rival, strict=True)]
    text = f"{seconds(ours):.1f} s against {seconds(rival):.1f} s" + (f"; {detail}" if detail else "")
    return rated(claim, ratios, target=target, detail=text)


def rated(claim: str, ratios: Sequence[float], *, target: float | None, detail: str = "") -> Row:
    """Return a row of ratios, one a turn, of which more is better."""
    return Row(
        claim=claim,
        ratio=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
        n=len(ratios),
        target=target,
        detail=detail,
    )


def valued(claim: str, values: Sequence[float], *, unit: str, target: float | None = None, detail: str = "") -> Row:
    """Return a row of values, of which less is better: seconds, memory."""
    return Row(
        claim=claim,
        value=statistics.median(values),
        unit=unit,
        low=min(values),
        high=max(values),
        n=len(values),
        target=target,
        detail=detail,
    )


class Line(NamedTuple):
    """Seconds of a process as start-up plus so much an image."""

    start: float
    per_image: float

    def at(self, images: int) -> float:
        return self.start + self.per_image * images


def line(few: tuple[int, float], many: tuple[int, float]) -> Line:
    """Return the line through two (images, seconds). Raises BenchmarkError unless more images took longer."""
    if many[0] <= few[0] or many[1] <= few[1]:
        raise BenchmarkError(f"{many[0]} images took {many[1]:.1f} s, {few[0]} took {few[1]:.1f} s: too noisy to tell")
    per_image = (many[1] - few[1]) / (many[0] - few[0])
    return Line(few[1] - per_image * few[0], per_image)


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Return p of the power law times ~ sizes ** p, the slope of a least-squares line through the logarithms."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in times]
    return statistics.linear_regression(x, y).slope
