"""What tests of training share: a small network that stands in for a pretrained one, and a head, and images."""

from __future__ import annotations

import numpy as np

from pipeline.features import inference
from pipeline.networks import graphs
from pipeline.training import fitting, heads, optimizers
from pipeline.training.fitting import FitParams, PlateauParams, StoppingParams

PARAMS = FitParams(
    class_weight=None,
    batch_size=8,
    epochs=3,
    optimizer=optimizers.AdamParams(name="adam"),
    learning_rate=0.01,
    monitor="val_loss",
    reduce_on_plateau=PlateauParams(factor=0.5, patience=1),
    early_stopping=StoppingParams(patience=3),
)
HEAD = heads.HeadParams(
    **PARAMS.model_dump(), pooling="avg", hidden_units=[4], activation="relu", dropout=0.2, output="softmax"
)
COMPUTE = inference.ComputeParams(threads=2, batch_size=16, engine="openvino", precision="float32")
SPEC = graphs.NetworkSpec(
    name="trunk",
    input_size=32,
    map_layer="block2_dropout",
    feature_layer="avg_pool",
    feature_width=8,
    prediction_layer=None,
    preprocess="backbone",
    blocks=[graphs.BlockSpec(name=f"block{number}", first_layer=f"block{number}_conv") for number in (1, 2)],
    weights={"source": "random"},
    cost=graphs.Cost(parameters=1, bytes=1, multiply_adds=1),
)


def trunk():
    """A small pretrained network's stand-in with what matters: convolutions, normalization, dropout, two blocks."""
    import keras

    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(1 / 255, name="preprocess")(inputs)
    for block in (1, 2):
        x = keras.layers.Conv2D(8, 3, strides=2, name=f"block{block}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"block{block}_bn")(x)
        x = keras.layers.ReLU(name=f"block{block}_relu")(x)
        x = keras.layers.Dropout(0.5, name=f"block{block}_dropout")(x)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D(name="avg_pool")(x), name="trunk")


def head_params(**changes) -> heads.HeadParams:
    """Return the block of a head as params.yaml would give it."""
    return heads.HeadParams.model_validate(HEAD.model_dump() | changes)


def headed(params: heads.HeadParams = HEAD, *, n_classes: int = 2):
    """Return a head on the small network, pooled as ``params`` says."""
    return heads.add_head(heads.pooled(trunk(), SPEC, params.pooling), n_classes=n_classes, params=params)


def digits() -> fitting.Examples:
    """Ones and zeros of scikit-learn's digits, enlarged to 32 x 32 pixels; a view is shifted by its epoch."""
    from sklearn.datasets import load_digits

    data = load_digits(n_class=2)
    pixels = np.repeat((data.images * 15.9).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)[..., None], 3, axis=3)
    labels = data.target.astype(np.int64)
    return fitting.Examples(
        labels[:40],
        lambda rows, epoch: np.roll(pixels[rows], epoch, axis=2),
        labels[40:60],
        lambda rows: pixels[40 + rows],
    )
