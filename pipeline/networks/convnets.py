"""Small networks without pretraining: the honest baseline, and those that courses begin with.

Like every network here they take raw RGB pixels, 0..255, and scale them in their own first layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Convnet:
    """A network by its builder.

    ``build(input_size=, n_classes=, dropout=)``: returns it, pixels to probabilities; with ``dropout`` None at the
    rates that it was published with, else at this one wherever it has dropout. ``input_size``: its own, in pixels.
    ``smallest``: the least from which convolutions and pooling leave something.
    """

    build: Callable[..., keras.Model]
    input_size: int
    smallest: int


def small_convnet(*, input_size: int, n_classes: int, dropout: float | None) -> keras.Model:
    """Four blocks of convolution, batch normalization, ReLU and max pooling; average pooling, dropout, softmax."""
    import keras

    inputs = keras.Input((input_size, input_size, 3), name="pixels")
    outputs = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="preprocess")(inputs)
    for block, filters in enumerate((32, 64, 128, 128), start=1):
        # The normalization that follows has a bias of its own.
        outputs = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"block{block}_conv")(outputs)
        outputs = keras.layers.BatchNormalization(name=f"block{block}_bn")(outputs)
        outputs = keras.layers.ReLU(name=f"block{block}_relu")(outputs)
        outputs = keras.layers.MaxPooling2D(name=f"block{block}_pool")(outputs)
    outputs = keras.layers.GlobalAveragePooling2D(name="avg_pool")(outputs)
    outputs = keras.layers.Dropout(_rate(dropout, own=0.3), name="dropout")(outputs)
    outputs = keras.layers.Dense(n_classes, activation="softmax", name="predictions")(outputs)
    return keras.Model(inputs, outputs, name="small_convnet")


def mnist_convnet(*, input_size: int, n_classes: int, dropout: float | None) -> keras.Model:
    """Three convolutions with max pooling between them, and a dense layer; it has no dropout.

    Source: Chollet 2017, "Deep Learning with Python", section 5.1.
    """
    import keras

    inputs, outputs = _scaled(input_size)
    outputs = _convolution(outputs, 1, filters=32)
    outputs = keras.layers.MaxPooling2D(name="block1_pool")(outputs)
    outputs = _convolution(outputs, 2, filters=64)
    outputs = keras.layers.MaxPooling2D(name="block2_pool")(outputs)
    outputs = _convolution(outputs, 3, filters=64)
    outputs = keras.layers.Flatten(name="flatten")(outputs)
    outputs = keras.layers.Dense(64, activation="relu", name="dense")(outputs)
    return _classifier(inputs, outputs, n_classes, name="mnist_convnet")


def cats_and_dogs_convnet(*, input_size: int, n_classes: int, dropout: float | None) -> keras.Model:
    """Four convolutions, each with max pooling, then dropout and a dense layer of 512.

    Source: Chollet 2017, "Deep Learning with Python", section 5.2, with a softmax in place of its sigmoid.
    """
    import keras

    inputs, outputs = _scaled(input_size)
    for block, filters in enumerate((32, 64, 128, 128), start=1):
        outputs = _convolution(outputs, block, filters=filters)
        outputs = keras.layers.MaxPooling2D(name=f"block{block}_pool")(outputs)
    outputs = keras.layers.Flatten(name="flatten")(outputs)
    outputs = keras.layers.Dropout(_rate(dropout, own=0.5), name="dropout")(outputs)
    outputs = keras.layers.Dense(512, activation="relu", name="dense")(outputs)
    return _classifier(inputs, outputs, n_classes, name="cats_and_dogs_convnet")


def cifar_convnet(*, input_size: int, n_classes: int, dropout: float | None) -> keras.Model:
    """Twice two convolutions, max pooling and dropout; then a dense layer of 512 with dropout.

    Source: the example ``cifar10_cnn.py`` of Keras 2.
    """
    import keras

    inputs, outputs = _scaled(input_size)
    for block, filters in enumerate((32, 64), start=1):
        outputs = keras.layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"block{block}_conv1")(
            outputs
        )
        outputs = keras.layers.Conv2D(filters, 3, activation="relu", name=f"block{block}_conv2")(outputs)
        outputs = keras.layers.MaxPooling2D(name=f"block{block}_pool")(outputs)
        outputs = keras.layers.Dropout(_rate(dropout, own=0.25), name=f"block{block}_dropout")(outputs)
    outputs = keras.layers.Flatten(name="flatten")(outputs)
    outputs = keras.layers.Dense(512, activation="relu", name="dense")(outputs)
    outputs = keras.layers.Dropout(_rate(dropout, own=0.5), name="dropout")(outputs)
    return _classifier(inputs, outputs, n_classes, name="cifar_convnet")


def one_convnet(*, input_size: int, n_classes: int, dropout: float | None) -> keras.Model:
    """The least that is called a convolutional network: one convolution, max pooling, softmax; it has no dropout."""
    import keras

    inputs, outputs = _scaled(input_size)
    outputs = _convolution(outputs, 1, filters=32)
    outputs = keras.layers.MaxPooling2D(name="block1_pool")(outputs)
    outputs = keras.layers.Flatten(name="flatten")(outputs)
    return _classifier(inputs, outputs, n_classes, name="one_convnet")


CONVNETS = {
    "small_convnet": Convnet(small_convnet, input_size=96, smallest=16),
    "mnist_convnet": Convnet(mnist_convnet, input_size=28, smallest=18),
    "cats_and_dogs_convnet": Convnet(cats_and_dogs_convnet, input_size=150, smallest=46),
    "cifar_convnet": Convnet(cifar_convnet, input_size=32, smallest=10),
    "one_convnet": Convnet(one_convnet, input_size=28, smallest=4),
}


def _scaled(input_size: int) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Return pixels, and what they are in 0..1."""
    import keras

    inputs = keras.Input((input_size, input_size, 3), name="pixels")
    return inputs, keras.layers.Rescaling(1 / 255, name="preprocess")(inputs)


def _convolution(outputs: keras.KerasTensor, block: int, *, filters: int) -> keras.KerasTensor:
    import keras

    return keras.layers.Conv2D(filters, 3, activation="relu", name=f"block{block}_conv")(outputs)


def _classifier(inputs: keras.KerasTensor, outputs: keras.KerasTensor, n_classes: int, *, name: str) -> keras.Model:
    import keras

    outputs = keras.layers.Dense(n_classes, activation="softmax", name="predictions")(outputs)
    return keras.Model(inputs, outputs, name=name)


def _rate(dropout: float | None, *, own: float) -> float:
    return own if dropout is None else dropout
