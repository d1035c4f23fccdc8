"""Where images come from: source name -> reader.

A reader takes the path that DVC watches and returns where the files lie and one entry an image. It decides labels,
strata and groups; it opens no image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field

from pipeline.errors import BakeoffError
from pipeline.artifacts import sha256_file
from pipeline.params import Block
from pipeline.progress import progress

DEFAULT_DESCRIPTION = "data/elpv.json"
CATALOG_COLUMNS = ("path", "label", "stratum", "group", "sha256", "bytes", "width", "height", "mode", "problem")


class DatasetError(BakeoffError):
    """The source cannot be read, or is not what was asked for."""


class DatasetParams(Block):
    """Which images. ``max_unreadable`` is the share of files that may be dropped before the run stops."""

    source: Literal["elpv"]
    path: str
    limit: Annotated[int, Field(ge=8)] | None
    max_unreadable: Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class SourceImage:
    """One image of a source. ``path`` is relative to the source's root; an empty ``group`` means none."""

    path: str
    label: str
    stratum: str
    group: str
    sha256: str


@dataclass(frozen=True)
class Source:
    """Images by path, and the directory they lie in."""

    root: Path
    images: tuple[SourceImage, ...]


def read(params: DatasetParams) -> Source:
    """Return the source named in params, images sorted by path. Raises DatasetError."""
    return READERS[params.source](Path(params.path))


def read_elpv(description: Path) -> Source:
    """Return the ELPV solar cells (Buerhop-Lutz et al. 2018), labelled defective from a probability of one half.

    The annotated defect probability is 0, 1/3, 2/3 or 1; as in Deitsch et al. 2019, 2/3 and 1 count as defective. The
    stratum is the module type, mono or poly. The installed package must be the version in ``description`` and hold
    the bytes of its digest.
    """
    expected = _description(description)
    package, version = expected["package"], expected["version"]
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise DatasetError(f"{description}: the package {package}=={version} is not installed; run `make`") from None
    if distribution.version != version:
        raise DatasetError(f"{description} wants {package}=={version}, received {distribution.version}")
    data = Path(str(distribution.locate_file("elpv_dataset/data")))
    root = data / "images"
    images = []
    lines = (data / "labels.csv").read_text(encoding="utf-8").splitlines()
    for line in progress(lines, total=len(lines), label="reading the source", unit="images"):
        location, probability, module_type = line.split()
        path = PurePosixPath(location).relative_to("images").as_posix()
        label = "defective" if float(probability) >= 0.5 else "functional"
        images.append(SourceImage(path, label, module_type, "", sha256_file(root / path)))
    images.sort(key=lambda image: image.path)
    received = content_digest(images)
    if received != expected["sha256"]:
        raise DatasetError(f"{description} wants images with digest {expected['sha256']}, received {received}")
    return Source(root, tuple(images))


def _description(path: Path) -> dict[str, str]:
    """Return package, version and sha256 from a description. Raises DatasetError unless it has all three as text."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(f"params.yaml: dataset.path must name the description of the images, and {path} "
                           f"does not exist; {DEFAULT_DESCRIPTION} comes with the project") from None  # fmt: skip
    except (OSError, ValueError) as error:
        raise DatasetError(f"params.yaml: dataset.path must name a JSON file, received {path}: {error}") from None
    keys = ("package", "version", "sha256")
    if not (isinstance(found, dict) and all(isinstance(found.get(key), str) for key in keys)):
        raise DatasetError(f"{path} must hold an object with {', '.join(keys)} as text, received {json.dumps(found)[:200]}")
    return found


READERS: dict[str, Callable[[Path], Source]] = {"elpv": read_elpv}


def content_digest(images: list[SourceImage]) -> str:
    """Return one SHA-256 over every image's path, label, stratum and bytes, independent of the order given."""
    lines = sorted(f"{image.path}\0{image.label}\0{image.stratum}\0{image.sha256}\n" for image in images)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def split_name(image: SourceImage) -> str:
    """Return the image's file name inside its class folder of the split: its path with folders flattened.

    The path keeps its folders in the name, so two files called alike in different folders stay two.
    """
    return "__".join(PurePosixPath(image.path).parts)
