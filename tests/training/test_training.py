"""Facts of training: what is frozen stays frozen, the same seed gives the same bytes, the best epoch is kept."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from pipeline.console.progress import NoLog
from pipeline.core import artifacts
from pipeline.features import inference
from pipeline.networks import graphs
from pipeline.training import fitting, frozen_split, heads, optimizers, unfreezing
from pipeline.training.fitting import TrainingError
from tests.small_networks import COMPUTE, HEAD, PARAMS, trunk


def headed():
    return heads.add_head(trunk(), n_classes=2, params=HEAD)


def fit(model, examples, *, log=None, **changes) -> fitting.Fit:
    """Train a network end to end."""
    params = PARAMS.model_copy(update=changes)
    return fitting.fit(frozen_split.end_to_end(model), examples, whole=model, params=params, seed=0, log=log or NoLog())


def test_a_head_trains_and_its_trunk_does_not_change_by_a_bit(keras, digits):
    model = headed()
    inner = model.get_layer("trunk")
    before = [weight.copy() for weight in inner.get_weights()]
    head_before = model.get_layer("head_predictions").get_weights()[0].copy()
    history = fit(model, digits).history
    assert all((a == b).all() for a, b in zip(before, inner.get_weights(), strict=True))
    assert (model.get_layer("head_predictions").get_weights()[0] != head_before).any()
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"}


def test_a_frozen_trunk_runs_in_inference_mode_while_the_head_trains(keras, digits):
    model = headed()
    batch = digits.validation(np.arange(4)).astype(np.float32)
    inner = model.get_layer("trunk")
    graph = frozen_split.end_to_end(model)
    pooled = keras.Model(graph.input, graph.get_layer("trunk_in_inference_mode").output)
    np.testing.assert_array_equal(pooled(batch, training=True), inner(batch, training=False))
    assert (np.asarray(graph(batch, training=True)) != np.asarray(graph(batch, training=False))).any()
    # The two modes differ, or the comparison above would say nothing.
    assert (np.asarray(inner(batch, training=True)) != np.asarray(inner(batch, training=False))).any()


def test_unfreezing_trains_from_the_named_layer_and_leaves_moving_statistics_alone(keras, digits):
    model = headed()
    assert unfreezing.unfreeze(model, first_layer="block2_conv") == (5, 11)
    inner = model.get_layer("trunk")
    weights = {layer.name: [w.copy() for w in layer.get_weights()] for layer in inner.layers}
    fit(model, digits)
    after = {layer.name: layer.get_weights() for layer in inner.layers}
    assert all((a == b).all() for a, b in zip(weights["block1_conv"], after["block1_conv"], strict=True))
    assert all((a == b).all() for a, b in zip(weights["block1_bn"], after["block1_bn"], strict=True))
    assert (weights["block2_conv"][0] != after["block2_conv"][0]).any()
    gamma, _beta, mean, variance = range(4)
    assert (weights["block2_bn"][gamma] != after["block2_bn"][gamma]).any()
    assert (weights["block2_bn"][mean] == after["block2_bn"][mean]).all()
    assert (weights["block2_bn"][variance] == after["block2_bn"][variance]).all()


def test_a_normalization_that_counts_as_it_trains_is_an_error(keras, digits):
    """What a functional model does when nobody sees to inference mode: moving statistics move."""
    model = headed()
    unfreezing.unfreeze(model, first_layer="block2_conv")
    with pytest.raises(TrainingError, match="frozen weight changed"):
        fitting.fit(model, digits, whole=model, params=PARAMS, seed=0, log=NoLog())


def test_a_frozen_weight_that_moves_is_an_error(keras, digits):
    model = headed()

    class Meddler(NoLog):
        def step(self, step, metrics):
            kernel = model.get_layer("trunk").get_layer("block1_conv").kernel
            kernel.assign(kernel + 1e-3)

    with pytest.raises(TrainingError, match="frozen weight changed"):
        fit(model, digits, log=Meddler())


# --- the cut -------------------------------------------------------------------------------------------------------


def crossing():
    """A network in which branches cross every place to cut at, as in NASNet: each cell reads the two before it."""
    import keras

    inputs = keras.Input((32, 32, 3))
    before = keras.layers.Conv2D(6, 3, strides=4, padding="same", name="stem_conv")(inputs)
    now = keras.layers.BatchNormalization(name="stem_bn")(before)
    for cell in range(1, 5):
        left = keras.layers.SeparableConv2D(6, 3, padding="same", name=f"cell{cell}_left")(now)
        right = keras.layers.Conv2D(6, 1, name=f"cell{cell}_right")(before)
        joined = keras.layers.Add(name=f"cell{cell}_add")([left, right])
        before, now = now, keras.layers.Dropout(0.5, name=f"cell{cell}_dropout")(keras.ops.relu(joined))
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D(name="avg_pool")(now), name="crossing")


def composed(keras, split: frozen_split.Split, pixels: np.ndarray) -> np.ndarray:
    """Return the tail's answer to what the frozen part makes of the pixels, by way of rows."""
    outputs = split.frozen(pixels, training=False)
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    rows = np.concatenate([np.asarray(output).reshape(len(pixels), -1) for output in outputs], axis=1)
    return np.asarray(split.tail(rows, training=False))


@pytest.mark.parametrize(
    "build, first_layer, tensors",
    [
        (trunk, None, {"avg_pool"}),
        (trunk, "block2_conv", {"block1_dropout"}),
        (trunk, "block2_bn", {"block2_conv"}),
        # What holds no weights trains none: the cut lies behind it.
        (trunk, "block1_relu", {"block1_dropout"}),
        (crossing, None, {"avg_pool"}),
        (crossing, "cell4_left", {"cell2_dropout", "cell3_dropout"}),
        # The left branch of the last cell is listed before its right one, so it stays frozen.
        (crossing, "cell4_right", {"cell2_dropout", "cell4_left"}),
    ],
)
def test_the_cut_is_what_enters_the_part_that_trains_and_the_two_parts_make_the_whole(
    keras, digits, build, first_layer, tensors
):
    model = heads.add_head(build(), n_classes=2, params=HEAD)
    if first_layer:
        unfreezing.unfreeze(model, first_layer=first_layer)
    split = frozen_split.split(model)
    assert {tensor.split(":")[0] for tensor in split.tensors} == tensors
    pixels = digits.validation(np.arange(6)).astype(np.float32)
    np.testing.assert_allclose(composed(keras, split, pixels), np.asarray(model(pixels, training=False)), atol=1e-6)
    assert not split.frozen.trainable_weights
    assert {id(weight) for weight in split.tail.trainable_weights} == {id(w) for w in model.trainable_weights}


def test_nothing_worth_computing_beforehand_leaves_the_whole_network(keras, digits):
    everything = headed()
    unfreezing.unfreeze(everything, first_layer="preprocess")
    split = frozen_split.split(everything)
    assert split.frozen is None and split.tensors == () and split.tail.input_shape == (None, 32, 32, 3)
    from pipeline.networks import convnets

    scratch = convnets.small_convnet(input_size=32, n_classes=2, dropout=0.3)
    assert frozen_split.split(scratch).tail is scratch


def test_preprocessing_that_holds_weights_is_not_worth_keeping_for_every_view(keras):
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Normalization(name="preprocess")(inputs)
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(keras.layers.Conv2D(8, 3, name="conv")(x))
    model = heads.add_head(keras.Model(inputs, x, name="trunk"), n_classes=2, params=HEAD)
    assert frozen_split.split(model).frozen is not None
    unfreezing.unfreeze(model, first_layer="conv")
    assert model.get_layer("trunk").get_layer("preprocess").weights
    assert frozen_split.split(model).frozen is None


def test_cutting_changes_no_byte_of_what_is_saved(keras, tmp_path):
    model = headed()
    unfreezing.unfreeze(model, first_layer="block2_conv")
    graphs.save(model, tmp_path / "before")
    frozen_split.split(model)
    graphs.save(model, tmp_path / "after")
    assert artifacts.sha256_path(tmp_path / "before") == artifacts.sha256_path(tmp_path / "after")


@pytest.mark.parametrize("build, first_layer", [(trunk, None), (trunk, "block2_conv"), (crossing, "cell4_left")])
def test_the_tail_trains_like_the_whole_network(keras, digits, build, first_layer):
    """Same views, orders and dropout masks: the losses agree, and so do the weights; the frozen ones do not move."""

    def fresh():
        keras.utils.set_random_seed(3)
        params = HEAD.model_copy(update={"dropout": 0.5, "hidden_units": [8]})
        model = heads.add_head(build(), n_classes=2, params=params)
        if first_layer:
            unfreezing.unfreeze(model, first_layer=first_layer)
        return model

    def with_rows(load, split):
        engine = inference.FrozenNetwork(lambda: split.frozen, compute=COMPUTE)
        return lambda *arguments: engine.run(load(*arguments))

    whole = fresh()
    expected = fit(whole, digits)
    model = fresh()
    frozen = fitting.frozen_digest(model)
    split = frozen_split.split(model)
    train, validation = with_rows(digits.train, split), with_rows(digits.validation, split)
    rows = dataclasses.replace(digits, train=train, validation=validation)
    received = fitting.fit(split.tail, rows, whole=model, params=PARAMS, seed=0, log=NoLog())
    for name in ("loss", "val_loss"):
        assert received.history[name] == pytest.approx(expected.history[name], rel=1e-3)
    assert fitting.frozen_digest(model) == frozen
    for a, b in zip(model.trainable_weights, whole.trainable_weights, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-3)
    # Dropout is on: without it the losses are others.
    plain = fit_without_dropout(keras, fresh(), digits)
    assert plain.history["loss"] != pytest.approx(expected.history["loss"], rel=1e-3)


def fit_without_dropout(keras, model, digits) -> fitting.Fit:
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    return fit(model, digits)


@pytest.mark.parametrize("callbacks", [{}, {"early_stopping": None, "reduce_on_plateau": None}], ids=["both", "none"])
def test_the_best_epoch_is_kept_not_the_last(keras, digits, callbacks):
    keras.utils.set_random_seed(1)
    model = headed()
    # A rate this high overshoots sooner or later, so the last of many epochs is not the best.
    fitted = fit(model, digits, epochs=6, learning_rate=0.5, **callbacks)
    if callbacks:
        assert fitted.history["learning_rate"] == [0.5] * 6
        assert fitted.best_epoch < 5
    else:
        assert fitted.history["learning_rate"][-1] < 0.5
    batch = digits.validation(np.arange(20)).astype(np.float32)
    loss = -np.log(np.asarray(model(batch))[np.arange(20), digits.validation_labels]).mean()
    assert fitted.best_epoch == int(np.argmin(fitted.history["val_loss"]))
    assert loss == pytest.approx(min(fitted.history["val_loss"]), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("plateau", "stopping", "rates"),
    [
        # Nothing improves after the first epoch: the rate falls after so many more, and training ends after so many.
        ({"factor": 0.2, "patience": 3}, {"patience": 5}, [1.0] * 4 + [0.2] * 2),
        ({"factor": 0.5, "patience": 1}, {"patience": 3}, [1.0] * 2 + [0.5, 0.25]),
        (None, {"patience": 2}, [1.0] * 3),
        ({"factor": 0.1, "patience": 2}, None, [1.0] * 3 + [0.1] * 2 + [0.01] * 2 + [0.001]),
    ],
)
def test_without_improvement_the_rate_falls_and_training_stops_as_params_say(keras, digits, plateau, stopping, rates):
    still = 1e-12  # too low to change an answer
    asked = {"reduce_on_plateau": plateau, "early_stopping": stopping}
    read = fitting.FitParams.model_validate(PARAMS.model_dump() | asked)
    callbacks = {name: getattr(read, name) for name in asked}
    fitted = fit(headed(), digits, epochs=8, learning_rate=still, **callbacks)
    assert len(set(fitted.history["val_loss"])) == 1
    assert fitted.history["learning_rate"] == pytest.approx([still * rate for rate in rates])
    assert fitted.best_epoch == 0


def test_an_epoch_that_is_a_little_better_is_an_improvement_for_the_rate_as_for_the_choice_of_the_epoch(keras, digits):
    keras.utils.set_random_seed(1)
    # Without dropout, with the same images in one step, training and validation: the loss falls surely and slowly.
    model = heads.add_head(trunk(), n_classes=2, params=HEAD.model_copy(update={"dropout": 0.0}))
    same = fitting.Examples(
        digits.train_labels,
        lambda rows, epoch: digits.train(rows, 0),
        digits.train_labels,
        lambda rows: digits.train(rows, 0),
    )
    changes = {
        "optimizer": optimizers.SGDParams(name="sgd", momentum=0.0, nesterov=False),
        "learning_rate": 0.005,
        "batch_size": 40,
        "reduce_on_plateau": fitting.PlateauParams(factor=0.5, patience=1),
        "early_stopping": fitting.StoppingParams(patience=1),
    }
    fitted = fit(model, same, epochs=5, **changes)
    falls = -np.diff(fitted.history["val_loss"])
    assert len(falls) == 4 and (falls > 0).all() and falls.max() < 1e-4
    assert fitted.best_epoch == 4
    assert fitted.history["learning_rate"] == pytest.approx([0.005] * 5)


def test_every_epoch_sees_every_image_once_as_a_view_of_that_epoch(keras, digits):
    seen = []

    def train(rows: np.ndarray, epoch: int) -> np.ndarray:
        seen.extend((epoch, row) for row in rows.tolist())
        return digits.train(rows, epoch)

    fit(headed(), dataclasses.replace(digits, train=train))
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

    history = fit(headed(), digits, log=Memory()).history
    assert sorted(steps) == [0, 1, 2]
    for name, values in history.items():
        assert [steps[step][name] for step in range(3)] == pytest.approx(values)


def test_a_loss_that_is_no_number_is_an_error(keras, digits):
    model = headed()

    class Saboteur(NoLog):
        def step(self, step, metrics):
            model.get_layer("head_predictions").bias.assign([np.nan, np.nan])

    with pytest.raises(TrainingError, match="stopped being a number"):
        fit(model, digits, log=Saboteur())


def test_balanced_class_weights_give_every_class_the_same_total():
    weights = fitting.class_weights(np.array([0] * 30 + [1] * 10))
    assert weights == {0: 40 / 60, 1: 40 / 20}


def test_two_processes_train_the_same_bytes():
    code = textwrap.dedent(
        """
        import hashlib, numpy as np
        from pipeline.networks import convnets
        from pipeline.console.progress import NoLog
        from pipeline.training import fitting
        from tests.small_networks import PARAMS
        fitting.prepare(threads=2, seed=5)
        rng = np.random.default_rng(0)
        pixels, labels = rng.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8), np.arange(24) % 2
        examples = fitting.Examples(labels, lambda rows, epoch: np.roll(pixels[rows], epoch, 1), labels,
                                     lambda rows: pixels[rows])
        model = convnets.small_convnet(input_size=32, n_classes=2, dropout=0.3)
        fitting.fit(model, examples, whole=model, params=PARAMS, seed=5, log=NoLog())
        print(hashlib.sha256(b"".join(w.tobytes() for w in model.get_weights())).hexdigest())
        """
    )
    digests = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()[-1]
        for _ in range(2)
    ]
    assert digests[0] == digests[1]


def test_no_epoch_ends_by_waiting_for_a_thread_that_tunes_the_reading_of_batches(digits):
    # TensorFlow's tuner sleeps for up to many seconds, and who drops the iterator of a finished epoch waits for it.
    batches = fitting._batches(digits.train_labels, digits.train, batch_size=8, seed=0)
    assert batches.options().autotune.enabled is False
    assert len(list(batches)) == len(batches) == 5
