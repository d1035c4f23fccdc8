"""The comparison's and the fairness report's statistics against statsmodels, which knows nothing of this project."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, permutation_test
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import power_proportions_2indep, proportion_effectsize

from pipeline.audits.fairness import power, variance
from pipeline.evaluation import statistics


@pytest.mark.parametrize(("first_alone", "second_alone"), [(0, 1), (1, 7), (10, 3), (40, 25), (6, 6), (0, 30)])
def test_mcnemars_exact_p_value(first_alone, second_alone):
    first = np.repeat([True, True, False, False], [50, first_alone, second_alone, 9])
    second = np.repeat([True, False, True, False], [50, first_alone, second_alone, 9])
    expected = mcnemar([[50, first_alone], [second_alone, 9]], exact=True).pvalue
    assert statistics.paired_test(first, second).p == pytest.approx(min(1.0, expected))


@pytest.mark.parametrize(("right", "n"), [(655, 656), (656, 656), (0, 656), (570, 656), (3, 7), (1, 1)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilsons_interval(right, n, confidence):
    expected = binomtest(right, n).proportion_ci(confidence, method="wilson")
    found = statistics.accuracy_interval(np.arange(n) < right, confidence=confidence)
    assert found == pytest.approx((right / n, expected.low, expected.high))


def test_the_interval_of_a_ratio_over_groups():
    """A regression on nothing but a constant, with errors that go together in a group."""
    generator = np.random.default_rng(4)
    sizes = generator.integers(5, 30, size=15)
    groups = np.repeat(np.arange(15), sizes)
    right = generator.random(len(groups)) < np.repeat(generator.uniform(0.3, 0.9, size=15), sizes)
    fit = ols("right ~ 1", pd.DataFrame({"right": right.astype(float)})).fit(
        cov_type="cluster", cov_kwds={"groups": groups}, use_t=True
    )
    expected = fit.conf_int(0.05).iloc[0]
    found = statistics.accuracy_interval(right, groups.astype(str).tolist(), confidence=0.95)
    assert found == pytest.approx((right.mean(), *expected))


def test_the_permutation_test():
    generator = np.random.default_rng(5)
    first = generator.normal(size=12)
    second = first + generator.normal(0.4, 0.6, size=12)
    expected = permutation_test(
        (first, second), lambda a, b: a.mean() - b.mean(), permutation_type="samples", n_resamples=np.inf
    ).pvalue
    values = np.concatenate([first, second])
    found = statistics.permutation_test(
        lambda weights: weights @ values / 12, 12, samples=20_000, generator=np.random.default_rng(0)
    )
    assert found == pytest.approx(expected, abs=0.005)


def test_holms_correction():
    p_values = np.random.default_rng(0).random(12) ** 3
    assert statistics.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


@pytest.fixture(scope="module")
def crossed() -> np.ndarray:
    """Values of 6 splits, 4 seeds and 5 candidates with effects of all kinds."""
    draw = np.random.default_rng(1).standard_normal
    return (
        2 * draw((6, 1, 1))
        + 0.5 * draw((1, 4, 1))
        + draw((1, 1, 5))
        + 0.7 * draw((6, 1, 5))
        + 0.4 * draw((6, 4, 1))
        + 0.3 * draw((6, 4, 5))
    )


def frame(values: np.ndarray) -> pd.DataFrame:
    names = ("split", "seed", "candidate")
    levels = [axis.ravel() for axis in np.indices(values.shape)]
    return pd.DataFrame({"value": values.ravel(), **dict(zip(names, levels, strict=True))})


def test_components_solve_the_mean_squares_of_a_three_way_table(crossed):
    model = ols("value ~ (C(split) + C(seed) + C(candidate)) ** 2", frame(crossed)).fit()
    square = anova_lm(model)["mean_sq"]
    i, j, k = crossed.shape
    pairs = {
        name: square[f"C({name[0]}):C({name[1]})"]
        for name in (("split", "seed"), ("split", "candidate"), ("seed", "candidate"))
    }
    rest = square["Residual"]
    expected = {
        "split": (square["C(split)"] - pairs["split", "seed"] - pairs["split", "candidate"] + rest) / (j * k),
        "seed": (square["C(seed)"] - pairs["split", "seed"] - pairs["seed", "candidate"] + rest) / (i * k),
        "hyper-parameters": (
            (square["C(candidate)"] - pairs["split", "candidate"] - pairs["seed", "candidate"] + rest) / (i * j)
        ),
        "split x seed": (pairs["split", "seed"] - rest) / k,
        "split x hyper-parameters": (pairs["split", "candidate"] - rest) / j,
        "seed x hyper-parameters": (pairs["seed", "candidate"] - rest) / i,
        "split x seed x hyper-parameters": rest,
    }
    found = variance.components(crossed)
    assert found == pytest.approx({name: max(0.0, value) for name, value in expected.items()})
    assert min(found["split"], found["hyper-parameters"], found["split x hyper-parameters"]) > 0


def test_components_solve_the_mean_squares_of_a_two_way_table(crossed):
    values = crossed[:, :1, :]
    square = anova_lm(ols("value ~ C(split) + C(candidate)", frame(values)).fit())["mean_sq"]
    i, _, k = values.shape
    found = variance.components(values)
    assert found["split"] == pytest.approx((square["C(split)"] - square["Residual"]) / k)
    assert found["hyper-parameters"] == pytest.approx(max(0, (square["C(candidate)"] - square["Residual"]) / i))
    assert found["split x hyper-parameters"] == pytest.approx(square["Residual"])


@pytest.mark.parametrize("difference", [0.03, 0.05, 0.08])
def test_power_of_two_proportions(difference):
    found = power.unpaired_power(656, accuracy=0.87, difference=-difference, alpha=0.05)
    expected = power_proportions_2indep(difference, 0.87 - difference, 656, alpha=0.05, value=0).power
    # statsmodels adds the other tail and takes its variances from other places.
    assert found == pytest.approx(expected, abs=0.01)


def test_the_smallest_unpaired_difference():
    found = power.smallest_unpaired_difference(656, accuracy=0.872, alpha=0.05, power=0.8)
    # By the arcsine transform, another approximation to the same test.
    effect = NormalIndPower().solve_power(nobs1=656, alpha=0.05, power=0.8)
    assert proportion_effectsize(0.872, 0.872 - found) == pytest.approx(effect, rel=0.02)


def test_the_sampling_error_of_an_accuracy():
    intercept = ols("value ~ 1", pd.DataFrame({"value": np.repeat([1.0, 0.0], [570, 86])})).fit()
    # A regression divides by n - 1.
    expected = float(intercept.bse.iloc[0]) * math.sqrt(655 / 656)
    hits = np.repeat([True, False], [570, 86])
    alone = variance.sampling_variance(hits, [str(image) for image in range(656)], population=2624)
    assert math.sqrt(alone) == pytest.approx(expected * math.sqrt(1 - 656 / 2624))
