"""One conformance suite over every row of the table of backbones: what a row promises, its network keeps.

The weights are random, the images small. A network of ``keras.applications`` is compared with Keras' own, whose weights
it is given in the layout of Keras' official files.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.core import artifacts
from pipeline.features import inference
from pipeline.networks import graphs
from pipeline.networks.backbones import keras_applications, scaling
from pipeline.networks.backbones.backbone import Backbone, BackboneError
from pipeline.networks.backbones.keras_applications import Application
from pipeline.networks.backbones.table import BACKBONES
from pipeline.networks.backbones.weights import draw
from pipeline.training import frozen_split

COMPUTE = inference.ComputeParams(threads=2, batch_size=2, engine="openvino", precision="float32")

# Input size, width of the pooled features, blocks and parameters (of VGG without its top), as keras.io/api/applications
# and the papers have them; of EfficientNet-Lite as its authors do.
DOCUMENTED = {
    "efficientnet_lite0": (224, 1280, 16, 4_694_024),
    "efficientnet_lite1": (240, 1280, 21, 5_470_344),
    "efficientnet_lite2": (260, 1280, 21, 6_150_168),
    "vgg16": (224, 512, 5, 14_714_688),
    "vgg19": (224, 512, 5, 20_024_384),
    "resnet50": (224, 2048, 16, 25_636_712),
    "resnet101": (224, 2048, 33, 44_707_176),
    "resnet152": (224, 2048, 50, 60_419_944),
    "resnet50_v2": (224, 2048, 16, 25_613_800),
    "resnet101_v2": (224, 2048, 33, 44_675_560),
    "resnet152_v2": (224, 2048, 50, 60_380_648),
    "inception_v3": (299, 2048, 11, 23_851_784),
    "inception_resnet_v2": (299, 1536, 44, 55_873_736),
    "xception": (299, 2048, 14, 22_910_480),
    "mobilenet": (224, 1024, 13, 4_253_864),
    "mobilenet_v2": (224, 1280, 17, 3_538_984),
    "mobilenet_v3_small": (224, 576, 11, 2_554_968),
    "mobilenet_v3_large": (224, 960, 15, 5_507_432),
    "densenet121": (224, 1024, 4, 8_062_504),
    "densenet169": (224, 1664, 4, 14_307_880),
    "densenet201": (224, 1920, 4, 20_242_984),
    "nasnet_mobile": (224, 1056, 16, 5_326_716),
    "nasnet_large": (331, 4032, 22, 88_949_818),
    "efficientnet_b0": (224, 1280, 16, 5_330_571),
    "efficientnet_b1": (240, 1280, 23, 7_856_239),
    "efficientnet_b2": (260, 1408, 23, 9_177_569),
    "efficientnet_b3": (300, 1536, 26, 12_320_535),
    "efficientnet_b4": (380, 1792, 32, 19_466_823),
    "efficientnet_b5": (456, 2048, 39, 30_562_527),
    "efficientnet_b6": (528, 2304, 45, 43_265_143),
    "efficientnet_b7": (600, 2560, 55, 66_658_687),
    "efficientnet_v2_b0": (224, 1280, 21, 7_200_312),
    "efficientnet_v2_b1": (240, 1280, 27, 8_212_124),
    "efficientnet_v2_b2": (260, 1408, 28, 10_178_374),
    "efficientnet_v2_b3": (300, 1536, 32, 14_467_622),
    "efficientnet_v2_s": (384, 1280, 40, 21_612_360),
    "efficientnet_v2_m": (480, 1280, 57, 54_431_388),
    "efficientnet_v2_l": (480, 1280, 79, 119_027_848),
    "convnext_tiny": (224, 768, 21, 28_589_128),
    "convnext_small": (224, 768, 39, 50_223_688),
    "convnext_base": (224, 1024, 39, 88_591_464),
    "convnext_large": (224, 1536, 39, 197_767_336),
    "convnext_xlarge": (224, 2048, 39, 350_196_968),
}
# Small ones, each with another top. Other kinds of preprocessing, ConvNeXt's top and blocks that are told by their
# end are slow tests: all rows together take many minutes.
QUICK = {"vgg16", "mobilenet", "mobilenet_v3_small"}
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES]


@dataclass(frozen=True)
class Built:
    """A row's network, loaded from an official file, and Keras' own (None for EfficientNet-Lite)."""

    row: Backbone
    model: object
    spec: graphs.NetworkSpec
    official: object | None
    pixels: np.ndarray


@pytest.fixture(scope="module", params=NAMES)
def built(request, tmp_path_factory) -> Built:
    row = BACKBONES[request.param]
    size = max(64, row.smallest_size)
    file = tmp_path_factory.mktemp("weights") / "official.h5"
    official = keras_own(row, size) if isinstance(row, Application) else None
    if official is None:
        write_official(row.build(weights="random", seed=0, input_size=size)[0], file)
    else:
        write_official(official, file)
    model, spec = row.build(weights=str(file), seed=0, input_size=size)
    file.unlink()
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3)).astype(np.float32)
    return Built(row, model, spec, official, pixels)


def keras_own(row: Application, size: int):
    """Return Keras' network with numbers in which every two weights differ, also those of normalization.

    What a block of EfficientNet adds to its input is made small, as training begins in such networks. Else the deepest
    are chaotic: in EfficientNetV2-M a change of the pixels in the sixth digit changes all classes, and two engines agree
    in nothing.
    """
    import keras

    keras.utils.set_random_seed(0)
    constructor = getattr(keras.applications, row.constructor)
    shape = (size, size, 3)
    options = {"include_top": False, "pooling": "avg"} if row.fixed_top else {}
    model = constructor(weights=None, input_shape=shape, **options, **row.options)
    generator = np.random.default_rng(1)
    for weight in model.weights:
        if "int" not in str(weight.dtype):
            more = 0.01 * generator.uniform(0, 1, weight.shape) if len(weight.shape) == 1 else 0.0
            weight.assign(weight.numpy() * generator.uniform(0.9, 1.1, weight.shape) + more)
    names = {layer.name for layer in model.layers}
    for layer in model.layers:
        if layer.name.endswith("_project_bn") and layer.name.replace("project_bn", "add") in names:
            layer.gamma.assign(0.3 * layer.gamma)
        if isinstance(layer, keras.layers.Normalization) and layer.input_mean is None:
            layer.adapt_mean.assign(scaling.IMAGENET_MEAN)
            layer.adapt_variance.assign(scaling.IMAGENET_DEVIATION)  # as in the official files
    return model


def write_official(model, file: Path) -> None:
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(file, "w") as group:
        legacy_h5_format.save_weights_to_hdf5_group(group, model)


def user_level(row: Application):
    return importlib.import_module(f"keras.applications.{row.module}").preprocess_input


def test_every_row_is_documented_and_every_network_of_keras_has_one():
    import keras

    assert BACKBONES.keys() == DOCUMENTED.keys()
    constructors = {name for name in vars(keras.applications) if callable(getattr(keras.applications, name))}
    assert {row.constructor for row in BACKBONES.values() if isinstance(row, Application)} == constructors
    for name, row in BACKBONES.items():
        assert (row.name, row.input_size, row.feature_width) == (name, *DOCUMENTED[name][:2])


class Asked(Exception):
    """Keras has asked for a file."""


@pytest.mark.parametrize("name", NAMES)
def test_file_and_checksum_are_those_that_keras_itself_asks_for(name, monkeypatch):
    """Of its own network with the top; of MobileNet's two it knows no checksum."""
    import keras
    from keras.src.utils import file_utils

    def ask(fname=None, origin=None, *, file_hash=None, **others):
        raise Asked(fname, origin, file_hash)

    row = BACKBONES[name]
    if not isinstance(row, Application):
        pytest.skip("EfficientNet-Lite is not among Keras' networks")
    monkeypatch.setattr(file_utils, "get_file", ask)
    with pytest.raises(Asked) as asked:
        shape = (row.input_size, row.input_size, 3)  # without one, MobileNetV3 warns
        getattr(keras.applications, row.constructor)(weights="imagenet", input_shape=shape, **row.options)
    assert asked.value.args == (row.imagenet.name, row.imagenet.url, row.imagenet.checksum)
    assert (row.imagenet.checksum is None) == (name in ("mobilenet", "mobilenet_v2"))


def test_checksums_stand_in_keras_source_once_and_belong_to_one_row():
    """At once for all rows: Keras is asked row by row only in slow tests."""
    checksums = []
    for name, row in BACKBONES.items():
        if isinstance(row, Application) and row.imagenet.checksum is not None:
            # ResNetV2's are in ResNet's module.
            module = "resnet" if row.module == "resnet_v2" else row.module
            source = Path(importlib.import_module(f"keras.src.applications.{module}").__file__).read_text("utf-8")
            assert source.count(f'"{row.imagenet.checksum}"') == 1, name
            checksums.append(row.imagenet.checksum)
    assert len(set(checksums)) == len(checksums) == len(BACKBONES) - 3 - 2


def test_inception_v3s_pooled_features_are_found_by_name():
    model = BACKBONES["inception_v3"].architecture(input_size=75).model
    assert graphs.pooled(model, [graphs.PooledLayer("avg_pool", "avg")]).output_shape == (None, 2048)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parameters"), [("vgg16", 138_357_544), ("vgg19", 143_667_240)])
def test_vgg_with_its_own_top_is_keras_network(name, parameters, tmp_path):
    """At its own size alone; the conformance suite builds it smaller, without."""
    import keras

    row = BACKBONES[name]
    official = getattr(keras.applications, row.constructor)(weights=None)
    write_official(official, tmp_path / "official.h5")
    model, spec = row.build(weights=str(tmp_path / "official.h5"), seed=0)
    assert graphs.count_parameters(model) == official.count_params() == parameters
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3)).astype(np.float32)
    fed = user_level(row)(pixels.copy())
    fc2 = graphs.pooled(model, [graphs.PooledLayer("fc2", "avg")])(pixels, training=False).numpy()
    assert fc2.shape == (2, 4096) and fc2.min() == 0 and fc2.max() > 0
    assert model.get_layer("fc2").activation is keras.activations.relu
    for received, layer in ((fc2, "fc2"), (graphs.cut(model, spec.prediction_layer)(pixels).numpy(), "predictions")):
        expected = graphs.cut(official, layer)(fed, training=False).numpy()
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_the_network_is_as_documented(built):
    row, model, spec = built.row, built.model, built.spec
    _, width, blocks, parameters = DOCUMENTED[row.name]
    assert (model.name, spec.name, spec.network) == (row.name, row.name, None)
    assert model.input_shape == (None, spec.input_size, spec.input_size, 3)
    assert spec.feature_width == width
    assert len(spec.blocks) == blocks
    assert graphs.count_parameters(model) == parameters
    assert graphs.multiply_adds(model) > 0
    assert spec.cost == graphs.cost_of(graphs.cut(model, spec.feature_layer))
    assert (spec.prediction_layer is None) == getattr(row, "fixed_top", False)


def test_features_are_the_last_map_pooled(built):
    model, spec = built.model, built.spec
    maps = graphs.cut(model, spec.map_layer)(built.pixels, training=False).numpy()
    features = graphs.cut(model, spec.feature_layer)(built.pixels, training=False).numpy()
    assert maps.ndim == 4 and features.shape == (2, spec.feature_width)
    expected = maps.mean(axis=(1, 2))
    if spec.feature_layer.endswith("layernorm"):
        expected = model.get_layer(spec.feature_layer)(expected).numpy()
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_blocks_start_in_order_and_hold_weights(built):
    order = [layer.name for layer in built.model.layers]
    starts = [order.index(block.first_layer) for block in built.spec.blocks]
    assert starts == sorted(set(starts))
    assert len({block.name for block in built.spec.blocks}) == len(starts)
    for start, end in zip(starts, [*starts[1:], order.index(built.spec.map_layer) + 1], strict=True):
        assert any(layer.weights for layer in built.model.layers[start:end])


def test_a_residual_block_without_an_activation_is_a_block_of_its_own():
    layers = [
        "conv2d",
        "max_pooling2d_1",
        "conv2d_1",
        "block8_9_conv",
        "block8_9_ac",
        "conv2d_2",
        "block8_10_conv",
        "custom_scale_layer_39",
        "conv_7b",
        "conv_7b_bn",
        "conv_7b_ac",
    ]
    found = BACKBONES["inception_resnet_v2"].blocks.find(layers)
    assert [(block.name, block.first_layer) for block in found] == [
        ("block8_9", "conv2d_1"),
        ("block8_10", "conv2d_2"),
        ("conv_7b", "custom_scale_layer_39"),
    ]


# --- preprocessing -------------------------------------------------------------------------------------------------


def assert_scaled_once_and_in_order(row: Backbone, model) -> None:
    """Every level of every channel arrives as the row says; levels differ by channel, so that their order counts."""
    size = model.input_shape[1]
    levels = np.stack([np.arange(256), np.arange(255, -1, -1), np.roll(np.arange(256), 77)], axis=-1)
    pixels = np.resize(levels, (1, size, size, 3)).astype(np.float32)
    received = graphs.cut(model, row.preprocess_layer)(pixels).numpy()
    np.testing.assert_allclose(received, row.preprocess(pixels), rtol=0, atol=2e-6 * np.abs(received).max())
    if isinstance(row, Application):
        by_keras = user_level(row)(pixels.copy())
        expected = pixels if row.scaled_inside else received
        np.testing.assert_array_equal(by_keras, expected)
    low, high = row.scaling.range
    assert low - 1e-4 <= received.min() and received.max() <= high + 1e-4


def test_preprocessing_is_that_of_keras(built):
    assert_scaled_once_and_in_order(built.row, built.model)


@pytest.mark.parametrize("name", ["mobilenet", "vgg16", "mobilenet_v3_small", "efficientnet_lite0"])
@pytest.mark.parametrize("mistake", ["scaled twice", "not scaled", "another order"])
def test_a_network_that_is_fed_wrongly_does_not_pass(name, mistake):
    import keras

    row = BACKBONES[name]
    inputs = keras.Input((64, 64, 3), name="pixels")
    x = inputs if mistake != "another order" else keras.ops.flip(inputs, axis=-1)
    wrong = {"scaled twice": 1 / 255, "not scaled": 1.0, "another order": 1.0}[mistake]
    own = None if not isinstance(row, Application) else user_level(row)
    if mistake != "not scaled":
        apart = own and not row.scaled_inside
        x = own(x) if apart else keras.layers.Rescaling(row.scaling.scale[0], row.scaling.offset[0])(x)
    x = keras.layers.Rescaling(wrong, name=row.preprocess_layer)(x)
    with pytest.raises(AssertionError):
        assert_scaled_once_and_in_order(row, keras.Model(inputs, x))


# --- what the other stages do with it ------------------------------------------------------------------------------


def test_it_computes_what_keras_own_network_computes(built):
    if built.official is None:
        pytest.skip("EfficientNet-Lite is not among Keras' networks")
    import keras

    for layer in built.official.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.input_mean is None:
            # What Keras adds by a layer more when it loads the official file itself.
            layer.adapt_variance.assign([deviation**2 for deviation in scaling.IMAGENET_DEVIATION])
            layer.finalize_state()
    expected = built.official(user_level(built.row)(built.pixels.copy()), training=False).numpy()
    layer = built.spec.prediction_layer or built.spec.feature_layer
    received = graphs.cut(built.model, layer)(built.pixels, training=False).numpy()
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_the_engine_agrees_with_keras(built):
    network = graphs.cut(built.model, built.spec.feature_layer)
    expected = network(built.pixels, training=False).numpy()
    received = inference.FrozenNetwork(lambda: network, compute=COMPUTE).run(built.pixels)
    assert np.isfinite(expected).all() and expected.std() > 0
    np.testing.assert_allclose(received, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_last_block_is_cut_off_and_put_back(built):
    import keras

    trunk = graphs.cut(built.model, built.spec.feature_layer)
    inputs = keras.Input(trunk.input_shape[1:])
    whole = keras.Model(inputs, keras.layers.Dense(2)(trunk(inputs)))
    names = [layer.name for layer in trunk.layers]
    for layer in trunk.layers[: names.index(built.spec.blocks[-1].first_layer)]:
        layer.trainable = False
    try:
        split = frozen_split.split(whole)
        assert split.frozen is not None
        assert graphs.count_parameters(split.frozen) > 0
        if built.row.name.startswith("nasnet"):
            assert len(split.tensors) > 1
        outputs = split.frozen(built.pixels, training=False)
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        rows = np.concatenate([output.numpy().reshape(2, -1) for output in outputs], axis=1)
        expected = whole(built.pixels, training=False).numpy()
        received = split.tail(rows, training=False).numpy()
        np.testing.assert_allclose(received, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    finally:
        for layer in trunk.layers:
            layer.trainable = True


def test_it_survives_saving_and_loading(built, tmp_path):
    graphs.save(built.model, tmp_path / "first")
    loaded = graphs.load(tmp_path / "first")
    layer = built.spec.feature_layer
    expected = graphs.cut(built.model, layer)(built.pixels, training=False).numpy()
    np.testing.assert_array_equal(graphs.cut(loaded, layer)(built.pixels, training=False).numpy(), expected)
    graphs.save(loaded, tmp_path / "second")
    for name in (graphs.ARCHITECTURE, graphs.WEIGHTS):
        first, second = (artifacts.sha256_file(tmp_path / place / name) for place in ("first", "second"))
        assert first == second


def test_random_weights_are_drawn_for_every_layer_from_the_seed(built):
    kept = built.model.get_weights()
    try:
        digests = []
        for seed in (0, 0, 1):
            built.model.set_weights([np.full_like(weight, 0.5) if weight.ndim > 1 else weight for weight in kept])
            draw(built.model, seed=seed)
            kernels = [weight for weight in built.model.get_weights() if weight.ndim > 1]
            assert not any((kernel == 0.5).all() for kernel in kernels)
            digests.append([float(kernel.sum(dtype=np.float64)) for kernel in kernels])
        assert digests[0] == digests[1] and all(a != b for a, b in zip(digests[0], digests[2], strict=True))
        for layer in built.model.layers:
            if hasattr(layer, "finalize_state"):
                layer.finalize_state()
    finally:
        built.model.set_weights(kept)
        keras_applications._set_constants(built.model)


@pytest.mark.parametrize("name", NAMES)
def test_random_features_are_of_a_size_that_classifiers_take(name):
    row = BACKBONES[name]
    size = max(64, row.smallest_size)
    found = row.architecture(input_size=size)
    draw(found.model, seed=0)
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3)).astype(np.float32)
    features = graphs.cut(found.model, found.feature_layer)(pixels, training=False).numpy()
    assert np.isfinite(features).all() and 1e-12 < features.std() < 1e12


# --- sizes and ablations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_a_size_below_the_smallest_is_refused_before_anything_is_built(name):
    row = BACKBONES[name]
    with pytest.raises(BackboneError, match=rf"input_size: must be at least {row.smallest_size} for {name}"):
        row.architecture(input_size=row.smallest_size - 1)


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_no_preprocessing_is_refused_where_it_would_change_nothing(name):
    problem = BACKBONES[name].problem(input_size=None, preprocess="none")
    inside = name.startswith(("mobilenet_v3", "efficientnet_b", "efficientnet_v2", "convnext"))
    assert (problem is not None) == inside
    if problem:
        assert problem[0] == "preprocess" and "nothing would change" in problem[1]


@pytest.mark.parametrize(
    ("name", "preprocess", "expected"),
    [
        ("vgg16", "rescale", lambda x: x / 255),
        ("vgg16", "none", lambda x: x),
        ("efficientnet_lite0", "rescale", lambda x: x / 255),
        ("mobilenet_v3_small", "rescale", lambda x: x / 255 / 127.5 - 1),
    ],
)
def test_an_ablation_replaces_the_preprocessing_and_nothing_else(name, preprocess, expected):
    row = BACKBONES[name]
    model = row.architecture(input_size=64, preprocess=preprocess).model
    own = row.architecture(input_size=64).model
    fed = next(layer for layer in model.layers if layer.weights).input
    import keras

    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype(np.float32)
    received = keras.Model(model.input, fed)(pixels).numpy()
    np.testing.assert_allclose(received, expected(pixels), rtol=1e-5, atol=1e-6)
    weights = [[(layer.name, weight.shape) for layer in one.layers for weight in layer.weights] for one in (model, own)]
    assert weights[0] == weights[1]
