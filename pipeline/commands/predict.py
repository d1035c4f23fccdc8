"""Classify image files with the champion, with any run by name, or with the comparison's ensemble."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.audits import outputs
from pipeline.console.errors import BakeoffError
from pipeline.console.progress import progress
from pipeline.core import artifacts
from pipeline.evaluation import leaderboard
from pipeline.images.find import find_images

if TYPE_CHECKING:
    from pipeline.serving.predictor import Ensemble, Predictor

# Enough images to keep the reader ahead of the engine, few enough to show progress every few seconds.
CHUNK = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image files, folders (searched deeply) or patterns")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--run", help="directory name under results/runs; without it, the champion of the comparison")
    who.add_argument(
        "--ensemble", action="store_true", help="the weighted mean that `compare.ensemble` in params.yaml asked for"
    )
    parser.add_argument(
        "--uncalibrated", action="store_true", help="probabilities as the model gives them, also after calibration"
    )
    parser.add_argument("--top", type=int, default=3, help="classes to show for an image (default: %(default)s)")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")
    parser.add_argument("--output", type=Path, help="write to this file instead of the screen")


def main(arguments: argparse.Namespace) -> int:
    if arguments.top < 1:
        raise BakeoffError(f"--top must be at least 1, received {arguments.top}")
    files = find_images(arguments.paths)
    from pipeline.images import decode

    name, model, told = _ensemble() if arguments.ensemble else _run(arguments)
    rows, failed = [], []
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    for chunk in progress(chunks, total=len(chunks), label=f"{name}: {len(files)} images", unit="chunks"):
        readable, probabilities = _classify(model, chunk, failed, decode.ImageError)
        rows += [_row(*pair, model.classes, arguments.top) for pair in zip(readable, probabilities, strict=True)]
    rows = [row | {key: value for key, value in told.items() if value} for row in rows]
    text = FORMATS[arguments.format](rows)
    if arguments.output:
        artifacts.write_text(arguments.output, text)
        print(f"{len(rows)} predictions of {name} written to {arguments.output}", file=sys.stderr)
    else:
        sys.stdout.write(text)
    for message in failed:
        print(f"not classified: {message}", file=sys.stderr)
    return 1 if failed else 0


def _run(arguments: argparse.Namespace) -> tuple[str, Predictor, dict[str, str | None]]:
    """Return a run's name, its predictor, and what every prediction must say of it.

    Raises ArtifactError if the run is not what dvc.lock says. Its network is the one that its files name, or refused.
    """
    from pipeline.evaluation.calibration import calibrators
    from pipeline.features import feature_store
    from pipeline.serving import predictor

    run = arguments.run or champion()
    directory = _directory(run)
    decided = [] if arguments.run else [artifacts.LEADERBOARD]
    outputs.refuse_changed([directory, *decided, *([] if arguments.uncalibrated else [artifacts.CALIBRATION])])
    calibrator = None if arguments.uncalibrated else artifacts.read_calibrator(directory)
    if calibrator:
        print(
            f"{run}: probabilities calibrated on validation ({calibrators.in_words(calibrator)}); "
            "--uncalibrated leaves them as the model gives them",
            file=sys.stderr,
        )
    if ablation := _ablation(directory):
        print(f"{run} is an ablation: its network is {ablation}", file=sys.stderr)
    model = predictor.load(directory, store=feature_store.from_environment(), calibrator=calibrator)
    return run, model, {"calibration": calibrator and calibrator["kind"], "ablation": ablation}


def _ensemble() -> tuple[str, Ensemble, dict[str, str | None]]:
    """Return the same of the comparison's ensemble, whose members are not calibrated, as they were not when picked."""
    from pipeline.features import feature_store
    from pipeline.serving import predictor

    found = artifacts.read_json(leaderboard.DETAILS).get("ensemble")
    if not found:
        raise BakeoffError(
            "The comparison has no ensemble: set compare.ensemble in params.yaml, for example to 30, then `dvc repro`"
        )
    weights = {one["run"]: one["weight"] for one in found["members"]}
    outputs.refuse_changed([leaderboard.DETAILS, *map(_directory, weights)])
    ablations = {run: said for run in weights if (said := _ablation(_directory(run)))}
    for run, said in ablations.items():
        print(f"{run}, a member, is an ablation: its network is {said}", file=sys.stderr)
    print(f"ensemble of {', '.join(f'{weight:.2f} {run}' for run, weight in weights.items())}", file=sys.stderr)
    store = feature_store.from_environment()
    members = tuple((predictor.load(artifacts.RUNS / run, store=store), weight) for run, weight in weights.items())
    return "ensemble", predictor.Ensemble(members), {"ablation": "; ".join(ablations.values())}


def _directory(run: str) -> Path:
    directory = artifacts.RUNS / run
    if not (directory / "record.json").is_file():
        found = ", ".join(_runs()) or "none yet; `make repro` makes them"
        raise BakeoffError(f"No run {run!r} in {artifacts.RUNS}. Choose from: {found}")
    return directory


def _ablation(directory: Path) -> str | None:
    return artifacts.read_json(directory / "record.json").get("ablation")


def champion() -> str:
    """Return the run's name that the comparison chose on validation."""
    for entry in artifacts.read_json(artifacts.LEADERBOARD):
        if entry["champion"]:
            return entry["run"]
    raise artifacts.ArtifactError(f"{artifacts.LEADERBOARD} names no champion: run `dvc repro`")


def _classify(model, chunk: list[Path], failed: list[str], image_error: type[Exception]):
    """Return the files that could be read and their probabilities; a broken file costs only itself."""
    try:
        return chunk, model.probabilities(chunk)
    except image_error:
        readable, rows = [], []
        for file in chunk:
            try:
                rows.append(model.probabilities([file])[0])
                readable.append(file)
            except image_error as error:
                failed.append(str(error))
        return readable, rows


def _row(file: Path, probabilities: np.ndarray, classes: Sequence[str], top: int) -> dict:
    order = np.argsort(-probabilities, kind="stable")[:top]
    return {
        "path": str(file),
        "label": classes[order[0]],
        "top": [{"label": classes[index], "probability": float(probabilities[index])} for index in order],
    }


def _as_table(rows: Sequence[dict]) -> str:
    width = max((len(row["path"]) for row in rows), default=0)
    lines = [
        f"{row['path']:<{width}}  " + "  ".join(f"{entry['label']} {entry['probability']:.3f}" for entry in row["top"])
        for row in rows
    ]
    return "".join(f"{line}\n" for line in lines)


def _as_csv(rows: Sequence[dict]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    told = [name for name in ("calibration", "ablation") if rows and name in rows[0]]
    writer.writerow(["path", "rank", "label", "probability", *told])
    for row in rows:
        for rank, entry in enumerate(row["top"], start=1):
            values = [row[name] for name in told]
            writer.writerow([row["path"], rank, entry["label"], f"{entry['probability']:.9g}", *values])
    return file.getvalue()


def _as_json(rows: Sequence[dict]) -> str:
    return json.dumps(list(rows), indent=2, ensure_ascii=False) + "\n"


FORMATS = {"table": _as_table, "csv": _as_csv, "json": _as_json}


def _runs() -> list[str]:
    return sorted(path.parent.name for path in artifacts.RUNS.glob("*/record.json"))
