"""Intervals and tests against independent implementations and published or hand-worked numbers."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pydantic
import pytest
import sklearn.metrics as reference
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation import metrics, statistics


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
    test = statistics.paired_test(
        *right_and_wrong((50, True, True), (first_alone, True, False), (second_alone, False, True), (9, False, False))
    )
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


def test_a_mistake_never_makes_an_interval_better():
    """With groups, spread between those that were drawn says nothing of those that were not."""
    for groups in ((), [f"g{index // 10}" for index in range(600)]):
        right = np.ones(600, bool)
        found = [statistics.accuracy_interval(right, groups, confidence=0.95)]
        for index in (0, 17, 18, 300):
            right[index] = False
            found.append(statistics.accuracy_interval(right, groups, confidence=0.95))
        assert found[0].high == 1
        for fewer, more in itertools.pairwise(found):
            assert more.low <= fewer.low + 1e-12 and more.high <= fewer.high
            assert more.low < more.value < more.high
    mirrored = statistics.accuracy_interval(~right, groups, confidence=0.95)
    assert mirrored == (pytest.approx(1 - more.value), pytest.approx(1 - more.high), pytest.approx(1 - more.low))


def test_the_interval_of_groups_is_that_of_a_ratio_by_hand():
    """Three groups of 2, 3 and 5 images with 1, 2 and 1 right: 4 of 10, so 0.2, 0.8 and -1 more than expected."""
    right = np.array([1, 0, 1, 1, 0, 1, 0, 0, 0, 0], bool)
    groups = ["a", "a", "b", "b", "b", "c", "c", "c", "c", "c"]
    found = statistics.accuracy_interval(right, groups, confidence=0.5)
    half = 0.816497 * math.sqrt(3 / 2 * (0.2**2 + 0.8**2 + 1)) / 10  # t with 2 degrees of freedom
    assert found == (0.4, pytest.approx(0.4 - half, abs=1e-6), pytest.approx(0.4 + half, abs=1e-6))
    other = statistics.accuracy_difference(np.zeros(10, bool), right, groups, confidence=0.5)
    assert other == (0.4, pytest.approx(0.4 - half, abs=1e-6), pytest.approx(0.4 + half, abs=1e-6))


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 7)), min_size=1, max_size=60))
def test_groups_never_narrow_an_interval_of_accuracies(images):
    first, second = (np.array(side) for side in list(zip(*images, strict=True))[:2])
    groups = [str(group) for _, _, group in images]
    for interval, sides in ((statistics.accuracy_interval, [first]), (statistics.accuracy_difference, [first, second])):
        alone, grouped = (interval(*sides, names, confidence=0.9) for names in ((), groups))
        assert grouped.low <= alone.low + 1e-9 and alone.high <= grouped.high + 1e-9
        assert alone.low <= alone.value == grouped.value <= alone.high


def test_groups_that_are_all_alike_are_counted_as_images():
    """Two images a group, one of them right in each: nothing says that groups differ."""
    right, groups = np.arange(50) % 2 == 0, [str(index // 2) for index in range(50)]
    for interval, sides in ((statistics.accuracy_interval, [right]), (statistics.accuracy_difference, [~right, right])):
        assert interval(*sides, groups, confidence=0.95) == interval(*sides, confidence=0.95)


def test_a_single_group_tells_of_no_spread():
    right, groups = np.arange(50) % 3 > 0, ["a"] * 50
    assert statistics.accuracy_interval(right, groups, confidence=0.95)[1:] == (0, 1)
    assert statistics.accuracy_difference(~right, right, groups, confidence=0.95)[1:] == (-1, 1)


def difference_of(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    pairs = (only_first, True, False), (only_second, False, True), (n - only_first - only_second, True, True)
    return statistics.accuracy_difference(*right_and_wrong(*pairs), confidence=0.95)[1:]


@pytest.mark.parametrize(("only_first", "only_second", "n"), [(0, 0, 20), (1, 0, 20), (3, 9, 100), (20, 0, 656)])
def test_the_interval_of_a_difference_holds_what_the_score_test_does_not_reject(only_first, only_second, n):
    """By another way to the most likely shares: over all of them, instead of the root of Tango's equation."""
    from scipy.optimize import minimize_scalar

    def statistic(difference):
        """The squared score statistic, with the shares of the two kinds of images that are most likely."""

        def unlikely(share):  # of the images that only the first method has right
            shares = share, share + difference, 1 - 2 * share - difference
            counts = only_first, only_second, n - only_first - only_second
            return -sum(count * np.log(max(each, 1e-300)) for count, each in zip(counts, shares, strict=True) if count)

        ends = max(0.0, -difference), (1 - difference) / 2
        share = minimize_scalar(unlikely, bounds=ends, method="bounded", options={"xatol": 1e-12}).x
        variance = (2 * share + difference - difference**2) / n
        return ((only_second - only_first) / n - difference) ** 2 / variance

    low, high = difference_of(only_first, only_second, n)
    assert low <= (only_second - only_first) / n <= high
    for bound in (low, high):
        assert statistic(bound) == pytest.approx(1.959964**2, rel=1e-3)
    swapped = difference_of(only_second, only_first, n)
    assert swapped == pytest.approx((-high, -low))


def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says_where_few_images_differ():
    """The percentile bootstrap says that nothing differs where no such image was drawn: in 37 of 100 test parts."""
    generator = np.random.default_rng(0)
    n, shares = 100, (0.01, 0.0, 0.99)
    drawn = generator.multinomial(n, shares, size=2000)
    held = [low <= -0.01 <= high for low, high in (difference_of(*counts[:2], n) for counts in drawn.tolist())]
    assert np.mean(held) >= 0.94
    assert 0.3 < np.mean(drawn[:, 0] == 0) < 0.45, "every resample of these images agrees that nothing differs"


def test_identical_answers_on_few_images_do_not_prove_that_two_models_are_equally_good():
    """By hand: with no image on which only one is right, the bounds are z^2 / (n + z^2)."""
    low, high = difference_of(0, 0, 20)
    assert (low, high) == pytest.approx((-(1.96**2) / (20 + 1.96**2), 1.96**2 / (20 + 1.96**2)), abs=1e-4)
    assert difference_of(0, 0, 656)[1] < 0.006


def drawn_in_groups(
    generator: np.random.Generator, count: int, accuracy: float, alike: float
) -> tuple[np.ndarray, list]:
    """Return which images are right, of ``count`` groups of 10 to 50, with an intraclass correlation ``alike``."""
    spread = (1 - alike) / alike
    sizes = generator.integers(10, 51, size=count)
    shares = np.repeat(generator.beta(accuracy * spread, (1 - accuracy) * spread, size=count), sizes)
    return generator.random(len(shares)) < shares, np.repeat(np.arange(count), sizes).astype(str).tolist()


@pytest.mark.parametrize(("count", "accuracy"), [(6, 0.87), (11, 0.87), (20, 0.97), (60, 0.98)])
def test_the_interval_of_an_accuracy_holds_the_truth_in_few_groups(count, accuracy):
    """Percentiles hold it too seldom where groups are few, and where most groups have no mistake."""
    generator = np.random.default_rng(0)
    held, held_by_percentiles = [], []
    for _ in range(400):
        right, groups = drawn_in_groups(generator, count, accuracy, 0.15)
        _, low, high = statistics.accuracy_interval(right, groups, confidence=0.95)
        held.append(low <= accuracy <= high)
        drawn = statistics.bootstrap(
            {"a": lambda weights, right=right: {"accuracy": weights @ right / weights.sum(1)}},
            len(right),
            samples=200,
            generator=generator,
            groups=groups,
        )
        _, low, high = statistics.percentile_interval(right.mean(), drawn["a"]["accuracy"], confidence=0.95)
        held_by_percentiles.append(low <= accuracy <= high)
    assert np.mean(held) > 0.93 > 0.925 > np.mean(held_by_percentiles)


@pytest.mark.parametrize(("count", "most"), [(6, 0.87), (11, 0.92), (20, 0.93)])
def test_the_interval_of_other_metrics_is_widened_for_few_units(count, most):
    """Of a mean over units, whose truth is 0."""
    generator = np.random.default_rng(1)
    held, held_by_percentiles = [], []
    for _ in range(1500):
        values = generator.normal(size=count)
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=300) @ values / count
        wide = statistics.resampled_interval(values.mean(), drawn, confidence=0.95, units=count, limits=(-9, 9))
        plain = statistics.percentile_interval(values.mean(), drawn, confidence=0.95)
        held.append(wide.low <= 0 <= wide.high)
        held_by_percentiles.append(plain.low <= 0 <= plain.high)
    assert np.mean(held_by_percentiles) < most < 0.935 < np.mean(held) < 0.965


def test_bounds_move_away_from_the_value_only_and_stay_where_a_metric_can_be():
    drawn, more = np.linspace(0.2, 0.4, 1001), 2.5706 / 1.95996 * math.sqrt(6 / 5)
    low, high = np.quantile(drawn, [0.025, 0.975])
    for value in (0.3, 0.1):  # within the percentile interval, and below it, as an estimate with a bias may be
        found = statistics.resampled_interval(value, drawn, confidence=0.95, units=6)
        expected = max(0, low - (more - 1) * abs(low - value)), high + (more - 1) * (high - value)
        assert (found.low, found.high) == pytest.approx(expected, abs=1e-4)
        assert found.low <= low < high <= found.high
    clipped = statistics.resampled_interval(0.3, drawn, confidence=0.95, units=2)
    assert (clipped.low, clipped.high) == (0, 1)
    alone = statistics.resampled_interval(0.3, drawn, confidence=0.95, units=1)
    assert math.isnan(alone.low) and math.isnan(alone.high), "one unit tells of no spread"


def in_weights(first: np.ndarray, second: np.ndarray) -> statistics.Measure:
    """Return the mean of two methods' values under weights, the first's values and behind them the second's."""
    values = np.concatenate([first, second]).astype(np.float64)
    return lambda weights: weights @ values / weights.sum(axis=1)


@pytest.mark.parametrize("groups", [(), [f"g{index // 4}" for index in range(60)]], ids=["images", "groups"])
@pytest.mark.parametrize(("first_alone", "second_alone"), [(5, 1), (9, 2), (6, 6), (0, 0)])
def test_the_permutation_test_of_accuracies_is_the_exact_test(groups, first_alone, second_alone):
    sides = right_and_wrong(
        (first_alone, True, False), (second_alone, False, True), (60 - first_alone - second_alone, True, True)
    )
    exact = statistics.paired_test(*sides, groups).p
    found = statistics.permutation_test(
        in_weights(*sides), 60, samples=20_000, generator=np.random.default_rng(0), groups=groups
    )
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000) + 1e-4)


def test_the_permutation_test_keeps_its_level_where_images_of_a_group_are_alike():
    """Two equal methods whose losses go together in a group: of images by themselves, it would find too much."""
    generator = np.random.default_rng(2)
    groups = [str(index // 5) for index in range(60)]
    found = {names: [] for names in ("groups", "images")}
    for _ in range(300):
        losses = generator.normal(size=(2, 12)).repeat(5, axis=1) + 0.5 * generator.normal(size=(2, 60))
        for names, of in (("groups", groups), ("images", ())):
            found[names].append(
                statistics.permutation_test(in_weights(*losses), 60, samples=99, groups=of, generator=generator)
            )
    rejected = {names: np.mean(np.array(p) <= 0.05) for names, p in found.items()}
    assert 0.02 < rejected["groups"] < 0.08 and rejected["images"] > 0.2


def test_a_permutation_test_is_never_certain_and_does_not_depend_on_memory(monkeypatch):
    sides = np.zeros(40), np.ones(40)
    found = statistics.permutation_test(in_weights(*sides), 40, samples=199, generator=np.random.default_rng(0))
    assert found == 1 / 200
    close = np.random.default_rng(3).normal(size=(2, 40))
    whole, pieces = (
        (
            monkeypatch.setattr(statistics, "ELEMENTS_AT_ONCE", most),
            statistics.permutation_test(in_weights(*close), 40, samples=199, generator=np.random.default_rng(0)),
        )[1]
        for most in (1 << 20, 80 * 7)
    )
    assert whole == pieces and 0.05 < whole < 1


def test_an_undefined_difference_has_no_p():
    def measure(weights):
        return np.where(weights[:, 0] > 0, np.nan, weights.mean(axis=1))

    assert math.isnan(statistics.permutation_test(measure, 5, samples=100, generator=np.random.default_rng(0)))


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
    assert statistics.holm([0.03, math.nan, 0.02]) == [pytest.approx(0.04), pytest.approx(math.nan, nan_ok=True), 0.04]


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
