"""Why did a metric move between two revisions? Shares of what changed, from the results of their combinations. Pure.

A combination takes data, params and code from one revision or the other. Where every combination exists, the share of a
factor is its Shapley value: its effect averaged over all orders in which the factors can change, which is the one
division that adds up to the whole, treats factors alike, and gives nothing to what has no effect (Shapley 1953). Where
some cannot be built, only the orders through those that can be are averaged, and what can change only in one step with
another factor keeps a share in common with it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

FACTORS = ("data", "params", "code")
# Below the six digits of a leaderboard, a difference is rounding.
NOTHING = 5e-7

Combination = frozenset[str]
"""The factors that are taken from the second revision."""


@dataclass(frozen=True)
class Reading:
    """One division of a change: {factors that changed in one step: their share}. ``orders``: averaged over so many."""

    shares: Mapping[Combination, float]
    orders: int


@dataclass(frozen=True)
class Attribution:
    """What moved one metric by ``total``.

    ``readings``: one, unless the combinations that exist allow several divisions into equally many steps. ``alone``:
    the effect of a factor changed by itself in the first revision. ``together``: what a set of factors does beyond its
    members and smaller sets, as far as all of them exist; without what is nothing.
    """

    before: float
    after: float
    readings: tuple[Reading, ...]
    alone: Mapping[str, float]
    together: Mapping[Combination, float]

    @property
    def total(self) -> float:
        return self.after - self.before


def combinations(changed: Collection[str]) -> list[Combination]:
    """Return every combination of the factors that differ, the two revisions themselves first, then by size."""
    names = [name for name in FACTORS if name in changed]
    found = [frozenset(some) for count in range(len(names) + 1) for some in itertools.combinations(names, count)]
    return sorted(found, key=lambda some: (0 < len(some) < len(names), len(some)))


def attribute(values: Mapping[Combination, float], changed: Collection[str]) -> Attribution | None:
    """Divide the change of a metric among what changed; None if one of the two revisions has no value.

    ``values``: of every combination that could be built and has the metric.
    """
    nothing, everything = frozenset(), frozenset(changed)
    if nothing not in values or everything not in values:
        return None
    readings: dict[Combination, list[Mapping[Combination, float]]] = {}
    for chain in chains(values, everything):
        steps = {later - earlier: values[later] - values[earlier] for earlier, later in itertools.pairwise(chain)}
        readings.setdefault(frozenset(steps), []).append(steps)
    return Attribution(
        before=values[nothing],
        after=values[everything],
        readings=tuple(_mean(steps) for steps in readings.values()),
        alone={
            name: values[frozenset({name})] - values[nothing]
            for name in FACTORS
            if name in changed and frozenset({name}) in values
        },
        together=_together(values, changed),
    )


def chains(built: Iterable[Combination], everything: Combination) -> list[tuple[Combination, ...]]:
    """Return every way from the first revision to the second through combinations that exist, with the most steps."""
    known = set(built)

    def onwards(start: Combination) -> list[tuple[Combination, ...]]:
        if start == everything:
            return [(start,)]
        larger = [some for some in known if start < some <= everything]
        return [(start, *rest) for some in larger for rest in onwards(some)]

    found = onwards(frozenset())
    longest = max(map(len, found), default=0)
    chosen = (chain for chain in found if len(chain) == longest)
    return sorted(chosen, key=lambda chain: [ordered(some) for some in chain])


def ordered(some: Collection[str]) -> list[str]:
    """Return factors in the order of `FACTORS`."""
    return [name for name in FACTORS if name in some]


def _mean(steps: Sequence[Mapping[Combination, float]]) -> Reading:
    blocks = sorted(steps[0], key=lambda block: FACTORS.index(ordered(block)[0]))
    shares = {block: math.fsum(step[block] for step in steps) / len(steps) for block in blocks}
    return Reading(shares, len(steps))


def _together(values: Mapping[Combination, float], changed: Collection[str]) -> dict[Combination, float]:
    """Return the interactions: by inclusion and exclusion, what a set does that none of its smaller sets does."""
    found = {}
    for some in combinations(changed):
        smaller = [frozenset(part) for count in range(len(some) + 1) for part in itertools.combinations(some, count)]
        if len(some) < 2 or not all(part in values for part in smaller):
            continue
        effect = math.fsum((-1) ** (len(some) - len(part)) * values[part] for part in smaller)
        if abs(effect) > NOTHING:
            found[some] = effect
    return found
