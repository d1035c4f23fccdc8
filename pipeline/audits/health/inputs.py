"""Is what the pipeline starts from there: params.yaml, the raw images, the weights of pretrained networks?"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.console.findings import Finding

# The project's own lists of pretrained networks.
LISTS = ("backbones", "head.backbones", "fine_tune.backbones")
HASHES = {32: "md5", 64: "sha256"}


# --- images --------------------------------------------------------------------------------------------------------


def images() -> list[Finding]:
    """Check that the source is there, and where that takes no longer than a second, that it holds the right bytes."""
    from pipeline.core import params
    from pipeline.data import sources

    block = params.parse(params.lookup(params.load(), "dataset"), sources.DatasetParams, where="dataset")
    if block.source == "elpv":
        # Reading it compares every byte with the digest in the description.
        try:
            count = len(sources.read(block).images)
        except sources.DatasetError as error:
            return [Finding("problem", "images", f"{error} (mend packages first)", "git checkout data/elpv.json")]
        return [Finding("ok", "images", f"{count:,} of {block.source}, as {block.path} describes them")]
    if block.source == "folder":
        return _folder(Path(block.path), sources.class_names(block), tracked=_is_tracked(block))
    return _archives(block)


def _folder(place: Path, classes: tuple[str, ...] | None, *, tracked: bool) -> list[Finding]:
    pointer = place.with_name(f"{place.name}.dvc")
    if classes is None:
        fetch = f"dvc pull {pointer}" if pointer.exists() else f"copy class folders with images into {place}"
        return [Finding("problem", "images", f"there is no folder {place}", fetch)]
    if len(classes) < 2:
        message = f"{place} must hold a folder of images for each of at least two classes, it holds {len(classes)}"
        return [Finding("problem", "images", message, f"copy class folders with images into {place}")]
    if not tracked:
        message = f"neither DVC nor git tracks all of {place}: a temporary workspace would not find these images"
        return [Finding("problem", "images", message, f"dvc add {place}")]
    return [Finding("ok", "images", f"{len(classes)} classes in {place}; their bytes are DVC's to check")]


def _is_tracked(block: Any) -> bool:
    from pipeline.data.sources import tracked

    return block.allow_untracked or tracked.by_dvc_or_git(Path(block.path))


def _archives(block: Any) -> list[Finding]:
    """Check the downloaded archives of a published data set against its description, and download none."""
    from pipeline.core import artifacts
    from pipeline.data import sources

    published = sources.READERS[block.source].SETS[block.source]
    digests = artifacts.read_json(Path(block.path))["sha256"]
    place = _keras_home() / published.folder
    missing = [name for name in digests if not (place / name).is_file()]
    changed = [name for name in digests if name not in missing and artifacts.sha256_file(place / name) != digests[name]]
    if changed:
        files = " ".join(str(place / name) for name in changed)
        message = f"{block.source}: {', '.join(changed)} in {place} is not what {block.path} describes"
        return [Finding("problem", "images", message, f"rm {files}  # and it is downloaded again")]
    if missing:
        message = f"{block.source}: {', '.join(missing)} is not in {place} yet, and will be downloaded"
        return [Finding("warning", "images", message, "dvc repro dataset")]
    message = f"{block.source}: {len(digests)} archives in {place}, as {block.path} describes them"
    return [Finding("ok", "images", message)]


# --- weights -------------------------------------------------------------------------------------------------------


def weights() -> list[Finding]:
    """Check that every declared network is built, or that what it is built from is there, with the right digest."""
    from pipeline.core import artifacts, params
    from pipeline.networks import graphs

    values = params.load()
    block = params.lookup(values, "backbone")
    names = list(dict.fromkeys(name for key in LISTS for name in params.lookup(values, key)))
    found = []
    for name in names:
        # Once it is built, nothing reads the weights again.
        built = (artifacts.BACKBONES / name / graphs.SPEC).is_file()
        level, message, remedy = _weights_of(_network_of(name, block), block["weights"])
        level = "warning" if built and level == "problem" else level
        message += "; built before, so nothing needs it until the stage backbone runs again" if built and remedy else ""
        found.append(Finding(level, "weights", f"{name}: {message}", remedy))
    return found or [Finding("ok", "weights", "params.yaml declares no pretrained network")]


def _network_of(name: str, block: Mapping[str, Any]) -> str:
    """Return the network in the table that a declared name stands for: its own, or that of a variant."""
    return block.get("variants", {}).get(name, {}).get("network", name)


def _weights_of(network: str, source: str) -> tuple[str, str, str]:
    """Return level, message and remedy for the weights of a network in the table."""
    from pipeline.core import artifacts
    from pipeline.networks.backbones import table, weights

    if source == "random":
        return "ok", "random", ""
    if source != "imagenet":
        if not Path(source).is_file():
            return "problem", f"there is no file {source}", "params.yaml: backbone.weights: imagenet"
        return "ok", f"{source}, SHA-256 {artifacts.sha256_file(Path(source))[:12]}...", ""
    if network not in table.BACKBONES:
        return "problem", "the project knows no network of that name", ""
    official = _official(table.BACKBONES[network])
    if not isinstance(official, weights.PackageFile):
        return _downloaded(official)
    try:
        official.locate()
    except weights.WeightsError as error:
        return "problem", f"{error} (mend packages first)", "params.yaml: backbone.weights: random"
    return "ok", f"{official.file} of {official.package}, with the right digest", ""


def _official(entry: Any) -> Any:
    """Return where the ImageNet weights of a row of the table come from."""
    return entry.imagenet


def _downloaded(official: Any) -> tuple[str, str, str]:
    """Return the same for a file that Keras downloads, without downloading it."""
    path = _keras_home() / "models" / official.name
    if not path.is_file():
        return "warning", f"{path} is not there yet; the stage backbone downloads it from {official.url}", "dvc repro"
    if official.checksum is None:
        return "ok", f"{path}; Keras knows no checksum of it", ""
    with path.open("rb") as file:
        kind = HASHES[len(official.checksum)]
        received = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    if received != official.checksum:
        return "problem", f"{path} has the {kind} {received}, not {official.checksum}", f"rm {path}"
    return "ok", f"{path}, with the right digest", ""


def _keras_home() -> Path:
    return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
