"""What `fairness`, `sync --check` and `doctor` cost beside the pipeline.

python -m benchmarks.checks [--json FILE] [--repeats 3]

Measured in the project itself, whose pipeline must have run (`make repro`): they change none of its results. `fairness`
writes results/fairness/, which git ignores.
"""

from __future__ import annotations

import sys

from benchmarks import measure, rows
from pipeline.commands import demo
from pipeline.core import provenance

COMMANDS = ("fairness", "sync --check", "doctor")
MOST_SECONDS = 180


def main(arguments: list[str] | None = None) -> None:
    options = measure.parser(__doc__, repeats=3).parse_args(arguments)
    jobs = [
        measure.Job(name, [sys.executable, "-m", "pipeline", *name.split()], provenance.ROOT, demo.environment())
        for name in COMMANDS
    ]
    runs = measure.alternate(jobs, repeats=options.repeats, journal=measure.Journal.beside(options.json))
    rows.report(claims(runs), options.json)


def claims(runs: dict[str, list[measure.Run]]) -> list[rows.Row]:
    """Return the seconds of all commands together, which have a target, and of each."""
    together = [sum(run.seconds for run in turn) for turn in zip(*runs.values(), strict=True)]
    names = ", ".join(f"`{name}`" for name in runs)
    return [
        measure.valued(f"on the default data set, one after another: {names}", together, unit="s", target=MOST_SECONDS),
        *(
            measure.valued(f"on the default data set: `{name}`", [run.seconds for run in each], unit="s")
            for name, each in runs.items()
        ),
    ]


if __name__ == "__main__":
    sys.exit(measure.guarded(main))
