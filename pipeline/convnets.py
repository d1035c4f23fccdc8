"""Small networks without pretraining: the honest baseline. Table: name -> builder.

Like every network here they take raw RGB pixels, 0..255, and scale them in their own first layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


def small_convnet(*, input_size: int, n_classes: int, dropout: float) -> keras.Model:
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
    outputs = keras.layers.Dropout(dropout, name="dropout")(outputs)
    outputs = keras.layers.Dense(n_classes, activation="softmax", name="predictions")(outputs)
    return keras.Model(inputs, outputs, name="small_convnet")


CONVNETS: dict[str, Callable[..., keras.Model]] = {"small_convnet": small_convnet}
