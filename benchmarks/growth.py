"""Growth: features and logistic regression at 1k, 4k, 16k and 60k images of 32 x 32.

python -m benchmarks.growth [--json FILE] [--largest 60000]

The images are real: pieces of 32 x 32 cut out of the photographs of solar cells, 81 from each, in class folders with a
manifest as the split stage writes it. A photograph's pieces stay in one part. Every size is measured once, the
start-up, from few images, three times.
"""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import measure, rows
from benchmarks.measure import Journal, Run
from benchmarks.workspace import BACKBONE, Workspace
from pipeline.console.progress import progress, say
from pipeline.core import artifacts

SIZES = (1_000, 4_000, 16_000, 60_000)
FEW = 100  # their time is the start-up
START_UPS = 3
# Of less than this many times the start-up, what is beyond it is mostly noise.
TIMES_START_UP = 2
SIDE = 32
FEATURES = ("features", "--backbone", BACKBONE)
REGRESSION = ("sweep", "--backbone", BACKBONE, "--classifier", "logistic_regression")
LARGEST_GB = 1.5  # for the features of 60,000 images


def main(arguments: list[str] | None = None) -> None:
    parser = measure.parser(__doc__, repeats=1)
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="stop at this size (default: %(default)s)")
    options = parser.parse_args(arguments)
    sizes = [size for size in SIZES if size <= options.largest]
    if not sizes:
        raise measure.BenchmarkError(f"--largest must be at least {SIZES[0]}, received {options.largest}")
    place = Workspace("growth")
    place.prepare_images()
    photographs = photographs_of(place.directory)
    journal = Journal.beside(options.json)
    repeats = dict.fromkeys(sizes, options.repeats) | {FEW: max(START_UPS, options.repeats)}
    runs = {size: grow(place, photographs, size, repeats[size], journal) for size in (FEW, *sizes)}
    found = [*claims("features", FEATURES[0], runs), *claims("logistic regression", REGRESSION[0], runs)]
    rows.report(found, options.json)


def grow(
    place: Workspace, photographs: Sequence[dict[str, str]], size: int, repeats: int, journal: Journal
) -> dict[str, list[Run]]:
    """Return {stage: runs} on ``size`` pieces."""
    write_pieces(place.directory, photographs, size)
    regression_cache = place.directory / ".cache"
    jobs = [
        place.job(
            f"{FEATURES[0]}, {size} images",
            FEATURES,
            before=place.clear_store,
            outputs=[f"data/features/{BACKBONE}/train.npy"],
        ),
        place.job(
            f"{REGRESSION[0]}, {size} images",
            REGRESSION,
            before=lambda: shutil.rmtree(regression_cache, ignore_errors=True),
            outputs=[f"results/runs/{BACKBONE}-logistic_regression"],
        ),
    ]
    runs = measure.alternate(jobs, repeats=repeats, journal=journal)
    return {job.name.partition(",")[0]: runs[job.name] for job in jobs}


def claims(what: str, stage: str, runs: dict[int, dict[str, list[Run]]]) -> list[rows.Row]:
    """Return time and memory at every size, and the exponent of the time beyond start-up."""
    sizes = [size for size in runs if size != FEW]
    start = measure.seconds(runs[FEW][stage])
    found = []
    for size in sizes:
        seconds = [run.seconds for run in runs[size][stage]]
        found.append(measure.valued(f"{what} of {size:,} images of 32 x 32: time", seconds, unit="s"))
    for size in sizes:
        target = LARGEST_GB if stage == "features" and size == SIZES[-1] else None
        memory = [run.peak_gb for run in runs[size][stage]]
        found.append(measure.valued(f"{what} of {size:,} images: peak memory", memory, unit="GB", target=target))
    taken = {size: measure.seconds(runs[size][stage]) for size in sizes}
    told = [size for size in sizes if taken[size] >= TIMES_START_UP * start]
    if len(told) > 1:
        power = measure.exponent([size - FEW for size in told], [taken[size] - start for size in told])
        found.append(
            measure.valued(
                f"{what}: exponent of time beyond start-up in images, {told[0]:,} to {told[-1]:,} (1 is linear)",
                [power],
                unit="",
                target=1.1,
                detail=f"start-up, from {FEW} images: {start:.1f} s",
            )
        )
    return found


def photographs_of(directory: Path) -> list[dict[str, str]]:
    """Return the manifest's rows of the whole photographs, which move aside to ``photographs``."""
    manifest = artifacts.read_csv(directory / artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS)
    (directory / artifacts.SPLIT).rename(directory / "photographs")
    return sorted(manifest, key=lambda row: row["sha256"])  # an order that mixes classes and parts


def write_pieces(directory: Path, photographs: Sequence[dict[str, str]], size: int) -> None:
    """Make ``data/split`` hold ``size`` pieces and their manifest, about as many from every photograph."""
    split = directory / artifacts.SPLIT
    shutil.rmtree(split, ignore_errors=True)
    say(f"cutting {size:,} images")
    found = list(progress(_pieces(directory, split, photographs, size), total=size, label="cutting", unit="images"))
    found.sort(key=lambda row: (artifacts.PARTS.index(row["split"]), row["path"]))
    with (split / artifacts.MANIFEST.name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, artifacts.MANIFEST_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


def _pieces(directory: Path, split: Path, photographs: Sequence[dict[str, str]], size: int) -> Iterator[dict[str, str]]:
    from PIL import Image

    each, more = divmod(size, len(photographs))
    for number, row in enumerate(photographs):
        wanted = each + (number < more)
        if not wanted:
            continue
        with Image.open(directory / "photographs" / row["path"]) as photograph:
            corners = [
                (left, top)
                for top in range(0, photograph.height - SIDE + 1, SIDE)
                for left in range(0, photograph.width - SIDE + 1, SIDE)
            ]
            if wanted > len(corners):
                raise measure.BenchmarkError(f"{size} images are more than {len(photographs)} photographs have pieces")
            for place in range(wanted):
                left, top = corners[place * len(corners) // wanted]
                piece = photograph.crop((left, top, left + SIDE, top + SIDE))
                yield _write(split, row, piece, place)


def _write(split: Path, row: dict[str, str], piece, place: int) -> dict[str, str]:
    encoded = io.BytesIO()
    piece.save(encoded, "PNG")
    path = Path(row["path"])
    target = split / path.with_name(f"{path.stem}-{place:02d}.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(encoded.getvalue())
    digest = hashlib.sha256(encoded.getvalue()).hexdigest()
    return row | {"path": target.relative_to(split).as_posix(), "sha256": digest}


if __name__ == "__main__":
    sys.exit(measure.guarded(main))
