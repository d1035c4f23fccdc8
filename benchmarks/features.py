"""Frozen features: from files to arrays on disk, against Keras, against the bare engine, and with a filled store.

python -m benchmarks.features [--json FILE] [--repeats 5] [--images 2624]
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks import measure, rows
from benchmarks.measure import Run
from benchmarks.workspace import BACKBONE, Workspace
from pipeline.core import artifacts

STAGE = ("features", "--backbone", BACKBONE)
OUTPUTS = tuple(f"data/features/{BACKBONE}/{part}.npy" for part in artifacts.PARTS)
RIVAL_OUTPUTS = tuple(f"out/{part}.npy" for part in artifacts.PARTS)
# So few that their time is the start-up: interpreter, libraries, network.
FEW = 64
NEW_SHARE = 100  # one image of so many is new


def main(arguments: list[str] | None = None) -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--images", type=int, help="keep only about this many (default: all)")
    options = parser.parse_args(arguments)
    few = Workspace("features-few", {"dataset.limit": FEW})
    full = Workspace("features", {"dataset.limit": options.images})
    for place in (few, full):
        place.prepare_images()
    jobs = [
        extract("ours", full),
        full.rival("Keras", "features.py", (), outputs=RIVAL_OUTPUTS),
        extract("ours, start-up", few),
        few.rival("Keras, start-up", "features.py", (), outputs=RIVAL_OUTPUTS),
        bare_engine(full),
        extract("ours, bfloat16", full, precision="bfloat16"),
        extract("ours, start-up, bfloat16", few, precision="bfloat16"),
        extend("ours, 1 % new", full),
    ]
    runs = measure.alternate(jobs, repeats=options.repeats, journal=measure.Journal.beside(options.json))
    rows.report(claims(runs, few=count(few), n=count(full)), options.json)


def count(place: Workspace) -> int:
    return sum(place.images(part) for part in artifacts.PARTS)


def claims(runs: dict[str, list[Run]], *, few: int, n: int) -> list[rows.Row]:
    ours, keras, bfloat16 = runs["ours"], runs["Keras"], runs["ours, bfloat16"]
    rate, keras_rate, bfloat16_rate = (
        rates(runs[f"{name}, start-up{suffix}"], many, few=few, n=n)
        for name, many, suffix in (("ours", ours, ""), ("Keras", keras, ""), ("ours", bfloat16, ", bfloat16"))
    )
    beyond = "beyond start-up {:.0f} against {:.0f} images/s"
    engine = [1 / run.seconds for run in runs["bare engine"]]
    shares = [fast / bare for fast, bare in zip(rate, engine, strict=True)]
    middle = statistics.median
    return [
        measure.ratio_row(
            f"features of {n:,} images, float32, from files: `image_dataset_from_directory` + `model.predict`",
            ours=ours,
            rival=keras,
            target=3,
            detail=beyond.format(middle(rate), middle(keras_rate)),
        ),
        measure.rated(
            "the same, beyond start-up: share of the bare engine's throughput on preloaded arrays",
            shares,
            target=0.75,
            detail=f"{middle(rate):.0f} of {middle(engine):.0f} images/s",
        ),
        measure.ratio_row(
            f"features of {n:,} images, bfloat16: our float32",
            ours=bfloat16,
            rival=ours,
            target=1.4,
            detail=beyond.format(middle(bfloat16_rate), middle(rate)),
        ),
        measure.ratio_row(
            f"features after adding 1 % new images to {n:,}: a full run",
            ours=runs["ours, 1 % new"],
            rival=ours,
            target=20,
            detail=f"start-up {measure.seconds(runs['ours, start-up']):.1f} s",
        ),
        measure.valued(
            f"peak memory of features of {n:,} images, float32",
            [run.peak_gb for run in ours],
            unit="GB",
            detail=f"Keras {middle(run.peak_gb for run in keras):.2f} GB",
        ),
    ]


def rates(short: list[Run], long: list[Run], *, few: int, n: int) -> list[float]:
    """Return images a second beyond start-up, one a turn: what ``n`` images take longer than ``few``."""
    return [
        1 / measure.line((few, start.seconds), (n, whole.seconds)).per_image
        for start, whole in zip(short, long, strict=True)
    ]


def extract(name: str, place: Workspace, *, precision: str = "float32") -> measure.Job:
    """Return the features stage with nothing kept from before."""

    def before() -> None:
        place.override({"compute.precision": precision})
        place.clear_store()

    return place.job(name, STAGE, before=before, outputs=OUTPUTS)


def extend(name: str, place: Workspace) -> measure.Job:
    """Return the features stage with everything kept from before but one image in a hundred."""
    manifest, kept = place.directory / artifacts.MANIFEST, place.directory / "kept_features"
    images = artifacts.read_csv(manifest, artifacts.MANIFEST_COLUMNS)
    old = [image for number, image in enumerate(images) if number % NEW_SHARE]
    artifacts.write_csv(manifest, artifacts.MANIFEST_COLUMNS, old)
    measure.measure(extract("preparing a store of 99 %", place))
    artifacts.write_csv(manifest, artifacts.MANIFEST_COLUMNS, images)
    if not list(place.store.glob("*/space.json")):
        raise measure.BenchmarkError("The features stage kept nothing in BAKEOFF_FEATURE_STORE")
    shutil.move(place.store, kept)

    def before() -> None:
        place.override({"compute.precision": "float32"})
        place.clear_store()
        shutil.copytree(kept, place.store, dirs_exist_ok=True)

    return place.job(name, STAGE, before=before, outputs=OUTPUTS)


def bare_engine(place: Workspace) -> measure.Job:
    """Return the engine alone; its seconds are those of one image."""
    result = "out/engine.json"
    options: tuple[Any, ...] = ("--threads", measure.cores())
    job = place.rival("bare engine", "bare_engine.py", options, outputs=[result])
    path: Path = place.directory / result
    return dataclasses.replace(job, reading=lambda: 1 / artifacts.read_json(path)["images_per_second"])


if __name__ == "__main__":
    sys.exit(measure.guarded(main))
