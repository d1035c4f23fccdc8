"""How a served model names the columns of its answers."""

from __future__ import annotations

from collections.abc import Iterable

LABEL = "label"  # the most probable class; the other columns hold a class's probability each


def columns(classes: Iterable[str]) -> list[str]:
    """Return the columns of the classes' probabilities: their names, an underscore longer if one could be `LABEL`.

    That is, if it is LABEL with any number of underscores behind: no two columns are the same, whatever the classes.
    """
    return [f"{name}_" if name.rstrip("_") == LABEL else name for name in classes]
