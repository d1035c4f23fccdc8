"""The sheet shows the very views that a network is trained on, and the command draws it without training."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import __main__ as command_line
from pipeline.core import artifacts, seeds
from pipeline.core.params import Params
from pipeline.images import augmentation, decode
from pipeline.show import augmentation_sheet, contact_sheet
from pipeline.show.augmentation_sheet import SIDE, Example
from tests.images.test_augmentation import EVERYTHING

SQUARE = decode.ImageParams(square="crop", fill="edge", interpolation="bilinear")


def given(**changes) -> Params:
    values = {"images": SQUARE.model_dump(), "augmentation": EVERYTHING.model_dump() | changes}
    return Params(values, ("images", "augmentation"))


@pytest.fixture
def project(root, tmp_path, monkeypatch) -> Path:
    """A split of twelve images in train, four of each class, and the committed params.yaml."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(root / "params.yaml", "params.yaml")
    rows = []
    for number in range(12):
        label = ("cat", "dog", "고양이")[number % 3]
        path = f"train/{label}/{number}.png"
        (artifacts.SPLIT / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(artifacts.SPLIT / path)
        rows.append(
            {
                "path": path,
                "label": label,
                "split": "train",
                "group": "",
                "stratum": "",
                "sha256": artifacts.sha256_file(artifacts.SPLIT / path),
            }
        )
    rows.sort(key=lambda row: (row["label"], row["path"]))
    artifacts.write_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS, rows)
    return tmp_path


@pytest.fixture
def drawn(monkeypatch) -> list[contact_sheet.Section]:
    """The sections of the sheet that a test draws."""
    sections: list[contact_sheet.Section] = []
    draw = contact_sheet.draw

    def remembered(given, **options):
        sections.extend(given)
        draw(given, **options)

    monkeypatch.setattr(contact_sheet, "draw", remembered)
    return sections


def draw(path: Path, examples: list[Example], *, size: int = SIDE, seed: int = 5, **options) -> bytes:
    augmentation_sheet.draw(examples, given(), size=size, seed=seed, title="x", path=path, **options)
    return path.read_bytes()


def test_a_few_images_of_every_class_are_shown_at_equal_distances(project):
    part = artifacts.read_part("train")
    examples = augmentation_sheet.of_part(part)
    assert [example.label for example in examples] == ["cat", "cat", "dog", "dog", "고양이", "고양이"]
    assert [examples[index].file for index in (0, 1)] == [part.files[0], part.files[3]]
    assert all(artifacts.sha256_file(example.file) == example.sha256 for example in examples)


def test_of_many_classes_some_are_shown_one_image_each():
    labels = np.arange(40) % 20
    names = tuple(f"{number:02d}" for number in range(20))
    part = artifacts.Part(
        name="train",
        classes=names,
        paths=tuple(map(str, range(40))),
        sha256=("",) * 40,
        strata=("",) * 40,
        groups=("",) * 40,
        labels=labels,
    )
    found = [example.label for example in augmentation_sheet.of_part(part)]
    assert len(found) == len(set(found)) == augmentation_sheet.IMAGES
    assert (found[0], found[-1]) == ("00", "19")


def test_pictures_are_the_image_and_the_views_that_training_draws(project, drawn):
    example = augmentation_sheet.of_part(artifacts.read_part("train"))[2]
    draw(project / "sheet.png", [example], views=3)
    ((strip,),) = [section.strips for section in drawn]
    image = decode.load(example.file, size=SIDE, params=SQUARE)
    assert [picture.caption for picture in strip.pictures] == ["as it is", "view 1", "view 2", "view 3"]
    np.testing.assert_array_equal(strip.pictures[0].image, image)
    for number, picture in enumerate(strip.pictures[1:]):
        view = augmentation.augment(image, seed=5, sha256=example.sha256, view=number, params=EVERYTHING)
        np.testing.assert_array_equal(picture.image, view)


def test_the_same_images_and_seed_give_the_same_bytes(project):
    examples = augmentation_sheet.of_part(artifacts.read_part("train"))
    first = draw(project / "a.png", examples)
    assert draw(project / "b.png", examples) == first
    assert draw(project / "c.png", examples, seed=6) != first


@pytest.mark.parametrize(("size", "views"), [(28, 1), (300, 7), (64, 12)])
def test_sheets_of_any_size_and_number_of_views_are_drawn(project, size, views):
    examples = augmentation_sheet.of_part(artifacts.read_part("train"))[:2]
    draw(project / "sheet.png", examples, size=size, views=views)
    with Image.open(project / "sheet.png") as sheet:
        assert sheet.width >= (views + 1) * SIDE and sheet.height > SIDE
        assert len(sheet.convert("L").getcolors(256)) > 100


def test_without_a_number_as_many_views_are_drawn_as_an_image_has(project, drawn):
    example = augmentation_sheet.of_part(artifacts.read_part("train"))[0]
    for views, expected in ((2, 2), (None, augmentation_sheet.VIEWS), (50, augmentation_sheet.VIEWS)):
        drawn.clear()
        augmentation_sheet.draw([example], given(views=views), size=32, seed=0, title="x", path=project / "sheet.png")
        assert len(drawn[0].strips[0].pictures) == 1 + expected


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_draws_what_head_would_train_on(project, drawn, values, capsys):
    assert command_line.main(["augmentation", "--size", str(SIDE)]) == 0
    assert capsys.readouterr().out == "look at augmentation.png\n"
    assert Path("augmentation.png").read_bytes().startswith(b"\x89PNG")
    assert [section.heading for section in drawn] == ["cat", "dog", "고양이"]
    file, sha256 = artifacts.SPLIT / "train" / "cat" / "0.png", artifacts.read_part("train").sha256[0]
    changes = augmentation.AugmentationParams.model_validate(values["augmentation"])
    image = decode.load(file, size=SIDE, params=decode.ImageParams.model_validate(values["images"]))
    seed = seeds.child_seed(values["seed"], "head")
    view = augmentation.augment(image, seed=seed, sha256=sha256, view=0, params=changes)
    np.testing.assert_array_equal(drawn[0].strips[0].pictures[1].image, view)


def test_the_command_takes_images_and_needs_no_split(project, drawn):
    file = shutil.copy(artifacts.SPLIT / "train" / "cat" / "0.png", "one.png")
    shutil.rmtree("data")
    assert command_line.main(["augmentation", file, file, "--views", "2", "--output", "sheets/one.png"]) == 0
    assert Path("sheets/one.png").exists()
    assert [len(strip.pictures) for strip in drawn[0].strips] == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.png"], "none.png is no file: name image files"),
        (["data"], "data is no file"),
        (["--views", "0"], "--views must be at least 1, received 0"),
        (["--size", "0"], "--size must be at least 1, received 0"),
        (["params.yaml"], "params.yaml: not an image"),
    ],
)
def test_what_cannot_be_drawn_is_said_and_nothing_is_written(project, arguments, message, capsys):
    assert command_line.main(["augmentation", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list(project.glob("*.png")) and not list(project.glob(".*.png"))


def test_without_a_split_the_command_says_what_is_missing(project, capsys):
    shutil.rmtree("data")
    assert command_line.main(["augmentation"]) == 1
    assert "data/split/manifest.csv is missing" in capsys.readouterr().err
