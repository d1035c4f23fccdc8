"""What a pretrained network of any family is: a row of the table, and how a Keras network is made from it."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.console.errors import BakeoffError
from pipeline.core import artifacts
from pipeline.networks import graphs
from pipeline.networks.backbones.scaling import LAYER, Scaling
from pipeline.networks.backbones.weights import KerasFile, PackageFile, WeightsError, draw
from pipeline.networks.graphs import BlockSpec, NetworkSpec, Preprocess

if TYPE_CHECKING:
    import keras

CLASSES = 1000


class BackboneError(BakeoffError):
    """A network cannot be built as it was asked for."""


@dataclass(frozen=True)
class Architecture:
    """A network without numbers of its own yet, and the names of the layers that others need; as in `NetworkSpec`.

    The network ends in the probabilities of its classes; if its features are not on the way to these, in both.
    """

    model: keras.Model
    feature_layer: str
    map_layer: str
    prediction_layer: str | None
    blocks: Sequence[BlockSpec]

    def without_classes(self) -> Architecture:
        """Return the same network, sharing its numbers, up to its features."""
        import keras

        features = self.model.get_layer(self.feature_layer).output
        model = keras.Model(self.model.input, features, name=self.model.name)
        return Architecture(model, self.feature_layer, self.map_layer, None, self.blocks)


@dataclass(frozen=True, kw_only=True)
class Backbone(abc.ABC):
    """A row of the table.

    ``input_size``: pixels, the network's own; ``smallest_size``: below it, nothing is left to compute on.
    ``feature_width``: of the pooled features. ``scaling``: what the network makes of pixels first; ``scaled_inside``:
    by which of its layers, if that is part of the network already.
    ``imagenet``: where its weights come from.
    """

    name: str
    input_size: int
    smallest_size: int
    feature_width: int
    scaling: Scaling
    scaled_inside: str | None = None
    imagenet: PackageFile | KerasFile

    @property
    def preprocess_layer(self) -> str:
        """The layer whose output is the pixels as the network wants them."""
        return self.scaled_inside or LAYER

    def preprocess(self, pixels: np.ndarray) -> np.ndarray:
        """Return raw RGB pixels in 0..255, (..., 3), as the network wants them, float32."""
        return self.scaling.apply(pixels)

    def problem(self, *, input_size: int | None, preprocess: Preprocess) -> tuple[str, str] | None:
        """Return which of two choices this network cannot follow, and why; None if it can follow both."""
        if input_size is not None and input_size < self.smallest_size:
            return "input_size", f"must be at least {self.smallest_size} for {self.name}, received {input_size}"
        if preprocess == "none" and self.scaled_inside:
            return "preprocess", (
                f"none is no ablation of {self.name}: its preprocessing is inside the network (layer "
                f"{self.scaled_inside}), so nothing would change. Choose backbone, or rescale for what feeding it "
                "pixels / 255 costs"
            )
        return None

    def architecture(
        self, *, name: str | None = None, input_size: int | None = None, preprocess: Preprocess = "backbone"
    ) -> Architecture:
        """Return the network, which takes raw pixels, with numbers that mean nothing yet.

        The names of its layers depend on nothing else: Keras forgets what it has built before (``clear_session``).
        Raises BackboneError for a size or a preprocessing that the network cannot have.
        """
        import keras

        if problem := self.problem(input_size=input_size, preprocess=preprocess):
            raise BackboneError(f"backbone.{problem[0]}: {problem[1]}")
        keras.utils.clear_session(free_memory=False)
        found = self._assemble(name or self.name, input_size or self.input_size, preprocess)
        graphs.forget_draws(found.model)
        return found

    def build(
        self,
        *,
        weights: str,
        seed: int,
        name: str | None = None,
        input_size: int | None = None,
        preprocess: Preprocess = "backbone",
    ) -> tuple[keras.Model, NetworkSpec]:
        """Return the network, which takes raw pixels, and what others need to know of it.

        ``weights``: ``imagenet``, ``random`` (drawn from ``seed``; predictions mean nothing), or the path of a file.
        ``name``: of a variant. Raises WeightsError or TorchFileError if the weights are missing, changed or not those
        of this network; BackboneError as `architecture`.
        """
        choices: dict[str, Any] = {"name": name, "input_size": input_size, "preprocess": preprocess}
        if weights == "random":
            found, origin = self.architecture(**choices), {"source": "random", "seed": str(seed)}
            draw(found.model, seed=seed)
        else:
            path, origin = self._locate(weights)
            found = self._load(path, choices)
            origin |= {"file": path.name, "sha256": artifacts.sha256_file(path)}
        return found.model, self._spec(found, origin, input_size=input_size, preprocess=preprocess)

    @abc.abstractmethod
    def _assemble(self, name: str, size: int, preprocess: Preprocess) -> Architecture:
        """Return the network for images of ``size`` x ``size``."""

    @abc.abstractmethod
    def _load(self, path: Path, choices: dict[str, Any]) -> Architecture:
        """Return the `architecture` of ``choices`` with the numbers of a file."""

    def _locate(self, weights: str) -> tuple[Path, dict[str, str]]:
        if weights == "imagenet":
            return self.imagenet.locate(), {"source": "imagenet", **self.imagenet.origin}
        if not Path(weights).is_file():
            raise WeightsError(f"Weights of {self.name}: there is no file {weights}. Choose imagenet, random or a file")
        return Path(weights), {"source": "file"}

    def _spec(
        self, found: Architecture, origin: dict[str, str], *, input_size: int | None, preprocess: Preprocess
    ) -> NetworkSpec:
        upto_features = graphs.cut(found.model, found.feature_layer)
        return NetworkSpec(
            name=found.model.name,
            network=None if found.model.name == self.name else self.name,
            input_size=input_size or self.input_size,
            feature_layer=found.feature_layer,
            feature_width=upto_features.output_shape[-1],
            map_layer=found.map_layer,
            prediction_layer=found.prediction_layer,
            preprocess=preprocess,
            blocks=list(found.blocks),
            weights=origin,
            cost=graphs.cost_of(upto_features),
        )
