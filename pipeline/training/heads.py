"""New classifiers on top of a frozen network: its last feature map pooled, dense layers, probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline.networks import graphs
from pipeline.training.fitting import FitParams, Positive, TrainingError
from pipeline.training.optimizers import Share

if TYPE_CHECKING:
    import keras


class HeadParams(FitParams):
    """A pooled feature map, dropout, hidden layers of ``hidden_units`` each with dropout, and the output.

    ``pooling``: of the network's last layer with height and width; flatten keeps every number of it.
    ``activation``: of the hidden layers.
    ``output``: softmax, a unit a class | sigmoid, one unit, for two classes.
    """

    pooling: graphs.Pooling
    hidden_units: list[Positive]
    activation: Literal["relu", "elu", "gelu", "selu", "silu", "tanh"]
    dropout: Share
    output: Literal["softmax", "sigmoid"]


def pooled(network: keras.Model, spec: graphs.NetworkSpec, pooling: graphs.Pooling) -> keras.Model:
    """Return the part of a stored network up to its last feature map, pooled: pixels -> float32 (batch, width).

    Where the network averages that map itself, its own layer does so here: what the feature store knows of it is known
    here, too. The two share their weights.
    """
    import keras

    feature_map = graphs.find_layer(network, spec.map_layer)
    own = graphs.find_layer(network, spec.feature_layer)
    averages = isinstance(own, keras.layers.GlobalAveragePooling2D) and not own.keepdims
    if pooling == "avg" and averages and own.input is feature_map.output:
        return graphs.cut(network, spec.feature_layer)
    return graphs.pooled(network, [graphs.PooledLayer(spec.map_layer, pooling)])


def add_head(trunk: keras.Model, *, n_classes: int, params: HeadParams) -> keras.Model:
    """Return ``trunk`` (pixels -> pooled features), frozen, under a new classifier: one chain of layers.

    It answers with probabilities of the classes, float32 (batch, n_classes), whatever the output is. Raises
    TrainingError for a sigmoid with another number of classes than two.
    """
    import keras

    if params.output == "sigmoid" and n_classes != 2:
        raise TrainingError(f"head.output: sigmoid tells two classes apart, received {n_classes}: write softmax")
    trunk.trainable = False
    inputs = keras.Input(trunk.input_shape[1:], name="pixels")
    outputs = trunk(inputs)
    outputs = keras.layers.Dropout(params.dropout, name="head_dropout")(outputs)
    for position, units in enumerate(params.hidden_units):
        name = f"head_dense_{position}"
        outputs = keras.layers.Dense(units, activation=params.activation, name=name)(outputs)
        outputs = keras.layers.Dropout(params.dropout, name=f"{name}_dropout")(outputs)
    if params.output == "softmax":
        outputs = keras.layers.Dense(n_classes, activation="softmax", name="head_predictions")(outputs)
    else:
        outputs = _sigmoid(outputs)
    return keras.Model(inputs, outputs, name="head")


def _sigmoid(features: keras.KerasTensor) -> keras.KerasTensor:
    """Return [1 - p, p] with p = sigmoid(z) of one dense unit z: the softmax of (0, z), which is the same.

    So the cross-entropy over the classes is the binary one, and Keras computes it from z: of a p that has been rounded
    to 1 there is no gradient.
    """
    import keras

    outputs = keras.layers.Dense(1, name="head_predictions")(features)
    outputs = keras.layers.Reshape((1, 1), name="head_logit")(outputs)
    outputs = keras.layers.ZeroPadding1D((1, 0), name="head_zero_and_logit")(outputs)
    outputs = keras.layers.Reshape((2,), name="head_logits")(outputs)
    return keras.layers.Softmax(name="head_probabilities")(outputs)
