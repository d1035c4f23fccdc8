"""The networks of ``keras.applications``: built by Keras, with their preprocessing in front and their top on demand.

Keras' own top is left out and put together here, layer by layer under Keras' names: pooling then always gives
(batch, width), the last map has a name, and a network whose fully connected layers fit one input size only can be had
at any other without them. A test compares every one of them with Keras' own.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pipeline.networks.backbones.backbone import CLASSES, Architecture, Backbone
from pipeline.networks.backbones.scaling import IMAGENET_DEVIATION, IMAGENET_MEAN, LAYER, feed
from pipeline.networks.backbones.weights import WeightsError, count_arrays, load_hdf5
from pipeline.networks.graphs import BlockSpec, Preprocess

if TYPE_CHECKING:
    import keras


class BlockError(ValueError):
    """The pattern of a row finds no blocks."""


@dataclass(frozen=True)
class Blocks:
    """How the blocks of a network are told from the names of its layers, in Keras' order, which is by depth.

    ``pattern``: what a layer's whole name must match; its groups, joined, name the block. ``by``: a block starts at the
    first layer with its name, or it ends with that layer and starts after the one before; then the first match, without
    a group, ends the stem.
    """

    pattern: str
    by: Literal["start", "end"] = "start"

    def find(self, layers: Sequence[str]) -> list[BlockSpec]:
        """Return the blocks from input to output. Raises BlockError if there is none."""
        starts: dict[str, str] = {}
        after_last: str | None = None
        for position, layer in enumerate(layers):
            match = re.fullmatch(self.pattern, layer)
            if not match:
                continue
            name = "".join(filter(None, match.groups()))
            if self.by == "start":
                starts.setdefault(name, layer)
                continue
            if after_last is not None:
                starts[name] = after_last
            after_last = layers[position + 1] if position + 1 < len(layers) else None
        if not starts:
            raise BlockError(f"No layer matches {self.pattern!r} among {', '.join(layers)}")
        return [BlockSpec(name=name, first_layer=layer) for name, layer in starts.items()]


# --- tops ----------------------------------------------------------------------------------------------------------


class Top(NamedTuple):
    """What comes after the last map, as tensors: the pooled features, and the probabilities of the classes."""

    features: keras.KerasTensor
    predictions: keras.KerasTensor | None


# Takes the last map and Keras' name of the network; with or without the classes.
BuildTop = Callable[["keras.KerasTensor", str, bool], Top]


def pooled(maps: keras.KerasTensor, prefix: str, classes: bool) -> Top:
    """Global average pooling, then one layer of classes: most networks."""
    import keras

    features = keras.layers.GlobalAveragePooling2D(name="avg_pool")(maps)
    return Top(features, _softmax(features, "predictions") if classes else None)


def fully_connected(maps: keras.KerasTensor, prefix: str, classes: bool) -> Top:
    """VGG's: flattened, two layers of 4,096, the classes. Beside it the maps are pooled."""
    import keras

    features = keras.layers.GlobalAveragePooling2D(name="avg_pool")(maps)
    if not classes:
        return Top(features, None)
    x = keras.layers.Flatten(name="flatten")(maps)
    x = keras.layers.Dense(4096, activation="relu", name="fc1")(x)
    x = keras.layers.Dense(4096, activation="relu", name="fc2")(x)
    return Top(features, _softmax(x, "predictions"))


def convolutional(maps: keras.KerasTensor, prefix: str, classes: bool) -> Top:
    """MobileNet's: the classes are a convolution of the one pooled pixel."""
    import keras

    features = keras.layers.GlobalAveragePooling2D(name="avg_pool")(maps)
    if not classes:
        return Top(features, None)
    x = keras.layers.Reshape((1, 1, features.shape[-1]), name="reshape_1")(features)
    x = keras.layers.Conv2D(CLASSES, 1, padding="same", name="conv_preds")(x)
    x = keras.layers.Reshape((CLASSES,), name="reshape_2")(x)
    return Top(features, keras.layers.Activation("softmax", name="predictions")(x))


def convolutional_after(units: int) -> BuildTop:
    """Return MobileNetV3's: one more convolution of the pooled pixel, with ``units`` filters, before the classes."""

    def build(maps: keras.KerasTensor, prefix: str, classes: bool) -> Top:
        import keras

        features = keras.layers.GlobalAveragePooling2D(name="avg_pool")(maps)
        if not classes:
            return Top(features, None)
        x = keras.layers.Reshape((1, 1, features.shape[-1]), name="reshape_1")(features)
        x = keras.layers.Conv2D(units, 1, padding="same", name="conv_2")(x)
        x = keras.layers.Activation("hard_swish", name="conv_2_activation")(x)
        x = keras.layers.Conv2D(CLASSES, 1, padding="same", name="logits")(x)
        x = keras.layers.Flatten(name="flatten")(x)
        return Top(features, keras.layers.Activation("softmax", name="predictions")(x))

    return build


def normalized(maps: keras.KerasTensor, prefix: str, classes: bool) -> Top:
    """ConvNeXt's: pooled, normalized, the classes. Its features are normalized, with or without the classes."""
    import keras

    features = keras.layers.GlobalAveragePooling2D(name=f"{prefix}_head_gap")(maps)
    features = keras.layers.LayerNormalization(epsilon=1e-6, name=f"{prefix}_head_layernorm")(features)
    return Top(features, _softmax(features, f"{prefix}_head_dense") if classes else None)


def _softmax(features: keras.KerasTensor, name: str) -> keras.KerasTensor:
    import keras

    return keras.layers.Dense(CLASSES, activation="softmax", name=name)(features)


# --- networks ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Application(Backbone):
    """A network of ``keras.applications``.

    ``constructor``: its name there; ``options``: further arguments. ``module``: of its ``preprocess_input``.
    ``fixed_top``: whether the classes can be had at the network's own input size only.
    """

    constructor: str
    module: str
    blocks: Blocks
    smallest_size: int = 32
    top: BuildTop = pooled
    fixed_top: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def _assemble(self, name: str, size: int, preprocess: Preprocess) -> Architecture:
        import keras

        pixels = keras.Input((size, size, 3), dtype="float32", name="pixels")
        fed = feed(pixels, preprocess, None if self.scaled_inside else self._own_preprocessing)
        base = getattr(keras.applications, self.constructor)(
            include_top=False, weights=None, input_tensor=fed, input_shape=(size, size, 3), **self.options
        )
        maps = base.output
        if self.top is normalized:
            # Without its top, Keras ends ConvNeXt in a normalization of the maps; the maps have no layer of their own.
            maps = keras.layers.Identity(name="maps")(base.layers[-1].input)
        top = self.top(maps, base.name, size == self.input_size or not self.fixed_top)
        model = keras.Model(pixels, _outputs(top), name=name)
        _set_constants(model)
        return Architecture(
            model,
            feature_layer=_layer_of(top.features),
            map_layer=_layer_of(maps),
            prediction_layer=None if top.predictions is None else _layer_of(top.predictions),
            blocks=self.blocks.find([layer.name for layer in model.layers]),
        )

    def _own_preprocessing(self, pixels: keras.KerasTensor) -> keras.KerasTensor:
        """Return what Keras' own function makes of pixels: the very same operations, in the graph."""
        import keras

        module = importlib.import_module(f"keras.applications.{self.module}")
        return keras.layers.Identity(name=LAYER)(module.preprocess_input(pixels))

    def _load(self, path: Path, choices: dict[str, Any]) -> Architecture:
        """Load an official file, with or without the top, or one that Keras writes today.

        Weights depend on no input size, except those of a top that is fixed: from a file with that, at another size,
        the others are taken.
        """
        if path.suffix != ".h5":
            raise WeightsError(f"Weights of {self.name}: {path} must end in .h5 (as Keras' own do) or .weights.h5")
        count = count_arrays(path)
        found = self.architecture(**choices)
        candidates = [found] if found.prediction_layer is None else [found, found.without_classes()]
        for candidate in candidates:
            if count == len(candidate.model.weights):
                load_hdf5(candidate.model, path)
                _set_constants(candidate.model)
                return candidate
        expected = [len(candidate.model.weights) for candidate in candidates]
        if self.fixed_top and found.prediction_layer is None:
            whole = self.architecture(preprocess=choices["preprocess"]).model
            expected.append(len(whole.weights))
            if count == len(whole.weights):
                load_hdf5(whole, path)
                _copy(whole, found.model)
                return found
        raise WeightsError(
            f"{path} does not hold the weights of {self.name}, which are "
            f"{' or '.join(map(str, sorted(expected)))} arrays: it holds {count}"
        )


def _outputs(top: Top) -> Any:
    """Return what the network ends in: everything that is not on the way to something else."""
    if top.predictions is None:
        return top.features
    consumers = top.features._keras_history.operation._outbound_nodes
    return top.predictions if consumers else [top.predictions, top.features]


def _layer_of(tensor: keras.KerasTensor) -> str:
    return tensor._keras_history.operation.name


def _set_constants(model: keras.Model) -> None:
    """Give EfficientNet's normalization of pixels the constants that belong to the network, whatever its weights.

    Keras keeps variances in the official file that are deviations, and corrects them by one more layer only if it loads
    that file itself (tensorflow/tensorflow#49930).
    """
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.input_mean is None:
            layer.adapt_mean.assign(IMAGENET_MEAN)
            layer.adapt_variance.assign([deviation**2 for deviation in IMAGENET_DEVIATION])
            layer.finalize_state()


def _copy(source: keras.Model, target: keras.Model) -> None:
    """Give every layer of ``target`` the weights of its namesake in ``source``."""
    for layer in target.layers:
        if layer.weights:
            layer.set_weights(source.get_layer(layer.name).get_weights())
