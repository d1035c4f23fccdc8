"""Places, their shares and Kendall's tau against scipy and hand-worked cases."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from pipeline.evaluation import rankings


def test_equal_scores_are_placed_by_log_loss_then_by_order():
    values = np.array([[0.9, 0.8, 0.9, 0.9], [0.5, 0.6, 0.7, 0.8]])
    losses = np.array([[0.3, 0.1, 0.2, 0.3], [0.1, 0.1, 0.1, 0.1]])
    assert rankings.places(values, losses, lower_is_better=False).tolist() == [[2, 4, 1, 3], [4, 3, 2, 1]]
    assert rankings.places(values, losses, lower_is_better=True).tolist() == [[3, 1, 2, 4], [1, 2, 3, 4]]


def test_an_undefined_score_is_placed_last():
    values = np.array([[np.nan, 0.1, 0.2]])
    for lower, expected in ((False, [[3, 2, 1]]), (True, [[3, 1, 2]])):
        assert rankings.places(values, np.zeros((1, 3)), lower_is_better=lower).tolist() == expected


def test_every_method_has_one_place_and_every_place_one_method():
    generator = np.random.default_rng(0)
    found = rankings.places(generator.random((200, 5)), generator.random((200, 5)), lower_is_better=False)
    assert (np.sort(found, axis=1) == np.arange(1, 6)).all()
    shares = rankings.shares(found)
    assert shares.sum(axis=0) == pytest.approx(np.ones(5))
    assert shares.sum(axis=1) == pytest.approx(np.ones(5))
    assert shares[2, 0] == (found[:, 2] == 1).mean()


def test_kendalls_tau_is_scipys():
    generator = np.random.default_rng(1)
    found = np.stack([generator.permutation(7) + 1 for _ in range(20)])
    reference = generator.permutation(7) + 1
    expected = [scipy.stats.kendalltau(row, reference).statistic for row in found]
    assert rankings.kendall_tau(found, reference) == pytest.approx(expected)


def test_kendalls_tau_by_hand():
    found = np.array([[1, 2, 3], [3, 2, 1], [2, 1, 3]])
    assert rankings.kendall_tau(found, np.array([1, 2, 3])) == pytest.approx([1, -1, 1 / 3])
    assert np.isnan(rankings.kendall_tau(np.array([[1], [1]]), np.array([1]))).all()
