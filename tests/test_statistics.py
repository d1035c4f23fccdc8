"""Intervals and tests against independent implementations and published or hand-worked numbers."""

from __future__ import annotations

import math
import time

import numpy as np
import pydantic
import pytest
import sklearn.metrics as reference
from hypothesis import given
from hypothesis import strategies as st

from pipeline import metrics, statistics


def right_and_wrong(*pairs: tuple[int, bool, bool]) -> tuple[np.ndarray, np.ndarray]:
    """Return two methods' hits from (how many images, first right, second right)."""
    first = np.concatenate([np.full(count, one) for count, one, _ in pairs])
    second = np.concatenate([np.full(count, two) for count, _, two in pairs])
    return first, second


def evaluation(seed: int, n: int = 200) -> metrics.Evaluation:
    generator = np.random.default_rng(seed)
    labels = (np.arange(n) % 3 == 0).astype(np.int64)
    positive = 1 / (1 + np.exp(-(2 * labels - 1 + generator.normal(size=n))))
    return metrics.Evaluation(np.stack([1 - positive, positive], axis=1).astype(np.float32), labels, positive=1)


def test_every_resample_draws_as_many_images_as_there_are():
    drawn = np.concatenate(list(statistics.resamples(50, samples=300, generator=np.random.default_rng(0))))
    assert drawn.shape == (300, 50)
    assert (drawn.sum(axis=1) == 50).all()
    # About 1/e of the images are not in a resample.
    assert (drawn == 0).mean() == pytest.approx(math.exp(-1), abs=0.01)


def test_memory_bound_does_not_change_the_resamples(monkeypatch):
    whole = list(statistics.resamples(40, samples=100, generator=np.random.default_rng(1)))
    monkeypatch.setattr(statistics, "ELEMENTS_AT_ONCE", 40 * 7)
    pieces = list(statistics.resamples(40, samples=100, generator=np.random.default_rng(1)))
    assert len(whole) == 1 and [len(piece) for piece in pieces] == [7] * 14 + [2]
    assert (np.concatenate(pieces) == whole[0]).all()


def test_same_seed_gives_identical_intervals():
    def once():
        measures = {"a": evaluation(0).measure}
        return statistics.bootstrap(measures, 200, samples=150, generator=np.random.default_rng(5))["a"]

    first, second = once(), once()
    assert all((first[name] == second[name]).all() for name in metrics.NAMES)


def test_all_methods_are_measured_on_the_same_resamples():
    same = {"a": evaluation(0).measure, "b": evaluation(0).measure, "c": evaluation(1).measure}
    found = statistics.bootstrap(same, 200, samples=150, generator=np.random.default_rng(0))
    assert all((found["a"][name] == found["b"][name]).all() for name in metrics.NAMES)
    assert (found["a"]["accuracy"] != found["c"]["accuracy"]).any()


def test_bootstrap_equals_scikit_learn_on_repeated_images():
    one = evaluation(3)
    found = statistics.bootstrap({"a": one.measure}, 200, samples=100, generator=np.random.default_rng(9))["a"]
    rows = np.random.default_rng(9).integers(0, 200, size=(100, 200))
    expected = [reference.roc_auc_score(one.labels[drawn], one.probabilities[drawn, 1]) for drawn in rows]
    assert found["roc_auc"] == pytest.approx(np.array(expected))
    expected = [reference.accuracy_score(one.labels[drawn], one.predicted[drawn]) for drawn in rows]
    assert found["accuracy"] == pytest.approx(np.array(expected))


def test_interval_of_an_accuracy_is_close_to_the_binomial_one():
    right = np.arange(656) < 570
    measures = {"a": lambda weights: {"accuracy": weights @ right / 656}}
    drawn = statistics.bootstrap(measures, 656, samples=4000, generator=np.random.default_rng(0))["a"]["accuracy"]
    share = 570 / 656
    interval = statistics.percentile_interval(share, drawn, confidence=0.95)
    half = 1.96 * math.sqrt(share * (1 - share) / 656)
    assert (interval.low, interval.high) == pytest.approx((share - half, share + half), abs=0.003)


@given(st.lists(st.floats(-5, 5), min_size=5, max_size=60), st.floats(0.5, 0.9))
def test_more_confidence_never_narrows_an_interval(values, confidence):
    drawn = np.array(values)
    narrow = statistics.percentile_interval(0.0, drawn, confidence=confidence)
    wide = statistics.percentile_interval(0.0, drawn, confidence=confidence + 0.05)
    assert wide.low <= narrow.low <= narrow.high <= wide.high


def test_resamples_without_a_value_are_left_out_and_none_left_is_undefined():
    found = statistics.percentile_interval(0.5, np.array([np.nan, 0.4, 0.5, 0.6, np.nan]), confidence=0.5)
    assert found == (0.5, pytest.approx(0.45), pytest.approx(0.55))
    undefined = statistics.percentile_interval(0.5, np.array([np.nan]), confidence=0.9)
    assert np.isnan(undefined.low) and np.isnan(undefined.high)


def test_difference_of_paired_methods_is_narrower_than_their_intervals_suggest():
    base = evaluation(0)
    # Differs from the first on five images only.
    other = base.probabilities.copy()
    other[:5] = other[:5, ::-1]
    measures = {"a": base.measure, "b": metrics.Evaluation(other, base.labels, positive=1).measure}
    found = statistics.bootstrap(measures, 200, samples=500, generator=np.random.default_rng(2))

    def width(drawn):
        _, low, high = statistics.percentile_interval(0.0, drawn, confidence=0.95)
        return high - low

    assert width(found["a"]["accuracy"] - found["b"]["accuracy"]) < 0.6 * width(found["a"]["accuracy"])


@pytest.mark.parametrize(("first_alone", "second_alone"), [(0, 1), (1, 7), (10, 3), (40, 25), (6, 6), (0, 30)])
def test_the_paired_test_is_mcnemars_exact_binomial_test_of_the_images_only_one_gets_right(first_alone, second_alone):
    test = statistics.paired_test(*right_and_wrong((50, True, True), (first_alone, True, False),
                                               (second_alone, False, True), (9, False, False)))  # fmt: skip
    n, fewer = first_alone + second_alone, min(first_alone, second_alone)
    expected = min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)
    assert test == (first_alone, second_alone, pytest.approx(expected))


def test_a_group_takes_sides_as_one():
    """All sums of signs by hand: groups that are ahead by 3, -1 and 2, and two in which nobody is."""
    first = np.array([1, 1, 1, 0, 1, 1, 1, 0, 0], bool)
    second = np.array([0, 0, 0, 1, 0, 0, 1, 1, 1], bool)
    groups = ["a", "a", "a", "b", "c", "c", "d", "e", "e"]
    first[8] = True  # e: each is right once alone
    second[8] = False
    found = statistics.paired_test(first, second, groups)
    assert found[:2] == (6, 2)
    sums = [abs(3 * x + y + 2 * z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
    assert found.p == pytest.approx(sum(each >= 4 for each in sums) / 8) == 0.5


def test_groups_of_one_image_change_nothing():
    first, second = right_and_wrong((50, True, True), (30, True, False), (12, False, True), (9, False, False))
    alone = [f"g{index}" for index in range(len(first))]
    assert statistics.paired_test(first, second, alone) == statistics.paired_test(first, second)
    plain, grouped = (
        np.concatenate(list(statistics.resamples(30, samples=40, generator=np.random.default_rng(0), groups=groups)))
        for groups in ((), alone[:30])
    )
    assert (plain == grouped).all()


def test_the_same_images_many_times_over_prove_no_more_than_once():
    first, second = right_and_wrong((10, True, True), (9, True, False), (2, False, True))
    groups = [str(index) for index in range(len(first))]
    once = statistics.paired_test(first, second)
    tenfold = [np.tile(each, 10) for each in (first, second)]
    assert statistics.paired_test(*tenfold, groups * 10).p == pytest.approx(once.p)
    assert statistics.paired_test(*tenfold).p < once.p / 100


def test_whole_groups_are_drawn_and_images_of_none_by_themselves():
    groups = ["a", "", "b", "a", "", "b", "b"]
    drawn = np.concatenate(
        list(statistics.resamples(7, samples=500, generator=np.random.default_rng(3), groups=groups))
    )
    assert (drawn[:, 0] == drawn[:, 3]).all() and (drawn[:, 2] == drawn[:, 5]).all()
    assert (drawn[:, 2] == drawn[:, 6]).all() and (drawn[:, 1] != drawn[:, 4]).any()
    assert (drawn[:, [0, 1, 2, 4]].sum(axis=1) == 4).all(), "as many units as there are"
    assert len(set(drawn.sum(axis=1))) > 1


def test_an_accuracy_of_1_is_not_certain():
    """Clopper-Pearson: the accuracy at which all of 40 are right with a chance of 2.5 %, and the mirror image."""
    right = statistics.accuracy_interval(1.0, np.ones(100), confidence=0.95, units=40)
    assert right.high == 1 and right.low**40 == pytest.approx(0.025)
    wrong = statistics.accuracy_interval(0.0, np.zeros(100), confidence=0.95, units=40)
    assert wrong.low == 0 and wrong.high == pytest.approx(1 - right.low)
    between = statistics.accuracy_interval(0.5, np.linspace(0, 1, 101), confidence=0.9, units=40)
    assert between == (0.5, pytest.approx(0.05), pytest.approx(0.95))


def test_methods_that_are_right_together_differ_in_nothing():
    assert statistics.paired_test(*right_and_wrong((5, True, True), (3, False, False))) == (0, 0, 1.0)


def test_the_paired_test_does_not_depend_on_who_is_first():
    first, second = right_and_wrong((9, True, False), (2, False, True), (10, True, True))
    assert statistics.paired_test(first, second).p == statistics.paired_test(second, first).p


def test_holm_worked_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.5]) == [1.0, 1.0]
    assert statistics.holm([0.02]) == [0.02]
    assert statistics.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order(p_values):
    corrected = statistics.holm(p_values)
    for p, after in zip(p_values, corrected, strict=True):
        assert p <= after <= min(1.0, len(p_values) * p) or after == pytest.approx(p)
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()


def test_resampling_eight_methods_takes_a_hundredth_of_a_second_of_work_a_resample_at_most():
    measures = {str(seed): evaluation(seed, n=656).measure for seed in range(8)}
    started = time.process_time()
    statistics.bootstrap(measures, 656, samples=300, generator=np.random.default_rng(0))
    # So 2,000 resamples stay below 20 s.
    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    "change", [{"confidence": 0.4}, {"confidence": 1.0}, {"bootstrap_samples": 99}, {"calibration_bins": 1}]
)
def test_parameters_out_of_range_are_refused(change):
    values = {
        "confidence": 0.95,
        "bootstrap_samples": 2000,
        "calibration_bins": 15,
        "calibration": None,
        "ensemble": None,
    }
    assert statistics.CompareParams(**values).confidence == 0.95
    with pytest.raises(pydantic.ValidationError):
        statistics.CompareParams(**values | change)
