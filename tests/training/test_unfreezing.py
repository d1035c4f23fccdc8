"""Facts of staged training: which layers train, at which rate, and that those whose turn has not come stay put."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.console.progress import NoLog
from pipeline.core import params
from pipeline.training import fitting, frozen_split, optimizers, unfreezing
from pipeline.training.fitting import TrainingError
from pipeline.training.optimizers import Pace
from tests.small_networks import PARAMS, SPEC, headed

EVERYTHING = {"from_layer": None, "last_layers": None, "last_blocks": "all"}
SGD = {"name": "sgd", "momentum": 0.0, "nesterov": False}
OPTIMIZERS = [
    {"name": "adam"},
    {"name": "adamw", "weight_decay": 0.1},
    {"name": "rmsprop", "momentum": 0.9},
    {"name": "rmsprop", "momentum": 0.0},
    {"name": "sgd", "momentum": 0.9, "nesterov": True},
    {"name": "sgd", "momentum": 0.9, "nesterov": False},
    SGD,
]
every_optimizer = pytest.mark.parametrize("given", OPTIMIZERS, ids=lambda given: "-".join(map(str, given.values())))


def fine_tune_params(**changes) -> unfreezing.FineTuneParams:
    """Return the block of fine_tune as params.yaml would give it."""
    block = {**PARAMS.model_dump(), "unfreeze": EVERYTHING, "layer_decay": 1.0, "gradual": None}
    return params.parse(block | changes, unfreezing.FineTuneParams, where="fine_tune")


def unfreeze_params(**given) -> unfreezing.UnfreezeParams:
    nothing = {"from_layer": None, "last_layers": None, "last_blocks": None}
    return params.parse(nothing | given, unfreezing.UnfreezeParams, where="fine_tune.unfreeze")


def weights_of(model) -> dict[str, np.ndarray]:
    """Return copies of the weights of a headed network by name."""
    trunk = unfreezing._trunk(model)
    layers = [*trunk.layers, *(layer for layer in model.layers if layer is not trunk)]
    return {f"{layer.name}/{weight.name}": weight.numpy() for layer in layers for weight in layer.trainable_weights}


# --- which layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, first, trained",
    [
        ({"from_layer": "block1_bn"}, "block1_bn", {"block1_bn", "block2_conv", "block2_bn"}),
        ({"last_layers": 1}, "block2_bn", {"block2_bn"}),
        ({"last_layers": 3}, "block1_bn", {"block1_bn", "block2_conv", "block2_bn"}),
        ({"last_blocks": 1}, "block2_conv", {"block2_conv", "block2_bn"}),
        ({"last_blocks": 2}, "block1_conv", {"block1_conv", "block1_bn", "block2_conv", "block2_bn"}),
        ({"last_blocks": "all"}, None, {"block1_conv", "block1_bn", "block2_conv", "block2_bn"}),
    ],
)
def test_what_is_unfrozen_is_what_was_asked_for(keras, given, first, trained):
    model = headed()
    found = unfreezing.first_layer(model, SPEC, unfreeze_params(**given))
    unfreezing.unfreeze(model, first_layer=found)
    trunk = unfreezing._trunk(model)
    assert found == (first or trunk.layers[0].name)
    assert {layer.name for layer in trunk.layers if layer.trainable_weights} == trained


@pytest.mark.parametrize(
    "given, message",
    [
        ({"last_layers": 5}, "last_layers must be at most 4, the layers with weights of trunk, received 5"),
        ({"last_blocks": 3}, "last_blocks must be at most 2, the blocks of trunk, received 3"),
    ],
)
def test_more_than_there_is_cannot_be_unfrozen(keras, given, message):
    with pytest.raises(TrainingError, match=message):
        unfreezing.first_layer(headed(), SPEC, unfreeze_params(**given))


def test_an_unknown_layer_to_unfreeze_names_the_layers(keras):
    with pytest.raises(TrainingError, match=r"no layer 'block9'.*block1_conv"):
        unfreezing.unfreeze(headed(), first_layer="block9")


# --- at which rate, and from when on -------------------------------------------------------------------------------


def test_every_block_has_its_share_of_the_rate_of_the_one_after_it(keras):
    model = headed()
    unfreezing.unfreeze(model, first_layer="block1_bn")
    gradual = {"epochs": 2}
    found = unfreezing.paces(model, SPEC, fine_tune_params(layer_decay=0.5, gradual=gradual, epochs=3))
    assert [(pace.name, pace.rate, pace.first_epoch) for pace in found] == [("block2", 0.5, 0), ("block1", 0.25, 2)]
    assert [[variable.name for variable in pace.variables] for pace in found] == [
        ["kernel", "bias", "gamma", "beta"],
        ["gamma", "beta"],
    ]
    assert unfreezing.paces(model, SPEC, fine_tune_params()) == []


def test_what_comes_before_the_first_block_is_a_block_of_its_own(keras):
    model = headed()
    unfreezing.unfreeze(model, first_layer="preprocess")
    spec = SPEC.model_copy(update={"blocks": SPEC.blocks[1:]})
    found = unfreezing.paces(model, spec, fine_tune_params(layer_decay=0.5))
    assert [(pace.name, len(pace.variables), pace.rate) for pace in found] == [
        ("block2", 4, 0.5),
        ("first layers", 4, 0.25),
    ]


def test_epochs_that_end_before_the_turn_of_a_block_are_refused(keras):
    model = headed()
    unfreezing.unfreeze(model, first_layer="preprocess")
    message = r"gradual\.epochs: of 2 blocks, one more every 3 epochs, .* in epoch 4, but fine_tune\.epochs is 3"
    with pytest.raises(TrainingError, match=message):
        unfreezing.paces(model, SPEC, fine_tune_params(gradual={"epochs": 3}))


def fine_tune(model, digits, block: unfreezing.FineTuneParams, *, log=None):
    found = unfreezing.paces(model, SPEC, block)
    return fitting.fit(
        frozen_split.end_to_end(model), digits, whole=model, params=block, seed=0, log=log or NoLog(), paces=found
    )


def fresh(keras):
    keras.utils.set_random_seed(3)
    model = headed()
    unfreezing.unfreeze(model, first_layer="preprocess")
    return model


def test_one_step_down_the_slope_moves_every_block_by_its_share(keras, digits):
    def moved(**changes) -> dict[str, np.ndarray]:
        model = fresh(keras)
        before = weights_of(model)
        fine_tune(model, digits, fine_tune_params(optimizer=SGD, epochs=1, batch_size=40, learning_rate=1.0, **changes))
        return {name: weight - before[name] for name, weight in weights_of(model).items()}

    plain, staged = moved(), moved(layer_decay=0.25)
    shares = {"block1": 0.25**2, "block2": 0.25, "head_d": 1.0, "head_p": 1.0}
    assert plain.keys() == staged.keys() and {name[:6] for name in plain} == shares.keys()
    assert sum(np.abs(change).max() > 1e-4 for change in plain.values()) >= 8
    for name, change in staged.items():
        np.testing.assert_allclose(change, shares[name[:6]] * plain[name], rtol=1e-3, atol=2e-7)


@pytest.mark.parametrize("given", [OPTIMIZERS[1], OPTIMIZERS[4]], ids=["adamw", "sgd"])
def test_a_block_whose_turn_has_not_come_does_not_change_by_a_bit(keras, digits, given):
    model = fresh(keras)
    begin = weights_of(model)
    after = []

    class Memory(NoLog):
        def step(self, step, metrics):
            after.append(weights_of(model))

    fine_tune(model, digits, fine_tune_params(optimizer=given, gradual={"epochs": 2}), log=Memory())
    first = [name for name in begin if name.startswith("block1")]
    trains = ["block2_conv/kernel", "block2_bn/gamma", "head_predictions/kernel"]
    assert len(after) == 3 and len(first) == 4
    for epoch in (0, 1):
        assert all(after[epoch][name].tobytes() == begin[name].tobytes() for name in first)
        assert all((after[epoch][name] != begin[name]).any() for name in trains)
    assert (after[2]["block1_conv/kernel"] != begin["block1_conv/kernel"]).any()


@pytest.mark.parametrize("patience", [1, 2])
@pytest.mark.parametrize(("gradual", "epochs"), [(None, 0), ({"epochs": 3}, 3)])
def test_early_stopping_waits_until_every_block_trains(keras, digits, patience, gradual, epochs):
    still = {"learning_rate": 1e-12, "reduce_on_plateau": None, "epochs": 8}  # too low to change an answer
    block = fine_tune_params(**still, early_stopping={"patience": patience}, gradual=gradual)
    fitted = fine_tune(fresh(keras), digits, block)
    assert len(set(fitted.history["val_loss"])) == 1
    # The patience counts from the first epoch in which all train; without gradual the very first epoch improves.
    assert len(fitted.history["loss"]) == (epochs + patience if gradual else 1 + patience)
    assert fitted.best_epoch == 0
    assert fitted.untrained == (("block1",) if gradual else ())


def test_blocks_that_began_before_the_best_epoch_are_not_said_to_be_untrained(keras, digits):
    fitted = fine_tune(fresh(keras), digits, fine_tune_params(optimizer=SGD, gradual={"epochs": 1}, epochs=3))
    assert fitted.best_epoch >= 1  # the rate is low, so every epoch improves
    assert fitted.untrained == ()


# --- the optimizers ------------------------------------------------------------------------------------------------


def stepped(keras, optimizer, variables, steps: range) -> None:
    """Let an optimizer take steps down made-up gradients, the same for the same step."""
    for step in steps:
        draws = np.random.default_rng(step)
        optimizer.apply(
            [keras.ops.convert_to_tensor(draws.normal(size=3).astype(np.float32)) for _ in variables], variables
        )


def two_variables(keras) -> list:
    return [keras.Variable(np.array([1.0, -0.0, 3.0], dtype=np.float32), name=name) for name in "ab"]


def built(given: dict, **options):
    block = fine_tune_params(optimizer=given)
    return optimizers.build(block.optimizer, **options)


@every_optimizer
def test_an_optimizer_is_the_one_of_keras_with_the_settings_that_were_given(keras, given):
    optimizer = built(given, learning_rate=0.125)
    assert type(optimizer).__module__.startswith("keras.") and type(optimizer).__name__.lower() == given["name"]
    config = optimizer.get_config()
    assert config["learning_rate"] == 0.125
    assert {name: config[name] for name in given if name != "name"} == {n: v for n, v in given.items() if n != "name"}


@every_optimizer
def test_a_rate_is_that_of_another_learning_rate_whatever_the_optimizer(keras, given):
    """Scaled gradients would not do: Adam and RMSprop would take the same steps."""
    whole, half = two_variables(keras)
    pace = Pace("half", [half], rate=0.5, first_epoch=0)
    stepped(keras, built(given, learning_rate=0.125, paces=[pace]), [whole, half], range(6))
    for place, (received, learning_rate) in enumerate(((whole, 0.125), (half, 0.0625))):
        expected = two_variables(keras)
        stepped(keras, built(given, learning_rate=learning_rate), expected, range(6))
        assert received.numpy().tobytes() == expected[place].numpy().tobytes()
    assert (whole.numpy() != half.numpy()).any()


@every_optimizer
def test_a_variable_that_waits_is_untouched_and_begins_like_a_first_step(keras, given):
    now, later = two_variables(keras)
    optimizer = built(given, learning_rate=0.1, paces=[Pace("later", [later], rate=1.0, first_epoch=2)], steps=2)
    stepped(keras, optimizer, [now, later], range(4))
    assert later.numpy().tobytes() == two_variables(keras)[0].numpy().tobytes()
    kept = [variable for variable in optimizer.variables if variable.path.split("/")[-1].startswith("b_")]
    assert all((variable.numpy() == 0).all() for variable in kept)
    stepped(keras, optimizer, [now, later], range(4, 9))
    expected = two_variables(keras)
    stepped(keras, built(given, learning_rate=0.1), expected, range(4, 9))
    np.testing.assert_array_equal(later.numpy(), expected[1].numpy())
    np.testing.assert_array_equal(now.numpy(), run_alone(keras, given, range(9)))


def run_alone(keras, given: dict, steps: range) -> np.ndarray:
    expected = two_variables(keras)
    stepped(keras, built(given, learning_rate=0.1), expected, steps)
    return expected[0].numpy()
