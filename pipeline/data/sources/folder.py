"""A folder of images: class folders, or folders train, validation and test with class folders inside."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.console.progress import progress, say
from pipeline.core.artifacts import sha256_file
from pipeline.data.sources import tracked
from pipeline.data.sources.source import LITTER, DatasetError, DatasetParams, Source, SourceImage, Unused

PART_NAMES = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
}
LINK_TO_FOLDER = "a link to a folder, which is not followed"
SHOWN = 5


class _ClassFolder(NamedTuple):
    """``path`` is relative to the root; ``part`` is empty unless the folder lies in one that is named after a part."""

    path: str
    label: str
    part: str


class _Layout(NamedTuple):
    """The class folders, and the folders that they lie in: the root, as an empty path, and those of the parts."""

    classes: list[_ClassFolder]
    places: list[str]


def root(params: DatasetParams) -> Path:
    return Path(params.path)


def class_names(params: DatasetParams) -> tuple[str, ...] | None:
    """Return the names of the class folders that hold files; None if there is no such folder."""
    folder = Path(params.path)
    if not folder.is_dir():
        return None
    return tuple(sorted({entry.label for entry in _layout(folder).classes if any(_files(folder, entry, []))}))


def read(params: DatasetParams) -> Source:
    """Return every regular file in a class folder as an image, and everything else as unused.

    The class is the first folder level, under a part's folder where the parts are predefined; folders below belong to
    it. Labels are in Unicode's composed form (NFC). Links to files are read, links to folders are not followed, as DVC
    does not follow them either; since any number of images may lie behind one, that is told loudly. Raises DatasetError
    for a folder that is missing, empty, not tracked, ambiguous, of fewer than two classes, or that cannot be listed.
    """
    folder = Path(params.path)
    _check_folder(folder, params)
    unused: list[Unused] = []
    layout = _layout(folder)
    # The groups of the images are versioned with them, and no image.
    skipped = _composed(params.groups.csv) if params.groups.csv else None
    unused += _outside(folder, layout, skipped)
    files = []
    for entry in layout.classes:
        found = [path for path in _files(folder, entry, unused) if _composed(path) != skipped]
        files += [(path, entry) for path in found]
        if not found:
            unused.append(Unused(entry.path, entry.label, "ignored", "a class folder without a file that can be used"))
    _tell_links(unused)
    images = []
    for path, entry in progress(files, total=len(files), label="reading the source", unit="files"):
        try:
            digest = sha256_file(folder / path)
        except OSError as error:
            unused.append(Unused(path, entry.label, "dropped", f"cannot be opened ({error.strerror})"))
            continue
        images.append(SourceImage(path, entry.label, "", "", digest, entry.part))
    _check_classes(folder, images)
    return Source(folder, tuple(sorted(images, key=lambda image: image.path)), tuple(sorted(unused, key=_path_of)))


def _check_folder(folder: Path, params: DatasetParams) -> None:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        hint = "; `dvc pull` fetches it" if folder.with_name(f"{folder.name}.dvc").exists() else ""
        raise DatasetError(f"params.yaml: dataset.path must name a folder of images, and {folder} {what}{hint}")
    if not any(_listed(folder)):
        raise DatasetError(f"{folder} is empty: copy class folders with images into it, or `dvc pull` if DVC has them")
    if not params.allow_untracked and not tracked.by_dvc_or_git(folder):
        raise DatasetError(
            f"Neither DVC nor git tracks all of {folder}, so an experiment in a temporary workspace would not find "
            f"these images: run `dvc add {folder}`, or set dataset.allow_untracked to true in params.yaml"
        )


def _listed(folder: Path) -> list[os.DirEntry]:
    """Return what lies in a folder, by name. Raises DatasetError if that cannot be had: nobody knows how much it is."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(f"{_printable(str(folder))} cannot be listed ({error.strerror})") from None


def _tell_links(unused: Sequence[Unused]) -> None:
    links = [entry.path for entry in unused if entry.reason == LINK_TO_FOLDER]
    if links:
        more = f" and {len(links) - SHOWN} more" if len(links) > SHOWN else ""
        say(
            f"WARNING: links to folders are not followed, nor does DVC follow them, so no image behind them is used: "
            f"{', '.join(links[:SHOWN])}{more}. Copy the folders to where the links are"
        )


def _folders(folder: Path) -> list[str]:
    return [entry.name for entry in _listed(folder) if _is_folder(entry) and _verdict(entry) is None]


def _layout(folder: Path) -> _Layout:
    """Return the class folders, inside part folders if those are predefined. Raises DatasetError if that is unclear."""
    names = _folders(folder)
    part_of = {name: PART_NAMES[name.casefold()] for name in names if name.casefold() in PART_NAMES}
    others = [name for name in names if name not in part_of]
    classes_in = {name: _folders(folder / name) for name in part_of}
    if others and not any(classes_in.values()):
        part_of = {}  # classes may be called like parts: a photograph of a train
    if not part_of:
        return _Layout([_ClassFolder(name, _composed(name), "") for name in names], [""])
    if others:
        raise DatasetError(
            f"{folder} holds folders named after parts ({', '.join(part_of)}) and others ({', '.join(others[:5])}"
            f"{', ...' if len(others) > 5 else ''}): move the classes into the part folders, or rename those"
        )
    repeated = [part for part, count in Counter(part_of.values()).items() if count > 1]
    if repeated:
        named = [name for name, part in part_of.items() if part in repeated]
        raise DatasetError(f"{folder} holds several folders for the part {repeated[0]}: {', '.join(named)}")
    if "train" not in part_of.values():
        raise DatasetError(
            f"{folder} holds {', '.join(part_of)} but no folder train. Missing parts are drawn from train, and train "
            f"from nothing: add it, or rename the folders if they are classes"
        )
    if not any(classes_in.values()):
        raise DatasetError(f"{folder}: {', '.join(part_of)} must hold class folders, and hold none")
    classes = [
        _ClassFolder(f"{name}/{label}", _composed(label), part)
        for name, part in part_of.items()
        for label in classes_in[name]
    ]
    return _Layout(classes, ["", *part_of])


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _outside(folder: Path, layout: _Layout, skipped: str | None) -> Iterator[Unused]:
    """Yield what lies beside the class folders."""
    known = {entry.path for entry in layout.classes} | set(layout.places)
    for place in layout.places:
        for entry in _listed(folder / place):
            path = f"{place}/{entry.name}" if place else entry.name
            if path in known or _composed(path) == skipped:
                continue
            kind, reason = _verdict(entry) or ("dropped", "not in a class folder")
            yield Unused(_printable(path), "", kind, reason)


def _files(folder: Path, inside: _ClassFolder, unused: list[Unused]) -> Iterator[str]:
    """Yield the paths of all files below a class folder that may be images; the rest goes to ``unused``."""
    waiting = [inside.path]
    while waiting:
        place = waiting.pop()
        for entry in _listed(folder / place):
            path = f"{place}/{entry.name}"
            verdict = _verdict(entry)
            if verdict:
                unused.append(Unused(_printable(path), inside.label, *verdict))
            elif _is_folder(entry):
                waiting.append(path)
            else:
                yield path


def _verdict(entry: os.DirEntry) -> tuple[str, str] | None:
    """Return kind and reason for an entry that cannot be used; None for a folder or a file that may be an image."""
    if _is_litter(entry.name):
        return ("ignored", "hidden" if entry.name.startswith(".") else "left by an operating system")
    if _printable(entry.name) != entry.name:
        return ("dropped", "its name is not UTF-8")
    try:
        if entry.is_symlink() and entry.is_dir():
            return ("dropped", LINK_TO_FOLDER)
        if entry.is_symlink() and not os.path.exists(entry.path):
            return ("dropped", "a link that leads nowhere")
        regular = entry.is_dir() or entry.is_file()
    except OSError:
        return ("dropped", "a link that leads nowhere")  # a loop of links
    return None if regular else ("dropped", "not a regular file")


def _is_folder(entry: os.DirEntry) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.casefold() in LITTER


def _printable(name: str) -> str:
    """Return a name that can be written as UTF-8: bytes that are none are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _path_of(entry: Unused) -> str:
    return entry.path


def _check_classes(folder: Path, images: Sequence[SourceImage]) -> None:
    labels = sorted({image.label for image in images})
    if len(labels) < 2:
        raise DatasetError(
            f"{folder} must hold at least two class folders with images, received {', '.join(labels) or 'none'}. "
            f"The first folder level is the class"
        )
    spellings: Mapping[str, list[str]] = defaultdict(list)
    for label in labels:
        spellings[label.casefold()].append(label)
    for same in spellings.values():
        if len(same) > 1:
            raise DatasetError(f"{folder}: the classes {' and '.join(same)} differ in upper case alone: rename one")
