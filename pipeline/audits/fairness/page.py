"""Paragraphs and tables as Markdown and as text for a console."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.leaderboard import CONSOLE, UNDEFINED


@dataclass(frozen=True)
class Table:
    """Rows of cells below a header; the first column is a name, the others are numbers unless ``words`` names them."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = ()

    def markdown(self) -> str:
        rule = ["---" if self._is_text(column) else "---:" for column in range(len(self.header))]
        return "\n".join(_markdown_row(row) for row in (self.header, rule, *self.rows))

    def text(self) -> str:
        rows = [self.header, *self.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(self.header))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if self._is_text(column) else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )

    def _is_text(self, column: int) -> bool:
        return column == 0 or column in self.words


@dataclass(frozen=True)
class Figure:
    """A picture beside the page."""

    file: str
    what: str


Block = str | Table | Figure


@dataclass(frozen=True)
class Page:
    """One section: its title, its finding in a sentence or two, and the blocks that show it."""

    title: str
    finding: str
    blocks: Sequence[Block]

    def markdown(self) -> str:
        parts = [f"# {self.title}", self.finding]
        for block in self.blocks:
            if isinstance(block, Figure):
                parts.append(f"![{block.what}]({block.file})")
            else:
                parts.append(block if isinstance(block, str) else block.markdown())
        return "\n\n".join(parts) + "\n"

    def text(self) -> str:
        """Return the title, the finding and the tables; paragraphs that explain are in the Markdown."""
        tables = [block.text() for block in self.blocks if isinstance(block, Table)]
        return "\n\n".join([self.title, textwrap.fill(self.finding, CONSOLE), *tables])


def percent(value: float | None, *, digits: int = 1) -> str:
    """Return a share of 1 as "85.4 %"."""
    return UNDEFINED if value is None else f"{100 * value:.{digits}f} %"


def points(value: float | None) -> str:
    """Return a difference of two shares of 1 in percentage points, with its sign."""
    return UNDEFINED if value is None else f"{100 * value:+.1f}"


def size(value: float | None) -> str:
    """Return a size in percentage points, without a sign."""
    return UNDEFINED if value is None else f"{100 * value:.1f}"


def interval(bounds: Mapping[str, Any]) -> str:
    """Return ``low`` and ``high`` in percentage points."""
    return f"[{points(bounds['low'])}, {points(bounds['high'])}]"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
