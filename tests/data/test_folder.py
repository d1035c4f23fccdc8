"""A folder of one's own: what counts as a class, a part, an image; when it is refused; groups; who tracks it."""

from __future__ import annotations

import subprocess
import unicodedata
from pathlib import Path

import pytest

from pipeline.core import params
from pipeline.data import sources
from pipeline.data.sources import DatasetError, DatasetParams, folder, tracked
from pipeline.data.sources.groups import GroupError

NO_GROUPS = {"pattern": None, "csv": None, "column": None, "module": False}


def given(path: str | Path = "images", *, groups: dict | None = None, **changes) -> DatasetParams:
    values = {
        "source": "folder",
        "path": str(path),
        "limit": None,
        "max_dropped": 0.01,
        "allow_untracked": True,
        "conflicting_duplicates": "drop",
        "groups": NO_GROUPS | (groups or {}),
        **changes,
    }
    return params.parse(values, DatasetParams, where="dataset")


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Return a function that puts files, each with its path as content, into a new folder and returns it."""
    monkeypatch.chdir(tmp_path)

    def fill(*paths: str) -> Path:
        for path in paths:
            file = Path("images", path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(path, encoding="utf-8")
        return Path("images")

    return fill


def test_the_first_folder_is_the_class_and_what_is_below_belongs_to_it(images):
    images("cat/1.png", "cat/b/c/2.png", "dog/1.png")
    source = sources.read(given())
    assert [(image.path, image.label, image.part) for image in source.images] == [
        ("cat/1.png", "cat", ""),
        ("cat/b/c/2.png", "cat", ""),
        ("dog/1.png", "dog", ""),
    ]
    assert sources.class_names(given()) == ("cat", "dog")


@pytest.mark.parametrize("name", ["validation", "val", "valid", "dev", "VAL"])
def test_folders_named_after_parts_predefine_them(images, name):
    images("train/cat/1.png", "train/dog/1.png", f"{name}/cat/2.png", "Test/dog/x/3.png")
    source = sources.read(given())
    assert {image.path: (image.label, image.part) for image in source.images} == {
        "train/cat/1.png": ("cat", "train"),
        "train/dog/1.png": ("dog", "train"),
        f"{name}/cat/2.png": ("cat", "validation"),
        "Test/dog/x/3.png": ("dog", "test"),
    }


@pytest.mark.parametrize(
    "paths", [("train/1.png", "bus/1.png"), ("valid/1.png", "invalid/1.png"), ("dev/1.png", "ops/1.png", "test/2.png")]
)
def test_a_class_may_be_called_like_a_part(images, paths):
    images(*paths)
    assert {image.part for image in sources.read(given()).images} == {""}
    assert set(sources.class_names(given())) == {path.partition("/")[0] for path in paths}


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["train/a/1.png", "train/b/1.png", "c/1.png"], r"folders named after parts \(train\) and others \(c\)"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "dev/a/1.png"], "several folders for the part validation: "),
        (["val/a/1.png", "test/b/1.png"], "holds test, val but no folder train"),
        (["train/1.png", "test/1.png"], "train.* must hold class folders, and hold none|test, train must hold class"),
        (["a/1.png"], "at least two class folders with images, received a"),
        (["1.png", "2.png"], "at least two class folders with images, received none"),
        (["cat/1.png", "Cat/1.png", "dog/1.png"], "the classes Cat and cat differ in upper case alone"),
        (["a/.hidden", "b/Thumbs.db"], "received none"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused_with_what_is_wrong(images, paths, message):
    images(*paths)
    with pytest.raises(DatasetError, match=message):
        sources.read(given())


def test_a_missing_or_empty_folder_is_refused_whatever_params_allow(images, tmp_path):
    with pytest.raises(DatasetError, match="images does not exist$"):
        sources.read(given())
    Path("images.dvc").write_text("outs: []", encoding="utf-8")
    with pytest.raises(DatasetError, match="images does not exist; `dvc pull` fetches it"):
        sources.read(given())
    Path("images").mkdir()
    with pytest.raises(DatasetError, match="images is empty"):
        sources.read(given())
    Path("file").write_text("", encoding="utf-8")
    with pytest.raises(DatasetError, match="file is a file"):
        sources.read(given("file"))
    assert sources.class_names(given("none")) is None


def test_a_folder_that_cannot_be_listed_is_an_error_however_many_images_it_holds(images, monkeypatch):
    images("cat/1.png", "cat/inside/2.png", "dog/1.png")
    scandir = folder.os.scandir

    def scan(path):
        if str(path).endswith("inside"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(folder.os, "scandir", scan)
    with pytest.raises(DatasetError, match=r"^images/cat/inside cannot be listed \(Permission denied\)$"):
        sources.read(given())


def test_links_to_folders_are_named_loudly_because_any_number_of_images_may_be_behind_them(images, capsys):
    images("cat/1.png", "dog/1.png", "dog/2.png")
    Path("elsewhere").mkdir()
    Path("images/bird").symlink_to("../elsewhere", target_is_directory=True)
    Path("images/cat/more").symlink_to("../dog", target_is_directory=True)
    source = sources.read(given())
    assert {entry.path: entry.kind for entry in source.unused} == {"bird": "dropped", "cat/more": "dropped"}
    said = capsys.readouterr().out
    assert "WARNING: links to folders are not followed, nor does DVC follow them, so no image behind" in said
    assert ": bird, cat/more. Copy the folders" in said


def test_names_that_differ_in_unicode_form_alone_are_one_class(images):
    one, other = (unicodedata.normalize(form, "개") for form in ("NFC", "NFD"))
    images(f"train/{one}/1.png", f"test/{other}/2.png", "train/x/1.png")
    assert {image.label for image in sources.read(given()).images} == {one, "x"}


def test_a_thousand_classes_are_read(images):
    images(*(f"{number:03d}/{name}.png" for number in range(1000) for name in "ab"))
    source = sources.read(given())
    assert len(source.images) == 2000
    assert len({image.label for image in source.images}) == 1000


def test_the_order_in_which_a_file_system_lists_does_not_matter(images, monkeypatch):
    images("cat/1.png", "cat/2.png", "cat/b/3.png", "dog/.x", "dog/1.png", "stray.png", "empty/.x")
    expected = sources.read(given())
    scandir = folder.os.scandir

    class Backwards(list):
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    monkeypatch.setattr(folder.os, "scandir", lambda path: Backwards(reversed(list(scandir(path)))))
    assert sources.read(given()) == expected


# --- groups ----------------------------------------------------------------------------------------------------------


def groups_of(**groups) -> dict[str, str]:
    return {image.path: image.group for image in sources.read(given(groups=groups)).images}


def test_the_first_capture_of_a_pattern_is_the_group(images):
    images("cat/p1_a.png", "dog/p1_b.png", "dog/p2_a.png", "dog/other.png")
    assert groups_of(pattern="/(?:(p[0-9]+)_|other)") == {
        "cat/p1_a.png": "p1",
        "dog/p1_b.png": "p1",
        "dog/p2_a.png": "p2",
        "dog/other.png": "",
    }
    with pytest.raises(GroupError, match=r"matches 3 of 4 images. Without one:\n  dog/other.png\n"):
        groups_of(pattern="/(p[0-9]+)_")


def test_a_table_among_the_images_names_the_groups_and_is_no_image(images):
    images("cat/1.png", "cat/2.png", "dog/한.png")
    decomposed = unicodedata.normalize("NFD", "dog/한.png")
    rows = ["\ufeffpath,animal", "cat/1.png,Tom", "cat/2.png,", f"{decomposed},Rex", "dog/gone.png,Rex"]
    Path("images/animals.csv").write_text("\n".join(rows), encoding="utf-8")
    assert groups_of(csv="animals.csv", column="animal") == {"cat/1.png": "Tom", "cat/2.png": "", "dog/한.png": "Rex"}
    assert sources.read(given(groups={"csv": "animals.csv", "column": "animal"})).unused == ()
    assert sources.read(given(groups={"csv": "./cat/../animals.csv", "column": "animal"})).unused == ()
    assert [entry.path for entry in sources.read(given()).unused] == ["animals.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,animal\ncat/1.png,Tom\n", r"has a row for 1 of 2 images. Without one:\n  dog/1.png"),
        ("path,animal\ncat/1.png,Tom\ncat/1.png,Rex\n", "cat/1.png is in two groups, 'Tom' and 'Rex'"),
        ("animal,path\nTom,cat/1.png\nRex\n", r"animals.csv: line 3 has too few cells, and none in the column path"),
        ("file,animal\n", r"must have the columns path and animal, received \['file', 'animal'\]"),
        (None, r"dataset.groups.csv must name a CSV file, received images/animals.csv"),
    ],
)
def test_a_table_that_leaves_an_image_open_is_refused(images, text, message):
    images("cat/1.png", "dog/1.png")
    if text is not None:
        Path("images/animals.csv").write_text(text, encoding="utf-8")
    with pytest.raises(GroupError, match=message):
        groups_of(csv="animals.csv", column="animal")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"pattern": "("}, r"dataset.groups.pattern must be a regular expression \(missing"),
        ({"pattern": "p1"}, "must be a regular expression with a capture group"),
        ({"csv": "../a.csv", "column": "b"}, "csv must be the path of a file below dataset.path, relative to it"),
        ({"csv": "/a.csv", "column": "b"}, "csv must be the path of a file below dataset.path, relative to it"),
        ({"csv": "a.csv"}, "must be given csv and column together"),
        ({"pattern": "(a)", "csv": "a.csv", "column": "b"}, "must be at most one of pattern, csv with column"),
        ({"module": True}, "without groups.module unless source is elpv"),
    ],
)
def test_groups_that_cannot_be_meant_are_refused_before_anything_is_read(groups, message):
    with pytest.raises(params.ParamsError, match=message):
        given(groups=groups)


# --- tracking --------------------------------------------------------------------------------------------------------


def git(*command: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *identity, *command], check=True, capture_output=True)


@pytest.fixture
def project(images):
    """A git repository with params.yaml in it and a folder of images that nobody tracks."""
    images("cat/1.png", "dog/1.png")
    Path("params.yaml").write_text("seed: 0\n", encoding="utf-8")
    git("init", "--quiet")
    git("add", "params.yaml")
    return Path("images")


def test_a_folder_that_nobody_tracks_is_refused_unless_params_allow_it(project):
    with pytest.raises(DatasetError, match="Neither DVC nor git tracks all of images.*`dvc add images`"):
        sources.read(given(allow_untracked=False))
    assert len(sources.read(given()).images) == 2


def test_files_in_git_are_tracked_and_a_link_to_a_folder_is_not(project):
    git("add", "images/cat/1.png")
    assert not tracked.by_dvc_or_git(Path("images"))  # nobody has the dog
    git("add", "images/dog/1.png")
    assert tracked.by_dvc_or_git(Path("images"))
    for name in (".DS_Store", "cat/.thumbnails/1.png", "dog/Thumbs.db", "__MACOSX/1.png"):
        Path("images", name).parent.mkdir(exist_ok=True)
        Path("images", name).write_bytes(b"")
    assert tracked.by_dvc_or_git(Path("images"))
    Path(".gitignore").write_text("*.jpg\n", encoding="utf-8")
    Path("images/dog/2.jpg").write_bytes(b"")
    assert not tracked.by_dvc_or_git(Path("images"))
    Path("images/dog/2.jpg").unlink()
    Path("link").symlink_to("images", target_is_directory=True)
    git("add", "link")
    assert not tracked.by_dvc_or_git(Path("link"))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("images.dvc", "outs:\n- path: images\n", True),
        ("all.dvc", "wdir: .\nouts:\n- path: other\n- path: images\n", True),
        ("images.dvc", "outs:\n- path: other\n", False),
        ("images.dvc", "outs: 3\n", False),
        ("images.dvc", "[", False),
    ],
)
def test_a_dvc_file_that_lists_the_folder_tracks_it(project, name, text, expected):
    Path(name).write_text(text, encoding="utf-8")
    assert tracked.by_dvc_or_git(Path("images")) == expected


def test_a_folder_above_that_is_tracked_counts(project):
    Path("images.dvc").write_text("outs:\n- path: images\n", encoding="utf-8")
    assert tracked.by_dvc_or_git(Path("images/cat"))


def test_a_source_archive_and_a_machine_without_git_need_no_tracking(project, monkeypatch):
    assert not tracked.by_dvc_or_git(project)
    git("rm", "--cached", "--quiet", "params.yaml")  # as in an archive that was unpacked inside a repository
    assert tracked.by_dvc_or_git(project)
    git("add", "params.yaml")
    monkeypatch.setenv("PATH", "")
    assert tracked.by_dvc_or_git(project)
