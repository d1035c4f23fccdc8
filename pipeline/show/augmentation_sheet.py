"""What augmentation makes of a few images, as one picture. The same bytes for the same input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.core import artifacts
from pipeline.core.params import Params
from pipeline.images import augmentation, decode
from pipeline.show import contact_sheet

# So that a page is one screen wide and about one and a half high.
IMAGES, VIEWS, SIDE, WIDTH = 6, 7, 132, 1160


class Example(NamedTuple):
    """An image to show. ``sha256``: of its bytes, which its views are drawn from; ``label``: a heading above it."""

    file: Path
    sha256: str
    label: str


def of_part(part: artifacts.Part) -> list[Example]:
    """Return about `IMAGES` images of a part that has labels, at equal distances over its classes and within them."""
    classes = _evenly(np.unique(part.labels), IMAGES)
    rows = [row for label in classes for row in _evenly(np.flatnonzero(part.labels == label), IMAGES // len(classes))]
    return [Example(part.files[row], part.sha256[row], part.classes[part.labels[row]]) for row in rows]


def draw(
    examples: Sequence[Example],
    params: Params,
    *,
    size: int,
    seed: int,
    title: str,
    path: Path,
    views: int | None = None,
) -> None:
    """Write a PNG with a strip for each example: as it is, then its first views, as a network of ``size`` meets them.

    ``params`` must hold images and augmentation. ``views``: how many; None for as many as an image has, up to `VIEWS`.
    Raises images.ImageError.
    """
    image_params = params.block("images", decode.ImageParams)
    changes = params.block("augmentation", augmentation.AugmentationParams)
    count = min(changes.views or VIEWS, VIEWS) if views is None else views

    def strip(example: Example) -> contact_sheet.Strip:
        image = decode.load(example.file, size=size, params=image_params)
        pictures = [contact_sheet.Picture(_shown(image), "as it is")]
        for number in range(count):
            view = augmentation.augment(image, seed=seed, sha256=example.sha256, view=number, params=changes)
            pictures.append(contact_sheet.Picture(_shown(view), f"view {number + 1}"))
        return contact_sheet.Strip(example.file.name, pictures)

    by_label: dict[str, list[contact_sheet.Strip]] = {}
    for example in examples:
        by_label.setdefault(example.label, []).append(strip(example))
    row = 2 * contact_sheet.MARGIN + (1 + count) * (SIDE + contact_sheet.GAP)
    contact_sheet.draw(
        [contact_sheet.Section(label, strips) for label, strips in by_label.items()],
        title=title,
        subtitle=f"{augmentation.in_words(changes)}; {size} x {size} pixels",
        side=SIDE,
        width=max(WIDTH, row),
        path=path,
    )


def _evenly(values: np.ndarray, count: int) -> list[int]:
    """Return ``count`` of the values, or all if there are fewer, at equal distances."""
    return values[np.linspace(0, len(values) - 1, num=min(count, len(values)), dtype=int)].tolist()


def _shown(image: np.ndarray) -> np.ndarray:
    """Return an image in the size of the sheet; pixels of a small one stay visible."""
    small = len(image) < SIDE
    resampling = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), resampling))
