"""Facts of augmentation: views are pure functions, maps are exact where they can be, borders are filled as by NumPy."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from pipeline.core import params
from pipeline.images import augmentation
from pipeline.images.augmentation import AugmentationParams, augment, moved

NOTHING = AugmentationParams(
    views=None,
    horizontal_flip=False,
    vertical_flip=False,
    quarter_turns=False,
    rotation=0.0,
    width_shift=0.0,
    height_shift=0.0,
    shear=0.0,
    zoom=0.0,
    fill="reflect",
    brightness=0.0,
    contrast=0.0,
    test_time_views=0,
)
# All there was before there were affine maps.
FLIPS_AND_LIGHT = NOTHING.model_copy(
    update={"horizontal_flip": True, "vertical_flip": True, "quarter_turns": True, "brightness": 0.2, "contrast": 0.2}
)
EVERYTHING = FLIPS_AND_LIGHT.model_copy(
    update={"rotation": 20.0, "width_shift": 0.1, "height_shift": 0.1, "shear": 10.0, "zoom": 0.2}
)
FILLS = ("nearest", "constant", "reflect", "wrap")


def noise(height: int = 24, width: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(size: int = 48) -> np.ndarray:
    """An image without edges, uint8 (size, size, 3): interpolation between its pixels is nearly the image itself."""
    y, x = np.mgrid[:size, :size] / size
    waves = [np.sin(3 * x + channel) * np.cos(2 * y - channel) for channel in range(3)]
    return np.rint(127 + 120 * np.stack(waves, axis=2)).astype(np.uint8)


def changed(**changes) -> AugmentationParams:
    return AugmentationParams.model_validate({**NOTHING.model_dump(), **changes})


def view_of(
    image: np.ndarray, number: int, given: AugmentationParams, *, seed: int = 0, sha256: str = "aa"
) -> np.ndarray:
    return augment(image, seed=seed, sha256=sha256, view=number, params=given)


# --- views ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [FLIPS_AND_LIGHT, EVERYTHING], ids=["flips and light", "everything"])
def test_a_view_is_a_pure_function_of_image_seed_and_number(given):
    image = noise()
    untouched = image.copy()
    views = [view_of(image, number, given) for number in range(12)]
    again = [view_of(image, number, given) for number in reversed(range(12))]
    assert all((a == b).all() for a, b in zip(views, reversed(again), strict=True))
    assert len({view.tobytes() for view in views}) == 12
    assert (views[0] != view_of(image, 0, given, seed=1)).any()
    assert (views[0] != view_of(image, 0, given, sha256="ab")).any()
    assert (image == untouched).all()


def test_augmentation_that_is_all_off_changes_nothing():
    image = noise()
    for number in range(10):
        assert (view_of(image, number, NOTHING) == image).all()


def before_affine_maps(
    image: np.ndarray, *, seed: int, sha256: str, view: int, given: AugmentationParams
) -> np.ndarray:
    """What a view was before there were affine maps, with arithmetic on every pixel."""
    key = hashlib.sha256(f"{seed}/{sha256}/{view}".encode()).digest()
    draws = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little"))).random(5)
    if given.horizontal_flip and draws[0] < 0.5:
        image = image[:, ::-1]
    if given.vertical_flip and draws[1] < 0.5:
        image = image[::-1]
    if given.quarter_turns:
        image = np.rot90(image, k=int(draws[2] * 4))
    shift = 255 * given.brightness * (2 * draws[3] - 1)
    factor = 1 + given.contrast * (2 * draws[4] - 1)
    mean = image.mean()
    return np.clip(np.rint((image.astype(float) - mean) * factor + mean + shift), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", [0, 7])
def test_without_affine_maps_every_view_is_what_it_was_before_there_were_any(seed):
    image = noise()
    for number in range(60):
        expected = before_affine_maps(image, seed=seed, sha256="aa", view=number, given=FLIPS_AND_LIGHT)
        np.testing.assert_array_equal(view_of(image, number, FLIPS_AND_LIGHT, seed=seed), expected)


def test_switching_a_change_on_leaves_the_draws_of_the_others(monkeypatch):
    """With all of them on, flips, turns and light act on the moved image as they did on the image."""
    image = noise()
    received = []

    def remembered(image, **map_):
        received.append(map_)
        return moved(image, **map_)

    monkeypatch.setattr(augmentation, "moved", remembered)
    for number in range(20):
        view = view_of(image, number, EVERYTHING)
        there = moved(image, **received[-1])
        np.testing.assert_array_equal(
            view, before_affine_maps(there, seed=0, sha256="aa", view=number, given=FLIPS_AND_LIGHT)
        )
    for name, largest in (("rotation", 20.0), ("right", 2.4), ("down", 2.4), ("shear", 10.0)):
        drawn = np.array([map_[name] for map_ in received])
        assert np.abs(drawn).max() <= largest and drawn.min() < -0.3 * largest and drawn.max() > 0.3 * largest
    zooms = np.array([map_["zoom"] for map_ in received])
    assert (np.abs(zooms - 1) <= 0.2).all()
    assert (zooms[:, 0] != zooms[:, 1]).all()
    amounts = [map_[name] / largest for map_ in received for name, largest in (("rotation", 20.0), ("shear", 10.0))]
    assert len(set(amounts)) == len(amounts)  # each has a draw of its own


@pytest.mark.parametrize("fill", FILLS)
def test_views_keep_shape_dtype_and_range(fill):
    wild = changed(rotation=180.0, width_shift=1.0, height_shift=1.0, shear=80.0, zoom=0.9, fill=fill, brightness=1.0)
    for number in range(20):
        view = view_of(noise(17, 17), number, wild)
        assert view.shape == (17, 17, 3) and view.dtype == np.uint8 and view.flags.c_contiguous


def test_flips_and_turns_reach_all_eight_symmetries_of_a_square_and_nothing_else():
    image = noise(16, 16)
    turned = [np.rot90(image, k) for k in range(4)]
    symmetries = {np.ascontiguousarray(view).tobytes() for turn in turned for view in (turn, turn[:, ::-1])}
    moves = changed(horizontal_flip=True, vertical_flip=True, quarter_turns=True)
    assert {view_of(image, number, moves).tobytes() for number in range(200)} == symmetries


def test_brightness_and_contrast_stay_within_their_bounds():
    image = noise()
    for number in range(30):
        change = view_of(image, number, changed(brightness=0.1)).astype(int) - image
        assert np.abs(change).max() <= 26
    middle = np.clip(image, 100, 150)
    for number in range(30):
        drawn = view_of(middle, number, changed(contrast=0.3))
        assert 0.69 < drawn.std() / middle.std() < 1.31
        assert abs(drawn.mean() - middle.mean()) < 1


# --- maps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", FILLS)
def test_a_map_that_is_none_gives_the_image_itself(fill):
    image = noise()
    assert moved(image, fill=fill) is image
    assert moved(image, rotation=360.0, fill=fill) is image


@pytest.mark.parametrize("size", [1, 2, 15, 16])
@pytest.mark.parametrize("turns", [-3, -2, -1, 1, 2, 3])
def test_quarter_turns_are_exact_and_counterclockwise(size, turns):
    image = noise(size, size)
    np.testing.assert_array_equal(moved(image, rotation=90.0 * turns, fill="constant"), np.rot90(image, turns))


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize(("right", "down"), [(5, 0), (0, 3), (-4, 7), (24, -1), (-30, 60)])
def test_whole_shifts_move_pixels_and_fill_the_border_as_numpy_pads(right, down, fill):
    image = noise(20, 24)
    mode = {"nearest": "edge", "constant": "constant", "reflect": "symmetric", "wrap": "wrap"}[fill]
    wide = 80
    padded = np.pad(image, ((wide, wide), (wide, wide), (0, 0)), mode=mode)
    expected = padded[wide - down : wide - down + 20, wide - right : wide - right + 24]
    np.testing.assert_array_equal(moved(image, right=right, down=down, fill=fill), expected)


def test_half_a_pixel_is_the_mean_of_two_rounded_down():
    row = np.array([[10, 20, 41, 41]], dtype=np.uint8)[..., np.newaxis].repeat(3, axis=2)
    assert moved(row, right=0.5, fill="nearest")[0, :, 0].tolist() == [10, 15, 30, 41]
    assert moved(row, right=0.5, fill="constant")[0, :, 0].tolist() == [5, 15, 30, 41]


def test_zoom_multiplies_coordinates_for_each_axis_alone():
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    image[10:30, 10:30] = 200

    def extent(**map_) -> tuple[int, int]:
        inside = moved(image, fill="constant", **map_)[..., 0] > 100
        return int(inside.any(axis=0).sum()), int(inside.any(axis=1).sum())

    assert extent() == (20, 20)
    assert extent(zoom=(0.5, 1.0)) == (40, 20)  # in: twice as wide
    assert extent(zoom=(1.0, 2.0)) == (20, 10)  # out: half as high


def test_shear_moves_rows_sideways_and_in_proportion_to_their_height():
    image = np.zeros((41, 41, 3), dtype=np.uint8)
    image[:, 20] = 255
    leaning = moved(image, shear=20.0, fill="constant")[..., 0].astype(float)
    centres = (leaning * np.arange(41)).sum(axis=1) / leaning.sum(axis=1)
    steps = np.diff(centres[2:-2])
    np.testing.assert_allclose(steps, np.sin(np.deg2rad(20.0)), atol=0.05)
    assert centres[20] == pytest.approx(20, abs=0.01)


MAPS = [
    {"rotation": 33.0},
    {"rotation": -7.0, "right": 3.3, "down": -2.2},
    {"shear": 25.0, "zoom": (0.8, 1.3)},
    {"rotation": 15.0, "right": -1.7, "down": 5.1, "shear": -12.0, "zoom": (1.2, 0.9)},
]


@pytest.mark.parametrize("map_", MAPS, ids=["rotation", "rotation and shift", "shear and zoom", "all"])
@pytest.mark.parametrize("fill", FILLS)
def test_maps_agree_with_scipy_to_the_rounding(map_, fill):
    from scipy import ndimage

    image = smooth()
    matrix = np.array(
        augmentation._matrix(
            map_.get("rotation", 0.0),
            map_.get("right", 0.0),
            map_.get("down", 0.0),
            map_.get("shear", 0.0),
            map_.get("zoom", (1.0, 1.0)),
        )
    )
    # SciPy counts rows first, and the first pixel's centre is at 0.
    linear, shift = matrix[::-1, 1::-1], matrix[::-1, 2]
    centre = (np.array(image.shape[:2]) - 1) / 2
    mode = {"nearest": "nearest", "constant": "grid-constant", "reflect": "reflect", "wrap": "grid-wrap"}[fill]
    expected = np.stack(
        [
            ndimage.affine_transform(channel, linear, centre + shift - linear @ centre, order=1, mode=mode)
            for channel in image.astype(float).transpose(2, 0, 1)
        ],
        axis=2,
    )
    difference = expected - moved(image, fill=fill, **map_)
    assert difference.min() > -1e-6 and difference.max() < 1 + 1e-6


@pytest.mark.parametrize("map_", MAPS, ids=["rotation", "rotation and shift", "shear and zoom", "all"])
def test_the_matrix_is_that_of_keras_image_data_generator(map_):
    """Rotation, shift, shear and zoom as Keras writes them down, for x and y, multiplied one by one."""
    angle, lean = np.deg2rad(map_.get("rotation", 0.0)), np.deg2rad(map_.get("shear", 0.0))
    tx, ty = -map_.get("right", 0.0), -map_.get("down", 0.0)
    zx, zy = map_.get("zoom", (1.0, 1.0))
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    shift = np.array([[1, 0, tx], [0, 1, ty], [0, 0, 1]])
    shear = np.array([[1, -np.sin(lean), 0], [0, np.cos(lean), 0], [0, 0, 1]])
    zoom = np.diag([zx, zy, 1])
    found = augmentation._matrix(map_.get("rotation", 0.0), -tx, -ty, map_.get("shear", 0.0), (zx, zy))
    np.testing.assert_allclose(found, (rotation @ shift @ shear @ zoom)[:2], atol=1e-11)


# --- params --------------------------------------------------------------------------------------------------------


def test_what_is_drawn_is_said_in_the_names_of_the_params():
    assert augmentation.in_words(NOTHING) == "nothing is changed"
    assert augmentation.in_words(changed(horizontal_flip=True, brightness=0.1)) == "horizontal_flip, brightness 0.1"
    assert augmentation.in_words(changed(rotation=15.0, zoom=0.2)) == "rotation 15, zoom 0.2, fill reflect"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotation": 200.0}, "augmentation.rotation must be less than or equal to 180, received 200.0"),
        ({"shear": 90.0}, "augmentation.shear must be less than 90, received 90.0"),
        ({"zoom": 1.0}, "augmentation.zoom must be less than 1, received 1.0"),
        ({"width_shift": -0.1}, "augmentation.width_shift must be greater than or equal to 0"),
        ({"fill": "mirror"}, "augmentation.fill must be 'nearest', 'constant', 'reflect' or 'wrap', received 'mirror'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(changes, message):
    with pytest.raises(params.ParamsError, match=message):
        params.parse({**NOTHING.model_dump(), **changes}, AugmentationParams, where="augmentation")
