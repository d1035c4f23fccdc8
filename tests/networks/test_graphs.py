"""Facts of stored networks: the same network is the same bytes, and costs are those counted by hand."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from pipeline.core import artifacts
from pipeline.networks import graphs
from pipeline.networks.graphs import BlockSpec, NetworkError, NetworkSpec

SPEC = NetworkSpec(
    name="tiny",
    input_size=8,
    feature_layer="avg_pool",
    feature_width=4,
    map_layer="conv",
    prediction_layer="predictions",
    preprocess="backbone",
    blocks=[BlockSpec(name="block1", first_layer="conv")],
    weights={"source": "random", "seed": "0"},
    cost=graphs.Cost(parameters=1, bytes=2, multiply_adds=3),
)

SAVE_TINY = """
import sys
from pathlib import Path
import keras
from pipeline.networks import graphs as networks
for _ in range(int(sys.argv[2])):
    keras.layers.Dense(3)
inputs = keras.Input((8, 8, 3), name="pixels")
shared = keras.initializers.HeNormal(seed=1)
x = keras.layers.Conv2D(4, 3, name="conv", kernel_initializer=shared)(inputs)
x = keras.layers.Conv2D(4, 3, name="conv_2", kernel_initializer=shared, kernel_regularizer="l2")(x)
x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
model = keras.Model(inputs, keras.layers.Dense(2, name="predictions", kernel_initializer=shared)(x), name="tiny")
if sys.argv[2] == "3":
    model.compile("adam", "mse", metrics=["mae"])
networks.save(model, Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def keras():
    import keras

    return keras


def tiny(keras):
    """Every kind of layer that is counted, in sizes that can be counted by hand."""
    layers = keras.layers
    inputs = keras.Input((8, 8, 3), name="pixels")
    x = layers.Rescaling(1 / 128, -1, name="preprocess")(inputs)
    x = layers.Conv2D(6, 3, strides=2, padding="same", name="conv")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="dwconv")(x)
    x = layers.SeparableConv2D(5, 3, padding="valid", name="separable")(x)
    x = layers.Conv2D(10, 1, groups=5, name="grouped")(x)
    x = layers.Dense(7, name="dense_map")(x)
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return keras.Model(inputs, layers.Dense(4, name="predictions")(x), name="tiny")


# Outputs x what each sums up: 8x8 becomes 4x4, and 2x2 without padding.
COUNTED = {
    "preprocess": 0,
    "conv": 4 * 4 * 6 * (3 * 3 * 3),
    "bn": 0,
    "dwconv": 4 * 4 * 12 * (3 * 3),
    "separable": 2 * 2 * 12 * (3 * 3) + 2 * 2 * 5 * 12,
    "grouped": 2 * 2 * 10 * (5 // 5),
    "dense_map": 2 * 2 * 7 * 10,
    "avg_pool": 0,
    "predictions": 4 * 7,
}


def test_nothing_is_imported_for_functions_of_keras_that_are_never_called(root, tmp_path, environment):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pipeline.features import inference; from pipeline.networks import graphs as networks\n"
        "networks.start_tensorflow()\n"
        "import keras\n"
        "inputs = keras.Input((4,))\n"
        "inference.convert(lambda: keras.Model(inputs, keras.layers.Dense(2)(inputs)), Path(sys.argv[1]))\n"
        "assert not {*networks.UNCALLED, 'scipy.signal'} & set(sys.modules)\n"
        "import matplotlib, pandas, scipy.signal, sklearn\n"
        "assert scipy.signal.get_window\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=root, env=environment)


def test_a_network_is_the_same_bytes_in_every_process(root, tmp_path, environment):
    for name, layers_before in (("first", "0"), ("second", "3")):
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", SAVE_TINY, str(tmp_path / name), layers_before]
        subprocess.run(command, check=True, cwd=root, env={**environment, "PYTHONHASHSEED": layers_before})
    for name in (graphs.ARCHITECTURE, graphs.WEIGHTS):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_a_users_settings_of_keras_change_nothing(root, tmp_path, environment):
    settings = '{"floatx": "float16", "epsilon": 0.001, "image_data_format": "channels_first"}'
    (tmp_path / "keras.json").write_text(settings, encoding="utf-8")
    code = (
        "from pipeline.networks import graphs as networks; networks.start_tensorflow(); import keras; "
        "print(keras.config.floatx(), keras.config.epsilon(), keras.config.image_data_format())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=root,
        capture_output=True,
        text=True,
        env={**environment, "KERAS_HOME": str(tmp_path)},
    )
    assert done.stdout.split() == ["float32", "1e-07", "channels_last"]


def test_a_loaded_network_computes_the_same_and_saves_the_same_bytes(keras, tmp_path):
    model = tiny(keras)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.float32)
    graphs.save(model, tmp_path / "a")
    loaded = graphs.load(tmp_path / "a")
    np.testing.assert_array_equal(loaded(pixels), model(pixels))
    graphs.save(loaded, tmp_path / "b")
    assert artifacts.sha256_path(tmp_path / "a") == artifacts.sha256_path(tmp_path / "b")
    assert graphs.cost_of(model).bytes == sum(file.stat().st_size for file in (tmp_path / "a").iterdir())


def test_training_state_is_not_stored(keras, tmp_path):
    model = tiny(keras)
    graphs.save(model, tmp_path / "before")
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    graphs.save(model, tmp_path / "after")
    assert artifacts.sha256_path(tmp_path / "before") == artifacts.sha256_path(tmp_path / "after")


def test_what_is_frozen_stays_frozen_on_disk(keras, tmp_path):
    model = tiny(keras)
    model.get_layer("conv").trainable = False
    graphs.save(model, tmp_path)
    assert [layer.name for layer in graphs.load(tmp_path).layers if not layer.trainable] == ["conv"]


@pytest.mark.parametrize("name", [graphs.ARCHITECTURE, graphs.WEIGHTS])
def test_an_incomplete_network_is_refused(keras, tmp_path, name):
    graphs.save(tiny(keras), tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:100])
    with pytest.raises(artifacts.ArtifactError, match="is damaged"):
        graphs.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(artifacts.ArtifactError, match=f"{name} is missing"):
        graphs.load(tmp_path)


def test_a_spec_comes_back_and_a_wrong_one_is_refused(tmp_path):
    graphs.write_spec(SPEC, tmp_path)
    assert graphs.read_spec(tmp_path) == SPEC
    broken = {**json.loads((tmp_path / graphs.SPEC).read_text()), "input_size": 0}
    (tmp_path / graphs.SPEC).write_text(json.dumps(broken))
    with pytest.raises(artifacts.ArtifactError, match=r"spec\.json is damaged"):
        graphs.read_spec(tmp_path)


def test_multiply_adds_are_those_counted_by_hand(keras):
    model = tiny(keras)
    assert graphs.multiply_adds(model) == sum(COUNTED.values())
    total = 0
    for layer, counted in COUNTED.items():
        total += counted
        assert graphs.multiply_adds(graphs.cut(model, layer)) == total


def test_a_nested_network_counts_like_its_layers(keras):
    inner = tiny(keras)
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(3, name="head")(inner(inputs, training=False))
    nested = keras.Model(inputs, outputs)
    assert graphs.multiply_adds(nested) == sum(COUNTED.values()) + 4 * 3
    sequential = keras.Sequential([keras.Input((8, 8, 3)), tiny(keras), keras.layers.Dense(3)])
    assert graphs.multiply_adds(sequential) == graphs.multiply_adds(nested)


def test_a_cost_that_is_not_known_is_an_error_not_a_zero(keras):
    inputs = keras.Input((8, 8, 3))
    transposed = keras.Model(inputs, keras.layers.Conv2DTranspose(2, 3, name="up")(inputs))
    with pytest.raises(NetworkError, match="'up' is a Conv2DTranspose, whose multiply-adds are not known"):
        graphs.multiply_adds(transposed)
    inputs = keras.Input((None, None, 3))
    open_size = keras.Model(inputs, keras.layers.Conv2D(2, 3, name="conv")(inputs))
    with pytest.raises(NetworkError, match="fix the size of the input"):
        graphs.multiply_adds(open_size)


def test_the_last_map_is_that_of_the_last_layer_with_height_and_width_nested_or_not(keras):
    model = tiny(keras)
    assert graphs.last_map_layer(model) == "dense_map"
    inputs = keras.Input((8, 8, 3))
    assert graphs.last_map_layer(keras.Model(inputs, keras.layers.Dense(3)(model(inputs)))) == "dense_map"
    kept = keras.layers.GlobalAveragePooling2D(keepdims=True)(model.get_layer("separable").output)
    assert graphs.last_map_layer(keras.Model(model.input, kept)) == "separable"
    with pytest.raises(NetworkError, match="no layer whose output has height and width"):
        graphs.last_map_layer(keras.Model(inputs, keras.layers.Flatten()(inputs)))


def test_parameters_are_counted_and_frozen_ones_are_not_trainable(keras):
    model = tiny(keras)
    conv, bn = 6 * 27 + 6, 6
    assert graphs.count_parameters(graphs.cut(model, "bn")) == conv + 4 * bn
    assert graphs.count_trainable_parameters(graphs.cut(model, "bn")) == conv + 2 * bn
    model.get_layer("conv").trainable = False
    assert graphs.count_trainable_parameters(graphs.cut(model, "bn")) == 2 * bn


def test_a_cut_network_ends_at_its_layer_and_shares_weights(keras):
    model = tiny(keras)
    part = graphs.cut(model, "avg_pool")
    assert part.output_shape == (None, 7)
    assert part.get_layer("conv") is model.get_layer("conv")
    with pytest.raises(NetworkError, match="Network 'tiny' has no layer 'avg_pol'. Nearest: avg_pool"):
        graphs.cut(model, "avg_pol")
