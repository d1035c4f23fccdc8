"""How the environment of a replay differs from that of the claims, as far as anybody wrote it down."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from importlib import metadata

LOCK = "requirements.lock"
PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==([^\s;\\]+)(\s*;)?", flags=re.MULTILINE)


def pinned(text: str) -> dict[str, tuple[set[str], bool]]:
    """Return {package: (its versions, whether it is wanted everywhere)} of a requirements file with exact versions."""
    found: dict[str, tuple[set[str], bool]] = {}
    for name, version, marker in PIN.findall(text):
        versions, _ = found.setdefault(_normal(name), (set(), not marker))
        versions.add(version)
    return found


def from_lock(text: str, installed: Mapping[str, str]) -> list[str]:
    """Return, in words, which packages are not those of requirements.lock. Packages that it does not name are not
    looked at; one wanted on some systems only may be absent."""
    found = []
    for name, (versions, everywhere) in sorted(pinned(text).items()):
        here = installed.get(name)
        if here is None and everywhere:
            found.append(f"{name} is not installed, {LOCK} wants {_either(versions)}")
        elif here is not None and here not in versions:
            found.append(f"{name} {here} is installed, {LOCK} wants {_either(versions)}")
    return found


def between(first: str, second: str) -> list[str]:
    """Return, in words, where two versions of requirements.lock name other packages."""
    one, other = ({name: _either(versions) for name, (versions, _) in pinned(text).items()} for text in (first, second))
    return [
        f"{name} {one.get(name, 'not there')} -> {other.get(name, 'not there')}"
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]


def from_record(recorded: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    """Return, in words, how the environment that MLflow witnessed a claim in differs from this one."""
    seen = "where MLflow saw the claim being made"
    return [
        f"{name} {current.get(name, 'missing')} here, {recorded.get(name, 'missing')} {seen}"
        for name in dict.fromkeys([*recorded, *current])
        if recorded.get(name) != current.get(name)
    ]


@functools.cache
def installed() -> Mapping[str, str]:
    """Return {package: version} of everything that can be imported."""
    # Each access to `metadata` reads and parses the file once more.
    known = [one.metadata for one in metadata.distributions()]
    return {_normal(one["Name"]): one["Version"] for one in known if one["Name"] is not None}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _either(versions: Sequence[str] | set[str]) -> str:
    return " or ".join(sorted(versions))
