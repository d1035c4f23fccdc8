"""Folders of people's own, with everything odd in them: what becomes of every file, and whole pipelines over them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.commands import demo
from pipeline.console.progress import NoLog
from pipeline.core import artifacts
from pipeline.core.params import Params
from pipeline.data import sources
from pipeline.stages import dataset, split
from tests import oddities
from tests.oddities import Outcome


class Case(NamedTuple):
    """A generated folder, what it needs in params.yaml, and its class that counts as positive."""

    fill: Callable[[Path], Outcome]
    positive: str | None
    changes: dict[str, Any]


NO_GROUPS = {"pattern": None, "csv": None, "column": None, "module": False}
PATIENTS = NO_GROUPS | {"csv": "patients.csv", "column": "patient"}
CASES = {
    "names": Case(oddities.odd_names, "고양이", {}),
    "formats": Case(oddities.odd_formats, None, {}),
    "contents": Case(oddities.odd_contents, "ill", {"groups": PATIENTS}),
}


class Outputs(NamedTuple):
    outcome: Outcome
    catalog: list[dict[str, str]]
    manifest: list[dict[str, str]]
    quality: dict[str, Any]
    place: Path


@pytest.fixture(scope="module", params=CASES)
def outputs(request, tmp_path_factory) -> Outputs:
    """What the dataset and split stages make of one of the folders."""
    case, place = CASES[request.param], tmp_path_factory.mktemp(request.param)
    outcome = case.fill(place / "images")
    given = {
        "seed": 0,
        "dataset": {
            "source": "folder",
            "path": "images",
            "limit": None,
            "max_dropped": 0.3,
            "conflicting_duplicates": "drop",
            "groups": NO_GROUPS,
            "allow_untracked": True,
            **case.changes,
        },
        "split": {"test": 0.25, "validation": 0.2, "near_duplicates": "auto"},
        "compute": {"threads": 2},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        dataset.main(Params(given, dataset.READS), log=NoLog())
        split.main(Params(given, split.READS), log=NoLog())
        return Outputs(
            outcome,
            artifacts.read_csv(artifacts.CATALOG, sources.CATALOG_COLUMNS),
            artifacts.read_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS),
            artifacts.read_json(dataset.QUALITY),
            place,
        )


def assert_every_file_became_what_it_should(place: Path, outcome: Outcome) -> None:
    catalog = artifacts.read_csv(place / artifacts.CATALOG, sources.CATALOG_COLUMNS)
    assert {row["path"]: row["label"] for row in catalog} == outcome.used
    unused = artifacts.read_csv(place / dataset.UNUSED, dataset.UNUSED_COLUMNS)
    quality = artifacts.read_json(place / dataset.QUALITY)
    for kind in ("dropped", "ignored"):
        expected = getattr(outcome, kind)
        listed = {row["path"]: row["reason"] for row in unused if row["kind"] == kind}
        assert listed.keys() == expected.keys()
        assert not [path for path, reason in listed.items() if expected[path] not in reason]
        assert quality[kind] == len(expected)


def test_every_file_is_used_or_listed_with_its_reason(outputs):
    assert_every_file_became_what_it_should(outputs.place, outputs.outcome)


def test_every_used_file_is_in_one_part_with_its_bytes_and_label(outputs):
    by_digest = {(row["sha256"], row["label"]) for row in outputs.manifest}
    assert len(outputs.manifest) == len(outputs.catalog)
    assert by_digest == {(row["sha256"], row["label"]) for row in outputs.catalog}
    on_disk = [file for file in (outputs.place / artifacts.SPLIT).rglob("*") if file.is_file()]
    assert len(on_disk) == len(outputs.manifest) + 1  # and the manifest
    for row in outputs.manifest:
        file = outputs.place / artifacts.SPLIT / row["path"]
        assert not file.is_symlink()
        assert artifacts.sha256_file(file) == row["sha256"]
        assert row["path"].startswith(f"{row['split']}/{row['label']}/")
        assert len(file.name.encode()) <= 255
    assert len({row["path"].casefold() for row in outputs.manifest}) == len(outputs.manifest)


def test_no_group_duplicate_or_near_duplicate_is_in_two_parts_unless_the_folder_says_so(outputs):
    parts = {}
    for row in outputs.manifest:
        parts.setdefault((row["sha256"], row["label"]), []).append(row["split"])
    predefined = any(row["part"] for row in outputs.catalog)
    shared = 0
    for key in ("sha256", "group", "near_duplicates"):
        members: dict[str, set[str]] = {}
        for row in outputs.catalog:
            members.setdefault(row[key], set()).update(parts[row["sha256"], row["label"]])
        members.pop("", None)
        shared += sum(len(found) > 1 for found in members.values())
    assert (shared > 0) == predefined
    assert outputs.quality["duplicates_across_parts"] == (4 if predefined else 0)


def test_predefined_parts_are_kept_and_the_missing_one_is_drawn_from_train(outputs):
    parts = {(row["sha256"], row["label"], Path(row["path"]).name): row["split"] for row in outputs.manifest}
    if not any(row["part"] for row in outputs.catalog):
        assert {row["split"] for row in outputs.manifest} == set(artifacts.PARTS)
        return
    for row in outputs.catalog:
        now = parts[row["sha256"], row["label"], Path(row["path"]).name]
        assert row["part"] == ("validation" if row["path"].startswith("dev/") else "train")
        assert now == "validation" if row["part"] == "validation" else now in ("train", "test")
    train = sum(row["part"] == "train" for row in outputs.catalog)
    assert abs(sum(row["split"] == "test" for row in outputs.manifest) - train * 0.25) <= 1


def test_what_odd_files_are_is_in_the_catalog(outputs):
    rows = {row["path"]: row for row in outputs.catalog}
    if "Train/circle/animated.gif" in rows:
        facts = {
            name: (rows[f"Train/circle/{name}"]["mode"], rows[f"Train/circle/{name}"]["frames"])
            for name in ("palette.png", "cmyk.jpg", "sixteen.png", "animated.gif", "pages.TIFF")
        }
        assert facts == {
            "palette.png": ("P", "1"),
            "cmyk.jpg": ("CMYK", "1"),
            "sixteen.png": ("I;16", "1"),
            "animated.gif": ("P", "3"),
            "pages.TIFF": ("RGB", "3"),
        }
        turned = rows["Train/circle/turned.JPG"]
        assert (turned["turned"], turned["width"], turned["height"]) == ("1", "64", "72")
        assert outputs.quality["animated"] == 2
    if "ill/black.png" in rows:
        quality = outputs.quality
        assert quality["brightness"]["flat"] == 1
        assert quality["brightness"]["outliers"] == 1
        assert quality["sizes"]["odd"] == 1
        assert quality["duplicates"] == {"images": 4, "conflicting": 2}
        assert quality["near_duplicates"] == {"clusters": 1, "images": 2, "conflicting": 0}
        assert rows["healthy/lighter.png"]["near_duplicates"] == rows["healthy/p00_0.png"]["near_duplicates"] != ""
        assert quality["groups"] == 15


def test_dvc_sees_a_folder_that_was_added_under_data(root, tmp_path):
    """`dvc checkout`, `pull` and experiments in a temporary workspace look for .dvc files where git does not ignore."""
    from dvc.repo import Repo

    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    for name in (".gitignore", ".dvcignore", ".dvc/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(root / name, tmp_path / name)
    (tmp_path / "data").mkdir()
    text = f"outs:\n- md5: {'0' * 32}.dir\n  hash: md5\n  path: images\n"
    (tmp_path / "data" / "images.dvc").write_text(text, encoding="utf-8")
    with Repo(str(tmp_path)) as repo:
        assert [out.def_path for out in repo.index.outs] == ["images"]
        assert repo.scm.is_ignored(str(tmp_path / "data" / "images"))


# --- the whole pipeline ----------------------------------------------------------------------------------------------

TINY = {
    "dataset.source": "folder",
    "dataset.path": "data/images",
    "dataset.max_dropped": 0.3,
    "classifiers": {
        "logistic_regression": {"search": "grid", "grid": {"C": [0.01], "scale": ["standard"], "class_weight": [None]}}
    },
    "head.epochs": 1,
    "fine_tune.backbones": [],
    "scratch.networks": [],
    "explain.runs": ["efficientnet_lite0-head"],
    "compare.bootstrap_samples": 100,
}


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", CASES)
def test_a_folder_runs_through_the_whole_pipeline(clone, environment, name):
    """As the page docs/your-own-folder.md says: copy, `dvc add`, params, `dvc repro`."""
    case = CASES[name]
    overrides = TINY | {"selection.positive_class": case.positive}
    overrides |= {f"dataset.{key}": value for key, value in case.changes.items()}
    place = clone(overrides, leave_out=demo.RESULTS)
    outcome = case.fill(place / "data" / "images")
    remove_what_dvc_refuses(place / "data" / "images", outcome)

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=place, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    run("dvc", "add", "data/images")
    said = run("dvc", "repro")
    assert "cannot be used" not in said
    entries = json.loads((place / artifacts.LEADERBOARD).read_text())
    assert {entry["method"] for entry in entries} == {"logistic_regression", "head"}
    best = max(entry["test"]["accuracy"]["value"] for entry in entries)
    assert best > 1 / len(set(outcome.used.values()))
    assert_every_file_became_what_it_should(place, outcome)
    manifest = artifacts.read_csv(place / artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS)
    assert Counter(row["label"] for row in manifest) == Counter(outcome.used.values())
    # An experiment elsewhere finds the images too, and the same split.
    demo.commit(place, "My images")
    elsewhere = run("dvc", "exp", "run", "--temp", "-S", "head.epochs=2")
    assert re.search(r"Ran experiment\(s\)", elsewhere), elsewhere


def remove_what_dvc_refuses(folder: Path, outcome: Outcome) -> None:
    """DVC cannot add what is no file: these outcomes are asserted above, without it."""
    for name, reason in list(outcome.dropped.items()):
        if re.search("leads nowhere|not a regular file|not UTF-8", reason):
            path = folder / name
            if path.is_symlink() or path.exists():
                path.unlink()
            del outcome.dropped[name]
    for file in folder.rglob("*"):
        if not file.name.isprintable() or "\udcff" in file.name:
            file.unlink()
