"""Divide the catalog once into train, validation and test folders, and write who is where into the manifest.

The split is a function of the catalog and the parameters. A copy of the last one is kept in `.cache`, which git and
DVC ignore, for one purpose: to say which images are in another part now, and why.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.console.progress import Log, progress, say
from pipeline.core import artifacts
from pipeline.core.params import Params
from pipeline.data import sources, splits
from pipeline.data.sources import DatasetParams, SourceImage
from pipeline.data.splits import SplitParams

READS = ("seed", "dataset", "split")
INPUTS = (str(artifacts.CATALOG), "{dataset.path}")
OUTPUTS = (*(str(artifacts.SPLIT / part) for part in artifacts.PARTS), str(artifacts.MANIFEST))

LAST = Path(".cache/split/last.json")
MOVED = Path(".cache/split/moved.csv")
SHOWN = 10


def main(params: Params, *, log: Log) -> None:
    dataset, split = params.block("dataset", DatasetParams), params.block("split", SplitParams)
    chosen = sources.read_catalog()
    small, large = splits.clusters(chosen)
    grouping = split.groups_near_duplicates(dataset.source)
    rules: dict[str, Any] = {"params": split, "seed": params.value("seed"), "together": small if grouping else set()}
    parts = splits.assign(chosen, **rules)
    root = sources.root(dataset)
    order = sorted(
        range(len(chosen)),
        key=lambda index: (artifacts.PARTS.index(parts[index]), chosen[index].label, chosen[index].path),
    )
    names = sources.split_names(chosen)
    sources.provide(dataset, chosen)
    say(f"copying {len(chosen)} images")
    with artifacts.whole_directory(artifacts.SPLIT) as directory:
        manifest = [
            _copy(chosen[index], parts[index], names[index], root=root, directory=directory)
            for index in progress(order, total=len(order), label="copying images", unit="images")
        ]
        artifacts.write_csv(directory / artifacts.MANIFEST.name, artifacts.MANIFEST_COLUMNS, manifest)
    say(", ".join(f"{parts.count(part)} {part}" for part in artifacts.PARTS))
    _tell_near_duplicates(chosen, parts, large=large, split=split)
    _tell_missing(chosen, parts)
    # Not what decides which images there are, such as limit and max_dropped: what those move is to be told.
    setting = {
        "seed": params.value("seed"),
        "split.test": split.test,
        "split.validation": split.validation,
        "split.near_duplicates": "group" if grouping else "report",
        "dataset.groups": dataset.groups.model_dump(),
    }
    _tell_moves(chosen, parts, splits.owed_to_groups(chosen, parts, **rules), setting=setting)


def _copy(image: SourceImage, part: str, name: str, *, root: Path, directory: Path) -> dict[str, str]:
    """Copy the original bytes to <part>/<label>/<name> and return the image's row of the manifest."""
    path = f"{part}/{image.label}/{name}"
    target = directory / path
    if target.exists():
        raise sources.DatasetError(
            f"Two images of the class {image.label!r} would both be called {name}: rename {image.path}"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    changed = sources.DatasetError(f"{root / image.path} changed since data/catalog.csv was written: run `dvc repro`")
    try:
        shutil.copyfile(root / image.path, target)
    except FileNotFoundError:
        raise changed from None
    if artifacts.sha256_file(target) != image.sha256:
        raise changed
    return {
        "path": path,
        "label": image.label,
        "split": part,
        "group": image.group,
        "stratum": image.stratum,
        "sha256": image.sha256,
    }


def _tell_near_duplicates(
    images: Sequence[SourceImage], parts: Sequence[str], *, large: set[str], split: SplitParams
) -> None:
    for name in sorted(large):
        members = [image.path for image in images if image.near_duplicates == name]
        say(
            f"not grouped: {len(members)} near duplicates in one cluster, more than 1 % of the images, such as "
            f"{', '.join(members[:3])}"
        )
    divided = splits.straddling(images, parts)
    if divided:
        shown = [", ".join(f"{images[index].path} ({parts[index]})" for index in indices[:3]) for indices in divided]
        say(
            f"{len(divided)} sets of near duplicates lie in several parts (split.near_duplicates is "
            f"{split.near_duplicates}):\n" + _listed(shown)
        )


def _tell_missing(images: Sequence[SourceImage], parts: Sequence[str]) -> None:
    missing = [f"{label} has no image in {part}" for part, label in splits.missing_classes(images, parts)]
    if missing:
        say("WARNING: the predefined parts lack classes:\n" + _listed(missing))


def _tell_moves(
    images: Sequence[SourceImage], parts: Sequence[str], grouped: set[str], *, setting: Mapping[str, Any]
) -> None:
    """Say which images of the last split are in another part now, unless other parameters asked for another split.

    ``setting``: the parameters that decide where an image goes.
    """
    last = artifacts.read_json(LAST) if LAST.exists() else None
    if last is not None and last["setting"].keys() != setting.keys():
        last = None  # kept by another version
    if last is not None and last["setting"] != setting:
        before = last["setting"]
        others = [key for key, value in setting.items() if before[key] != value]
        changed = [f"{key} ({before[key]} -> {setting[key]})" for key in others]
        say(f"another split than the last one, as other values ask for: {', '.join(changed)}")
    elif last is not None and not any(splits.identity(image) in last["parts"] for image in images):
        say("other images than those of the last split: none is known from before")
    elif last is not None:
        moved = splits.moves(images, parts, before=last["parts"], grouped=grouped | set(last["grouped"]))
        new = sum(splits.identity(image) not in last["parts"] for image in images)
        reasons = Counter(move.reason for move in moved)
        say(
            f"{new} images are new; of those known before, {len(moved)} changed their part "
            f"({reasons['quota']} by rounding of quotas, {reasons['group']} because of a group)"
        )
        if moved:
            artifacts.write_csv(MOVED, splits.Move._fields, [move._asdict() for move in moved])
            say(
                _listed([f"{move.path}: {move.before} -> {move.after} ({move.reason})" for move in moved])
                + f"\nall of them: {MOVED}"
            )
    members = {splits.identity(image): part for image, part in zip(images, parts, strict=True)}
    artifacts.write_json(LAST, {"setting": setting, "parts": members, "grouped": sorted(grouped)})


def _listed(lines: Sequence[str]) -> str:
    more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join([f"  {line}" for line in lines[:SHOWN]] + more)
