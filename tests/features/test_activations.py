"""Facts of kept activations: each view is computed once, drift is noticed, and a lost row is computed again."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.core import artifacts
from pipeline.features import activations, inference
from pipeline.features.activations import Activations, DriftError, FrozenPart, View
from pipeline.images import augmentation, decode

COMPUTE = inference.ComputeParams(threads=2, batch_size=4, engine="openvino", precision="float32")
SQUARE = decode.ImageParams(square="crop", fill="edge", interpolation="bilinear")
DRAWN = augmentation.AugmentationParams(
    views=3,
    horizontal_flip=True,
    vertical_flip=True,
    quarter_turns=True,
    rotation=10.0,
    width_shift=0.1,
    height_shift=0.1,
    shear=5.0,
    zoom=0.1,
    fill="reflect",
    brightness=0.2,
    contrast=0.2,
    test_time_views=0,
)


@pytest.fixture(scope="module")
def network():
    import keras

    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, keras.layers.AveragePooling2D(4)(inputs))


@pytest.fixture
def files(tmp_path, monkeypatch) -> list[View]:
    """Six images of noise; the working directory, and so the store, is a new one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    views = []
    for number in range(6):
        file = tmp_path / f"{number}.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
        views.append(View(file, artifacts.sha256_file(file), None))
    return views


@pytest.fixture
def opened(network):
    def opened(*, seed: int = 0, drawn=DRAWN, model=None) -> Activations:
        part = FrozenPart(build=lambda: model or network, sha256="n", tensors=("pool:0:0",), input_size=8)
        return Activations(part, compute=COMPUTE, image_params=SQUARE, augmentation=drawn, seed=seed)

    return opened


def numbered(views: list[View], *numbers: int) -> list[View]:
    return [view._replace(number=number) for view in views for number in numbers]


def expected(view: View, *, seed: int = 0, drawn=DRAWN) -> np.ndarray:
    image = decode.load(view.file, size=8, params=SQUARE)
    if view.number is not None:
        image = augmentation.augment(image, seed=seed, sha256=view.sha256, view=view.number, params=drawn)
    return image.reshape(2, 4, 2, 4, 3).mean(axis=(1, 3)).ravel()


def test_rows_are_what_the_network_makes_of_each_view(files, opened):
    views = [*files, *numbered(files, 0, 1, 2)]
    with opened() as rows:
        assert rows.keep(views, label="all") == 24
        received = rows.rows(views[::-1])
    np.testing.assert_allclose(received, [expected(view) for view in views[::-1]], rtol=1e-5)


def test_only_what_is_missing_is_computed(files, opened):
    with opened() as rows:
        assert rows.keep(files[:4], label="") == 4
    with opened() as rows:
        assert rows.keep(files, label="") == 2
        assert rows.keep([*files, *files], label="") == 0
        assert rows.keep(numbered(files, 0), label="") == 6


def test_views_of_another_seed_or_augmentation_are_other_rows_and_images_are_the_same(files, opened):
    with opened() as rows:
        rows.keep([*files, *numbered(files, 0)], label="")
    weaker = DRAWN.model_copy(update={"brightness": 0.1})
    for changes in ({"seed": 1}, {"drawn": weaker}):
        with opened(**changes) as rows:
            assert rows.keep([*files, *numbered(files, 0)], label="") == 6
            np.testing.assert_allclose(
                rows.rows(numbered(files, 0)), [expected(view, **changes) for view in numbered(files, 0)], rtol=1e-5
            )
    with opened(drawn=DRAWN.model_copy(update={"views": None, "test_time_views": 2})) as rows:
        assert rows.keep(numbered(files, 0), label="") == 0  # how many views there are changes none of them


def test_a_row_that_was_lost_is_computed_again(files, opened):
    with opened() as rows:
        rows.keep(files, label="")
        rows._store.clear()
        np.testing.assert_allclose(rows.rows(files), [expected(view) for view in files], rtol=1e-5)


def test_without_room_the_same_rows_are_computed_whenever_asked_for(files, opened, monkeypatch, capsys):
    monkeypatch.setenv("BAKEOFF_FEATURE_STORE_GB", "0")
    with opened() as rows:
        assert rows.keep(files, label="six images") is None
        assert "six images: 0.0 GB do not fit into the feature store's 0 GB" in capsys.readouterr().out
        np.testing.assert_allclose(rows.rows(files), [expected(view) for view in files], rtol=1e-5)


def test_another_result_than_the_kept_one_stops_the_run(files, opened):
    import keras

    with opened() as rows:
        rows.keep(files, label="")
        space = rows._space.directory
    about = artifacts.read_json(space / "space.json")
    about["environment"]["cpu"] = "another one"
    artifacts.write_json(space / "space.json", about)
    for conversion in space.parent.glob("*/openvino-*"):
        conversion.rename(conversion.with_name("gone"))
    inputs = keras.Input((8, 8, 3))
    drifted = keras.Model(inputs, keras.layers.AveragePooling2D(4)(inputs * (1 + 1e-6)))
    with opened(model=drifted) as rows, pytest.raises(DriftError) as error:
        rows.keep(files, label="")
    message = str(error.value)
    assert "cpu another one -> " in message and "make clean-features" in message and ".png differs by up to" in message


def test_rows_of_its_own_do_not_hide_that_others_drifted(files, opened):
    with opened() as rows:  # as another machine would compute them
        rows._space.add([rows._key(view) for view in files[:3]], 2 * rows.rows(files[:3]))
    with opened() as rows:
        rows.keep(files[3:], label="")
        rows.keep(files[3:], label="")
        with pytest.raises(DriftError):
            rows.keep(files[:3], label="")


def test_a_result_that_is_equal_to_the_last_bit_passes_whatever_computed_it(files, opened):
    with opened() as rows:
        rows.keep(files, label="")
        space = rows._space.directory
    about = artifacts.read_json(space / "space.json")
    artifacts.write_json(space / "space.json", about | {"environment": {"cpu": "another one"}})
    with opened() as rows:
        assert rows.keep(files, label="") == 0


def test_a_part_of_the_split_is_viewed_as_it_is(files):
    part = artifacts.Part(
        name="train",
        classes=("a",),
        paths=("train/a/1.png",),
        sha256=("12",),
        strata=("",),
        groups=("",),
        labels=None,
    )
    assert activations.originals(part) == [View(artifacts.SPLIT / "train/a/1.png", "12", None)]
