"""Fill MLflow from the records, so that a finished `dvc repro` leaves it complete.

The marker says which records were to be shown. It lies beside the store and is deleted with it, so that the next
`dvc repro` fills a new one. It is also written when the store could not be reached: that fails no stage and repeats
none, it is a warning that names the command to call once the store is back.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import tracking
from pipeline.console.progress import Log, say
from pipeline.core import artifacts, provenance, run_identity
from pipeline.core.params import Params, Run, declared_runs
from pipeline.evaluation import metrics
from pipeline.tracking import run_inputs

# The keys of every run, because the identity of what a run was computed from contains them.
READS = (
    "seed",
    "repeats",
    "dataset",
    "split",
    "images",
    "compute",
    "selection",
    "backbones",
    "backbone",
    "classifiers",
    "augmentation",
    "head",
    "fine_tune",
    "scratch",
    "explain",
    "compare",
)
FIGURES = artifacts.RESULTS / "figures"
TEXT = artifacts.LEADERBOARD.with_suffix(".md")
MARKER = Path(".mlflow/tracked.json")
# How long a pipeline waits for a store that answers slowly; the rest is for the command `sync`, which has no limit.
SECONDS_FOR_MLFLOW = 300.0
INPUTS = (
    str(artifacts.MANIFEST),
    str(artifacts.RUNS),
    str(artifacts.LEADERBOARD),
    str(artifacts.CALIBRATION),
    str(TEXT),
    str(FIGURES),
)
OUTPUTS = (str(MARKER),)


def main(params: Params, *, log: Log) -> None:
    comparison = collect(params)
    try:
        fill(comparison, seconds=SECONDS_FOR_MLFLOW)
    except tracking.TrackingError as error:
        print(
            f"warning: {error}. The results are not affected; `python -m pipeline sync` fills MLflow later.",
            file=sys.stderr,
        )
    runs = {method.record.name: method.record_digest for method in comparison.methods}
    artifacts.write_json(MARKER, {"leaderboard": artifacts.sha256_file(artifacts.LEADERBOARD), "runs": runs})


def fill(comparison: tracking.Comparison, *, seconds: float | None = None) -> tracking.Report:
    """Add what the store lacks, for as long as ``seconds``, and say what was added. Raises TrackingError."""
    report = tracking.sync(tracking.locate(), comparison, seconds=seconds)
    say(f"MLflow: {report}")
    for kind, messages in (("warning", report.warnings), ("error", report.problems)):
        for message in messages:
            print(f"{kind}: {message}", file=sys.stderr)
    return report


def collect(params: Params, board: Sequence[Mapping[str, Any]] | None = None) -> tracking.Comparison:
    """Return every declared run with its metrics, best first. Raises ArtifactError if the comparison lacks one.

    ``board``: the leaderboard, read from its file unless given.
    """
    values = params.declared()
    entries = {entry["run"]: entry for entry in board or artifacts.read_json(artifacts.LEADERBOARD)}
    runs = {run.name: run for run in declared_runs(values)}
    if missing := sorted(runs.keys() - entries.keys()):
        raise artifacts.ArtifactError(f"{artifacts.LEADERBOARD} lacks {', '.join(missing)}: run `dvc repro`")
    sha256 = run_inputs.remembering()
    selected_by = params.block("selection", metrics.SelectionParams).metric
    return tracking.Comparison(
        dataset=tracking.dataset_name(values["dataset"]),
        selected_by=selected_by,
        smaller_is_better=selected_by in metrics.LOWER_IS_BETTER,
        parts=tuple(_part(name) for name in artifacts.PARTS),
        methods=tuple(_method(runs[name], entries[name], params, sha256) for name in entries if name in runs),
        environment=provenance.environment(),
        files=tuple(path for path in (TEXT, artifacts.LEADERBOARD, FIGURES) if path.exists()),
        environment_record=provenance.environment_record(),
    )


def _part(name: str) -> tracking.DataSet:
    part = artifacts.read_part(name)
    return tracking.DataSet(name, len(part), provenance.digest(list(zip(part.paths, part.sha256, strict=True))))


def _method(run: Run, entry: Mapping[str, Any], params: Params, sha256: Callable[[Path], str]) -> tracking.Method:
    directory = artifacts.RUNS / run.name
    record = artifacts.read_record(directory / "record.json")
    # A score without a value, such as the ROC-AUC of a single class, is null in the leaderboard.
    test = {name: score for name, score in entry["test"].items() if score["value"] is not None}
    return tracking.Method(
        record=record,
        record_digest=run_identity.record_digest(directory),
        directory=directory,
        input_key=_input_key(run, record, params, sha256),
        validation=_validation(record, directory, params),
        test={name: _interval(score) for name, score in test.items()},
        champion=entry["champion"],
        backbone=artifacts.BACKBONES / run.network if run.stage == "sweep" else None,
        repeats=entry["repeats"]["count"] if entry.get("repeats") else 1,
        spread=_spread(entry),
        calibrator=artifacts.read_calibrator(directory),
        calibrated=_calibrated(entry),
        explained=_explained(run, params),
    )


def _interval(score: Mapping[str, float | None]) -> tracking.Interval:
    """Return a score with its interval; a test part of a single group may have none."""
    return tracking.Interval(*(math.nan if score[of] is None else score[of] for of in ("value", "low", "high")))


def _explained(run: Run, params: Params) -> tuple[Path, ...]:
    """Return the files that show what the run's network looks at, none if they are of another training.

    They are no input that DVC could know: where no run is explained, their folder does not exist.
    """
    directory = artifacts.RESULTS / "explain" / run.name
    if run.name not in params.value("explain.runs") or not (directory / "explain.json").exists():
        return ()
    shown = artifacts.read_json(directory / "explain.json")["record"]
    return tuple(sorted(directory.iterdir())) if shown == run_identity.record_digest(artifacts.RUNS / run.name) else ()


def _spread(entry: Mapping[str, Any]) -> dict[str, dict[str, tuple[float, float]]]:
    """Return {part: {metric: (mean, sd)}} of the metrics that have a value."""
    return {
        part: {name: (one["mean"], one["sd"]) for name, one in entry["repeats"][part].items() if one["sd"] is not None}
        for part in (("validation", "test") if entry.get("repeats") else ())
    }


def _calibrated(entry: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {
        part: {name: one["after"] for name, one in entry["calibration"][part].items() if one["after"] is not None}
        for part in (("validation", "test") if entry.get("calibration") else ())
    }


def _validation(record: artifacts.Record, directory: Path, params: Params) -> tuple[dict[str, float], ...]:
    labels = artifacts.read_part("validation").labels
    selection = params.block("selection", metrics.SelectionParams)
    positive = metrics.positive_index(record.classes, selection)
    bins = params.value("compare.calibration_bins")
    predictions = artifacts.read_predictions(directory / "predictions.npz")
    return tuple(
        metrics.compute(probabilities, labels, positive=positive, calibration_bins=bins)
        for probabilities in predictions.validation
    )


def _input_key(run: Run, record: artifacts.Record, params: Params, sha256: Callable[[Path], str]) -> str | None:
    """Return the run's input key, or None where what it was computed from is not here: params.yaml has other values by
    now, or only the results were fetched."""
    inputs = run_inputs.inputs_of(run, params.declared())
    if inputs.params != record.parameters:
        return None
    try:
        return inputs.key(sha256)
    except artifacts.ArtifactError:
        return None
