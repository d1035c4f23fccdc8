"""Random changes of training images that keep their class: a view is a pure function of an image and a number."""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from pipeline.core.params import Block

# What lies beyond the border, as np.pad calls it. Keras and SciPy say reflect for a mirror that repeats the last pixel.
FILLS = {"nearest": "edge", "constant": "constant", "reflect": "symmetric", "wrap": "wrap"}
GEOMETRY = ("rotation", "width_shift", "height_shift", "shear", "zoom")
CHANGES = ("horizontal_flip", "vertical_flip", "quarter_turns", *GEOMETRY, "brightness", "contrast")

_UNMOVED = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


class AugmentationParams(Block):
    """What may change, and how much at most; every amount is drawn evenly between its extremes.

    ``views``: how many different ones an image has, met in turn, epoch after epoch; None: every epoch a new one. What
    a frozen network makes of a view is kept, so few views train fast. A network without a frozen part meets a new view
    in every epoch in any case.

    The next five are one affine map about the centre with one bilinear interpolation, in the terms of Keras'
    ImageDataGenerator, whose matrices `moved` multiplies in the same order. ``rotation``: degrees, either way.
    ``width_shift``, ``height_shift``: shares of the width and height, either way. ``shear``: degrees, either way.
    ``zoom``: 0.2 draws for each axis of its own a factor from 0.8 to 1.2 that multiplies coordinates, so that 0.8 shows
    the image 1.25 times as large. ``fill``: what lies beyond the border of the row abcd: nearest aaaa|abcd|dddd,
    reflect dcba|abcd|dcba, wrap abcd|abcd|abcd, constant black.

    ``brightness``: the largest change, as a share of the full range. ``contrast``: the largest change of the factor
    around the image's mean. ``test_time_views``: views that are also drawn at prediction; 0: the image as it is alone.
    """

    views: Annotated[int, Field(ge=1)] | None
    horizontal_flip: bool
    vertical_flip: bool
    quarter_turns: bool
    rotation: Annotated[float, Field(ge=0, le=180)]
    width_shift: Annotated[float, Field(ge=0, le=1)]
    height_shift: Annotated[float, Field(ge=0, le=1)]
    shear: Annotated[float, Field(ge=0, lt=90)]
    zoom: Annotated[float, Field(ge=0, lt=1)]
    fill: Literal["nearest", "constant", "reflect", "wrap"]
    brightness: Annotated[float, Field(ge=0, le=1)]
    contrast: Annotated[float, Field(ge=0, lt=1)]
    test_time_views: Annotated[int, Field(ge=0, le=1000)]


def in_words(params: AugmentationParams) -> str:
    """Return what may change, under the names of params.yaml; what is off is left out."""
    changes = {name: value for name in CHANGES if (value := getattr(params, name))}
    said = [name if value is True else f"{name} {value:g}" for name, value in changes.items()]
    if any(name in changes for name in GEOMETRY):
        said.append(f"fill {params.fill}")
    return ", ".join(said) or "nothing is changed"


def augment(image: np.ndarray, *, seed: int, sha256: str, view: int, params: AugmentationParams) -> np.ndarray:
    """Return view number ``view`` of a training image, uint8 of the same square shape (size, size, 3).

    A pure function of its arguments: a view can be drawn anywhere, in any order, and is the same. All draws are made
    whether they are used or not, so switching one change off leaves the others as they were. First the affine map, then
    flips, quarter turns, brightness and contrast.
    """
    key = hashlib.sha256(f"{seed}/{sha256}/{view}".encode()).digest()
    draws = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little"))).random(11)
    either_way = (2 * draws - 1).tolist()
    height, width = image.shape[:2]
    image = moved(
        image,
        rotation=params.rotation * either_way[5],
        right=params.width_shift * width * either_way[6],
        down=params.height_shift * height * either_way[7],
        shear=params.shear * either_way[8],
        zoom=(1 + params.zoom * either_way[9], 1 + params.zoom * either_way[10]),
        fill=params.fill,
    )
    if params.horizontal_flip and draws[0] < 0.5:
        image = image[:, ::-1]
    if params.vertical_flip and draws[1] < 0.5:
        image = image[::-1]
    if params.quarter_turns:
        image = np.rot90(image, k=int(draws[2] * 4))
    shift = 255 * params.brightness * (2 * draws[3] - 1)
    factor = 1 + params.contrast * (2 * draws[4] - 1)
    if shift or factor != 1:
        mean = image.mean()
        # A table of 256 entries gives the same bytes as arithmetic on every pixel, several times faster.
        levels = np.clip(np.rint((np.arange(256) - mean) * factor + mean + shift), 0, 255).astype(np.uint8)
        image = levels[image]
    return np.ascontiguousarray(image)


def moved(
    image: np.ndarray,
    *,
    fill: str,
    rotation: float = 0.0,
    right: float = 0.0,
    down: float = 0.0,
    shear: float = 0.0,
    zoom: tuple[float, float] = (1.0, 1.0),
) -> np.ndarray:
    """Return an image, uint8 (height, width, 3), under an affine map about its centre; the same array if that is none.

    ``rotation``: degrees counterclockwise. ``right``, ``down``: pixels that it moves. ``shear``: degrees by which
    vertical lines lean. ``zoom``: what horizontal and vertical coordinates are multiplied with. ``fill``: of `FILLS`.
    Values between levels are rounded down.
    """
    matrix = _matrix(rotation, right, down, shear, zoom)
    if matrix == _UNMOVED:
        return image
    height, width = image.shape[:2]
    linear, offset = np.array(matrix)[:, :2], np.array(matrix)[:, 2]
    centre = np.array([width, height]) / 2
    # In Pillow's coordinates the first pixel reaches from 0 to 1.
    offset += centre - linear @ centre
    corners = np.array([(x, y) for x in (0.5, width - 0.5) for y in (0.5, height - 0.5)])
    needed = corners @ linear.T + offset - 0.5
    # Only as much border as this map looks at: Pillow knows none of the ways to fill but black.
    before = np.maximum(0, -np.floor(needed.min(axis=0)).astype(int))
    after = np.maximum(0, np.ceil(needed.max(axis=0)).astype(int) + 1 - np.array([width, height]))
    bordered = np.pad(image, ((before[1], after[1]), (before[0], after[0]), (0, 0)), mode=FILLS[fill])
    offset += before
    coefficients = (*linear[0], offset[0], *linear[1], offset[1])
    taken = Image.fromarray(bordered).transform(
        (width, height), Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR
    )
    return np.asarray(taken)


def _matrix(
    rotation: float, right: float, down: float, shear: float, zoom: tuple[float, float]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return where a point of the view, (x, y) from the centre, lies in the image: rotation x shift x shear x zoom.

    Source: `apply_affine_transform` of Keras 3, whose tx and ty are -right and -down.
    """
    cos, sin = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
    lean, upright = -math.sin(math.radians(shear)), math.cos(math.radians(shear))
    rows = (
        (cos * zoom[0], (cos * lean - sin * upright) * zoom[1], -cos * right + sin * down),
        (sin * zoom[0], (sin * lean + cos * upright) * zoom[1], -sin * right - cos * down),
    )
    # Rounded, so that a quarter turn is exact and the last digit of a machine's cosine changes no pixel.
    first, second = (tuple(round(value, 12) for value in row) for row in rows)
    return first, second
