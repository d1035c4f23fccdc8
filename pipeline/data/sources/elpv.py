"""ELPV: 2,624 solar cells under electroluminescence (Buerhop-Lutz et al. 2018), from the package elpv-dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path, PurePosixPath

from pipeline.console.progress import progress
from pipeline.core.artifacts import sha256_file
from pipeline.data.sources.source import DatasetError, DatasetParams, Source, SourceImage, read_description

DEFAULT_DESCRIPTION = "data/elpv.json"
CELLS_OF_A_MODULE = 60


def read(params: DatasetParams) -> Source:
    """Return the cells, labelled defective from a probability of one half, and check them. Raises DatasetError.

    The annotated defect probability is 0, 1/3, 2/3 or 1; as in Deitsch et al. 2019, 2/3 and 1 count as defective. The
    stratum is the module type, mono or poly. The installed package must be the version in ``description`` and hold
    the bytes of its digest.
    """
    data = _data(Path(params.path))
    location = data / "images"
    images = []
    lines = (data / "labels.csv").read_text(encoding="utf-8").splitlines()
    for line in progress(lines, total=len(lines), label="reading the source", unit="images"):
        file, probability, module_type = line.split()
        path = PurePosixPath(file).relative_to("images").as_posix()
        label = "defective" if float(probability) >= 0.5 else "functional"
        images.append(SourceImage(path, label, module_type, "", sha256_file(location / path)))
    images.sort(key=lambda image: image.path)
    expected, received = _description(Path(params.path))["sha256"], content_digest(images)
    if received != expected:
        raise DatasetError(f"{params.path} wants images with digest {expected}, received {received}")
    return Source(location, tuple(images))


def root(params: DatasetParams) -> Path:
    return _data(Path(params.path)) / "images"


def class_names(params: DatasetParams) -> tuple[str, ...]:
    return ("defective", "functional")


def modules(images: Sequence[SourceImage]) -> list[str]:
    """Return an inferred module for every image, in the order of their files.

    The published labels name no modules, but the files follow them: a module is a run of `CELLS_OF_A_MODULE` files
    inside a run of files of one module type. The true borders may lie elsewhere.
    """
    names, run, cells = [], 0, 0
    for index, image in enumerate(images):
        if not index or cells == CELLS_OF_A_MODULE or image.stratum != images[index - 1].stratum:
            run, cells = run + 1, 0
        cells += 1
        names.append(f"{image.stratum}-{run:02d}")
    return names


def _data(description: Path) -> Path:
    """Return the folder of the installed package that holds labels and images, of the version that is wanted."""
    expected = _description(description)
    package, version = expected["package"], expected["version"]
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise DatasetError(f"{description}: the package {package}=={version} is not installed; run `make`") from None
    if distribution.version != version:
        raise DatasetError(f"{description} wants {package}=={version}, received {distribution.version}")
    return Path(str(distribution.locate_file("elpv_dataset/data")))


def _description(path: Path) -> dict[str, str]:
    """Return package, version and sha256 from a description. Raises DatasetError unless it has all three as text."""
    found = read_description(path, default=DEFAULT_DESCRIPTION)
    keys = ("package", "version", "sha256")
    if not (isinstance(found, dict) and all(isinstance(found.get(key), str) for key in keys)):
        raise DatasetError(
            f"{path} must hold an object with {', '.join(keys)} as text, received {json.dumps(found)[:200]}"
        )
    return found


def content_digest(images: list[SourceImage]) -> str:
    """Return one SHA-256 over every image's path, label, stratum and bytes, independent of the order given."""
    lines = sorted(f"{image.path}\0{image.label}\0{image.stratum}\0{image.sha256}\n" for image in images)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
