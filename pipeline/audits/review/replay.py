"""Execute the stages of a clone once, from nothing, and say how long the rest will take."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import tracking
from pipeline.audits.review import clones, locks, materials
from pipeline.audits.review.locks import Stage
from pipeline.console.progress import announce
from pipeline.core import artifacts, provenance

# Of earlier replays on this machine, in the project's git-ignored cache; times are in no output of DVC.
DURATIONS = Path(".cache/review/durations.json")
SECONDS_BETWEEN_LINES = 30.0
TAIL_LINES = 15
# By the reviewer's code: the reviewed one may know of no record. It prepares its process as every stage does.
ENVIRONMENT_RECORD = """
import json
from pathlib import Path
import numpy, scipy.linalg
import pipeline.__main__
from pipeline.console import machine; from pipeline.core import provenance
print(json.dumps({"decisive": provenance.environment(), **machine.record(Path())}))
"""
# How much slower or faster than before a whole replay is believed to be: short stages say little of long ones.
MOST_UNEXPECTED = 3.0
# The same where nothing is known but TYPICAL: other images, networks and params may take much longer.
MOST_UNEXPECTED_OF_A_GUESS = 30.0
# Seconds of the default data set on 2 cores, by kind of stage: what counts is how they compare with each other.
TYPICAL: Mapping[str, float] = {
    "dataset": 10,
    "split": 2,
    "backbone": 11,
    "features": 23,
    "as_is": 18,
    "sweep": 10,
    "head": 76,
    "fine_tune": 210,
    "scratch": 285,
    "explain": 28,
    "compare": 13,
    "track": 26,
}


@dataclass(frozen=True)
class Executed:
    """One execution of a stage. ``digests``: of its outputs, None for one that is not there. ``failure``: the end of
    what it said if it failed, else None."""

    stage: str
    seconds: float
    digests: Mapping[str, str | None]
    failure: str | None


@dataclass
class Clock:
    """How long stages take: ``known`` from before, ``done`` in this replay."""

    known: Mapping[str, float]
    done: dict[str, float] = field(default_factory=dict)

    def left(self, waiting: Sequence[str], *, running: float = 0.0) -> str:
        """Return, in words, how long the stages in ``waiting`` take, of which the first has run for ``running``.

        By earlier durations, else by those of the default data set, scaled by how this replay compares with them.
        """
        if not waiting:
            return "nothing left"
        guessed = [name for name in waiting if name not in self.known]
        current, *later = (self._pace() * self._expected(name) for name in waiting)
        how = (
            ""
            if not guessed
            else (
                ", guessed by the default data set"
                if len(guessed) == len(waiting)
                else f", {len(guessed)} of {len(waiting)} stages guessed"
            )
        )
        if running <= current:
            return f"about {spoken(current - running + sum(later))} left{how}"
        return "longer than expected" + (f"; then about {spoken(sum(later))} left{how}" if later else "")

    def _expected(self, name: str) -> float:
        return self.known.get(name, TYPICAL.get(name.partition("@")[0], 30.0))

    def _pace(self) -> float:
        """Return how many times longer this replay takes than expected, by the stages that are done."""
        measured = [name for name in self.done if name in self.known] or list(self.done)
        expected = sum(map(self._expected, measured))
        if not expected:
            return 1.0
        limit = MOST_UNEXPECTED if measured[0] in self.known else MOST_UNEXPECTED_OF_A_GUESS
        return min(max(sum(self.done[name] for name in measured) / expected, 1 / limit), limit)


class Replay:
    """Executes stages in a clone. Nothing is taken from anywhere else: no run cache, an empty feature store, an MLflow
    store of its own. ``place``: a temporary directory of this object's own."""

    def __init__(self, clone: Path, place: Path, clock: Clock):
        self.clone = clone
        self.clock = clock
        self._place = place
        self._repeats = 0
        place.mkdir(parents=True, exist_ok=True)

    def execute(self, stage: Stage, *, waiting: Sequence[str], count: str) -> Executed:
        """Run a stage as dvc.yaml says, its outputs removed first, and digest what it wrote.

        ``waiting``: names of the stages after it. ``count``: which one of how many it is, for the console.
        """
        for path in stage.outs:
            materials.remove(self.clone / path)
        announce(f"[{count}] {stage.name}: {self.clock.left([stage.name, *waiting])}")
        done = self._run(stage, self._environment("first"), waiting=waiting)
        self.clock.done[stage.name] = done.seconds
        return done

    @contextlib.contextmanager
    def again(self, stage: Stage, *, inputs: Mapping[str, Path], why: str) -> Iterator[Executed]:
        """Run a stage once more, and yield while its outputs of this time lie in the clone; then those of the first
        time are back.

        With empty caches: what the first run kept must not make the second one equal. ``inputs``: {path: what lies
        there this time}; all else is read as it lies in the clone.
        """
        aside = self._place / "aside"
        changed = [*stage.outs, *inputs, ".cache"]
        kept = [path for path in changed if (self.clone / path).exists()]
        for path in kept:
            _move(self.clone / path, aside / path)
        try:
            for path, source in inputs.items():
                materials.copy(source, self.clone / path)
            announce(f"{stage.name} once more: {why}")
            self._repeats += 1
            yield self._run(stage, self._environment(f"again-{self._repeats}"), waiting=())
        finally:
            for path in changed:
                materials.remove(self.clone / path)
            for path in kept:
                _move(aside / path, self.clone / path)

    def environment_record(self) -> dict[str, Any] | None:
        """Return the record of the environment that the stages had, taken by a process that is started as they are;
        None if it fails."""
        command = [sys.executable, "-P", "-c", ENVIRONMENT_RECORD]
        environment = {**self._environment("record"), "PYTHONPATH": str(provenance.ROOT)}
        done = subprocess.run(command, cwd=self.clone, env=environment, capture_output=True, encoding="utf-8")
        try:
            return json.loads(done.stdout) if done.returncode == 0 else None
        except ValueError:
            return None

    def _run(self, stage: Stage, environment: Mapping[str, str], *, waiting: Sequence[str]) -> Executed:
        log = self._place / "log.txt"
        log.unlink(missing_ok=True)
        started = time.monotonic()
        said = [started]

        def tick() -> None:
            now = time.monotonic()
            left = self.clock.left([stage.name, *waiting], running=now - started)
            text = f"{stage.name}: {spoken(now - started)}; {left}"
            if sys.stderr.isatty():
                print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
            elif now - said[0] >= SECONDS_BETWEEN_LINES:
                said[0] = now
                announce(text)

        try:
            status = clones.run(stage.command, cwd=self.clone, environment=environment, log=log, tick=tick)
        finally:
            if sys.stderr.isatty():
                print("\r\033[K", end="", file=sys.stderr, flush=True)
        seconds = time.monotonic() - started
        digests = {path: locks.digest(self.clone / path) for path in stage.outs}
        return Executed(stage.name, seconds, digests, self._failure(log, status))

    def _failure(self, log: Path, status: int) -> str | None:
        if status == 0:
            return None
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-TAIL_LINES:]
        return without_places("\n".join(lines), self.clone) or f"status {status}, without a word"

    def _environment(self, name: str) -> dict[str, str]:
        place = self._place / name
        (place / "mlflow").mkdir(parents=True, exist_ok=True)
        database = place / "mlflow" / "mlflow.db"
        return clones.environment(
            BAKEOFF_FEATURE_STORE=str(place / "features"), MLFLOW_TRACKING_URI=tracking.Store.at(database).uri
        )


def without_places(text: str, clone: Path) -> str:
    """Return what a stage said without the places of this machine, so that a review can be committed."""
    for place, name in (
        (clone, "."),
        (Path(sys.prefix), "<environment>"),
        (Path().absolute(), "<project>"),
        (Path.home(), "~"),
    ):
        text = text.replace(str(place), name) if len(str(place)) > 1 else text
    return text


def spoken(seconds: float) -> str:
    """Return a duration as people say it."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def known_durations(project: Path) -> dict[str, float]:
    """Return {stage: seconds} of earlier replays; nothing where there were none, or where the file is damaged."""
    try:
        found = json.loads((project / DURATIONS).read_text(encoding="utf-8"))
        return {name: float(seconds) for name, seconds in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def keep_durations(project: Path, done: Mapping[str, float]) -> None:
    """Add what stages took to what is known of them, for the next replay's guess."""
    rounded = {name: round(seconds, 1) for name, seconds in done.items()}
    artifacts.write_json(project / DURATIONS, known_durations(project) | rounded)


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
