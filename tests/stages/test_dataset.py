"""The default data set's pinned facts, and what the dataset and split stages make of it."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipeline.console.progress import NoLog
from pipeline.core import artifacts
from pipeline.core.params import Params
from pipeline.data import sources, splits
from pipeline.data.sources import DatasetError, DatasetParams
from pipeline.data.splits import SplitParams
from pipeline.stages import dataset, split
from tests import oddities

NO_GROUPS = {"pattern": None, "csv": None, "column": None, "module": False}
ELPV = {
    "source": "elpv",
    "path": "data/elpv.json",
    "limit": None,
    "max_dropped": 0.01,
    "conflicting_duplicates": "drop",
    "groups": NO_GROUPS,
    "allow_untracked": False,
}


def elpv_at(path: Path, **changes) -> DatasetParams:
    return DatasetParams.model_validate({**ELPV, "path": str(path), **changes})


def stage_values(root, limit=None, **changes) -> dict:
    path = str(root / "data" / "elpv.json")
    return {
        "seed": 0,
        "dataset": {**ELPV, "path": path, "limit": limit, **changes},
        "split": {"test": 0.25, "validation": 0.2, "near_duplicates": "auto"},
        "compute": {"threads": 2},
    }


@pytest.fixture(scope="module")
def source(root):
    return sources.read(elpv_at(root / "data" / "elpv.json"))


def test_elpv_has_the_published_counts(source):
    assert len(source.images) == 2624
    assert Counter(image.label for image in source.images) == {"functional": 1803, "defective": 821}
    assert Counter(image.stratum for image in source.images) == {"mono": 1074, "poly": 1550}


def test_elpv_with_another_digest_or_version_is_refused(root, tmp_path):
    description = json.loads((root / "data" / "elpv.json").read_text())
    path = tmp_path / "elpv.json"
    for key, value, message in (
        ("sha256", "0" * 64, "wants images with digest 0000"),
        ("version", "9.9", "wants elpv-dataset==9.9, received"),
        ("package", "elpv-dataset-none", "elpv-dataset-none==1.0.0.post1 is not installed"),
    ):
        path.write_text(json.dumps({**description, key: value}))
        with pytest.raises(DatasetError, match=message):
            sources.read(elpv_at(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"dataset\.path must name the description of the images, and .*elpv\.json does not exist"),
        (b"package: elpv", r"dataset\.path must name a JSON file, received .*elpv\.json: Expecting value"),
        (b"\xff\xfe", r"dataset\.path must name a JSON file, received .*elpv\.json: .*decode"),
        (b'{"package": "elpv-dataset"}', r"must hold an object with package, version, sha256 as text, received"),
        (b'{"package": 1, "version": "1", "sha256": ""}', r"must hold an object with package, version, sha256"),
        (b"[]", r"must hold an object with package, version, sha256 as text, received \[\]"),
    ],
)
def test_a_description_that_is_none_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "elpv.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        sources.read(elpv_at(path))


def test_a_folder_is_no_description(tmp_path):
    with pytest.raises(DatasetError, match=r"dataset\.path must name a JSON file"):
        sources.read(elpv_at(tmp_path))


def test_a_reading_that_was_killed_leaves_nothing_behind(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for output in dataset.OUTPUTS:
        abandoned = Path(output).with_name(f".{Path(output).name}.abc123")
        abandoned.parent.mkdir(exist_ok=True)
        abandoned.write_text("half", encoding="utf-8")
    dataset.main(Params(stage_values(root, limit=60), dataset.READS), log=NoLog())
    assert {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.*")} == set(dataset.OUTPUTS)


def named(*paths: str, label: str = "a", part: str = "") -> list[str]:
    return sources.split_names([sources.SourceImage(path, label, "", "", "", part) for path in paths])


def test_files_of_one_name_in_two_folders_of_a_class_stay_two():
    assert named("a/1.png", "a/x/1.png", "a/y/1.png") == ["1.png", "x__1.png", "y__1.png"]
    assert named("train/a/1.png", "train/a/a/1.png", part="train") == ["1.png", "a__1.png"]
    assert named("cell0001.png", label="defective") == ["cell0001.png"]


@pytest.mark.parametrize(
    "paths",
    [("a/x__1.png", "a/x/1.png"), ("a/IMG.PNG", "a/img.png"), ("a/\u1107\u1169\u11b7.png", "a/\ubd04.png")],
    ids=["flattened", "upper case", "Unicode"],
)
def test_names_that_collide_get_a_digest_of_their_path_and_the_others_stay(paths):
    names = named(*paths, "a/other.png")
    assert len({name.casefold() for name in names}) == 3
    assert all(re.fullmatch(r".+-[0-9a-f]{12}\.(png|PNG)", name) for name in names[:2])
    assert names[2] == "other.png"
    assert named(*reversed(paths)) == names[1::-1]


@pytest.mark.parametrize("character", ["x", "é", "한"])
def test_a_name_that_is_too_long_is_cut_and_keeps_its_ending(character):
    name, other = named(f"a/{character * 80}/{character * 80}/{character * 60}/1.jpeg", f"a/{character * 80}/2.jpeg")
    assert name.endswith(".jpeg")
    assert len(name.encode()) <= 255
    assert other.startswith(character)
    assert len(other.encode()) <= 255


def test_the_stages_copy_original_bytes_and_the_manifest_says_where(root, tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    given = stage_values(root, limit=80)
    dataset.main(Params(given, dataset.READS), log=NoLog())
    split.main(Params(given, split.READS), log=NoLog())
    rows = artifacts.read_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS)
    assert len(rows) == 80
    assert Counter(row["split"] for row in rows) == {"train": 48, "validation": 12, "test": 20}
    on_disk = sorted(p.relative_to(artifacts.SPLIT).as_posix() for p in artifacts.SPLIT.rglob("*.png"))
    assert sorted(row["path"] for row in rows) == on_disk
    for row in rows:
        assert artifacts.sha256_file(artifacts.SPLIT / row["path"]) == row["sha256"]
        assert row["path"].startswith(f"{row['split']}/{row['label']}/")
    assert len({row["sha256"] for row in rows}) == 80
    quality = artifacts.read_json(dataset.QUALITY)
    assert quality["images"] == 80
    assert quality["sizes"] == {"smallest_side": 300, "largest_side": 300, "odd": 0}
    assert abs(quality["classes"]["smallest"] / 80 - 821 / 2624) < 0.02
    assert quality["classes"]["count"] == 2
    numbers = [value for part in quality.values() for value in (part.values() if isinstance(part, dict) else [part])]
    assert all(isinstance(number, int | float) for number in numbers)
    assert len(numbers) <= 21
    assert artifacts.read_csv(dataset.UNUSED, dataset.UNUSED_COLUMNS) == []


def test_the_same_params_give_the_same_bytes(root, tmp_path, monkeypatch):
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        given = stage_values(root, limit=60)
        dataset.main(Params(given, dataset.READS), log=NoLog())
        split.main(Params(given, split.READS), log=NoLog())
        digests.append(artifacts.sha256_path(tmp_path / name))
    assert digests[0] == digests[1]


def test_an_image_changed_after_the_catalog_is_noticed(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = stage_values(root, limit=60)
    dataset.main(Params(given, dataset.READS), log=NoLog())
    rows = artifacts.read_csv(artifacts.CATALOG, sources.CATALOG_COLUMNS)
    rows[0]["sha256"] = "0" * 64
    artifacts.write_csv(artifacts.CATALOG, sources.CATALOG_COLUMNS, rows)
    with pytest.raises(DatasetError, match="changed since data/catalog.csv was written"):
        split.main(Params(given, split.READS), log=NoLog())
    assert not artifacts.SPLIT.exists()


def test_unreadable_images_are_recorded_and_left_out_and_too_many_stop_the_run(tmp_path, monkeypatch, source):
    """Real cells, of which one file is cut short: the reader is the real one, its root a copy with that file."""
    monkeypatch.chdir(tmp_path)
    chosen = source.images[::26]
    copied = tmp_path / "copy"
    copied.mkdir()
    images = []
    for number, image in enumerate(chosen):
        content = (source.root / image.path).read_bytes()
        (copied / image.path).write_bytes(content[:2000] if number == 3 else content)
        images.append(
            sources.SourceImage(image.path, image.label, image.stratum, "", artifacts.sha256_file(copied / image.path))
        )
    reader = SimpleNamespace(read=lambda params: sources.Source(copied, tuple(images)), root=lambda params: copied)
    monkeypatch.setitem(sources.READERS, "elpv", reader)
    given = stage_values(tmp_path, max_dropped=0.02)
    dataset.main(Params(given, dataset.READS), log=NoLog())
    (broken,) = artifacts.read_csv(dataset.UNUSED, dataset.UNUSED_COLUMNS)
    assert (broken["path"], broken["kind"]) == (images[3].path, "dropped")
    assert "truncated" in broken["reason"]
    assert images[3].path not in {image.path for image in sources.read_catalog()}
    split.main(Params(given, split.READS), log=NoLog())
    assert len(artifacts.read_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS)) == len(images) - 1
    with pytest.raises(DatasetError, match=f"1 of {len(images)} files cannot be used.*\n.*{images[3].path}"):
        dataset.main(Params(stage_values(tmp_path, max_dropped=0.0), dataset.READS), log=NoLog())


def test_a_limit_below_what_can_be_split_is_refused():
    with pytest.raises(ValueError, match="greater than or equal to 8"):
        elpv_at(Path("data/elpv.json"), limit=2)


def test_elpv_is_divided_by_inferred_module_if_asked(root, source):
    """Published: 44 modules, 18 mono-crystalline and 26 poly-crystalline."""
    grouped = sources.read(elpv_at(root / "data" / "elpv.json", groups={**NO_GROUPS, "module": True}))
    sizes = Counter(image.group for image in grouped.images)
    assert {image.group for image in source.images} == {""}
    assert max(sizes.values()) == 60
    assert sum(sizes.values()) == 2624
    assert all(len({image.stratum for image in grouped.images if image.group == group}) == 1 for group in sizes)
    assert 44 <= len(sizes) <= 60
    params = SplitParams(test=0.25, validation=0.2, near_duplicates="report")
    parts = splits.assign(grouped.images, params=params, seed=0)
    assert len({(image.group, part) for image, part in zip(grouped.images, parts, strict=True)}) == len(sizes)
    assert abs(parts.count("test") - 656) <= 60


# --- adding images to a folder ---------------------------------------------------------------------------------------


def run_both(place: Path, **changes) -> None:
    given = stage_values(place)
    given["dataset"] |= {"source": "folder", "path": "images", "allow_untracked": True, **changes}
    dataset.main(Params(given, dataset.READS), log=NoLog())
    split.main(Params(given, split.READS), log=NoLog())


def members() -> dict[str, str]:
    return {row["sha256"]: row["split"] for row in artifacts.read_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS)}


def test_the_split_says_what_moved_when_images_were_added_and_does_not_depend_on_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in range(60):
        oddities.save(oddities.picture(number % 2, number), Path("images") / "ab"[number % 2] / f"{number}.png")
    run_both(tmp_path)
    assert "changed their part" not in capsys.readouterr().out
    before = members()
    for number in range(60, 90):
        oddities.save(oddities.picture(number % 2, number), Path("images") / "ab"[number % 2] / f"{number}.png")
    run_both(tmp_path, max_dropped=0.2, conflicting_duplicates="keep", limit=1000)  # no part depends on these
    said = capsys.readouterr().out
    after = members()
    moved = [digest for digest, part in before.items() if after[digest] != part]
    assert f"30 images are new; of those known before, {len(moved)} changed their part ({len(moved)} by" in said
    if moved:
        assert len(artifacts.read_csv(split.MOVED, splits.Move._fields)) == len(moved)
    expected = artifacts.MANIFEST.read_bytes()
    shutil.rmtree(".cache")
    run_both(tmp_path)
    assert artifacts.MANIFEST.read_bytes() == expected
    assert "changed their part" not in capsys.readouterr().out
    run_both(tmp_path, groups=NO_GROUPS | {"pattern": "/([0-9])"})
    said = capsys.readouterr().out
    assert "changed their part" not in said
    (told,) = [line for line in said.splitlines() if "another split than the last one, as other values ask for" in line]
    assert "dataset.groups ({" in told and "'pattern': '/([0-9])'" in told and "seed" not in told
    for image in Path("images").glob("*/*.png"):
        image.unlink()
    for number in range(60):
        oddities.save(oddities.picture(number % 2, 300 + number), Path("images") / "ab"[number % 2] / f"{number}.png")
    run_both(tmp_path, groups=NO_GROUPS | {"pattern": "/([0-9])"})
    said = capsys.readouterr().out
    assert "other images than those of the last split: none is known from before" in said


def predefined(*names: str) -> None:
    """Fill the folders train and test of both classes with different pictures, and those of ``names`` besides."""
    for number in range(48):
        part, label = ("train", "test")[number % 8 // 6], "ab"[number % 2]
        oddities.save(oddities.picture(number % 2, number), Path("images", part, label, f"n{number}_1.png"))
    for number, name in enumerate(names):
        oddities.save(oddities.picture(0, 500 + number), Path("images", name))


def test_a_group_in_several_predefined_parts_stays_there_and_is_told_loudly(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    predefined("train/a/p1_a.png", "test/a/p1_b.png", "train/a/p2_a.png", "train/b/p2_b.png")
    run_both(tmp_path, groups=NO_GROUPS | {"pattern": "/([np][0-9]+)_"})
    said = capsys.readouterr().out
    assert "WARNING: 1 groups (dataset.groups) lie in several predefined parts. They stay there" in said
    assert "\n  test/a/p1_b.png, train/a/p1_a.png\n" in said
    assert "duplicates lie in several predefined parts" not in said
    quality = artifacts.read_json(dataset.QUALITY)
    assert (quality["groups_across_parts"], quality["duplicates_across_parts"]) == (1, 0)
    rows = artifacts.read_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS)
    assert {Path(row["path"]).name: row["split"] for row in rows if row["group"] == "p1"}["p1_b.png"] == "test"
    run_both(tmp_path)
    assert "WARNING" not in capsys.readouterr().out
    assert artifacts.read_json(dataset.QUALITY)["groups_across_parts"] == 0


def test_conflicting_duplicates_that_are_dropped_lie_in_no_part(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    predefined("train/a/one.png")
    shutil.copy("images/train/a/one.png", "images/test/b/same.png")
    run_both(tmp_path, conflicting_duplicates="drop", max_dropped=0.1)
    assert "WARNING" not in capsys.readouterr().out
    quality = artifacts.read_json(dataset.QUALITY)
    assert (quality["duplicates_across_parts"], quality["duplicates"]["conflicting"]) == (0, 2)
    run_both(tmp_path, conflicting_duplicates="keep")
    said = capsys.readouterr().out
    assert "WARNING: 2 images of 1 sets of duplicates or near duplicates lie in several predefined parts" in said
    assert "  test/b/same.png, train/a/one.png" in said


def test_what_is_no_image_counts_against_the_whole_folder_whatever_the_limit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(200):
        oddities.save(oddities.picture(number % 2, number), Path("images") / "ab"[number % 2] / f"{number}.png")
    for number in range(4):
        Path("images", f"stray{number}.txt").write_text("", encoding="utf-8")
    run_both(tmp_path, limit=40, max_dropped=0.02)
    assert Counter(image.label for image in sources.read_catalog()) == {"a": 20, "b": 20}
    assert len(artifacts.read_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS)) == 40
    quality = artifacts.read_json(dataset.QUALITY)
    assert (quality["images"], quality["dropped"]) == (40, 4)
    with pytest.raises(DatasetError, match="4 of 204 files cannot be used"):
        run_both(tmp_path, limit=40)
    for file in Path("images").glob("*/*.png"):
        file.write_bytes(file.read_bytes()[:200] if int(file.stem) % 20 < 2 else file.read_bytes())
    # A tenth cannot be read, of those that a limit leaves as of all.
    with pytest.raises(DatasetError, match=r"[1-9] of 40 files cannot be used, more than dataset.max_dropped = 0.02"):
        run_both(tmp_path, limit=40, max_dropped=0.02)


def test_a_thousand_classes_and_one_go_through_with_a_page_of_bounded_height(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(3003):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        oddities.save(Image.fromarray(pixels), Path("images", f"{number // 3:04d}", f"{number}.bmp"))
    run_both(tmp_path)
    quality = artifacts.read_json(dataset.QUALITY)
    assert quality["classes"] == {"count": 1001, "smallest": 3, "largest": 3}
    rows = artifacts.read_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS)
    assert set(Counter((row["label"], row["split"]) for row in rows).values()) == {1}
    assert len(rows) == 3003
    with Image.open(dataset.CONTACT_SHEET) as page:
        assert page.width == dataset.SHEET_WIDTH
        assert page.height < 10_000
    with Image.open(dataset.SUSPECTS) as page:
        assert page.height < 10_000


def test_conflicting_duplicates_are_kept_together_dropped_or_stop_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(40):
        oddities.save(oddities.picture(number % 2, number), Path("images") / "ab"[number % 2] / f"{number}.png")
    shutil.copy("images/a/0.png", "images/b/same.png")
    with pytest.raises(DatasetError, match="2 images have the bytes of one with another label(.|\n)*labelled a, b"):
        run_both(tmp_path, conflicting_duplicates="stop", max_dropped=0.5)
    with pytest.raises(DatasetError, match="2 of 41 files cannot be used, more than dataset.max_dropped = 0.01"):
        run_both(tmp_path, conflicting_duplicates="drop")
    run_both(tmp_path, conflicting_duplicates="drop", max_dropped=0.1)
    assert len(sources.read_catalog()) == 39
    run_both(tmp_path, conflicting_duplicates="keep")
    rows = artifacts.read_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS)
    same = [row for row in rows if Path(row["path"]).name in ("0.png", "same.png")]
    assert len(rows) == 41
    assert {row["label"] for row in same} == {"a", "b"}
    assert len({row["split"] for row in same}) == 1


def test_a_class_of_two_images_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(40):
        label = "rare" if number < 2 else "ab"[number % 2]
        oddities.save(oddities.picture(number % 2, number), Path("images") / label / f"{number}.png")
    with pytest.raises(splits.SplitError, match="'rare' has 2 images in 2 groups, too few for one in every part"):
        run_both(tmp_path)
