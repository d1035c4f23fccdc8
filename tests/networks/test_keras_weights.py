"""Facts of Keras' official files of weights: found, verified, downloaded whole, and refused in words."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.core import artifacts
from pipeline.networks import graphs
from pipeline.networks.backbones import keras_applications, table, weights
from pipeline.networks.backbones.keras_applications import Application, Blocks, Top
from pipeline.networks.backbones.scaling import SIGNED
from pipeline.networks.backbones.table import BACKBONES
from pipeline.networks.backbones.weights import KerasFile, WeightsError

CONTENT = b"numbers"
FILE = KerasFile("https://somewhere/models/tiny.h5", hashlib.md5(CONTENT).hexdigest())


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    """Where Keras keeps its files."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path / "keras" / "models"


@pytest.fixture
def offline(monkeypatch) -> list[float | None]:
    """No file can be downloaded; the list holds how long each attempt would have waited for a silent server."""
    import keras

    waited = []

    def get_file(*_arguments, **_options):
        waited.append(socket.getdefaulttimeout())
        raise Exception("URL fetch failure: no route to host")

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    return waited


def downloads(monkeypatch, content: bytes) -> list[str]:
    """Let Keras' download deliver ``content``; return the list of what is asked for."""
    import keras

    asked = []

    def get_file(name, origin, *, cache_dir, cache_subdir, file_hash):
        asked.append(origin)
        (Path(cache_dir) / name).write_bytes(content)
        if file_hash and hashlib.md5(content).hexdigest() != file_hash:
            raise ValueError("Incomplete or corrupted file detected")
        return str(Path(cache_dir) / name)

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    return asked


def test_a_file_that_is_there_is_taken_and_nothing_is_downloaded(models, offline):
    models.mkdir(parents=True)
    (models / "tiny.h5").write_bytes(CONTENT)
    assert FILE.locate() == models / "tiny.h5"
    assert KerasFile(FILE.url, hashlib.sha256(CONTENT).hexdigest()).locate() == models / "tiny.h5"
    assert KerasFile(FILE.url, None).locate() == models / "tiny.h5"
    (models / "called_so.h5").write_bytes(CONTENT)
    assert KerasFile(FILE.url, FILE.checksum, cached_as="called_so.h5").locate() == models / "called_so.h5"
    assert offline == []


def test_offline_the_message_names_file_checksum_and_place(models, offline):
    with pytest.raises(WeightsError) as error:
        FILE.locate()
    message = str(error.value)
    assert f"tiny.h5 (MD5 {FILE.checksum}) could not be downloaded: URL fetch failure: no route to host" in message
    assert f"Get it from {FILE.url} another way and put it at {models / 'tiny.h5'}" in message
    assert "backbone.weights in params.yaml" in message
    with pytest.raises(WeightsError, match=f"SHA-256 {'0' * 64}"):
        KerasFile(FILE.url, "0" * 64).locate()
    with pytest.raises(WeightsError, match="Keras knows no checksum of it"):
        KerasFile(FILE.url, None).locate()


def test_a_silent_server_is_given_up_after_seconds(models, offline):
    with pytest.raises(WeightsError):
        FILE.locate()
    assert offline == [weights.PATIENCE_SECONDS] and socket.getdefaulttimeout() is None


def test_a_download_is_there_whole_or_not_at_all(models, monkeypatch):
    asked = downloads(monkeypatch, CONTENT)
    assert FILE.locate().read_bytes() == CONTENT
    assert FILE.locate() and asked == [FILE.url]
    (models / "tiny.h5").unlink()
    downloads(monkeypatch, CONTENT[:3])
    with pytest.raises(WeightsError, match="Incomplete or corrupted"):
        FILE.locate()
    assert list(models.iterdir()) == []


def test_a_file_with_another_checksum_is_downloaded_again_or_named(models, monkeypatch, offline):
    models.mkdir(parents=True)
    (models / "tiny.h5").write_bytes(b"cut off")
    with pytest.raises(WeightsError, match=f"The file that is there has {hashlib.md5(b'cut off').hexdigest()}"):
        FILE.locate()
    downloads(monkeypatch, CONTENT)
    assert FILE.locate().read_bytes() == CONTENT


def test_a_stage_without_weights_says_so_at_once(models, offline):
    with pytest.raises(WeightsError, match=r"vgg16_weights.*\.h5 \(MD5 64373286793e3c8b2b4e3219cbf3544b\)"):
        BACKBONES["vgg16"].build(weights="imagenet", seed=0)


# --- files ---------------------------------------------------------------------------------------------------------


def small(**changes) -> Application:
    """Keras' smallest network."""
    about = {
        "name": "mobilenet_025",
        "constructor": "MobileNet",
        "module": "mobilenet",
        "input_size": 64,
        "feature_width": 256,
        "scaling": SIGNED,
        "options": {"alpha": 0.25},
        "imagenet": FILE,
        "blocks": Blocks(r"(conv)_(?:pad|dw|pw)(_\d+).*"),
        "top": keras_applications.convolutional,
    }
    return Application(**about | changes)


def flat_top(maps, prefix: str, classes: bool) -> Top:
    """As VGG's: fully connected to every pixel of the maps."""
    import keras

    features = keras.layers.GlobalAveragePooling2D(name="avg_pool")(maps)
    if not classes:
        return Top(features, None)
    x = keras.layers.Dense(8, activation="relu", name="fc")(keras.layers.Flatten(name="flatten")(maps))
    return Top(features, keras.layers.Dense(1000, activation="softmax", name="predictions")(x))


def write_official(model, file: Path) -> None:
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(file, "w") as group:
        legacy_h5_format.save_weights_to_hdf5_group(group, model)


def test_a_backbone_is_added_by_one_entry(tmp_path, monkeypatch):
    """All that the rest of the pipeline asks of a row follows from its entry; Keras has weights of this one, too."""
    monkeypatch.setitem(table.BACKBONES, "mobilenet_025", small())
    model, spec = table.BACKBONES["mobilenet_025"].build(weights="random", seed=0)
    assert (spec.feature_width, spec.map_layer, len(spec.blocks)) == (256, "conv_pw_13_relu", 13)
    graphs.save(model, tmp_path)
    assert graphs.load(tmp_path).count_params() == 475_544  # as published for 0.25 MobileNet-224: 0.5 million


@pytest.mark.parametrize("kind", ["official.h5", "today.weights.h5"])
@pytest.mark.parametrize("classes", [True, False])
def test_both_layouts_load_with_and_without_the_classes(tmp_path, kind, classes):
    row = small()
    found = row.architecture()
    weights.draw(found.model, seed=3)
    source = found.model if classes else found.without_classes().model
    if kind == "official.h5":
        write_official(source, tmp_path / kind)
    else:
        source.save_weights(tmp_path / kind)
    model, spec = row.build(weights=str(tmp_path / kind), seed=0, input_size=96)
    assert spec.prediction_layer == ("predictions" if classes else None)
    assert (spec.input_size, model.input_shape[1]) == (96, 96)
    assert spec.weights == {"source": "file", "file": kind, "sha256": artifacts.sha256_file(tmp_path / kind)}
    for received, expected in zip(model.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(received, expected)


def test_classes_of_another_input_size_are_left_out_and_the_rest_is_carried_over(tmp_path):
    row = small(top=flat_top, fixed_top=True)
    found = row.architecture()
    weights.draw(found.model, seed=3)
    write_official(found.model, tmp_path / "official.h5")
    own, spec = row.build(weights=str(tmp_path / "official.h5"), seed=0)
    assert (spec.prediction_layer, spec.feature_layer) == ("predictions", "avg_pool")
    assert own.get_layer("fc").output.shape == (None, 8)
    larger, spec = row.build(weights=str(tmp_path / "official.h5"), seed=0, input_size=96)
    assert spec.prediction_layer is None and spec.feature_width == 256
    for layer in larger.layers:
        for received, expected in zip(layer.get_weights(), own.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.h5", r"there is no file .*none\.h5\. Choose imagenet, random or a file"),
        ("state.pth", r"must end in \.h5"),
        ("text.h5", "is not a whole HDF5 file"),
        ("other.h5", r"does not hold the weights of mobilenet_025, which are \d+ or \d+ arrays: it holds 1"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, name, message):
    for written in ("state.pth", "text.h5"):
        (tmp_path / written).write_text("not weights")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["layer/kernel"] = np.zeros(3)
    with pytest.raises(WeightsError, match=message):
        small().build(weights=str(tmp_path / name), seed=0)


def test_weights_of_another_width_and_numbers_that_are_none_are_refused(tmp_path):
    wider = small(options={"alpha": 0.5}).architecture().model
    write_official(wider, tmp_path / "wider.h5")
    with pytest.raises(WeightsError, match="does not hold the weights of mobilenet_025: Shape mismatch"):
        small().build(weights=str(tmp_path / "wider.h5"), seed=0)
    model = small().architecture().model
    model.layers[-3].set_weights([weight * np.nan for weight in model.layers[-3].get_weights()])
    write_official(model, tmp_path / "nan.h5")
    with pytest.raises(WeightsError, match="conv_preds/.* holds values that are not finite"):
        small().build(weights=str(tmp_path / "nan.h5"), seed=0)


def test_names_and_bytes_do_not_depend_on_what_was_built_before(tmp_path):
    """Half of the layers of InceptionV3 have no name of their own, and EfficientNet's dropout starts anywhere."""
    import keras

    row = BACKBONES["efficientnet_b0"]
    for number in range(2):
        keras.layers.Conv2D(1, 1), keras.layers.Dropout(0.5)
        keras.utils.set_random_seed(number)
        model, _ = row.build(weights="random", seed=0, input_size=32)
        graphs.save(model, tmp_path / str(number))
    assert artifacts.sha256_path(tmp_path / "0") == artifacts.sha256_path(tmp_path / "1")
