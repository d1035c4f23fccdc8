"""What a network sees, as pages of pictures: the same bytes for the same input.

Nothing is computed here but colors and sizes, and the two operations of `textbook`, which need no network.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.explain import textbook
from pipeline.show import contact_sheet
from pipeline.show.contact_sheet import Picture, Section, Strip

WIDTH = 1000
# How much of the color lies over the image where the heat is greatest.
OPACITY = 0.75
KERNELS = 64
# ITU-R BT.601, as Pillow turns colors to grey.
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


class Example(NamedTuple):
    """An image with its heat map for the class that was predicted.

    ``image``: uint8 (size, size, 3). ``heat``: float32 (rows, columns), at least 0. ``name``: of the file.
    ``label``: the class that the image is of, whose probability is ``of_label``.
    """

    image: np.ndarray
    heat: np.ndarray
    name: str
    predicted: str
    probability: float
    label: str
    of_label: float


class Group(NamedTuple):
    """Examples that belong together."""

    heading: str
    examples: Sequence[Example]


class LayerMaps(NamedTuple):
    """Some feature maps of a layer, float32 (images, rows, columns, shown), of ``filters`` out of ``total``."""

    layer: str
    filters: Sequence[int]
    total: int
    values: np.ndarray


class LayerPatterns(NamedTuple):
    """Images made for ``filters`` of a layer, uint8 (shown, size, size, 3), with the responses before and after."""

    layer: str
    filters: Sequence[int]
    images: np.ndarray
    before: np.ndarray
    after: np.ndarray


def heat_maps(groups: Sequence[Group], *, title: str, subtitle: str, path: Path) -> None:
    """Draw every image beside its heat map, which is scaled by its own largest value."""
    side = 150
    sections = [Section(heading, [_pair(example, side) for example in examples]) for heading, examples in groups]
    contact_sheet.draw(sections, title=title, subtitle=subtitle, side=side, width=WIDTH, path=path)


def feature_maps(
    layers: Sequence[LayerMaps], images: Sequence[tuple[str, np.ndarray]], *, title: str, subtitle: str, path: Path
) -> None:
    """Draw a row for every layer and image: the image, then what the filters make of it.

    ``images``: a heading and uint8 (size, size, 3) of each. A filter's colors run from its least to its greatest value
    in all of the images, so that these can be compared.
    """
    side, sections = 100, []
    for layer in layers:
        rows, columns = layer.values.shape[1:3]
        low, high = layer.values.min(axis=(0, 1, 2)), layer.values.max(axis=(0, 1, 2))
        shares = (layer.values - low) / np.where(high > low, high - low, 1)
        strips = []
        for (heading, image), maps in zip(images, shares, strict=True):
            shown = [Picture(_fitted(image, side), "image")]
            shown += [
                Picture(_fitted(_colored(maps[..., place], "viridis"), side), f"filter {number}")
                for place, number in enumerate(layer.filters)
            ]
            strips.append(Strip(heading, shown))
        sections.append(Section(f"{layer.layer}: {layer.total} filters, maps of {rows} x {columns}", strips))
    contact_sheet.draw(sections, title=title, subtitle=subtitle, side=side, width=WIDTH, path=path)


def kernels(values: np.ndarray, *, title: str, subtitle: str, path: Path) -> None:
    """Draw the first kernels, float32 (filters, rows, columns, channels): in color if they have three channels.

    Each is scaled by its own largest weight; a weight of 0 is mid-grey.
    """
    side = 70
    values = values[:KERNELS] if values.shape[-1] == 3 else values[:KERNELS].mean(axis=-1, keepdims=True)
    shown = [np.broadcast_to(_signed(kernel), (*kernel.shape[:2], 3)) for kernel in values]
    strips = _singles(Picture(_fitted(kernel, side), f"filter {number}") for number, kernel in enumerate(shown))
    contact_sheet.draw([Section("", strips)], title=title, subtitle=subtitle, side=side, width=WIDTH, path=path)


def patterns(layers: Sequence[LayerPatterns], *, title: str, subtitle: str, path: Path) -> None:
    """Draw the images made for filters, a section for every layer, in frames: a white one would not be seen."""
    side, sections = 224, []
    for layer, filters, images, before, after in layers:
        pictures = (
            Picture(_framed(_fitted(image, side)), f"filter {number}: {start:.2g} → {reached:.2g}")
            for number, image, start, reached in zip(filters, images, before, after, strict=True)
        )
        sections.append(Section(layer, _singles(pictures)))
    contact_sheet.draw(sections, title=title, subtitle=subtitle, side=side, width=WIDTH, path=path)


def textbook_operations(image: np.ndarray, *, title: str, subtitle: str, path: Path) -> None:
    """Draw edges and max pooling of an image, uint8 (size, size, 3)."""
    side = 235
    grey = image.astype(np.float32) @ LUMA
    horizontal, vertical, magnitude = textbook.sobel(grey)
    size = f"{grey.shape[0]} x {grey.shape[1]}"
    edges = [
        Picture(_fitted(_grey(grey / 255), side), f"grey, {size}"),
        Picture(_fitted(_grey(_signed(horizontal) / 255), side), "horizontal edges"),
        Picture(_fitted(_grey(_signed(vertical) / 255), side), "vertical edges"),
        Picture(_fitted(_grey(magnitude / max(magnitude.max(), 1)), side), "both: the magnitude"),
    ]
    pooled = [edges[0]]
    for k in (2, 4, 8):
        most = textbook.max_pool(grey, k)
        pooled.append(Picture(_fitted(_grey(most / 255), side), f"{k} x {k}: {most.shape[0]} x {most.shape[1]} left"))
    sections = [
        Section("Edges (Sobel): mid-grey, and in the last picture black, where nothing changes", [Strip("", edges)]),
        Section("Max pooling: of each square, only the lightest pixel is left", [Strip("", pooled)]),
    ]
    contact_sheet.draw(sections, title=title, subtitle=subtitle, side=side, width=WIDTH, path=path)


def _pair(example: Example, side: int) -> Strip:
    image = _fitted(example.image, side)
    top = example.heat.max()
    note = "" if example.label == example.predicted else f"{example.label}: {example.of_label:.0%}"
    heat = Image.fromarray(example.heat / top if top > 0 else example.heat)
    shares = np.asarray(heat.resize((side, side), Image.Resampling.BILINEAR)).clip(0, 1)
    pictures = [
        Picture(image, example.name),
        Picture(_over(image, shares), note if top > 0 else "nothing speaks for it"),
    ]
    return Strip(f"predicted {example.predicted}, {example.probability:.0%}", pictures)


def _singles(pictures: Iterable[Picture]) -> list[Strip]:
    return [Strip("", [picture]) for picture in pictures]


def _over(image: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return an image uint8 (height, width, 3) under the colors of shares float32 (height, width) in 0..1."""
    opacity = OPACITY * shares[..., np.newaxis]
    return np.rint(image * (1 - opacity) + _colored(shares, "inferno") * opacity).astype(np.uint8)


def _colored(shares: np.ndarray, colors: str) -> np.ndarray:
    """Return shares in 0..1 as uint8 (..., 3) of one of Matplotlib's color maps."""
    return _colors(colors)[np.rint(shares * 255).astype(np.uint8)]


@functools.cache
def _colors(name: str) -> np.ndarray:
    import matplotlib

    return np.rint(matplotlib.colormaps[name](np.arange(256))[:, :3] * 255).astype(np.uint8)


def _grey(shares: np.ndarray) -> np.ndarray:
    return np.rint(shares * 255).astype(np.uint8)[..., np.newaxis].repeat(3, axis=-1)


def _signed(values: np.ndarray) -> np.ndarray:
    """Return numbers as levels uint8 around mid-grey, the largest of either sign at an end."""
    largest = np.abs(values).max()
    return np.rint(127.5 + 127.5 * values / (largest if largest > 0 else 1)).astype(np.uint8)


def _framed(image: np.ndarray) -> np.ndarray:
    framed = np.full_like(image, 128)
    framed[1:-1, 1:-1] = image[1:-1, 1:-1]
    return framed


def _fitted(image: np.ndarray, side: int) -> np.ndarray:
    """Return a picture uint8 (height, width, 3) with its longer side ``side``; enlarged, its pixels stay squares."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, how))
