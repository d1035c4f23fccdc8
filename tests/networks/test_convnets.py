"""Facts of the small networks: their parameters as published, their sizes, and that each of them trains."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.console.progress import NoLog
from pipeline.features import inference
from pipeline.networks import convnets, graphs
from pipeline.training import fitting, frozen_split
from tests.small_networks import COMPUTE, PARAMS

pytestmark = pytest.mark.usefixtures("keras")
every_network = pytest.mark.parametrize("name", convnets.CONVNETS)


def built(name: str, *, size: int | None = None, n_classes: int = 10, dropout: float | None = None):
    convnet = convnets.CONVNETS[name]
    return convnet.build(input_size=size or convnet.input_size, n_classes=n_classes, dropout=dropout)


def smallest_side(model) -> int:
    """Return the least of height and width of all maps."""
    return min(min(layer.output.shape[1:3]) for layer in model.layers if len(layer.output.shape) == 4)


@pytest.mark.parametrize(
    "name, n_classes, published",
    [
        # With one channel and ten classes 93,322: two more channels are 32 x 9 x 2 numbers more.
        ("mnist_convnet", 10, 93_322 + 32 * 9 * 2),
        # With one sigmoid 3,453,121: a softmax over two classes is another 512 weights and a bias.
        ("cats_and_dogs_convnet", 2, 3_453_121 + 513),
        ("cifar_convnet", 10, 1_250_858),
        ("one_convnet", 10, 32 * 28 + 10 * (13 * 13 * 32 + 1)),
    ],
)
def test_a_network_of_its_own_size_has_the_parameters_that_were_published(name, n_classes, published):
    assert graphs.count_parameters(built(name, n_classes=n_classes)) == published


@every_network
def test_the_smallest_size_is_the_last_that_leaves_something_of_every_map(name):
    smallest = convnets.CONVNETS[name].smallest
    assert smallest_side(built(name, size=smallest)) == 1
    try:
        left = smallest_side(built(name, size=smallest - 1))
    except ValueError:  # of Keras: a convolution is larger than what it is laid on
        left = 0
    assert left < 1


@every_network
def test_pixels_are_scaled_by_the_first_layer(name, keras):
    model = built(name)
    scaled = keras.Model(model.input, model.layers[1].output)
    size = convnets.CONVNETS[name].input_size
    ends = np.asarray(scaled(np.stack([np.zeros((size, size, 3)), np.full((size, size, 3), 255.0)])))
    assert ends.max() == pytest.approx(1.0)
    assert ends.min() == pytest.approx(-1.0 if name == "small_convnet" else 0.0)


@pytest.mark.parametrize(
    "name, own",
    [
        ("small_convnet", [0.3]),
        ("mnist_convnet", []),
        ("cats_and_dogs_convnet", [0.5]),
        ("cifar_convnet", [0.25, 0.25, 0.5]),
        ("one_convnet", []),
    ],
)
def test_dropout_is_the_networks_own_unless_given(name, own, keras):
    def rates(dropout: float | None) -> list[float]:
        return [layer.rate for layer in built(name, dropout=dropout).layers if isinstance(layer, keras.layers.Dropout)]

    assert rates(None) == own
    assert rates(0.1) == [0.1] * len(own)


@pytest.mark.parametrize(
    "name, last",
    [
        ("small_convnet", "block4_pool"),
        ("mnist_convnet", "block3_conv"),
        ("cats_and_dogs_convnet", "block4_pool"),
        ("cifar_convnet", "block2_dropout"),
        ("one_convnet", "block1_pool"),
    ],
)
def test_the_last_map_is_found(name, last):
    assert graphs.last_map_layer(built(name)) == last


@every_network
def test_every_network_trains_and_runs_in_the_engine(name):
    size = convnets.CONVNETS[name].smallest
    model = built(name, size=size, n_classes=3)
    pixels = np.random.default_rng(0).integers(0, 256, (12, size, size, 3), dtype=np.uint8)
    labels = np.arange(12) % 3
    examples = fitting.Examples(labels, lambda rows, _: pixels[rows], labels, lambda rows: pixels[rows])
    before = [weight.copy() for weight in model.get_weights()]
    assert frozen_split.split(model).tail is model
    params = PARAMS.model_copy(update={"epochs": 1})
    fitting.fit(model, examples, whole=model, params=params, seed=0, log=NoLog())
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
    received = inference.FrozenNetwork(lambda: model, compute=COMPUTE).run(pixels)
    np.testing.assert_allclose(received, np.asarray(model(pixels.astype(np.float32), training=False)), atol=1e-5)
