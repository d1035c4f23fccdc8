"""Remove results of runs and networks that params.yaml no longer declares.

DVC leaves the outputs of a matrix item on disk when the item is removed, and whatever depends on their directory then
sees a change. Under results/runs only directories that hold a run's record are removed: notes of a person stay.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.console.progress import say
from pipeline.core import artifacts, params


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="name what would be removed, and remove nothing")


def main(arguments: argparse.Namespace) -> int:
    verb = "would remove" if arguments.dry_run else "removing"
    for path in strays(params.load()):
        say(f"{verb} {path}: params.yaml does not declare it")
        if not arguments.dry_run:
            remove(path)
    return 0


def declared(values: Mapping[str, Any]) -> dict[Path, set[str]]:
    """Return, for every directory with one entry an item, the names that ``values`` of params.yaml declare."""
    backbones = set(params.lookup(values, "backbones"))
    return {
        artifacts.RUNS: {run.name for run in params.declared_runs(values)},
        artifacts.BACKBONES: backbones,
        artifacts.FEATURES: backbones,
        artifacts.RESULTS / "as_is": backbones,
        artifacts.RESULTS / "explain": set(params.lookup(values, "explain.runs")),
    }


def strays(values: Mapping[str, Any], root: Path = Path()) -> list[Path]:
    """Return what lies in the items' directories under ``root`` and belongs to no declared item, sorted.

    A directory that is itself a link is somebody else's place and is left alone.
    """
    found = []
    for directory, names in declared(values).items():
        place = root / directory
        if place.is_dir() and not place.is_symlink():
            # A name with a dot in front is what a stage is writing at this moment.
            others = [path for path in place.iterdir() if path.name not in names and not path.name.startswith(".")]
            found += [path for path in others if directory != artifacts.RUNS or _is_run(path)]
    return sorted(found)


def _is_run(path: Path) -> bool:
    """Whether a run's results lie here, or a link, whose removal loses nothing."""
    return path.is_symlink() or (path / "record.json").is_file()


def remove(path: Path) -> None:
    """Remove a file, a link or a directory. What a link points to stays."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)
