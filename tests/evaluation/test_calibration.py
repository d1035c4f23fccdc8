"""Facts of calibration: what it may change, what it must not, and that nobody judges himself."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.evaluation.calibration import calibrators, fitting
from pipeline.evaluation.calibration.calibrators import Isotonic, Temperature

KINDS = ("temperature", "isotonic")


def drawn(n: int, classes: int, *, power: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities float32 (n, classes) and labels drawn from them; ``power`` then makes them too sure."""
    random = np.random.default_rng(seed)
    true = random.dirichlet(np.ones(classes), size=n)
    labels = (true.cumsum(axis=1) > random.uniform(size=(n, 1))).argmax(axis=1)
    shown = true**power
    return (shown / shown.sum(axis=1, keepdims=True)).astype(np.float32), labels


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-7, 1)).mean())


# --- temperature ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 5])
def test_calibrated_probabilities_need_a_temperature_of_about_one(classes):
    assert fitting.fit("temperature", *drawn(20_000, classes)).temperature == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("power", [3.0, 0.5])
def test_the_temperature_undoes_what_made_predictions_too_sure_or_not_sure_enough(classes, power):
    probabilities, labels = drawn(20_000, classes, power=power)
    found = fitting.fit("temperature", probabilities, labels)
    assert found.temperature == pytest.approx(power, rel=0.04)
    honest, _ = drawn(20_000, classes)
    assert log_loss(found.apply(probabilities), labels) == pytest.approx(log_loss(honest, labels), abs=2e-3)


def test_the_fitted_temperature_has_the_smallest_log_loss():
    probabilities, labels = drawn(300, 3, power=2.0)
    best = fitting.fit("temperature", probabilities, labels)
    losses = [log_loss(Temperature(best.temperature * by).apply(probabilities), labels) for by in (0.9, 1.0, 1.1)]
    assert losses[1] == min(losses)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 10.0])
def test_no_temperature_changes_which_class_is_most_probable(temperature):
    random = np.random.default_rng(1)
    close = 0.5 + random.integers(-3, 4, size=500) * 2.0**-24  # as near to a tie as float32 can hold
    two = np.stack([close, 1 - close], axis=1).astype(np.float32)
    for probabilities in (two, drawn(500, 10)[0], drawn(500, 4, power=30)[0]):
        after = Temperature(temperature).apply(probabilities)
        np.testing.assert_array_equal(after.argmax(axis=1), probabilities.argmax(axis=1))
        np.testing.assert_allclose(after.sum(axis=1), 1)
    assert (two.argmax(axis=1) == 1).any()


def test_what_a_model_rules_out_stays_ruled_out_and_says_nothing_about_the_temperature():
    probabilities, labels = drawn(1000, 3, power=2.0)
    alone = fitting.fit("temperature", probabilities, labels)
    ruled_out = np.array([[1, 0, 0], [0.5, 0.5, 0]], dtype=np.float32)
    both = np.concatenate([probabilities, ruled_out])
    assert fitting.fit("temperature", both, np.append(labels, [1, 2])) == alone
    assert (alone.apply(ruled_out)[ruled_out == 0] == 0).all()


@pytest.mark.parametrize("right, expected", [(True, fitting.TEMPERATURES[0]), (False, fitting.TEMPERATURES[1])])
def test_without_a_single_mistake_or_hit_the_temperature_stays_in_bounds(right, expected):
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]], dtype=np.float32)
    labels = probabilities.argmax(axis=1) if right else probabilities.argmin(axis=1)
    assert fitting.fit("temperature", probabilities, labels).temperature == expected


# --- isotonic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 4])
def test_isotonic_maps_rise_in_every_class_and_rows_sum_to_one(classes):
    probabilities, labels = drawn(400, classes, power=3.0)
    found = fitting.fit("isotonic", probabilities, labels)
    assert len(found.maps) == (1 if classes == 2 else classes)
    for knots in found.maps:
        assert (np.diff(knots[0]) > 0).all()
        assert (np.diff(knots[1]) >= 0).all()
        assert knots.min() >= 0 and knots.max() <= 1
    after = found.apply(probabilities)
    np.testing.assert_allclose(after.sum(axis=1), 1)
    if classes == 2:
        order = np.argsort(probabilities[:, 1])
        assert (np.diff(after[order, 1]) >= 0).all()
    assert log_loss(after, labels) < log_loss(probabilities, labels)


def test_equal_scores_get_the_share_of_images_that_had_the_class():
    scores = np.repeat([0.2, 0.6], 10)
    labels = np.array([1] * 3 + [0] * 7 + [1] * 8 + [0] * 2)
    found = fitting.fit("isotonic", np.stack([1 - scores, scores], axis=1).astype(np.float32), labels)
    asked = np.array([0.0, 0.2, 0.4, 0.6, 1.0], dtype=np.float32)
    after = found.apply(np.stack([1 - asked, asked], axis=1))
    # Between two knots linear, beyond the last ones level.
    np.testing.assert_allclose(after[:, 1], [0.3, 0.3, 0.55, 0.8, 0.8], atol=1e-6)


def test_a_class_that_validation_lacks_keeps_its_probabilities_before_rows_are_divided():
    probabilities, labels = drawn(300, 3)
    probabilities, labels = probabilities[labels != 2], labels[labels != 2]
    found = fitting.fit("isotonic", probabilities, labels)
    assert [knots is None for knots in found.maps] == [False, False, True]
    assert (found.apply(probabilities)[:, 2] > 0).all()


def test_a_row_that_becomes_zero_for_all_classes_stays_what_it_was():
    to_zero = np.array([[0.0, 1.0], [0.0, 0.0]])
    row = np.array([[0.2, 0.3, 0.5]], dtype=np.float32)
    np.testing.assert_allclose(Isotonic((to_zero, to_zero, to_zero)).apply(row), row)


# --- both ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 50])
def test_labels_that_say_nothing_change_nothing(kind, classes):
    probabilities, labels = drawn(30, classes)
    nobody = fitting.fit(kind, probabilities[:0], labels[:0])
    np.testing.assert_allclose(nobody.apply(probabilities), probabilities, atol=1e-6)
    alone = fitting.cross_fitted(kind, probabilities[:1], labels[:1], np.zeros(1, dtype=np.int64))
    np.testing.assert_allclose(alone, probabilities[:1], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 50])
def test_few_images_of_many_classes_and_one_class_alone_have_an_outcome(kind, classes):
    probabilities, labels = drawn(60, classes, power=2.0)
    for each in (labels, np.zeros_like(labels)):
        calibrated = [
            fitting.fit(kind, probabilities, each).apply(probabilities),
            fitting.cross_fitted(kind, probabilities, each, fitting.folds(each, seed=0)),
        ]
        for found in calibrated:
            assert np.isfinite(found).all() and (found >= 0).all()
            np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_no_image_is_judged_by_a_calibrator_that_has_seen_its_label(kind):
    probabilities, labels = drawn(200, 3, power=2.0)
    folds = fitting.folds(labels, seed=0)
    before = fitting.cross_fitted(kind, probabilities, labels, folds)
    mine = folds == 2
    changed = labels.copy()
    changed[mine] = np.roll(labels[mine], 1)
    assert (changed != labels).any()
    after = fitting.cross_fitted(kind, probabilities, changed, folds)
    np.testing.assert_array_equal(after[mine], before[mine])
    for fold in set(folds.tolist()) - {2}:
        assert (after[folds == fold] != before[folds == fold]).any()


def test_folds_deal_out_every_class_evenly_and_depend_on_the_seed_alone():
    labels = np.repeat([0, 1, 2], [50, 23, 3])
    folds = fitting.folds(labels, seed=0)
    for label in range(3):
        counts = np.bincount(folds[labels == label], minlength=fitting.FOLDS)
        assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(fitting.folds(labels, seed=0), folds)
    assert (fitting.folds(labels, seed=1) != folds).any()
    alone = [str(index) for index in range(len(labels))]
    np.testing.assert_array_equal(fitting.folds(labels, seed=0, groups=alone), folds)


def test_folds_keep_groups_whole():
    """An image would otherwise be judged by a calibrator that has seen the label of its like."""
    labels = np.repeat([0, 1], 60)
    groups = ["" if index % 10 > 7 else f"g{index // 4}" for index in range(120)]
    folds = fitting.folds(labels, seed=0, groups=groups)
    assert all(
        len({fold for fold, group in zip(folds, groups, strict=True) if group == name}) == 1
        for name in set(groups) - {""}
    )
    assert len({fold for fold, group in zip(folds, groups, strict=True) if not group}) == 5
    assert set(folds) == set(range(5)) and np.bincount(folds).min() > 10


@pytest.mark.parametrize("kind", KINDS)
def test_a_calibrator_survives_its_description_in_json_bit_by_bit(kind):
    probabilities, labels = drawn(200, 3, power=2.0)
    labels = labels % 2  # the third class is never the label
    found = fitting.fit(kind, probabilities, labels)
    read = calibrators.from_description(json.loads(json.dumps(found.describe())))
    np.testing.assert_array_equal(read.apply(probabilities), found.apply(probabilities))
    assert calibrators.in_words(found.describe()).startswith(kind)


def test_an_unknown_calibrator_is_an_error():
    with pytest.raises(ValueError, match="temperature or isotonic, received 'platt'"):
        calibrators.from_description({"kind": "platt"})
