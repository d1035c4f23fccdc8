"""Near duplicates are found, and only those; clusters do not depend on the order; the pages are the same bytes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipeline.data import duplicates, quality
from pipeline.show import contact_sheet
from tests import oddities


def thumbnail(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS))


def thumbnails(count: int = 60) -> np.ndarray:
    return np.stack([thumbnail(oddities.picture(number % 4, number)) for number in range(count)])


def clusters(given: np.ndarray) -> list[int]:
    return duplicates.clusters(duplicates.perceptual_hashes(given), given).tolist()


def test_different_pictures_of_one_kind_are_no_near_duplicates():
    assert clusters(thumbnails()) == list(range(60))


@pytest.mark.parametrize("change", ["brighter", "compressed", "resized"])
def test_a_picture_that_was_saved_again_is_a_near_duplicate(change, tmp_path):
    given = thumbnails()
    original = oddities.picture(3, 7)
    if change == "brighter":
        other = original.point(lambda level: min(level + 6, 255))
    elif change == "compressed":
        oddities.save(original, tmp_path / "other.jpg", quality=75)
        other = Image.open(tmp_path / "other.jpg")
    else:
        other = original.resize((54, 48), Image.Resampling.BICUBIC)
    found = clusters(np.concatenate([given, thumbnail(other)[np.newaxis]]))
    assert found == [*range(60), 7]


def test_a_hash_alone_makes_no_near_duplicate_and_a_correlation_alone_neither():
    rng = np.random.default_rng(0)
    unlike = rng.integers(0, 256, (2, 32, 32), dtype=np.uint8)
    assert duplicates.clusters(np.zeros(2, dtype=np.uint64), unlike).tolist() == [0, 1]
    alike = np.stack([unlike[0], unlike[0]])
    assert duplicates.clusters(np.array([0, 0b1111], dtype=np.uint64), alike).tolist() == [0, 0]
    assert duplicates.clusters(np.array([0, 0b11111], dtype=np.uint64), alike).tolist() == [0, 1]


@pytest.mark.parametrize(("correlation", "expected"), [(0.99, [0, 1]), (0.994, [0, 1]), (0.997, [0, 0])])
def test_thumbnails_of_one_hash_are_near_duplicates_from_a_correlation_of_0_995_on(correlation, expected):
    rng = np.random.default_rng(3)
    base, noise = (values - values.mean() for values in rng.normal(size=(2, 32 * 32)))
    noise -= base * (noise @ base) / (base @ base)
    other = base + noise * np.linalg.norm(base) / np.linalg.norm(noise) * np.sqrt(1 / correlation**2 - 1)
    pair = np.stack([np.clip(128 + 30 * values, 0, 255).round().astype(np.uint8) for values in (base, other)])
    assert abs(np.corrcoef(pair.reshape(2, -1))[0, 1] - correlation) < 3e-4
    for dense in (0, 10**6):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(duplicates, "DENSE", dense)
            assert duplicates.clusters(np.zeros(2, dtype=np.uint64), pair.reshape(2, 32, 32)).tolist() == expected


def test_pictures_of_one_level_are_near_duplicates_of_nothing():
    flat = np.stack([np.full((32, 32), level, dtype=np.uint8) for level in (0, 0, 128, 255)])
    assert clusters(flat) == [0, 1, 2, 3]


def test_chains_form_one_cluster_over_the_borders_of_blocks(monkeypatch):
    monkeypatch.setattr(duplicates, "ROWS", 4)
    monkeypatch.setattr(duplicates, "COLUMNS", 8)
    rng = np.random.default_rng(1)
    base = rng.integers(0, 256, (32, 32), dtype=np.uint8)
    given = rng.integers(0, 256, (40, 32, 32), dtype=np.uint8)
    hashes = rng.integers(0, 2**63, 40, dtype=np.uint64)
    chain = [3, 17, 18, 39]
    for step, index in enumerate(chain):
        given[index] = base
        hashes[index] = (1 << (4 * step)) - 1  # four bits from one to the next, more from one to the one after
    expected = list(range(40))
    for index in chain:
        expected[index] = 3
    for dense in (0, 10**6):
        monkeypatch.setattr(duplicates, "DENSE", dense)
        assert duplicates.clusters(hashes, given).tolist() == expected


def test_a_cluster_keeps_its_name_in_another_order():
    given = thumbnails(20)
    given[11] = given[4]
    sha256 = [f"{number * 7919 % 97:064x}" for number in range(20)]
    hashes = duplicates.perceptual_hashes(given)
    names = dict(zip(sha256, duplicates.cluster_names(sha256, hashes, given), strict=True))
    assert names[sha256[4]] == names[sha256[11]] == min(sha256[4], sha256[11])[:12]
    assert sum(map(bool, names.values())) == 2
    order = np.random.default_rng(0).permutation(20)
    shuffled = [sha256[index] for index in order]
    assert dict(zip(shuffled, duplicates.cluster_names(shuffled, hashes[order], given[order]), strict=True)) == names


# --- quality ---------------------------------------------------------------------------------------------------------


def described(number: int, label: str = "a", **changes):
    facts = {
        "label": label,
        "group": "",
        "part": "",
        "near_duplicates": "",
        "sha256": f"{number:064x}",
        "width": 100,
        "height": 80,
        "frames": 1,
        "thumbnail": np.array([[90, 110]], dtype=np.uint8),
    }
    return SimpleNamespace(**facts | changes)


def test_suspects_are_what_they_are_called():
    images = [described(number, "ab"[number % 2]) for number in range(40)]
    images[3].sha256 = images[5].sha256  # both b
    images[6].sha256 = images[7].sha256  # a and b
    images[8].near_duplicates = images[10].near_duplicates = images[12].near_duplicates = "x"
    images[9].near_duplicates = images[14].near_duplicates = "y"
    images[9].part, images[14].part = "train", "test"
    images[20].thumbnail = np.array([[5, 30]], dtype=np.uint8)
    images[21].thumbnail = np.full((1, 2), 100, dtype=np.uint8)
    images[22].width, images[23].width, images[24].height = 300, 20, 20
    images[25].width = images[25].height = 900
    found = quality.suspects(images)
    assert found == quality.Suspects(
        conflicting=[[6, 7]],
        conflicting_near=[[9, 14]],
        duplicates=[[3, 5]],
        near=[[8, 10, 12]],
        across_parts=[[9, 14]],
        brightness=[[20]],
        flat=[[21]],
        sizes=[[22], [23], [24], [25]],
    )
    assert quality.conflicting_labels(images) == [6, 7]
    summary = quality.summarize(images, found, dropped=2, ignored=1)
    assert summary["duplicates"] == {"images": 4, "conflicting": 2}
    assert summary["near_duplicates"] == {"clusters": 2, "images": 5, "conflicting": 2}
    assert summary["duplicates_across_parts"] == 2
    assert summary["sizes"] == {"smallest_side": 20, "largest_side": 900, "odd": 4}


def test_an_image_with_a_copy_and_a_near_duplicate_in_other_parts_counts_once():
    images = [described(number, part=("train", "test")[number % 2]) for number in range(8)]
    images[0].sha256 = images[1].sha256
    for member in images[:3]:
        member.near_duplicates = "x"
    images[4].group, images[5].group, images[6].group = "p", "p", "q"
    found = quality.suspects(images)
    assert (found.across_parts, found.groups_across_parts) == ([[0, 1, 2]], [[4, 5]])
    summary = quality.summarize(images, found, dropped=0, ignored=0)
    assert (summary["duplicates_across_parts"], summary["groups_across_parts"]) == (3, 1)
    # Without its copies nothing is left in another part.
    assert quality.suspects(images, left_out={0, 1}).across_parts == []
    assert quality.suspects(images, left_out={2}).across_parts == [[0, 1]]


def test_equal_images_are_no_outliers():
    found = quality.suspects([described(number) for number in range(10)])
    assert found == quality.Suspects()


def test_where_all_images_are_small_only_smaller_ones_are_odd():
    images = [described(number, width=28, height=28) for number in range(10)]
    assert quality.suspects(images) == quality.Suspects()
    images[4].height = 20
    assert quality.suspects(images).sizes == [[4]]


# --- the page --------------------------------------------------------------------------------------------------------


def draw(path, headings=("cat", "고양이 $x$")):
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (9, 20, 30, 3), dtype=np.uint8)
    pictures = [contact_sheet.Picture(array, f"{'n' * 50}{number}") for number, array in enumerate(arrays)]
    sections = [contact_sheet.Section(name, [contact_sheet.Strip(name, pictures)] * 3) for name in headings]
    contact_sheet.draw(sections, title="Title", subtitle="", side=30, width=400, path=path)
    return path.read_bytes()


def test_a_page_is_the_same_bytes_again_and_holds_every_strip(tmp_path):
    first = draw(tmp_path / "1.png")
    assert first == draw(tmp_path / "2.png")
    assert first != draw(tmp_path / "3.png", headings=("cat", "dog"))
    with Image.open(tmp_path / "1.png") as page:
        assert page.width == 400
        assert page.height > 6 * 30


def test_letters_that_the_font_lacks_are_escaped_and_long_text_keeps_its_end():
    fonts = contact_sheet._Fonts()
    assert fonts.fit("é 고 $", 11, 500) == "é \\uace0 $"
    cut = fonts.fit("folder/" * 30 + "photo_0012.jpg", 11, 150)
    assert cut.endswith("0012.jpg")
    assert "…" in cut
    assert fonts.of(11).getlength(cut) <= 150
