"""Image files to arrays of pixels: decode, make square, resize.

Arrays are RGB in 0..255. Scaling to what a network expects happens inside the network's own graph, never here.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import struct
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageColor, ImageFile, TiffImagePlugin, UnidentifiedImageError
from pydantic import field_validator

from pipeline.console.errors import BakeoffError
from pipeline.core.params import Block

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


# Named, because Pillow would also hand Encapsulated PostScript to an interpreter, and takes some text for pictures.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

THUMBNAIL_SIDE = 32

# What to do with a stored image, by its EXIF orientation.
UPRIGHT = 1
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Item = TypeVar("Item")

# What Pillow raises for damaged files, beyond what it documents.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    ArithmeticError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

# More than MAX_IMAGE_PIXELS, 89 million, are refused: only from twice as many on does Pillow do so by itself, and
# before that it warns. Not by an error in place of a warning: filters belong to all threads, and others change them.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
# Damaged metadata around pixels that can be read: a line for every such photograph would bury everything else.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class ImageError(BakeoffError):
    """A file is not an image that can be read whole; ``source``: the file, or its bytes, ``reason``: why."""

    def __init__(self, source: Path | bytes, reason: str):
        super().__init__(f"{'the image' if isinstance(source, bytes) else source}: {reason}")
        self.source, self.reason = source, reason


class ImageParams(Block):
    """How an image of any shape becomes a square of the size that a network takes.

    ``square``: cut out the centre, then resize; change the proportions; or resize to fit and pad both sides.
    ``fill``: of what padding adds: edge, the border's pixels go on outwards, or a color, #rrggbb. The other two add
    nothing and do not read it. ``interpolation``: Pillow's filters, which shrink an image without leaving out pixels,
    except for nearest.
    """

    square: Literal["crop", "warp", "pad"]
    fill: str
    interpolation: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

    @field_validator("fill", mode="before")
    @classmethod
    def _edge_or_color(cls, value: object) -> object:
        # Without quotes, YAML takes a color for a comment, which leaves nothing.
        if not (isinstance(value, str) and re.fullmatch("edge|#[0-9a-fA-F]{6}", value)):
            raise ValueError('edge or a color in quotes, such as "#000000"')
        return value


@dataclass(frozen=True)
class Inspection:
    """What a file turned out to be; ``problem`` is empty for an image that can be read whole.

    ``width``, ``height``: upright, after a turn that EXIF asks for (``turned``). ``mode``: Pillow's, of the file.
    ``frames``: of an animation or a file of several pages, of which only the first is used. ``thumbnail``: uint8
    (32, 32) grey, the whole image whatever its proportions.
    """

    width: int = 0
    height: int = 0
    mode: str = ""
    frames: int = 0
    turned: bool = False
    thumbnail: np.ndarray | None = None
    problem: str = ""


def load(source: Path | bytes, *, size: int, params: ImageParams) -> np.ndarray:
    """Return an image file as uint8 (size, size, 3), RGB. Raises ImageError if it cannot be read whole."""
    image = _decode(source)
    if params.square == "pad":
        return _padded(image, size, params)
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


def announced_pixels(source: Path | bytes, *, formats: Sequence[str] = FORMATS) -> int:
    """Return how many pixels an image file must be decoded to, from its header alone. Raises ImageError.

    A header of AVIF says how many come out; the data may hold more, which are scaled.
    """
    try:
        with _open(source, formats) as image:
            return _pixels_to_decode(image)
    except UNREADABLE as error:
        raise ImageError(source, _reason(error)) from None


def inspect(path: Path) -> Inspection:
    """Decode a file completely and say what it is, instead of raising."""
    try:
        with _open(path) as image:
            mode, turned = image.mode, _orientation(image) != UPRIGHT
            pixels = _pixels(image)
            grey = pixels.convert("L").resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
        return Inspection(pixels.width, pixels.height, mode, _frames(path), turned, np.asarray(grey))
    except UNREADABLE as error:
        return Inspection(problem=_reason(error))


def thumbnail(path: Path, *, side: int) -> np.ndarray:
    """Return a whole image inside a square, uint8 (height, width, 3), RGB, the longer of them ``side``."""
    image = _decode(path)
    scale = side / max(image.size)
    size = tuple(max(1, round(length * scale)) for length in image.size)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC).convert("RGB"))


def _padded(image: Image.Image, size: int, params: ImageParams) -> np.ndarray:
    """Return the whole image in the middle of a square, uint8 (size, size, 3); an odd pixel goes right or below.

    It is resized first: a square around a panorama as it is may not fit into memory.
    """
    longer = max(image.size)
    width, height = (max(1, round(length * size / longer)) for length in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), RESAMPLING[params.interpolation])
    pixels = np.asarray(image.convert("RGB"))
    left, top = (size - width) // 2, (size - height) // 2
    if params.fill == "edge":
        return np.pad(pixels, ((top, size - height - top), (left, size - width - left), (0, 0)), mode="edge")
    square = np.empty((size, size, 3), dtype=np.uint8)
    square[:] = ImageColor.getrgb(params.fill)
    square[top : top + height, left : left + width] = pixels
    return square


def _decode(source: Path | bytes) -> Image.Image:
    try:
        with _open(source) as image:
            return _pixels(image)
    except UNREADABLE as error:
        raise ImageError(source, _reason(error)) from None


def _open(source: Path | bytes, formats: Sequence[str] = FORMATS) -> ImageFile.ImageFile:
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    if _pixels_to_decode(image) > Image.MAX_IMAGE_PIXELS:
        image.close()
        raise Image.DecompressionBombError
    return image


def _pixels_to_decode(image: ImageFile.ImageFile) -> int:
    """Return the pixels of an opened image, or those of one tile of a TIFF file if these are more: it is read whole."""
    tags = image.tag_v2 if image.format == "TIFF" else {}
    tile = tags.get(TiffImagePlugin.TILEWIDTH), tags.get(TiffImagePlugin.TILELENGTH)
    whole = all(isinstance(side, int) for side in tile)  # a damaged file may hold text there
    return max(math.prod(image.size), math.prod(tile) if whole else 0)


def _pixels(image: Image.Image) -> Image.Image:
    """Return the first frame of an opened image, upright, as RGB or L."""
    turn = TURNS.get(_orientation(image))
    announced = image.size
    if image.format == "JPEG2000":
        _require_all_tiles(image)
    image.load()
    if image.size != announced:
        raise ValueError(f"the header says {_by(announced)} pixels, the data holds {_by(image.size)}")
    if not min(image.size):
        raise ValueError("it has no pixels")
    pixels = _to_grey_or_rgb(image)
    # A TIFF file turns itself while it loads, and then asks for no turn any more.
    return pixels.transpose(turn) if turn is not None and _orientation(image) != UPRIGHT else pixels


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _require_all_tiles(image: ImageFile.ImageFile) -> None:
    """Raise ValueError unless the data of an opened JPEG 2000 file covers what its header announces.

    Pillow leaves black what the data does not cover. Source: ISO/IEC 15444-1, annex A: the marker segment SIZ holds the
    corners of the image and its tiles, each SOT the number of a tile and the length of its part.
    """
    place = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(place)
    start = data.index(b"\xff\x4f\xff\x51")
    right, bottom, _, _, width, height, left, top = struct.unpack_from(">8I", data, start + 8)
    announced = math.ceil((right - left) / width) * math.ceil((bottom - top) / height)
    place = start + 2
    while data[place : place + 2] != b"\xff\x90":
        place += 2 + struct.unpack_from(">H", data, place + 2)[0]
    found = set()
    while data[place : place + 2] == b"\xff\x90":
        tile, length = struct.unpack_from(">HI", data, place + 4)
        found.add(tile)
        place = place + length if length else len(data)  # 0: up to the end
    if len(found) < announced:
        raise ValueError(f"the header says {_by(image.size)} pixels, the data holds {len(found)} of {announced} tiles")


def _orientation(image: Image.Image) -> int:
    """Return what EXIF says about the orientation, 1 to 8; upright where it says nothing or is damaged."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, UPRIGHT))
    except UNREADABLE:
        return UPRIGHT


def _frames(path: Path) -> int:
    """Return how many frames a file has; 1 where only the first can be counted."""
    try:
        with _open(path) as image:
            return int(getattr(image, "n_frames", 1))
    except UNREADABLE:
        return 1


def _to_grey_or_rgb(image: Image.Image) -> Image.Image:
    """Return 8 bits a channel, RGB or L: 16-bit grey keeps its upper byte, transparency lies on white.

    Raises ValueError for 32-bit, signed and floating-point pixels: which value is white is not in the file.
    """
    # PPM has no 32 bits: Pillow scales the 16 of its grey, from the white that the file names, to 0..65535.
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise ValueError(f"pixels of mode {image.mode} have no known range: save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "L" else image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "file not found"
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a format that is not read here"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    # The text of an operating system's error names the path, which differs between machines.
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot be read whole ({text})"
