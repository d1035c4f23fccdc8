"""The bias-corrected score against a plain loop and against cases whose truth is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

from pipeline.audits.fairness import optimism, optimism_study, record_pages
from pipeline.audits.fairness.runs import Run
from pipeline.evaluation import metrics
from pipeline.evaluation.statistics import CompareParams


def candidate(labels: np.ndarray, right: np.ndarray, confidence: np.ndarray | float = 0.8) -> metrics.Evaluation:
    """Return an evaluation that is right where ``right`` says so."""
    predicted = np.where(right, labels, 1 - labels)
    positive = np.where(predicted == 1, confidence, 1 - np.asarray(confidence))
    return metrics.Evaluation(np.stack([1 - positive, positive], axis=1).astype(np.float32), labels, positive=1)


def several(n: int, shares: list[float], seed: int) -> list[metrics.Evaluation]:
    """Return one candidate for each true accuracy, right independently of the others."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    return [candidate(labels, generator.random(n) < share, generator.uniform(0.6, 0.9, n)) for share in shares]


def corrected(evaluations, metric="accuracy", samples=400, seed=0) -> optimism.Corrected:
    return optimism.corrected(
        evaluations, metric=metric, samples=samples, generator=np.random.default_rng(seed), confidence=0.95
    )


def test_it_is_the_plain_loop():
    evaluations = several(60, [0.7, 0.7, 0.7], seed=1)
    labels, rows = evaluations[0].labels, np.random.default_rng(5).integers(0, 60, size=(100, 60))
    expected, chosen = [], []
    for drawn in rows:
        left = np.setdiff1d(np.arange(60), drawn)
        order = [
            (
                -accuracy_score(labels[drawn], each.predicted[drawn]),
                log_loss(labels[drawn], each.probabilities[drawn, 1], labels=[0, 1]),
                index,
            )
            for index, each in enumerate(evaluations)
        ]
        best = min(order)[2]
        chosen.append(best)
        expected.append(accuracy_score(labels[left], evaluations[best].predicted[left]))
    found = corrected(evaluations, samples=100, seed=5)
    assert found.value == pytest.approx(np.mean(expected))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])))
    whole = metrics.select(
        np.stack([each.probabilities for each in evaluations]), labels, metric="accuracy", positive=1
    )
    assert found.changed == np.mean(np.array(chosen) != whole)


def test_the_best_of_many_useless_candidates_is_useless_after_correction():
    best, fixed = [], []
    for seed in range(100):
        evaluations = several(60, [0.5] * 20, seed=seed)
        best.append(max(each.correct.mean() for each in evaluations))
        fixed.append(corrected(evaluations, samples=60).value)
    assert np.mean(best) > 0.59
    # The standard error of this mean is 0.005.
    assert np.mean(fixed) == pytest.approx(0.5, abs=0.015)


def test_where_one_candidate_is_far_better_there_is_nothing_to_correct():
    evaluations = several(400, [0.9, 0.6, 0.5], seed=2)
    found = corrected(evaluations)
    assert found.changed == 0.0
    assert found.value == pytest.approx(evaluations[0].correct.mean(), abs=0.005)
    assert found.low < found.value < found.high


def test_a_loss_is_corrected_upwards():
    evaluations = several(80, [0.75] * 20, seed=3)
    best = min(float(each.measure(names=["log_loss"])["log_loss"][0]) for each in evaluations)
    assert corrected(evaluations, metric="log_loss").value > best


def test_same_seed_gives_the_same_numbers():
    evaluations = several(50, [0.7] * 5, seed=4)
    assert corrected(evaluations, seed=7) == corrected(evaluations, seed=7) != corrected(evaluations, seed=8)


def test_draws_that_leave_the_metric_undefined_are_left_out():
    labels = np.array([1, 0, 0, 0, 0, 0])
    one = candidate(labels, np.ones(6, dtype=bool))
    other = candidate(labels, np.array([True, True, True, True, False, False]))
    found = corrected([one, other], metric="roc_auc", samples=200)
    assert found.value == pytest.approx(1.0)


def test_images_of_one_group_are_drawn_together():
    """Groups that are right and wrong as a whole: 20 pieces of evidence, not 400."""
    generator = np.random.default_rng(6)
    labels, names = np.arange(400) % 2, [f"g{index // 20}" for index in range(400)]
    evaluations = [
        candidate(labels, np.repeat(generator.random(20) < 0.7, 20), generator.uniform(0.6, 0.9, 400)) for _ in range(2)
    ]

    def found(groups):
        return optimism.corrected(
            evaluations,
            metric="accuracy",
            samples=400,
            generator=np.random.default_rng(0),
            confidence=0.95,
            groups=groups,
        )

    alone, together = found([""] * 400), found(names)
    assert alone == corrected(evaluations)
    assert together.high - together.low > 3 * (alone.high - alone.low)
    # The plain loop over groups.
    rows, values = np.random.default_rng(0).integers(0, 20, size=(400, 20)), []
    hits = np.stack([each.correct for each in evaluations]).reshape(2, 20, 20).mean(axis=2)
    losses = np.stack(
        [
            [log_loss(labels[:20], each.probabilities[20 * g : 20 * g + 20, 1], labels=[0, 1]) for g in range(20)]
            for each in evaluations
        ]
    )
    for drawn in rows:
        best = min((-hits[each, drawn].mean(), losses[each, drawn].mean(), each) for each in range(2))[2]
        values.append(hits[best, np.setdiff1d(np.arange(20), drawn)].mean())
    assert together.value == pytest.approx(np.mean(values))


def test_memory_bound_does_not_change_the_correction(monkeypatch):
    evaluations, names = several(50, [0.7] * 3, seed=4), [f"g{index // 5}" for index in range(50)]
    options = {"metric": "accuracy", "samples": 300, "confidence": 0.95, "groups": names}
    whole = optimism.corrected(evaluations, generator=np.random.default_rng(0), **options)
    monkeypatch.setattr(optimism.statistics, "ELEMENTS_AT_ONCE", 50 * 7)
    assert optimism.corrected(evaluations, generator=np.random.default_rng(0), **options) == pytest.approx(whole)


def run(method: str, *, candidates: int, search: str = "grid", notes: dict[str, int] | None = None) -> Run:
    score = {"accuracy": {"value": 0.7, "low": 0.6, "high": 0.8}}
    record = SimpleNamespace(
        name=f"lite0-{method}",
        network="lite0",
        method=method,
        parameters={f"classifiers.{method}": {"search": search}},
        candidates=[SimpleNamespace(notes=notes or {})] * candidates,
    )
    entry = {"repeats": None, "validation": score, "test": score}
    return Run(entry, record, tuple(several(40, [0.7] * candidates, seed=0)))


def section_of(*runs: Run) -> dict:
    compare = CompareParams(
        confidence=0.95, bootstrap_samples=100, calibration_bins=15, calibration=None, ensemble=None
    )
    return optimism_study.section(runs, metric="accuracy", compare=compare, seed=0, groups=[""] * 40)


def test_what_was_chosen_by_the_scores_of_the_same_images_is_marked_in_numbers_and_page():
    found = section_of(
        run("grid", candidates=3),
        run("tpe", candidates=12, search="tpe"),
        run("few", candidates=10, search="tpe"),  # so many are drawn before anything is learned
        run("boosting", candidates=2, notes={"best_iteration": 7}),
    )
    assert [row["learns_from_scores"] for row in found["runs"]] == [False, True, False, False]
    assert [row["stops_on_validation"] for row in found["runs"]] == [False, False, False, True]
    # The champion is chosen among the candidates of all.
    assert found["champion"]["learns_from_scores"] and found["champion"]["stops_on_validation"]
    assert found["champion"]["candidates"] == 27
    page = record_pages.optimism_page(found)
    marks = [row[2].removeprefix("0.700") for row in page.blocks[0].rows]
    assert marks == ["", " ‡", "", " †", " † ‡"]
    assert "too good: what early stopping and search: tpe chose on validation stays in" in page.finding
    assert "‡: `search: tpe`" in page.markdown()
    assert "too good:" not in record_pages.optimism_page(section_of(run("grid", candidates=3))).finding
