"""Which files a person means who names files, folders and patterns."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from pipeline.console.errors import BakeoffError


def find_images(paths: Sequence[str]) -> list[Path]:
    """Return files from files, folders and patterns, each once, in the order given. Raises BakeoffError for nothing."""
    found: dict[Path, None] = {}
    for text in paths:
        path = Path(text)
        matches = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(text, recursive=True))]
        files = [file for match in matches for file in (_in_folder(match) if match.is_dir() else [match])]
        if not files:
            raise BakeoffError(f"{text}: no image found; give files, folders or patterns of {', '.join(endings())}")
        found.update(dict.fromkeys(files))
    return list(found)


def endings() -> list[str]:
    """Return what the names of files of the formats that are read end with. A file given by name may end otherwise."""
    from PIL import Image

    from pipeline.images import decode

    return sorted(ending for ending, name in Image.registered_extensions().items() if name in decode.FORMATS)


def _in_folder(folder: Path) -> list[Path]:
    known = set(endings())
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in known and file.is_file())
