"""The rows of results.json: what was claimed, what was measured, and whether the target is met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pydantic

from pipeline.console.progress import say
from pipeline.core import artifacts


class Row(pydantic.BaseModel):
    """One measured claim.

    Either ``ratio`` (how many times better than the rival; ``target`` is the least) or ``value`` in ``unit`` (seconds,
    memory; ``target`` is the most). ``low`` and ``high`` are the smallest and the largest of ``n`` repeats, of which
    ``ratio`` or ``value`` is the median. A target of None means: reported only. ``command`` and ``commit``
    say what measured it, ``environment`` and ``day`` where and when.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    claim: str
    ratio: float | None = None
    value: float | None = None
    unit: str = ""
    target: float | None = None
    low: float
    high: float
    n: int = pydantic.Field(ge=1)
    detail: str = ""
    command: str = ""
    commit: str = ""
    environment: str = ""
    day: str = ""

    @pydantic.model_validator(mode="after")
    def _one_number(self) -> Row:
        if (self.ratio is None) == (self.value is None):
            raise ValueError("exactly one of ratio and value")
        if not self.low <= self.number <= self.high:
            raise ValueError(f"low <= median <= high, received {self.low}, {self.number}, {self.high}")
        return self

    @property
    def number(self) -> float:
        return self.value if self.ratio is None else self.ratio

    @property
    def met(self) -> bool | None:
        """Whether the target is reached: by a ratio from above, by a value from below. None without a target."""
        if self.target is None:
            return None
        return self.number >= self.target if self.value is None else self.number <= self.target

    def text(self) -> str:
        """Return the number, its spread, the target and whether it is met, on one line."""
        return f"{self.amount(self.number)} [{figure(self.low)}, {figure(self.high)}], n = {self.n}, {self.verdict()}"

    def amount(self, number: float) -> str:
        """Return a number with the unit of this row."""
        return f"{figure(number)}x" if self.value is None else f"{figure(number)} {self.unit}".rstrip()

    def goal(self) -> str:
        """Return the target as text, empty if there is none."""
        if self.target is None:
            return ""
        return f"at {'least' if self.value is None else 'most'} {self.amount(self.target)}"

    def verdict(self) -> str:
        return {True: f"met: {self.goal()}", False: f"MISSED: {self.goal()}", None: "reported"}[self.met]


def read(path: Path) -> list[Row]:
    """Return the rows of a results file. Raises pydantic.ValidationError for a row that breaks the contract."""
    return [Row.model_validate(row) for row in artifacts.read_json(path)]


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write rows with four significant digits: more would suggest that they can be measured."""
    artifacts.write_json(path, [_rounded(row) for row in rows])


def report(rows: Sequence[Row], path: Path | None) -> None:
    """Say what was measured, and write it to ``path`` if given."""
    for row in rows:
        say(f"{row.claim}\n    {row.text()}{f' ({row.detail})' if row.detail else ''}")
    if path:
        write(path, rows)


def figure(number: float) -> str:
    """Return a number with three significant digits, without an exponent."""
    digits = max(0, 2 - math.floor(math.log10(abs(number)))) if number else 0
    return f"{number:,.{digits}f}"


def _rounded(row: Row) -> dict:
    present = row.model_dump(exclude_none=True, exclude_defaults=True) | {"n": row.n, "target": row.target}
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in present.items()}
