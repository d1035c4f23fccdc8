from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from pipeline.classifiers import repeated_splits
from pipeline.classifiers.search import proposals, search_space
from pipeline.core import params, provenance
from pipeline.evaluation import metrics
from tests.classifiers.test_search_space import Params
from tests.families import data, fit

GRID = {
    "C": {"low": 0.001, "high": 1000.0, "log": True},
    "depth": {"low": 1, "high": 12},
    "scale": [None, "standard"],
    "class_weight": [None],
}


def proposed(
    *,
    seed: int = 0,
    lower_is_better: bool = True,
    candidates: int = 30,
    grid: dict[str, Any] | None = None,
    kind: str = "tpe",
) -> proposals.Proposals:
    block = {"search": kind, "candidates": candidates, "grid": grid or GRID}
    parsed = params.parse(block, Params, where="classifiers.svm")
    return proposals.Proposals(parsed, seed=seed, lower_is_better=lower_is_better)


def loss(point: dict[str, Any]) -> float:
    """Lowest, 0, at C=1, depth 6 and without scaling."""
    return math.log10(point["C"]) ** 2 + (point["depth"] - 6) ** 2 / 10 + (point["scale"] is not None)


def run(source: proposals.Proposals, score=loss) -> list[search_space.Candidate]:
    scores: list[float] = []
    found = []
    for _ in range(len(source)):
        found.append(source.after(scores))
        scores.append(score(found[-1].parameters))
    return found


def test_a_search_that_was_resumed_proposes_the_same_points():
    whole = run(proposed())
    scores = [loss(candidate.parameters) for candidate in whole]
    for kept in (3, 10, 17):
        resumed = proposed()
        assert [resumed.after(scores[:index]) for index in range(kept)] == whole[:kept]
        assert resumed.after(scores[:kept]) == whole[kept]
    assert run(proposed(seed=1)) != whole


def test_proposals_are_the_same_in_another_process():
    code = "from tests.classifiers.test_proposals import proposed, run; print([each.name for each in run(proposed(candidates=14))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=provenance.ROOT)
    assert done.stdout.strip() == str([candidate.name for candidate in run(proposed(candidates=14))])
    assert done.stderr == ""


@pytest.mark.parametrize("lower_is_better", [True, False])
def test_proposals_learn_which_way_is_better(lower_is_better):
    sign = 1 if lower_is_better else -1
    found = run(proposed(lower_is_better=lower_is_better, candidates=40), lambda point: sign * loss(point))
    drawn, learned = found[: search_space.DRAWN_FIRST], found[-10:]
    mean = [sum(loss(candidate.parameters) for candidate in part) / 10 for part in (drawn, learned)]
    assert mean[1] < mean[0] / 2


def test_the_first_proposals_are_the_random_draws_and_all_are_different_and_in_range():
    found = run(proposed())
    random = run(proposed(kind="random"))
    assert found[: search_space.DRAWN_FIRST] == random[: search_space.DRAWN_FIRST]
    points = [candidate.parameters for candidate in found]
    assert len({tuple(point.values()) for point in points}) == len({each.name for each in found}) == 30
    for point in points:
        assert 0.001 <= point["C"] <= 1000 and type(point["C"]) is float
        assert point["depth"] in range(1, 13) and type(point["depth"]) is int
        assert list(point) == ["C", "depth", "scale", "class_weight"]
    assert found[-1].name.count("=") == 3  # C, depth and scale vary


def test_no_point_is_proposed_twice_even_until_every_combination_is_there():
    grid = {"C": [0.1, 1.0, 10.0], "depth": {"low": 1, "high": 4}, "scale": [None], "class_weight": [None]}
    found = run(proposed(candidates=12, grid=grid))
    assert len({candidate.name for candidate in found}) == 12


def test_a_score_that_validation_leaves_undefined_says_nothing_and_stops_nothing():
    found = run(proposed(candidates=14), lambda point: math.nan)
    assert len({candidate.name for candidate in found}) == 14


def test_grids_and_random_draws_ask_for_no_scores_and_import_no_optuna():
    code = (
        "import sys; from tests.classifiers.test_proposals import proposed, run; source = proposed(kind='random')\n"
        "print(len(run(source)), 'optuna' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=provenance.ROOT)
    assert done.stdout.split() == ["30", "False"]


def test_sweeps_of_another_split_learn_from_its_own_scores():
    train, validation, _ = data("wine")
    values = {
        "compute": {"threads": 1, "batch_size": 1, "engine": "auto", "precision": "float32"},
        "classifiers": {
            "logistic_regression": {
                "search": "tpe",
                "candidates": 13,
                "grid": {name: GRID[name] for name in ("C", "scale", "class_weight")},
            }
        },
    }
    given = params.Params(values, values)
    scored: list[float] = []

    def score(probabilities: np.ndarray) -> float:
        scored.append(metrics.score("log_loss", probabilities, validation[1], positive=None))
        return scored[-1]

    candidates, fits, scores = repeated_splits.fit_all(
        given, "logistic_regression", train, validation, n_classes=3, score=score, seed=0, lower_is_better=True
    )
    assert len({candidate.name for candidate in candidates}) == len(fits) == 13
    assert scores == scored
    for candidate, fitted in zip(candidates, fits, strict=True):
        alone = fit("logistic_regression", train, validation, n_classes=3, **candidate.parameters)
        np.testing.assert_allclose(fitted.validation, alone.validation, atol=1e-4)
