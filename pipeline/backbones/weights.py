"""Where the numbers of a network come from, whatever its architecture: an installed package, or a seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import artifacts, seeds
from pipeline.errors import BakeoffError

if TYPE_CHECKING:
    import keras


class WeightsError(BakeoffError):
    """Pretrained weights are missing or are not those of the network."""


@dataclass(frozen=True)
class PackageFile:
    """A file of weights inside an installed package, pinned by its digest."""

    package: str
    file: str
    sha256: str

    def locate(self) -> Path:
        """Return where the file is installed. Raises WeightsError if it is missing or its digest differs."""
        try:
            path = Path(str(metadata.distribution(self.package).locate_file(self.file)))
        except metadata.PackageNotFoundError:
            raise WeightsError(
                f"Pretrained weights come from the package {self.package}, which is not installed: "
                "install requirements.lock, or set backbone.weights in params.yaml to random or to a file"
            ) from None
        if not path.is_file():
            raise WeightsError(f"The package {self.package} is installed without {self.file}: install it again")
        received = artifacts.sha256_file(path)
        if received != self.sha256:
            raise WeightsError(f"{self.file} must have the SHA-256 {self.sha256}, received {received}")
        return path


def draw(model: keras.Model, *, seed: int, is_linear: Callable[[str], bool]) -> None:
    """Draw every kernel from a child seed named by its layer, scaled to keep the variance (He et al. 2015).

    ``is_linear``: says of a layer's name that no ReLU follows. Normalization and biases keep their initial values.
    """
    import keras

    for layer in model.layers:
        if not isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)):
            continue
        shape = tuple(layer.kernel.shape)
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        fan_in = math.prod(shape[:2] if depthwise else shape[:-1])
        # A ReLU halves the variance.
        scale = math.sqrt((1 if is_linear(layer.name) else 2) / fan_in)
        draws = seeds.generator(seed, "backbone", layer.name).standard_normal(shape, dtype=np.float32)
        layer.kernel.assign(draws * np.float32(scale))
