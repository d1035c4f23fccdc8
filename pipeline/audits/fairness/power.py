"""The smallest difference between two methods that a test part of n images can show. Pure.

Power is the chance that the test finds a difference of this size, at a significance level alpha, two-sided.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

STEPS = 50  # halvings of an interval of length 1 at most: far below one image


def mcnemar_power(n: int, *, discordance: float, difference: float, alpha: float) -> float:
    """Return the power of the exact McNemar test of two methods on the same n images.

    ``discordance``: the share of images on which exactly one method is right, at least ``difference``, the difference
    of the two accuracies. The number m of such images is binomial(n, discordance); given m, those that favor the better
    method are binomial(m, (1 + difference / discordance) / 2), and the test refuses equality where their two-sided
    binomial p-value is at most alpha. Exact: the sum over all m (Duffy 1984, "Asymptotic and Exact Power for the
    McNemar Test and Its Analogue with R Controls per Case").
    """
    from scipy.stats import binom

    if not 0 < discordance <= 1 or not 0 <= difference <= discordance:
        raise ValueError(f"expected 0 <= difference <= discordance <= 1, received {difference}, {discordance}")
    discordant, critical = np.arange(n + 1), _critical(n, alpha)
    favorable = (1 + difference / discordance) / 2
    refused = binom.cdf(critical, discordant, favorable) + binom.cdf(critical, discordant, 1 - favorable)
    return float((binom.pmf(discordant, n, discordance) * np.where(critical < 0, 0.0, refused)).sum())


@functools.cache
def _critical(n: int, alpha: float) -> np.ndarray:
    """Return for m = 0..n discordant images the largest count of the rarer side that refuses equality; -1 for none."""
    from scipy.stats import binom

    discordant = np.arange(n + 1)
    # The two-sided p-value of a count below half is twice its tail.
    found = binom.ppf(alpha / 2, discordant, 0.5)
    return np.where(2 * binom.cdf(found, discordant, 0.5) <= alpha, found, found - 1)


def smallest_paired_difference(n: int, *, discordance: float, alpha: float, power: float) -> float:
    """Return the smallest difference of accuracies that McNemar's test finds with this power; NaN if there is none.

    There is none if the two methods disagree so rarely that even disagreeing always in the same direction is too little
    to be found.
    """
    if discordance <= 0:
        return math.nan
    return _smallest(
        lambda difference: mcnemar_power(n, discordance=discordance, difference=difference, alpha=alpha),
        largest=discordance,
        power=power,
    )


def unpaired_power(n: int, *, accuracy: float, difference: float, alpha: float) -> float:
    """Return the power of the z test of two proportions, each of n images of its own: p and p + difference.

    The normal approximation with the pooled variance under equality (Fleiss, Levin and Paik 2003, "Statistical Methods
    for Rates and Proportions", chapter 4); the other tail's share of the power is left out.
    """
    from scipy.stats import norm

    other = accuracy + difference
    if not (0 < accuracy < 1 and 0 <= other <= 1):
        raise ValueError(f"expected accuracies in (0, 1), received {accuracy} and {other}")
    mean = (accuracy + other) / 2
    under_equality = math.sqrt(2 * mean * (1 - mean))
    in_truth = math.sqrt(accuracy * (1 - accuracy) + other * (1 - other))
    return float(norm.cdf((abs(difference) * math.sqrt(n) - norm.ppf(1 - alpha / 2) * under_equality) / in_truth))


def smallest_unpaired_difference(n: int, *, accuracy: float, alpha: float, power: float) -> float:
    """Return by how much less than ``accuracy`` another method must reach on other n images to be told from it."""
    if not 0 < accuracy < 1:
        return math.nan
    return _smallest(
        lambda difference: unpaired_power(n, accuracy=accuracy, difference=-difference, alpha=alpha),
        largest=accuracy,
        power=power,
    )


def _smallest(power_at: Callable[[float], float], *, largest: float, power: float) -> float:
    """Return the smallest difference up to ``largest`` that has the power, which grows with it; NaN if none has."""
    if power_at(largest) < power:
        return math.nan
    low, high = 0.0, largest
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if power_at(middle) >= power else (middle, high)
    return high
