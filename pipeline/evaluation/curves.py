"""Predictions to the points of ROC and precision-recall curves, for the figures.

With two classes the curve is that of the positive class. With more it is the mean of the one-vs-rest curves over the
classes present in the labels. Between two points a ROC curve is a straight line, and a precision-recall curve a step:
so their areas are ROC-AUC and average precision, which interpolates nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Enough that a step is narrower than the line drawn through it.
GRID = np.linspace(0, 1, 501)


class Curve(NamedTuple):
    """Points of one curve, float64 (points,) each."""

    x: np.ndarray
    y: np.ndarray


def roc(probabilities: np.ndarray, labels: np.ndarray, *, positive: int | None) -> Curve:
    """Return false positive rates and true positive rates of probabilities (n, classes) and labels (n,).

    With labels of one class only there is no curve: no points.
    """
    from sklearn.metrics import roc_curve

    curves = []
    for column in _scored_classes(probabilities, labels, positive):
        truth = labels == column
        if truth.all():
            continue
        false_positives, true_positives, _ = roc_curve(truth, probabilities[:, column], drop_intermediate=False)
        curves.append(Curve(false_positives, true_positives))
    return _mean(curves)


def precision_recall(probabilities: np.ndarray, labels: np.ndarray, *, positive: int | None) -> Curve:
    """Return recalls, ascending, and the precision at each; no points if no label is positive.

    A precision holds from the recall before it, without that, up to its own. Of several classes, the recalls are those
    of all of them.
    """
    from sklearn.metrics import precision_recall_curve

    curves = []
    for column in _scored_classes(probabilities, labels, positive):
        precision, recall, _ = precision_recall_curve(labels == column, probabilities[:, column])
        curves.append(Curve(recall[::-1], precision[::-1]))
    if len(curves) < 2:
        return _mean(curves)
    recalls = np.unique(np.concatenate([curve.x for curve in curves]))
    return Curve(recalls, np.mean([curve.y[np.searchsorted(curve.x, recalls)] for curve in curves], axis=0))


def _scored_classes(probabilities: np.ndarray, labels: np.ndarray, positive: int | None) -> list[int]:
    columns = [positive] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    return [column for column in columns if (labels == column).any()]


def _mean(curves: list[Curve]) -> Curve:
    """Return the mean of curves of straight lines, read at equally spaced rates."""
    if not curves:
        return Curve(np.empty(0), np.empty(0))
    if len(curves) == 1:
        return curves[0]
    return Curve(GRID, np.mean([np.interp(GRID, curve.x, curve.y) for curve in curves], axis=0))
