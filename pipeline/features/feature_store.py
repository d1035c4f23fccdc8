"""What a frozen network made of an image, kept by content, so that it is computed once.

The store is a cache beside the pipeline: nothing in it is an output, and deleting it costs time only. It is a directory
of *spaces*, one for each (network, layers, preprocessing, engine, precision). A space holds *segments*: files of rows
that are written whole, renamed into place and never changed. So any number of processes may read and write it, and be
killed, without a lock; a segment that vanishes while it is being read is the same as one that was never there. Each
row carries a checksum, so a damaged one counts as missing.

A store has a size budget. When new rows would exceed it, the spaces that were used longest ago are removed; rows that
do not fit even then are not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from pipeline.console.errors import BakeoffError
from pipeline.core import artifacts, provenance

FORMAT = 1
DEFAULT_GIGABYTES = 10.0
# A segment is written when it holds this much, or has waited this long: what a killed run loses at most.
SEGMENT_BYTES = 32 * 2**20
SEGMENT_SECONDS = 15
# Temporary files older than this belong to a process that was killed.
ABANDONED_SECONDS = 3600


class StoreError(BakeoffError):
    """The settings of the store make no sense."""


class Space:
    """The rows of one network, float32 (width,), by 32-byte keys. Use as a context manager; leaving it writes."""

    def __init__(self, store: FeatureStore, directory: Path, *, width: int):
        self.directory = directory
        self.width = width
        self._store = store
        self._places: dict[bytes, _Place] = {}
        self._waiting: dict[bytes, np.ndarray] = {}
        self._written = time.monotonic()
        for segment in sorted(directory.glob("*.rows")):
            self._learn(segment)

    def __enter__(self) -> Space:
        return self

    def __exit__(self, *exception: object) -> None:
        self.flush()

    def __contains__(self, key: bytes) -> bool:
        return key in self._places or key in self._waiting

    def add(self, keys: Sequence[bytes], rows: np.ndarray) -> None:
        """Keep ``rows``, float32 (n, width); a segment is written every now and then, and by `flush`."""
        if rows.dtype != np.float32 or rows.shape != (len(keys), self.width):
            raise ValueError(f"rows must be float32 {(len(keys), self.width)}, received {rows.dtype} {rows.shape}")
        self._waiting |= {key: np.array(row) for key, row in zip(keys, rows, strict=True)}
        full = len(self._waiting) * 4 * self.width >= SEGMENT_BYTES
        if full or time.monotonic() - self._written >= SEGMENT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait, as one segment."""
        self._written = time.monotonic()
        if not self._waiting:
            return
        keys, rows = list(self._waiting), np.stack(list(self._waiting.values()))
        path = self.directory / f"{uuid.uuid4().hex}.rows"
        with artifacts.whole_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 32))
            np.save(file, np.array([zlib.crc32(row) for row in rows], dtype=np.uint32))
            np.save(file, rows)
        self._waiting = {}
        self._learn(path)

    def read(self, keys: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Return (rows float32 (n, width), found bool (n,)); the row of a key that was not found is zero."""
        rows, found = np.zeros((len(keys), self.width), dtype=np.float32), np.zeros(len(keys), dtype=bool)
        by_segment: dict[Path, list[int]] = {}
        for position, key in enumerate(keys):
            if key in self._waiting:
                rows[position], found[position] = self._waiting[key], True
            elif key in self._places:
                by_segment.setdefault(self._places[key].segment, []).append(position)
        for segment, positions in by_segment.items():
            with contextlib.suppress(FileNotFoundError), segment.open("rb", buffering=0) as file:
                for position in positions:
                    place = self._places[keys[position]]
                    file.seek(place.offset)
                    found[position] = file.readinto(rows[position]) == rows[position].nbytes
                    found[position] &= zlib.crc32(rows[position]) == place.checksum
        for position in np.flatnonzero(~found):
            rows[position] = 0
            self._places.pop(keys[position], None)
        return rows, found

    def has_room_for(self, count: int) -> bool:
        """Return whether ``count`` more rows fit into the store's budget, and make room for them if so."""
        return self._store.make_room(count * (4 * self.width + 64), keep=self.directory)

    def _learn(self, segment: Path) -> None:
        """Remember where the rows of a segment lie; one that cannot be read, or is of another width, has none."""
        with contextlib.suppress(OSError, ValueError, EOFError), segment.open("rb") as file:
            keys, checksums = np.load(file, allow_pickle=False), np.load(file, allow_pickle=False)
            start = _start_of_rows(file, shape=(len(keys), self.width))
            for number, (key, checksum) in enumerate(zip(keys, checksums, strict=True)):
                self._places[key.tobytes()] = _Place(segment, start + number * 4 * self.width, int(checksum))


class _Place(NamedTuple):
    segment: Path
    offset: int
    checksum: int


class SpaceSummary(NamedTuple):
    """What a space is from outside; ``environment`` in which it was begun, None if it holds no rows."""

    directory: Path
    bytes: int
    environment: Mapping[str, str] | None


class FeatureStore:
    """A directory of spaces with a size budget in bytes."""

    def __init__(self, directory: Path, *, budget: int):
        self.directory = directory
        self.budget = budget

    def space(self, identity: Mapping[str, Any], *, width: int) -> Space:
        """Return the space of what ``identity`` names: everything that a row depends on besides the image."""
        directory = self.directory_of(identity)
        _remove_abandoned(directory)
        about = directory / "space.json"
        if not about.is_file():
            artifacts.write_json(about, {"identity": dict(identity), "environment": provenance.environment()})
        return Space(self, directory, width=width)

    def directory_of(self, identity: Mapping[str, Any]) -> Path:
        """Return where a space lies, existing and marked as used now."""
        directory = self.directory / provenance.digest([FORMAT, dict(identity)])[:32]
        directory.mkdir(parents=True, exist_ok=True)
        os.utime(directory)
        return directory

    def environment_of(self, identity: Mapping[str, Any]) -> dict[str, str]:
        """Return the environment in which a space was begun."""
        return artifacts.read_json(self.directory_of(identity) / "space.json")["environment"]

    def spaces(self) -> Iterator[SpaceSummary]:
        """Yield what is known of every space, in order of names, and touch none; so none counts as used now."""
        for directory in sorted(path for path in self.directory.iterdir() if path.is_dir()):
            about = directory / "space.json"
            environment = artifacts.read_json(about)["environment"] if about.is_file() else None
            yield SpaceSummary(directory, _bytes_in(directory), environment)

    def make_room(self, wanted: int, *, keep: Path) -> bool:
        """Return whether ``wanted`` more bytes fit, after removing other spaces, those unused for longest first."""
        sizes = {space: _bytes_in(space) for space in self.directory.iterdir() if space.is_dir()}
        excess = sum(sizes.values()) + wanted - self.budget
        others = sorted((space for space in sizes if space != keep), key=_last_use)
        if excess > sum(sizes[space] for space in others):
            return False
        for space in others:
            if excess <= 0:
                break
            shutil.rmtree(space, ignore_errors=True)
            excess -= sizes[space]
        return True

    def clear(self) -> int:
        """Remove everything; return how many bytes that were."""
        size = _bytes_in(self.directory)
        shutil.rmtree(self.directory, ignore_errors=True)
        return size


def from_environment() -> FeatureStore:
    """Return the store that the environment names, by default ``.cache/features`` of the project.

    ``BAKEOFF_FEATURE_STORE``: a directory, which several clones on one machine may share.
    ``BAKEOFF_FEATURE_STORE_GB``: the budget. Neither changes a result, so params.yaml holds neither. In the temporary
    workspaces of ``dvc exp`` DVC_ROOT names the project that they belong to. Raises StoreError.
    """
    given = os.environ.get("BAKEOFF_FEATURE_STORE")
    directory = Path(given) if given else Path(os.environ.get("DVC_ROOT", ".")) / ".cache" / "features"
    text = os.environ.get("BAKEOFF_FEATURE_STORE_GB", str(DEFAULT_GIGABYTES))
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not gigabytes >= 0:
        raise StoreError(f"BAKEOFF_FEATURE_STORE_GB must be a number of at least 0, received {text!r}")
    return FeatureStore(directory, budget=int(min(gigabytes, 1e9) * 1e9))


def key(sha256: str, *details: object) -> bytes:
    """Return the 32-byte key of an image, by its content, and of how it was changed."""
    return hashlib.sha256("/".join([sha256, *map(str, details)]).encode()).digest()


def _start_of_rows(file: BinaryIO, *, shape: tuple[int, int]) -> int:
    """Return where the numbers of the third array of a segment start. Raises ValueError if it is of another kind."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"version {version}")
    found, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if found != shape or fortran or dtype != np.float32:
        raise ValueError(f"{dtype} {found}")
    return file.tell()


def _remove_abandoned(directory: Path) -> None:
    for file in directory.glob(".*"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(file) if file.is_dir() else file.unlink()


def _bytes_in(directory: Path) -> int:
    size = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += (Path(folder) / name).stat().st_size
    return size


def _last_use(space: Path) -> float:
    try:
        return space.stat().st_mtime
    except FileNotFoundError:
        return 0.0
