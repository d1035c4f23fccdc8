"""Are two files that differ in bytes the same numbers within a tolerance? Arrays, JSON, and text with numbers in it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from pipeline.audits.review import locks
from pipeline.console.errors import reading
from pipeline.core.params import Block

# Digests in JSON name inputs, which are compared themselves.
DIGEST = re.compile(r"[0-9a-f]{32}(\.dir)?|[0-9a-f]{64}")
# A number that is part of no word: neither of "lite0" nor of a digest.
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.])")
INTEGER = re.compile(r"[-+]?\d+")
# What holds numbers that anybody can read.
TEXTS = (".json", ".csv", ".md", ".txt")
MOST_NOTES = 3


class ToleranceParams(Block):
    """Two numbers are equal if they differ by no more than ``absolute`` + ``relative`` x the claimed one.

    For numbers that are measured or computed. Integers count or name something: they are equal or they are not.
    """

    absolute: float = pydantic.Field(ge=0)
    relative: float = pydantic.Field(ge=0, lt=1)

    def close(self, claimed: Any, replayed: Any) -> bool:
        """Whether two numbers, or two arrays of one shape, are equal everywhere; NaN equals NaN."""
        return bool(np.allclose(replayed, claimed, rtol=self.relative, atol=self.absolute, equal_nan=True))


@dataclass(frozen=True)
class Closeness:
    """``close``: None if the kind of file can be compared by bytes alone. ``notes``: what differs."""

    close: bool | None
    notes: tuple[str, ...] = ()


def compare(claimed: Path, replayed: Path, tolerance: ToleranceParams) -> Closeness:
    """Compare two files, or two directories file by file.

    A directory is close if every file in it is, or is the same bytes; it cannot be judged (None) if that hangs on a
    file that can be compared by bytes alone.
    """
    if claimed.is_dir() != replayed.is_dir():
        return Closeness(False, ("one is a file, the other a directory",))
    if not claimed.is_dir():
        return _file(claimed, replayed, tolerance)
    names = {side: set(locks.names_in(side)) for side in (claimed, replayed)}
    missing, new = sorted(names[claimed] - names[replayed]), sorted(names[replayed] - names[claimed])
    notes = [f"claimed, and not there now: {_listed(missing)}"] if missing else []
    notes += [f"not claimed: {_listed(new)}"] if new else []
    verdicts = [False] if notes else []
    for name in sorted(names[claimed] & names[replayed]):
        if locks.digest(claimed / name) != locks.digest(replayed / name):
            found = _file(claimed / name, replayed / name, tolerance)
            verdicts.append(found.close)
            notes += [f"{name}: {note}" for note in found.notes]
    close = False if False in verdicts else None if None in verdicts else True
    return Closeness(close, tuple(notes))


def _file(claimed: Path, replayed: Path, tolerance: ToleranceParams) -> Closeness:
    readers: Mapping[str, Callable[[Path, Path, ToleranceParams], Closeness]] = {
        ".npy": _arrays,
        ".npz": _arrays,
        ".h5": _arrays,
        ".json": _json,
        ".csv": _text,
        ".md": _text,
        ".txt": _text,
        ".png": _picture,
    }
    reader = readers.get(claimed.suffix)
    if reader is None:
        return Closeness(None, ("other bytes",))
    try:
        return reader(claimed, replayed, tolerance)
    except (OSError, ValueError) as error:
        return Closeness(False, (f"cannot be read: {error}",))


# --- arrays --------------------------------------------------------------------------------------------------------


def _arrays(claimed: Path, replayed: Path, tolerance: ToleranceParams) -> Closeness:
    one, other = arrays(claimed), arrays(replayed)
    if one.keys() != other.keys():
        return Closeness(False, (f"holds the arrays {_listed(sorted(other))}, claimed {_listed(sorted(one))}",))
    notes, close = [], True
    for name, before in one.items():
        after = other[name]
        if before.shape != after.shape or before.dtype != after.dtype:
            notes.append(f"{name} is {after.dtype} {after.shape}, claimed {before.dtype} {before.shape}")
            close = False
        elif not np.array_equal(before, after, equal_nan=before.dtype.kind == "f"):
            close &= before.dtype.kind == "f" and tolerance.close(before, after)
            numbers = before.dtype.kind in "fiu"
            by = f" by at most {largest_difference(before, after):.3g}" if numbers else ""
            notes.append(f"{name} differs{by}")
    return Closeness(close, tuple(notes) or ("the same numbers in other bytes",))


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npy, .npz or HDF5 file by name. Raises ArtifactError if it is none."""
    if path.suffix == ".h5":
        with reading(path):
            return _datasets(path)
    with reading(path), path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        return {"array": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded}


def largest_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest absolute difference of two arrays of one shape; NaN if only one of a pair is a number."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        difference = np.abs(one - other)
    same = np.isnan(one) & np.isnan(other) | (one == other)
    return float(np.max(np.where(same, 0.0, difference), initial=0.0))


def _datasets(path: Path) -> dict[str, np.ndarray]:
    import h5py

    found: dict[str, np.ndarray] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            found[name] = np.asarray(node[()])

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


# --- JSON, text and pictures ---------------------------------------------------------------------------------------


def _json(claimed: Path, replayed: Path, tolerance: ToleranceParams) -> Closeness:
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (claimed, replayed))
    return values(before, after, tolerance)


def values(claimed: Any, replayed: Any, tolerance: ToleranceParams) -> Closeness:
    """Compare two JSON values leaf by leaf. Digests are not compared: what they are of, is."""
    before, after = dict(leaves(claimed)), dict(leaves(replayed))
    notes = [f"{name} is not there, claimed {before[name]!r}" for name in before if name not in after]
    notes += [f"{name} is not claimed: {after[name]!r}" for name in after if name not in before]
    close = not notes
    for name in before.keys() & after.keys():
        one, other = before[name], after[name]
        if (one == other and type(one) is type(other)) or (_is_digest(one) and _is_digest(other)):
            continue
        counts = isinstance(one, int) and isinstance(other, int)
        near = not counts and _is_number(one) and _is_number(other) and tolerance.close(one, other)
        close &= near
        if not near:
            notes.append(f"{name} is {other!r}, claimed {one!r}")
    return Closeness(close, _first(sorted(notes)) or ("the same within the tolerance",))


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of everything in a JSON value that is neither an object nor a list, or is empty."""
    members = list(value.items()) if isinstance(value, dict) else []
    members = list(enumerate(value)) if isinstance(value, list) else members
    if not members:
        yield name, value
        return
    for key, member in members:
        yield from leaves(member, f"{name}.{key}" if name else str(key))


def _text(claimed: Path, replayed: Path, tolerance: ToleranceParams) -> Closeness:
    before, after = (path.read_text(encoding="utf-8").splitlines() for path in (claimed, replayed))
    notes = [] if len(before) == len(after) else [f"{len(after)} lines, claimed {len(before)}"]
    for row, (one, other) in enumerate(zip(before, after, strict=False), start=1):
        if one != other and not _close_lines(one, other, tolerance):
            notes.append(f"line {row} is {_cut(other)!r}, claimed {_cut(one)!r}")
    return Closeness(not notes, _first(notes) or ("the same within the tolerance",))


def _close_lines(one: str, other: str, tolerance: ToleranceParams) -> bool:
    if NUMBER.sub("#", one) != NUMBER.sub("#", other):
        return False
    pairs = zip(NUMBER.findall(one), NUMBER.findall(other), strict=True)
    return all(first == second or _close_words(first, second, tolerance) for first, second in pairs)


def _close_words(one: str, other: str, tolerance: ToleranceParams) -> bool:
    counts = INTEGER.fullmatch(one) and INTEGER.fullmatch(other)
    return not counts and tolerance.close(float(one), float(other))


def _picture(claimed: Path, replayed: Path, tolerance: ToleranceParams) -> Closeness:
    from PIL import Image

    with Image.open(claimed) as one, Image.open(replayed) as other:
        if one.size != other.size:
            return Closeness(None, (f"{other.size} pixels, claimed {one.size}",))
        differing = (np.asarray(one.convert("RGBA")) != np.asarray(other.convert("RGBA"))).any(axis=-1).mean()
    if differing == 0:
        return Closeness(True, ("the same pixels",))
    return Closeness(None, (f"{differing:.2%} of the pixels differ",))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


def _first(notes: list[str]) -> tuple[str, ...]:
    more = [f"and {len(notes) - MOST_NOTES} more differences"] if len(notes) > MOST_NOTES else []
    return tuple(notes[:MOST_NOTES] + more)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MOST_NOTES]) + (f" and {len(names) - MOST_NOTES} more" if len(names) > MOST_NOTES else "")


def _cut(text: str, longest: int = 100) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."
