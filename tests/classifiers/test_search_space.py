from __future__ import annotations

from typing import Annotated, Any

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.classifiers.search import search_space
from pipeline.core import params

COMMON = {"scale": [None], "class_weight": [None]}


class Grid(search_space.Grid):
    C: search_space.Values[search_space.Positive]
    depth: search_space.Values[Annotated[int, pydantic.Field(ge=1, le=16)]]


class Params(search_space.Search):
    grid: Grid


def parse(**block: Any) -> Params:
    block = {"search": "grid", **block}
    block["grid"] = {"C": [1.0], "depth": [3], **COMMON, **block.get("grid", {})}
    return params.parse(block, Params, where="classifiers.svm")


def names(**block: Any) -> list[str]:
    return [candidate.name for candidate in search_space.candidates(parse(**block), seed=0)]


def test_a_grid_tries_every_combination_once_and_varies_the_last_parameter_fastest():
    found = search_space.candidates(parse(grid={"C": [0.01, 1], "class_weight": [None, "balanced"]}), seed=0)
    assert [candidate.parameters for candidate in found] == [
        {"C": c, "depth": 3, "scale": None, "class_weight": weight}
        for c in (0.01, 1.0)
        for weight in (None, "balanced")
    ]


def test_names_hold_only_what_differs_between_candidates():
    assert names(grid={"C": [0.01, 1.0], "class_weight": [None, "balanced"]}) == [
        "C=0.01, class_weight=none",
        "C=0.01, class_weight=balanced",
        "C=1, class_weight=none",
        "C=1, class_weight=balanced",
    ]


def test_an_only_candidate_is_named_by_all_its_parameters():
    assert names() == ["C=1, depth=3, scale=none, class_weight=none"]


def test_names_tell_close_values_apart():
    assert names(grid={"C": [0.12345671, 0.12345672]}) == ["C=0.12345671", "C=0.12345672"]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 60), more=st.integers(0, 20), log=st.booleans())
def test_random_draws_are_different_in_range_repeatable_and_extendable(seed, count, more, log):
    grid = {"C": {"low": 0.001, "high": 1000.0, "log": log}, "depth": {"low": 2, "high": 9, "log": log}}
    fewer = search_space.candidates(parse(search="random", candidates=count, grid=grid), seed=seed)
    longer = search_space.candidates(parse(search="random", candidates=count + more, grid=grid), seed=seed)
    points = [candidate.parameters for candidate in longer]
    assert [candidate.parameters for candidate in fewer] == points[:count]
    assert len({tuple(point.values()) for point in points}) == count + more
    assert len({candidate.name for candidate in longer}) == count + more
    assert all(0.001 <= point["C"] <= 1000 and point["depth"] in range(2, 10) for point in points)
    assert all(type(point["depth"]) is int and type(point["C"]) is float for point in points)


def test_random_search_can_draw_every_combination_of_a_finite_grid():
    grid = {"C": [0.1, 1.0], "depth": {"low": 1, "high": 3}}
    assert len(set(names(search="random", candidates=6, grid=grid))) == 6


def test_a_narrow_range_has_room_for_many_draws():
    grid = {"C": {"low": 0.1, "high": 0.1001}}
    found = names(search="random", candidates=50, grid=grid)
    assert len(set(found)) == 50


def test_a_range_with_log_draws_evenly_in_the_exponent():
    grid = {"C": {"low": 1e-6, "high": 1.0, "log": True}}
    found = search_space.candidates(parse(search="random", candidates=200, grid=grid), seed=0)
    assert 0.4 < sum(candidate.parameters["C"] < 1e-3 for candidate in found) / 200 < 0.6


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"grid": {"C": [0.0]}}, "classifiers.svm.grid.C.0 must be greater than 0, received 0.0"),
        ({"grid": {"C": [1.0, float("inf")]}}, "classifiers.svm.grid.C.1 must be a finite number, received inf"),
        ({"grid": {"depth": [3, 17]}}, "classifiers.svm.grid.depth.1 must be less than or equal to 16, received 17"),
        ({"grid": {"depth": [True]}}, "classifiers.svm.grid.depth.0 must be integer, received True"),
        ({"grid": {"depth": [2.5]}}, "classifiers.svm.grid.depth.0 must be integer, received 2.5"),
        ({"grid": {"scale": ["minmax"]}}, "classifiers.svm.grid.scale.0 must be 'standard' or None, received 'minmax'"),
        ({"grid": {"C": []}}, "classifiers.svm.grid.C must be a list of at least one value, without repetition"),
        ({"grid": {"C": [1, 1.0]}}, "without repetition, received [1, 1.0]"),
        ({"grid": {"C": 1.0}}, "classifiers.svm.grid.C must be list, received 1.0"),
        (
            {"grid": {"C": {"low": 0.1, "high": 1.0}}},
            "svm.search must be random or tpe when the grid holds a range (C)",
        ),
        (
            {"grid": {"depth": list(range(1, 17)), "C": list(range(1, 100))}},
            "random or tpe when there are more than 1000",
        ),
        ({"search": "halving"}, "classifiers.svm.search must be 'grid', 'random' or 'tpe', received 'halving'"),
        ({"candidates": 3}, "classifiers.svm.candidates must be left out when search is grid"),
        ({"search": "random"}, "classifiers.svm.candidates must be given when search is random"),
        ({"search": "tpe"}, "classifiers.svm.candidates must be given when search is tpe"),
        ({"search": "tpe", "candidates": 2}, "svm.candidates must be at most 1, the number of combinations"),
        ({"search": "random", "candidates": 0}, "classifiers.svm.candidates must be greater than or equal to 1"),
        ({"search": "random", "candidates": 2}, "svm.candidates must be at most 1, the number of combinations"),
    ],
)
def test_a_search_that_cannot_be_done_says_which_key_and_why(block, message):
    with pytest.raises(params.ParamsError) as error:
        parse(**block)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ({"low": -1.0, "high": 1.0}, "grid.C.low must be greater than 0, received -1.0"),
        ({"low": 2.0, "high": 1.0}, "grid.C.high must be a number above low (2.0), received 1.0"),
        ({"low": 2.0}, "grid.C.high is missing"),
        ({"low": 0.1, "high": 1.0, "log": "yes"}, "grid.C.log must be boolean, received 'yes'"),
    ],
)
def test_a_bad_range_says_which_end_and_why(span, message):
    with pytest.raises(params.ParamsError) as error:
        parse(search="random", candidates=2, grid={"C": span})
    assert message in str(error.value)


def test_a_range_of_words_is_refused():
    with pytest.raises(params.ParamsError, match=r"grid\.scale\.low must be a number, received None"):
        parse(search="random", candidates=2, grid={"scale": {"low": None, "high": "standard"}})
