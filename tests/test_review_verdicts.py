"""How two results are compared: bytes, numbers, predictions, and what follows from what."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from PIL import Image
from reviewed import JUDGED_BY

from pipeline import artifacts
from pipeline.review import causes, closeness, environments, equivalence, evidence, locks, plan, replay, verdicts
from pipeline.review.locks import Claim, Stage
from pipeline.review.verdicts import CLOSE, DIVERGED, EQUIVALENT, IDENTICAL, Metric, Output, Runs, Truth

TOLERANCE = closeness.ToleranceParams(absolute=1e-6, relative=1e-3)
RECORD = artifacts.Record(
    stage="sweep", network="net", method="svm", classes=["bad", "good"], parameters={"C": 1}, inputs={},
    candidates=[artifacts.Candidate(name="C=1", parameters={"C": 1})], selected=0,
    cost=artifacts.Cost(trainable_parameters=1, total_parameters=1, model_bytes=1, multiply_adds=1),
)  # fmt: skip


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
)  # fmt: skip
def test_files_are_close_if_their_numbers_are(tmp_path, name, claimed, replayed, close):
    sides = {"claimed": claimed, "replayed": replayed}
    files = [written(tmp_path / side, name, content) for side, content in sides.items()]
    found = closeness.compare(*files, TOLERANCE)
    assert found.close is close
    assert found.notes


def test_a_picture_of_other_bytes_and_the_same_pixels_is_close(tmp_path):
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    for side, level in (("claimed", 1), ("replayed", 9)):
        (tmp_path / side).mkdir()
        Image.fromarray(pixels).save(tmp_path / side / "x.png", compress_level=level, dpi=(level * 10, level * 10))
    found = closeness.compare(tmp_path / "claimed/x.png", tmp_path / "replayed/x.png", TOLERANCE)
    assert found == closeness.Closeness(True, ("the same pixels",))


def test_a_directory_names_files_that_are_missing_or_new_and_is_as_close_as_its_furthest_file(tmp_path):
    for side, factor in (("claimed", 1.0), ("replayed", 1.0005)):
        written(tmp_path / side, "x.npy", ONES * np.float32(factor))
        written(tmp_path / side, "same.txt", "same")
    compared = closeness.compare(tmp_path / "claimed", tmp_path / "replayed", TOLERANCE)
    assert compared.close is True
    assert compared.notes == ("x.npy: array differs by at most 0.0005",)
    written(tmp_path / "replayed", "model.cbm", "a")
    written(tmp_path / "claimed", "model.cbm", "b")
    assert closeness.compare(tmp_path / "claimed", tmp_path / "replayed", TOLERANCE).close is None
    written(tmp_path / "claimed", "gone.json", {})
    written(tmp_path / "replayed", "new.json", {})
    found = closeness.compare(tmp_path / "claimed", tmp_path / "replayed", TOLERANCE)
    assert found.close is False
    assert found.notes[:2] == ("claimed, and not there now: gone.json", "not claimed: new.json")


def test_a_damaged_file_is_not_close_and_raises_nothing(tmp_path):
    for side, content in (("claimed", "no array"), ("replayed", "none either")):
        (tmp_path / side).mkdir()
        (tmp_path / side / "x.npz").write_text(content, encoding="utf-8")
    assert closeness.compare(tmp_path / "claimed/x.npz", tmp_path / "replayed/x.npz", TOLERANCE).close is False


# --- predictions ---------------------------------------------------------------------------------------------------


def predictions(n: int, *, seed: int = 0):
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    good = np.clip(0.3 + 0.4 * labels + generator.normal(0, 0.2, n), 0.01, 0.99)
    return np.stack([1 - good, good], axis=1).astype(np.float32), labels.astype(np.int64)


def paired(claimed, replayed, labels, **more):
    params = JUDGED_BY.equivalence.model_copy(update=more)
    return equivalence.differences(claimed, replayed, labels, names=("accuracy", "roc_auc"), positive=1, params=params)


def test_the_interval_of_a_paired_difference_is_that_of_its_own_resamples():
    """By hand: k of n images are right on one side only; the variance of a mean of k ones in n is k/n (1 - k/n) / n."""
    before, labels = predictions(400)
    after = before.copy()
    right = np.flatnonzero(before.argmax(axis=1) == labels)[:20]
    after[right] = after[right][:, ::-1]
    found = paired(before, after, labels, bootstrap_samples=5000)["accuracy"]
    assert found.replayed - found.claimed == pytest.approx(-20 / 400)
    error = np.sqrt(0.05 * 0.95 / 400)
    assert (found.low, found.high) == pytest.approx((-0.05 - 1.96 * error, -0.05 + 1.96 * error), abs=0.003)


def test_few_images_are_not_equivalent_just_because_nothing_is_significant():
    few, labels = predictions(20)
    other = few.copy()
    wrong = np.flatnonzero(few.argmax(axis=1) == labels)[0]
    other[wrong] = other[wrong][::-1]
    found = paired(few, other, labels)["accuracy"]
    assert found.low <= 0 <= found.high, "no significant difference"
    assert not found.within(0.02)
    assert paired(few, few, labels)["accuracy"].within(0.02)


def test_a_metric_without_a_value_is_left_out():
    probabilities, _ = predictions(10)
    assert paired(probabilities, probabilities, np.zeros(10, dtype=np.int64)).keys() == {"accuracy"}


def run_directory(place, test, *, record=RECORD):
    place.mkdir(parents=True)
    validation = np.stack([test])
    artifacts.write_predictions(place / "predictions.npz", artifacts.Predictions(validation, test))
    artifacts.write_record(place / "record.json", record)
    return place


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda good: good + np.float32(5e-7), CLOSE),
        (lambda good: np.where(np.abs(good - 0.5) < 0.004, 1 - good, good), EQUIVALENT),
        (lambda good: 1 - good, DIVERGED),
    ],
    ids=["last digits", "a few images near one half", "everything the other way round"],
)  # fmt: skip
def test_a_run_is_judged_by_its_predictions(tmp_path, change, verdict):
    before, labels = predictions(2000)
    good = np.clip(change(before[:, 1]), 0, 1).astype(np.float32)
    after = np.stack([1 - good, good], axis=1)
    claimed, replayed = run_directory(tmp_path / "claimed", before), run_directory(tmp_path / "replayed", after)
    (claimed / "model.bin").write_text("one", encoding="utf-8")
    (replayed / "model.bin").write_text("another", encoding="utf-8")
    truth = Truth(labels, 1, ("accuracy", "roc_auc"))
    one, differences = verdicts.output(
        "sweep", "results/runs/net-svm", digests=("a", "b"), claimed=lambda: claimed, replayed=replayed, truth=truth,
        params=JUDGED_BY,
    )  # fmt: skip
    assert one.verdict == verdict
    assert one.basis == "per-image predictions"
    assert differences.keys() == {"accuracy", "roc_auc"}
    without, _ = verdicts.output(
        "sweep", "results/runs/net-svm", digests=("a", "b"), claimed=lambda: claimed, replayed=replayed, truth=None,
        params=JUDGED_BY,
    )  # fmt: skip
    assert without.verdict == (CLOSE if verdict == CLOSE else DIVERGED), "without common images, nothing is equivalent"


def test_predictions_of_other_parameters_are_no_reproduction_even_if_equal(tmp_path):
    test, _ = predictions(40)
    claimed = run_directory(tmp_path / "claimed", test)
    replayed = run_directory(tmp_path / "replayed", test, record=RECORD.model_copy(update={"parameters": {"C": 2}}))
    verdict, notes, _ = verdicts.run(claimed, replayed, truth=None, params=JUDGED_BY)
    assert (verdict, notes) == (DIVERGED, ["record.json: parameters differ from the claimed"])


# --- what follows from what ----------------------------------------------------------------------------------------


PIPELINE = locks.pipeline([
    Stage("features", "f", (), (), ("data/features/net",)),
    Stage("sweep@a", "a", ("data/features/net",), (), ("results/runs/net-a",)),
    Stage("compare", "c", ("results/runs",), (), ("results/leaderboard.json", "results/figures/roc.png")),
])  # fmt: skip


def outputs(features=IDENTICAL, run=IDENTICAL, table=IDENTICAL, *, unavailable=()):
    found = []
    for stage, path, verdict in (("features", "data/features/net", features), ("sweep@a", "results/runs/net-a", run),
                                 ("compare", "results/leaderboard.json", table),
                                 ("compare", "results/figures/roc.png", table)):  # fmt: skip
        basis = verdicts.NOT_AVAILABLE if path in unavailable else "content"
        found.append(Output(stage, path, verdict, basis, "a", "b"))
    return found


def metric(verdict, run="net-a"):
    return Metric(run, "test_accuracy", 0.8, 0.81, verdict)


def settled(found, metrics):
    return {one.path: one.verdict for one in verdicts.settled(found, metrics, PIPELINE)}


def test_tables_and_figures_are_no_closer_than_the_runs_they_are_made_from():
    found = settled(outputs(CLOSE, EQUIVALENT, DIVERGED), [metric(EQUIVALENT)])
    assert found["results/leaderboard.json"] == found["results/figures/roc.png"] == EQUIVALENT


def test_a_table_that_differs_though_its_runs_are_the_same_bytes_diverged():
    assert settled(outputs(IDENTICAL, IDENTICAL, DIVERGED), [metric(CLOSE)])["results/leaderboard.json"] == DIVERGED


def test_another_champion_is_a_divergence_whatever_the_intervals_say():
    entries = [{"run": "a", "champion": True, "validation": {}, "test": {"accuracy": {"value": 0.8}}},
               {"run": "b", "champion": False, "validation": {}, "test": {"accuracy": {"value": 0.8}}}]  # fmt: skip
    swapped = [{**one, "champion": not one["champion"]} for one in entries]
    found = verdicts.metrics_of(entries, swapped, runs=Runs(), params=JUDGED_BY)
    assert [(one.run, one.verdict) for one in found if one.verdict != IDENTICAL] == [("champion", DIVERGED)]


def test_where_only_a_digest_is_left_the_committed_metrics_decide():
    found = outputs(DIVERGED, DIVERGED, CLOSE, unavailable=("data/features/net", "results/runs/net-a"))
    assert settled(found, [metric(CLOSE)])["data/features/net"] == CLOSE
    assert settled(found, [metric(CLOSE)])["results/runs/net-a"] == CLOSE
    assert settled(found, [metric(EQUIVALENT)])["results/runs/net-a"] == DIVERGED
    assert settled(found, [])["data/features/net"] == DIVERGED, "the comparison was not replayed"


def test_a_metric_beyond_tolerance_is_equivalent_only_by_its_own_interval():
    sides = [[{"run": "a", "champion": True, "validation": {"accuracy": {"value": 0.9}},
               "test": {"accuracy": {"value": value}, "roc_auc": {"value": 0.9}}}]
             for value in (0.80, 0.81)]  # fmt: skip
    near, far = (equivalence.Difference("accuracy", 0.8, 0.81, -0.001, high) for high in (0.019, 0.03))
    for difference, verdict in ((near, EQUIVALENT), (far, DIVERGED)):
        runs = Runs({"a": DIVERGED}, {"a": {"accuracy": difference}})
        found = {one.name: one.verdict for one in verdicts.metrics_of(*sides, runs=runs, params=JUDGED_BY)}
        assert found == {"run": IDENTICAL, "validation_accuracy": IDENTICAL, "test_accuracy": verdict,
                         "test_roc_auc": IDENTICAL}  # fmt: skip


# --- causes --------------------------------------------------------------------------------------------------------


def test_the_cause_is_sought_where_the_divergence_begins():
    assert causes.first_diverged(PIPELINE, {"sweep@a", "compare"}) == ["sweep@a"]
    known = [causes.Finding(causes.PARAMS, "features", "f"), causes.Finding(causes.CODE, "sweep@a", "s")]
    assert causes.explained_by("sweep@a", PIPELINE, known) == [known[1]]
    assert causes.explained_by("sweep@a", PIPELINE, known[:1]) == known[:1]
    assert causes.explained_by("features", PIPELINE, known[1:]) == []


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({"failure": "error: no"}, causes.FAILED),
        ({"failure": "error: other images", "reads_data": True}, causes.DATA),
        ({"repeated": False}, causes.NOT_DETERMINISTIC),
        ({"repeated": True, "changed_data": ["a label"]}, causes.DATA),
        ({"repeated": True, "environment": ["numpy 1 here"]}, causes.ENVIRONMENT),
        ({"repeated": True, "measures": True}, causes.FABRICATED),
        ({"repeated": True, "same_environment": True}, causes.FABRICATED),
        ({"repeated": True}, causes.UNEXPLAINED),
        ({"repeated": True, "measures": True, "same_inputs": False}, causes.UNEXPLAINED),
    ],
)
def test_what_remains_when_lock_and_files_belong_together(facts, kind):
    found = causes.of_divergence("sweep@a", [], causes.Circumstances(**facts))
    assert [one.kind for one in found] == [kind]
    assert found[0].stage == "sweep@a"


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
    claims = {"features": Claim("f", {}, {}, {"data/features/net": "new"}),
              "sweep@a": Claim("a", {"data/features/net": "old"}, {}, {"results/runs/net-a": "x"}),
              "compare": Claim("c", {"results/runs": "y"}, {}, {"results/leaderboard.json": "z"})}  # fmt: skip
    found = causes.of_lock(PIPELINE, claims, {}, lambda path: None)
    assert [(one.kind, one.stage) for one in found] == [(causes.DATA, "sweep@a")]


def test_packages_are_compared_with_the_lock_as_it_is_written():
    text = "numpy==2.4.6 \\\n    --hash=sha256:00\n"
    text += "TensorFlow_CPU==2.21.0 ; sys_platform == 'linux' \\\n    --hash=sha256:11\n"
    assert environments.from_lock(text, {"numpy": "2.4.6"}) == []
    assert environments.from_lock(text, {"numpy": "2.4.5", "tensorflow-cpu": "2.20.0"}) == [
        "numpy 2.4.5 is installed, requirements.lock wants 2.4.6",
        "tensorflow-cpu 2.20.0 is installed, requirements.lock wants 2.21.0",
    ]
    assert environments.from_lock(text, {}) == ["numpy is not installed, requirements.lock wants 2.4.6"]


def test_the_installed_packages_are_those_of_the_committed_lock_or_named(root):
    """The real file is read: it pins hundreds, and at least this one is installed."""
    pinned = environments.pinned((root / "requirements.lock").read_text(encoding="utf-8"))
    assert len(pinned) > 100
    assert environments.installed()["pytest"]


# --- evidence ------------------------------------------------------------------------------------------------------


def manifest(place, rows):
    columns = artifacts.MANIFEST_COLUMNS
    table = [dict(zip(columns, (f"{part}/{label}/{name}", label, part, "", "", sha), strict=True))
             for name, label, part, sha in rows]  # fmt: skip
    artifacts.write_csv(place, columns, table)
    return place


ROWS = [("a", "good", "train", "1"), ("b", "bad", "validation", "2")]
ROWS += [("c", "good", "test", "3"), ("d", "bad", "test", "4")]


def test_a_leak_is_found_by_bytes_whatever_the_files_are_called(tmp_path):
    assert evidence.leaks(manifest(tmp_path / "clean.csv", ROWS)) == []
    leaky = manifest(tmp_path / "leaky.csv", [*ROWS, ("z", "good", "train", "3")])
    assert evidence.leaks(leaky) == ["train/good/z has the bytes of test/good/c"]


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
    values = {"selection": {"metric": "roc_auc", "positive_class": "good"}}
    before = manifest(tmp_path / "before.csv", ROWS)
    other_train = manifest(tmp_path / "train.csv", [("e", "bad", "train", "9"), *ROWS])
    found = evidence.truth(before, other_train, values)
    assert found.labels.tolist() == [1, 0]
    assert found.metrics == ("roc_auc", "accuracy")
    other_label = manifest(tmp_path / "label.csv", [*ROWS[:3], ("d", "good", "test", "4")])
    assert evidence.truth(before, other_label, values) is None
    assert evidence.truth(None, before, values) is None


# --- the replay ----------------------------------------------------------------------------------------------------


def test_time_left_is_said_by_what_it_is_known_from():
    assert replay.Clock({}).left(["a", "b"]) == "2 stages left; nobody knows yet how long they take"
    known = replay.Clock({"a": 60.0, "b": 30.0, "c": 30.0})
    assert known.left(["a", "b", "c"]) == "about 2 min left"
    known.done["a"] = 120.0
    assert known.left(["b", "c"]) == "about 2 min left", "this replay takes twice as long as the last"
    assert known.left(["b", "c"], running=60) == "about 60 s left"
    counted = replay.Clock({})
    counted.done |= {"a": 10.0, "b": 30.0}
    assert counted.left(["c"]) == "about 20 s left by the number of stages, which differ in length"
    mixed = replay.Clock({"c": 50.0}, {"a": 10.0})
    assert mixed.left(["c", "d"]) == "about 60 s left, 1 of 2 stages guessed"
    assert mixed.left([]) == "nothing left"


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
