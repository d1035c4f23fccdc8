"""One candidate of a search after another: those listed beforehand, then what the scores so far suggest.

The suggestions are Optuna's tree-structured Parzen estimator (Bergstra et al. 2011). Each is a function of the seed,
params.yaml and the points and scores before it alone: a fresh study is told all of them, and draws with a seed of its
own. So a sweep that was killed proposes the same points when it is resumed from the candidates it kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.classifiers.search import search_space
from pipeline.core import seeds

if TYPE_CHECKING:
    import optuna

# After so many proposals of points that are known already, the next random draw is taken.
MOST_ATTEMPTS = 20
DIGITS = 3  # of a proposed number; few make readable names, and what they round away decides nothing


class Proposals:
    """The candidates of one search. ``lower_is_better``: of the validation scores that `after` is given."""

    def __init__(self, params: search_space.Search, *, seed: int, lower_is_better: bool):
        self._params, self._seed = params, seed
        self._direction = "minimize" if lower_is_better else "maximize"
        self._listed = search_space.candidates(params, seed=seed)
        self._points = [candidate.parameters for candidate in self._listed]

    def __len__(self) -> int:
        return self._params.candidates if self._params.search == "tpe" else len(self._listed)

    def after(self, scores: Sequence[float]) -> search_space.Candidate:
        """Return the candidate that follows those with these validation scores, different from all of them."""
        index = len(scores)
        if index < len(self._listed):
            return self._listed[index]
        if index == len(self._points):
            self._points.append(self._propose(scores))
        return search_space.candidate(self._params, self._points[index])

    def points(self, scores: Sequence[float]) -> Iterator[dict[str, Any]]:
        """Yield the points one by one; the caller adds the score of each to ``scores`` before taking the next."""
        for _ in range(len(self)):
            yield self.after(scores).parameters

    def _propose(self, scores: Sequence[float]) -> dict[str, Any]:
        for attempt in range(MOST_ATTEMPTS):
            point = self._ask(scores, seed=seeds.child_seed(self._seed, "tpe", len(scores), attempt))
            if point not in self._points:
                return point
        draws = search_space.draw(self._params, len(self._points) + 1, seed=self._seed)
        return next(point for point in draws if point not in self._points)

    def _ask(self, scores: Sequence[float], *, seed: int) -> dict[str, Any]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        varied = search_space.dimensions(self._params.grid)
        distributions = {
            name: _distribution(optuna, values)
            for name, values in varied.items()
            if isinstance(values, search_space.Range) or len(values) > 1
        }
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=0)
        study = optuna.create_study(direction=self._direction, sampler=sampler)
        for point, score in zip(self._points, scores, strict=True):
            if math.isfinite(score):  # a metric that validation leaves undefined says nothing
                chosen = {name: point[name] for name in distributions}
                study.add_trial(optuna.create_trial(params=chosen, distributions=distributions, value=score))
        found = study.ask(distributions).params
        return {name: _value(values, found[name]) if name in found else values[0] for name, values in varied.items()}


def _distribution(optuna: Any, values: Any) -> optuna.distributions.BaseDistribution:
    if not isinstance(values, search_space.Range):
        return optuna.distributions.CategoricalDistribution(values)
    whole = isinstance(values.low, int)
    kind = optuna.distributions.IntDistribution if whole else optuna.distributions.FloatDistribution
    return kind(values.low, values.high, log=values.log)


def _value(values: Any, proposed: Any) -> Any:
    return values.rounded(proposed, digits=DIGITS) if isinstance(values, search_space.Range) else proposed
