"""Facts of decoding and of making square, on small files of every kind."""

from __future__ import annotations

import io
import random
import struct
import time

import numpy as np
import pytest
from PIL import Image

from pipeline.core import params
from pipeline.images import decode
from pipeline.images.decode import ImageParams

CROP = ImageParams(square="crop", fill="edge", interpolation="bilinear")


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def made(**changes) -> ImageParams:
    return params.parse({**CROP.model_dump(), **changes}, ImageParams, where="images")


def read_one(source: bytes) -> np.ndarray:
    return decode.load(source, size=8, params=CROP)[np.newaxis]


def pattern(height: int = 40, width: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "CMYK", "1"])
def test_every_mode_becomes_rgb_bytes(mode):
    format = "TIFF" if mode == "CMYK" else "PNG"
    array = decode.load(encoded(pattern().convert(mode), format), size=32, params=CROP)
    assert array.shape == (32, 32, 3)
    assert array.dtype == np.uint8


def cmyk_red() -> bytes:
    return encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")


def adobe_red() -> bytes:
    """A photograph for print: JPEG with Adobe's marker, which stores the inks inverted."""
    return encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)


def palette_color() -> bytes:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    return encoded(image)


def clear_palette_color() -> bytes:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    return encoded(image, transparency=1)


def half_clear_palette_color() -> bytes:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 0, 200, 30])
    return encoded(image, transparency=bytes([255, 51]))


def clear_rgb_color() -> bytes:
    return encoded(Image.new("RGB", (8, 8), (10, 200, 30)), transparency=(10, 200, 30))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (cmyk_red(), (255, 0, 0)),
        (adobe_red(), (255, 0, 0)),
        (palette_color(), (10, 200, 30)),
        (clear_palette_color(), (255, 255, 255)),
        (half_clear_palette_color(), (204, 244, 210)),  # a fifth of the color on white
        (clear_rgb_color(), (255, 255, 255)),
        (encoded(Image.new("LA", (8, 8), (100, 255))), (100, 100, 100)),
        (encoded(Image.new("LA", (8, 8), (100, 0))), (255, 255, 255)),
        (encoded(Image.new("LA", (8, 8), (55, 51))), (215, 215, 215)),
        (encoded(Image.new("1", (8, 8), 1)), (255, 255, 255)),
        (encoded(Image.new("1", (8, 8), 0)), (0, 0, 0)),
    ],
    ids=[
        "CMYK",
        "CMYK of Adobe",
        "P",
        "P clear",
        "P half clear",
        "RGB clear",
        "LA",
        "LA clear",
        "LA half clear",
        "white of 1 bit",
        "black of 1 bit",
    ],
)
def test_every_mode_keeps_its_colors_and_lies_on_white(source, expected):
    found = decode.load(source, size=8, params=CROP).astype(int)
    assert np.abs(found - expected).max() <= 2


def test_sixteen_bit_grey_keeps_its_upper_byte():
    grey = Image.fromarray(np.full((8, 8), 0xAB12, dtype=np.uint16))
    assert (decode.load(encoded(grey), size=8, params=CROP) == 0xAB).all()


@pytest.mark.parametrize(
    "source",
    [
        b"P5 2 2 65535\n" + bytes([0, 0, 0xAB, 0x12, 0xFF, 0xFF, 0x01, 0]),
        b"P2 2 2 65535\n0 43794 65535 256\n",
        b"P5 2 2 4095\n" + bytes([0, 0, 0x0A, 0xB1, 0x0F, 0xFF, 0, 16]),  # twelve bits, as cameras write them
    ],
    ids=["binary", "text", "12 bits"],
)
def test_sixteen_bit_grey_of_pgm_keeps_its_upper_byte(tmp_path, source):
    file = tmp_path / "grey.pgm"
    file.write_bytes(source)
    assert decode.load(file, size=2, params=CROP)[:, :, 0].reshape(-1).tolist() == [0, 0xAB, 0xFF, 1]
    assert decode.inspect(file).problem == ""
    assert decode.thumbnail(file, side=2).max() == 255


def test_signed_pixels_have_no_known_range(tmp_path):
    signed = encoded(Image.fromarray(np.full((8, 8), 300, dtype=np.uint16)), "TIFF", tiffinfo={339: 2})
    with pytest.raises(decode.ImageError, match="pixels of mode I have no known range"):
        decode.load(signed, size=8, params=CROP)


def test_transparency_lies_on_white():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (decode.load(encoded(clear), size=8, params=CROP) == 255).all()


def test_exif_orientation_is_applied():
    image = Image.fromarray(
        np.repeat(np.array([[[250], [5]]], dtype=np.uint8), 16, axis=0).repeat(8, axis=1).repeat(3, 2)
    )
    exif = image.getexif()
    exif[0x0112] = 3  # upside down: left and right change places
    turned = decode.load(encoded(image, "JPEG", exif=exif, quality=95), size=16, params=CROP)
    assert turned[:, :4].mean() < 60 < 200 < turned[:, -4:].mean()


def test_crop_cuts_out_the_centre_and_warp_keeps_everything():
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 200
    file = encoded(Image.fromarray(wide))
    assert (decode.load(file, size=10, params=CROP) == 200).all()
    warped = decode.load(file, size=30, params=made(square="warp", interpolation="nearest"))
    assert (warped[:, :10] == 0).all() and (warped[:, 10:20] == 200).all()


@pytest.mark.parametrize("fill", ["edge", "#0a14c8"])
def test_padding_keeps_the_whole_image_in_the_middle(fill):
    image = np.asarray(pattern(10, 30))
    padded = decode.load(encoded(Image.fromarray(image)), size=30, params=made(square="pad", fill=fill))
    np.testing.assert_array_equal(padded[10:20], image)
    above, below = (image[0], image[-1]) if fill == "edge" else ((10, 20, 200), (10, 20, 200))
    assert (padded[:10] == above).all() and (padded[20:] == below).all()


def test_an_odd_pixel_of_padding_is_right_or_below():
    high = Image.new("RGB", (4, 7), "white")
    padded = decode.load(encoded(high), size=7, params=made(square="pad", fill="#000000"))
    assert padded[0, :, 0].tolist() == [0, 255, 255, 255, 255, 0, 0]


def test_padding_resizes_in_proportion():
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 30:] = 240
    padded = decode.load(encoded(Image.fromarray(wide)), size=24, params=made(square="pad", fill="#ffffff"))
    assert (padded[:8] == 255).all() and (padded[16:] == 255).all()
    assert (padded[8:16, :11] == 0).all() and (padded[8:16, 13:] == 240).all()


@pytest.mark.parametrize("square", ["crop", "warp", "pad"])
@pytest.mark.parametrize("fill", ["edge", "#123456"])
@pytest.mark.parametrize(("height", "width"), [(1, 300), (300, 1), (1, 1), (2, 5)])
def test_any_image_becomes_a_square_by_any_filter(square, fill, height, width):
    file = encoded(pattern(height, width))
    for interpolation in decode.RESAMPLING:
        given = made(square=square, fill=fill, interpolation=interpolation)
        array = decode.load(file, size=16, params=given)
        assert array.shape == (16, 16, 3) and array.dtype == np.uint8


def test_an_image_of_one_pixel_in_width_is_one_column_of_a_padded_square():
    line = np.arange(0, 160, 10, dtype=np.uint8).reshape(16, 1, 1).repeat(3, axis=2)
    padded = decode.load(encoded(Image.fromarray(line)), size=16, params=made(square="pad", fill="#c80000"))
    np.testing.assert_array_equal(padded[:, 7], line[:, 0])
    assert (padded[:, [*range(7), *range(8, 16)]] == (200, 0, 0)).all()
    spread = decode.load(encoded(Image.fromarray(line)), size=16, params=made(square="pad"))
    np.testing.assert_array_equal(spread, line.repeat(16, axis=1))


@pytest.mark.parametrize("square", ["crop", "warp"])
def test_fill_means_nothing_without_padding(square):
    file = encoded(pattern())
    expected = decode.load(file, size=16, params=made(square=square))
    np.testing.assert_array_equal(decode.load(file, size=16, params=made(square=square, fill="#ff0000")), expected)


@pytest.mark.parametrize("fill", ["red", "#12345", "#1234567", "#12345g", None, 0])
def test_a_fill_that_is_no_color_is_refused_by_name(fill):
    with pytest.raises(params.ParamsError, match=r'images\.fill must be edge or a color in quotes, such as "#000000"'):
        made(fill=fill)


@pytest.mark.parametrize("interpolation", decode.RESAMPLING)
def test_every_filter_is_pillows_of_that_name(interpolation):
    square = pattern(40, 40)
    expected = square.resize((16, 16), Image.Resampling[interpolation.upper()])
    found = decode.load(encoded(square), size=16, params=made(interpolation=interpolation))
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_an_image_of_the_right_size_is_not_resampled():
    square = pattern(24, 24)
    assert (decode.load(encoded(square), size=24, params=CROP) == np.asarray(square)).all()


@pytest.mark.parametrize("content", [b"", b"no image", encoded(pattern())[:500]], ids=["empty", "text", "truncated"])
def test_a_broken_file_is_named_in_the_error(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(decode.ImageError, match="broken.png"):
        decode.load(path, size=8, params=CROP)
    assert decode.inspect(path).problem


def test_inspection_of_a_sound_file_has_no_problem(tmp_path):
    path = tmp_path / "sound.png"
    pattern().save(path)
    found = decode.inspect(path)
    facts = (found.width, found.height, found.mode, found.frames, found.turned, found.problem)
    assert facts == (60, 40, "RGB", 1, False, "")
    assert found.thumbnail.shape == (32, 32)
    assert abs(found.thumbnail.mean() - np.asarray(pattern().convert("L")).mean()) < 2


@pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
def test_batches_hold_every_image_once_in_order(batch_size):
    files = [encoded(Image.new("RGB", (8, 8), (number, 0, 0))) for number in range(7)]
    found = list(decode.batches(files, read_one, batch_size=batch_size, threads=2))
    assert [len(batch) for batch in found[:-1]] == [batch_size] * (len(found) - 1)
    assert np.concatenate(found)[:, 0, 0, 0].tolist() == list(range(7))


def test_no_images_make_no_batches():
    assert list(decode.batches([], read_one, batch_size=4, threads=2)) == []


def test_an_item_of_several_views_stays_in_one_batch():
    counted = list(decode.batches(range(4), lambda n: np.full((n, 1), n), batch_size=3, threads=2))
    assert [batch[:, 0].tolist() for batch in counted] == [[1, 2, 2], [3, 3, 3]]


def test_images_are_read_two_batches_ahead_and_no_further():
    read = []
    batches = decode.batches(range(100), lambda n: read.append(n) or np.zeros((1, 1)), batch_size=4, threads=1)
    next(batches)
    time.sleep(0.2)  # the reading thread has nothing left to do long before
    assert len(read) == 12
    batches.close()


def test_a_grey_image_is_resized_like_its_three_equal_channels():
    grey = pattern(37, 23).convert("L")
    for square in ("crop", "warp", "pad"):
        given = made(square=square, fill="#102030", interpolation="bicubic")
        expected = decode.load(encoded(grey.convert("RGB")), size=16, params=given)
        np.testing.assert_array_equal(decode.load(encoded(grey), size=16, params=given), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_exif_orientation_is_turned_upright_once(tmp_path, orientation, format):
    """The stored image is the upright one, turned back: what is read must be the upright one again."""
    upright = np.zeros((24, 32, 3), dtype=np.uint8)
    upright[:12, :16], upright[:12, 16:], upright[12:, :16] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    quarter, other = Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270
    back = {quarter: other, other: quarter}
    stored = Image.fromarray(upright)
    if orientation in decode.TURNS:
        turn = decode.TURNS[orientation]
        stored = stored.transpose(back.get(turn, turn))
    exif = stored.getexif()
    exif[0x0112] = orientation
    options = {"quality": 95} if format in ("JPEG", "WEBP") else {}
    path = tmp_path / "turned"
    path.write_bytes(encoded(stored, format, exif=exif, **options))
    found = decode.inspect(path)
    assert (found.width, found.height, found.turned) == (32, 24, orientation != 1)
    read = decode.load(path, size=24, params=made(square="warp", interpolation="nearest")).astype(int)
    expected = [[250, 0, 0], [0, 250, 0], [0, 0, 250], [0, 0, 0]]
    corners = [read[5, 5], read[5, 18], read[18, 5], read[18, 18]]
    assert np.abs(np.array(corners) - expected).max() < 40


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_leaves_the_image_as_it_is(tmp_path):
    path = tmp_path / "damaged.jpg"
    content = encoded(pattern(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    path.write_bytes(content)
    assert decode.inspect(path).problem == ""
    assert not decode.inspect(path).turned


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_known_range_are_refused(tmp_path, mode):
    path = tmp_path / "wide.tiff"
    path.write_bytes(encoded(Image.new(mode, (8, 8), 3), "TIFF"))
    assert f"pixels of mode {mode} have no known range" in decode.inspect(path).problem
    with pytest.raises(decode.ImageError, match="no known range"):
        decode.load(path, size=8, params=CROP)


def test_of_an_animation_the_first_frame_is_read_and_the_others_are_counted(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        path = tmp_path / f"animated.{format}"
        path.write_bytes(encoded(frames[0], format, save_all=True, append_images=frames[1:], **options))
        assert decode.inspect(path).frames == 3
        assert (decode.load(path, size=8, params=CROP) == [255, 0, 0]).all(), format


@pytest.mark.parametrize("size", [(10000, 9500), (20000, 9500)], ids=["warned of", "refused by Pillow"])
def test_a_decompression_bomb_is_not_decoded(tmp_path, monkeypatch, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(encoded(Image.new("1", size)))
    assert path.stat().st_size < 100_000
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda self: pytest.fail("it was decoded"))
    assert decode.inspect(path).problem == "more than 89,478,485 pixels"
    with pytest.raises(decode.ImageError, match=r"bomb\.png: more than"):
        decode.load(path, size=8, params=CROP)


def with_numbers(content: bytes, at: int, *numbers: int) -> bytes:
    return content[:at] + struct.pack(f">{len(numbers)}I", *numbers) + content[at + 4 * len(numbers) :]


@pytest.mark.parametrize("tiles", [{}, {"tile_size": (32, 32)}, {"tile_size": (32, 32), "tile_offset": (0, 0)}])
@pytest.mark.parametrize("width, height", [(64, 97), (97, 48), (9000, 9000), (65, 48)])
def test_a_jpeg_2000_whose_header_announces_more_than_its_data_holds_is_refused(tmp_path, tiles, width, height):
    """Pillow gives 81 million pixels, nearly all black, for 9,000 x 9,000 and the data of 64 x 48."""
    path = tmp_path / "image.jp2"
    whole = encoded(pattern(48, 64), "JPEG2000", **tiles)
    path.write_bytes(whole)
    assert decode.inspect(path).problem == ""
    corner = whole.index(b"\xff\x4f\xff\x51") + 8
    lying = with_numbers(with_numbers(whole, corner, width, height), whole.index(b"ihdr") + 4, height, width)
    for content in (lying, lying[corner - 8 :]):  # in its boxes, and the bare codestream
        path.write_bytes(content)
        assert decode.inspect(path).problem.startswith("cannot be read whole (")
        with pytest.raises(decode.ImageError, match="cannot be read whole"):
            decode.load(path, size=8, params=CROP)


def test_a_jpeg_2000_whose_header_announces_less_than_its_data_holds_is_refused():
    whole = encoded(pattern(48, 64), "JPEG2000", tile_size=(16, 16))
    for height, width in ((16, 16), (48, 63), (47, 64), (32, 32)):
        with pytest.raises(decode.ImageError, match="cannot be read whole"):
            decode.load(with_numbers(whole, whole.index(b"ihdr") + 4, height, width), size=8, params=CROP)


def test_a_tiff_whose_tiles_are_larger_than_itself_counts_by_its_tiles(tmp_path, monkeypatch):
    """A tile is decoded whole: 4 hundred million pixels for an image of 16 x 16."""
    # Size, bits, compression, black is 0; width, length, place and bytes of tiles.
    tags = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 322: 20_000, 323: 20_000, 324: 8, 325: 1}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path = tmp_path / "tiles.tif"
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4))
    assert decode.inspect(path).problem == "more than 89,478,485 pixels"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000_000)
    assert decode.announced_pixels(path) == 400_000_000


def test_an_image_that_decodes_to_another_size_than_announced_is_refused(monkeypatch):
    def grow(self):
        self._size = (12, 9)

    monkeypatch.setattr("PIL.BmpImagePlugin.BmpImageFile.load", grow)
    with pytest.raises(decode.ImageError, match="the header says 8 x 8 pixels, the data holds 12 x 9"):
        decode.load(encoded(pattern(8, 8), "BMP"), size=8, params=CROP)


def test_the_pixels_of_a_header_are_known_before_any_is_decoded(monkeypatch):
    for format in decode.FORMATS:
        content = encoded(pattern(20, 30), "BMP" if format == "DIB" else format)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
            assert decode.announced_pixels(content) == 600, format
    with pytest.raises(decode.ImageError, match="not an image, or of a format that is not read here"):
        decode.announced_pixels(encoded(pattern(), "AVIF"), formats=["PNG"])
    with pytest.raises(decode.ImageError, match="not an image") as caught:
        decode.announced_pixels(b"text")
    assert caught.value.source == b"text"


def test_postscript_is_never_interpreted(tmp_path):
    path = tmp_path / "page.eps"
    path.write_bytes(encoded(pattern(), "EPS"))
    assert decode.inspect(path).problem == "not an image, or of a format that is not read here"


def test_a_reason_names_no_place_of_this_machine(tmp_path):
    path = tmp_path / "folder.png"
    path.mkdir()
    assert decode.inspect(path).problem == "cannot be read whole (Is a directory)"
    assert decode.inspect(tmp_path / "none.png").problem == "file not found"


def test_a_thumbnail_keeps_the_proportions(tmp_path):
    path = tmp_path / "wide.png"
    pattern(10, 400).save(path)
    assert decode.thumbnail(path, side=40).shape == (1, 40, 3)
    assert decode.thumbnail(path, side=800).shape == (20, 800, 3)


@pytest.mark.parametrize("error", [struct.error, IndexError, TypeError, EOFError, KeyError])
def test_whatever_pillow_raises_for_a_damaged_file_is_an_image_error(monkeypatch, tmp_path, error):
    file = tmp_path / "damaged.png"
    file.write_bytes(encoded(pattern(8, 8)))
    monkeypatch.setattr(Image.Image, "load", lambda self: (_ for _ in ()).throw(error("broken")))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda self: (_ for _ in ()).throw(error("broken")))
    with pytest.raises(decode.ImageError, match=r"damaged\.png: cannot be read whole"):
        decode.load(file, size=8, params=CROP)
    assert "cannot be read whole" in decode.inspect(file).problem


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_of_every_format_are_read_or_refused_alike_by_inspection_and_loading(tmp_path):
    """What inspection lets pass, training reads; nothing else is raised; and no reason names this machine."""
    rng, file = random.Random(0), tmp_path / "damaged"
    image = pattern(24, 24)
    turned = image.getexif()
    turned[0x0112] = 6
    whole = [encoded(image, format) for format in decode.FORMATS if format != "DIB"]
    whole += [encoded(image, format, exif=turned) for format in ("JPEG", "PNG", "TIFF", "WEBP")]
    whole += [encoded(image.quantize(8), "PNG", transparency=1), encoded(image.convert("CMYK"), "JPEG")]
    outcomes = set()
    for number in range(600):
        content = bytearray(whole[number % len(whole)])
        for _ in range(rng.choice((1, 2, 10))):
            place = rng.randrange(rng.choice((min(60, len(content)), len(content))))
            content[place : place + rng.choice((1, 1, 20))] = rng.randbytes(rng.choice((1, 1, 10)))
        file.write_bytes(content)
        found = decode.inspect(file)
        outcomes.add(bool(found.problem))
        assert str(tmp_path) not in found.problem
        assert " at 0x" not in found.problem
        if found.problem:
            with pytest.raises(decode.ImageError):
                decode.load(file, size=8, params=CROP)
        else:
            assert decode.load(file, size=8, params=CROP).shape == (8, 8, 3)
    assert outcomes == {True, False}
