"""Which images belong together: photographs of one patient, one plant, one video."""

from __future__ import annotations

import csv
import posixpath
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from pydantic import field_validator, model_validator

from pipeline.console.errors import BakeoffError
from pipeline.core.params import Block

PATH_COLUMN = "path"
SHOWN = 5


class GroupError(BakeoffError):
    """Some image has no group, or more than one."""


class GroupParams(Block):
    """Where the group of an image is written: at most one of a pattern, a CSV column, and ELPV's file order.

    ``pattern``: a regular expression that is searched in the path; its first capture group is the image's group.
    ``csv``: a file in the source's folder with the columns ``path`` and ``column``.
    """

    pattern: str | None
    csv: str | None
    column: str | None
    module: bool

    @field_validator("pattern")
    @classmethod
    def _captures(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                captures = re.compile(value).groups
            except re.error as error:
                raise ValueError(f"a regular expression ({error})") from None
            if not captures:
                raise ValueError("a regular expression with a capture group, such as '/(patient[0-9]+)_'")
        return value

    @field_validator("csv")
    @classmethod
    def _among_the_images(cls, value: str | None) -> str | None:
        # DVC watches the folder: another file could change without anybody noticing.
        if value is None:
            return None
        value = posixpath.normpath(value)
        if re.match(r"/|\.\.(/|$)", value):
            raise ValueError("the path of a file below dataset.path, relative to it")
        return value

    @model_validator(mode="after")
    def _at_most_one(self) -> GroupParams:
        if (self.csv is None) != (self.column is None):
            raise ValueError("given csv and column together")
        if (self.pattern is not None) + (self.csv is not None) + self.module > 1:
            raise ValueError("at most one of pattern, csv with column, and module")
        return self


def names(paths: Sequence[str], *, root: Path, params: GroupParams) -> list[str]:
    """Return the group of every path, empty for an image on its own. Raises GroupError if one cannot be told."""
    if params.pattern is not None:
        return _by_pattern(paths, params.pattern)
    if params.csv is not None:
        return _by_column(paths, root / params.csv, str(params.column))
    return [""] * len(paths)


def _by_pattern(paths: Sequence[str], pattern: str) -> list[str]:
    matches = [re.search(pattern, unicodedata.normalize("NFC", path)) for path in paths]
    _require_all(paths, matches, f"the pattern {pattern!r} of dataset.groups matches")
    # A capture group that takes no part in the match says that the image stands alone.
    return [(match[1] or "") if match else "" for match in matches]


def _by_column(paths: Sequence[str], file: Path, column: str) -> list[str]:
    group_of: dict[str, str] = {}
    for line, row in _rows(file, column):
        if row[PATH_COLUMN] is None:
            raise GroupError(f"{file}: line {line} has too few cells, and none in the column {PATH_COLUMN}")
        path = unicodedata.normalize("NFC", row[PATH_COLUMN])
        group = (row[column] or "").strip()
        if group_of.setdefault(path, group) != group:
            raise GroupError(f"{file}: {path} is in two groups, {group_of[path]!r} and {group!r}")
    found = [group_of.get(unicodedata.normalize("NFC", path)) for path in paths]
    _require_all(paths, found, f"{file} has a row for")
    return [group or "" for group in found]


def _rows(file: Path, column: str) -> list[tuple[int, dict[str, str | None]]]:
    """Return every row and its line; the cells that a row lacks are None."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle)
            columns = reader.fieldnames or []
            missing = [name for name in (PATH_COLUMN, column) if name not in columns]
            if missing:
                raise GroupError(f"{file} must have the columns {PATH_COLUMN} and {column}, received {list(columns)}")
            return [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeError, csv.Error) as error:
        raise GroupError(f"params.yaml: dataset.groups.csv must name a CSV file, received {file}: {error}") from None


def _require_all(paths: Sequence[str], found: Sequence[object], what: str) -> None:
    without = [path for path, group in zip(paths, found, strict=True) if group is None]
    if without:
        shown = "".join(f"\n  {path}" for path in without[:SHOWN])
        more = f"\n  and {len(without) - SHOWN} more" if len(without) > SHOWN else ""
        raise GroupError(
            f"Every image needs a group: {what} {len(paths) - len(without)} of {len(paths)} images. Without one:"
            f"{shown}{more}\nAn image on its own has an empty cell in the CSV file, or an empty capture."
        )
