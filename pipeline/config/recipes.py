"""The recipes of docs/recipes.md: sets of values of params.yaml, under a name, read from the page itself.

A section of the page is a recipe if its heading reads ``## name: title`` and a block of YAML follows. The block is
written like params.yaml and holds what differs from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.console.errors import BakeoffError

PAGE = Path("docs/recipes.md")
HEADING = re.compile(r"## (?P<name>[a-z0-9]+(?:-[a-z0-9]+)*): (?P<title>\S.*)")
BLOCK = re.compile(r"^```yaml\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)

# What params.yaml lists of things to run, and what switches each off.
LISTS: dict[str, Any] = {
    "backbones": [],
    "classifiers": {},
    "head.backbones": [],
    "fine_tune.backbones": [],
    "scratch.networks": [],
    "explain.runs": [],
}


# What params.yaml says of the data, which stays from one recipe to the next, unless that one is for a data set.
DATA = ("dataset", "split", "selection")


class RecipeError(BakeoffError):
    """There is no such recipe, or the page does not hold whole ones."""


@dataclass(frozen=True)
class Recipe:
    """``values``: a mapping as in params.yaml of what is to differ."""

    name: str
    title: str
    values: Mapping[str, Any]


def read(page: Path = PAGE) -> dict[str, Recipe]:
    """Return the recipes of a page by name, in its order. Raises RecipeError for a section that is no whole recipe."""
    try:
        text = page.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{page} not found: run this from the root of the project") from None
    found: dict[str, Recipe] = {}
    for section in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        heading = HEADING.match(section)
        if heading is None:
            continue
        name = heading["name"]
        if name in found:
            raise RecipeError(f"{page}: two recipes are called {name}")
        found[name] = Recipe(name, heading["title"].strip(), _values(section, where=f"{page}: {name}"))
    return found


def _values(section: str, *, where: str) -> Mapping[str, Any]:
    blocks = BLOCK.findall(section)
    if len(blocks) != 1:
        raise RecipeError(f"{where} must have one block of YAML, received {len(blocks)}")
    try:
        values = yaml.safe_load(blocks[0])
    except yaml.YAMLError as error:
        raise RecipeError(f"{where} is not valid YAML: {error}") from None
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where} must hold a mapping, received {type(values).__name__}")
    return values


def start(recipe: Recipe, values: Mapping[str, Any], committed: Mapping[str, Any], page: Iterable[Recipe]) -> dict:
    """Return what a recipe is put on top of: ``values`` of params.yaml without what another recipe may have left there.

    Every block that a recipe of the ``page`` names is the ``committed`` one; those of the data only if this recipe is
    for a data set.
    """
    blocks = {block for each in page for block in each.values} | {key.partition(".")[0] for key in LISTS}
    if DATA[0] not in recipe.values:
        blocks -= set(DATA)
    return {block: committed.get(block, value) if block in blocks else value for block, value in values.items()}


def differences(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return {dotted key: new value} of what turns ``values`` into ``wanted``; all families together are one key."""
    found: dict[str, Any] = {}
    for block, content in wanted.items():
        apart = isinstance(content, Mapping) and isinstance(values[block], Mapping) and block != "classifiers"
        for key in [f"{block}.{name}" for name in content] if apart else [block]:
            new = _at(wanted, key)
            old = _at(values, key)
            # An order of families is one of columns and bars: `==` would not see it.
            if new != old or (block == "classifiers" and list(new) != list(old)):
                found[key] = new
    return found


def replacements(recipe: Recipe, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return {dotted key: new value} of all that a recipe changes in ``values`` of params.yaml.

    Of a block, each key that the recipe names is replaced, whatever it held; the others stay. ``classifiers`` may be a
    list of families, whose blocks stay as they are. If the recipe lists anything to run, then what it does not list is
    switched off. Raises RecipeError for a family without a block.
    """
    named = dict(_named(recipe, values))
    if LISTS.keys() & named.keys():
        named = LISTS | named
    return {key: value for key, value in named.items() if value != _at(values, key)}


def _named(recipe: Recipe, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for block, content in recipe.values.items():
        if block == "classifiers":
            yield block, _families(recipe, content, values.get("classifiers") or {})
        elif isinstance(content, Mapping):
            yield from ((f"{block}.{key}", value) for key, value in content.items())
        else:
            yield block, content


def _families(recipe: Recipe, chosen: Any, blocks: Mapping[str, Any]) -> Any:
    if not isinstance(chosen, list):
        return chosen
    missing = [family for family in chosen if family not in blocks]
    if missing:
        raise RecipeError(
            f"The recipe {recipe.name} takes the grids of {', '.join(missing)} from params.yaml, where classifiers has "
            f"no such block; it has: {', '.join(blocks) or 'none'}. `git checkout REVISION params.yaml` brings it back"
        )
    return {family: blocks[family] for family in chosen}


def _at(values: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key of one or two parts; a key that is not there equals nothing."""
    block, _, name = key.partition(".")
    found = values.get(block, _MISSING)
    if not name:
        return found
    return found.get(name, _MISSING) if isinstance(found, Mapping) else _MISSING


_MISSING = object()
