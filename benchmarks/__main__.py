"""Run benchmarks one after another and rewrite benchmarks/results.json and benchmarks/RESULTS.md.

python -m benchmarks                  all but the slowest: what `make bench` runs
python -m benchmarks features growth  some of them; rows of the others stay as they are

Each runs as a process of its own. What is measured is kept in .cache/benchmarks until all asked for is done, so that a
killed run goes on where it stopped; it is dropped when code, params.yaml, packages or machine change.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import measure, results, rows
from pipeline.commands import demo
from pipeline.console.errors import BakeoffError
from pipeline.console.progress import say
from pipeline.core import artifacts, provenance

ROOT = provenance.ROOT


@dataclass(frozen=True)
class Benchmark:
    """A module of this package. ``minutes``: about, on 2 cores, with ``repeats``."""

    what: str
    minutes: int
    repeats: int = 5
    default: bool = True


BENCHMARKS: dict[str, Benchmark] = {
    "nothing_to_do": Benchmark("`dvc repro` when nothing changed", 1),
    "checks": Benchmark("`fairness`, `sync --check` and `doctor` after the pipeline", 9, repeats=3),
    "features": Benchmark("features from files, with and without a filled store, float32 and bfloat16", 25),
    "head": Benchmark("head training with kept and with fresh views", 35),
    "fine_tune": Benchmark("fine-tuning the last third of the blocks", 30),
    "sweeps": Benchmark("default grids of classifiers", 20),
    "growth": Benchmark("1,000 to 60,000 images: time and memory", 12, repeats=1),
    "whole_pipeline": Benchmark("the default pipeline, cold, against the one before", 60, repeats=1, default=False),
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    names = options.names or [name for name, benchmark in BENCHMARKS.items() if benchmark.default]
    cache = measure.CACHE / "runs"
    kept = cache / key(options.repeats)
    for old in cache.glob("*") if cache.is_dir() else ():
        if options.fresh or old != kept:
            shutil.rmtree(old)
    minutes = sum(BENCHMARKS[name].minutes for name in names)
    say(f"{len(names)} benchmarks, about {minutes} min on 2 cores with 5 repeats")
    failed = []
    for number, name in enumerate(names, start=1):
        if not run(name, kept / f"{name}.json", repeats=options.repeats, place=f"{number}/{len(names)}"):
            failed.append(name)
    write_results([name for name in names if name not in failed], kept)
    if failed:
        say(f"Not measured: {', '.join(failed)}. The same command again goes on with them.")
        return 1
    for name in names:
        for file in kept.glob(f"{name}.*"):
            file.unlink()
    shutil.rmtree(measure.CACHE / "work", ignore_errors=True)
    return 0


def key(repeats: int | None) -> str:
    """Return what measurements of an interrupted run belong to: code, choices, environment, repeats."""
    files = sorted(file for folder in ("pipeline", "benchmarks") for file in (ROOT / folder).rglob("*.py"))
    files.append(ROOT / "params.yaml")
    digests = {file.relative_to(ROOT).as_posix(): artifacts.sha256_file(file) for file in files}
    return provenance.digest([digests, results.environment(), repeats])[:16]


def command_of(name: str) -> str:
    """Return the command that measures one benchmark alone."""
    return f"python -m benchmarks.{name}"


def run(name: str, path: Path, *, repeats: int | None, place: str) -> bool:
    """Run one benchmark, unless its rows are kept in ``path``. Returns whether they are there now."""
    benchmark = BENCHMARKS[name]
    if path.exists():
        say(f"\n{place} {name}: measured before")
        return True
    say(f"\n{place} {name}: {benchmark.what}, about {benchmark.minutes} min")
    started = time.monotonic()
    options = ["--json", str(path), "--repeats", str(repeats or benchmark.repeats)]
    environment = demo.environment() | {"PYTHONPATH": str(ROOT)}
    path.parent.mkdir(parents=True, exist_ok=True)
    status = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *options], cwd=ROOT, env=environment
    ).returncode
    if status in (130, -2):
        raise KeyboardInterrupt
    say(f"{name}: {'done' if status == 0 else 'failed'} after {(time.monotonic() - started) / 60:.1f} min")
    return status == 0 and path.exists()


def write_results(names: Sequence[str], kept: Path) -> None:
    """Put the rows of ``names`` into results.json and render RESULTS.md; without a name, leave both alone."""
    if not names:
        return
    today = datetime.date.today()
    new = {
        command_of(name): results.stamped(rows.read(kept / f"{name}.json"), command=command_of(name), day=today)
        for name in names
    }
    old = rows.read(results.JSON) if results.JSON.exists() else []
    found = results.merged(old, new, order=[command_of(name) for name in BENCHMARKS])
    results.write(found)
    say("")
    for row in found:
        if row.command in new:
            say(f"{row.claim}\n    {row.text()}")
    say(f"Written: {os.path.relpath(results.MARKDOWN)}, {os.path.relpath(results.JSON)}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--repeats", type=int, help="of every side (default: 5; checks 3; growth and whole_pipeline 1)")
    parser.add_argument("--fresh", action="store_true", help="forget what an interrupted run has measured")
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in BENCHMARKS:
            parser.error(f"unknown benchmark {name!r}. Choose from: {', '.join(BENCHMARKS)}")
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BakeoffError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
