"""The whole default pipeline, cold, environment ready, against the same pipeline before frozen computation moved.

python -m benchmarks.whole_pipeline [--json FILE] [--repeats 1]

Takes about an hour, so `make bench` leaves it out. Both are clones with nothing in their caches, at the same choices:
the older one gets every value of today's params.yaml that it knows, and what it does not know is named.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import measure, rows
from pipeline import params, provenance
from pipeline.commands import demo
from pipeline.progress import say

# The last commit at which training ran the frozen part of a network in TensorFlow, and nothing was kept.
BEFORE = "0cf356b"
MOST_SECONDS = 900


def main(arguments: list[str] | None = None) -> None:
    options = measure.parser(__doc__, repeats=1).parse_args(arguments)
    work = measure.CACHE / "work" / "whole_pipeline"
    jobs = [job("ours", work / "ours", clone_now), job(f"at {BEFORE}", work / "before", clone_before)]
    runs = measure.alternate(jobs, repeats=options.repeats, journal=measure.Journal.beside(options.json))
    ours, before = (runs[one.name] for one in jobs)
    rows.report(
        [
            measure.ratio_row("whole default pipeline, cold: the same before", ours=ours, rival=before, target=2),
            measure.valued(
                "whole default pipeline, cold", [run.seconds for run in ours], unit="s", target=MOST_SECONDS
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
    demo.override_params(directory / params.PARAMS_FILE, {"compute.threads": measure.cores()})
    demo.commit(directory, "Now")


def clone_before(directory: Path) -> None:
    """Clone the project at `BEFORE`, with today's choices as far as it knows them."""
    for command in (
        ["git", "clone", "--quiet", "--no-checkout", str(provenance.ROOT), str(directory)],
        ["git", "-C", str(directory), "checkout", "--quiet", BEFORE],
    ):
        done = subprocess.run(command, capture_output=True, text=True, env=demo.environment())
        if done.returncode:
            raise measure.BenchmarkError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    for path in demo.RESULTS:
        shutil.rmtree(directory / path) if (directory / path).is_dir() else (directory / path).unlink(missing_ok=True)
    now, then = params.load(provenance.ROOT / params.PARAMS_FILE), params.load(directory / params.PARAMS_FILE)
    common, unknown = dict(common_values(now, then)), list(unknown_keys(now, then))
    demo.override_params(directory / params.PARAMS_FILE, common | {"compute.threads": measure.cores()})
    say(f"  at {BEFORE} there is no {', '.join(unknown) or 'value that it does not know'}")


def common_values(now: Mapping[str, Any], then: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value of ``now``) of every value that both have."""
    for key in now.keys() & then.keys():
        if isinstance(now[key], Mapping) and isinstance(then[key], Mapping):
            yield from common_values(now[key], then[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", now[key]


def unknown_keys(now: Mapping[str, Any], then: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys that only ``now`` has."""
    for key, value in now.items():
        if key not in then:
            yield f"{prefix}{key}"
        elif isinstance(value, Mapping) and isinstance(then[key], Mapping):
            yield from unknown_keys(value, then[key], f"{prefix}{key}.")


if __name__ == "__main__":
    sys.exit(measure.guarded(main))
