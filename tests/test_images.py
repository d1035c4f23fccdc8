"""Facts of decoding and augmentation, on small files of every kind."""

from __future__ import annotations

import io
import random
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
    test_time_views=0,
)
NOTHING = AugmentationParams(
    views=None,
    horizontal_flip=False,
    vertical_flip=False,
    quarter_turns=False,
    brightness=0.0,
    contrast=0.0,
    test_time_views=0,
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
    found = images.inspect(path)
    facts = (found.width, found.height, found.mode, found.frames, found.turned, found.problem)
    assert facts == (60, 40, "RGB", 1, False, "")
    assert found.thumbnail.shape == (32, 32)
    assert abs(found.thumbnail.mean() - np.asarray(pattern().convert("L")).mean()) < 2


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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_exif_orientation_is_turned_upright_once(tmp_path, orientation, format):
    """The stored image is the upright one, turned back: what is read must be the upright one again."""
    upright = np.zeros((24, 32, 3), dtype=np.uint8)
    upright[:12, :16], upright[:12, 16:], upright[12:, :16] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    quarter, other = Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270
    back = {quarter: other, other: quarter}
    stored = Image.fromarray(upright)
    if orientation in images.TURNS:
        turn = images.TURNS[orientation]
        stored = stored.transpose(back.get(turn, turn))
    exif = stored.getexif()
    exif[0x0112] = orientation
    options = {"quality": 95} if format in ("JPEG", "WEBP") else {}
    path = tmp_path / "turned"
    path.write_bytes(encoded(stored, format, exif=exif, **options))
    found = images.inspect(path)
    assert (found.width, found.height, found.turned) == (32, 24, orientation != 1)
    read = images.load(path, size=24, params=ImageParams(square="warp", interpolation="nearest")).astype(int)
    expected = [[250, 0, 0], [0, 250, 0], [0, 0, 250], [0, 0, 0]]
    corners = [read[5, 5], read[5, 18], read[18, 5], read[18, 18]]
    assert np.abs(np.array(corners) - expected).max() < 40


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_leaves_the_image_as_it_is(tmp_path):
    path = tmp_path / "damaged.jpg"
    content = encoded(pattern(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    path.write_bytes(content)
    assert images.inspect(path).problem == ""
    assert not images.inspect(path).turned


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_known_range_are_refused(tmp_path, mode):
    path = tmp_path / "wide.tiff"
    path.write_bytes(encoded(Image.new(mode, (8, 8), 3), "TIFF"))
    assert f"pixels of mode {mode} have no known range" in images.inspect(path).problem
    with pytest.raises(images.ImageError, match="no known range"):
        images.load(path, size=8, params=CROP)


def test_of_an_animation_the_first_frame_is_read_and_the_others_are_counted(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        path = tmp_path / f"animated.{format}"
        path.write_bytes(encoded(frames[0], format, save_all=True, append_images=frames[1:], **options))
        assert images.inspect(path).frames == 3
        assert (images.load(path, size=8, params=CROP) == [255, 0, 0]).all(), format


@pytest.mark.parametrize("size", [(10000, 9500), (20000, 9500)], ids=["warned of", "refused by Pillow"])
def test_a_decompression_bomb_is_not_decoded(tmp_path, monkeypatch, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(encoded(Image.new("1", size)))
    assert path.stat().st_size < 100_000
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda self: pytest.fail("it was decoded"))
    assert images.inspect(path).problem == "more than 89,478,485 pixels"
    with pytest.raises(images.ImageError, match=r"bomb\.png: more than"):
        images.load(path, size=8, params=CROP)


def test_postscript_is_never_interpreted(tmp_path):
    path = tmp_path / "page.eps"
    path.write_bytes(encoded(pattern(), "EPS"))
    assert images.inspect(path).problem == "not an image, or of a format that is not read here"


def test_a_reason_names_no_place_of_this_machine(tmp_path):
    path = tmp_path / "folder.png"
    path.mkdir()
    assert images.inspect(path).problem == "cannot be read whole (Is a directory)"
    assert images.inspect(tmp_path / "none.png").problem == "file not found"


def test_a_thumbnail_keeps_the_proportions(tmp_path):
    path = tmp_path / "wide.png"
    pattern(10, 400).save(path)
    assert images.thumbnail(path, side=40).shape == (1, 40, 3)
    assert images.thumbnail(path, side=800).shape == (20, 800, 3)


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


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_of_every_format_are_read_or_refused_alike_by_inspection_and_loading(tmp_path):
    """What inspection lets pass, training reads; nothing else is raised; and no reason names this machine."""
    rng, file = random.Random(0), tmp_path / "damaged"
    image = pattern(24, 24)
    turned = image.getexif()
    turned[0x0112] = 6
    whole = [encoded(image, format) for format in images.FORMATS if format != "DIB"]
    whole += [encoded(image, format, exif=turned) for format in ("JPEG", "PNG", "TIFF", "WEBP")]
    whole += [encoded(image.quantize(8), "PNG", transparency=1), encoded(image.convert("CMYK"), "JPEG")]
    outcomes = set()
    for number in range(600):
        content = bytearray(whole[number % len(whole)])
        for _ in range(rng.choice((1, 2, 10))):
            place = rng.randrange(rng.choice((min(60, len(content)), len(content))))
            content[place : place + rng.choice((1, 1, 20))] = rng.randbytes(rng.choice((1, 1, 10)))
        file.write_bytes(content)
        found = images.inspect(file)
        outcomes.add(bool(found.problem))
        assert str(tmp_path) not in found.problem
        assert " at 0x" not in found.problem
        if found.problem:
            with pytest.raises(images.ImageError):
                images.load(file, size=8, params=CROP)
        else:
            assert images.load(file, size=8, params=CROP).shape == (8, 8, 3)
    assert outcomes == {True, False}
