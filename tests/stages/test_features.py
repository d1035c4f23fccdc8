"""Facts of the features stage: rows follow the manifest, nothing depends on the batch size, nothing is half written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.console.progress import NoLog
from pipeline.core import artifacts, params
from pipeline.features import inference
from pipeline.images import decode
from pipeline.networks import graphs
from pipeline.networks.graphs import BlockSpec, NetworkSpec
from pipeline.stages import features

IMAGES = {"square": "crop", "fill": "edge", "interpolation": "bilinear"}


@pytest.fixture(scope="module")
def network():
    """A network whose features can be told without it: each channel's mean and largest value, over 255."""
    import keras

    inputs = keras.Input((8, 8, 3), name="pixels")
    scaled = keras.layers.Rescaling(1 / 255, name="preprocess")(inputs)
    mean = keras.layers.GlobalAveragePooling2D(name="mean")(scaled)
    brightest = keras.layers.GlobalMaxPooling2D(name="brightest")(scaled)
    pooled = keras.layers.Concatenate(name="avg_pool")([mean, brightest])
    return keras.Model(inputs, keras.layers.Dense(2, name="predictions")(pooled), name="tiny")


@pytest.fixture
def project(tmp_path, monkeypatch, network):
    """Seven small pictures in a split, and a stored network; the working directory is theirs."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    rows = []
    for number, part in enumerate(["train"] * 4 + ["validation"] * 2 + ["test"]):
        path = f"{part}/{'cat' if number % 2 else 'dog'}/{9 - number}.png"
        file = artifacts.SPLIT / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (12, 9, 3)).astype(np.uint8)).save(file)
        rows.append(
            {
                "path": path,
                "label": file.parent.name,
                "split": part,
                "group": "",
                "stratum": "",
                "sha256": artifacts.sha256_file(file),
            }
        )
    artifacts.write_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS, rows)
    directory = artifacts.BACKBONES / "tiny"
    graphs.save(network, directory)
    spec = NetworkSpec(
        name="tiny",
        input_size=8,
        feature_layer="avg_pool",
        feature_width=6,
        map_layer="preprocess",
        preprocess="backbone",
        prediction_layer="predictions",
        weights={},
        blocks=[BlockSpec(name="all", first_layer="preprocess")],
        cost=graphs.cost_of(graphs.cut(network, "avg_pool")),
    )
    graphs.write_spec(spec, directory)
    return tmp_path


def run(*, batch_size: int = 3, layers: list[Any] | None = None, pooling: str = "avg") -> None:
    compute = {"threads": 1, "batch_size": batch_size, "engine": "openvino", "precision": "float32"}
    values = {"images": IMAGES, "compute": compute, "features": {"layers": layers, "pooling": pooling}}
    features.main(params.Params(values, features.READS), backbone="tiny", log=NoLog())


def test_features_of_every_part_stand_in_manifest_order(project):
    run()
    for name in artifacts.PARTS:
        part = artifacts.read_part(name)
        received = artifacts.read_features(artifacts.FEATURES / "tiny", part)
        pixels = [decode.load(file, size=8, params=decode.ImageParams(**IMAGES)) / 255 for file in part.files]
        expected = [np.concatenate([image.mean(axis=(0, 1)), image.max(axis=(0, 1))]) for image in pixels]
        np.testing.assert_allclose(received, expected, rtol=1e-5)


@pytest.mark.parametrize(("pooling", "width"), [("avg", 3), ("max", 3), ("flatten", 8 * 8 * 3)])
def test_layers_are_pooled_and_concatenated_in_the_order_given(project, network, pooling, width):
    run(layers=["brightest", "preprocess", "predictions"], pooling=pooling)
    part = artifacts.read_part("train")
    received = artifacts.read_features(artifacts.FEATURES / "tiny", part)
    pixels = np.stack([decode.load(file, size=8, params=decode.ImageParams(**IMAGES)) for file in part.files])
    maps = pixels / np.float32(255)
    pooled = {"avg": maps.mean(axis=(1, 2)), "max": maps.max(axis=(1, 2)), "flatten": maps.reshape(len(maps), -1)}
    predictions = network(pixels.astype(np.float32)).numpy()
    expected = np.concatenate([maps.max(axis=(1, 2)), pooled[pooling], predictions], axis=1)
    assert received.shape == (4, 3 + width + 2)
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-5)
    meta = artifacts.read_json(artifacts.FEATURES / "tiny" / "meta.json")
    assert meta["features"] == {"layers": ["brightest", "preprocess", "predictions"], "pooling": pooling}
    assert meta["cost"]["parameters"] == network.count_params()


def test_a_layer_may_be_pooled_otherwise_than_the_others(project, network):
    layers = [
        {"layer": "preprocess", "pooling": "max"},
        "preprocess",
        "mean",
        {"layer": "preprocess", "pooling": "flatten"},
    ]
    run(layers=layers)
    part = artifacts.read_part("train")
    received = artifacts.read_features(artifacts.FEATURES / "tiny", part)
    pixels = np.stack([decode.load(file, size=8, params=decode.ImageParams(**IMAGES)) for file in part.files])
    maps = pixels / np.float32(255)
    mean = maps.mean(axis=(1, 2))
    expected = np.concatenate([maps.max(axis=(1, 2)), mean, mean, maps.reshape(len(maps), -1)], axis=1)
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-5)
    meta = artifacts.read_json(artifacts.FEATURES / "tiny" / "meta.json")
    assert meta["features"] == {"layers": layers, "pooling": "avg"}
    # What the feature store knows rows by: each pooling, and the order.
    assert meta["tensors"] == ["preprocess:0:0:max", "preprocess:0:0:avg", "mean:0:0:avg", "preprocess:0:0:flatten"]


def test_other_layers_and_another_pooling_are_other_features(project):
    digests = set()
    of_its_own = {"layer": "preprocess", "pooling": "flatten"}
    choices = (
        {},
        {"layers": ["preprocess"]},
        {"layers": ["preprocess"], "pooling": "max"},
        {"layers": ["mean"]},
        {"layers": [of_its_own]},
        {"layers": ["mean", of_its_own]},
        {"layers": [of_its_own, "mean"]},
    )
    for choice in choices:
        run(**choice)
        digests.add(artifacts.sha256_path(artifacts.FEATURES / "tiny"))
    assert len(digests) == len(choices)


def test_an_unknown_layer_is_refused_with_the_nearest(project):
    with pytest.raises(graphs.NetworkError, match=r"has no layer 'briightest'\. Nearest: brightest"):
        run(layers=["briightest"])
    assert not (artifacts.FEATURES / "tiny").exists()


def test_features_of_an_ablation_say_so(project, capsys):
    directory = artifacts.BACKBONES / "tiny"
    graphs.write_spec(graphs.read_spec(directory).model_copy(update={"preprocess": "rescale"}), directory)
    run()
    assert artifacts.read_json(artifacts.FEATURES / "tiny" / "meta.json")["ablation"] == "fed pixels / 255"
    assert "preparing tiny (ablation: fed pixels / 255)" in capsys.readouterr().out


def test_the_bytes_do_not_depend_on_the_batch_size(project):
    digests = set()
    for batch_size in (1, 3, 100):
        shutil.rmtree(".cache", ignore_errors=True)
        run(batch_size=batch_size)
        digests.add(artifacts.sha256_path(artifacts.FEATURES / "tiny"))
    assert len(digests) == 1


def test_what_the_features_were_made_with_is_kept_beside_them(project, network):
    run()
    meta = artifacts.read_json(artifacts.FEATURES / "tiny" / "meta.json")
    assert meta == {
        "network": "tiny",
        "network_sha256": artifacts.sha256_path(artifacts.BACKBONES / "tiny"),
        "features": {"layers": None, "pooling": "avg"},
        "ablation": None,
        "tensors": ["avg_pool:0:0"],
        "width": 6,
        "input_size": 8,
        "images": IMAGES,
        "engine": "openvino",
        "precision": "float32",
        "cost": graphs.cost_of(graphs.cut(network, "avg_pool")).model_dump(),
    }


def test_images_that_were_seen_before_are_not_computed_again(project, capsys, monkeypatch):
    run()
    before = artifacts.sha256_path(artifacts.FEATURES / "tiny")
    rows = artifacts.read_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS)
    file = artifacts.SPLIT / "train" / "cat" / "new.png"
    Image.fromarray(np.full((9, 9, 3), 77, np.uint8)).save(file)
    new = {
        "path": "train/cat/new.png",
        "label": "cat",
        "split": "train",
        "group": "",
        "stratum": "",
        "sha256": artifacts.sha256_file(file),
    }
    computed = []
    original = inference.FrozenNetwork.map
    monkeypatch.setattr(
        inference.FrozenNetwork,
        "map",
        lambda self, batches: original(self, (computed.append(len(b)) or b for b in batches)),
    )
    monkeypatch.setattr(graphs, "load", lambda directory: pytest.fail("TensorFlow is not needed"))
    artifacts.write_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS, [*rows, new])
    capsys.readouterr()
    run()
    assert "train: 5 images (4 known before), 6 features each, " in capsys.readouterr().out
    # Besides the new image only the canaries of each part: four, two and one.
    assert sum(computed) == 1 + 4 + 2 + 1
    artifacts.write_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS, rows)
    run()
    assert artifacts.sha256_path(artifacts.FEATURES / "tiny") == before


def test_features_are_the_same_without_a_store(project, monkeypatch):
    run()
    kept = artifacts.sha256_path(artifacts.FEATURES / "tiny")
    monkeypatch.setenv("BAKEOFF_FEATURE_STORE_GB", "0")
    shutil.rmtree(".cache")
    run()
    assert artifacts.sha256_path(artifacts.FEATURES / "tiny") == kept
    assert not list(Path(".cache").rglob("*.rows"))


def test_an_image_that_cannot_be_read_leaves_no_features(project):
    part = artifacts.read_part("validation")
    part.files[1].write_bytes(b"not an image")
    with pytest.raises(decode.ImageError, match=part.files[1].name):
        run()
    assert not (artifacts.FEATURES / "tiny").exists()
    assert list(artifacts.FEATURES.iterdir()) == []


def test_a_feature_that_is_not_finite_stops_the_stage(project, monkeypatch):
    nan = np.float32(np.nan)
    monkeypatch.setattr(
        inference.FrozenNetwork, "map", lambda self, batches: (np.full((len(batch), 6), nan) for batch in batches)
    )
    with pytest.raises(inference.InferenceError, match=r"train/dog/9\.png: .*not finite"):
        run()
    assert not (artifacts.FEATURES / "tiny").exists()


def test_the_stage_says_how_many_images_and_how_fast(project, capsys):
    run()
    said = capsys.readouterr().out
    for name, count in (("train", 4), ("validation", 2), ("test", 1)):
        assert f"{name}: {count} images, 6 features each, " in said
    assert "images/s" in said
