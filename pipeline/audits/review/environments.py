"""How the environment of a replay differs from that of the claims, as far as anybody wrote it down."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path

LOCK = "requirements.lock"
# What MLflow knows of an environment that is no package.
MACHINE = ("python", "system", "machine", "cpu")
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
EXTRA = re.compile(r";.*\bextra\b")
PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==([^\s;\\]+)(\s*;)?", flags=re.MULTILINE)


def pinned(text: str) -> dict[str, tuple[set[str], bool]]:
    """Return {package: (its versions, whether it is wanted everywhere)} of a requirements file with exact versions."""
    found: dict[str, tuple[set[str], bool]] = {}
    for name, version, marker in PIN.findall(text):
        versions, _ = found.setdefault(_normal(name), (set(), not marker))
        versions.add(version)
    return found


def from_lock(text: str, installed: Mapping[str, str]) -> dict[str, str]:
    """Return {package: how it differs, in words} of the packages that are not those of requirements.lock. Packages that
    it does not name are not looked at; one wanted on some systems only may be absent."""
    found = {}
    for name, (versions, everywhere) in sorted(pinned(text).items()):
        here = installed.get(name)
        if here is None and everywhere:
            found[name] = f"{name} is not installed, {LOCK} wants {_either(versions)}"
        elif here is not None and here not in versions:
            found[name] = f"{name} {here} is installed, {LOCK} wants {_either(versions)}"
    return found


def between(first: str, second: str) -> list[str]:
    """Return, in words, where two versions of requirements.lock name other packages."""
    one, other = ({name: _either(versions) for name, (versions, _) in pinned(text).items()} for text in (first, second))
    return [
        f"{name} {one.get(name, 'not there')} -> {other.get(name, 'not there')}"
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]


def from_record(recorded: Mapping[str, str], current: Mapping[str, str], needed: Collection[str]) -> list[str]:
    """Return, in words, how the environment that MLflow witnessed a claim in differs from this one: the machine, and
    the packages that are ``needed``."""
    seen = "where MLflow saw the claim being made"
    return [
        f"{name} {current.get(name, 'missing')} here, {recorded.get(name, 'missing')} {seen}"
        for name in dict.fromkeys([*recorded, *current])
        if recorded.get(name) != current.get(name) and (name in MACHINE or name in needed)
    ]


def imports(module: Path) -> set[str]:
    """Return the top-level names that a module imports, at any depth of the file; nothing of one that is no Python."""
    try:
        tree = ast.parse(module.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):
        return set()
    nodes = list(ast.walk(tree))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.partition(".")[0] for name in found}


def needed(names: Collection[str]) -> set[str]:
    """Return the packages that have what is imported by these names, and all that they require.

    A name that nothing installed has stands for itself: the package that is missing may be called so.
    """
    providers = _providers()
    waiting = [package for name in names for package in providers.get(name, [name])]
    found: set[str] = set()
    while waiting:
        package = _normal(waiting.pop())
        if package not in found:
            found.add(package)
            waiting += _required().get(package, ())
    return found


@functools.cache
def _providers() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


@functools.cache
def _required() -> Mapping[str, list[str]]:
    """Return {package: packages it requires}, without those of its extras."""
    found: dict[str, list[str]] = {}
    for one in metadata.distributions():
        if (name := one.metadata["Name"]) is not None:
            wanted = [text for text in one.requires or () if not EXTRA.search(text)]
            found[_normal(name)] = [match.group() for text in wanted if (match := NAME.match(text))]
    return found


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
