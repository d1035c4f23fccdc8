"""Image files to arrays of pixels: decode, make square, resize, augment.

Arrays are RGB in 0..255. Scaling to what a network expects happens inside the network's own graph, never here.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from pipeline.errors import BakeoffError
from pipeline.params import Block

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


class ImageError(BakeoffError):
    """A file is not an image that can be read whole."""


class ImageParams(Block):
    """How an image of any shape becomes a square: cut out the centre or change the proportions, then resize."""

    square: Literal["crop", "warp"]
    interpolation: Literal["nearest", "bilinear", "bicubic"]


class AugmentationParams(Block):
    """Random changes of training images that keep their class."""

    horizontal_flip: bool
    vertical_flip: bool
    quarter_turns: bool
    brightness: Annotated[float, Field(ge=0, le=1)]
    contrast: Annotated[float, Field(ge=0, lt=1)]


class Inspection(NamedTuple):
    """What a file turned out to be; ``problem`` is empty for an image that can be read whole."""

    width: int
    height: int
    mode: str
    problem: str


def load(source: Path | bytes, *, size: int, params: ImageParams) -> np.ndarray:
    """Return an image file as uint8 (size, size, 3), RGB. Raises ImageError if it cannot be read whole."""
    image = _decode(source)
    if params.square == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if image.size != (size, size):
        image = image.resize((size, size), RESAMPLING[params.interpolation])
    return np.asarray(image)


def batches(
    sources: Sequence[Path | bytes], *, size: int, params: ImageParams, batch_size: int
) -> Iterator[np.ndarray]:
    """Yield uint8 (at most batch_size, size, size, 3) in order, decoding one batch ahead in a thread.

    Pillow releases the interpreter lock while it decodes and resizes, so the next batch is prepared while the caller
    computes. At most two batches are held.
    """

    def read(start: int) -> np.ndarray:
        return np.stack([load(source, size=size, params=params) for source in sources[start : start + batch_size]])

    with ThreadPoolExecutor(max_workers=1) as reader:
        starts = range(0, len(sources), batch_size)
        pending = reader.submit(read, 0) if starts else None
        for start in starts:
            batch = pending.result()
            following = start + batch_size
            pending = reader.submit(read, following) if following < len(sources) else None
            yield batch


def inspect(path: Path) -> Inspection:
    """Decode a file completely and say what it is, instead of raising."""
    try:
        with Image.open(path) as image:
            mode, (width, height) = image.mode, image.size
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return Inspection(0, 0, "", _reason(error))
    return Inspection(width, height, mode, "")


def augment(image: np.ndarray, *, seed: int, sha256: str, view: int, params: AugmentationParams) -> np.ndarray:
    """Return view number ``view`` of a training image, uint8 of the same square shape.

    A pure function of its arguments: a view can be drawn anywhere, in any order, and is the same. All draws are made
    whether they are used or not, so switching one change off leaves the others as they were.
    """
    key = hashlib.sha256(f"{seed}/{sha256}/{view}".encode()).digest()
    draws = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little"))).random(5)
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


def _decode(source: Path | bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        name = "the image" if isinstance(source, bytes) else source
        raise ImageError(f"{name}: {_reason(error)}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return 8-bit RGB: 16-bit grey keeps its upper byte, transparency lies on white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "file not found"
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a format that Pillow does not read"
    return f"cannot be read whole ({error})"
