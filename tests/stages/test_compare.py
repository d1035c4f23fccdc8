"""The comparison of finished runs, on tiny splits and predictions written with the real writers."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.commands import leaderboard as leaderboard_command
from pipeline.console.progress import NoLog
from pipeline.core import artifacts
from pipeline.core.params import Params
from pipeline.evaluation import leaderboard, metrics
from pipeline.evaluation.calibration import calibrators
from pipeline.show import leaderboard_tables
from pipeline.stages import compare

CLASSES = ("defective", "functional")
# Per class and stratum, of each part.
EACH = {"train": 2, "validation": 10, "test": 15}
COMPARE = {"confidence": 0.95, "bootstrap_samples": 200, "calibration_bins": 10, "calibration": None, "ensemble": None}
KERAS_HISTORY = {
    "loss": [0.7, 0.5],
    "accuracy": [0.6, 0.8],
    "val_loss": [0.6, 0.65],
    "val_accuracy": [0.7, 0.7],
    "learning_rate": [0.01, 0.001],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory of a finished comparison of three runs, and what it printed."""
    directory = tmp_path_factory.mktemp("compared")
    printed = io.StringIO()
    with contextlib.chdir(directory), contextlib.redirect_stdout(printed):
        write_manifest()
        write_three_runs()
        compare.main(params(), log=NoLog())
    return directory, printed.getvalue()


@pytest.fixture
def compared(finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Stand in the directory of the finished comparison, to read from only; what it printed."""
    monkeypatch.chdir(finished[0])
    return finished[1]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a directory that holds a split and no run; figures, the slow part, are left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, "_draw", lambda *_: None)
    write_manifest()
    return tmp_path


def write_manifest(
    classes: Sequence[str] = CLASSES, strata: Sequence[str] = ("mono", "poly"), grouped_by: int | None = None
) -> None:
    """``grouped_by``: so many images of a class and stratum in a row are of one group."""
    rows = [
        dict(
            path=f"{part}/{label}/{stratum}{index}.png",
            label=label,
            split=part,
            stratum=stratum,
            group=f"{part}{label}{stratum}{index // grouped_by}" if grouped_by else "",
            sha256=f"{part}{label}{stratum}{index}",
        )
        for part, count in EACH.items()
        for label in classes
        for stratum in strata
        for index in range(count)
    ]
    artifacts.write_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS, rows)


def params(**changes: Any) -> Params:
    values = {
        "seed": 0,
        "repeats": 1,
        "backbones": ["lite"],
        "classifiers": {"svm": {}, "trees": {}},
        "head": {"backbones": []},
        "fine_tune": {"backbones": []},
        "scratch": {"networks": ["convnet"]},
        "selection": {"metric": "accuracy", "positive_class": "defective"},
        "compare": COMPARE,
    }
    return Params(values | changes, compare.READS)


def probabilities(labels: np.ndarray, *, right: float, n_classes: int = 2, seed: int = 0) -> np.ndarray:
    """Return probabilities whose most probable class is right for exactly this share of the images."""
    generator = np.random.default_rng(seed)
    wrong = generator.permutation(len(labels))[: round((1 - right) * len(labels))]
    predicted = labels.copy()
    predicted[wrong] = (labels[wrong] + 1) % n_classes
    confidence = generator.uniform(0.55, 0.95, len(labels))
    values = np.repeat((1 - confidence)[:, None] / (n_classes - 1), n_classes, axis=1)
    values[np.arange(len(labels)), predicted] = confidence
    return values.astype(np.float32)


def write_run(
    network: str,
    method: str,
    *,
    validation: Sequence[float],
    test: float,
    selected: int = 0,
    stage: str = "sweep",
    converged: Sequence[bool] | None = None,
    history: Mapping[str, list[float]] | None = None,
    notes: Mapping[str, int] | None = None,
    seed: int = 0,
    again: Sequence[tuple[float, float]] = (),
    draws: bool = True,
) -> None:
    """Write a run whose candidates are right on these shares of the validation images.

    ``again``: shares of validation and test of the selected candidate's further trainings.
    """
    part = artifacts.read_part("validation")
    count = len(part.classes)
    tests = artifacts.read_test_labels()
    directory = artifacts.RUNS / f"{network}-{method}"
    candidates = [
        artifacts.Candidate(
            name=f"C={index}",
            parameters={"C": index},
            converged=converged[index] if converged else True,
            history=history or {},
            notes=notes or {},
        )
        for index in range(len(validation))
    ]
    stacked = [probabilities(part.labels, right=share, n_classes=count, seed=seed) for share in validation]
    artifacts.write_predictions(
        directory / "predictions.npz",
        artifacts.Predictions(
            np.stack(stacked),
            probabilities(tests, right=test, n_classes=count, seed=seed + 1),
            *(
                [
                    np.stack([probabilities(labels, right=share, n_classes=count, seed=seed + 2) for share in shares])
                    for labels, shares in zip((part.labels, tests), zip(*again, strict=True), strict=True)
                ]
                if again
                else ()
            ),
        ),
    )
    artifacts.write_record(
        directory / "record.json",
        artifacts.Record(
            stage=stage,
            network=network,
            method=method,
            classes=list(part.classes),
            parameters={},
            inputs={"data/split/manifest.csv": artifacts.sha256_file(artifacts.MANIFEST)},
            candidates=candidates,
            selected=selected,
            draws=draws,
            repeats=[artifacts.Repeat(seed=number) for number in range(len(again))],
            cost=artifacts.Cost(
                trainable_parameters=1281, total_parameters=3_400_000, model_bytes=17_000_000, multiply_adds=407_000_000
            ),
        ),
    )


def write_three_runs() -> None:
    """The SVM wins on validation; the trees would have won on test."""
    write_run("lite", "svm", validation=[0.6, 0.9], selected=1, test=0.8, converged=[False, True], seed=1)
    write_run(
        "lite",
        "trees",
        validation=[0.8],
        test=0.9,
        history={"validation_log_loss": [0.6, 0.5, 0.52]},
        notes={"best_iteration": 2},
        seed=2,
    )
    write_run(
        "convnet",
        "scratch",
        validation=[0.6],
        test=0.6,
        stage="scratch",
        history=KERAS_HISTORY,
        notes={"best_epoch": 1},
        seed=3,
    )


def entries() -> list[dict[str, Any]]:
    return artifacts.read_json(artifacts.LEADERBOARD)


def test_validation_chooses_the_champion_even_where_test_disagrees(compared):
    svm, trees, scratch = entries()
    assert [svm["champion"], trees["champion"], scratch["champion"]] == [True, False, False]
    assert [svm["method"], trees["method"], scratch["method"]] == ["svm", "trees", "scratch"]
    assert svm["validation"]["accuracy"]["value"] == 0.9 > trees["validation"]["accuracy"]["value"]
    assert svm["test"]["accuracy"]["value"] == 0.8 < trees["test"]["accuracy"]["value"]
    assert trees["against_champion"]["ahead_on_test"]
    assert "On test alone lite · trees (0.900) would rank higher" in Path("results/leaderboard.md").read_text()


def test_equal_accuracy_is_decided_by_log_loss_then_by_declared_order(project):
    write_run("lite", "trees", validation=[0.8], test=0.8, seed=5)
    write_run("lite", "svm", validation=[0.8], test=0.8, seed=5)
    only_sweeps = params(scratch={"networks": []})
    compare.main(only_sweeps, log=NoLog())
    assert [entry["method"] for entry in entries()] == ["svm", "trees"]

    predictions = artifacts.read_predictions(artifacts.RUNS / "lite-trees/predictions.npz")
    # Surer where it is right, less sure where it is wrong: same decisions, smaller loss.
    labels = artifacts.read_part("validation").labels
    surer = predictions.validation.copy()
    right = surer[0].argmax(axis=1) == labels
    surer[0, right] = np.where(np.eye(2)[labels[right]] > 0, 0.96, 0.04)
    artifacts.write_predictions(
        artifacts.RUNS / "lite-trees/predictions.npz", artifacts.Predictions(surer, predictions.test)
    )
    compare.main(only_sweeps, log=NoLog())
    assert [entry["method"] for entry in entries()] == ["trees", "svm"]


def test_every_declared_output_is_written_and_twice_with_the_same_bytes(finished, tmp_path, monkeypatch):
    directory, _ = finished
    first = {path: (directory / path).read_bytes() for path in compare.OUTPUTS}
    results = directory / "results"
    written = {path.relative_to(directory).as_posix() for path in results.rglob("*") if path.is_file()}
    assert {path for path in written if not path.startswith("results/runs/")} == set(compare.OUTPUTS)
    for path in compare.INPUTS:
        copy = shutil.copytree if (directory / path).is_dir() else shutil.copyfile
        (tmp_path / path).parent.mkdir(parents=True)
        copy(directory / path, tmp_path / path)
    monkeypatch.chdir(tmp_path)
    # What a comparison leaves that is killed while it writes.
    for path in map(Path, compare.OUTPUTS):
        path.parent.mkdir(exist_ok=True)
        path.with_name(f".{path.name}.abc123").write_text("half")
    compare.main(params(), log=NoLog())
    assert {path: Path(path).read_bytes() for path in compare.OUTPUTS} == first
    assert not list(Path("results").rglob(".*"))


def test_entries_hold_every_metric_with_an_interval_around_it(compared):
    labels = artifacts.read_test_labels()
    for entry in entries():
        predictions = artifacts.read_predictions(artifacts.RUNS / entry["run"] / "predictions.npz")
        expected = metrics.compute(predictions.test, labels, positive=0, calibration_bins=10)
        assert entry["test"].keys() == entry["validation"].keys() == set(metrics.NAMES)
        for name, bounds in entry["test"].items():
            assert bounds["value"] == pytest.approx(expected[name], rel=1e-5)
            assert bounds["low"] < bounds["high"]
            # Resampling biases the calibration error upwards; all others lie inside their interval.
            assert name == "expected_calibration_error" or bounds["low"] <= bounds["value"] <= bounds["high"]


def test_corrected_p_values_are_never_smaller_and_the_champion_has_none(compared):
    champion, *others = entries()
    assert champion["against_champion"] is None
    for entry in others:
        paired = entry["against_champion"]
        assert 0 < paired["p"] <= paired["p_holm"] <= 1
        value = entry["test"]["accuracy"]["value"] - champion["test"]["accuracy"]["value"]
        gained = paired["only_method_right"] - paired["only_champion_right"]
        assert paired["difference"]["value"] == pytest.approx(value) == pytest.approx(gained / 60)
        assert paired["difference"]["low"] <= paired["difference"]["value"] <= paired["difference"]["high"]


def test_alike_images_of_one_group_make_intervals_wider_and_p_larger(project, capsys):
    """The same predictions, once of 60 images, once of 12 groups that are right or wrong as a whole."""
    found = {}
    for grouped_by in (None, 5):
        write_manifest(grouped_by=grouped_by)
        for method, wrong in (("svm", (0, 7)), ("trees", (0, 2, 3, 7, 8))):
            write_run("lite", method, validation=[0.9 if method == "svm" else 0.8], test=1.0)
            file = artifacts.RUNS / f"lite-{method}" / "predictions.npz"
            kept = artifacts.read_predictions(file)
            flipped = np.where(np.isin(np.arange(60) // 5, wrong)[:, None], kept.test[:, ::-1], kept.test)
            artifacts.write_predictions(file, dataclasses.replace(kept, test=flipped))
        write_run("convnet", "scratch", validation=[0.5], test=1.0, stage="scratch")
        compare.main(params(compare=COMPARE | {"bootstrap_samples": 2000}), log=NoLog())
        units = artifacts.read_json(Path("results/details.json"))["intervals"]["units"]
        found[grouped_by] = {one["run"]: one for one in entries()}, units, capsys.readouterr()
    (alone, units, said), (grouped, units_of_groups, said_of_groups) = found[None], found[5]
    assert (units, units_of_groups) == ({"validation": 40, "test": 60}, {"validation": 8, "test": 12})
    narrow, wide = (each["lite-svm"]["test"]["accuracy"] for each in (alone, grouped))
    assert (narrow["low"], narrow["high"]) == pytest.approx((0.7196, 0.9069), abs=1e-4), "Wilson's"
    # 12 witnesses, not 60: 10 groups have 5/6 images more right than expected, and 2 groups 25/6 fewer.
    half = 2.201 * (12 / 11 * (10 * (5 / 6) ** 2 + 2 * (25 / 6) ** 2)) ** 0.5 / 60
    assert (wide["low"], wide["high"]) == (pytest.approx(5 / 6 - half, abs=1e-4), 1)
    paired = [each["lite-trees"]["against_champion"] for each in (alone, grouped)]
    assert all((each["only_champion_right"], each["only_method_right"]) == (15, 0) for each in paired)
    assert [each["p"] for each in paired] == [pytest.approx(2 / 2**15, rel=1e-4), 2 / 2**3]
    assert [each["convnet-scratch"]["test"]["accuracy"]["low"] for each in (alone, grouped)] == [
        pytest.approx(count / (count + 3.8415), abs=1e-5) for count in (60, 12)
    ]
    assert "60 test images (in 12 groups, which are drawn whole)" in said_of_groups.out
    assert "groups" not in said.out
    warnings = [f"Warning: {part} has only {count} groups" for part, count in (("validation", 8), ("test", 12))]
    assert all(warning in said_of_groups.out for warning in warnings) and "Warning" not in said.out
    page = Path("results/leaderboard.md").read_text(encoding="utf-8")
    assert "bootstrap resamples of whole groups, 12 in test" in page and "a group take sides as one" in page
    assert all(warning in page for warning in warnings)
    assert "by accuracy, among equal ones by log loss; the models" in page
    assert "that of a ratio over whole groups, or Wilson's where it is wider" in page


def test_methods_that_test_does_not_tell_from_the_champion_are_marked_everywhere(compared):
    champion, trees, scratch = entries()
    assert champion["against_champion"] is None
    for entry in (trees, scratch):
        assert entry["against_champion"]["told_apart"] == (entry["against_champion"]["p_holm"] < 0.05)
    assert (trees["against_champion"]["told_apart"], scratch["against_champion"]["told_apart"]) == (False, True)
    rows = leaderboard.csv_table(entries())[1]
    assert [row["told_apart"] for row in rows] == [None, False, True]
    markdown = Path("results/leaderboard.md").read_text()
    short = leaderboard_tables.short_markdown(entries(), confidence=0.95)
    for table in (markdown, short):
        header, _, *lines = [line.split(" | ") for line in table.splitlines() if line.startswith("|")]
        assert [line[header.index("≈ champion")] for line in lines] == ["", "≈", ""]
    assert "≈ marks the methods that it does not tell from the champion (p of 0.05 or more)" in markdown
    header, *lines = compared.splitlines()[2:]
    place = header.index("≈ champion") + len("≈ champion") - 1
    assert [line[place].strip() for line in lines[:3]] == ["", "≈", ""]


def test_details_hold_every_pair_and_how_stable_the_places_are(compared):
    details = artifacts.read_json(Path("results/details.json"))
    labels = artifacts.read_test_labels()
    names = [entry["run"] for entry in entries()]
    right = {
        name: artifacts.read_predictions(artifacts.RUNS / name / "predictions.npz").test.argmax(1) == labels
        for name in names
    }
    assert [(pair["first"], pair["second"]) for pair in details["pairs"]] == [
        (names[0], names[1]),
        (names[0], names[2]),
        (names[1], names[2]),
    ]
    for pair in details["pairs"]:
        first, second = right[pair["first"]], right[pair["second"]]
        assert pair["only_first_right"] == (first & ~second).sum()
        assert pair["only_second_right"] == (second & ~first).sum()
    ranks = details["ranks"]
    assert [ranks["validation"]["runs"][name]["place"] for name in names] == [1, 2, 3]
    # On test the trees lead.
    assert [ranks["test"]["runs"][name]["place"] for name in names] == [2, 1, 3]
    assert ranks["kendall_tau_of_validation_and_test"] == pytest.approx(1 / 3, abs=1e-5)
    for part in ("validation", "test"):
        assert 0.5 < ranks[part]["kendall_tau"]["value"] <= ranks[part]["kendall_tau"]["high"] <= 1
        shares = np.array([one["shares"] for one in ranks[part]["runs"].values()])
        assert shares.sum(axis=0) == pytest.approx(np.ones(3)) and shares.sum(axis=1) == pytest.approx(np.ones(3))
    assert ranks["test"]["runs"]["convnet-scratch"]["shares"][2] > 0.95


def test_one_method_alone_has_a_place_and_nothing_to_be_ranked_against(project):
    write_run("lite", "svm", validation=[0.8], test=0.8)
    compare.main(params(classifiers={"svm": {}}, scratch={"networks": []}), log=NoLog())
    details = artifacts.read_json(Path("results/details.json"))
    assert details["pairs"] == []
    assert details["ranks"]["test"]["runs"] == {"lite-svm": {"place": 1, "shares": [1.0]}}
    assert details["ranks"]["test"]["kendall_tau"]["value"] is None


def test_network_without_pretraining_has_no_backbone_and_costs_are_kept(compared):
    by_run = {entry["run"]: entry for entry in entries()}
    assert by_run["convnet-scratch"]["backbone"] is None
    assert by_run["convnet-scratch"]["network"] == "convnet"
    assert by_run["lite-svm"]["backbone"] == "lite"
    assert by_run["lite-svm"]["cost"]["multiply_adds"] == 407_000_000


def test_candidates_that_did_not_converge_are_counted_and_shown(compared):
    svm = entries()[0]
    assert svm["candidates"] == {"count": 2, "unconverged": 1}
    assert svm["candidate"] == {"name": "C=1", "parameters": {"C": 1}, "converged": True}
    for text in (compared, Path("results/leaderboard.md").read_text()):
        assert "1 of 2 candidates did not converge" in text
        assert "selected one among them" not in text


def test_strata_partition_the_test_part_and_are_left_out_when_there_is_one(project):
    write_three_runs()
    compare.main(params(), log=NoLog())
    for entry in entries():
        strata = entry["strata"]
        assert {name: stratum["n"] for name, stratum in strata.items()} == {"mono": 30, "poly": 30}
        mean = sum(stratum["value"] for stratum in strata.values()) / 2
        assert mean == pytest.approx(entry["test"]["accuracy"]["value"], abs=1e-5)
    write_manifest(strata=[""])
    write_three_runs()
    compare.main(params(), log=NoLog())
    assert all(entry["strata"] == {} for entry in entries())


def test_details_hold_what_the_leaderboard_sums_up(compared):
    details = artifacts.read_json(Path("results/details.json"))
    svm = details["runs"]["lite-svm"]
    assert details["champion"] == "lite-svm"
    assert [candidate["validation"]["accuracy"] for candidate in svm["candidates"]] == [0.6, 0.9]
    confusion = np.array(svm["confusion"]["test"])
    assert confusion.sum() == 60 and confusion.trace() / 60 == pytest.approx(0.8)
    assert {name: values["support"] for name, values in svm["per_class"]["test"].items()} == dict.fromkeys(CLASSES, 30)


def test_metrics_json_is_nested_numbers_few_enough_for_one_screen(compared):
    summary = artifacts.read_json(Path("results/metrics.json"))
    assert summary["champion"]["test_accuracy"] == summary["lite-svm"]["test_accuracy"] == 0.8
    assert summary.keys() == {"champion", "lite-svm", "lite-trees", "convnet-scratch"}
    assert all(isinstance(value, float) for values in summary.values() for value in values.values())


def test_strays_are_named_with_the_command_that_removes_them_and_change_nothing(project, capsys):
    write_three_runs()
    compare.main(params(), log=NoLog())
    before = artifacts.LEADERBOARD.read_bytes()
    write_run("lite", "forest", validation=[1.0], test=1.0)
    capsys.readouterr()
    compare.main(params(), log=NoLog())
    assert artifacts.LEADERBOARD.read_bytes() == before
    output = capsys.readouterr().out
    assert "results/runs/lite-forest is not declared" in output
    assert "python -m pipeline prune" in output


def test_declared_run_that_is_missing_is_an_error(project):
    write_run("lite", "svm", validation=[0.8], test=0.8)
    with pytest.raises(artifacts.ArtifactError, match=r"results/runs/lite-trees/record.json is missing.*dvc repro"):
        compare.main(params(), log=NoLog())


def test_run_of_another_split_is_refused(project):
    write_three_runs()
    manifest = artifacts.MANIFEST.read_text().splitlines(keepends=True)
    artifacts.MANIFEST.write_text("".join([manifest[0], manifest[2], manifest[1], *manifest[3:]]))
    with pytest.raises(artifacts.ArtifactError, match=r"lite-svm was made from another split"):
        compare.main(params(), log=NoLog())


def test_selection_that_validation_does_not_confirm_is_refused(project):
    write_three_runs()
    write_run("lite", "svm", validation=[0.6, 0.9], selected=0, test=0.8)
    with pytest.raises(artifacts.ArtifactError, match=r"selects candidate 0 \(C=0\).*the best is 1 \(C=1\)"):
        compare.main(params(), log=NoLog())


def test_predictions_of_another_number_of_images_are_refused(project):
    write_three_runs()
    path = artifacts.RUNS / "lite-svm/predictions.npz"
    predictions = artifacts.read_predictions(path)
    artifacts.write_predictions(path, artifacts.Predictions(predictions.validation, predictions.test[:-1]))
    with pytest.raises(artifacts.ArtifactError, match=r"must have the shapes .*60, 2.*received.*59, 2"):
        compare.main(params(), log=NoLog())


def test_more_than_two_classes_are_compared_without_a_positive_one(project):
    write_manifest(classes=("daisy", "rose", "tulip"), strata=[""])
    write_three_runs()
    compare.main(params(selection={"metric": "macro_f1", "positive_class": None}), log=NoLog())
    champion = entries()[0]
    assert champion["run"] == "lite-svm"
    assert champion["selected_by"] == "macro_f1"
    assert 0.5 < champion["test"]["roc_auc"]["value"] <= 1
    assert "test macro F1" in Path("results/leaderboard.md").read_text()


def test_losses_are_ranked_smallest_first(project):
    write_three_runs()
    loss = params(selection={"metric": "log_loss", "positive_class": "defective"})
    compare.main(loss, log=NoLog())
    found = entries()
    losses = [entry["validation"]["log_loss"]["value"] for entry in found]
    assert losses == sorted(losses)
    for entry in found[1:]:
        assert entry["against_champion"]["ahead_on_test"] == (entry["against_champion"]["difference"]["value"] < 0)


def selected_by(metric: str, **changes: Any) -> Params:
    return params(selection={"metric": metric, "positive_class": "defective"}, **changes)


def change_test(run: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change a run's test probabilities of the second class, float (n,); the first has what is left."""
    path = artifacts.RUNS / run / "predictions.npz"
    kept = artifacts.read_predictions(path)
    second = change(kept.test[:, 1].astype(np.float64))
    test = np.stack([1 - second, second], axis=1).astype(np.float32)
    artifacts.write_predictions(path, dataclasses.replace(kept, test=test))


def test_methods_are_told_apart_by_the_metric_that_chose(project, capsys):
    """Every answer of the trees is the SVM's, but each of them is a doubt: accuracies alike, losses far apart."""
    for method, share in (("svm", 0.9), ("trees", 0.8)):
        write_run("lite", method, validation=[share], test=0.9, seed=1)
    write_run("convnet", "scratch", validation=[0.6], test=0.6, stage="scratch", seed=3)
    change_test("lite-svm", lambda second: np.where(second > 0.5, 0.8, 0.2))
    change_test("lite-trees", lambda second: np.where(second > 0.5, 0.55, 0.45))
    compare.main(selected_by("accuracy"), log=NoLog())
    by_accuracy = entries()[1]["against_champion"]
    assert (by_accuracy["tested"], by_accuracy["p"], by_accuracy["told_apart"]) == ("accuracy", 1, False)
    compare.main(selected_by("log_loss"), log=NoLog())
    champion, trees, _ = entries()
    assert (champion["test"]["log_loss"]["value"] < 0.37) and (trees["test"]["log_loss"]["value"] > 0.61)
    by_loss = trees["against_champion"]
    assert by_loss["tested"] == "log_loss" and by_loss["told_apart"] and by_loss["p"] < 0.02
    assert by_loss["difference"]["low"] > 0 and not by_loss["ahead_on_test"]
    assert (by_loss["only_champion_right"], by_loss["only_method_right"]) == (0, 0)
    page = Path("results/leaderboard.md").read_text()
    assert "Its log loss is better than that of lite · trees" in page and "permutation test" in page
    for text in (capsys.readouterr().out, page, leaderboard_tables.short_markdown(entries(), confidence=0.95)):
        assert "p (Holm), log loss" in text
    assert [row["tested"] for row in leaderboard.csv_table(entries())[1]] == [None, "log_loss", "log_loss"]


@pytest.mark.parametrize("metric", ["roc_auc", "average_precision"])
def test_the_scale_of_one_method_changes_no_test_of_ranks(project, metric):
    write_three_runs()
    compare.main(selected_by(metric), log=NoLog())
    before = [entry["against_champion"] for entry in entries()]
    change_test("lite-trees", lambda second: 0.02 * second**3)
    compare.main(selected_by(metric), log=NoLog())
    after = [entry["against_champion"] for entry in entries()]
    for one, other in zip(before[1:], after[1:], strict=True):
        assert [one[name] for name in ("p", "p_holm", "difference")] == [
            other[name] for name in ("p", "p_holm", "difference")
        ]
    assert any(0.01 < one["p"] < 0.9 for one in before[1:]), "the test must have something to see"


def test_a_metric_that_test_leaves_undefined_tests_nothing(project, capsys):
    write_manifest()
    rows = artifacts.read_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS)
    rows = [row for row in rows if row["split"] != "test" or row["label"] == "functional"]
    artifacts.write_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS, rows)
    write_three_runs()
    compare.main(selected_by("roc_auc"), log=NoLog())
    for entry in entries()[1:]:
        paired = entry["against_champion"]
        assert (paired["p"], paired["p_holm"], paired["told_apart"]) == (None, None, False)
        assert set(paired["difference"].values()) == {None}
    page = Path("results/leaderboard.md").read_text()
    assert "No difference can be tested: ROC-AUC is undefined on these test images" in page
    header, _, *lines = [line.split(" | ") for line in page.splitlines() if line.startswith("|")]
    assert {line[header.index("p (Holm), ROC-AUC")] for line in lines} == {"–"}
    assert [row["p"] for row in leaderboard.csv_table(entries())[1]] == [None] * 3


def test_one_image_more_right_is_no_worse_an_interval(project):
    """Of a stratum and of a part alike: a mistake in 30 or 60 images promises no more than none."""
    for method, share in (("svm", 1.0), ("trees", 59 / 60)):
        write_run("lite", method, validation=[share], test=share, seed=4)
    compare.main(params(scratch={"networks": []}), log=NoLog())
    all_right, one_wrong = entries()
    worst = min(one_wrong["strata"].values(), key=lambda one: one["value"])
    for part, n in (("validation", 40), ("test", 60)):
        assert all_right[part]["accuracy"]["low"] == pytest.approx(n / (n + 3.8415), abs=1e-5)
    pairs = [(all_right[part]["accuracy"], one_wrong[part]["accuracy"]) for part in ("validation", "test")]
    for better, worse in [*pairs, (all_right["strata"]["mono"], worst)]:
        assert worse["low"] < better["low"] and worse["high"] < better["high"] == 1


def test_csv_has_one_row_a_method_with_every_metric(compared):
    columns, _ = leaderboard.csv_table(entries())
    read = artifacts.read_csv(Path("results/leaderboard.csv"), columns)
    assert [row["run"] for row in read] == ["lite-svm", "lite-trees", "convnet-scratch"]
    assert read[0]["test_accuracy"] == "0.8000" and read[0]["p"] == ""
    assert {f"{part}_{name}" for part in ("validation", "test") for name in metrics.NAMES} <= set(columns)


def test_markdown_marks_the_champion_and_says_what_was_read_when(compared):
    text = Path("results/leaderboard.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert "**lite · svm** (champion)" in table[2]
    assert "Validation (40 images) chose" in text and "where training stops (epochs, trees)" in text
    assert "This comparison read test (60 images) after that" in text and "fairness looks` lists earlier looks" in text
    assert "read once" not in text
    assert "expected calibration error; resampling biases it upwards" in text


def test_leaderboard_command_prints_what_compare_printed(compared, capsys):
    assert leaderboard_command.main(argparse.Namespace(readme=None)) == 0
    again = capsys.readouterr().out
    assert compared.endswith(again)
    assert again.splitlines()[1].startswith("*  lite · svm")


def test_undefined_numbers_are_null_in_json_and_dashes_in_text():
    assert leaderboard.number(float("nan")) is None
    assert leaderboard.shown(None) == "–"
    assert json.dumps(leaderboard.numbers({"value": 1 / 3, "support": 7})) == '{"value": 0.333333, "support": 7}'


# --- repeats -------------------------------------------------------------------------------------------------------


def write_repeated_runs() -> None:
    """The SVM wins by its first training, the trees by the mean of three."""
    write_run("lite", "svm", validation=[0.9], test=0.8, again=[(0.6, 0.6), (0.6, 0.7)], seed=1)
    write_run("lite", "trees", validation=[0.8], test=0.9, again=[(0.85, 0.8), (0.75, 0.7)], seed=2)
    write_run("convnet", "scratch", validation=[0.6], test=0.6, again=[(0.6, 0.6)] * 2, draws=False, stage="scratch")


def test_the_champion_has_the_best_mean_over_repeats_not_the_luckiest_first_training(project, capsys):
    write_repeated_runs()
    compare.main(params(repeats=3), log=NoLog())
    trees, svm, scratch = entries()
    assert [trees["method"], svm["method"], scratch["method"]] == ["trees", "svm", "scratch"]
    assert svm["validation"]["accuracy"]["value"] == 0.9 > trees["validation"]["accuracy"]["value"] == 0.8
    assert trees["repeats"]["validation"]["accuracy"] == {"mean": 0.8, "sd": pytest.approx(0.05)}
    assert svm["repeats"]["validation"]["accuracy"]["mean"] == pytest.approx(0.7)
    # What is kept and paired is the first training.
    assert trees["test"]["accuracy"]["value"] == 0.9
    assert trees["repeats"]["test"]["accuracy"] == {"mean": pytest.approx(0.8), "sd": pytest.approx(0.1)}
    assert scratch["repeats"]["count"] == 3 and not scratch["repeats"]["draws"]
    for text in (capsys.readouterr().out, Path("results/leaderboard.md").read_text()):
        assert "0.800 ± 0.050" in text and "0.800 ± 0.100" in text and "0.600 ± 0 " in text
        assert "draws nothing (convnet · scratch)" in " ".join(text.split())
    assert "[0.799, 0.953], over 3 trainings 0.800 ± 0.100." in Path("results/leaderboard.md").read_text()
    _, rows = leaderboard.csv_table(entries())
    assert rows[0]["repeats"] == 3 and rows[0]["test_accuracy_mean"] == "0.8000" == rows[0]["validation_accuracy_mean"]
    summary = artifacts.read_json(Path("results/metrics.json"))
    assert summary["lite-trees"]["validation_accuracy_mean"] == 0.8


def test_equal_means_are_decided_by_the_mean_log_loss_then_by_declared_order(project):
    again = [(0.7, 0.7), (0.9, 0.7)]
    write_run("lite", "trees", validation=[0.8], test=0.8, again=again, seed=5)
    write_run("lite", "svm", validation=[0.8], test=0.8, again=again, seed=5)
    compare.main(params(repeats=3, scratch={"networks": []}), log=NoLog())
    assert [entry["method"] for entry in entries()] == ["svm", "trees"]


@pytest.mark.parametrize("repeats", [1, 2])
def test_runs_of_another_number_of_repeats_are_refused(project, repeats):
    write_repeated_runs()
    with pytest.raises(artifacts.ArtifactError, match=f"holds 3 trainings.*repeats is {repeats}: run `dvc repro`"):
        compare.main(params(repeats=repeats), log=NoLog())


def test_without_repeats_and_calibration_nothing_is_said_of_them(compared):
    assert all(entry["repeats"] is None and entry["calibration"] is None for entry in entries())
    assert artifacts.read_json(artifacts.CALIBRATION) == {"kind": None, "runs": {}}
    for text in (compared, Path("results/leaderboard.md").read_text(), Path("results/leaderboard.csv").read_text()):
        assert "±" not in text and "alibrat" not in text.replace("expected calibration error", "").replace(
            "expected_calibration_error", ""
        )


# --- calibration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_calibration_is_shown_before_and_after_and_chooses_nothing(finished, project, capsys, kind):
    write_three_runs()
    calibrated = dict(confidence=0.95, bootstrap_samples=200, calibration_bins=10, calibration=kind, ensemble=None)
    compare.main(params(compare=calibrated), log=NoLog())
    plain = json.loads((finished[0] / artifacts.LEADERBOARD).read_text())
    saved = artifacts.read_json(artifacts.CALIBRATION)
    assert saved["kind"] == kind and saved["runs"].keys() == {entry["run"] for entry in entries()}
    labels = artifacts.read_test_labels()
    for entry, uncalibrated in zip(entries(), plain, strict=True):
        assert {name: entry[name] for name in entry if name != "calibration"} == {
            name: uncalibrated[name] for name in uncalibrated if name != "calibration"
        }
        found = entry["calibration"]
        for part in ("validation", "test"):
            assert {name: found[part][name]["before"] for name in leaderboard.CALIBRATION_METRICS} == {
                name: entry[part][name]["value"] for name in leaderboard.CALIBRATION_METRICS
            }
        # What is saved gives what was measured.
        calibrator = calibrators.from_description(artifacts.read_calibrator(artifacts.RUNS / entry["run"]))
        predictions = artifacts.read_predictions(artifacts.RUNS / entry["run"] / "predictions.npz")
        after = metrics.compute(calibrator.apply(predictions.test), labels, positive=0, calibration_bins=10)
        assert {name: found["test"][name]["after"] for name in leaderboard.CALIBRATION_METRICS} == pytest.approx(
            {name: after[name] for name in leaderboard.CALIBRATION_METRICS}, rel=1e-5
        )
    for text in (capsys.readouterr().out, Path("results/leaderboard.md").read_text()):
        assert " → " in text and kind in text
    assert leaderboard_command.main(argparse.Namespace(readme=None)) == 0
    assert " → " in capsys.readouterr().out
    assert "calibrated_test_log_loss,calibrated_test_brier" in Path("results/leaderboard.csv").read_text()


def test_validation_after_calibration_is_not_judged_by_the_labels_that_fitted_it(project):
    """Labels that no probability knows anything of: a calibrator judged by its own labels would see an improvement."""
    write_three_runs()
    calibrated = dict(
        confidence=0.95, bootstrap_samples=200, calibration_bins=10, calibration="isotonic", ensemble=None
    )
    write_run("lite", "svm", validation=[0.5], test=0.5, seed=8)
    compare.main(params(compare=calibrated), log=NoLog())
    (svm,) = [entry for entry in entries() if entry["run"] == "lite-svm"]
    part = artifacts.read_part("validation")
    validation = artifacts.read_predictions(artifacts.RUNS / "lite-svm/predictions.npz").validation[0]
    own = calibrators.from_description(artifacts.read_calibrator(artifacts.RUNS / "lite-svm")).apply(validation)
    judged_by_itself = metrics.score("log_loss", own, part.labels, positive=0)
    assert svm["calibration"]["validation"]["log_loss"]["after"] > judged_by_itself


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
@pytest.mark.parametrize("whole", ["part", "class"])
def test_folds_that_cannot_fit_a_calibrator_leave_validation_undefined(project, kind, whole):
    """Without the fold that holds a class, or every image, nothing tells a calibrator how sure to be."""
    rows = artifacts.read_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS)
    rows = [row | {"group": row["split"] + (row["label"] if whole == "class" else "")} for row in rows]
    artifacts.write_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS, rows)
    write_three_runs()
    compare.main(params(compare=COMPARE | {"calibration": kind}), log=NoLog())
    for entry in entries():
        after = {part: [one["after"] for one in entry["calibration"][part].values()] for part in ("validation", "test")}
        assert set(after["validation"]) == {None} and None not in after["test"]
        assert None not in [one["before"] for one in entry["calibration"]["validation"].values()]
    assert "A dash: without one of the folds" in Path("results/leaderboard.md").read_text()


def test_a_calibrator_of_other_predictions_is_refused(project):
    write_three_runs()
    calibrated = dict(
        confidence=0.95, bootstrap_samples=200, calibration_bins=10, calibration="temperature", ensemble=None
    )
    compare.main(params(compare=calibrated), log=NoLog())
    run = artifacts.RUNS / "lite-svm"
    assert artifacts.read_calibrator(run)["kind"] == "temperature"
    assert artifacts.read_calibrator(artifacts.RUNS / "lite-unknown") is None
    write_run("lite", "svm", validation=[0.6, 0.9], selected=1, test=0.7)
    with pytest.raises(artifacts.ArtifactError, match=r"calibration.json calibrates other predictions.*lite-svm"):
        artifacts.read_calibrator(run)
    artifacts.CALIBRATION.unlink()
    assert artifacts.read_calibrator(run) is None
