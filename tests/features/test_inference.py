"""Facts of the engine: it agrees with Keras, and an image's result depends on the image alone, to the last bit."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
from PIL import Image

from pipeline.console import machine
from pipeline.core import artifacts
from pipeline.features import inference
from pipeline.networks import graphs
from pipeline.networks.backbones.table import BACKBONES
from tests.disks import small_disk


@pytest.fixture(scope="module")
def trunk():
    model, spec = BACKBONES["efficientnet_lite0"].build(weights="imagenet", seed=0)
    return graphs.cut(model, spec.feature_layer)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Sixteen views of two photographs, uint8 (16, 224, 224, 3)."""
    from sklearn.datasets import load_sample_images

    views = []
    for photograph in load_sample_images().images:
        image = Image.fromarray(photograph)
        for step in range(8):
            left, top, side = 40 * step, 20 * step, 280
            views.append(np.asarray(image.crop((left, top, left + side, top + side)).resize((224, 224))))
    return np.stack(views)


COMPUTE = inference.ComputeParams(threads=2, batch_size=4, engine="openvino", precision="float32")


def changed(**values) -> inference.ComputeParams:
    return COMPUTE.model_copy(update=values)


@pytest.fixture(scope="module")
def engine(trunk) -> inference.FrozenNetwork:
    return inference.FrozenNetwork(lambda: trunk, compute=COMPUTE)


@pytest.fixture(scope="module")
def reference(engine, pixels) -> np.ndarray:
    return engine.run(pixels)


def test_pooled_features_agree_with_keras(trunk, reference, pixels):
    assert reference.dtype == np.float32 and reference.shape == (16, 1280)
    in_keras = trunk(pixels.astype(np.float32), training=False).numpy()
    # Relative to an image's largest feature, with which rounding grows. On these views the largest absolute difference
    # is 1.4e-5, of features up to 4.8; from float64 the engine is 1.1e-5 away and Keras 0.6e-5. bfloat16: 0.26.
    differences = np.abs(reference - in_keras).max(axis=1)
    assert (differences < 1e-5 * in_keras.max(axis=1)).all()


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_features_do_not_depend_on_the_batch_size(engine, reference, pixels, batch_size):
    batches = (pixels[start : start + batch_size] for start in range(0, 16, batch_size))
    received = np.concatenate(list(engine.map(batches)))
    np.testing.assert_array_equal(received, reference)


def test_features_do_not_depend_on_the_order_of_rows(engine, reference, pixels):
    order = np.random.default_rng(0).permutation(16)
    np.testing.assert_array_equal(engine.run(pixels[order]), reference[order])


@pytest.mark.parametrize("threads", [1, 3])
def test_features_do_not_depend_on_the_number_of_threads_or_on_who_converted_the_network(
    trunk, reference, pixels, threads
):
    other = inference.FrozenNetwork(lambda: trunk, compute=changed(threads=threads))
    np.testing.assert_array_equal(other.run(pixels), reference)


def test_tensorflow_as_the_engine_agrees_with_keras(trunk, reference, pixels):
    engine = inference.FrozenNetwork(lambda: trunk, compute=changed(engine="tensorflow"))
    received = engine.run(pixels)
    in_keras = trunk(pixels.astype(np.float32), training=False).numpy()
    assert received.dtype == np.float32 and (engine.width, engine.input_shape) == (1280, (224, 224, 3))
    assert (np.abs(received - in_keras).max(axis=1) < 1e-5 * in_keras.max(axis=1)).all()
    assert (np.abs(received - reference).max(axis=1) < 1e-4 * reference.max(axis=1)).all()


@pytest.mark.parametrize("name", ["openvino", "tensorflow"])
def test_bfloat16_is_close_but_another_result_or_refused_by_the_processor(trunk, reference, pixels, name):
    compute = changed(engine=name, precision="bfloat16")
    try:
        received = inference.FrozenNetwork(lambda: trunk, compute=compute).run(pixels)
    except inference.InferenceError as error:
        assert name == "openvino" and "compute.precision to float32" in str(error)
        assert "AVX-512" not in (machine.cpu_features() or ())
        return
    error = np.linalg.norm(received - reference, axis=1) / np.linalg.norm(reference, axis=1)
    # bfloat16 has 8 bits of precision; on these views the error is 2 to 6 percent of the norm.
    assert received.dtype == np.float32 and (error < 0.1).all() and (error > 1e-4).all()


def test_auto_is_openvino_where_tensorflow_sees_no_gpu():
    import tensorflow as tf

    expected = "tensorflow" if tf.config.list_physical_devices("GPU") else "openvino"
    assert inference.chosen_engine("auto") == expected


def test_a_converted_network_is_kept_and_needs_no_keras(trunk, reference, pixels, tmp_path):
    inference.FrozenNetwork(lambda: trunk, compute=COMPUTE, converted=tmp_path)
    again = inference.FrozenNetwork(lambda: pytest.fail("converted twice"), compute=COMPUTE, converted=tmp_path)
    np.testing.assert_array_equal(again.run(pixels), reference)


def test_a_damaged_conversion_is_made_anew(trunk, reference, pixels, tmp_path):
    inference.FrozenNetwork(lambda: trunk, compute=COMPUTE, converted=tmp_path)
    (file,) = tmp_path.glob("openvino-*/network.xml")
    file.write_bytes(file.read_bytes()[:1000])
    again = inference.FrozenNetwork(lambda: trunk, compute=COMPUTE, converted=tmp_path)
    np.testing.assert_array_equal(again.run(pixels), reference)


@pytest.mark.parametrize("kept", [True, False])
def test_a_disk_that_fills_while_a_network_is_converted_is_told_in_words(tmp_path, monkeypatch, kept):
    import keras

    inputs = keras.Input((1024,))
    large = keras.Model(inputs, keras.layers.Dense(1024, activation="swish")(inputs))  # 4 MB
    with small_disk(tmp_path / "disk", kilobytes=2048) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        with pytest.raises(artifacts.WriteError, match=r"disk/.* cannot be written: the disk is full"):
            inference.FrozenNetwork(lambda: large, compute=COMPUTE, converted=disk / "store" if kept else None)
        assert [file for file in disk.rglob("*") if file.is_file()] == []


@pytest.mark.parametrize("name", ["openvino", "tensorflow"])
def test_several_outputs_leave_as_one_row(name):
    import keras

    inputs = keras.Input((4, 4, 3))
    two = keras.Model(inputs, [keras.layers.AveragePooling2D(2)(inputs), keras.layers.GlobalMaxPooling2D()(inputs)])
    network = inference.FrozenNetwork(lambda: two, compute=changed(engine=name))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)
    rows = network.run(pixels)
    assert network.width == 12 + 3
    np.testing.assert_allclose(
        rows[:, :12].reshape(5, 2, 2, 3), pixels.reshape(5, 2, 2, 2, 2, 3).mean(axis=(2, 4)), rtol=1e-6
    )
    np.testing.assert_array_equal(rows[:, 12:], pixels.max(axis=(1, 2)))


@pytest.mark.parametrize("outputs", [1, 2])
def test_swish_leaves_no_outputs_of_its_own(tmp_path, outputs):
    """TensorFlow keeps the input of every swish for its gradient, and OpenVINO takes that for an output."""
    import keras

    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, activation="swish")(inputs)
    x = keras.layers.Activation("swish")(x)
    ends = [keras.layers.GlobalAveragePooling2D()(x), x][:outputs]
    network = keras.Model(inputs, ends if outputs > 1 else ends[0])
    batch = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    found = network(batch) if outputs > 1 else [network(batch)]
    expected = np.concatenate([end.numpy().reshape(2, -1) for end in found], axis=1)
    for build in (lambda: network, lambda: pytest.fail("it is converted already")):
        engine = inference.FrozenNetwork(build, compute=COMPUTE, converted=tmp_path)
        np.testing.assert_allclose(engine.run(batch), expected, rtol=1e-5, atol=1e-6)


def test_an_abandoned_pass_leaves_the_engine_usable(engine, reference, pixels):
    passing = engine.map(pixels[start : start + 1] for start in range(16))
    np.testing.assert_array_equal(next(passing), reference[:1])
    passing.close()
    np.testing.assert_array_equal(engine.run(pixels), reference)


def test_bytes_and_floats_of_the_same_pixels_give_the_same_features(engine, reference, pixels):
    np.testing.assert_array_equal(engine.run(pixels.astype(np.float32)), reference)
    np.testing.assert_array_equal(engine.run(np.asfortranarray(pixels)), reference)


def test_a_result_is_not_overwritten_by_the_next(engine, reference, pixels):
    first = engine.run(pixels[:2])
    engine.run(pixels[2:4])
    np.testing.assert_array_equal(first, reference[:2])


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((2, 224, 224), np.uint8),
        np.zeros((2, 96, 96, 3), np.uint8),
        np.zeros((2, 224, 224, 3), np.float64),
        np.zeros((0, 224, 224, 3), np.uint8),
    ],
)
def test_another_shape_or_dtype_is_refused(engine, batch):
    with pytest.raises(ValueError, match=r"uint8 or float32 \(b, 224, 224, 3\), b at least 1, received"):
        engine.run(batch)


def test_a_feature_that_is_not_finite_names_its_image():
    import keras

    inputs = keras.Input((4, 4, 3))
    bright_is_infinite = keras.Model(inputs, keras.ops.max(1 / (255 - inputs), axis=(1, 2, 3)))
    engine = inference.FrozenNetwork(lambda: bright_is_infinite, compute=COMPUTE)
    batch = np.zeros((3, 4, 4, 3), np.uint8)
    batch[1] = 255
    with pytest.raises(inference.InferenceError, match=r"^white\.png: .*not finite"):
        list(inference.finite(engine.map([batch]), names=["black.png", "white.png", "grey.png"]))


def test_the_engine_reports_nothing_to_its_makers(engine):
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"
