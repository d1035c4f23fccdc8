"""How networks want their pixels: the few conventions there are, as numbers, and as the first layers of a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.networks.graphs import Preprocess

if TYPE_CHECKING:
    import keras

# The layer whose output is what the network is fed, unless the preprocessing is inside the network.
LAYER = "preprocess"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Scaling:
    """Pixels in 0..255 times ``scale`` plus ``offset``, after the order of the channels is ``reversed`` (to BGR)."""

    formula: str
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    reversed: bool = False

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Return raw RGB pixels in 0..255, (..., 3), as the network wants them, float32."""
        pixels = np.asarray(pixels, dtype=np.float32)
        pixels = pixels[..., ::-1] if self.reversed else pixels
        return pixels * np.asarray(self.scale, np.float32) + np.asarray(self.offset, np.float32)

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest number that a pixel can become."""
        brightest = (255 * scale + offset for scale, offset in zip(self.scale, self.offset, strict=True))
        return min(self.offset), max(brightest)


def _same(formula: str, scale: float, offset: float) -> Scaling:
    return Scaling(formula, (scale,) * 3, (offset,) * 3)


# Keras calls the first three tf, torch and caffe, after the frameworks whose networks wanted them first.
SIGNED = _same("x / 127.5 - 1", 1 / 127.5, -1.0)
STANDARDIZED = Scaling(
    "(x / 255 - mean) / deviation, ImageNet's of each channel",
    scale=tuple(1 / (255 * deviation) for deviation in IMAGENET_DEVIATION),
    offset=tuple(-mean / deviation for mean, deviation in zip(IMAGENET_MEAN, IMAGENET_DEVIATION, strict=True)),
)
CENTERED_BGR = Scaling(
    "channels in the order BGR, less ImageNet's mean of each",
    scale=(1.0, 1.0, 1.0),
    offset=(-103.939, -116.779, -123.68),
    reversed=True,
)
SIGNED_128 = _same("x / 128 - 1", 1 / 128, -1.0)
LITE = _same("(x - 127) / 128", 1 / 128, -127 / 128)


def feed(
    pixels: keras.KerasTensor,
    choice: Preprocess,
    own: Callable[[keras.KerasTensor], keras.KerasTensor] | None,
) -> keras.KerasTensor:
    """Return what the network is fed: ``pixels`` through its ``own`` preprocessing, or what stands in its place.

    ``own``: None if the preprocessing is inside the network.
    """
    import keras

    if choice == "rescale":
        return keras.layers.Rescaling(1 / 255, name=LAYER)(pixels)
    return pixels if own is None or choice == "none" else own(pixels)
