"""Test-time augmentation: the views of an image that a network is asked about, and what its answers come to.

They are the image as it is and some augmented views. These have numbers below 0: training counts its views from 0 and
never meets them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import artifacts
from pipeline.images import augmentation


@dataclass(frozen=True)
class AskedViews:
    """The image as it is, and ``augmented`` views of it that ``seed`` and ``params`` draw from its SHA-256."""

    augmented: int = 0
    seed: int = 0
    params: augmentation.AugmentationParams | None = None

    @classmethod
    def of(cls, params: augmentation.AugmentationParams, *, seed: int) -> AskedViews:
        return cls(params.test_time_views, seed, params) if params.test_time_views else cls()

    @classmethod
    def from_about(cls, about: Mapping[str, Any]) -> AskedViews:
        """Return what a run's ``about`` says; the image as it is if nothing."""
        found = about.get("test_time")
        if found is None:
            return cls()
        return cls.of(augmentation.AugmentationParams.model_validate(found["augmentation"]), seed=found["seed"])

    def about(self) -> dict[str, Any]:
        """Return what a run has to keep: nothing if it asks about the image as it is alone."""
        if not self.augmented:
            return {}
        return {"test_time": {"seed": self.seed, "augmentation": self.params.model_dump()}}

    @property
    def numbers(self) -> tuple[int | None, ...]:
        """The numbers of the views; None: the image as it is."""
        return (None, *(-number for number in range(1, self.augmented + 1)))

    def pixels(self, image: np.ndarray, source: Path | bytes) -> np.ndarray:
        """Return the views of an image, uint8 (views, size, size, 3); ``source``: its file, or the file's bytes."""
        if not self.augmented:
            return image[np.newaxis]
        sha256 = hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else artifacts.sha256_file(source)
        drawn = (
            augmentation.augment(image, seed=self.seed, sha256=sha256, view=number, params=self.params)
            for number in self.numbers[1:]
        )
        return np.stack([image, *drawn])

    def mean(self, probabilities: np.ndarray) -> np.ndarray:
        """Return (n, classes), float32, of probabilities (n * views, classes), the views of an image in a row.

        Bit for bit the same for one image as for many; a single view is left as it is.
        """
        if not self.augmented:
            return probabilities
        total = np.zeros((len(probabilities) // len(self.numbers), probabilities.shape[1]))
        # One after the other in float64: how NumPy would add them depends on the shape.
        for view in range(len(self.numbers)):
            total += probabilities[view :: len(self.numbers)]
        return (total / len(self.numbers)).astype(np.float32)
