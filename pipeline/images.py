"""Image files to arrays of pixels: decode, make square, resize, augment.

Arrays are RGB in 0..255. Scaling to what a network expects happens inside the network's own graph, never here.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

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


Item = TypeVar("Item")

# What Pillow raises for damaged files, beyond what it documents.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error,
              Image.DecompressionBombError)  # fmt: skip


class ImageError(BakeoffError):
    """A file is not an image that can be read whole."""


class ImageParams(Block):
    """How an image of any shape becomes a square: cut out the centre or change the proportions, then resize."""

    square: Literal["crop", "warp"]
    interpolation: Literal["nearest", "bilinear", "bicubic"]


class AugmentationParams(Block):
    """Random changes of training images that keep their class.

    ``views``: how many different ones an image has, met in turn, epoch after epoch; None: every epoch a new one. What
    a frozen network makes of a view is kept, so few views train fast. A network without a frozen part meets a new view
    in every epoch in any case.
    """

    views: Annotated[int, Field(ge=1)] | None
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
    # Last, because channels are resized one by one: a grey image needs only one of them until here.
    return np.asarray(image.convert("RGB"))


def batches(
    items: Iterable[Item], read: Callable[[Item], np.ndarray], *, batch_size: int, threads: int
) -> Iterator[np.ndarray]:
    """Yield what ``read`` makes of ``batch_size`` items at a time, in order, reading ahead in threads.

    ``read`` returns the views of one item, (views, ...); a batch holds those of its items, one after the other.
    Pillow releases the interpreter lock while it decodes and resizes, so the next images are prepared while the caller
    computes. At most two batches are held besides the one that is yielded.
    """
    waiting = iter(items)
    with ThreadPoolExecutor(max_workers=threads) as readers:
        pending = deque(readers.submit(read, item) for item in itertools.islice(waiting, 2 * batch_size))
        try:
            while pending:
                ready = [pending.popleft().result() for _ in range(min(batch_size, len(pending)))]
                pending.extend(readers.submit(read, item) for item in itertools.islice(waiting, len(ready)))
                yield np.concatenate(ready)
        finally:
            for future in pending:
                future.cancel()


def inspect(path: Path) -> Inspection:
    """Decode a file completely and say what it is, instead of raising."""
    try:
        with Image.open(path) as image:
            mode, (width, height) = image.mode, image.size
            image.load()
    except UNREADABLE as error:
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
            return _to_grey_or_rgb(ImageOps.exif_transpose(image))
    except UNREADABLE as error:
        name = "the image" if isinstance(source, bytes) else source
        raise ImageError(f"{name}: {_reason(error)}") from None


def _to_grey_or_rgb(image: Image.Image) -> Image.Image:
    """Return 8 bits a channel, RGB or L: 16-bit grey keeps its upper byte, transparency lies on white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "L" else image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "file not found"
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a format that Pillow does not read"
    return f"cannot be read whole ({error})"
