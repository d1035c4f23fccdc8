"""Facts of heads: what they pool, that one unit is two classes, and that every recipe of the courses trains."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.console.progress import NoLog
from pipeline.core import artifacts
from pipeline.features import inference
from pipeline.networks import graphs
from pipeline.training import fitting, frozen_split, heads
from pipeline.training.fitting import TrainingError
from tests.small_networks import COMPUTE, SPEC, head_params, headed, trunk

RANDOM_PIXELS = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "pooling, tensor, width",
    [
        ("avg", "avg_pool:0:0", 8),
        ("max", "block2_dropout_max:0:0", 8),
        ("flatten", "block2_dropout_flatten:0:0", 7 * 7 * 8),
    ],
)
def test_rows_are_the_last_map_pooled_as_asked(keras, pooling, tensor, width):
    network = trunk()
    split = frozen_split.split(heads.add_head(heads.pooled(network, SPEC, pooling), n_classes=2, params=head_params()))
    assert split.tensors == (tensor,)
    rows = inference.FrozenNetwork(lambda: split.frozen, compute=COMPUTE).run(RANDOM_PIXELS)
    last_map = np.asarray(graphs.cut(network, "block2_dropout")(RANDOM_PIXELS, training=False))
    expected = {"avg": last_map.mean(axis=(1, 2)), "max": last_map.max(axis=(1, 2)), "flatten": last_map}[pooling]
    assert rows.shape == (6, width)
    np.testing.assert_allclose(rows, expected.reshape(6, width), rtol=1e-4, atol=1e-6)


def test_a_network_whose_features_are_no_average_of_its_map_is_averaged_anew(keras):
    inputs = keras.Input((32, 32, 3))
    last_map = keras.layers.Conv2D(4, 3, strides=4, name="conv")(inputs)
    kept = keras.layers.GlobalAveragePooling2D(keepdims=True, name="kept")(last_map)
    dense = keras.layers.Dense(5, name="fc")(keras.layers.Flatten(name="flat")(kept))
    network = keras.Model(inputs, dense, name="net")
    for feature_layer in ("kept", "fc"):
        spec = SPEC.model_copy(update={"map_layer": "conv", "feature_layer": feature_layer})
        received = heads.pooled(network, spec, "avg")(RANDOM_PIXELS)
        expected = np.asarray(graphs.cut(network, "conv")(RANDOM_PIXELS)).mean(axis=(1, 2))
        np.testing.assert_allclose(np.asarray(received), expected, rtol=1e-4, atol=1e-4)


def test_one_unit_answers_for_two_classes_and_its_loss_is_the_binary_cross_entropy(keras):
    model = headed(head_params(output="sigmoid"))
    unit = model.get_layer("head_predictions")
    assert unit.units == 1
    assert graphs.count_trainable_parameters(model) == 8 * 4 + 4 + 4 + 1
    logit = np.asarray(keras.Model(model.input, unit.output)(RANDOM_PIXELS, training=False), dtype=np.float64)[:, 0]
    probability = 1 / (1 + np.exp(-logit))
    received = np.asarray(model(RANDOM_PIXELS, training=False))
    np.testing.assert_allclose(received, np.stack([1 - probability, probability], axis=1), atol=1e-6)
    labels = np.arange(6) % 2
    loss = keras.losses.SparseCategoricalCrossentropy()(labels, received)
    binary = keras.losses.BinaryCrossentropy()(labels.astype(np.float32), probability.astype(np.float32))
    assert float(loss) == pytest.approx(float(binary), rel=1e-5)


def test_a_unit_that_is_surely_wrong_still_learns(keras):
    """Of p = 1 - 1e-13, which float32 rounds to 1, nothing could be learned; training takes the loss from the logit."""
    model = headed(head_params(output="sigmoid", hidden_units=[], dropout=0.0))
    unit = model.get_layer("head_predictions")
    unit.kernel.assign(np.zeros((8, 1)))
    unit.bias.assign([30.0])
    labels = np.zeros(8, dtype=np.int64)
    examples = fitting.Examples(
        labels, lambda rows, _: RANDOM_PIXELS[rows % 6], labels[:2], lambda rows: RANDOM_PIXELS[rows]
    )
    params = head_params(epochs=1, optimizer={"name": "sgd", "momentum": 0.0, "nesterov": False}, learning_rate=0.5)
    fitting.fit(frozen_split.end_to_end(model), examples, whole=model, params=params, seed=0, log=NoLog())
    assert unit.bias.numpy()[0] == pytest.approx(29.5, abs=1e-3)


def test_one_unit_for_three_classes_is_refused(keras):
    with pytest.raises(TrainingError, match=r"head\.output: sigmoid tells two classes apart, received 3"):
        headed(head_params(output="sigmoid"), n_classes=3)


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_a_head_survives_being_stored_and_converted(keras, tmp_path, output):
    model = headed(head_params(output=output, pooling="max", hidden_units=[6, 5], activation="gelu"))
    graphs.save(model, tmp_path)
    loaded = graphs.load(tmp_path)
    expected = np.asarray(model(RANDOM_PIXELS, training=False))
    np.testing.assert_array_equal(np.asarray(loaded(RANDOM_PIXELS, training=False)), expected)
    split = frozen_split.split(loaded)
    frozen, tail = (
        inference.FrozenNetwork(lambda part=part: part, compute=COMPUTE) for part in (split.frozen, split.tail)
    )
    np.testing.assert_allclose(tail.run(frozen.run(RANDOM_PIXELS)), expected, atol=1e-5)
    graphs.save(loaded, tmp_path / "again")
    for name in (graphs.ARCHITECTURE, graphs.WEIGHTS):
        assert artifacts.sha256_file(tmp_path / name) == artifacts.sha256_file(tmp_path / "again" / name)


@pytest.mark.parametrize(
    "recipe",
    [
        {"hidden_units": [64]},
        {
            "pooling": "flatten",
            "hidden_units": [256],
            "output": "sigmoid",
            "optimizer": {"name": "rmsprop", "momentum": 0.0},
        },
        {
            "pooling": "max",
            "hidden_units": [50],
            "activation": "tanh",
            "reduce_on_plateau": None,
            "early_stopping": None,
            "optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True},
        },
        {"hidden_units": [32], "optimizer": {"name": "adamw", "weight_decay": 0.004}, "class_weight": "balanced"},
    ],
    ids=["dense 64", "flatten, sigmoid, rmsprop", "sgd, no callbacks", "adamw"],
)
def test_a_recipe_of_the_courses_learns(keras, digits, recipe):
    keras.utils.set_random_seed(0)
    params = head_params(epochs=6, **recipe)
    model = headed(params)
    split = frozen_split.split(model)
    engine = inference.FrozenNetwork(lambda: split.frozen, compute=COMPUTE)
    rows = fitting.Examples(
        digits.train_labels,
        lambda *asked: engine.run(digits.train(*asked)),
        digits.validation_labels,
        lambda asked: engine.run(digits.validation(asked)),
    )
    history = fitting.fit(split.tail, rows, whole=model, params=params, seed=0, log=NoLog()).history
    assert history["loss"][-1] < history["loss"][0]
    assert min(history["val_loss"]) < history["val_loss"][0]
