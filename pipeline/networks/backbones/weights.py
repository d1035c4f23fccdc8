"""Where the numbers of a network come from, whatever its architecture: a package, Keras' download, or a seed."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.console.errors import BakeoffError
from pipeline.core import artifacts, seeds

if TYPE_CHECKING:
    import keras

# A server that says nothing for this long is taken for one that cannot be reached.
PATIENCE_SECONDS = 20.0
_HASHES = {32: "md5", 64: "sha256"}
# What else there is in an HDF5 file of Keras.
NO_WEIGHTS = ("top_level_model_weights", "optimizer_weights", "seed_generator")


class WeightsError(BakeoffError):
    """Pretrained weights are missing or are not those of the network."""


@dataclass(frozen=True)
class PackageFile:
    """A file of weights inside an installed package, pinned by its digest."""

    package: str
    file: str
    sha256: str

    @property
    def origin(self) -> dict[str, str]:
        return {"package": self.package}

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


@dataclass(frozen=True)
class KerasFile:
    """An official file of Keras, with the top, and the checksum that Keras knows of it (None: it knows none).

    ``cached_as``: what Keras calls it on a disk, if that is not its name there.
    """

    url: str
    checksum: str | None
    cached_as: str | None = None

    @property
    def name(self) -> str:
        return self.cached_as or Path(self.url).name

    @property
    def origin(self) -> dict[str, str]:
        return {}

    @property
    def described_checksum(self) -> str:
        """The checksum with the name of its hash, for messages."""
        if self.checksum is None:
            return "Keras knows no checksum of it"
        return f"{self._hash.upper().replace('SHA', 'SHA-')} {self.checksum}"

    def locate(self) -> Path:
        """Return the file in Keras' cache, downloaded if it is not there yet, with its checksum verified.

        Raises WeightsError, after seconds, if it cannot be had.
        """
        models = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models"
        path = models / self.name
        received = self._digest(path) if path.is_file() else None
        if path.is_file() and received == self.checksum:
            return path
        import keras

        try:
            models.mkdir(parents=True, exist_ok=True)
            # Elsewhere first: Keras takes what a killed download left for a file, if it knows no checksum.
            with tempfile.TemporaryDirectory(dir=models, prefix=".download-") as place, _patience(PATIENCE_SECONDS):
                found = keras.utils.get_file(
                    self.name, self.url, cache_dir=place, cache_subdir="", file_hash=self.checksum
                )
                os.replace(found, path)
        # Keras raises a bare Exception for what a server or the network says.
        except Exception as error:
            there = f" The file that is there has {received}." if received else ""
            raise WeightsError(
                f"{self.name} ({self.described_checksum}) could not be downloaded: {error}.{there} Get it from "
                f"{self.url} another way and put it at {path}, or name it as backbone.weights in params.yaml "
                "(backbone.weights: random needs no file)"
            ) from error
        return path

    @property
    def _hash(self) -> str:
        return _HASHES[len(self.checksum or "")]

    def _digest(self, path: Path) -> str | None:
        """Return a file's checksum by the hash that is known, None if none is known."""
        if self.checksum is None:
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.new(self._hash, usedforsecurity=False)).hexdigest()


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def draw(model: keras.Model, *, seed: int) -> None:
    """Draw every kernel from a child seed named by its layer, scaled to keep the variance (He et al. 2015).

    Normalization and biases keep their initial values. Raises WeightsError for a layer that is not known to it, whose
    numbers would come from elsewhere.
    """
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            draw(layer, seed=seed)
        elif type(layer).__name__ == "LayerScale":
            # ConvNeXt's blocks begin at 1e-6, with which they would add nothing.
            layer.gamma.assign(np.ones(layer.gamma.shape, np.float32))
        else:
            _draw_layer(layer, seed=seed)


def _draw_layer(layer: keras.Layer, *, seed: int) -> None:
    import keras

    gain = 2 if _is_rectified(layer) else 1
    if isinstance(layer, keras.layers.SeparableConv2D):
        kernels = [(layer.depthwise_kernel, 2, 1, "depthwise"), (layer.pointwise_kernel, 3, gain, "pointwise")]
    elif isinstance(layer, keras.layers.DepthwiseConv2D):
        kernels = [(layer.kernel, 2, gain)]
    elif isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
        kernels = [(layer.kernel, -1, gain)]
    elif any(len(weight.shape) > 1 for weight in layer.weights):
        raise WeightsError(f"Layer {layer.name} is a {type(layer).__name__}, which random weights are not drawn for")
    else:
        return
    for kernel, axes, gain_, *names in kernels:
        shape = tuple(kernel.shape)
        draws = seeds.generator(seed, "backbone", layer.name, *names).standard_normal(shape, dtype=np.float32)
        kernel.assign(draws * np.float32(math.sqrt(gain_ / math.prod(shape[:axes]))))


def _is_rectified(layer: keras.Layer) -> bool:
    """Return whether an activation, which halves the variance, follows a layer, perhaps after a normalization."""
    import keras

    if isinstance(layer, keras.layers.ReLU):
        return True
    own = getattr(layer, "activation", None)
    if own is not None and own.__name__ not in ("linear", "softmax"):
        return True
    looked_through = (
        keras.layers.BatchNormalization,
        keras.layers.LayerNormalization,
        keras.layers.Activation,
        keras.layers.ReLU,
    )
    followers = (node.operation for node in layer._outbound_nodes)
    return any(isinstance(follower, looked_through) and _is_rectified(follower) for follower in followers)


# --- HDF5 files ----------------------------------------------------------------------------------------------------


def load_hdf5(model: keras.Model, path: Path) -> None:
    """Set the weights of ``model`` from Keras' official layout (.h5) or its own of today (.weights.h5).

    Raises WeightsError if the file is not of this network, or holds what is no number.
    """
    try:
        model.load_weights(path)
    except (ValueError, KeyError, OSError, AttributeError) as error:
        raise WeightsError(f"{path} does not hold the weights of {model.name}: {error}") from None
    for weight in model.weights:
        if not np.isfinite(weight.numpy()).all():
            raise WeightsError(f"{path}: {weight.path} holds values that are not finite")


def count_arrays(path: Path) -> int:
    """Return how many weights an HDF5 file of Keras holds, in either layout. Raises WeightsError for another file."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            root = next((file[name] for name in ("model_weights", "layers") if name in file), file)
            found = []

            def visit(name: str, item: object) -> None:
                if isinstance(item, h5py.Dataset) and not any(word in name for word in NO_WEIGHTS):
                    found.append(name)

            root.visititems(visit)
            return len(found)
    except OSError as error:
        raise WeightsError(f"{path} is not a whole HDF5 file: {error}") from None
