"""Where a project's own MLflow store looks for artifacts, after the project was copied or moved.

MLflow keeps the full path of every run's and model's artifacts in its database. In a copy of the project these paths
still name the original's folders: the copy would log into them, and show nothing once the original is deleted.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

# A folder named `mlflow` would stand in front of the import, and MLflow takes one named `mlruns` for an old file store.
FOLDER = ".mlflow"
ARTIFACTS = "artifacts"
SECONDS_TO_LOCK = 30

# Every column in which MLflow 3.17 keeps where artifacts lie.
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
)


@dataclass(frozen=True)
class ForeignLocation:
    """A value of a column that names a place in another project's store: ``origin``, that store, and ``inside`` it."""

    table: str
    column: str
    location: str
    origin: Path
    inside: Path


def original_projects(database: Path) -> list[str]:
    """Return the other projects whose folders the database names, sorted; none unless this one was copied or moved.

    Reads, and writes nothing. Raises sqlite3.Error.
    """
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as opened:
        return _projects(_foreign(opened, database.parent))


def correct(database: Path) -> list[str]:
    """Rewrite every path in the database to the folder beside it, and return the `original_projects` that it had.

    Artifacts that only the original has are copied; nothing changes there. Either all paths are rewritten or none.
    Raises OSError or sqlite3.Error.
    """
    with contextlib.closing(sqlite3.connect(database, timeout=SECONDS_TO_LOCK, isolation_level=None)) as opened:
        if not _foreign(opened, database.parent):
            return []
        opened.execute("BEGIN IMMEDIATE")
        foreign = _foreign(opened, database.parent)
        for each in foreign:
            here = database.parent / each.inside
            if each.table in ("runs", "logged_models"):
                _copy_if_missing(each.origin / each.inside, here)
            changed = f"UPDATE {each.table} SET {each.column} = ? WHERE {each.column} = ?"
            opened.execute(changed, (here.as_uri(), each.location))
        opened.execute("COMMIT")
    return _projects(foreign)


def _foreign(opened: sqlite3.Connection, folder: Path) -> list[ForeignLocation]:
    is_here = functools.cache(lambda origin: _is_same(origin, folder))
    found = []
    for table, column in COLUMNS:
        # A database of an earlier MLflow lacks some.
        if not any(name == column for _, name, *_ in opened.execute(f"PRAGMA table_info({table})")):
            continue
        elsewhere = (
            f"SELECT DISTINCT {column} FROM {table} "
            f"WHERE {column} LIKE '%/{FOLDER}/{ARTIFACTS}%' AND instr({column}, ?) != 1"
        )
        for (location,) in opened.execute(elsewhere, [(folder / ARTIFACTS).as_uri()]):
            place = _place(location)
            if place is not None and not is_here(place[0]):
                found.append(ForeignLocation(table, column, location, *place))
    return found


def _place(location: str) -> tuple[Path, Path] | None:
    """Return the store's folder in which a location lies, and where in it; None if it lies in none, or on no disk."""
    parts = Path(url2pathname(urlsplit(location).path) if location.startswith("file:") else location).parts
    if parts[:1] != ("/",):
        return None
    for end in range(len(parts) - 1, 0, -1):
        if parts[end - 1 : end + 1] == (FOLDER, ARTIFACTS):
            return Path(*parts[:end]), Path(*parts[end:])
    return None


def _is_same(origin: Path, folder: Path) -> bool:
    """Return whether two paths name one folder: a link, or another name of a disk, is no move."""
    with contextlib.suppress(OSError):
        return os.path.samefile(origin, folder)
    return False


def _copy_if_missing(source: Path, target: Path) -> None:
    """Copy a folder whole or not at all, unless it is there, or the other is not."""
    if os.path.exists(target) or not os.path.isdir(source):
        return
    new = target.with_name(f".{target.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(source, new)
    os.replace(new, target)


def _projects(foreign: Iterable[ForeignLocation]) -> list[str]:
    return sorted({str(each.origin.parent) for each in foreign})
