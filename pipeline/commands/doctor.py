"""Look at everything that the pipeline needs, and say for each whether it is right, what is wrong, and what mends it.

Changes nothing and downloads nothing. Works where packages are missing: nothing but the standard library is imported
before a check needs more.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.audits.health import examine, examine_within, hardware, inputs, installation, leftovers, results, stores
from pipeline.console import findings
from pipeline.console.findings import Finding
from pipeline.console.progress import announce

if TYPE_CHECKING:
    from pipeline.audits.health import Check


def choices() -> list[Finding]:
    """Check params.yaml as every stage does before it starts."""
    from pipeline.config import schema
    from pipeline.core import params

    values = params.load()
    try:
        schema.check(values)
        schema.check_against_results(values, split=False)
    except params.ParamsError as error:
        return [Finding("problem", "params.yaml", line) for line in str(error).splitlines()]
    runs = params.declared_runs(values)
    return [Finding("ok", "params.yaml", f"{len(runs)} methods on {values['dataset']['source']}")]


# Subject -> what looks at it, in the order in which it is mended.
CHECKS: dict[str, Check] = {
    "Python": installation.python,
    "packages": installation.packages,
    "git": stores.git,
    "processor": hardware.processor,
    "compute": hardware.compute,
    "variables": hardware.variables,
    "disk": hardware.disk,
    "params.yaml": choices,
    "images": inputs.images,
    "weights": inputs.weights,
    "kept computations": stores.kept_computations,
    "leftovers": leftovers.leftovers,
    "DVC remotes": stores.verified_remotes,
    "results": results.results,
}
# What may be far away.
AWAY: dict[str, Check] = {"DVC remote": stores.dvc_remote, "MLflow": stores.mlflow}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Exit status 1 if there is a problem. Warnings are worth reading and stop nothing."


def main(arguments: argparse.Namespace) -> int:
    """Return 1 if there is a problem."""
    if not Path("params.yaml").is_file():
        found = [Finding("problem", "place", "no params.yaml here", "cd to the root of the project")]
    else:
        announce("looking, for a few seconds")
        found = [finding for subject, check in CHECKS.items() for finding in examine(subject, check)]
        found += [finding for each in examine_within(list(AWAY.items())) for finding in each]
    print(f"{findings.table(found)}\n\n{findings.verdict(found)}")
    return 1 if findings.count(found, "problem") else 0
