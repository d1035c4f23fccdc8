"""Whether what a stage reads stayed as it was while the stage ran.

DVC takes the digests of dependencies and the values of params when a stage has ended, so that a file or value changed
in the meantime would stand in dvc.lock beside a result that was not made from it.

A small file, and every file of a small folder, is compared by its bytes, so that a mere `touch` stops no stage. Large
files and those of large folders are compared by size and time of change: a source may hold 100,000 photographs.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.console.errors import BakeoffError
from pipeline.core import artifacts, params, provenance

# A path with more files or bytes below it is large. To read so many twice takes a quarter of a second.
SMALL_FILES, SMALL_BYTES = 1000, 64 * 1024 * 1024
SHOWN = 10
# Seconds to wait before params.yaml is read once more, because an editor may be saving it.
PAUSES = (0.0, 0.2, 1.0)


class ChangedError(BakeoffError):
    """What a stage reads changed while it ran; the message names every key and file."""


class Files:
    """All files at and below some paths, as they were when this was made."""

    def __init__(self, paths: Iterable[str]):
        self._by_bytes = {path: _is_small(path) for path in paths}
        self._before = self._now()

    def changed(self) -> list[str]:
        """Return a line for each file that was changed, added or removed since."""
        now = self._now()
        files = sorted(file for file in self._before.keys() | now.keys() if self._before.get(file) != now.get(file))
        lines = [f"{file} was {self._what_happened(file, now)}" for file in files[:SHOWN]]
        return lines + ([f"and {len(files) - SHOWN:,} more files"] if len(files) > SHOWN else [])

    def _now(self) -> dict[str, Any]:
        return {file: _state(file, by_bytes) for path, by_bytes in self._by_bytes.items() for file in _below(path)}

    def _what_happened(self, file: str, now: Mapping[str, Any]) -> str:
        if file not in self._before:
            return "added"
        return "changed" if file in now else "removed"


def sources(stage: str, item: Mapping[str, str]) -> list[str]:
    """Return the source files that a stage may execute, of a sweep also those of its family of classifiers."""
    modules = [f"pipeline.stages.{stage}"]
    if "classifier" in item:
        modules.append(f"pipeline.classifiers.families.{item['classifier']}")
    found = {file for module in modules for file in provenance.import_closure(module)}
    return sorted(os.path.relpath(provenance.ROOT / file) for file in found)


def refuse(stage: str, declared: Mapping[str, Any], *files: Files) -> None:
    """Raise ChangedError if a declared value of params.yaml, or one of ``files``, is not what it was.

    ``declared``: {dotted key: value when the stage began}.
    """
    changed = [*_changed_params(declared), *(line for each in files for line in each.changed())]
    if changed:
        raise ChangedError(
            f"what the stage {stage} reads changed while it ran, so its result is of a state that is no more:\n"
            + "".join(f"  {line}\n" for line in changed)
            + "Nothing was recorded: run `dvc repro` again"
        )


def differences(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (dotted key, earlier value, later value) wherever two values of params.yaml differ; lists count as one.

    Equal is what DVC takes for equal: 1 and 1.0, and mappings in another order.
    """
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in [*before, *(name for name in after if name not in before)]:
            below = f"{key}.{name}" if key else str(name)
            yield from differences(before.get(name, _NOTHING), after.get(name, _NOTHING), below)
    elif before != after:
        yield key, repr(before), repr(after)


class _Nothing:
    def __repr__(self) -> str:
        return "nothing"


_NOTHING = _Nothing()


def _changed_params(declared: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for pause in PAUSES:
        time.sleep(pause)
        try:
            values = params.load()
        except (ValueError, OSError) as error:  # missing, not YAML, or not even text
            lines = [f"{params.PARAMS_FILE} cannot be read any more: {error}"]
            continue
        lines = [
            f"{params.PARAMS_FILE}: {name} was {earlier}, is {later} now"
            for name, earlier, later in differences(declared, _found(values, declared))
        ]
        if not lines:
            break
    return lines


def _found(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return {dotted key: value} of those keys that are there."""
    found = {}
    for key in keys:
        with contextlib.suppress(params.ParamsError):
            found[key] = params.lookup(values, key)
    return found


def _below(path: str) -> Iterator[str]:
    """Yield a file itself, or all files below a folder. Links to folders are not followed, as DVC does not."""
    if os.path.isfile(path):
        yield path
    for folder, _, names in os.walk(path):
        for name in names:
            yield os.path.join(folder, name)


def _is_small(path: str) -> bool:
    size = 0
    for count, file in enumerate(_below(path), start=1):
        with contextlib.suppress(OSError):  # a link that leads nowhere
            size += os.path.getsize(file)
        if count > SMALL_FILES or size > SMALL_BYTES:
            return False
    return True


def _state(file: str, by_bytes: bool) -> Any:
    """Return what tells one state of a file from another."""
    try:
        if by_bytes and os.path.isfile(file):
            return artifacts.sha256_file(Path(file))
        status = os.stat(file)
    except OSError as error:  # of a link that leads nowhere, for example
        return error.strerror
    return status.st_size, status.st_mtime_ns
