"""What a check found: a line each, with the command that mends it. Standard library only."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Literal, NamedTuple

LEVELS = ("ok", "warning", "problem")
Level = Literal["ok", "warning", "problem"]
CONSOLE = 120  # columns


class Finding(NamedTuple):
    """One line. ``remedy``: the command that mends it; empty where nothing is to be done."""

    level: Level
    subject: str
    message: str
    remedy: str = ""


def table(found: Sequence[Finding]) -> str:
    """Return a line for each finding, wrapped; below it, behind an arrow, the remedy: not wrapped, to be copied."""
    width = max((len(finding.subject) for finding in found), default=0)
    lines = []
    for finding in found:
        head = f"{finding.level:<8} {finding.subject:<{width}}  "
        margin = " " * len(head)
        room = max(CONSOLE - len(head), 40)
        text = textwrap.wrap(finding.message, room, break_long_words=False, break_on_hyphens=False) or [""]
        lines += [head + text[0], *(margin + line for line in text[1:])]
        lines += [f"{margin}-> {line}" for line in finding.remedy.splitlines()]
    return "\n".join(line.rstrip() for line in lines)


def count(found: Sequence[Finding], level: Level) -> int:
    return sum(finding.level == level for finding in found)


def verdict(found: Sequence[Finding]) -> str:
    """Return in words how many problems and warnings there are."""
    counts = [(count(found, level), level) for level in ("problem", "warning")]
    said = [f"{number} {level}{'s' if number > 1 else ''}" for number, level in counts if number]
    return " and ".join(said) or "nothing is wrong"
