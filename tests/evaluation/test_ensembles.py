"""The ensemble: what forward selection picks, what its mean reaches, and that it chooses nothing."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss

from pipeline.console.progress import NoLog
from pipeline.core import artifacts
from pipeline.core.params import Params, ParamsError
from pipeline.evaluation import ensembles, leaderboard, metrics
from pipeline.show import ensemble_table
from pipeline.stages import compare
from tests.stages import test_compare


def drawn(methods: int = 4, n: int = 60, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (methods, n, classes) that know something of the labels, and the labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=n)
    scores = generator.normal(size=(methods, n, classes))
    scores[:, np.arange(n), labels] += generator.uniform(0.2, 1.5, size=(methods, 1))
    exponentials = np.exp(scores)
    return exponentials / exponentials.sum(axis=2, keepdims=True), labels


def greedy(probabilities: np.ndarray, labels: np.ndarray, picks: int) -> list[int]:
    """Forward selection as one would write it down: scikit-learn's log loss of every mean, whole."""
    chosen, best = [], (np.inf, [])
    for _ in range(picks):
        losses = [
            log_loss(labels, np.mean([probabilities[index] for index in [*chosen, more]], axis=0))
            for more in range(len(probabilities))
        ]
        chosen.append(int(np.argmin(losses)))
        best = min(best, (min(losses), list(chosen)))
    return best[1]


@pytest.mark.parametrize(("seed", "classes", "picks"), [*itertools.product(range(5), (2, 5), (1, 3, 12))])
def test_picks_are_those_of_forward_selection(seed, classes, picks):
    probabilities, labels = drawn(seed=seed, classes=classes)
    expected = np.bincount(greedy(probabilities, labels, picks), minlength=4)
    np.testing.assert_array_equal(ensembles.pick(probabilities, labels, picks=picks), expected)


def test_an_ensemble_is_never_worse_than_its_best_method_on_what_picked_it():
    for seed in range(20):
        probabilities, labels = drawn(seed=seed)
        alone = min(log_loss(labels, one) for one in probabilities)
        counts = ensembles.pick(probabilities, labels, picks=25)
        assert 1 <= counts.sum() <= 25
        assert log_loss(labels, ensembles.mean(probabilities, counts)) <= alone


def test_one_method_is_its_own_ensemble_and_of_equals_the_first_is_picked():
    probabilities, labels = drawn(methods=1)
    assert ensembles.pick(probabilities, labels, picks=5).tolist() == [1]
    np.testing.assert_array_equal(ensembles.mean(probabilities, np.array([1])), probabilities[0])
    assert ensembles.pick(np.repeat(probabilities, 3, axis=0), labels, picks=5).tolist() == [1, 0, 0]


def test_a_certain_mistake_does_not_make_the_loss_infinite():
    probabilities = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.4], [0.5, 0.5]]], dtype=np.float32)
    assert ensembles.pick(probabilities, np.array([0, 0]), picks=1).tolist() == [0, 1]


def test_each_fold_is_judged_by_counts_that_the_other_folds_chose():
    probabilities, labels = drawn(n=30)
    folds = np.arange(30) % 3
    seen = []

    def choose(given, of):
        seen.append((given.shape[1], of.tolist()))
        return np.eye(4, dtype=int)[len(seen) - 1]

    found = ensembles.cross_fitted(probabilities, labels, folds, choose)
    assert seen == [(20, labels[folds != fold].tolist()) for fold in range(3)]
    for fold in range(3):
        np.testing.assert_array_equal(found[folds == fold], probabilities[fold][folds == fold])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a directory that holds a split and no run; figures, the slow part, are left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, "_draw", lambda *_: None)
    test_compare.write_manifest()
    return tmp_path


def asked(picks: int | None = 10, metric: str = "accuracy") -> Params:
    return test_compare.params(
        compare=test_compare.COMPARE | {"ensemble": picks},
        selection={"metric": metric, "positive_class": "defective"},
    )


def test_the_comparison_shows_the_ensemble_beside_the_champion_and_is_otherwise_the_same(project, capsys):
    test_compare.write_three_runs()
    compare.main(asked(None), log=NoLog())
    plain = {path: Path(path).read_text() for path in ("results/leaderboard.json", "results/calibration.json")}
    without = Path("results/leaderboard.md").read_text()
    assert artifacts.read_json(leaderboard.DETAILS)["ensemble"] is None and "nsemble" not in without
    capsys.readouterr()
    compare.main(asked(), log=NoLog())
    assert {path: Path(path).read_text() for path in plain} == plain
    page = Path("results/leaderboard.md").read_text()
    assert page.startswith(without) and "## Ensemble" in page
    found = artifacts.read_json(leaderboard.DETAILS)["ensemble"]
    assert sum(one["weight"] for one in found["members"]) == pytest.approx(1, abs=1e-5)
    assert len(found["members"]) > 1, "the runs of this test must complement each other"
    # Each number follows from the saved predictions and the weights.
    saved = {
        one["run"]: artifacts.read_predictions(artifacts.RUNS / one["run"] / "predictions.npz")
        for one in found["members"]
    }
    combined = sum(one["weight"] * saved[one["run"]].test.astype(float) for one in found["members"])
    labels = artifacts.read_test_labels()
    expected = metrics.compute(combined, labels, positive=0, calibration_bins=10)
    reached = {name: interval["value"] for name, interval in found["ensemble"]["test"].items()}
    assert reached == pytest.approx(expected, rel=1e-4)
    champion = test_compare.entries()[0]
    assert found["champion"]["test"] == champion["test"]
    right = {
        "champion": saved[champion["run"]].test.argmax(axis=1) == labels,
        "ensemble": combined.argmax(axis=1) == labels,
    }
    assert found["against_champion"]["only_ensemble_right"] == (right["ensemble"] & ~right["champion"]).sum()
    assert found["against_champion"]["only_champion_right"] == (right["champion"] & ~right["ensemble"]).sum()
    difference = found["against_champion"]["difference"]
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert difference["value"] == pytest.approx(right["ensemble"].mean() - right["champion"].mean(), abs=1e-5)
    small = artifacts.read_json(artifacts.RESULTS / "metrics.json")["ensemble"]
    assert small == {
        "cross_fitted_accuracy": found["ensemble"]["cross_fitted"]["accuracy"],
        "test_accuracy": found["ensemble"]["test"]["accuracy"]["value"],
    }
    assert "Weights: " in capsys.readouterr().out


def test_labels_of_validation_do_not_judge_the_ensemble_that_they_picked(project):
    """Methods that know nothing: on the images that picked, their ensemble is better than on images that did not."""
    for seed, name in enumerate(("svm", "trees")):
        test_compare.write_run("lite", name, validation=[0.5], test=0.5, seed=seed)
    test_compare.write_run("convnet", "scratch", validation=[0.5], test=0.5, stage="scratch", seed=9)
    compare.main(asked(), log=NoLog())
    found = artifacts.read_json(leaderboard.DETAILS)["ensemble"]
    part = artifacts.read_part("validation")
    combined = sum(
        one["weight"] * artifacts.read_predictions(artifacts.RUNS / one["run"] / "predictions.npz").validation[0]
        for one in found["members"]
    )
    judged_by_itself = metrics.score("log_loss", combined, part.labels, positive=0)
    assert found["ensemble"]["cross_fitted"]["log_loss"] > judged_by_itself


def test_groups_are_drawn_whole_for_the_ensemble_too(project):
    test_compare.write_manifest(grouped_by=5)
    test_compare.write_three_runs()
    compare.main(asked(), log=NoLog())
    grouped = artifacts.read_json(leaderboard.DETAILS)["ensemble"]
    test_compare.write_manifest()
    test_compare.write_three_runs()
    compare.main(asked(), log=NoLog())
    alone = artifacts.read_json(leaderboard.DETAILS)["ensemble"]
    assert grouped["members"] == alone["members"]
    for metric in ("accuracy", "log_loss"):
        narrow, wide = (found["ensemble"]["test"][metric] for found in (alone, grouped))
        assert wide["high"] - wide["low"] > narrow["high"] - narrow["low"], metric


@pytest.mark.parametrize("picks", [0, -3, 1.5, "all"])
def test_picks_must_be_a_number_of_them(project, picks):
    test_compare.write_three_runs()
    with pytest.raises(ParamsError, match=r"compare\.ensemble"):
        compare.main(asked(picks), log=NoLog())
    assert not artifacts.LEADERBOARD.exists()


def in_groups(group: Callable[[dict[str, str]], str]) -> None:
    """Write the manifest again, every image in the group that ``group`` names."""
    rows = [row | {"group": group(row)} for row in artifacts.read_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS)]
    artifacts.write_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS, rows)


@pytest.mark.parametrize(
    ("metric", "group"),
    [
        # Each class is one group, so one fold holds all of it, and the other folds have one class.
        pytest.param("roc_auc", lambda row: row["split"] + row["label"], id="one class left"),
        # Of positive images alone, every method has an average precision of 1, and every mean a small loss.
        pytest.param("average_precision", lambda row: row["split"] * (row["label"] == "functional"), id="positive"),
        pytest.param("accuracy", lambda row: row["split"] + row["label"], id="one class left to be right about"),
        pytest.param("accuracy", lambda row: row["split"], id="no image left"),
    ],
)
def test_where_a_fold_leaves_nothing_to_choose_by_cross_fitting_is_undefined_and_says_so(
    project, capsys, metric, group
):
    in_groups(group)
    test_compare.write_three_runs()
    compare.main(asked(metric=metric), log=NoLog())
    found = artifacts.read_json(leaderboard.DETAILS)["ensemble"]
    for who in ("champion", "ensemble"):
        assert found[who]["cross_fitted"] == dict.fromkeys(metrics.NAMES), who
        assert found[who]["test"][metric]["value"] is not None
    page = Path("results/leaderboard.md").read_text()
    assert ensemble_table.UNDEFINED_ON_VALIDATION in page
    assert "too small for that" in " ".join(capsys.readouterr().out.split())
    assert artifacts.read_json(artifacts.RESULTS / "metrics.json")["ensemble"][f"cross_fitted_{metric}"] is None


@pytest.mark.parametrize(("metric", "defined"), [("roc_auc", False), ("average_precision", False), ("accuracy", True)])
def test_a_class_that_one_fold_has_alone_is_needed_by_metrics_of_each_class(project, metric, defined):
    """With three classes the others can still be told apart, but nothing chooses by the third."""
    test_compare.write_manifest(classes=("daisy", "rose", "tulip"), strata=[""])
    in_groups(lambda row: row["split"] if row["label"] == "rose" else "")
    test_compare.write_three_runs()
    of = {"metric": metric, "positive_class": None}
    compare.main(test_compare.params(compare=test_compare.COMPARE | {"ensemble": 5}, selection=of), log=NoLog())
    found = artifacts.read_json(leaderboard.DETAILS)["ensemble"]
    assert all((found[who]["cross_fitted"][metric] is not None) == defined for who in ("champion", "ensemble"))
    assert (ensemble_table.UNDEFINED_ON_VALIDATION in Path("results/leaderboard.md").read_text()) != defined


def test_the_ensemble_is_tested_by_the_metric_that_chose(project):
    test_compare.write_three_runs()
    compare.main(asked(metric="log_loss"), log=NoLog())
    found = artifacts.read_json(leaderboard.DETAILS)["ensemble"]["against_champion"]
    assert found["tested"] == "log_loss" and 0 < found["p"] <= 1
    assert "Their difference in log loss has p " in Path("results/leaderboard.md").read_text()
