"""Divide the catalog once into train, validation and test folders, and write who is where into the manifest."""

from __future__ import annotations

import shutil

from pipeline import artifacts, datasets, splits
from pipeline.params import Params
from pipeline.progress import Log, progress, say

READS = ("seed", "dataset", "split")
INPUTS = (str(artifacts.CATALOG), "{dataset.path}")
OUTPUTS = (*(str(artifacts.SPLIT / part) for part in artifacts.PARTS), str(artifacts.MANIFEST))


def main(params: Params, *, log: Log) -> None:
    dataset = params.block("dataset", datasets.DatasetParams)
    rows = artifacts.read_csv(artifacts.CATALOG, datasets.CATALOG_COLUMNS)
    chosen = [
        datasets.SourceImage(row["path"], row["label"], row["stratum"], row["group"], row["sha256"])
        for row in rows
        if not row["problem"]
    ]
    parts = splits.assign(chosen, params=params.block("split", splits.SplitParams), seed=params.value("seed"))
    say(f"looking at the images of {dataset.path} again")
    root = datasets.read(dataset).root
    members = sorted(zip(parts, chosen, strict=True), key=lambda member: (artifacts.PARTS.index(member[0]), member[1].label, member[1].path))  # fmt: skip
    say(f"copying {len(members)} images")
    with artifacts.whole_directory(artifacts.SPLIT) as directory:
        manifest = [
            _copy(image, part, root=root, directory=directory)
            for part, image in progress(members, total=len(members), label="copying images", unit="images")
        ]
        artifacts.write_csv(directory / artifacts.MANIFEST.name, artifacts.MANIFEST_COLUMNS, manifest)
    say(", ".join(f"{parts.count(part)} {part}" for part in artifacts.PARTS))


def _copy(image: datasets.SourceImage, part: str, *, root, directory) -> dict[str, str]:
    """Copy the original bytes to <part>/<label>/<name> and return the image's row of the manifest."""
    path = f"{part}/{image.label}/{datasets.split_name(image)}"
    target = directory / path
    if target.exists():
        raise datasets.DatasetError(f"Two images of the class {image.label!r} would both be called {target.name}: "
                                    f"rename {image.path}")  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root / image.path, target)
    if artifacts.sha256_file(target) != image.sha256:
        raise datasets.DatasetError(f"{root / image.path} changed since data/catalog.csv was written: run `dvc repro`")
    return {
        "path": path,
        "label": image.label,
        "split": part,
        "group": image.group,
        "stratum": image.stratum,
        "sha256": image.sha256,
    }
