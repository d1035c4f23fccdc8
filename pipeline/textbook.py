"""The two operations that textbooks show first: edges by Sobel, and max pooling."""

from __future__ import annotations

import numpy as np


def sobel(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return horizontal edges, vertical edges and their magnitude, float32 (h, w) each, of a grey image (h, w)."""
    padded = np.pad(grey.astype(np.float32), 1, mode="edge")
    height, width = grey.shape
    rows = [padded[row : row + height] for row in range(3)]
    down = rows[2] - rows[0]
    horizontal = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    across = padded[:, 2:] - padded[:, :-2]
    vertical = across[:-2] + 2 * across[1:-1] + across[2:]
    return horizontal[:, :width], vertical[:height], np.hypot(horizontal[:, :width], vertical[:height])


def max_pool(grey: np.ndarray, k: int) -> np.ndarray:
    """Return the largest value of each k x k square of a grey image (h, w), (h // k, w // k)."""
    height, width = grey.shape[0] // k, grey.shape[1] // k
    return grey[: height * k, : width * k].reshape(height, k, width, k).max(axis=(1, 3))
