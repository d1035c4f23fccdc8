"""Which candidates a family tries: what params.yaml says of a search, a grid's points and random draws.

`proposals` makes of it one candidate after another, the next ones of a search that learns from the scores included.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import pydantic
from pydantic_core import core_schema

from pipeline.core import seeds
from pipeline.core.params import Block

T = TypeVar("T")

Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, pydantic.Field(gt=0, le=1)]
Scale = Literal["standard", None]
ClassWeight = Literal["balanced", None]

MOST_CANDIDATES = 1000
DRAWN_FIRST = 10  # candidates of a tpe search, before there is anything to learn from


class Range(Block, Generic[T]):
    """Every number in [low, high]; drawn evenly, or with ``log`` evenly in the exponent. Not for a grid search."""

    low: T
    high: T
    log: bool = False

    @pydantic.field_validator("high")
    @classmethod
    def _above_low(cls, high: T, info: pydantic.ValidationInfo) -> T:
        low = info.data.get("low")
        if not _is_number(high) or (_is_number(low) and high <= low):
            raise ValueError(f"a number above low ({low})")
        return high

    @pydantic.field_validator("low")
    @classmethod
    def _number(cls, low: T) -> T:
        if not _is_number(low):
            raise ValueError("a number")
        return low

    @pydantic.field_validator("log")
    @classmethod
    def _log_of_positive(cls, log: bool, info: pydantic.ValidationInfo) -> bool:
        low = info.data.get("low")
        if log and _is_number(low) and low <= 0:
            raise ValueError(f"false for a range that starts at {low}: low must be above 0")
        return log

    def draw(self, generator: np.random.Generator, *, digits: int) -> int | float:
        """Return one number of the range, a float with that many significant digits (inside the range)."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        if isinstance(self.low, int) and not self.log:
            return int(generator.integers(low, high, endpoint=True))
        value = generator.uniform(low, high)
        value = math.exp(value) if self.log else value
        return self.rounded(value, digits=digits)

    def rounded(self, value: float, *, digits: int) -> int | float:
        """Return the nearest number of the range with so many significant digits, or the nearest integer."""
        value = round(value) if isinstance(self.low, int) else float(f"{value:.{digits}g}")
        return min(max(value, self.low), self.high)


class Values(Generic[T]):
    """Annotates a grid's field: validated as a list of different ``T``, or as a `Range` whose ends are ``T``.

    A union would report the problems of both forms, and put their internal names into the key a person looks for.
    """

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: pydantic.GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        (item,) = get_args(source)
        ranges = pydantic.TypeAdapter(Range[item])

        def validate(value: Any, listed: pydantic.ValidatorFunctionWrapHandler) -> list[T] | Range[T]:
            if isinstance(value, Mapping):
                return ranges.validate_python(value)
            values = listed(value)
            if not values or len(set(values)) < len(values):
                raise ValueError("a list of at least one value, without repetition")
            return values

        return core_schema.no_info_wrap_validator_function(validate, handler.generate_schema(list[item]))


class Grid(Block):
    """What every family's grid holds besides its own parameters.

    ``scale``: standard subtracts the training mean of each feature and divides by its standard deviation.
    ``class_weight``: balanced lets every class weigh the same in training, whatever its number of images.
    """

    scale: Values[Scale]
    class_weight: Values[ClassWeight]


class Search(Block):
    """A family's block in params.yaml; a family narrows the type of ``grid`` and may add its own keys."""

    # In this order, because each is checked against those before it.
    grid: Grid
    search: Literal["grid", "random", "tpe"]
    candidates: Annotated[int, pydantic.Field(ge=1, le=MOST_CANDIDATES)] | None = pydantic.Field(
        default=None, validate_default=True
    )

    @pydantic.field_validator("search")
    @classmethod
    def _fits_grid(cls, search: str, info: pydantic.ValidationInfo) -> str:
        if search == "grid" and "grid" in info.data:
            varied = dimensions(info.data["grid"])
            ranges = [name for name, values in varied.items() if isinstance(values, Range)]
            if ranges:
                raise ValueError(f"random or tpe when the grid holds a range ({', '.join(ranges)})")
            if _size(varied) > MOST_CANDIDATES:
                raise ValueError(f"random or tpe when there are more than {MOST_CANDIDATES} combinations")
        return search

    @pydantic.field_validator("candidates")
    @classmethod
    def _fits_search(cls, candidates: int | None, info: pydantic.ValidationInfo) -> int | None:
        search, grid = info.data.get("search"), info.data.get("grid")
        if search == "grid" and candidates is not None:
            raise ValueError("left out when search is grid, which tries every combination")
        if search in ("random", "tpe") and candidates is None:
            raise ValueError(f"given when search is {search}: the number of draws")
        if search in ("random", "tpe") and grid is not None and candidates > _size(dimensions(grid)):
            raise ValueError(f"at most {_size(dimensions(grid)):.0f}, the number of combinations in the grid")
        return candidates


class Candidate(NamedTuple):
    """A point of a search. ``name`` holds the parameters that differ between candidates: "C=0.01, scale=standard"."""

    name: str
    parameters: dict[str, Any]


def candidates(params: Search, *, seed: int) -> list[Candidate]:
    """Return the candidates that a search knows before anything is fitted, all different; `proposals` finds the others.

    A grid varies its last parameter fastest. Random draws depend on ``seed`` only, and the first n do not change when
    more are asked for. A tpe search begins with the same draws.
    """
    varied = dimensions(params.grid)
    if params.search == "grid":
        points = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    else:
        known = params.candidates if params.search == "random" else min(params.candidates, DRAWN_FIRST)
        points = draw(params, known, seed=seed)
    return [candidate(params, point) for point in points]


def candidate(params: Search, point: dict[str, Any]) -> Candidate:
    """Return a point with its name."""
    varied = dimensions(params.grid)
    varying = [name for name, values in varied.items() if isinstance(values, Range) or len(values) > 1]
    shown = varying or list(varied)
    return Candidate(", ".join(f"{name}={_text(point[name])}" for name in shown), point)


def draw(params: Search, count: int, *, seed: int) -> list[dict[str, Any]]:
    """Return ``count`` different random points, at most as many as there are."""
    return _draw(dimensions(params.grid), count, seeds.generator(seed, "search"))


def _draw(varied: Mapping[str, Any], count: int, generator: np.random.Generator) -> list[dict[str, Any]]:
    # Search has checked that `count` different points exist. Few digits make readable names; more are taken when a
    # point comes up again, so that a narrow range does not run out.
    found: dict[tuple[Any, ...], None] = {}
    digits = 3
    while len(found) < count:
        point = tuple(
            values.draw(generator, digits=digits)
            if isinstance(values, Range)
            else values[generator.integers(len(values))]
            for values in varied.values()
        )
        digits += point in found
        found.setdefault(point)
    return [dict(zip(varied, point, strict=True)) for point in found]


def dimensions(grid: Grid) -> dict[str, Any]:
    """Return {parameter: its values, a list or a `Range`}."""
    # A family's own parameters first, as in params.yaml: they are what its candidates differ in.
    inherited = list(Grid.model_fields)
    own = [name for name in type(grid).model_fields if name not in inherited]
    return {name: getattr(grid, name) for name in own + inherited}


def _size(varied: Mapping[str, Any]) -> float:
    """Return the number of different points; a range of floats counts as infinitely many."""
    size = 1.0
    for values in varied.values():
        if not isinstance(values, Range):
            size *= len(values)
        else:
            size *= values.high - values.low + 1 if isinstance(values.low, int) else math.inf
    return size


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
