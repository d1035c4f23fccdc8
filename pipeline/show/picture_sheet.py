"""Images beside their most probable classes, as one picture. The same bytes for the same input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.show.plotting import legible

COLUMNS = 3
CELL_WIDTH, CELL_HEIGHT = 4.4, 1.55
TITLE_HEIGHT, HEADING_HEIGHT = 0.62, 0.42
BAR, BAR_FIRST, INK, FAINT = "#cfdcea", "#8fb4d9", "#1f2933", "#66727f"
LONGEST_NAME = 30


class Cell(NamedTuple):
    """``image``: uint8 (height, width, 3). ``guesses``: (name, probability), best first."""

    image: np.ndarray
    guesses: Sequence[tuple[str, float]]


def draw(sections: Mapping[str, Sequence[Cell]], *, title: str, subtitle: str, path: Path) -> None:
    """Write a PNG with a section for every heading, its cells in rows of `COLUMNS`."""
    rows = {heading: -(-len(cells) // COLUMNS) for heading, cells in sections.items()}
    width = COLUMNS * CELL_WIDTH + 0.3
    height = TITLE_HEIGHT + sum(HEADING_HEIGHT + CELL_HEIGHT * count for count in rows.values()) + 0.1
    # The user's own matplotlibrc must not change the bytes.
    with style.context("default"):
        figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
        place = _Placer(figure, width, height)
        place.text(0.15, 0.12, title, size=14, weight="bold", color=INK)
        place.text(0.15, 0.38, subtitle, size=9.5, color=FAINT)
        top = TITLE_HEIGHT
        for heading, cells in sections.items():
            place.text(0.15, top + 0.13, legible(heading), size=12, weight="bold", color=INK)
            top += HEADING_HEIGHT
            for position, cell in enumerate(cells):
                row, column = divmod(position, COLUMNS)
                _draw_cell(place, cell, left=0.15 + column * CELL_WIDTH, top=top + row * CELL_HEIGHT)
            top += CELL_HEIGHT * rows[heading]
        # Without this key Matplotlib writes its version into the file.
        figure.savefig(path, format="png", metadata={"Software": None})


class _Placer:
    """Puts things at inches from the upper left corner."""

    def __init__(self, figure: Figure, width: float, height: float):
        self._figure, self._width, self._height = figure, width, height

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        below = self._height - top - height
        box = (left / self._width, below / self._height, width / self._width, height / self._height)
        axes = self._figure.add_axes(box)
        axes.set_axis_off()
        return axes

    def text(self, left: float, top: float, text: str, **style: object) -> None:
        x, y = left / self._width, 1 - top / self._height
        # A class named by the user may hold dollar signs, which are no formula.
        self._figure.text(x, y, text, va="top", ha="left", parse_math=False, **style)


def _draw_cell(place: _Placer, cell: Cell, *, left: float, top: float) -> None:
    side = CELL_HEIGHT - 0.15
    place.axes(left, top, side, side).imshow(cell.image, interpolation="antialiased")
    bars = place.axes(left + side + 0.12, top, CELL_WIDTH - side - 0.42, side)
    count = len(cell.guesses)
    bars.set_xlim(0, 1)
    bars.set_ylim(count - 0.5, -0.5)
    colors = [BAR_FIRST if rank == 0 else BAR for rank in range(count)]
    bars.barh(range(count), [probability for _, probability in cell.guesses], height=0.86, color=colors)
    for rank, (name, probability) in enumerate(cell.guesses):
        shown = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        style = {"va": "center_baseline", "size": min(9.0, 48 / count), "color": INK, "parse_math": False}
        bars.text(0.015, rank, shown, ha="left", **style)
        bars.text(1.0, rank, f"{probability:.0%}", ha="right", **style)
