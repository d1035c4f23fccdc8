"""`dvc repro` when nothing changed.

python -m benchmarks.nothing_to_do [--json FILE] [--repeats 5]

Measured in the project itself, whose pipeline must have run (`make repro`): it does nothing there.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks import measure, rows
from pipeline.commands import demo
from pipeline.core import provenance


def main(arguments: list[str] | None = None) -> None:
    options = measure.parser(__doc__).parse_args(arguments)
    environment = demo.environment()
    status = subprocess.run(["dvc", "status", "--quiet"], cwd=provenance.ROOT, env=environment, capture_output=True)
    if status.returncode:
        raise measure.BenchmarkError("There is something to do here, see `dvc status`: run `make repro` first")
    job = measure.Job("dvc repro", ["dvc", "repro"], provenance.ROOT, environment)
    runs = measure.alternate([job], repeats=options.repeats, journal=measure.Journal.beside(options.json))
    values = [run.seconds for run in runs["dvc repro"]]
    rows.report([measure.valued("nothing to do: `dvc repro`", values, unit="s", target=4)], options.json)


if __name__ == "__main__":
    sys.exit(measure.guarded(main))
