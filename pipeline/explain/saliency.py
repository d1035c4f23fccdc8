"""What a trained network responds to: heat maps of its evidence, feature maps, kernels, images made for its filters.

Heat maps are Grad-CAM (Selvaraju et al. 2017), images made for a filter come from gradient ascent in input space
(Erhan et al. 2009). The network runs in TensorFlow here, because the forward-only engine has no gradients, and always
in inference mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from pydantic import Field

from pipeline.console.errors import BakeoffError
from pipeline.console.progress import progress
from pipeline.core.params import Block
from pipeline.networks import graphs

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

# Images a pass: the tape keeps every layer's output of all of them.
BATCH_SIZE = 8
GREY = 127.5
# Gradient ascent: how far a step changes pixels on average and how noisy the start is, in levels of 0..255; what
# remains of the contrast after a step; by how many pixels the image is moved, unless an eighth of its side is less.
STEP, NOISE, DECAY, JITTER = 12.0, 8.0, 0.97, 8
BINOMIAL = np.array([1, 4, 6, 4, 1], dtype=np.float32) / 16


class SaliencyError(BakeoffError):
    """A network that cannot be looked into in the way that was asked for."""


class PatternParams(Block):
    """Images made for filters: how many filters a layer, steps of gradient ascent, pixels; None: the network's own."""

    filters: Annotated[int, Field(ge=1, le=8)]
    steps: Annotated[int, Field(ge=1, le=1000)]
    input_size: Annotated[int, Field(ge=32, le=1024)] | None


class ExplainParams(Block):
    """``explain`` in params.yaml. ``layers``: of networks by name; one that is not there has convolutions shown.

    ``images``: at most so many right and so many wrong ones a class.
    """

    layers: dict[str, Annotated[list[str], Field(min_length=1, max_length=12)]]
    images: Annotated[int, Field(ge=1, le=12)]
    patterns: PatternParams


class Kernels(NamedTuple):
    """The kernels of a layer, float32 (filters, rows, columns, channels)."""

    layer: str
    values: np.ndarray


class Patterns(NamedTuple):
    """Images made for filters: uint8 (filters, size, size, 3), and the filters' mean responses float32 (filters,).

    ``before``: to the grey noise that the ascent started from. ``after``: to the images.
    """

    images: np.ndarray
    before: np.ndarray
    after: np.ndarray


class ExplainedNetwork:
    """A classifier, raw pixels to probabilities (n, classes), opened where its feature maps end.

    The network is a graph of layers, or a chain one link of which is a trunk (a nested model); then the layers that
    have names here are the trunk's. ``map_layer``: the last layer with height and width, whose output heat maps weigh.
    ``score``: in words, the number whose gradient they follow. ``convolutions``: the layers with kernels, input first.
    """

    def __init__(self, model: keras.Model, *, n_classes: int):
        """Raise SaliencyError for a network without a convolution."""
        import keras

        self.input_size: int = model.input_shape[1]
        trunk = next((layer for layer in model.layers if isinstance(layer, keras.Model)), None)
        self._trunk = model if trunk is None else trunk
        self.convolutions = tuple(layer.name for layer in self._trunk.layers if _is_convolution(layer))
        if not self.convolutions:
            raise SaliencyError(f"Network {model.name!r} has no convolution: there are no maps of features to look at")
        self.map_layer = [layer.name for layer in self._trunk.layers if _has_map(layer)][-1]
        maps = self._trunk.get_layer(self.map_layer).output
        end, self._score, self.score = _end(model, n_classes)
        ways = [(maps, end)]
        if trunk is not None:
            after = model.layers[model.layers.index(trunk) + 1 :]
            ways = [(maps, trunk.output), *((layer.input, end) for layer in after[:1])]
        self._to_maps = keras.Model(self._trunk.input, maps)
        self._from_maps = [keras.Model(start, stop) for start, stop in ways if start is not stop]

    def heat_maps(self, pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return where an image speaks for a class: float32 (n, rows, columns) at the size of `map_layer`, at least 0.

        ``pixels``: uint8 (n, size, size, 3). ``classes``: int (n,), one for each image. Each channel of the maps is
        weighted by the mean gradient of the class's score over the channel; what speaks against the class is cut off.
        """
        import tensorflow as tf

        heat = []
        starts = range(0, len(pixels), BATCH_SIZE)
        for start in progress(starts, total=len(starts), label=f"heat maps of {self.map_layer}", unit="batches"):
            batch = slice(start, start + BATCH_SIZE)
            maps = self._to_maps(_as_input(pixels[batch]), training=False)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(maps)
                scores = self._scores(maps)
                chosen = tf.reduce_sum(scores * tf.one_hot(classes[batch], scores.shape[1]))
            weights = tf.reduce_mean(tape.gradient(chosen, maps), axis=(1, 2), keepdims=True)
            heat.append(tf.nn.relu(tf.reduce_sum(weights * maps, axis=-1)).numpy())
        return np.concatenate(heat)

    def feature_maps(self, pixels: np.ndarray, layer: str) -> np.ndarray:
        """Return what a layer makes of images uint8 (n, size, size, 3): float32 (n, rows, columns, filters).

        Raises NetworkError if there is no such layer, SaliencyError if its output has no height and width.
        """
        self.check([layer])
        return graphs.cut(self._trunk, layer)(_as_input(pixels), training=False).numpy()

    def first_kernels(self) -> Kernels:
        """Return the kernels of the layer that sees the pixels; a depthwise one counts each channel as a filter."""
        import keras

        layer = next(layer for layer in _leaves(self._trunk) if _is_convolution(layer))
        kernel = layer.weights[0].numpy()  # (rows, columns, channels, filters)
        if not isinstance(layer, keras.layers.Conv2D):
            kernel = kernel.reshape(*kernel.shape[:2], 1, -1)
        return Kernels(layer.name, np.moveaxis(kernel, -1, 0))

    def patterns(
        self, layer: str, filters: Sequence[int], *, params: PatternParams, generator: np.random.Generator
    ) -> Patterns:
        """Return an image for each filter of a layer that raises its mean response, by gradient ascent from grey noise.

        Noise of single pixels raises it best and shows nothing, so the image is moved before each step, the gradient
        is blurred, and contrast decays. Raises as `feature_maps` does, and SaliencyError if the network cannot take
        images of the size.
        """
        import tensorflow as tf

        self.check([layer])
        network, size = self._up_to(layer, params.input_size), params.input_size or self.input_size
        chosen = tf.one_hot(filters, network.output_shape[-1])

        def response(images: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(tf.reduce_mean(network(images, training=False), axis=(1, 2)) * chosen, axis=1)

        noise = generator.standard_normal((len(filters), size, size, 3), dtype=np.float32)
        start = images = np.clip(GREY + NOISE * noise, 0, 255)
        reach = min(JITTER, size // 8)
        label = f"images for filters of {layer}"
        for _ in progress(range(params.steps), total=params.steps, label=label, unit="steps"):
            down, right = generator.integers(-reach, reach, size=2, endpoint=True).tolist()
            gradient = _gradient(response, np.roll(images, (down, right), axis=(1, 2)))
            step = _blurred(np.roll(gradient, (-down, -right), axis=(1, 2)))
            length = np.sqrt(np.mean(np.square(step), axis=(1, 2, 3), keepdims=True))
            step /= np.maximum(length, np.finfo(np.float32).tiny)
            images = np.clip(GREY + DECAY * (images + STEP * step - GREY), 0, 255)
        shown = np.rint(images).astype(np.uint8)
        return Patterns(shown, response(_as_input(start)).numpy(), response(_as_input(shown)).numpy())

    def check(self, layers: Sequence[str]) -> None:
        """Raise NetworkError for a name that no layer has, SaliencyError for a layer without height and width."""
        for name in layers:
            if not _has_map(graphs.find_layer(self._trunk, name)):
                choices = ", ".join(from_first_to_last(self.convolutions, 8))
                raise SaliencyError(
                    f"Layer {name!r} of {self._trunk.name!r} has no height and width to show. Some that have: {choices}"
                )

    def _scores(self, maps: tf.Tensor) -> tf.Tensor:
        for network in self._from_maps:
            maps = network(maps, training=False)
        return self._score(maps)

    def _up_to(self, layer: str, size: int | None) -> keras.Model:
        """Return the network up to a layer, for images of another size if one is given; the weights are shared."""
        import keras

        network = graphs.cut(self._trunk, layer)
        if size in (None, self.input_size):
            return network
        try:
            return keras.models.clone_model(
                network, input_tensors=keras.Input((size, size, 3)), clone_function=lambda layer: layer
            )
        except ValueError as error:
            raise SaliencyError(
                f"{self._trunk.name!r} up to {layer!r} cannot take images of {size} x {size} pixels. Set params.yaml: "
                f"explain.patterns.input_size to null, for its own {self.input_size}"
            ) from error


def load(run: Path, *, n_classes: int, threads: int) -> ExplainedNetwork:
    """Return the network of a run's directory, to compute the same bytes every time with so many threads."""
    graphs.start_tensorflow(threads=threads)
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    return ExplainedNetwork(graphs.load(run), n_classes=n_classes)


def from_first_to_last(names: Sequence[str], count: int) -> list[str]:
    """Return ``count`` of ``names`` at equal distances, the first and the last among them; all if there are fewer."""
    places = np.linspace(0, len(names) - 1, num=min(count, len(names)))
    return [names[place] for place in np.rint(places).astype(int)]


def varied(maps: np.ndarray) -> list[int]:
    """Return the filters whose maps (n, rows, columns, filters) vary within one of the images; all, if none does."""
    lively = np.ptp(maps, axis=(1, 2)).max(axis=0) > 0
    return np.flatnonzero(lively if lively.any() else ~lively).tolist()


def _leaves(model: keras.Model) -> Iterator[keras.Layer]:
    """Yield the layers of a network and of those nested in it, such as the stem of ConvNeXt."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _leaves(layer)
        else:
            yield layer


def _has_map(layer: keras.Layer) -> bool:
    """Whether a layer computes maps (batch, rows, columns, channels) of more than one position."""
    import keras

    shape = getattr(layer.output, "shape", ())
    fixed = len(shape) == 4 and None not in shape[1:]
    return fixed and shape[1] * shape[2] > 1 and not isinstance(layer, keras.layers.InputLayer)


def _is_convolution(layer: keras.Layer) -> bool:
    import keras

    kinds = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)
    return isinstance(layer, kinds) and _has_map(layer)


def _end(model: keras.Model, n_classes: int) -> tuple[keras.KerasTensor, Callable[[tf.Tensor], tf.Tensor], str]:
    """Return the tensor that scores (n, classes) are computed from, how, and what they are in words.

    A probability hardly changes where it is near 1, so its gradient says little there: scores are what the last dense
    layer makes before its activation. One unit is the score of the second class and, negative, of the first. A network
    that ends otherwise has the logarithm of its probabilities.
    """
    import keras

    last = [layer for layer in model.layers if layer.weights][-1]
    flat = isinstance(last, keras.layers.Dense) and len(last.input.shape) == 2
    if not flat or last.units not in ({1, 2} if n_classes == 2 else {n_classes}):
        tiny = np.finfo(np.float32).tiny
        return model.output, lambda x: keras.ops.log(keras.ops.maximum(x, tiny)), "the logarithm of the probability"

    def score(inputs: tf.Tensor) -> tf.Tensor:
        outputs = keras.ops.matmul(inputs, last.kernel)
        outputs = outputs if last.bias is None else keras.ops.add(outputs, last.bias)
        return outputs if last.units > 1 else keras.ops.concatenate([-outputs, outputs], axis=1)

    before = "" if last.activation is keras.activations.linear else f" before its {last.activation.__name__}"
    return last.input, score, f"the output of {last.name}{before}"


def _gradient(response: Callable[[tf.Tensor], tf.Tensor], images: np.ndarray) -> np.ndarray:
    """Return the gradient of each image's response with respect to that image."""
    import tensorflow as tf

    pixels = _as_input(images)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(pixels)
        total = tf.reduce_sum(response(pixels))
    return tape.gradient(total, pixels).numpy()


def _blurred(images: np.ndarray) -> np.ndarray:
    """Return images (n, rows, columns, channels) smoothed by the binomial of five along rows and columns."""
    for axis in (1, 2):
        width = [(2, 2) if place == axis else (0, 0) for place in range(4)]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(images, width, mode="edge"), 5, axis=axis)
        images = windows @ BINOMIAL
    return images


def _as_input(pixels: np.ndarray) -> tf.Tensor:
    import tensorflow as tf

    return tf.constant(np.asarray(pixels, dtype=np.float32))
