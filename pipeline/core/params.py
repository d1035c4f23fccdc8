"""Typed access to params.yaml.

Each model sits beside what it configures and derives from `Block`. A stage receives a `Params` that holds only the
keys the stage declares in ``READS``, so it cannot depend on a value that dvc.yaml does not list.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from pipeline.console.errors import BakeoffError

PARAMS_FILE = Path("params.yaml")


class ParamsError(BakeoffError):
    """params.yaml says something that cannot be done; the message names the key, the value and what is allowed."""


class Block(pydantic.BaseModel):
    """A mapping in params.yaml. Unknown keys are errors; values are not coerced from another type."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)


BlockType = TypeVar("BlockType", bound=Block)


@dataclass(frozen=True)
class Run:
    """One declared method on one network: what ends in ``results/runs/<name>``."""

    network: str
    method: str
    stage: str

    @property
    def name(self) -> str:
        return f"{self.network}-{self.method}"


class Params:
    """The keys of params.yaml that one stage declared, read through `block` and `value`."""

    def __init__(self, values: Mapping[str, Any], reads: Iterable[str]):
        self._values = values
        self._reads = tuple(reads)

    def value(self, key: str) -> Any:
        """Return the raw value at a dotted key. Raises ParamsError if the stage did not declare it or it is missing."""
        if not self._declares(key):
            raise ParamsError(f"params.yaml: {key} is not among the keys this stage declares: {', '.join(self._reads)}")
        return lookup(self._values, key)

    def block(self, key: str, model: type[BlockType]) -> BlockType:
        """Return the mapping at a dotted key as a validated ``model``.

        The stage declares the key, or one by one those keys below it that ``model`` has: then another key there, such
        as the list of networks that a method runs on, is none of its business.
        """
        if self._declares(key):
            return parse(self.value(key), model, where=key)
        return parse({name: self.value(f"{key}.{name}") for name in model.model_fields}, model, where=key)

    def _declares(self, key: str) -> bool:
        return any(key == read or key.startswith(read + ".") for read in self._reads)

    def declared(self) -> dict[str, Any]:
        """Return {key: raw value} of everything the stage declares."""
        return {key: lookup(self._values, key) for key in self._reads}


def load(path: Path = PARAMS_FILE) -> dict[str, Any]:
    """Return the raw contents of a params file. Raises ParamsError if it is missing or is no mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path} not found: run this from the root of the project") from None
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ParamsError(f"{path} must hold a mapping, received {type(values).__name__}")
    return values


def lookup(values: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key. Raises ParamsError naming the first part that is missing."""
    found: Any = values
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(found, Mapping) or part not in found:
            raise ParamsError(f"params.yaml: {'.'.join(parts[: depth + 1])} is missing")
        found = found[part]
    return found


def parse(value: Any, model: type[BlockType], *, where: str) -> BlockType:
    """Validate ``value`` as ``model``. Raises ParamsError with one line a problem: key, rule, received value."""
    try:
        return model.model_validate(value)
    except pydantic.ValidationError as error:
        lines = [_explain(problem, model, where) for problem in error.errors()]
        raise ParamsError("\n".join(lines)) from None


def unknown_key(key: str, allowed: Iterable[str], *, where: str = "") -> str:
    """Return the message for a key that nobody reads, with the nearest allowed name first."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(key, allowed, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    place = f"params.yaml: {where}" if where else "params.yaml"
    choices = f". Choose from: {', '.join(allowed)}" if allowed else ""
    return f"{place}: unknown key {key!r}{hint}{choices}"


def declared_runs(values: Mapping[str, Any]) -> list[Run]:
    """Return the runs that params.yaml declares, in the order of the leaderboard before sorting."""
    runs = [
        Run(network=backbone, method=family, stage="sweep")
        for backbone in lookup(values, "backbones")
        for family in lookup(values, "classifiers")
    ]
    runs += [Run(network=name, method="head", stage="head") for name in lookup(values, "head.backbones")]
    runs += [Run(network=name, method="fine_tune", stage="fine_tune") for name in lookup(values, "fine_tune.backbones")]
    runs += [Run(network=name, method="scratch", stage="scratch") for name in lookup(values, "scratch.networks")]
    return runs


def _explain(problem: Mapping[str, Any], model: type[Block], where: str) -> str:
    location, _ = _place(model, map(str, problem["loc"]))
    key = ".".join([where, *location]) if where else ".".join(location)
    if problem["type"] == "extra_forbidden":
        _, block = _place(model, map(str, problem["loc"][:-1]))
        return unknown_key(location[-1], block.model_fields if block else (), where=key.rpartition(".")[0])
    if problem["type"] == "missing":
        return f"params.yaml: {key} is missing"
    if problem["type"] == "union_tag_not_found":
        return f"params.yaml: {key}.{problem['ctx']['discriminator'].strip(chr(39))} is missing"
    if problem["type"] == "union_tag_invalid":
        name, tag = problem["ctx"]["discriminator"].strip("'"), problem["ctx"]["tag"]
        return f"params.yaml: {key}.{name} must be {problem['ctx']['expected_tags']}, received {tag!r}"
    rule = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("a valid ")
    return f"params.yaml: {key} must be {rule}, received {problem['input']!r}{_hint(problem['input'])}"


def _place(model: type[Block], location: Iterable[str]) -> tuple[list[str], type[Block] | None]:
    """Return the keys of a place inside ``model``, and the block there, None where it is no block.

    Where a mapping is one of several blocks, Pydantic puts the name by which it was chosen into the location, which is
    no key.
    """
    keys: list[str] = []
    blocks = [model]
    for name in location:
        if len(blocks) > 1:
            blocks = [block for block in blocks if name in _names_of(block)]
            continue
        keys.append(name)
        field = blocks[0].model_fields.get(name) if blocks else None
        blocks = _blocks_in(field.annotation) if field else []
    return keys, blocks[0] if len(blocks) == 1 else None


def _blocks_in(annotation: Any) -> list[type[Block]]:
    """Return the blocks that a field may hold."""
    members = typing.get_args(annotation) or (annotation,)
    return [member for member in members if isinstance(member, type) and issubclass(member, Block)]


def _names_of(block: type[Block]) -> set[str]:
    """Return the values that a field of ``block`` must have, which tell it from others in a union."""
    return {value for field in block.model_fields.values() for value in typing.get_args(field.annotation)}


def _hint(value: Any) -> str:
    """YAML 1.1 takes 1e-4 for text: a number with an exponent needs a point and a sign."""
    try:
        return f" (as text: write {float(value)})" if isinstance(value, str) else ""
    except ValueError:
        return ""
