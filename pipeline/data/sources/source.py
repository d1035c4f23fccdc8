"""What every reader takes and returns."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.console.errors import BakeoffError
from pipeline.core.params import Block
from pipeline.data.sources.groups import GroupParams

# Left by operating systems; they are no images and nobody put them there. Hidden files are ignored as well.
LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx"}


class DatasetError(BakeoffError):
    """The source cannot be read, or is not what was asked for."""


class DatasetParams(Block):
    """Which images, which of them stay together, and what may be left out.

    ``max_dropped``: share of files that may be left out before the run stops.
    ``conflicting_duplicates``: what happens to byte-identical images with different labels.
    """

    source: Literal["elpv", "folder", "mnist", "fashion_mnist", "cifar10"]
    path: str
    limit: Annotated[int, Field(ge=8)] | None
    max_dropped: Annotated[float, Field(ge=0, lt=1)]
    conflicting_duplicates: Literal["keep", "drop", "stop"]
    groups: GroupParams
    allow_untracked: bool

    @model_validator(mode="after")
    def _groups_fit_the_source(self) -> DatasetParams:
        if self.groups.module and self.source != "elpv":
            raise ValueError("without groups.module unless source is elpv: other images have no modules")
        if self.groups.csv is not None and self.source != "folder":
            raise ValueError("without groups.csv unless source is folder: the file lies among the images")
        return self


def read_description(path: Path, *, default: str) -> Any:
    """Return what a JSON file says of images that lie elsewhere. Raises DatasetError unless it can be read.

    ``default``: the description that comes with the project.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(
            f"params.yaml: dataset.path must name the description of the images, and {path} "
            f"does not exist; {default} comes with the project"
        ) from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"params.yaml: dataset.path must name a JSON file, received {path}: {error}") from None


@dataclass(frozen=True)
class SourceImage:
    """One image. ``path`` is relative to the source's root.

    ``group``: images of one group stay together; empty for none. ``part``: the part of the split that the source
    predefines; empty for none. ``near_duplicates``: the cluster of images that look the same, which the catalog adds.
    """

    path: str
    label: str
    stratum: str
    group: str
    sha256: str
    part: str = ""
    near_duplicates: str = ""


@dataclass(frozen=True)
class Unused:
    """A file or folder that is not used. ``kind``: dropped, which counts against ``max_dropped``, or ignored."""

    path: str
    label: str
    kind: Literal["dropped", "ignored"]
    reason: str


@dataclass(frozen=True)
class Source:
    """Images by path, the directory they lie in, and what else lies there."""

    root: Path
    images: tuple[SourceImage, ...]
    unused: tuple[Unused, ...] = ()
