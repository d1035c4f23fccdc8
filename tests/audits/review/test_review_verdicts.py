"""How two results are compared: bytes, numbers, predictions, and what follows from what."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from PIL import Image

from pipeline.audits.review import causes, environments, equivalence, evidence, locks, plan, replay, tolerance, verdicts
from pipeline.audits.review.locks import Claim, Stage
from pipeline.audits.review.verdicts import CLOSE, DIVERGED, EQUIVALENT, IDENTICAL, Metric, Output, Truth
from pipeline.core import artifacts
from pipeline.evaluation import metrics
from tests.reviewed import JUDGED_BY

TOLERANCE = tolerance.ToleranceParams(absolute=1e-6, relative=1e-3)
RECORD = artifacts.Record(
    stage="sweep",
    network="net",
    method="svm",
    classes=["bad", "good"],
    parameters={"C": 1},
    inputs={},
    candidates=[artifacts.Candidate(name="C=1", parameters={"C": 1})],
    selected=0,
    cost=artifacts.Cost(trainable_parameters=1, total_parameters=1, model_bytes=1, multiply_adds=1),
)


# --- digests and locks ---------------------------------------------------------------------------------------------


def test_the_digest_of_a_directory_does_not_depend_on_how_it_is_listed_and_of_nothing_there_is_none(tmp_path):
    """That it is the digest DVC gives: `reviewed.make` runs DVC, and every review compares with its lock."""
    for place, names in (("one", ("b", "a/c", "A")), ("other", ("A", "a/c", "b"))):
        for name in names:
            (tmp_path / place / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place / name).write_text(name, encoding="utf-8")
    assert locks.names_in(tmp_path / "one") == ["A", "a/c", "b"]
    assert locks.digest(tmp_path / "one") == locks.digest(tmp_path / "other")
    assert locks.digest(tmp_path / "one").endswith(".dir")
    assert locks.digest(tmp_path / "nothing") is None


def test_stages_come_after_what_they_read_whatever_the_order_in_dvc_yaml():
    stages = [
        Stage("compare", "c", ("results/runs",), (), ("m.json",)),
        Stage("fit@a", "f", ("x.npy",), (), ("results/runs/a",)),
        Stage("make", "m", (), (), ("x.npy",)),
    ]
    found = locks.pipeline(stages)
    assert [stage.name for stage in found.stages] == ["make", "fit@a", "compare"]
    assert found.before["compare"] == {"make", "fit@a"}
    assert found.producer("results/runs") == "fit@a"
    assert found.producer("pipeline/code.py") is None
    assert [stage.name for stage in locks.chosen(found.stages, ["fit", "compare"])] == ["fit@a", "compare"]


# --- files ---------------------------------------------------------------------------------------------------------


def written(place, name: str, content):
    file = place / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".npy":
        np.save(file, content)
    elif file.suffix == ".npz":
        np.savez(file, **content)
    elif file.suffix == ".h5":
        with h5py.File(file, "w") as stored:
            stored["layer/kernel"] = content
    elif file.suffix == ".png":
        Image.fromarray(content).save(file)
    elif isinstance(content, str):
        file.write_text(content, encoding="utf-8")
    else:
        file.write_text(json.dumps(content), encoding="utf-8")
    return file


ONES = np.ones(3, dtype=np.float32)


@pytest.mark.parametrize(
    ("name", "claimed", "replayed", "close"),
    [
        ("x.npy", ONES, ONES * np.float32(1.0005), True),
        ("x.npy", ONES, ONES * np.float32(1.002), False),
        ("x.npy", ONES, np.array([1, np.nan, 1], dtype=np.float32), False),
        ("x.npy", np.array([1, np.nan]), np.array([1.0001, np.nan]), True),
        ("x.npy", ONES, ONES.astype(np.float64), False),
        ("x.npy", ONES, ONES[:2], False),
        ("x.npz", {"a": ONES}, {"a": ONES * np.float32(1.0005)}, True),
        ("x.npz", {"a": ONES}, {"b": ONES}, False),
        ("x.h5", ONES, ONES * np.float32(1.0005), True),
        ("x.h5", ONES, ONES * 2, False),
        ("x.json", {"a": [1.0, {"b": 2}]}, {"a": [1.0005, {"b": 2}]}, True),
        ("x.json", {"a": 1.0}, {"a": 1.1}, False),
        ("x.json", {"count": 100_000}, {"count": 100_001}, False),
        ("x.npy", np.array([100_000]), np.array([100_001]), False),
        ("x.csv", "n,score\n100000,0.5\n", "n,score\n100001,0.5\n", False),
        ("x.md", "of 100000 images\n", "of 100001 images\n", False),
        ("x.json", {"a": 1.0}, {"a": "1.0"}, False),
        ("x.json", {"a": True}, {"a": 1}, False),
        ("x.json", {"a": []}, {"a": [1]}, False),
        ("x.json", {"a": 1}, {"a": 1, "b": None}, False),
        ("x.json", {"of": "0" * 64, "n": 1.0}, {"of": "1" * 64, "n": 1.0001}, True),
        ("x.csv", "run,score\nlite0,0.5000\n", "run,score\nlite0,0.5001\n", True),
        ("x.csv", "run,score\nlite0,0.5\n", "run,score\nlite1,0.5\n", False),
        ("x.csv", f"sha256\n{'1' * 64}\n", f"sha256\n{'2' * 64}\n", False),
        ("x.md", "reaches 0.872 [0.8, 0.9]\n", "reaches 0.8721 [0.8, 0.9]\n", True),
        ("x.md", "one\n", "one\ntwo\n", False),
        ("x.png", np.zeros((2, 2), np.uint8), np.eye(2, dtype=np.uint8), None),
        ("x.cbm", "a model", "another", None),
    ],
)
def test_files_are_close_if_their_numbers_are(tmp_path, name, claimed, replayed, close):
    sides = {"claimed": claimed, "replayed": replayed}
    files = [written(tmp_path / side, name, content) for side, content in sides.items()]
    found = tolerance.compare(*files, TOLERANCE)
    assert found.close is close
    assert found.notes


def test_a_picture_of_other_bytes_and_the_same_pixels_is_close(tmp_path):
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    for side, level in (("claimed", 1), ("replayed", 9)):
        (tmp_path / side).mkdir()
        Image.fromarray(pixels).save(tmp_path / side / "x.png", compress_level=level, dpi=(level * 10, level * 10))
    found = tolerance.compare(tmp_path / "claimed/x.png", tmp_path / "replayed/x.png", TOLERANCE)
    assert found == tolerance.Closeness(True, ("the same pixels",))


def test_a_directory_names_files_that_are_missing_or_new_and_is_as_close_as_its_furthest_file(tmp_path):
    for side, factor in (("claimed", 1.0), ("replayed", 1.0005)):
        written(tmp_path / side, "x.npy", ONES * np.float32(factor))
        written(tmp_path / side, "same.txt", "same")
    compared = tolerance.compare(tmp_path / "claimed", tmp_path / "replayed", TOLERANCE)
    assert compared.close is True
    assert compared.notes == ("x.npy: array differs by at most 0.0005",)
    written(tmp_path / "replayed", "model.cbm", "a")
    written(tmp_path / "claimed", "model.cbm", "b")
    assert tolerance.compare(tmp_path / "claimed", tmp_path / "replayed", TOLERANCE).close is None
    written(tmp_path / "claimed", "gone.json", {})
    written(tmp_path / "replayed", "new.json", {})
    found = tolerance.compare(tmp_path / "claimed", tmp_path / "replayed", TOLERANCE)
    assert found.close is False
    assert found.notes[:2] == ("claimed, and not there now: gone.json", "not claimed: new.json")


def test_a_damaged_file_is_not_close_and_raises_nothing(tmp_path):
    for side, content in (("claimed", "no array"), ("replayed", "none either")):
        (tmp_path / side).mkdir()
        (tmp_path / side / "x.npz").write_text(content, encoding="utf-8")
    assert tolerance.compare(tmp_path / "claimed/x.npz", tmp_path / "replayed/x.npz", TOLERANCE).close is False


# --- predictions ---------------------------------------------------------------------------------------------------


def predictions(n: int, *, seed: int = 0):
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    good = np.clip(0.3 + 0.4 * labels + generator.normal(0, 0.2, n), 0.01, 0.99)
    return np.stack([1 - good, good], axis=1).astype(np.float32), labels.astype(np.int64)


def paired(claimed, replayed, labels, *, names=("accuracy", "roc_auc"), groups=(), **more):
    params = JUDGED_BY.equivalence.model_copy(update=more)
    return equivalence.differences(claimed, replayed, labels, names=names, positive=1, params=params, groups=groups)


def test_the_interval_of_a_paired_difference_is_that_of_its_own_resamples():
    """By hand: a loss is a mean over images, so the error of the difference is that of a mean of differences."""
    before, labels = predictions(400)
    after, _ = predictions(400, seed=1)
    found = paired(before, after, labels, names=("log_loss",), bootstrap_samples=5000)["log_loss"]
    lost = [-np.log(side[np.arange(400), labels].astype(np.float64)) for side in (before, after)]
    difference = lost[1] - lost[0]
    error = 1.96 * difference.std() / np.sqrt(400)
    assert found.replayed - found.claimed == pytest.approx(difference.mean())
    assert (found.low, found.high) == pytest.approx((difference.mean() - error, difference.mean() + error), abs=0.01)


def test_a_loss_has_a_margin_on_its_own_scale():
    before, labels = predictions(100)
    found = paired(before, before, labels, names=("accuracy", "log_loss", "brier"))
    assert found["accuracy"].margin == 0.02
    assert found["log_loss"].margin == pytest.approx(0.05 * np.log(2))
    assert found["brier"].margin == pytest.approx(0.05 * 0.25)


def test_few_images_are_not_equivalent_just_because_nothing_is_significant():
    few, labels = predictions(20)
    other = few.copy()
    wrong = np.flatnonzero(few.argmax(axis=1) == labels)[0]
    other[wrong] = other[wrong][::-1]
    found = paired(few, other, labels)["accuracy"]
    assert found.low <= 0 <= found.high, "no significant difference"
    assert not found.equivalent


def lost_and_won(n: int = 600) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Return probabilities, the same with 10 images lost in one group of 30 and 10 won in another, labels, groups."""
    labels = np.arange(n) % 2
    before = np.where(np.eye(2)[labels] > 0, 0.8, 0.2).astype(np.float32)
    before[30:40] = before[30:40, ::-1]
    after = before.copy()
    after[:10], after[30:40] = before[:10, ::-1], before[30:40, ::-1]
    return before, after, labels, [f"g{index // 30}" for index in range(n)]


def test_images_of_one_group_are_one_witness_of_equivalence():
    """By hand: two of 20 groups differ, by 10 images each, so the error is sqrt(20/19 * 200) / 600."""
    before, after, labels, groups = lost_and_won()
    alone = paired(before, after, labels, names=("accuracy", "log_loss"))
    grouped = paired(before, after, labels, names=("accuracy", "log_loss"), groups=groups)
    assert (alone["accuracy"].low, alone["accuracy"].high) == pytest.approx((-0.016, 0.016), abs=5e-4)
    assert alone["accuracy"].equivalent and not grouped["accuracy"].equivalent
    half = 2.093024 * np.sqrt(20 / 19 * 200) / 600
    assert (grouped["accuracy"].low, grouped["accuracy"].high) == pytest.approx((-half, half))
    wider = (grouped["log_loss"].high - grouped["log_loss"].low) / (alone["log_loss"].high - alone["log_loss"].low)
    assert wider > 2.5, "ten images of a group lose together"


@pytest.mark.parametrize("groups", [[], [f"g{index // 10}" for index in range(190)]], ids=["images", "groups"])
def test_the_same_answers_to_189_images_are_needed_for_a_margin_of_two_points(groups):
    before, _, labels, _ = lost_and_won(190)
    for n, enough in ((188, False), (189, True)):
        found = paired(before[:n], before[:n], labels[:n], names=("accuracy",), groups=groups[:n])
        assert found["accuracy"].equivalent == enough


def test_the_groups_of_a_part_reach_every_interval_of_a_run(tmp_path):
    before, after, labels, groups = lost_and_won()
    claimed, replayed = run_directory(tmp_path / "claimed", before), run_directory(tmp_path / "replayed", after)
    both = {"validation": labels, "test": labels}
    generous = JUDGED_BY.equivalence.model_copy(update={"loss_margin": 0.5, "margin": 0.03})
    params = JUDGED_BY.model_copy(update={"equivalence": generous})
    alone = verdicts.run(claimed, replayed, truth=Truth(both, 1, "accuracy"), params=params)
    assert alone[0] == EQUIVALENT
    for part in both:
        verdict, notes, _ = verdicts.run(
            claimed, replayed, truth=Truth(both, 1, "accuracy", groups={part: groups}), params=params
        )
        assert verdict == DIVERGED
        assert any(note.startswith(f"{part} accuracy") and "not within" in note for note in notes)


def test_one_group_alone_shows_no_equivalence_by_any_metric():
    before, after, labels, _ = lost_and_won()
    found = paired(before, after, labels, names=metrics.NAMES, groups=["g"] * len(labels))
    assert found.keys() == set(metrics.NAMES)
    assert not any(one.equivalent for one in found.values())


def test_a_metric_without_a_value_is_left_out():
    probabilities, _ = predictions(10)
    assert paired(probabilities, probabilities, np.zeros(10, dtype=np.int64)).keys() == {"accuracy"}


def run_directory(place, test, *, record=RECORD, validation=None):
    place.mkdir(parents=True)
    validation = np.stack([test] * len(record.candidates)) if validation is None else validation
    artifacts.write_predictions(place / "predictions.npz", artifacts.Predictions(validation, test))
    artifacts.write_record(place / "record.json", record)
    return place


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda good: good + np.float32(5e-7), CLOSE),
        (lambda good: np.where(np.abs(good - 0.5) < 0.002, 1 - good, good), EQUIVALENT),
        (lambda good: 1 - good, DIVERGED),
    ],
    ids=["last digits", "a few images near one half", "everything the other way round"],
)
def test_a_run_is_judged_by_its_predictions(tmp_path, change, verdict):
    before, labels = predictions(2000)
    good = np.clip(change(before[:, 1]), 0, 1).astype(np.float32)
    after = np.stack([1 - good, good], axis=1)
    claimed, replayed = run_directory(tmp_path / "claimed", before), run_directory(tmp_path / "replayed", after)
    (claimed / "model.bin").write_text("one", encoding="utf-8")
    (replayed / "model.bin").write_text("another", encoding="utf-8")
    truth = Truth({"validation": labels, "test": labels}, 1, "accuracy")
    one, differences = verdicts.output(
        "sweep",
        "results/runs/net-svm",
        digests=("a", "b"),
        claimed=lambda: claimed,
        replayed=replayed,
        truth=truth,
        params=JUDGED_BY,
    )
    assert one.verdict == verdict
    assert one.basis == "per-image predictions"
    assert differences.keys() == {f"{part}_{name}" for part in ("validation", "test") for name in metrics.NAMES}
    without, _ = verdicts.output(
        "sweep",
        "results/runs/net-svm",
        digests=("a", "b"),
        claimed=lambda: claimed,
        replayed=replayed,
        truth=None,
        params=JUDGED_BY,
    )
    assert without.verdict == (CLOSE if verdict == CLOSE else DIVERGED), "without common images, nothing is equivalent"


def test_predictions_of_other_parameters_are_no_reproduction_even_if_equal(tmp_path):
    test, _ = predictions(40)
    claimed = run_directory(tmp_path / "claimed", test)
    replayed = run_directory(tmp_path / "replayed", test, record=RECORD.model_copy(update={"parameters": {"C": 2}}))
    verdict, notes, _ = verdicts.run(claimed, replayed, truth=None, params=JUDGED_BY)
    assert (verdict, notes) == (DIVERGED, ["record.json: parameters differ from the claimed"])


def judged(tmp_path, claimed, replayed, *, labels, params=JUDGED_BY):
    """Judge two runs, each (test, options of `run_directory`)."""
    places = [
        run_directory(tmp_path / name, side[0], **side[1])
        for name, side in (("claimed", claimed), ("replayed", replayed))
    ]
    truth = Truth({"validation": labels, "test": labels}, 1, "accuracy")
    return verdicts.run(*places, truth=truth, params=params)


def test_a_forged_validation_is_not_taken_for_a_result_whatever_test_says(tmp_path):
    test, labels = predictions(2000)
    perfect = np.eye(2, dtype=np.float32)[labels][np.newaxis]
    verdict, notes, differences = judged(tmp_path, (test, {"validation": perfect}), (test, {}), labels=labels)
    assert verdict == DIVERGED
    assert any(note.startswith("validation accuracy") for note in notes)
    assert not differences["validation_accuracy"].equivalent
    assert "test_accuracy" not in differences, "the test part is the same"


def test_overconfident_probabilities_are_no_equivalent_ones_though_every_answer_is_the_same(tmp_path):
    test, labels = predictions(2000)
    sure = np.where(test > 0.5, np.float32(0.999), np.float32(0.001))
    verdict, notes, differences = judged(tmp_path, (sure, {}), (test, {}), labels=labels)
    assert verdict == DIVERGED
    assert differences["test_accuracy"].equivalent
    for name in ("log_loss", "expected_calibration_error"):
        assert not differences[f"test_{name}"].equivalent
        assert any(f"test {name}" in note for note in notes)


def test_every_candidate_is_a_claim_not_only_the_selected_one(tmp_path):
    test, labels = predictions(2000)
    two = [artifacts.Candidate(name=f"C={c}", parameters={"C": c}) for c in (1, 2)]
    record = RECORD.model_copy(update={"candidates": two})
    forged = {"record": record, "validation": np.stack([test, 1 - test])}
    verdict, notes, _ = judged(tmp_path, (test, forged), (test, {"record": record}), labels=labels)
    assert verdict == DIVERGED
    assert any(note.startswith("candidate C=2, validation accuracy") for note in notes)


@pytest.mark.parametrize("shift", [0, 5e-7], ids=["the same predictions", "predictions within the tolerance"])
@pytest.mark.parametrize(
    "forged",
    [
        {"cost": RECORD.cost.model_copy(update={"multiply_adds": 2})},
        {"draws": False},
        {"ablation": "fed raw pixels"},
        {"candidates": [artifacts.Candidate(name="C=1", parameters={"C": 1}, notes={"support_vectors": 3})]},
        {"candidates": [artifacts.Candidate(name="C=1", parameters={"C": 1}, history={"loss": [0.1]})]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_record_must_say_the_same_where_the_predictions_do(tmp_path, shift, forged):
    test, labels = predictions(40)
    good = test[:, 1] + np.float32(shift)
    other = np.stack([1 - good, good], axis=1)
    record = RECORD.model_copy(update=forged)
    verdict, notes, _ = judged(tmp_path, (test, {"record": record}), (other, {}), labels=labels)
    assert verdict == DIVERGED
    assert any(note.startswith("record.json") for note in notes)


def test_the_record_of_an_equivalent_run_may_tell_of_another_training_but_not_of_another_network(tmp_path):
    before, labels = predictions(2000)
    after = np.where(np.abs(before - 0.5) < 0.002, 1 - before, before)
    network = RECORD.model_copy(update={"stage": "head", "method": "head"})
    told = [artifacts.Candidate(name="C=1", parameters={"C": 1}, notes={"best_epoch": epoch}) for epoch in (3, 4)]
    records = [network.model_copy(update={"candidates": [candidate]}) for candidate in told]
    sides = [(side, {"record": record}) for side, record in zip((before, after), records, strict=True)]
    assert judged(tmp_path / "trained", *sides, labels=labels)[0] == EQUIVALENT
    sides[1][1]["record"] = records[1].model_copy(update={"cost": RECORD.cost.model_copy(update={"multiply_adds": 2})})
    verdict, notes, _ = judged(tmp_path / "another", *sides, labels=labels)
    assert (verdict, notes) == (DIVERGED, ["record.json: cost differ from the claimed"])


# --- what follows from what ----------------------------------------------------------------------------------------


PIPELINE = locks.pipeline(
    [
        Stage("features", "f", (), (), ("data/features/net",)),
        Stage("sweep@a", "a", ("data/features/net",), (), ("results/runs/net-a",)),
        Stage("compare", "c", ("results/runs",), (), ("results/leaderboard.json", "results/figures/roc.png")),
    ]
)


def outputs(features=IDENTICAL, run=IDENTICAL, table=IDENTICAL, *, unavailable=()):
    found = []
    for stage, path, verdict in (
        ("features", "data/features/net", features),
        ("sweep@a", "results/runs/net-a", run),
        ("compare", "results/leaderboard.json", table),
        ("compare", "results/figures/roc.png", table),
    ):
        basis = verdicts.NOT_AVAILABLE if path in unavailable else "content"
        found.append(Output(stage, path, verdict, basis, "a", "b"))
    return found


def metric(verdict, run="net-a"):
    return Metric(run, "test_accuracy", 0.8, 0.81, verdict)


def settled(found, metrics):
    return {one.path: one.verdict for one in verdicts.settled(found, metrics, PIPELINE)}


def test_a_table_that_differs_is_not_excused_by_metrics_and_runs():
    """What it should be is found by making it once more: see test_review.py."""
    for features, run in ((IDENTICAL, IDENTICAL), (CLOSE, EQUIVALENT)):
        found = settled(outputs(features, run, DIVERGED), [metric(CLOSE)])
        assert found["results/leaderboard.json"] == found["results/figures/roc.png"] == DIVERGED


def test_another_champion_is_a_divergence_whatever_the_intervals_say():
    entries = [
        {"run": "a", "champion": True, "validation": {}, "test": {"accuracy": {"value": 0.8}}},
        {"run": "b", "champion": False, "validation": {}, "test": {"accuracy": {"value": 0.8}}},
    ]
    swapped = [{**one, "champion": not one["champion"]} for one in entries]
    found = verdicts.metrics_of(entries, swapped, differences={}, params=JUDGED_BY)
    assert [(one.run, one.verdict) for one in found if one.verdict != IDENTICAL] == [("champion", DIVERGED)]


def test_where_only_a_digest_is_left_the_committed_metrics_decide():
    found = outputs(DIVERGED, DIVERGED, CLOSE, unavailable=("data/features/net", "results/runs/net-a"))
    assert settled(found, [metric(CLOSE)])["data/features/net"] == CLOSE
    assert settled(found, [metric(CLOSE)])["results/runs/net-a"] == CLOSE
    assert settled(found, [metric(EQUIVALENT)])["results/runs/net-a"] == DIVERGED
    assert settled(found, [])["data/features/net"] == DIVERGED, "the comparison was not replayed"


def test_a_metric_beyond_tolerance_is_equivalent_only_by_its_own_interval():
    sides = [
        [
            {
                "run": "a",
                "champion": True,
                "validation": {"accuracy": {"value": value}},
                "test": {"accuracy": {"value": value}, "log_loss": {"value": value}, "roc_auc": {"value": 0.9}},
            }
        ]
        for value in (0.80, 0.81)
    ]
    near, far = (equivalence.Difference("accuracy", 0.8, 0.81, -0.001, high, 0.02) for high in (0.019, 0.03))
    # One near one half may flip where every probability is within the tolerance.
    flipped = equivalence.Difference("accuracy", 0.8, 0.81, -0.03, 0.05, 0.02, close=True)
    forged = equivalence.Difference("accuracy", 0.81, 0.81, -0.001, 0.001, 0.02)
    for difference, verdict in ((near, EQUIVALENT), (far, DIVERGED), (flipped, EQUIVALENT), (forged, DIVERGED)):
        differences = {"a": {"test_accuracy": difference}}
        judged = verdicts.metrics_of(*sides, differences=differences, params=JUDGED_BY)
        found = {one.name: one.verdict for one in judged}
        assert found == {
            "run": IDENTICAL,
            "validation_accuracy": DIVERGED,
            "test_accuracy": verdict,
            "test_log_loss": DIVERGED,
            "test_roc_auc": IDENTICAL,
        }
    assert next(one.note for one in judged if one.name == "test_accuracy") == "the claimed predictions give 0.81"


def test_a_table_of_images_is_not_vouched_for_by_metrics():
    """A copied or relabelled row need not move a number; without its bytes nobody can say."""
    table = Output("features", "data/split/manifest.csv", DIVERGED, verdicts.NOT_AVAILABLE, "a", "b")
    found = verdicts.settled([table, *outputs()[1:]], [metric(CLOSE)], PIPELINE)
    assert found[0].verdict == DIVERGED
    assert found[0].claimed_bytes_missing


# --- causes --------------------------------------------------------------------------------------------------------


def test_the_cause_is_sought_where_the_divergence_begins():
    assert causes.first(PIPELINE, {"sweep@a", "compare"}) == ["sweep@a"]
    known = [causes.Finding(causes.PARAMS, "features", "f"), causes.Finding(causes.CODE, "sweep@a", "s")]
    assert causes.explained_by("sweep@a", PIPELINE, known, unlike={"features", "sweep@a"}) == [known[1]]
    assert causes.explained_by("sweep@a", PIPELINE, known[:1], unlike={"features", "sweep@a"}) == known[:1]
    assert causes.explained_by("sweep@a", PIPELINE, known[:1], unlike={"sweep@a"}) == [], "features are identical"
    assert causes.explained_by("features", PIPELINE, known[1:], unlike={"features"}) == []


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({"failure": "error: no"}, causes.FAILED),
        ({"failure": "error: other images", "reads_data": True}, causes.DATA),
        ({"failure": "KeyError: 'x'", "reads_data": True}, causes.FAILED),
        ({"failure": "ModuleNotFoundError: No module named 'imagehash'", "reads_data": True}, causes.ENVIRONMENT),
        ({"repeated": False}, causes.NOT_DETERMINISTIC),
        ({"repeated": True, "changed_data": ["a label"]}, causes.DATA),
        ({"repeated": True, "environment": ["numpy 1 here"]}, causes.ENVIRONMENT),
        ({"repeated": True, "contradicts": True}, causes.FABRICATED),
        ({"repeated": True, "same_environment": True}, causes.FABRICATED),
        ({"repeated": True, "same_environment": True, "unavailable": True}, causes.UNEXPLAINED),
        ({"repeated": True}, causes.UNEXPLAINED),
        ({"repeated": True, "contradicts": True, "same_inputs": False}, causes.UNEXPLAINED),
    ],
)
def test_what_remains_when_lock_and_files_belong_together(facts, kind):
    found = causes.of_divergence("sweep@a", [], causes.Circumstances(**facts))
    assert [one.kind for one in found] == [kind]
    assert found[0].stage == "sweep@a"


def test_a_failing_stage_in_another_environment_says_so():
    facts = causes.Circumstances(failure="error: unreadable", reads_data=True, environment=["pillow 1 is installed"])
    found = causes.of_divergence("dataset", [], facts)
    assert [one.kind for one in found] == [causes.DATA, causes.ENVIRONMENT]


def test_what_did_not_diverge_has_a_cause_only_if_one_is_known():
    def kinds(known=(), **facts):
        return [one.kind for one in causes.of_difference("sweep@a", known, causes.Circumstances(**facts))]

    assert kinds(repeated=False) == [causes.NOT_DETERMINISTIC]
    assert kinds(environment=["numpy 1 here"]) == [causes.ENVIRONMENT]
    assert kinds(known=[causes.Finding(causes.CODE, "sweep@a", "edited")], repeated=None) == [causes.CODE]
    assert kinds(repeated=True, same_environment=True, contradicts=True) == [], "nobody is accused of last digits"


def test_a_lock_is_compared_with_params_as_numbers_and_not_as_text():
    """DVC writes 1e-05, which YAML 1.1 reads as text."""
    stage = Stage("a", "x", ("data/in.csv", "pipeline/a.py"), ("rate",), ("out",))
    claim = Claim("x", {"data/in.csv": "1", "pipeline/a.py": "2"}, {"rate": "1e-05"}, {"out": "3"})
    digests = {"data/in.csv": "1", "pipeline/a.py": "2"}.get
    assert causes.of_lock(locks.pipeline([stage]), {"a": claim}, {"rate": 1e-05}, digests) == []
    found = causes.of_lock(locks.pipeline([stage]), {"a": claim}, {"rate": 2e-05}, lambda path: "new")
    assert [one.kind for one in found] == [causes.PARAMS, causes.CODE, causes.DATA]
    never = causes.of_lock(locks.pipeline([stage]), {}, {"rate": 1e-05}, digests)
    assert "it never ran as it is declared" in never[0].text


def test_a_stage_that_ran_on_another_input_than_its_maker_claims_is_found():
    claims = {
        "features": Claim("f", {}, {}, {"data/features/net": "new"}),
        "sweep@a": Claim("a", {"data/features/net": "old"}, {}, {"results/runs/net-a": "x"}),
        "compare": Claim("c", {"results/runs": "y"}, {}, {"results/leaderboard.json": "z"}),
    }
    found = causes.of_lock(PIPELINE, claims, {}, lambda path: None)
    assert [(one.kind, one.stage) for one in found] == [(causes.DATA, "sweep@a")]


def test_packages_are_compared_with_the_lock_as_it_is_written():
    text = "numpy==2.4.6 \\\n    --hash=sha256:00\n"
    text += "TensorFlow_CPU==2.21.0 ; sys_platform == 'linux' \\\n    --hash=sha256:11\n"
    assert environments.from_lock(text, {"numpy": "2.4.6"}) == {}
    assert environments.from_lock(text, {"numpy": "2.4.5", "tensorflow-cpu": "2.20.0"}) == {
        "numpy": "numpy 2.4.5 is installed, requirements.lock wants 2.4.6",
        "tensorflow-cpu": "tensorflow-cpu 2.20.0 is installed, requirements.lock wants 2.21.0",
    }
    assert environments.from_lock(text, {}) == {"numpy": "numpy is not installed, requirements.lock wants 2.4.6"}


def test_only_packages_that_a_stage_imports_and_what_these_require_may_explain_it(root):
    names = environments.imports(root / "pipeline/classifiers/families/rbf_svm.py")
    assert {"numpy", "pipeline"} <= names
    found = environments.needed({*names, "sklearn", "nowhere"})
    assert {"numpy", "scikit-learn", "scipy", "joblib", "nowhere"} <= found
    assert "pytest" not in found
    assert environments.from_record({"cpu": "a", "catboost": "1"}, {"cpu": "b", "catboost": "2"}, found) == [
        "cpu b here, a where MLflow saw the claim being made"
    ]


def test_the_installed_packages_are_those_of_the_committed_lock_or_named(root):
    """The real file is read: it pins hundreds, and at least this one is installed."""
    pinned = environments.pinned((root / "requirements.lock").read_text(encoding="utf-8"))
    assert len(pinned) > 100
    assert environments.installed()["pytest"]


# --- evidence ------------------------------------------------------------------------------------------------------


def manifest(place, rows):
    columns = artifacts.MANIFEST_COLUMNS
    table = [
        dict(zip(columns, (f"{part}/{label}/{name}", label, part, "", "", sha), strict=True))
        for name, label, part, sha in rows
    ]
    artifacts.write_csv(place, columns, table)
    return place


ROWS = [("a", "good", "train", "1"), ("b", "bad", "validation", "2")]
ROWS += [("c", "good", "test", "3"), ("d", "bad", "test", "4")]


def test_a_leak_is_found_by_bytes_whatever_the_files_are_called(tmp_path):
    assert evidence.leaks(manifest(tmp_path / "clean.csv", ROWS)) == []
    leaky = manifest(tmp_path / "leaky.csv", [*ROWS, ("z", "good", "train", "3")])
    assert evidence.leaks(leaky) == [("3", "train/good/z has the bytes of test/good/c")]


def test_an_image_is_predefined_twice_if_the_source_has_it_in_test_and_in_another_part(tmp_path):
    rows = [("1", "train"), ("1", "test"), ("2", "test"), ("2", "test"), ("3", "train"), ("3", "validation"), ("4", "")]
    columns = ("sha256", "part")
    artifacts.write_csv(tmp_path / "c.csv", columns, [dict(zip(columns, row, strict=True)) for row in rows])
    assert evidence.predefined_twice(tmp_path / "c.csv") == {"1"}


def test_changed_rows_name_labels_parts_and_copies(tmp_path):
    before = manifest(tmp_path / "before.csv", ROWS)
    relabelled = manifest(tmp_path / "label.csv", [*ROWS[:2], ("c", "bad", "test", "3"), ROWS[3]])
    assert evidence.changed_rows(relabelled, before) == ["test/good/c: label good, claimed bad"]
    moved = manifest(tmp_path / "moved.csv", [*ROWS[:3], ("d", "bad", "train", "4")])
    assert evidence.changed_rows(moved, before) == ["test/bad/d: split test, claimed train"]
    copied = manifest(tmp_path / "copied.csv", [*ROWS, ("c", "good", "train", "3")])
    assert evidence.changed_rows(copied, before) == [
        "claimed: train/good/c, beside test/good/c, which has the same bytes"
    ]
    assert evidence.changed_rows(before, before) == []


def test_truth_is_shared_only_if_the_test_images_and_their_labels_are(tmp_path):
    values = {"selection": {"metric": "roc_auc", "positive_class": "good"}, "compare": {"calibration_bins": 5}}
    before = manifest(tmp_path / "before.csv", ROWS)
    other_train = manifest(tmp_path / "train.csv", [("e", "bad", "train", "9"), *ROWS])
    found = evidence.truth(before, other_train, values)
    assert {part: labels.tolist() for part, labels in found.labels.items()} == {"validation": [0], "test": [1, 0]}
    assert (found.metric, found.calibration_bins) == ("roc_auc", 5)
    assert found.groups == {"validation": ("",), "test": ("", "")}
    other_validation = manifest(tmp_path / "validation.csv", [ROWS[0], ("b", "good", "validation", "2"), *ROWS[2:]])
    assert evidence.truth(before, other_validation, values) is None
    other_label = manifest(tmp_path / "label.csv", [*ROWS[:3], ("d", "good", "test", "4")])
    assert evidence.truth(before, other_label, values) is None
    assert evidence.truth(None, before, values) is None


# --- the replay ----------------------------------------------------------------------------------------------------


def test_time_left_is_said_by_what_it_is_known_from():
    known = replay.Clock({"a": 60.0, "b": 30.0, "c": 30.0})
    assert known.left(["a", "b", "c"]) == "about 2 min left"
    known.done["a"] = 120.0
    assert known.left(["b", "c"]) == "about 2 min left", "this replay takes twice as long as the last"
    assert known.left(["b", "c"], running=60) == "about 60 s left"
    assert known.left([]) == "nothing left"
    known.done["a"] = 6000.0
    assert known.left(["c"]) == "about 90 s left", "one stage says little of another"


def test_where_no_replay_was_before_the_default_data_set_says_how_stages_compare():
    typical = replay.TYPICAL
    waiting = ["features@n", "fine_tune@n", "scratch@m"]
    whole = sum(typical[name.partition("@")[0]] for name in waiting)
    first = replay.Clock({})
    assert first.left(waiting) == f"about {replay.spoken(whole)} left, guessed by the default data set"
    first.done["features@n"] = 10 * typical["features"]
    rest = 10 * (typical["fine_tune"] + typical["scratch"])
    assert first.left(waiting[1:]) == f"about {replay.spoken(rest)} left, guessed by the default data set"
    mixed = replay.Clock({"scratch@m": 50.0}, {"dataset": typical["dataset"]})
    assert mixed.left(["scratch@m", "compare"]) == "about 63 s left, 1 of 2 stages guessed"


def test_a_stage_that_takes_longer_than_expected_does_not_use_up_the_time_of_those_after_it():
    clock = replay.Clock({"a": 60.0, "b": 30.0})
    assert clock.left(["a", "b"], running=500) == "longer than expected; then about 30 s left"
    assert clock.left(["b"], running=31) == "longer than expected"


def test_every_kind_of_stage_has_a_typical_length(root):
    import yaml

    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert replay.TYPICAL.keys() == stages.keys()


def test_quick_leaves_out_the_longest_and_what_cannot_be_made_without_them(tmp_path):
    stages = [
        Stage("head@n", "h", (), (), ("results/runs/n-head",)),
        Stage("sweep@n", "s", (), (), ("results/runs/n-s",)),
        Stage("compare", "c", ("results/runs",), (), ("m.json",)),
    ]
    pipeline, claimed = locks.pipeline(stages), {"results/runs/n-head": "a"}

    def quick(find):
        return plan.plan(pipeline, names=(), quick=True, claimed=claimed, find=find)

    had = quick(lambda path, digest: tmp_path)
    assert [stage.name for stage in had.stages] == ["sweep@n", "compare"]
    assert had.given == {"results/runs/n-head": "a"}
    assert had.left_out == {"head@n": "takes long"}
    alone = quick(lambda path, digest: None)
    assert [stage.name for stage in alone.stages] == ["sweep@n"]
    assert alone.left_out["compare"] == "reads results/runs/n-head, whose claimed bytes are not available"
    assert "head@n (takes long)" in plan.in_words(alone.left_out)
