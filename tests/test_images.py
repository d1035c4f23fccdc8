"""Facts of decoding and augmentation, on small files of every kind."""

from __future__ import annotations

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

from pipeline import images
from pipeline.images import AugmentationParams, ImageParams

CROP = ImageParams(square="crop", interpolation="bilinear")
EVERYTHING = AugmentationParams(
    views=None,
    horizontal_flip=True,
    vertical_flip=True,
    quarter_turns=True,
    brightness=0.2,
    contrast=0.2,
)
NOTHING = AugmentationParams(
    views=None,
    horizontal_flip=False,
    vertical_flip=False,
    quarter_turns=False,
    brightness=0.0,
    contrast=0.0,
)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def read_one(source: bytes) -> np.ndarray:
    return images.load(source, size=8, params=CROP)[np.newaxis]


def pattern(height: int = 40, width: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "CMYK", "1"])
def test_every_mode_becomes_rgb_bytes(mode):
    format = "TIFF" if mode == "CMYK" else "PNG"
    array = images.load(encoded(pattern().convert(mode), format), size=32, params=CROP)
    assert array.shape == (32, 32, 3)
    assert array.dtype == np.uint8


def test_sixteen_bit_grey_keeps_its_upper_byte():
    grey = Image.fromarray(np.full((8, 8), 0xAB12, dtype=np.uint16))
    assert (images.load(encoded(grey), size=8, params=CROP) == 0xAB).all()


def test_transparency_lies_on_white():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (images.load(encoded(clear), size=8, params=CROP) == 255).all()


def test_exif_orientation_is_applied():
    image = Image.fromarray(np.repeat(np.array([[[250], [5]]], dtype=np.uint8), 16, axis=0).repeat(8, axis=1).repeat(3, 2))
    exif = image.getexif()
    exif[0x0112] = 3  # upside down: left and right change places
    turned = images.load(encoded(image, "JPEG", exif=exif, quality=95), size=16, params=CROP)
    assert turned[:, :4].mean() < 60 < 200 < turned[:, -4:].mean()


def test_crop_cuts_out_the_centre_and_warp_keeps_everything():
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 200
    file = encoded(Image.fromarray(wide))
    assert (images.load(file, size=10, params=CROP) == 200).all()
    warped = images.load(file, size=30, params=ImageParams(square="warp", interpolation="nearest"))
    assert (warped[:, :10] == 0).all() and (warped[:, 10:20] == 200).all()


def test_an_image_of_the_right_size_is_not_resampled():
    square = pattern(24, 24)
    assert (images.load(encoded(square), size=24, params=CROP) == np.asarray(square)).all()


@pytest.mark.parametrize("content", [b"", b"no image", encoded(pattern())[:500]], ids=["empty", "text", "truncated"])
def test_a_broken_file_is_named_in_the_error(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(images.ImageError, match="broken.png"):
        images.load(path, size=8, params=CROP)
    assert images.inspect(path).problem


def test_inspection_of_a_sound_file_has_no_problem(tmp_path):
    path = tmp_path / "sound.png"
    pattern().save(path)
    assert images.inspect(path) == images.Inspection(60, 40, "RGB", "")


@pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
def test_batches_hold_every_image_once_in_order(batch_size):
    files = [encoded(Image.new("RGB", (8, 8), (number, 0, 0))) for number in range(7)]
    found = list(images.batches(files, read_one, batch_size=batch_size, threads=2))
    assert [len(batch) for batch in found[:-1]] == [batch_size] * (len(found) - 1)
    assert np.concatenate(found)[:, 0, 0, 0].tolist() == list(range(7))


def test_no_images_make_no_batches():
    assert list(images.batches([], read_one, batch_size=4, threads=2)) == []


def test_an_item_of_several_views_stays_in_one_batch():
    counted = list(images.batches(range(4), lambda n: np.full((n, 1), n), batch_size=3, threads=2))
    assert [batch[:, 0].tolist() for batch in counted] == [[1, 2, 2], [3, 3, 3]]


def test_images_are_read_two_batches_ahead_and_no_further():
    read = []
    batches = images.batches(range(100), lambda n: read.append(n) or np.zeros((1, 1)), batch_size=4, threads=1)
    next(batches)
    time.sleep(0.2)  # the reading thread has nothing left to do long before
    assert len(read) == 12
    batches.close()


def test_a_grey_image_is_resized_like_its_three_equal_channels():
    grey = pattern(37, 23).convert("L")
    params = images.ImageParams(square="crop", interpolation="bicubic")
    expected = images.load(encoded(grey.convert("RGB")), size=16, params=params)
    np.testing.assert_array_equal(images.load(encoded(grey), size=16, params=params), expected)


@pytest.mark.parametrize("error", [struct.error, IndexError, TypeError, EOFError, KeyError])
def test_whatever_pillow_raises_for_a_damaged_file_is_an_image_error(monkeypatch, tmp_path, error):
    file = tmp_path / "damaged.png"
    file.write_bytes(encoded(pattern(8, 8)))
    monkeypatch.setattr(Image.Image, "load", lambda self: (_ for _ in ()).throw(error("broken")))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda self: (_ for _ in ()).throw(error("broken")))
    with pytest.raises(images.ImageError, match=r"damaged\.png: cannot be read whole"):
        images.load(file, size=8, params=CROP)
    assert "cannot be read whole" in images.inspect(file).problem


def test_a_view_is_a_pure_function_of_image_seed_and_number():
    image = np.asarray(pattern(24, 24))
    views = [images.augment(image, seed=0, sha256="aa", view=view, params=EVERYTHING) for view in range(12)]
    again = [images.augment(image, seed=0, sha256="aa", view=view, params=EVERYTHING) for view in reversed(range(12))]
    assert all((a == b).all() for a, b in zip(views, reversed(again), strict=True))
    assert len({view.tobytes() for view in views}) == 12
    assert (views[0] != images.augment(image, seed=1, sha256="aa", view=0, params=EVERYTHING)).any()
    assert (views[0] != images.augment(image, seed=0, sha256="ab", view=0, params=EVERYTHING)).any()


def test_augmentation_that_is_all_off_changes_nothing():
    image = np.asarray(pattern(24, 24))
    for view in range(10):
        assert (images.augment(image, seed=0, sha256="aa", view=view, params=NOTHING) == image).all()


def test_flips_and_turns_reach_all_eight_symmetries_of_a_square_and_nothing_else():
    image = np.asarray(pattern(16, 16))
    turned = [np.rot90(image, k) for k in range(4)]
    symmetries = {np.ascontiguousarray(view).tobytes() for turn in turned for view in (turn, turn[:, ::-1])}
    moves = NOTHING.model_copy(update={"horizontal_flip": True, "vertical_flip": True, "quarter_turns": True})
    drawn = {images.augment(image, seed=0, sha256="aa", view=v, params=moves).tobytes() for v in range(200)}
    assert drawn == symmetries


def test_brightness_and_contrast_stay_within_their_bounds():
    image = np.asarray(pattern(24, 24))
    light = NOTHING.model_copy(update={"brightness": 0.1})
    for view in range(30):
        change = images.augment(image, seed=0, sha256="aa", view=view, params=light).astype(int) - image
        assert np.abs(change).max() <= 26
    contrast = NOTHING.model_copy(update={"contrast": 0.3})
    middle = np.clip(image, 100, 150)
    for view in range(30):
        drawn = images.augment(middle, seed=0, sha256="aa", view=view, params=contrast)
        assert 0.69 < drawn.std() / middle.std() < 1.31
        assert abs(drawn.mean() - middle.mean()) < 1
