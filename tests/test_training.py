"""Facts of training: what is frozen stays frozen, the same seed gives the same bytes, the best epoch is kept."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from pipeline import training
from pipeline.progress import NoLog
from pipeline.training import FitParams, PlateauParams, StoppingParams, TrainingError

PARAMS = FitParams(
    class_weight=None,
    batch_size=8,
    epochs=3,
    learning_rate=0.01,
    monitor="val_loss",
    reduce_on_plateau=PlateauParams(factor=0.5, patience=1),
    early_stopping=StoppingParams(patience=3),
)


@pytest.fixture(scope="module")
def keras():
    training.prepare(threads=2, seed=0)
    import keras

    return keras


@pytest.fixture(scope="module")
def digits() -> training.Images:
    """Ones and zeros of scikit-learn's digits, enlarged to 32 x 32 pixels."""
    from sklearn.datasets import load_digits

    data = load_digits(n_class=2)
    pixels = np.repeat((data.images * 15.9).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)[..., None], 3, axis=3)
    labels = data.target.astype(np.int64)
    return training.Images(labels[:40], lambda row, view: np.roll(pixels[row], view, axis=1), labels[40:60],
                           lambda row: pixels[40 + row])  # fmt: skip


def trunk(keras):
    """A small pretrained network's stand-in with what matters: convolutions, normalization, dropout, two blocks."""
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(1 / 255, name="preprocess")(inputs)
    for block in (1, 2):
        x = keras.layers.Conv2D(8, 3, strides=2, name=f"block{block}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"block{block}_bn")(x)
        x = keras.layers.ReLU(name=f"block{block}_relu")(x)
        x = keras.layers.Dropout(0.5, name=f"block{block}_dropout")(x)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D(name="avg_pool")(x), name="trunk")


def headed(keras):
    return training.add_head(trunk(keras), n_classes=2, dropout=0.2, hidden_units=[4])


def test_a_head_trains_and_its_trunk_does_not_change_by_a_bit(keras, digits):
    model = headed(keras)
    inner = model.get_layer("trunk")
    before = [weight.copy() for weight in inner.get_weights()]
    head_before = model.get_layer("head_predictions").get_weights()[0].copy()
    fit = training.fit(model, digits, params=PARAMS, seed=0, log=NoLog())
    assert all((a == b).all() for a, b in zip(before, inner.get_weights(), strict=True))
    assert (model.get_layer("head_predictions").get_weights()[0] != head_before).any()
    assert set(fit.history) == {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"}


def test_a_frozen_trunk_runs_in_inference_mode_while_the_head_trains(keras, digits):
    model = headed(keras)
    batch = np.stack([digits.validation_image(row) for row in range(4)]).astype(np.float32)
    inner = model.get_layer("trunk")
    graph = training.training_graph(model)
    pooled = keras.Model(graph.input, graph.get_layer("trunk_in_inference_mode").output)
    np.testing.assert_array_equal(pooled(batch, training=True), inner(batch, training=False))
    assert (np.asarray(graph(batch, training=True)) != np.asarray(graph(batch, training=False))).any()
    # The two modes differ, or the comparison above would say nothing.
    assert (np.asarray(inner(batch, training=True)) != np.asarray(inner(batch, training=False))).any()


def test_unfreezing_trains_from_the_named_layer_and_leaves_moving_statistics_alone(keras, digits):
    model = headed(keras)
    assert training.unfreeze(model, first_layer="block2_conv") == (5, 11)
    inner = model.get_layer("trunk")
    weights = {layer.name: [w.copy() for w in layer.get_weights()] for layer in inner.layers}
    training.fit(model, digits, params=PARAMS, seed=0, log=NoLog())
    after = {layer.name: layer.get_weights() for layer in inner.layers}
    assert all((a == b).all() for a, b in zip(weights["block1_conv"], after["block1_conv"], strict=True))
    assert all((a == b).all() for a, b in zip(weights["block1_bn"], after["block1_bn"], strict=True))
    assert (weights["block2_conv"][0] != after["block2_conv"][0]).any()
    gamma, beta, mean, variance = range(4)
    assert (weights["block2_bn"][gamma] != after["block2_bn"][gamma]).any()
    assert (weights["block2_bn"][mean] == after["block2_bn"][mean]).all()
    assert (weights["block2_bn"][variance] == after["block2_bn"][variance]).all()


def test_a_frozen_weight_that_moves_is_an_error(keras, digits):
    model = headed(keras)

    class Meddler(NoLog):
        def step(self, step, metrics):
            kernel = model.get_layer("trunk").get_layer("block1_conv").kernel
            kernel.assign(kernel + 1e-3)

    with pytest.raises(TrainingError, match="frozen weight changed"):
        training.fit(model, digits, params=PARAMS, seed=0, log=Meddler())


def test_an_unknown_layer_to_unfreeze_names_the_layers(keras):
    with pytest.raises(TrainingError, match="no layer 'block9'.*block1_conv"):
        training.unfreeze(headed(keras), first_layer="block9")


def test_the_best_epoch_is_kept_not_the_last(keras, digits):
    model = headed(keras)
    # A rate this high overshoots sooner or later, so the last of many epochs is not the best.
    fit = training.fit(
        model, digits, params=PARAMS.model_copy(update={"epochs": 8, "learning_rate": 0.5}), seed=0, log=NoLog()
    )
    batch = np.stack([digits.validation_image(row) for row in range(20)]).astype(np.float32)
    loss = -np.log(np.asarray(model(batch))[np.arange(20), digits.validation_labels]).mean()
    assert fit.best_epoch == int(np.argmin(fit.history["val_loss"]))
    assert loss == pytest.approx(min(fit.history["val_loss"]), rel=1e-3, abs=1e-6)


def test_every_epoch_sees_every_image_once_as_a_view_of_that_epoch(keras, digits):
    seen = []

    def view(row: int, number: int) -> np.ndarray:
        seen.append((number, row))
        return digits.train_view(row, number)

    images = training.Images(digits.train_labels, view, digits.validation_labels, digits.validation_image)
    training.fit(headed(keras), images, params=PARAMS, seed=0, log=NoLog())
    assert {number for number, _ in seen} == set(range(PARAMS.epochs))
    # The very first call only asks for an image's shape.
    orders = [[row for number, row in seen[1:] if number == epoch] for epoch in range(PARAMS.epochs)]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len({tuple(order) for order in orders}) == PARAMS.epochs


def test_the_log_receives_every_epoch(keras, digits):
    steps = {}

    class Memory(NoLog):
        def step(self, step, metrics):
            steps[step] = dict(metrics)

    fit = training.fit(headed(keras), digits, params=PARAMS, seed=0, log=Memory())
    assert sorted(steps) == [0, 1, 2]
    for name, values in fit.history.items():
        assert [steps[step][name] for step in range(3)] == pytest.approx(values)


def test_a_loss_that_is_no_number_is_an_error(keras, digits):
    model = headed(keras)

    class Saboteur(NoLog):
        def step(self, step, metrics):
            model.get_layer("head_predictions").bias.assign([np.nan, np.nan])

    with pytest.raises(TrainingError, match="stopped being a number"):
        training.fit(model, digits, params=PARAMS, seed=0, log=Saboteur())


def test_balanced_class_weights_give_every_class_the_same_total():
    weights = training.class_weights(np.array([0] * 30 + [1] * 10))
    assert weights == {0: 40 / 60, 1: 40 / 20}


def test_two_processes_train_the_same_bytes():
    code = textwrap.dedent(
        """
        import hashlib, numpy as np
        from pipeline import convnets, training
        from pipeline.progress import NoLog
        from tests.test_training import PARAMS
        training.prepare(threads=2, seed=5)
        rng = np.random.default_rng(0)
        pixels, labels = rng.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8), np.arange(24) % 2
        images = training.Images(labels, lambda row, view: np.roll(pixels[row], view, 0), labels, lambda row: pixels[row])
        model = convnets.small_convnet(input_size=32, n_classes=2, dropout=0.3)
        training.fit(model, images, params=PARAMS, seed=5, log=NoLog())
        print(hashlib.sha256(b"".join(w.tobytes() for w in model.get_weights())).hexdigest())
        """
    )
    digests = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()[-1]
        for _ in range(2)
    ]
    assert digests[0] == digests[1]
