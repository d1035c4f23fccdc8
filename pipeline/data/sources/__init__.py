"""Where images come from: source name -> reader, and the catalog that the dataset stage makes of it.

A reader decides labels, strata, predefined parts and groups, and says which files are none of that; it decodes no
image. A new source is one module with ``read``, ``root`` and ``class_names``, and one line in `READERS`. One that
unpacks images from archives also has ``provide``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType

from pipeline.core import artifacts
from pipeline.data.sources import elpv, folder, groups, keras_datasets
from pipeline.data.sources.source import DatasetError, DatasetParams, Source, SourceImage, Unused

__all__ = [
    "READERS",
    "DatasetError",
    "DatasetParams",
    "Source",
    "SourceImage",
    "Unused",
    "class_names",
    "provide",
    "read",
    "read_catalog",
    "root",
    "split_names",
]

READERS: dict[str, ModuleType] = {"elpv": elpv, "folder": folder, **dict.fromkeys(keras_datasets.SETS, keras_datasets)}

CATALOG_COLUMNS = (
    *("path", "label", "stratum", "group", "part", "near_duplicates", "sha256"),
    *("bytes", "width", "height", "mode", "frames", "turned", "brightness"),
)

# What a file system allows for one name, in bytes.
LONGEST_NAME = 255


def read(params: DatasetParams) -> Source:
    """Return the source named in params with its groups, images sorted by path. Raises DatasetError."""
    source = READERS[params.source].read(params)
    if params.groups.module:
        named = elpv.modules(source.images)
    else:
        named = groups.names([image.path for image in source.images], root=source.root, params=params.groups)
    grouped = [dataclasses.replace(image, group=group) for image, group in zip(source.images, named, strict=True)]
    return dataclasses.replace(source, images=tuple(grouped))


def root(params: DatasetParams) -> Path:
    """Return the directory that the source's paths are relative to, without reading its images."""
    return READERS[params.source].root(params)


def provide(params: DatasetParams, images: Sequence[SourceImage]) -> None:
    """Put the files of ``images`` below `root`, where the source keeps them in archives; elsewhere they lie there.

    Raises DatasetError if an archive is not there.
    """
    if params.source in keras_datasets.SETS:
        keras_datasets.provide(params, images)


def class_names(params: DatasetParams) -> tuple[str, ...] | None:
    """Return the sorted names of the classes as far as they can be had at once; None where the images are not there."""
    return READERS[params.source].class_names(params)


def read_catalog() -> list[SourceImage]:
    """Return every image that is used, in the catalog's order. Raises ArtifactError without a catalog."""
    rows = artifacts.read_csv(artifacts.CATALOG, CATALOG_COLUMNS)
    return [SourceImage(**{field.name: row[field.name] for field in dataclasses.fields(SourceImage)}) for row in rows]


def split_names(images: Sequence[SourceImage]) -> list[str]:
    """Return every image's file name inside its class folder of the split: its path below the class, flattened.

    Folders stay in the name, so two files called alike in different folders stay two. Where two images of a class
    would still be called alike, on a file system that knows no upper case or normalizes Unicode as well, and where a
    name gets too long, a digest of the path takes the place of what is left out.
    """
    plain = [unicodedata.normalize("NFC", "__".join(_below_class(image))) for image in images]
    counts = Counter((image.label, name.casefold()) for image, name in zip(images, plain, strict=True))
    return [
        name
        if counts[image.label, name.casefold()] == 1 and len(name.encode()) <= LONGEST_NAME
        else _shortened(name, image.path)
        for image, name in zip(images, plain, strict=True)
    ]


def _below_class(image: SourceImage) -> tuple[str, ...]:
    names = PurePosixPath(image.path).parts
    names = names[1:] if image.part else names
    in_class_folder = len(names) > 1 and unicodedata.normalize("NFC", names[0]) == image.label
    return names[1:] if in_class_folder else names


def _shortened(name: str, path: str) -> str:
    digest = hashlib.sha256(path.encode()).hexdigest()[:12]
    ending = PurePosixPath(name).suffix
    if len(ending.encode()) > 16:
        ending = ""
    room = LONGEST_NAME - len(ending.encode()) - len(digest) - 1
    stem = name.removesuffix(ending).encode()[:room].decode("utf-8", "ignore")
    return f"{stem}-{digest}{ending}"
