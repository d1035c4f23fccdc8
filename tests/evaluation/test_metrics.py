"""Metrics against scikit-learn and cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.params import ParamsError
from pipeline.evaluation import metrics


def drawn(
    seed: int, *, n: int = 120, n_classes: int = 2, ties: bool = False, absent: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 probabilities and labels that they know something about; with ties, few distinct scores."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, n_classes, n)
    if absent is not None:
        labels = np.where(labels == absent, (absent + 1) % n_classes, labels)
    raw = generator.gamma(0.7, size=(n, n_classes)) + 0.6 * np.eye(n_classes)[labels]
    probabilities = raw / raw.sum(axis=1, keepdims=True)
    if ties:
        probabilities = (np.round(probabilities * 4) + 1) / (np.round(probabilities * 4) + 1).sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32), labels


def by_scikit_learn(probabilities: np.ndarray, labels: np.ndarray, positive: int | None) -> dict[str, float]:
    """The same metrics by scikit-learn, on labels that hold every class."""
    count = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    found = {
        "accuracy": reference.accuracy_score(labels, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
        "macro_f1": reference.f1_score(labels, predicted, average="macro"),
        # float32 makes scikit-learn clip at float32's eps, and check row sums at its precision.
        "log_loss": reference.log_loss(labels, probabilities),
    }
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    if count == 2:
        truth, scores = labels == positive, probabilities[:, positive]
        found["roc_auc"] = reference.roc_auc_score(truth, scores)
        found["average_precision"] = reference.average_precision_score(truth, scores)
        found["brier"] = reference.brier_score_loss(truth, exact[:, positive])
    else:
        one_hot = np.eye(count)[labels]
        found["roc_auc"] = reference.roc_auc_score(one_hot, probabilities, average="macro")
        found["average_precision"] = reference.average_precision_score(one_hot, probabilities, average="macro")
        found["brier"] = reference.brier_score_loss(labels, exact)
    return found


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n_classes", [2, 5])
def test_metrics_equal_scikit_learn(n_classes, ties):
    for seed in range(5):
        probabilities, labels = drawn(seed, n_classes=n_classes, ties=ties)
        for positive in (0, 1) if n_classes == 2 else (None,):
            found = metrics.compute(probabilities, labels, positive=positive)
            for name, value in by_scikit_learn(probabilities, labels, positive).items():
                # Losses differ by what float32 loses; rankings and counts not at all.
                tolerance = 1e-6 if name in ("log_loss", "brier") else 1e-12
                assert found[name] == pytest.approx(value, rel=tolerance), name


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_weights_mean_the_same_as_repeating_images(n_classes, ties):
    probabilities, labels = drawn(7, n_classes=n_classes, ties=ties)
    positive = 1 if n_classes == 2 else None
    rows = np.random.default_rng(3).integers(0, len(labels), (20, len(labels)))
    weights = np.stack([np.bincount(drawn_rows, minlength=len(labels)) for drawn_rows in rows])
    evaluation = metrics.Evaluation(probabilities, labels, positive=positive)
    weighted = evaluation.measure(weights)
    for index, drawn_rows in enumerate(rows):
        repeated = metrics.compute(probabilities[drawn_rows], labels[drawn_rows], positive=positive)
        for name, value in repeated.items():
            assert weighted[name][index] == pytest.approx(value, rel=1e-9), name


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 40), n_classes=st.integers(2, 4))
def test_every_defined_metric_lies_in_its_range(seed, n, n_classes):
    probabilities, labels = drawn(seed, n=n, n_classes=n_classes)
    for name, value in metrics.compute(probabilities, labels, positive=0).items():
        highest = {"log_loss": -np.log(metrics.SMALLEST_PROBABILITY), "brier": 2}.get(name, 1 + 1e-12)
        assert np.isnan(value) or 0 <= value <= highest, name


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n_classes=st.integers(2, 4))
def test_order_of_images_does_not_matter(seed, n_classes):
    probabilities, labels = drawn(seed, n_classes=n_classes, ties=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    expected = metrics.compute(probabilities, labels, positive=0)
    assert metrics.compute(probabilities[order], labels[order], positive=0) == pytest.approx(expected)


def test_class_absent_from_the_labels_is_left_out_of_the_means():
    probabilities, labels = drawn(1, n_classes=4, absent=2)
    found = metrics.compute(probabilities, labels, positive=None)
    predicted, present = probabilities.argmax(axis=1), [0, 1, 3]
    assert found["roc_auc"] == pytest.approx(
        np.mean([reference.roc_auc_score(labels == column, probabilities[:, column]) for column in present])
    )
    assert found["average_precision"] == pytest.approx(
        np.mean([reference.average_precision_score(labels == column, probabilities[:, column]) for column in present])
    )
    assert found["macro_f1"] == pytest.approx(reference.f1_score(labels, predicted, labels=present, average="macro"))
    assert found["balanced_accuracy"] == pytest.approx(
        reference.recall_score(labels, predicted, labels=present, average="macro")
    )


def test_ranking_metrics_of_one_class_only_are_undefined_and_the_others_defined():
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6]], dtype=np.float32)
    found = metrics.compute(probabilities, np.array([0, 0]), positive=1)
    assert {name for name, value in found.items() if np.isnan(value)} == {"roc_auc", "average_precision"}
    assert found["accuracy"] == found["balanced_accuracy"] == 0.5


def test_losses_worked_by_hand():
    probabilities = np.array([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]], dtype=np.float32)
    found = metrics.compute(probabilities, np.array([0, 1, 0]), positive=1)
    assert found["log_loss"] == pytest.approx(-(np.log(0.75) + np.log(0.5) + np.log(0.25)) / 3)
    assert found["brier"] == pytest.approx((0.25**2 + 0.5**2 + 0.75**2) / 3)


@pytest.mark.parametrize("count", [2, 3])
def test_the_range_of_a_metric_is_what_the_best_and_the_worst_predictions_reach(count):
    labels = np.arange(12) % count
    found = [metrics.compute(np.eye(count)[(labels + shift) % count], labels, positive=0) for shift in (0, 1)]
    for name in metrics.NAMES:
        low, high = sorted(one[name] for one in found)
        assert 0 <= low < 1e-6 or name in metrics.OF_RANKS, name
        assert high == pytest.approx(metrics.largest(name, count)), name


def test_certain_and_wrong_costs_a_finite_loss():
    found = metrics.compute(np.array([[1, 0]], dtype=np.float32), np.array([1]), positive=1)
    assert found["log_loss"] == pytest.approx(-np.log(np.finfo(np.float32).eps))
    assert found["brier"] == 1


def test_brier_score_of_three_classes_sums_over_classes():
    found = metrics.compute(np.array([[0.5, 0.25, 0.25]], dtype=np.float32), np.array([0]), positive=None)
    assert found["brier"] == pytest.approx(0.5**2 + 0.25**2 + 0.25**2)


def test_calibration_error_worked_by_hand():
    # In (0.5, 0.75]: mean confidence 0.65, one of two right. In (0.75, 1]: mean confidence 0.95, both right.
    confidence = np.array([0.6, 0.7, 0.9, 1.0], dtype=np.float32)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.array([0, 1, 0, 0])
    found = metrics.compute(probabilities, labels, positive=1, calibration_bins=4)
    assert found["expected_calibration_error"] == pytest.approx((0.15 * 2 + 0.05 * 2) / 4, abs=1e-6)
    table = metrics.calibration(metrics.Evaluation(probabilities, labels, positive=1, calibration_bins=4))
    assert table["count"].tolist() == [0, 0, 2, 2]
    assert table["accuracy"][2:].tolist() == [0.5, 1.0]
    assert np.isnan(table["confidence"][:2]).all()


def test_calibration_error_equals_the_definition_bin_by_bin():
    probabilities, labels = drawn(11, n=300, n_classes=3)
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    expected = 0.0
    for index in range(15):
        inside = (confidence > index / 15) & (confidence <= (index + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    found = metrics.compute(probabilities, labels, positive=None, calibration_bins=15)
    assert found["expected_calibration_error"] == pytest.approx(expected)


def test_confidence_on_the_edge_of_two_bins_belongs_to_the_lower():
    evaluation = metrics.Evaluation(
        np.array([[0.5, 0.5], [0.25, 0.75]], dtype=np.float32), np.array([0, 1]), positive=1, calibration_bins=4
    )
    assert metrics.calibration(evaluation)["count"].tolist() == [0, 1, 1, 0]


def test_per_class_equals_scikit_learn_and_says_where_nothing_can_be_divided():
    probabilities, labels = drawn(2, n_classes=3)
    found = metrics.per_class(probabilities, labels, ("a", "b", "c"))
    expected = reference.precision_recall_fscore_support(labels, probabilities.argmax(axis=1))
    for index, name in enumerate("abc"):
        assert list(found[name].values()) == pytest.approx([values[index] for values in expected])
    never = metrics.per_class(np.array([[1, 0], [1, 0]], dtype=np.float32), np.array([0, 0]), ("a", "b"))["b"]
    assert np.isnan(never["precision"]) and np.isnan(never["recall"]) and never["support"] == 0


def test_macro_f1_is_the_mean_of_the_per_class_f1():
    probabilities, labels = drawn(4, n_classes=4)
    rows = metrics.per_class(probabilities, labels, tuple("abcd"))
    found = metrics.compute(probabilities, labels, positive=None)
    assert found["macro_f1"] == pytest.approx(np.mean([row["f1"] for row in rows.values()]))
    assert found["balanced_accuracy"] == pytest.approx(np.mean([row["recall"] for row in rows.values()]))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_labels_of_any_integer_type_give_the_same_numbers(dtype):
    labels = np.arange(60) % 30
    probabilities = np.random.default_rng(0).dirichlet(np.ones(30), 60)
    expected = metrics.Evaluation(probabilities, labels, positive=None)
    received = metrics.Evaluation(probabilities, labels.astype(dtype), positive=None)
    np.testing.assert_array_equal(metrics.confusion(received), metrics.confusion(expected))
    assert {name: float(value[0]) for name, value in received.measure().items()} == {
        name: float(value[0]) for name, value in expected.measure().items()
    }


def test_confusion_has_labels_in_rows():
    evaluation = metrics.Evaluation(
        np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]], dtype=np.float32), np.array([0, 1, 1]), positive=1
    )
    assert metrics.confusion(evaluation).tolist() == [[1, 0], [1, 1]]


def test_best_candidate_then_smaller_log_loss_then_earlier():
    labels = np.array([0, 1])
    unsure = np.array([[0.6, 0.4], [0.4, 0.6]], dtype=np.float32)
    sure = np.array([[0.9, 0.1], [0.1, 0.9]], dtype=np.float32)
    wrong = sure[::-1]
    pick = dict(metric="accuracy", positive=1)
    assert metrics.select(np.stack([wrong, unsure, sure, sure]), labels, **pick) == 2
    assert metrics.ranking(np.stack([wrong, unsure, sure, sure]), labels, **pick) == [2, 3, 1, 0]
    assert metrics.select(np.stack([wrong, unsure, sure]), labels, metric="log_loss", positive=1) == 2


def test_losses_are_better_when_smaller():
    assert metrics.is_better("log_loss", 0.1, 0.2) and not metrics.is_better("log_loss", 0.2, 0.1)
    assert metrics.is_better("accuracy", 0.2, 0.1) and not metrics.is_better("accuracy", 0.1, 0.1)


def test_selecting_by_an_undefined_metric_is_an_error():
    with pytest.raises(ValueError, match=r"roc_auc is undefined on these 2 labels, all of class 0"):
        metrics.select(np.full((1, 2, 2), 0.5), np.array([0, 0]), metric="roc_auc", positive=1)


@pytest.mark.parametrize(
    ("shape", "labels", "positive", "message"),
    [
        ((2, 2), [0, 2], 1, r"labels must lie in 0\.\.1, received 0\.\.2"),
        ((2, 2), [0], 1, r"labels must be int \(2,\)"),
        ((2, 2), [0.0, 1.0], 1, r"received float64"),
        ((2, 1), [0, 0], 0, r"classes >= 2"),
        ((2, 2), [0, 1], None, r"positive must be 0 or 1, received None"),
    ],
)
def test_predictions_that_do_not_fit_their_labels_are_refused(shape, labels, positive, message):
    with pytest.raises(ValueError, match=message):
        metrics.Evaluation(np.full(shape, 0.5), np.array(labels), positive=positive)


def test_positive_class_is_needed_with_two_classes_only():
    def index(classes, name):
        return metrics.positive_index(classes, metrics.SelectionParams(metric="accuracy", positive_class=name))

    assert index(("bad", "good"), "bad") == 0
    assert index(("a", "b", "c"), None) is None
    for name in (None, "ugly"):
        with pytest.raises(ParamsError, match=r"must name one of the two classes.*Choose from: bad, good"):
            index(("bad", "good"), name)
    with pytest.raises(ParamsError, match=r"must be null when there are 3 classes \(a, b, c\), received 'a'"):
        index(("a", "b", "c"), "a")


# --- repeats -------------------------------------------------------------------------------------------------------


def test_spread_is_mean_and_sample_standard_deviation_and_equal_values_have_none():
    assert metrics.spread([0.8, 0.9]) == pytest.approx((0.85, 0.05 * 2**0.5))
    assert metrics.spread([1 / 3] * 3) == (1 / 3, 0.0)
    assert metrics.spread([0.7])[0] == 0.7 and np.isnan(metrics.spread([0.7])[1])
    assert np.isnan(metrics.spread([np.nan, 0.5])[0])
    # Equal means in whatever order, though sums of floats are not.
    assert metrics.spread([0.1, 0.2, 0.3])[0] == metrics.spread([0.3, 0.1, 0.2])[0] == metrics.spread([0.2] * 3)[0]


def test_ranking_by_means_of_one_repeat_is_the_ranking():
    labels = drawn(0)[1]
    candidates = np.stack([drawn(seed)[0] for seed in range(5)])
    for metric in ("accuracy", "log_loss"):
        order = metrics.ranking(candidates, labels, metric=metric, positive=0)
        assert metrics.ranking_of_means(candidates[:, None], labels, metric=metric, positive=0) == order
        pairs = np.stack([candidates[order], candidates[order[::-1]]], axis=1)  # all means as good as equal at the ends
        found = metrics.ranking_of_means(pairs, labels, metric=metric, positive=0)
        scores = [metrics.spread([metrics.score(metric, p, labels, positive=0) for p in pair])[0] for pair in pairs]
        assert [scores[index] for index in found] == sorted(scores, reverse=metric not in metrics.LOWER_IS_BETTER)
