"""Curves whose areas are the metrics they are drawn for."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation import curves, metrics
from pipeline.show import figures


def drawn(n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(n_classes)
    labels = generator.integers(0, n_classes, 300)
    raw = generator.gamma(1.0, size=(300, n_classes)) + np.eye(n_classes)[labels]
    return (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("positive", [0, 1])
def test_area_under_a_roc_curve_is_roc_auc(positive):
    probabilities, labels = drawn(2)
    x, y = curves.roc(probabilities, labels, positive=positive)
    area = np.trapezoid(y, x)
    assert area == pytest.approx(metrics.score("roc_auc", probabilities, labels, positive=positive))


def test_area_under_the_mean_roc_curve_is_close_to_the_mean_area():
    probabilities, labels = drawn(4)
    x, y = curves.roc(probabilities, labels, positive=None)
    expected = metrics.score("roc_auc", probabilities, labels, positive=None)
    assert np.trapezoid(y, x) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n_classes", "positive"), [(2, 1), (4, None)])
def test_the_area_under_a_drawn_precision_recall_curve_is_average_precision(
    n_classes, positive, ties, tmp_path, monkeypatch
):
    probabilities, labels = drawn(n_classes)
    if ties:
        probabilities = (np.round(probabilities * 8) + 1) / (np.round(probabilities * 8) + 1).sum(axis=1, keepdims=True)
    recall, precision = curves.precision_recall(probabilities, labels, positive=positive)
    assert (np.diff(recall) >= 0).all()
    lines = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: lines.extend(figure.axes[0].lines))
    one = figures.Line("lite", 0, recall, precision)
    figures.precision_recall([one], prevalence=0.5, title="", path=tmp_path / "figure.png")
    x, y = lines[-1].get_path().vertices.T  # as drawn, with the corners of steps
    area = np.trapezoid(y, x)
    assert area == pytest.approx(metrics.score("average_precision", probabilities, labels, positive=positive))


def test_labels_of_one_class_have_no_roc_curve():
    assert len(curves.roc(np.full((3, 2), 0.5), np.array([1, 1, 1]), positive=1).x) == 0
    assert len(curves.precision_recall(np.full((3, 2), 0.5), np.array([0, 0, 0]), positive=1).x) == 0


def test_class_absent_from_the_labels_has_no_part_in_the_mean_curve():
    probabilities, labels = drawn(3)
    labels = np.where(labels == 2, 0, labels)
    merged = curves.roc(probabilities, labels, positive=None)
    assert len(merged.x) == len(curves.GRID)
    assert np.isfinite(merged.y).all() and merged.y[-1] == 1
