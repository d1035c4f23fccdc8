"""Variance components by hand, and what is 0 by construction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.audits.fairness import variance


def crossed(*effects: tuple[tuple[int, ...], float], shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return values (shape) that are sums of random effects: (axes, standard deviation) of each."""
    generator = np.random.default_rng(seed)
    found = np.zeros(shape)
    for axes, deviation in effects:
        levels = [n if axis in axes else 1 for axis, n in enumerate(shape)]
        found = found + deviation * generator.standard_normal(levels)
    return found


def test_two_factors_by_hand():
    # Means of rows 2, 4, 9, of columns 4, 6, of all 5. Sums of squares: rows 52, columns 6, rest 4.
    values = np.array([[2.0, 2.0], [2.0, 6.0], [8.0, 10.0]])
    # Mean squares: 26, 6 and 2. So rows (26 - 2) / 2 = 12, columns (6 - 2) / 3, rest 2.
    found = variance.components(values, ("row", "column"))
    assert found == pytest.approx({"row": 12.0, "column": 4 / 3, "row x column": 2.0})


def test_three_factors_are_the_textbooks_combinations_of_mean_squares():
    values = crossed(((0,), 1.0), ((1,), 0.5), ((2,), 2.0), ((0, 2), 0.7), ((0, 1, 2), 0.3), shape=(5, 4, 3))
    n = values.shape
    squares = {}
    for axes in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2)):
        others = tuple(axis for axis in range(3) if axis not in axes)
        effect = values.mean(axis=others, keepdims=True)
        if len(axes) == 1:
            effect = effect - values.mean()
        else:
            effect = (
                effect
                - values.mean(axis=tuple(a for a in range(3) if a != axes[0]), keepdims=True)
                - values.mean(axis=tuple(a for a in range(3) if a != axes[1]), keepdims=True)
                + values.mean()
            )
        squares[axes] = math.prod(n[a] for a in others) * (effect**2).sum() / math.prod(n[a] - 1 for a in axes)
    explained = sum(squares[axes] * math.prod(n[a] - 1 for a in axes) for axes in squares)
    rest = (((values - values.mean()) ** 2).sum() - explained) / math.prod(a - 1 for a in n)
    expected = {
        "split": (squares[0,] - squares[0, 1] - squares[0, 2] + rest) / (n[1] * n[2]),
        "seed": (squares[1,] - squares[0, 1] - squares[1, 2] + rest) / (n[0] * n[2]),
        "hyper-parameters": (squares[2,] - squares[0, 2] - squares[1, 2] + rest) / (n[0] * n[1]),
        "split x seed": (squares[0, 1] - rest) / n[2],
        "split x hyper-parameters": (squares[0, 2] - rest) / n[1],
        "seed x hyper-parameters": (squares[1, 2] - rest) / n[0],
        "split x seed x hyper-parameters": rest,
    }
    found = variance.components(values)
    assert found == pytest.approx({name: max(0.0, value) for name, value in expected.items()})


def test_estimates_are_those_of_the_truth_on_average():
    truth = {"split": 4.0, "seed": 0.25, "hyper-parameters": 1.0, "split x seed x hyper-parameters": 0.5}
    drawn = [
        variance.components(
            crossed(((0,), 2.0), ((1,), 0.5), ((2,), 1.0), ((0, 1, 2), math.sqrt(0.5)), shape=(12, 8, 8), seed=seed)
        )
        for seed in range(150)
    ]
    for name, value in truth.items():
        assert np.mean([each[name] for each in drawn]) == pytest.approx(value, rel=0.15), name


def test_a_family_that_draws_nothing_has_no_seed_component_by_construction():
    values = crossed(((0,), 1.0), ((2,), 0.5), ((0, 2), 0.2), shape=(6, 1, 4))
    found = variance.components(values)
    assert [name for name, value in found.items() if "seed" in name and value] == []
    assert found["split"] > 0 < found["split x hyper-parameters"]
    # The same as without the axis.
    two = variance.components(values[:, 0], ("split", "hyper-parameters"))
    assert {name: found[name] for name in two} == pytest.approx(two)


def test_trainings_that_are_the_same_have_no_seed_component():
    values = np.repeat(crossed(((0,), 1.0), ((2,), 0.5), ((0, 2), 0.2), shape=(6, 1, 4)), 3, axis=1)
    assert variance.components(values)["seed"] == pytest.approx(0.0, abs=1e-12)


def test_shares_add_up_to_one_and_nothing_that_varies_has_none():
    found = variance.summary(crossed(((0,), 1.0), ((0, 1, 2), 1.0), shape=(4, 3, 2)), confidence=0.95)
    assert sum(each["share"] for each in found.values()) == pytest.approx(1.0)
    constant = variance.summary(np.full((4, 3, 2), 0.8), confidence=0.95)
    assert all(math.isnan(each["share"]) and each["sd"] == 0.0 for each in constant.values())


def test_an_estimate_below_zero_is_zero():
    values = np.array([[1.0, -1.0], [-1.0, 1.0]])
    assert variance.components(values, ("row", "column")) == {"row": 0.0, "column": 0.0, "row x column": 4.0}


def test_agreement_of_validation_and_test_by_hand():
    assert variance.agreement(np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.2, 0.3])) == pytest.approx(1.0)
    assert variance.agreement(np.array([1.0, 2.0, 3.0]), np.array([0.3, 0.2, 0.1])) == pytest.approx(-1.0)
    assert math.isnan(variance.agreement(np.array([1.0, 1.0]), np.array([0.3, 0.2])))


def test_the_interval_of_one_factor_is_that_of_a_variance():
    values = crossed(((0,), 1.0), shape=(9,))
    (found,) = variance.intervals(values, ("split",), confidence=0.95).values()
    assert found == pytest.approx(tuple(8 * values.var(ddof=1) / stats.chi2.ppf([0.975, 0.025], 8)))


def test_two_seeds_say_next_to_nothing_and_the_interval_shows_it():
    values = crossed(((0,), 0.01), ((1,), 1.0), shape=(8, 2), seed=2)
    found = variance.summary(values, ("split", "seed"), confidence=0.95)["seed"]
    # One degree of freedom: 1 / sqrt(5.024) to 1 / sqrt(0.000982) times the estimate.
    assert (found["low"] / found["sd"], found["high"] / found["sd"]) == pytest.approx((0.446, 31.9), rel=0.01)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    truth = {"split": 1.0, "hyper-parameters": 4.0, "split x hyper-parameters": 0.25}
    held = dict.fromkeys(truth, 0)
    for seed in range(300):
        values = crossed(((0,), 1.0), ((1,), 2.0), ((0, 1), 0.5), shape=(8, 6), seed=seed)
        found = variance.intervals(values, ("split", "hyper-parameters"), confidence=0.9)
        for name, value in truth.items():
            held[name] += found[name][0] <= value <= found[name][1]
    assert all(0.85 < count / 300 < 0.95 for count in held.values()), held


def test_what_is_estimated_as_nothing_has_no_interval():
    values = np.array([[1.0, -1.0], [-1.0, 1.0]])
    found = variance.intervals(values, ("row", "column"), confidence=0.95)
    assert all(math.isnan(bound) for bound in (*found["row"], *found["column"]))
    assert found["row x column"][0] < 4 < found["row x column"][1]


def test_sampling_alone_at_87_percent_of_656_images_is_1_3_points():
    hits = np.arange(656) < 571
    share = 571 / 656
    found = variance.sampling_variance(hits, [""] * 656, population=10**12)
    assert found == pytest.approx(share * (1 - share) / 656)
    assert 100 * math.sqrt(found) == pytest.approx(1.311, abs=0.001)


@pytest.mark.parametrize("size", [1, 8])
def test_sampling_a_quarter_of_all_images_or_groups_is_that_of_redrawn_test_parts(size):
    generator = np.random.default_rng(0)
    hits = np.repeat(generator.random(400) < 0.87, size)
    groups = np.repeat([f"g{index}" for index in range(400)], size)
    redrawn, found = [], []
    for _ in range(4000):
        rows = np.isin(groups, [f"g{index}" for index in generator.choice(400, 100, replace=False)])
        redrawn.append(hits[rows].mean())
        found.append(variance.sampling_variance(hits[rows], groups[rows].tolist(), population=400))
    assert math.sqrt(np.mean(found)) == pytest.approx(np.std(redrawn), rel=0.05)


def test_images_of_one_group_are_one_draw():
    generator = np.random.default_rng(0)
    alike = np.repeat(generator.random(40) < 0.8, 10)
    groups = [f"g{index // 10}" for index in range(400)]
    share = alike.mean()
    assert variance.sampling_variance(alike, groups, population=10**12) == pytest.approx(share * (1 - share) / 40)
    # Groups of different sizes, against drawing them.
    hits, sizes = generator.random(300) < 0.7, generator.multinomial(300, np.full(30, 1 / 30))
    names = np.repeat([f"g{index}" for index in range(30)], sizes)
    rows = {name: np.flatnonzero(names == name) for name in np.unique(names)}
    drawn = [
        hits[np.concatenate([rows[name] for name in generator.choice(list(rows), len(rows))])].mean()
        for _ in range(3000)
    ]
    found = variance.sampling_variance(hits, list(names), population=10**12)
    assert math.sqrt(found) == pytest.approx(np.std(drawn), rel=0.1)
