"""Many small pictures on one page, under headings. The same bytes for the same input.

Pillow draws it: a thousand pictures take a second, in Matplotlib minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.show.plotting import font_file, legible

INK, FAINT, PAPER = "#1f2933", "#66727f", "#ffffff"
MARGIN, GAP = 16, 6
TITLE_SIZE, HEADING_SIZE, CAPTION_SIZE = 20, 14, 11


class Picture(NamedTuple):
    """``image``: uint8 (height, width, 3), at most as large as the sheet's ``side``; ``caption``: a short line."""

    image: np.ndarray
    caption: str = ""


class Strip(NamedTuple):
    """Pictures that belong side by side, under a heading of their own, which may be empty."""

    heading: str
    pictures: Sequence[Picture]


class Section(NamedTuple):
    """A heading over strips that are laid out one after the other, as many in a row as fit."""

    heading: str
    strips: Sequence[Strip]


def draw(sections: Sequence[Section], *, title: str, subtitle: str, side: int, width: int, path: Path) -> None:
    """Write a PNG ``width`` pixels wide with pictures in squares of ``side``; the subtitle may have several lines."""
    page = _Page(side=side, width=width)
    page.text(title, size=TITLE_SIZE)
    for line in subtitle.splitlines():
        page.text(line, size=CAPTION_SIZE + 1, color=FAINT)
    for section in sections:
        page.skip(GAP)
        if section.heading:
            page.text(section.heading, size=HEADING_SIZE + 1)
        page.strips(section.strips)
    page.image().save(path, format="PNG")


class _Page:
    """Collects what is to be drawn from the top down, then draws it: the height is known at the end."""

    def __init__(self, *, side: int, width: int):
        self.side, self.width, self.top = side, width, MARGIN
        self._texts: list[tuple[int, int, str, int, str]] = []
        self._pictures: list[tuple[int, int, np.ndarray]] = []
        self._fonts = _Fonts()

    def skip(self, height: int) -> None:
        self.top += height

    def text(self, text: str, *, size: int, color: str = INK) -> None:
        self._texts.append((MARGIN, self.top, self._fonts.fit(text, size, self.width - 2 * MARGIN), size, color))
        self.top += round(size * 1.5)

    def strips(self, strips: Sequence[Strip]) -> None:
        heading = round(HEADING_SIZE * 1.4) if any(strip.heading for strip in strips) else 0
        captioned = any(picture.caption for strip in strips for picture in strip.pictures)
        caption = round(CAPTION_SIZE * 1.4) if captioned else 0
        row = heading + self.side + caption + GAP
        left = MARGIN
        for position, strip in enumerate(strips):
            wide = len(strip.pictures) * (self.side + GAP)
            if position and left + wide > self.width - MARGIN:
                left, self.top = MARGIN, self.top + row
            self._strip(strip, left, heading)
            left += wide + 2 * GAP
        self.top += row if strips else 0

    def _strip(self, strip: Strip, left: int, heading: int) -> None:
        room = max(len(strip.pictures), 1) * (self.side + GAP) - GAP
        if strip.heading:
            text = self._fonts.fit(strip.heading, HEADING_SIZE, room)
            self._texts.append((left, self.top, text, HEADING_SIZE, INK))
        for number, picture in enumerate(strip.pictures):
            x, y = left + number * (self.side + GAP), self.top + heading
            self._pictures.append((x, y, picture.image))
            text = self._fonts.fit(picture.caption, CAPTION_SIZE, self.side)
            self._texts.append((x, y + self.side + 2, text, CAPTION_SIZE, FAINT))

    def image(self) -> Image.Image:
        page = Image.new("RGB", (self.width, self.top + MARGIN), PAPER)
        for x, y, array in self._pictures:
            height, width = array.shape[:2]
            page.paste(Image.fromarray(array), (x + (self.side - width) // 2, y + (self.side - height) // 2))
        pen = ImageDraw.Draw(page)
        for x, y, text, size, color in self._texts:
            pen.text((x, y), text, fill=color, font=self._fonts.of(size))
        return page


class _Fonts:
    """The plots' font in the sizes that are used."""

    def __init__(self) -> None:
        self._sizes: dict[int, ImageFont.FreeTypeFont] = {}

    def of(self, size: int) -> ImageFont.FreeTypeFont:
        if size not in self._sizes:
            # Not the layout engine that may be installed or not.
            self._sizes[size] = ImageFont.truetype(font_file(), size, layout_engine=ImageFont.Layout.BASIC)
        return self._sizes[size]

    def fit(self, text: str, size: int, room: int) -> str:
        """Return text as it can be shown, cut in the middle if it is too long."""
        shown = legible(text)
        font = self.of(size)
        if font.getlength(shown) <= room:
            return shown
        kept = len(shown) - 1
        while kept > 1 and font.getlength(self._cut(shown, kept)) > room:
            kept -= 1
        return self._cut(shown, kept)

    @staticmethod
    def _cut(text: str, kept: int) -> str:
        """Keep more of the end, where the names of files differ."""
        first = kept // 3
        return f"{text[:first]}…{text[len(text) - (kept - first) :]}"
