"""Two operations that convolutional networks are explained with, on one grey image: Sobel edges and max pooling."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Edges(NamedTuple):
    """Sobel's gradients of a grey image, each float64 (height, width).

    ``horizontal``: edges that run horizontally, positive where it gets brighter downwards. ``vertical``: edges that run
    vertically, positive where it gets brighter to the right. ``magnitude``: the length of both together.
    """

    horizontal: np.ndarray
    vertical: np.ndarray
    magnitude: np.ndarray


def sobel(grey: np.ndarray) -> Edges:
    """Return the edges of a grey image, any numbers (height, width), whose border pixels go on outwards.

    The kernels are the outer products of a difference, (-1, 0, 1), and a smoothing across it, (1, 2, 1) (Sobel and
    Feldman 1968, in Duda and Hart 1973, p. 271). On 0..255 a step from black to white gives 4 x 255.
    """
    bordered = np.pad(_grey(grey).astype(np.float64), 1, mode="edge")
    downwards = bordered[2:] - bordered[:-2]
    rightwards = bordered[:, 2:] - bordered[:, :-2]
    horizontal = downwards[:, :-2] + 2 * downwards[:, 1:-1] + downwards[:, 2:]
    vertical = rightwards[:-2] + 2 * rightwards[1:-1] + rightwards[2:]
    return Edges(horizontal, vertical, np.hypot(horizontal, vertical))


def max_pool(grey: np.ndarray, side: int) -> np.ndarray:
    """Return the largest value of each ``side`` x ``side`` block, (height // side, width // side), of the same dtype.

    Blocks do not overlap; what is left over at the right and below is dropped, as by Keras' MaxPooling2D. Raises
    ValueError unless a block fits into the image.
    """
    height, width = _grey(grey).shape
    if not 1 <= side <= min(height, width):
        raise ValueError(
            f"side must be from 1 to {min(height, width)} for an image of {height} x {width}, received {side}"
        )
    rows, columns = height // side, width // side
    return grey[: rows * side, : columns * side].reshape(rows, side, columns, side).max(axis=(1, 3))


def _grey(image: np.ndarray) -> np.ndarray:
    if image.ndim != 2:
        raise ValueError(f"a grey image must be (height, width), received {image.shape}")
    return image
