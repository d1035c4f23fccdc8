"""The command on a small project whose images come in groups: what it writes, twice, and what it refuses."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline import __main__ as command_line
from pipeline.commands import demo, fairness
from pipeline.console.progress import NoLog
from pipeline.core import artifacts, params, provenance
from pipeline.core.params import Params
from pipeline.data import sources, splits
from pipeline.evaluation import leaderboard
from pipeline.stages import compare, sweep

BACKBONE = "efficientnet_lite0"
GROUP, GROUPS, WIDTH = 6, 40, 48
PICTURES = {"leakage.png", "variance.png", "ranks.png", "optimism.png", "looks.png"}
FILES = {f"{name}.{kind}" for name in fairness.SECTIONS for kind in ("md", "json")} | PICTURES | {"index.md"}
SEARCH = {"scale": ["standard"], "class_weight": [None]}


def values(root: Path) -> dict[str, Any]:
    """The project's params.yaml with two linear families on a folder of images."""
    found = params.load(root / params.PARAMS_FILE)
    found["dataset"] |= {"source": "folder", "path": "images", "allow_untracked": True}
    found["split"] |= {"near_duplicates": "report"}
    found["classifiers"] = {
        "logistic_regression": {"search": "grid", "grid": {"C": [0.001, 0.1, 10.0], **SEARCH}},
        "linear_svm": {
            "search": "random",
            "candidates": 2,
            "grid": {"C": {"low": 0.001, "high": 1.0, "log": True}, **SEARCH},
        },
    }
    for key in ("head", "fine_tune"):
        found[key]["backbones"] = []
    found["scratch"]["networks"] = []
    found["explain"]["runs"] = []
    found["compare"]["bootstrap_samples"] = 200
    return found


def write_project(given: dict[str, Any]) -> None:
    """Write catalog, split and features of images whose label and features are those of their group, with noise."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, GROUPS)
    centers = 3 * generator.standard_normal((GROUPS, WIDTH)) + 0.3 * labels[:, None]
    images, features = [], {}
    for index in range(GROUP * GROUPS):
        group, name = index // GROUP, f"{index:064x}"
        label = ("defective", "functional")[labels[group]]
        images.append(
            sources.SourceImage(
                f"{label}/{index:03d}.png", label, "", f"g{group:02d}", name, "", f"n{index // 2}" if index < 40 else ""
            )
        )
        features[name] = (centers[group] + 0.5 * generator.standard_normal(WIDTH)).astype(np.float32)
    rows = [{**dict.fromkeys(sources.CATALOG_COLUMNS, "1"), **vars(image)} for image in images]
    artifacts.write_csv(artifacts.CATALOG, sources.CATALOG_COLUMNS, rows)
    # By chance, as if nobody had known of the groups.
    alone = [sources.SourceImage(image.path, image.label, "", "", image.sha256) for image in images]
    drawn = splits.assign(alone, params=splits.SplitParams(**given["split"]), seed=given["seed"])
    manifest = [
        {
            "path": f"{part}/{image.path}",
            "label": image.label,
            "split": part,
            "group": image.group,
            "stratum": "",
            "sha256": image.sha256,
        }
        for image, part in zip(images, drawn, strict=True)
    ]
    artifacts.write_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS, manifest)
    directory = artifacts.FEATURES / BACKBONE
    directory.mkdir(parents=True)
    for name in artifacts.PARTS:
        part = np.stack([features[digest] for digest in artifacts.read_part(name).sha256])
        artifacts.write_features(directory, name, [part], shape=part.shape)
    cost = {"parameters": 10, "bytes": 40, "multiply_adds": 100}
    artifacts.write_json(directory / "meta.json", {"cost": cost})


def git(*command: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=A", "-c", "user.email=a@b", *command],
        check=True,
        capture_output=True,
        env=demo.environment(),
    )


def call(*arguments: str) -> tuple[int, str]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = command_line.main(["fairness", "--no-mlflow", *arguments])
    return status, printed.getvalue()


@pytest.fixture(scope="module")
def project(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the pipeline has run, in a git repository without a commit."""
    directory = tmp_path_factory.mktemp("fair")
    with contextlib.chdir(directory), contextlib.redirect_stdout(io.StringIO()):
        given = values(root)
        params.PARAMS_FILE.write_text(yaml.safe_dump(given), encoding="utf-8")
        write_project(given)
        for family in given["classifiers"]:
            item = {"backbone": BACKBONE, "classifier": family}
            declared = Params(given, provenance.resolve(sweep.READS, item=item, values=given))
            sweep.main(declared, **item, log=NoLog())
        compare.main(Params(given, compare.READS), log=NoLog())
        git("init", "--quiet")
    return directory


@pytest.fixture(scope="module")
def written(project: Path) -> tuple[dict[str, bytes], str]:
    """What the command wrote, and what it printed."""
    with contextlib.chdir(project):
        status, printed = call("--splits", "4")
        assert status == 0, printed
        return {path.name: path.read_bytes() for path in fairness.DIRECTORY.iterdir()}, printed


def found(written: tuple[dict[str, bytes], str], name: str) -> dict[str, Any]:
    return json.loads(written[0][f"{name}.json"])["found"]


def test_every_section_has_a_page_numbers_and_figures_and_a_summary_is_printed(written):
    files, printed = written
    assert files.keys() == FILES
    assert all(content.startswith(b"\x89PNG") for name, content in files.items() if name in PICTURES)
    for title in ("Leakage, priced", "Variance", "Selection optimism", "Test looks"):
        assert f"\n{title}\n" in printed and title in files["index.md"].decode()
    assert "not computed" not in files["index.md"].decode()


def test_a_random_split_flatters_where_groups_have_labels(written):
    leakage = found(written, "leakage")
    assert leakage["own"] == "groups"
    for family in leakage["families"].values():
        # A group's label can be learned from its other images; between groups there is little to learn.
        assert family["kinds"]["random"]["accuracy"] > 0.9
        for way in ("over_images", "over_splits"):
            assert family["gaps"]["groups"][way]["value"] > 0.15
        assert family["gaps"]["groups"]["over_images"]["low"] > 0
        assert abs(family["gaps"]["near_duplicates"]["over_images"]["value"]) < 0.1
    counterparts = leakage["counterparts"]["shared"]
    assert counterparts["bytes"] == counterparts["features"] == 0 < counterparts["near_duplicates"]
    assert counterparts["groups"] > 50


def test_a_family_that_draws_nothing_is_fitted_once_a_split(written):
    sources = found(written, "variance")["sources"]["families"]
    assert (sources["logistic_regression"]["draws"], sources["logistic_regression"]["trainings"]) == (False, 1)
    assert (sources["linear_svm"]["draws"], sources["linear_svm"]["trainings"]) == (True, 2)
    components = sources["logistic_regression"]["components"]
    assert all(components[name]["sd"] == 0 for name in components if "seed" in name)
    assert sum(each["share"] for each in components.values()) == pytest.approx(1, abs=1e-4)
    assert (sources["logistic_regression"]["candidates"], sources["linear_svm"]["candidates"]) == (3, 2)


def test_optimism_shows_validation_corrected_and_test_of_the_leaderboard(written, project):
    optimism = found(written, "optimism")
    entries = json.loads((project / artifacts.LEADERBOARD).read_text())
    assert [row["run"] for row in optimism["runs"]] == [entry["run"] for entry in entries]
    for row, entry in zip(optimism["runs"], entries, strict=True):
        assert row["validation"] == entry["validation"]["accuracy"]["value"]
        assert row["test"] == entry["test"]["accuracy"]
        assert row["candidates"] == entry["candidates"]["count"]
        assert row["corrected"]["low"] <= row["corrected"]["value"] <= row["corrected"]["high"]
    assert optimism["champion"]["candidates"] == 5
    assert optimism["champion"]["run"] == entries[0]["run"]


def test_what_test_can_tell_apart_is_of_the_counts_on_the_leaderboard(written, project):
    detectable = found(written, "variance")["detectable"]
    (other,) = detectable["against_champion"]
    paired = json.loads((project / artifacts.LEADERBOARD).read_text())[1]["against_champion"]
    assert other["discordance"] == pytest.approx((paired["only_champion_right"] + paired["only_method_right"]) / 60)
    assert other["told_apart"] == paired["told_apart"]
    assert detectable["images"] == 60


def test_groups_are_drawn_as_a_whole_and_where_not_that_is_said(written):
    assert found(written, "optimism")["grouped"] and found(written, "variance")["grouped"]
    pages = {name: written[0][f"{name}.md"].decode() for name in ("optimism", "variance")}
    assert "Whole groups are drawn" in pages["optimism"]
    assert "which counts single images" in pages["variance"]
    for family in found(written, "variance")["sources"]["families"].values():
        selected = family["selected"]
        # Six images of one group stand and fall together here.
        alone = (selected["accuracy"] * (1 - selected["accuracy"]) / 60) ** 0.5
        assert selected["sampling_sd"] > 1.5 * alone * (1 - 60 / 240) ** 0.5
    assert "drawing another 60 of the 240 images" in pages["variance"]


def test_standard_deviations_have_intervals(written):
    sources = found(written, "variance")["sources"]
    split = sources["families"]["linear_svm"]["selected"]["components"]["split"]
    assert split["low"] < split["sd"] < split["high"]
    page = written[0]["variance.md"].decode()
    assert "sd, split [95% interval]" in page and "of which 3 and 1 degrees of freedom remain" in page


def test_images_that_some_seed_cannot_divide_leave_the_rest_of_the_page(written, project, monkeypatch):
    def assign(*_: Any, seed: int, **__: Any) -> list[str]:
        raise splits.SplitError("The class 'defective' has 6 images in 1 groups")

    monkeypatch.setattr(splits, "assign", assign)
    with contextlib.chdir(project):
        try:
            status, printed = call("variance")
            page = (fairness.DIRECTORY / "variance.md").read_text(encoding="utf-8")
        finally:
            for name, content in written[0].items():
                (fairness.DIRECTORY / name).write_bytes(content)
    assert status == 0, printed
    assert "Not available: The class 'defective' has 6 images in 1 groups." in page
    assert "## What the test part can tell apart" in page


def test_looks_without_a_commit_know_the_claim_alone(written):
    (look,) = found(written, "looks")["looks"]
    assert look["claim"] and look["commit"] is None
    assert not look["vouched"]  # there is no dvc.lock


def test_twice_the_same_bytes_and_one_section_alone_leaves_the_others(written, project):
    with contextlib.chdir(project):
        (fairness.DIRECTORY / "leakage.png").unlink()
        assert call("--splits", "4", "leakage", "optimism")[0] == 0
        assert {path.name: path.read_bytes() for path in fairness.DIRECTORY.iterdir()} == written[0]


def test_a_section_about_other_results_is_not_in_the_index(written, project):
    entries = project / artifacts.LEADERBOARD
    before = entries.read_bytes()
    with contextlib.chdir(project):
        try:
            entries.write_bytes(before + b"\n")
            assert call("looks")[0] == 0
            index = (fairness.DIRECTORY / "index.md").read_text()
            assert "**leakage**: not computed for these results" in index and "[Test looks](looks.md)" in index
        finally:
            entries.write_bytes(before)
            for name, content in written[0].items():
                (fairness.DIRECTORY / name).write_bytes(content)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("leakages",), "Unknown section 'leakages'. Choose from: leakage, variance, optimism, looks"),
        (("--splits", "1"), "--splits must be 2 or more"),
        (("--backbone", "vgg", "leakage"), "--backbone must be one of params.yaml: efficientnet_lite0, received 'vgg'"),
    ],
)
def test_bad_options_are_one_clear_error(project, arguments, message):
    with contextlib.chdir(project):
        status, printed = call(*arguments)
    assert status == 1 and message in printed and "Traceback" not in printed


def test_results_that_are_missing_or_do_not_fit_are_one_clear_error(project, tmp_path):
    with contextlib.chdir(tmp_path):
        params.PARAMS_FILE.write_text((project / params.PARAMS_FILE).read_text(), encoding="utf-8")
        status, printed = call("optimism")
    assert status == 1 and "leaderboard.json is missing: run `dvc repro`" in printed
    run = project / artifacts.RUNS / f"{BACKBONE}-linear_svm" / "predictions.npz"
    before = run.read_bytes()
    with contextlib.chdir(project):
        predictions = artifacts.read_predictions(artifacts.RUNS / f"{BACKBONE}-linear_svm" / "predictions.npz")
        try:
            other = artifacts.Predictions(predictions.validation[..., ::-1].copy(), predictions.test)
            artifacts.write_predictions(run, other)
            status, printed = call("optimism")
        finally:
            run.write_bytes(before)
    assert status == 1 and "is not of the predictions in" in printed


def test_what_is_missing_is_said_before_anything_is_fitted(project, monkeypatch):
    monkeypatch.setattr(fairness.repeated_splits, "sweep", lambda *_, **__: pytest.fail("fitted"))
    details = project / leaderboard.DETAILS
    before = details.read_bytes()
    try:
        old = {key: value for key, value in json.loads(before).items() if key not in ("pairs", "ranks")}
        details.write_text(json.dumps(old), encoding="utf-8")
        with contextlib.chdir(project):
            status, printed = call()
    finally:
        details.write_bytes(before)
    assert status == 1 and "results/details.json was written by an older version: run `dvc repro`" in printed


def test_an_image_that_is_in_training_too_is_found(project):
    """A test image under another name in training: the bytes differ, the pixels and so the features do not."""
    train, test = (project / artifacts.FEATURES / BACKBONE / f"{name}.npy" for name in ("train", "test"))
    before = train.read_bytes()
    try:
        features = np.load(train)
        features[5] = np.load(test)[7]
        np.save(train, features)
        with contextlib.chdir(project):
            assert call("--splits", "2", "leakage")[0] == 0
            shared = json.loads((fairness.DIRECTORY / "leakage.json").read_text())["found"]["counterparts"]["shared"]
    finally:
        train.write_bytes(before)
    assert (shared["bytes"], shared["features"]) == (0, 1)
