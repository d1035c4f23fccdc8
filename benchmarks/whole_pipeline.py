"""The whole default pipeline, cold, environment ready, against the same pipeline before frozen computation moved.

python -m benchmarks.whole_pipeline [--json FILE] [--repeats 1]

Takes about an hour, so `make bench` leaves it out. All are clones with nothing in their caches. The ratio is of equal
choices, those of the older params.yaml: ours gets every value of it, and what only ours knows keeps today's value and
is named. Since then the defaults train for more epochs, which makes ours slower and would make the older one slower
still; what the pipeline takes as it is today is measured apart.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks import measure, rows
from pipeline.commands import demo
from pipeline.config import params_file
from pipeline.console.progress import say
from pipeline.core import params, provenance

# The last commit at which training ran the frozen part of a network in TensorFlow, and nothing was kept.
BEFORE = "0cf356b"
MOST_SECONDS = 900


def main(arguments: list[str] | None = None) -> None:
    options = measure.parser(__doc__, repeats=1).parse_args(arguments)
    work = measure.CACHE / "work" / "whole_pipeline"
    jobs = [
        job("today", work / "today", clone_now),
        job("ours", work / "ours", clone_now_with_the_choices_before),
        job(f"at {BEFORE}", work / "before", clone_before),
    ]
    runs = measure.alternate(jobs, repeats=options.repeats, journal=measure.Journal.beside(options.json))
    today, ours, before = (runs[one.name] for one in jobs)
    rows.report(
        [
            measure.ratio_row(
                f"whole pipeline, cold, with the choices of {BEFORE}: the same pipeline then",
                ours=ours,
                rival=before,
                target=2,
            ),
            measure.valued(
                "whole default pipeline, cold", [run.seconds for run in today], unit="s", target=MOST_SECONDS
            ),
        ],
        options.json,
    )


def job(name: str, directory: Path, clone: Any) -> measure.Job:
    """Return `dvc repro` in a clone that is made anew before each run."""

    def before() -> None:
        shutil.rmtree(directory, ignore_errors=True)
        directory.parent.mkdir(parents=True, exist_ok=True)
        clone(directory)

    environment = demo.environment() | {"BAKEOFF_FEATURE_STORE": str(directory / ".cache" / "features")}
    directory.mkdir(parents=True, exist_ok=True)
    return measure.Job(name, ["dvc", "repro"], directory, environment, before, [directory / "results/leaderboard.json"])


def clone_now(directory: Path) -> None:
    """Copy the project as it is, uncommitted changes included, without results."""
    demo.copy_project(provenance.ROOT, directory, leave_out=demo.RESULTS)
    params_file.override(directory / params.PARAMS_FILE, {"compute.threads": measure.cores()})
    demo.commit(directory, "Now")


def clone_now_with_the_choices_before(directory: Path) -> None:
    """Like `clone_now`, with the values of params.yaml at `BEFORE` where both know them."""
    now = params.load(provenance.ROOT / params.PARAMS_FILE)
    then = yaml.safe_load(_git("-C", str(provenance.ROOT), "show", f"{BEFORE}:{params.PARAMS_FILE}"))
    demo.copy_project(provenance.ROOT, directory, leave_out=demo.RESULTS)
    # `compute` says how to compute, not what.
    choices = {key: value for key, value in common_values(then, now) if not key.startswith("compute.")}
    params_file.override(directory / params.PARAMS_FILE, choices | {"compute.threads": measure.cores()})
    say(f"  at {BEFORE} there is no {', '.join(unknown_keys(now, then)) or 'value that it does not know'}")
    demo.commit(directory, "Now, with the choices before")


def clone_before(directory: Path) -> None:
    """Clone the project at `BEFORE`, without results."""
    _git("clone", "--quiet", "--no-checkout", str(provenance.ROOT), str(directory))
    _git("-C", str(directory), "checkout", "--quiet", BEFORE)
    for path in demo.RESULTS:
        shutil.rmtree(directory / path) if (directory / path).is_dir() else (directory / path).unlink(missing_ok=True)
    params_file.override(directory / params.PARAMS_FILE, {"compute.threads": measure.cores()})


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, env=demo.environment())
    if done.returncode:
        raise measure.BenchmarkError(f"`git {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


def common_values(values: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value of ``values``) of every value that both have."""
    for key in values.keys() & other.keys():
        if isinstance(values[key], Mapping) and isinstance(other[key], Mapping):
            yield from common_values(values[key], other[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", values[key]


def unknown_keys(now: Mapping[str, Any], then: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys that only ``now`` has."""
    for key, value in now.items():
        if key not in then:
            yield f"{prefix}{key}"
        elif isinstance(value, Mapping) and isinstance(then[key], Mapping):
            yield from unknown_keys(value, then[key], f"{prefix}{key}.")


if __name__ == "__main__":
    sys.exit(measure.guarded(main))
