"""Facts of the features stage: rows follow the manifest, nothing depends on the batch size, nothing is half written."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline import artifacts, images, inference, networks, params
from pipeline.networks import BlockSpec, NetworkSpec
from pipeline.progress import NoLog
from pipeline.stages import features

IMAGES = {"square": "crop", "interpolation": "bilinear"}


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
        rows.append({"path": path, "label": file.parent.name, "split": part, "group": "", "stratum": "",
                     "sha256": artifacts.sha256_file(file)})  # fmt: skip
    artifacts.write_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS, rows)
    directory = artifacts.BACKBONES / "tiny"
    networks.save(network, directory)
    spec = NetworkSpec(
        name="tiny", input_size=8, feature_layer="avg_pool", feature_width=6, map_layer="preprocess",
        prediction_layer="predictions", blocks=[BlockSpec(name="all", first_layer="preprocess")], weights={},
    )  # fmt: skip
    networks.write_spec(spec, directory)
    return tmp_path


def run(*, batch_size: int = 3) -> None:
    values = {"images": IMAGES, "compute": {"threads": 1, "batch_size": batch_size}}
    features.main(params.Params(values, features.READS), backbone="tiny", log=NoLog())


def test_features_of_every_part_stand_in_manifest_order(project):
    run()
    for name in artifacts.PARTS:
        part = artifacts.read_part(name)
        received = artifacts.read_features(artifacts.FEATURES / "tiny", part)
        pixels = [images.load(file, size=8, params=images.ImageParams(**IMAGES)) / 255 for file in part.files]
        expected = [np.concatenate([image.mean(axis=(0, 1)), image.max(axis=(0, 1))]) for image in pixels]
        np.testing.assert_allclose(received, expected, rtol=1e-5)


def test_the_bytes_do_not_depend_on_the_batch_size(project):
    digests = set()
    for batch_size in (1, 3, 100):
        run(batch_size=batch_size)
        digests.add(artifacts.sha256_path(artifacts.FEATURES / "tiny"))
    assert len(digests) == 1


def test_what_the_features_were_made_with_is_kept_beside_them(project, network):
    run()
    meta = artifacts.read_json(artifacts.FEATURES / "tiny" / "meta.json")
    trunk = networks.cut(network, "avg_pool")
    assert meta == {
        "network": "tiny",
        "network_sha256": artifacts.sha256_path(artifacts.BACKBONES / "tiny"),
        "feature_layer": "avg_pool",
        "width": 6,
        "input_size": 8,
        "images": IMAGES,
        "parameters": 0,
        "multiply_adds": 0,
        "network_bytes": networks.stored_bytes(trunk),
    }


def test_an_image_that_cannot_be_read_leaves_no_features(project):
    part = artifacts.read_part("validation")
    part.files[1].write_bytes(b"not an image")
    with pytest.raises(images.ImageError, match=part.files[1].name):
        run()
    assert not (artifacts.FEATURES / "tiny").exists()
    assert list(artifacts.FEATURES.iterdir()) == []


def test_a_feature_that_is_not_finite_stops_the_stage(project, monkeypatch):
    monkeypatch.setattr(inference.FrozenNetwork, "run", lambda self, batch: np.full((len(batch), 6), np.nan, "float32"))
    with pytest.raises(inference.InferenceError, match=r"^train/dog/9\.png: .*not finite"):
        run()
    assert not (artifacts.FEATURES / "tiny").exists()


def test_the_stage_says_how_many_images_and_how_fast(project, capsys):
    run()
    said = capsys.readouterr().out
    for name, count in (("train", 4), ("validation", 2), ("test", 1)):
        assert f"{name}: {count} images, 6 features each, " in said
    assert "images/s" in said
