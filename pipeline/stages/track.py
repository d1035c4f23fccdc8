"""Fill MLflow from the records, so that a finished `dvc repro` leaves it complete.

The marker says which records the store was filled from. It lies beside the store and is deleted with it, so that the
next `dvc repro` fills a new one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline import artifacts, identity, metrics, params, provenance, tracking
from pipeline.params import Params, Run
from pipeline.progress import Log, say

# The keys of every run, because the identity of what a run was computed from contains them.
READS = ("seed", "dataset", "split", "images", "compute", "selection", "backbones", "backbone", "classifiers",
         "augmentation", "head", "fine_tune", "scratch", "compare")  # fmt: skip
FIGURES = artifacts.RESULTS / "figures"
MARKER = Path(".mlflow/tracked.json")
INPUTS = (str(artifacts.MANIFEST), str(artifacts.RUNS), str(artifacts.LEADERBOARD), str(FIGURES))
OUTPUTS = (str(MARKER),)


def main(params: Params, *, log: Log) -> None:
    comparison = collect(params)
    try:
        say(f"MLflow: {fill(comparison)}")
    except tracking.TrackingError as error:
        print(
            f"warning: {error}. The results are not affected; `python -m pipeline sync` fills MLflow later.",
            file=sys.stderr,
        )
    artifacts.write_json(
        MARKER,
        {
            "leaderboard": artifacts.sha256_file(artifacts.LEADERBOARD),
            "runs": {method.record.name: method.record_digest for method in comparison.methods},
        },
    )


def fill(comparison: tracking.Comparison) -> tracking.Report:
    """Add what the store lacks and print what a person must know. Raises TrackingError."""
    report = tracking.sync(tracking.locate(), comparison)
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return report


def collect(params: Params) -> tracking.Comparison:
    """Return every declared run with its metrics, best first as the leaderboard has them."""
    values = params.declared()
    board = {entry["run"]: entry for entry in artifacts.read_json(artifacts.LEADERBOARD)}
    runs = {run.name: run for run in params_module_runs(values)}
    if missing := runs.keys() - board.keys():
        raise artifacts.ArtifactError(
            f"{artifacts.LEADERBOARD} lacks {', '.join(sorted(missing))}: run `dvc repro`"
        )
    sha256 = identity.remembering()
    methods = [_method(runs[name], board[name], params, sha256) for name in board if name in runs]
    return tracking.Comparison(
        dataset=values["dataset"]["source"],
        parts=tuple(_part(name) for name in artifacts.PARTS),
        methods=tuple(methods),
        environment=provenance.environment(),
        files=tuple(path for path in (artifacts.LEADERBOARD.with_suffix(".md"), artifacts.LEADERBOARD, FIGURES) if path.exists()),
    )
