"""Facts of test-time augmentation: what is averaged, that training never meets it, and that predict gives it again."""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from pipeline.core import artifacts, seeds
from pipeline.features import feature_store
from pipeline.images import augmentation
from pipeline.images import decode as image_files
from pipeline.images.test_time_augmentation import AskedViews
from pipeline.networks import convnets, graphs
from pipeline.serving import predictor
from pipeline.stages import fine_tune, head, scratch
from pipeline.training import fitting
from tests import photographs
from tests.photographs import VALUES, train

DRAWN = augmentation.AugmentationParams(**VALUES["augmentation"] | {"test_time_views": 3})


def test_the_numbers_of_views_at_test_time_are_those_that_training_never_has():
    assert AskedViews().numbers == (None,)
    assert AskedViews.of(DRAWN, seed=5).numbers == (None, -1, -2, -3)


def test_the_mean_is_that_of_the_views_of_each_image_and_one_view_is_left_as_it_is():
    probabilities = np.random.default_rng(0).random((8, 2)).astype(np.float32)
    asked = AskedViews.of(DRAWN, seed=5)
    np.testing.assert_allclose(asked.mean(probabilities), probabilities.reshape(2, 4, 2).mean(axis=1), rtol=1e-6)
    assert asked.mean(probabilities).dtype == np.float32
    assert asked.mean(probabilities[4:]).tobytes() == asked.mean(probabilities)[1:].tobytes()
    assert AskedViews().mean(probabilities) is probabilities


def test_what_a_run_keeps_of_its_views_brings_them_back():
    asked = AskedViews.of(DRAWN, seed=5)
    assert AskedViews.from_about(asked.about()) == asked
    assert AskedViews().about() == {} and AskedViews.from_about({}) == AskedViews()


def test_views_depend_on_the_bytes_of_a_file_wherever_they_come_from(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(b"bytes")
    asked = AskedViews.of(DRAWN, seed=5)
    received = asked.pixels(pixels, tmp_path / "a.png")
    assert received.shape == (4, 8, 8, 3) and (received[0] == pixels).all()
    np.testing.assert_array_equal(received, asked.pixels(pixels, b"bytes"))
    assert (received != asked.pixels(pixels, b"others")).any()
    sha256 = hashlib.sha256(b"bytes").hexdigest()
    expected = augmentation.augment(pixels, seed=5, sha256=sha256, view=-2, params=DRAWN)
    np.testing.assert_array_equal(received[2], expected)


# --- whole stages --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The working directory of this module's tests: a small project, with a store of its own."""
    root = tmp_path_factory.mktemp("views")
    fitting.prepare(threads=2, seed=0)
    photographs.write_project(root)
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(root):
        patch.setenv("BAKEOFF_FEATURE_STORE", str(root / "store"))
        tiny = convnets.Convnet(photographs.tiny_convnet, input_size=32, smallest=8)
        patch.setitem(convnets.CONVNETS, "small_convnet", tiny)
        yield root


def trained(stage, *, views: int, **block) -> tuple[Path, dict[str, set[int]]]:
    """Run a stage with so many views at test time; return its run, and which views of each part it drew."""
    of_part = {digest: name for name in artifacts.PARTS for digest in artifacts.read_part(name).sha256}
    drawn: dict[str, set[int]] = defaultdict(set)
    draw = augmentation.augment

    def noted(image, *, seed, sha256, view, params):
        drawn[of_part[sha256]].add(view)
        return draw(image, seed=seed, sha256=sha256, view=view, params=params)

    name = stage.__name__.rpartition(".")[2]
    drawing = VALUES["augmentation"] | {"test_time_views": views}
    changes = {"repeats": 1, "augmentation": drawing, name: {**VALUES[name], **block}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmentation, "augment", noted)
        return train(stage, **changes), dict(drawn)


def predicted(run: Path, sources: list) -> np.ndarray:
    return predictor.load(run, store=feature_store.from_environment()).probabilities(sources)


def assert_predicted_as_evaluated(run: Path) -> None:
    """Together, alone and from bytes, to the last bit."""
    part = artifacts.read_part("test")
    expected = artifacts.read_predictions(run / "predictions.npz").test
    assert predicted(run, part.files).tobytes() == expected.tobytes()
    assert predicted(run, [part.files[3].read_bytes()]).tobytes() == expected[3:4].tobytes()


def test_without_views_at_test_time_validation_and_test_images_are_never_augmented(project):
    for stage in (head, fine_tune, scratch):  # fine_tune starts from the head of before
        run, drawn = trained(stage, views=0)
        assert drawn == {"train": {0, 1}}, run  # in an epoch, and on the sheet of augmented images
        assert "test_time" not in artifacts.read_json(run / "frozen.json")
        assert_predicted_as_evaluated(run)


RECIPE = {
    "pooling": "flatten",
    "hidden_units": [8],
    "output": "sigmoid",
    "optimizer": {"name": "rmsprop", "momentum": 0.0},
}


def test_the_mean_over_views_is_evaluated_and_predicted_again_to_the_last_bit(project):
    run, drawn = trained(head, views=2, **RECIPE)
    assert drawn == {"train": {0, 1}, "validation": {-1, -2}, "test": {-1, -2}}
    about = artifacts.read_json(run / "frozen.json")
    assert about["tensors"] == ["block2_dropout_flatten:0:0"] and about["width"] == 7 * 7 * 8
    record = artifacts.read_record(run / "record.json")
    assert record.parameters["augmentation"]["test_time_views"] == 2
    assert_predicted_as_evaluated(run)

    network, seed = graphs.load(run), seeds.child_seed(0, "head")
    assert record.cost.multiply_adds == 3 * graphs.multiply_adds(network)
    params = augmentation.AugmentationParams(**VALUES["augmentation"] | {"test_time_views": 2})
    square = image_files.ImageParams(**VALUES["images"])
    part = artifacts.read_part("validation")
    by_hand = []
    for file, sha256 in zip(part.files, part.sha256, strict=True):
        image = image_files.load(file, size=32, params=square)
        views = [augmentation.augment(image, seed=seed, sha256=sha256, view=view, params=params) for view in (-1, -2)]
        each = np.asarray(network(np.stack([image, *views]).astype(np.float32), training=False))
        assert np.ptp(each, axis=0).max() > 1e-6  # the views differ
        by_hand.append(each.mean(axis=0))
    received = artifacts.read_predictions(run / "predictions.npz").validation[0]
    np.testing.assert_allclose(received, by_hand, atol=1e-5)


@pytest.mark.slow
def test_fine_tuning_and_scratch_average_over_views_as_well(project):
    """With everything unfrozen too, where no part of the network is computed beforehand."""
    trained(head, views=2, **RECIPE)
    for blocks, gradual in ((1, None), ("all", {"epochs": 1})):
        unfreeze = {"from_layer": None, "last_layers": None, "last_blocks": blocks}
        block = {"unfreeze": unfreeze, "layer_decay": 0.5, "gradual": gradual, "learning_rate": 0.001, "epochs": 2}
        run, drawn = trained(fine_tune, views=2, **block)
        assert drawn == {"train": {0, 1}, "validation": {-1, -2}, "test": {-1, -2}}
        assert_predicted_as_evaluated(run)
    run, drawn = trained(scratch, views=1)
    assert drawn == {"train": {0, 1}, "validation": {-1}, "test": {-1}}
    assert_predicted_as_evaluated(run)
