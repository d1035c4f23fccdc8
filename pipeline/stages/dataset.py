"""Read the source: one row an image in data/catalog.csv, and what is worth knowing about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline import artifacts, datasets, images, splits
from pipeline.params import Params
from pipeline.progress import Log, progress, say

QUALITY = artifacts.RESULTS / "data_quality.json"

READS = ("seed", "dataset", "compute.threads")
INPUTS = ("{dataset.path}",)
OUTPUTS = (str(artifacts.CATALOG), str(QUALITY))


def main(params: Params, *, log: Log) -> None:
    for output in (artifacts.CATALOG, QUALITY):
        for abandoned in output.parent.glob(f".{output.name}.*"):  # by a reading that was killed
            abandoned.unlink()
    dataset = params.block("dataset", datasets.DatasetParams)
    say(f"reading the images of {dataset.path}")
    source = datasets.read(dataset)
    chosen: Sequence[datasets.SourceImage] = source.images
    if dataset.limit is not None:
        kept = splits.subset(source.images, limit=dataset.limit, seed=params.value("seed"))
        chosen = [source.images[index] for index in kept]
    say(f"checking {len(chosen)} of {len(source.images)} images")
    files = [source.root / image.path for image in chosen]
    with ThreadPoolExecutor(params.value("compute.threads")) as pool:
        inspections = list(
            progress(pool.map(images.inspect, files), total=len(files), label="checking images", unit="images")
        )
    rows = [_row(*entry) for entry in zip(chosen, files, inspections, strict=True)]
    quality = summarize(rows)
    _refuse_too_many_unreadable(rows, dataset.max_unreadable)
    artifacts.write_csv(artifacts.CATALOG, datasets.CATALOG_COLUMNS, rows)
    artifacts.write_json(QUALITY, quality)
    classes = ", ".join(f"{count} {label}" for label, count in sorted(quality["classes"].items()))
    say(f"{quality['images']} images: {classes}; {quality['unreadable']} unreadable, "
        f"{quality['duplicates']['images']} byte-identical to another")  # fmt: skip


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return counts of readable images by class, stratum, size and mode, of duplicates, and of unreadable files."""
    readable = [row for row in rows if not row["problem"]]
    by_digest: dict[str, list[dict[str, Any]]] = {}
    for row in readable:
        by_digest.setdefault(row["sha256"], []).append(row)
    repeated = [same for same in by_digest.values() if len(same) > 1]
    return {
        "images": len(readable),
        "unreadable": len(rows) - len(readable),
        "classes": dict(Counter(row["label"] for row in readable)),
        "strata": dict(Counter(row["stratum"] for row in readable if row["stratum"])),
        "sizes": dict(Counter(f"{row['width']}x{row['height']} {row['mode']}" for row in readable).most_common(5)),
        "duplicates": {
            "images": sum(len(same) for same in repeated),
            "with_different_labels": sum(len({row["label"] for row in same}) > 1 for same in repeated),
        },
    }


def _row(image: datasets.SourceImage, file: Path, inspection: images.Inspection) -> dict[str, Any]:
    identity = {name: getattr(image, name) for name in ("path", "label", "stratum", "group", "sha256")}
    return {**identity, "bytes": file.stat().st_size, **inspection._asdict()}


def _refuse_too_many_unreadable(rows: Sequence[dict[str, Any]], allowed: float) -> None:
    broken = [row for row in rows if row["problem"]]
    if len(broken) > allowed * len(rows):
        shown = "\n".join(f"  {row['path']}: {row['problem']}" for row in broken[:10])
        raise datasets.DatasetError(
            f"{len(broken)} of {len(rows)} files cannot be read, more than dataset.max_unreadable = {allowed}:\n{shown}"
        )
