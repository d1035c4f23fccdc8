"""Facts of looking into a network, on networks whose answers are known: which channel speaks for a class, and where."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.explain import saliency
from pipeline.networks import graphs

SIZE = 32
RED, BLUE = (slice(4, 8), slice(20, 24)), (slice(24, 30), slice(2, 8))
PATTERNS = saliency.PatternParams(filters=2, steps=10, input_size=None)


@pytest.fixture(scope="module")
def keras():
    graphs.start_tensorflow(threads=2)
    import keras

    keras.utils.set_random_seed(0)
    return keras


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Black, with a red square above on the right and a blue one below on the left: uint8 (1, size, size, 3)."""
    pixels = np.zeros((1, SIZE, SIZE, 3), dtype=np.uint8)
    pixels[0, *RED, 0], pixels[0, *BLUE, 2] = 255, 255
    return pixels


def colors(keras):
    """Pixels to two maps: how red, and how blue, each pixel is."""
    inputs = keras.Input((SIZE, SIZE, 3))
    kernel = np.zeros((1, 1, 3, 2), dtype=np.float32)
    kernel[0, 0, 0, 0] = kernel[0, 0, 2, 1] = 1 / 255
    conv = keras.layers.Conv2D(2, 1, use_bias=False, name="colors")
    outputs = conv(inputs)
    conv.set_weights([kernel])
    return inputs, outputs


def classifier(keras, weights, *, activation="softmax"):
    """A network that scores its classes by the mean of the color maps times ``weights`` (2, units)."""
    inputs, maps = colors(keras)
    dense = keras.layers.Dense(len(weights[0]), activation=activation, name="scores")
    outputs = dense(keras.layers.GlobalAveragePooling2D(name="avg_pool")(maps))
    dense.set_weights([np.array(weights, dtype=np.float32), np.zeros(len(weights[0]), dtype=np.float32)])
    if activation == "sigmoid":
        outputs = keras.layers.Concatenate()([1 - outputs, outputs])
    return keras.Model(inputs, outputs)


def heat(model, pixels, *classes) -> np.ndarray:
    return saliency.ExplainedNetwork(model, n_classes=2).heat_maps(pixels, np.array(classes))


def only(place) -> np.ndarray:
    found = np.zeros((SIZE, SIZE), dtype=np.float32)
    found[place] = 1
    return found


# --- heat maps -----------------------------------------------------------------------------------------------------


def test_a_class_scored_by_the_mean_of_a_channel_is_seen_where_that_channel_is_and_nowhere_else(keras, image):
    model = classifier(keras, [[1, 0], [0, 1]])
    for index, place in enumerate((RED, BLUE)):
        # The gradient of a mean is one over the number of positions.
        np.testing.assert_allclose(heat(model, image, index)[0], only(place) / SIZE**2, rtol=1e-6)


def test_what_speaks_against_a_class_is_not_shown(keras, image):
    found = heat(classifier(keras, [[1, -1], [-1, 0]]), image, 0)[0]
    np.testing.assert_allclose(found, only(RED) / SIZE**2, rtol=1e-6)
    assert not heat(classifier(keras, [[1, -1], [0, -2]]), image, 1).any()


def test_one_sigmoid_unit_speaks_for_the_second_class_and_against_the_first(keras, image):
    model = classifier(keras, [[-3], [2]], activation="sigmoid")
    np.testing.assert_allclose(heat(model, image, 0)[0], 3 * only(RED) / SIZE**2, rtol=1e-6)
    np.testing.assert_allclose(heat(model, image, 1)[0], 2 * only(BLUE) / SIZE**2, rtol=1e-6)
    assert saliency.ExplainedNetwork(model, n_classes=2).score == "the output of scores before its sigmoid"


def test_one_unit_whose_activation_is_a_layer_of_its_own_is_the_same(keras, image):
    """As a softmax of (0, z), which is the sigmoid of z."""
    inputs, maps = colors(keras)
    unit = keras.layers.Dense(1, name="unit")
    logit = keras.layers.Reshape((1, 1))(unit(keras.layers.GlobalAveragePooling2D()(maps)))
    logits = keras.layers.Reshape((2,))(keras.layers.ZeroPadding1D((1, 0))(logit))
    model = keras.Model(inputs, keras.layers.Softmax()(logits))
    unit.set_weights([np.array([[-3], [2]]), np.zeros(1)])
    np.testing.assert_allclose(heat(model, image, 0)[0], 3 * only(RED) / SIZE**2, rtol=1e-6)
    np.testing.assert_allclose(heat(model, image, 1)[0], 2 * only(BLUE) / SIZE**2, rtol=1e-6)
    assert saliency.ExplainedNetwork(model, n_classes=2).score == "the output of unit"


def test_a_network_that_is_certain_can_still_be_asked_why(keras, image):
    """The gradient of a probability of 1 is 0; that of the score before is not."""
    model = classifier(keras, [[1e6, 0], [0, 1]])
    assert model(image.astype(np.float32)).numpy()[0, 0] == 1
    np.testing.assert_allclose(heat(model, image, 0)[0], 1e6 * only(RED) / SIZE**2, rtol=1e-6)


def test_a_network_without_a_last_dense_layer_has_its_log_probabilities_asked(keras, image):
    inputs, maps = colors(keras)
    model = keras.Model(inputs, keras.layers.Softmax()(keras.layers.GlobalAveragePooling2D()(maps)))
    assert "logarithm" in saliency.ExplainedNetwork(model, n_classes=2).score
    found = heat(model, image, 0)[0]
    assert found[RED].min() > 0
    assert not (found * (1 - only(RED))).any()


def test_a_trunk_under_a_head_is_looked_into(keras, image):
    inputs, maps = colors(keras)
    features = keras.layers.GlobalAveragePooling2D(name="avg_pool")(maps)
    trunk = keras.Model(inputs, features, name="trunk")
    pixels = keras.Input((SIZE, SIZE, 3))
    outputs = keras.layers.Dropout(0.5)(trunk(pixels))
    outputs = keras.layers.Dropout(0.5)(keras.layers.Dense(4, activation="relu", name="head_dense_0")(outputs))
    outputs = keras.layers.Dense(2, activation="softmax", name="head_predictions")(outputs)
    model = keras.Model(pixels, outputs)
    network = saliency.ExplainedNetwork(model, n_classes=2)
    assert (network.map_layer, network.convolutions) == ("colors", ("colors",))
    assert network.score == "the output of head_predictions before its softmax"
    # There is more blue than red in the image, so the last hidden unit is off and the others are linear.
    hidden, last = np.array([[1, -1, 2, 0.5], [0.5, 1, 1, -2]]), np.array([[1, -1], [1, 1], [-1, 2], [9, 9]])
    model.get_layer("head_dense_0").set_weights([hidden, np.zeros(4)])
    model.get_layer("head_predictions").set_weights([last, np.zeros(2)])
    (against, blue), (red, more_blue) = (hidden[:, :3] @ last[:3]).T
    assert against < 0 < blue < red < more_blue
    expected = [blue * only(BLUE), red * only(RED) + more_blue * only(BLUE)]
    found = network.heat_maps(image.repeat(2, axis=0), np.array([0, 1]))
    np.testing.assert_allclose(found, np.array(expected) / SIZE**2, rtol=1e-5, atol=1e-9)


def test_a_trunk_that_ends_in_maps_is_looked_into(keras, image):
    inputs, maps = colors(keras)
    pixels = keras.Input((SIZE, SIZE, 3))
    pooled = keras.layers.GlobalMaxPooling2D()(keras.Model(inputs, maps, name="trunk")(pixels))
    model = keras.Model(pixels, keras.layers.Dense(2, activation="softmax", kernel_initializer="identity")(pooled))
    found = heat(model, image, 1)[0]
    assert found[BLUE].min() > 0
    assert not (found * (1 - only(BLUE))).any()


def test_every_image_is_looked_at_alone_and_in_inference_mode(keras):
    pixels = np.random.default_rng(0).integers(0, 256, (saliency.BATCH_SIZE + 3, SIZE, SIZE, 3), dtype=np.uint8)
    inputs, maps = colors(keras)
    maps = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization(name="bn")(maps))
    model = keras.Model(
        inputs, keras.layers.Dense(2, activation="softmax")(keras.layers.GlobalAveragePooling2D()(maps))
    )
    network = saliency.ExplainedNetwork(model, n_classes=2)
    before = [weight.copy() for weight in model.get_weights()]
    classes = np.arange(len(pixels)) % 2
    together = network.heat_maps(pixels, classes)
    assert together.shape == (len(pixels), SIZE, SIZE)
    assert together.dtype == np.float32
    assert (together >= 0).all() and together.any()
    for row in range(len(pixels)):
        alone = network.heat_maps(pixels[row : row + 1], classes[row : row + 1])[0]
        np.testing.assert_allclose(together[row], alone, rtol=1e-5, atol=1e-9)
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))


def test_a_network_without_maps_has_nothing_to_show(keras):
    inputs = keras.Input((SIZE, SIZE, 3))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(keras.layers.Flatten()(inputs)))
    with pytest.raises(saliency.SaliencyError, match="has no convolution"):
        saliency.ExplainedNetwork(model, n_classes=2)


# --- what layers compute -------------------------------------------------------------------------------------------


def test_feature_maps_are_the_outputs_of_their_layer(keras, image):
    network = saliency.ExplainedNetwork(classifier(keras, [[1, 0], [0, 1]]), n_classes=2)
    np.testing.assert_allclose(network.feature_maps(image, "colors"), image[..., [0, 2]] / 255, rtol=1e-6)


def test_a_layer_that_cannot_be_shown_is_named_with_some_that_can(keras, image):
    network = saliency.ExplainedNetwork(classifier(keras, [[1, 0], [0, 1]]), n_classes=2)
    with pytest.raises(graphs.NetworkError, match="no layer 'colours'. Nearest: colors"):
        network.feature_maps(image, "colours")
    with pytest.raises(saliency.SaliencyError, match="'avg_pool' .* no height and width to show. Some that have: col"):
        network.patterns("avg_pool", [0], params=PATTERNS, generator=np.random.default_rng(0))


def test_kernels_are_those_of_the_layer_that_sees_the_pixels(keras):
    found = saliency.ExplainedNetwork(classifier(keras, [[1, 0], [0, 1]]), n_classes=2).first_kernels()
    assert found.layer == "colors"
    np.testing.assert_allclose(found.values.reshape(2, 3) * 255, [[1, 0, 0], [0, 0, 1]], rtol=1e-6)
    pixels = keras.Input((SIZE, SIZE, 3))
    stem = keras.Sequential([keras.Input((SIZE, SIZE, 3)), keras.layers.Conv2D(4, 5, name="inside")], name="stem")
    outputs = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3, name="after")(stem(pixels)))
    trunk = keras.Model(pixels, outputs, name="trunk")
    inputs = keras.Input((SIZE, SIZE, 3))
    nested = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(trunk(inputs)))
    assert saliency.ExplainedNetwork(nested, n_classes=2).first_kernels().values.shape == (4, 5, 5, 3)
    inputs = keras.Input((SIZE, SIZE, 3))
    depthwise = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="apart")(inputs)
    outputs = keras.layers.Dense(2, activation="softmax")(keras.layers.Flatten()(depthwise))
    apart = saliency.ExplainedNetwork(keras.Model(inputs, outputs), n_classes=2)
    assert apart.first_kernels().values.shape == (6, 3, 3, 1)


def test_filters_that_answer_alike_everywhere_in_an_image_are_told_from_the_others():
    maps = np.zeros((2, 4, 4, 3), dtype=np.float32)
    maps[0, :, :, 0], maps[1, :, :, 0] = 5, -5  # between images, not within one
    assert saliency.varied(maps) == [0, 1, 2]
    maps[1, 0, 0, 2] = 1
    assert saliency.varied(maps) == [2]


def test_layers_are_spread_from_the_first_to_the_last():
    assert saliency.from_first_to_last("abcdefg", 3) == ["a", "d", "g"]
    assert saliency.from_first_to_last("ab", 4) == ["a", "b"]
    assert saliency.from_first_to_last("abc", 1) == ["a"]


# --- images made for filters ---------------------------------------------------------------------------------------


def made(network, layer: str, filters, **changes) -> saliency.Patterns:
    settings = PATTERNS.model_copy(update=changes)
    return network.patterns(layer, filters, params=settings, generator=np.random.default_rng(5))


def test_the_image_made_for_a_filter_of_red_is_red(keras):
    network = saliency.ExplainedNetwork(classifier(keras, [[1, 0], [0, 1]]), n_classes=2)
    images, before, after = made(network, "colors", [0, 1])
    assert images.shape == (2, SIZE, SIZE, 3)
    assert images.dtype == np.uint8
    means = images.mean(axis=(1, 2))
    assert means[0, 0] > 200 > 150 > means[0, 1:].max()
    assert means[1, 2] > 200 > 150 > means[1, :2].max()
    assert (before < 0.6).all() and (after > 0.8).all()
    np.testing.assert_allclose(after, [means[0, 0] / 255, means[1, 2] / 255], rtol=1e-4)


def test_ascent_raises_the_response_of_every_filter_of_a_deeper_layer_and_repeats_to_the_byte(keras):
    keras.utils.set_random_seed(1)
    inputs = outputs = keras.Input((SIZE, SIZE, 3))
    for block in (1, 2, 3):
        conv = keras.layers.Conv2D(4, 3, padding="same", name=f"block{block}_conv")
        outputs = keras.layers.MaxPooling2D()(keras.layers.LeakyReLU()(conv(outputs)))
    outputs = keras.layers.Dense(2, activation="softmax")(keras.layers.Flatten()(outputs))
    network = saliency.ExplainedNetwork(keras.Model(inputs, outputs), n_classes=2)
    images, before, after = made(network, "block3_conv", [0, 1, 2, 3])
    assert (after > before).all()
    again = made(network, "block3_conv", [0, 1, 2, 3])
    assert images.tobytes() == again.images.tobytes()
    # Also at a size that what follows the layer, here a Flatten, could not take.
    assert made(network, "block3_conv", [1], input_size=48).images.shape == (1, 48, 48, 3)


def test_a_size_that_the_network_cannot_take_names_the_parameter(keras):
    inputs = keras.Input((SIZE, SIZE, 3))
    conv = keras.layers.Conv2D(2, 1, name="conv")(keras.layers.Reshape((SIZE // 2, SIZE * 2, 3))(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(keras.layers.Flatten()(conv)))
    with pytest.raises(saliency.SaliencyError, match=r"cannot take .* 48 x 48 .*explain\.patterns\.input_size to null"):
        made(saliency.ExplainedNetwork(model, n_classes=2), "conv", [0], input_size=48)
