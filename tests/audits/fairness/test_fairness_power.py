"""Power against enumeration, simulation, and the comparison's own McNemar test."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import multinomial

from pipeline.audits.fairness import power
from pipeline.evaluation import statistics


def refused(first_alone: int, second_alone: int, alpha: float) -> bool:
    first = np.arange(first_alone + second_alone) < first_alone
    return statistics.paired_test(first, ~first).p <= alpha


@pytest.mark.parametrize(("discordance", "difference"), [(0.5, 0.3), (0.4, 0.4), (0.9, 0.0), (1.0, 0.5)])
def test_power_is_the_probability_of_all_outcomes_that_mcnemars_test_refuses(discordance, difference):
    n, alpha = 18, 0.05
    shares = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    expected = sum(
        multinomial.pmf([a, b, n - a - b], n, shares)
        for a in range(n + 1)
        for b in range(n + 1 - a)
        if refused(a, b, alpha)
    )
    found = power.mcnemar_power(n, discordance=discordance, difference=difference, alpha=alpha)
    assert found == pytest.approx(expected)


def test_power_of_the_default_test_part_by_simulation():
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(656, [0.08, 0.04, 0.88], size=4000)
    expected = np.mean([refused(a, b, 0.05) for a, b, _ in drawn])
    found = power.mcnemar_power(656, discordance=0.12, difference=0.04, alpha=0.05)
    assert found == pytest.approx(expected, abs=0.03)


def test_equal_methods_are_refused_at_most_as_often_as_the_level_says():
    for alpha in (0.05, 0.01):
        assert 0 < power.mcnemar_power(656, discordance=0.1, difference=0.0, alpha=alpha) <= alpha


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 11])
def test_the_smallest_difference_has_just_the_power_asked_for(alpha):
    found = power.smallest_paired_difference(656, discordance=0.12, alpha=alpha, power=0.8)
    assert power.mcnemar_power(656, discordance=0.12, difference=found, alpha=alpha) == pytest.approx(0.8, abs=1e-9)
    assert 0.02 < found < 0.07


def test_more_disagreement_hides_more_and_more_images_show_more():
    def smallest(n: int, discordance: float) -> float:
        return power.smallest_paired_difference(n, discordance=discordance, alpha=0.05, power=0.8)

    assert smallest(656, 0.05) < smallest(656, 0.2)
    assert smallest(2624, 0.2) < 0.55 * smallest(656, 0.2)


def test_methods_that_hardly_disagree_cannot_be_told_apart_at_all():
    # Five discordant images of 656, all on one side, have p = 0.0625.
    assert math.isnan(power.smallest_paired_difference(656, discordance=3 / 656, alpha=0.05, power=0.8))
    assert math.isnan(power.smallest_paired_difference(656, discordance=0.0, alpha=0.05, power=0.8))


def test_unpaired_power_by_simulation():
    generator = np.random.default_rng(1)
    first, second = (generator.binomial(656, share, size=200_000) / 656 for share in (0.87, 0.82))
    mean = (first + second) / 2
    z = np.abs(first - second) / np.sqrt(2 * mean * (1 - mean) / 656)
    found = power.unpaired_power(656, accuracy=0.87, difference=-0.05, alpha=0.05)
    assert found == pytest.approx((z > 1.959964).mean(), abs=0.01)


def test_other_images_hide_more_than_the_same_images():
    unpaired = power.smallest_unpaired_difference(656, accuracy=0.872, alpha=0.05, power=0.8)
    assert unpaired > power.smallest_paired_difference(656, discordance=0.12, alpha=0.05, power=0.8)
    assert power.unpaired_power(656, accuracy=0.872, difference=-unpaired, alpha=0.05) == pytest.approx(0.8, abs=1e-9)


def test_impossible_differences_are_refused():
    with pytest.raises(ValueError, match="difference <= discordance"):
        power.mcnemar_power(100, discordance=0.1, difference=0.2, alpha=0.05)
    with pytest.raises(ValueError, match="accuracies in"):
        power.unpaired_power(100, accuracy=0.9, difference=0.2, alpha=0.05)
