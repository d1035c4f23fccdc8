"""Predictions to numbers, and nothing else: every metric of every method is computed here, from saved probabilities.

Each metric is written once, for images that carry weights. A point value weighs every image once; a bootstrap resample
weighs an image by how often it was drawn. So a value and its interval cannot follow two definitions.

With two classes, ROC-AUC and average precision are those of the positive class. With more, they are the unweighted
mean of the one-vs-rest values. A class that is absent from the labels is left out of every mean over classes; a metric
for which nothing is left (ROC-AUC when all labels are equal) is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Literal

import numpy as np

from pipeline.core.params import Block, ParamsError

LOWER_IS_BETTER = frozenset({"log_loss", "brier", "expected_calibration_error"})
# They see the order of a method's probabilities only.
OF_RANKS = frozenset({"roc_auc", "average_precision"})

# A probability of exactly 0 or 1 would make the loss of one image infinite. Predictions are stored as float32, whose
# eps is also what scikit-learn clips them at.
SMALLEST_PROBABILITY = float(np.finfo(np.float32).eps)


class SelectionParams(Block):
    """How validation chooses: the metric, and with two classes the one that counts as positive."""

    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "average_precision", "log_loss", "brier"]
    positive_class: str | None


def positive_index(classes: Sequence[str], selection: SelectionParams) -> int | None:
    """Return the column of the positive class, or None when there are more than two classes.

    Raises ParamsError if two classes come without a positive one, or more than two with one.
    """
    name = selection.positive_class
    if len(classes) == 2:
        if name not in classes:
            raise ParamsError(
                f"params.yaml: selection.positive_class must name one of the two classes, received {name!r}. "
                f"Choose from: {', '.join(classes)}"
            )
        return list(classes).index(name)
    if name is not None:
        raise ParamsError(
            f"params.yaml: selection.positive_class must be null when there are {len(classes)} classes "
            f"({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}), received {name!r}"
        )
    return None


class Evaluation:
    """One method's predictions on labelled images, ready to be measured on many resamples.

    ``probabilities``: (n, classes), each row sums to 1; the largest is the prediction, the first of equals.
    ``labels``: int (n,), indices of classes.
    ``positive``: with two classes the positive one's index, otherwise ignored.

    Raises ValueError if the shapes disagree, a label names no class, or two classes come without a positive one.
    """

    def __init__(
        self, probabilities: np.ndarray, labels: np.ndarray, *, positive: int | None, calibration_bins: int = 15
    ):
        if probabilities.ndim != 2 or probabilities.shape[1] < 2 or not len(probabilities):
            raise ValueError(f"probabilities must be (n, classes) with n >= 1, classes >= 2; got {probabilities.shape}")
        count = probabilities.shape[1]
        if labels.shape != probabilities.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(f"labels must be int ({len(probabilities)},), received {labels.dtype} {labels.shape}")
        if labels.min() < 0 or labels.max() >= count:
            raise ValueError(f"labels must lie in 0..{count - 1}, received {labels.min()}..{labels.max()}")
        if count == 2 and positive not in (0, 1):
            raise ValueError(f"with two classes, positive must be 0 or 1, received {positive!r}")
        self.probabilities = probabilities.astype(np.float64)
        self.labels = labels.astype(np.int64)  # arithmetic on a narrow or unsigned type would wrap around
        self.calibration_bins = calibration_bins
        self.scored_classes = [positive] if count == 2 else list(range(count))

    def __len__(self) -> int:
        return len(self.labels)

    def measure(self, weights: np.ndarray | None = None, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """Return {metric: float64 (s,)} for ``weights`` (s, n), how often each image counts in each of s resamples.

        Without weights, s is 1 and every image counts once.
        """
        if weights is None:
            weights = np.ones((1, len(self)))
        return {name: METRICS[name](self, np.asarray(weights, dtype=np.float64)) for name in names or NAMES}

    @cached_property
    def predicted(self) -> np.ndarray:
        return self.probabilities.argmax(axis=1)

    @cached_property
    def correct(self) -> np.ndarray:
        """Bool (n,): the most probable class is the label."""
        return self.predicted == self.labels

    @cached_property
    def confidence(self) -> np.ndarray:
        """Float64 (n,): the probability of the predicted class."""
        return self.probabilities.max(axis=1)

    @cached_property
    def one_hot(self) -> np.ndarray:
        return np.eye(self.probabilities.shape[1])[self.labels]

    @cached_property
    def confidence_bins(self) -> np.ndarray:
        """Float64 (n, bins), one-hot: which of the bins (0, 1/bins], ..., (1-1/bins, 1] holds the confidence."""
        edges = np.linspace(0, 1, self.calibration_bins + 1)[1:-1]
        return np.eye(self.calibration_bins)[np.digitize(self.confidence, edges, right=True)]

    @cached_property
    def rankings(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each scored class: images from the highest score down, which are positive, where each tie starts."""
        found = []
        for column in self.scored_classes:
            scores = self.probabilities[:, column]
            order = np.argsort(-scores, kind="stable")
            starts = np.flatnonzero(np.diff(scores[order], prepend=np.inf))
            found.append((order, (self.labels[order] == column).astype(np.float64), starts))
        return found


def accuracy(evaluation: Evaluation, weights: np.ndarray) -> np.ndarray:
    """Return the share of images whose most probable class is right."""
    return _mean(weights, evaluation.correct)


def balanced_accuracy(evaluation: Evaluation, weights: np.ndarray) -> np.ndarray:
    """Return the mean recall over the classes present in the labels."""
    support = weights @ evaluation.one_hot
    hits = weights @ (evaluation.one_hot * evaluation.correct[:, None])
    return _mean_over_present(_divide(hits, support), support > 0)


def macro_f1(evaluation: Evaluation, weights: np.ndarray) -> np.ndarray:
    """Return the mean F1 over the classes present in the labels; a class never predicted right counts as 0."""
    support = weights @ evaluation.one_hot
    predicted = weights @ np.eye(evaluation.one_hot.shape[1])[evaluation.predicted]
    hits = weights @ (evaluation.one_hot * evaluation.correct[:, None])
    return _mean_over_present(_divide(2 * hits, support + predicted), support > 0)


def roc_auc(evaluation: Evaluation, weights: np.ndarray) -> np.ndarray:
    """Return the chance that a positive image scores above a negative one, ties counting one half (Mann-Whitney)."""
    areas = []
    for order, positive, starts in evaluation.rankings:
        positives, everything = _by_tie(weights[:, order], positive, starts)
        negatives = everything - positives
        below = negatives.sum(axis=1, keepdims=True) - negatives.cumsum(axis=1)
        pairs = positives.sum(axis=1) * negatives.sum(axis=1)
        areas.append(_divide((positives * (below + negatives / 2)).sum(axis=1), pairs))
    return _mean_over_classes(areas)


def average_precision(evaluation: Evaluation, weights: np.ndarray) -> np.ndarray:
    """Return the mean precision over the recall gained at each threshold, without interpolation (as scikit-learn)."""
    areas = []
    for order, positive, starts in evaluation.rankings:
        positives, everything = _by_tie(weights[:, order], positive, starts)
        precision = _divide(positives.cumsum(axis=1), everything.cumsum(axis=1))
        # A leading tie that nobody drew has no precision; it gains no recall either.
        gained = np.where(positives > 0, precision * positives, 0).sum(axis=1)
        areas.append(_divide(gained, positives.sum(axis=1)))
    return _mean_over_classes(areas)


def log_loss(evaluation: Evaluation, weights: np.ndarray) -> np.ndarray:
    """Return the mean of -ln(probability of the true class), probabilities clipped to [eps, 1 - eps] of float32."""
    true = np.take_along_axis(evaluation.probabilities, evaluation.labels[:, None], axis=1)[:, 0]
    return _mean(weights, -np.log(np.clip(true, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)))


def brier(evaluation: Evaluation, weights: np.ndarray) -> np.ndarray:
    """Return the mean squared error of the probabilities: the sum over classes, halved when there are two.

    Brier (1950) sums over classes. With two, half of it is the squared error of the positive class, which is what the
    name means for binary data; `sklearn.metrics.brier_score_loss` has the same convention.
    """
    errors = ((evaluation.probabilities - evaluation.one_hot) ** 2).sum(axis=1)
    return _mean(weights, errors / 2 if evaluation.probabilities.shape[1] == 2 else errors)


def expected_calibration_error(evaluation: Evaluation, weights: np.ndarray) -> np.ndarray:
    """Return the mean gap between confidence and accuracy over equal-width bins of confidence.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3. Each bin weighs as much as its images.
    """
    gaps = evaluation.confidence_bins * (evaluation.confidence - evaluation.correct)[:, None]
    return _divide(np.abs(_sums(weights, gaps)).sum(axis=1), weights.sum(axis=1))


METRICS: Mapping[str, Callable[[Evaluation, np.ndarray], np.ndarray]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "roc_auc": roc_auc,
    "average_precision": average_precision,
    "log_loss": log_loss,
    "brier": brier,
    "expected_calibration_error": expected_calibration_error,
}
NAMES = tuple(METRICS)


def largest(metric: str, n_classes: int) -> float:
    """Return the largest value that a metric can have; the smallest is 0."""
    if metric == "brier":
        return 1.0 if n_classes == 2 else 2.0
    return -math.log(SMALLEST_PROBABILITY) if metric == "log_loss" else 1.0


def compute(
    probabilities: np.ndarray, labels: np.ndarray, *, positive: int | None, calibration_bins: int = 15
) -> dict[str, float]:
    """Return every metric of `NAMES` for probabilities (n, classes) and labels (n,); NaN where it is undefined."""
    evaluation = Evaluation(probabilities, labels, positive=positive, calibration_bins=calibration_bins)
    return {name: float(values[0]) for name, values in evaluation.measure().items()}


def score(metric: str, probabilities: np.ndarray, labels: np.ndarray, *, positive: int | None) -> float:
    """Return one metric; see `compute`."""
    return float(Evaluation(probabilities, labels, positive=positive).measure(names=[metric])[metric][0])


def is_better(metric: str, a: float, b: float) -> bool:
    """Return whether ``a`` is strictly better than ``b``."""
    return a < b if metric in LOWER_IS_BETTER else a > b


def ranking(validation: np.ndarray, labels: np.ndarray, *, metric: str, positive: int | None) -> list[int]:
    """Return the indices of ``validation`` (candidates, n, classes), best first: metric, then log loss, then order.

    Raises ValueError if the metric is undefined on these labels.
    """
    return ranking_of_means(validation[:, np.newaxis], labels, metric=metric, positive=positive)


def ranking_of_means(validation: np.ndarray, labels: np.ndarray, *, metric: str, positive: int | None) -> list[int]:
    """Return the indices of ``validation`` (methods, repeats, n, classes), best first; see `ranking`.

    The metric and the log loss of a method are the means over its repeats.
    """
    keys = []
    for index, repeats in enumerate(validation):
        value, loss = (
            spread([score(name, probabilities, labels, positive=positive) for probabilities in repeats])[0]
            for name in (metric, "log_loss")
        )
        if np.isnan(value):
            raise ValueError(f"{metric} is undefined on these {len(labels)} labels, all of class {labels[0]}")
        keys.append((value if metric in LOWER_IS_BETTER else -value, loss, index))
    return [index for _, _, index in sorted(keys)]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the standard deviation (of a sample: n - 1) of a metric over repeats; NaN of one value.

    Rounded to what float64 can vouch for, so that equal means are equal: the mean of 0.1, 0.2 and 0.3 is 0.2. Equal
    values have exactly that mean, and no spread.
    """
    if len(set(values)) == 1:
        return values[0], 0.0 if len(values) > 1 else math.nan
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return float(f"{mean:.12g}"), float(f"{deviation:.12g}")


def select(validation: np.ndarray, labels: np.ndarray, *, metric: str, positive: int | None) -> int:
    """Return the index of the best candidate of ``validation`` (candidates, n, classes); see `ranking`."""
    return ranking(validation, labels, metric=metric, positive=positive)[0]


def confusion(evaluation: Evaluation) -> np.ndarray:
    """Return the counts int64 (classes, classes): rows are labels, columns predictions."""
    count = evaluation.probabilities.shape[1]
    cells = evaluation.labels * count + evaluation.predicted
    return np.bincount(cells, minlength=count * count).reshape(count, count)


def per_class(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return {class: {precision, recall, f1, support}}.

    NaN where there is nothing to divide by: the precision of a class never predicted, the recall of one never seen.
    """
    table = confusion(Evaluation(probabilities, labels, positive=0))
    hits, support, predicted = (values.astype(np.float64) for values in (table.diagonal(), table.sum(1), table.sum(0)))
    precision, recall, f1 = _divide(hits, predicted), _divide(hits, support), _divide(2 * hits, support + predicted)
    return {
        name: {
            "precision": float(precision[index]),
            "recall": float(recall[index]),
            "f1": float(f1[index]),
            "support": int(support[index]),
        }
        for index, name in enumerate(classes)
    }


def calibration(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Return for each confidence bin its number of images, mean confidence and accuracy; NaN where a bin is empty."""
    counts = evaluation.confidence_bins.sum(axis=0)
    return {
        "count": counts.astype(np.int64),
        "confidence": _divide(_sums(evaluation.confidence[np.newaxis], evaluation.confidence_bins)[0], counts),
        "accuracy": _divide(evaluation.correct @ evaluation.confidence_bins, counts),
    }


def _mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    return _divide(_sums(weights, values), weights.sum(axis=1))


def _sums(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the sums of ``values`` (n,) or (n, k) under weights (s, n): the same bits on any number of threads.

    `@` would divide a sum among as many threads as the machine has, and its last digits would be the machine's. Where
    all terms are whole numbers the sums are exact, and `@` is used.
    """
    return np.einsum("sn,n...->s...", weights, values)


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return the quotient, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _mean_over_present(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    return _divide(np.where(present, values, 0).sum(axis=1), present.sum(axis=1).astype(np.float64))


def _mean_over_classes(values: Sequence[np.ndarray]) -> np.ndarray:
    stacked = np.stack(values, axis=1)
    return _mean_over_present(stacked, ~np.isnan(stacked))


def _by_tie(weights: np.ndarray, positive: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight of the positives and of all images in each group of equal scores, (s, groups) each."""
    if len(starts) == weights.shape[1]:
        return weights * positive, weights
    return np.add.reduceat(weights * positive, starts, axis=1), np.add.reduceat(weights, starts, axis=1)
