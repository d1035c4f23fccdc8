"""Finished runs to a comparison, all in memory: who is best on validation, and what test says of everyone.

`rank` and the selected candidates follow from validation alone; test labels reach only numbers that are reported.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.console.progress import progress
from pipeline.core import artifacts, seeds
from pipeline.evaluation import leaderboard, metrics, statistics
from pipeline.evaluation.calibration import calibrators, fitting

Resampled = Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]
"""{part: {run: {metric: float64 (samples,)}}}"""


@dataclass(frozen=True)
class Protocol:
    """What every run is measured by: the parts with their labels, the metric that chooses, how sure to be."""

    sizes: Mapping[str, int]
    validation: artifacts.Part
    test: artifacts.Part
    test_labels: np.ndarray
    selection: metrics.SelectionParams
    positive: int | None
    compare: statistics.CompareParams
    seed: int

    @property
    def classes(self) -> tuple[str, ...]:
        return self.validation.classes

    def groups(self, part: str) -> tuple[str, ...]:
        return {"validation": self.validation, "test": self.test}[part].groups

    @functools.cached_property
    def units(self) -> dict[str, int]:
        """How many images and whole groups are drawn independently of each other: see `statistics.units`."""
        parts = ("validation", "test")
        return {part: len(set(statistics.units(self.sizes[part], self.groups(part)))) for part in parts}

    def evaluate(self, probabilities: np.ndarray, labels: np.ndarray) -> metrics.Evaluation:
        return metrics.Evaluation(
            probabilities, labels, positive=self.positive, calibration_bins=self.compare.calibration_bins
        )


@dataclass(frozen=True)
class Calibrated:
    """What calibration makes of a method: on validation cross-fitted, on test by the one calibrator that is kept."""

    calibrator: calibrators.Calibrator
    validation: metrics.Evaluation | None  # None where folds cannot fit: see `fitting.can_fit`
    test: metrics.Evaluation


@dataclass(frozen=True)
class Method:
    """One run and the evaluations of its selected candidate; ``strata``: rows of a stratum and their evaluation.

    ``repeats``: for validation and test the evaluations of every training, the first one first.
    """

    record: artifacts.Record
    predictions: artifacts.Predictions
    validation: metrics.Evaluation
    test: metrics.Evaluation
    strata: Mapping[str, tuple[np.ndarray, metrics.Evaluation]]
    repeats: Mapping[str, tuple[metrics.Evaluation, ...]]
    calibrated: Calibrated | None

    @property
    def title(self) -> str:
        return leaderboard.title(self.record.network, self.record.method, self.record.ablation)


def evaluate(record: artifacts.Record, predictions: artifacts.Predictions, protocol: Protocol) -> Method:
    """Return a run with its evaluations on validation, on test, and on each stratum of test if there are several."""
    test_strata = np.array(protocol.test.strata)
    names = sorted(set(protocol.test.strata))
    strata = {}
    # A single stratum would be the whole part once more.
    for name in names if len(names) > 1 else []:
        rows = np.flatnonzero(test_strata == name)
        strata[name] = (rows, protocol.evaluate(predictions.test[rows], protocol.test_labels[rows]))
    chosen = predictions.validation[record.selected]
    validation = protocol.evaluate(chosen, protocol.validation.labels)
    test = protocol.evaluate(predictions.test, protocol.test_labels)
    again = (
        {"validation": (), "test": ()}
        if predictions.repeats == 1
        else {
            "validation": [protocol.evaluate(each, validation.labels) for each in predictions.repeats_validation],
            "test": [protocol.evaluate(each, test.labels) for each in predictions.repeats_test],
        }
    )
    return Method(
        record=record,
        predictions=predictions,
        validation=validation,
        test=test,
        strata=strata,
        repeats={"validation": (validation, *again["validation"]), "test": (test, *again["test"])},
        calibrated=_calibrated(chosen, predictions.test, protocol),
    )


def _calibrated(validation: np.ndarray, test: np.ndarray, protocol: Protocol) -> Calibrated | None:
    kind, labels = protocol.compare.calibration, protocol.validation.labels
    if kind is None:
        return None
    calibrator = fitting.fit(kind, validation, labels)
    folds = fitting.folds(labels, seed=protocol.seed, groups=protocol.groups("validation"))
    crossed = fitting.cross_fitted(kind, validation, labels, folds) if fitting.can_fit(labels, folds) else None
    return Calibrated(
        calibrator,
        None if crossed is None else protocol.evaluate(crossed, labels),
        protocol.evaluate(calibrator.apply(test), protocol.test_labels),
    )


def rank(methods: Sequence[Method], protocol: Protocol) -> list[Method]:
    """Return the methods best first by the chosen metric on validation, then log loss, then order; the first wins.

    Both are means over the repeats: a single training may have been lucky (docs/decisions/0014).
    """
    order = metrics.ranking_of_means(
        np.stack([[each.probabilities for each in method.repeats["validation"]] for method in methods]),
        protocol.validation.labels,
        metric=protocol.selection.metric,
        positive=protocol.positive,
    )
    return [methods[index] for index in order]


def resample(ranked: Sequence[Method], protocol: Protocol) -> Resampled:
    """Return every metric of every method on the same bootstrap resamples of validation, and of test."""
    metric = protocol.selection.metric
    on_validation = {method.record.name: method.validation.measure for method in ranked}
    on_test = {method.record.name: _with_strata(method, metric) for method in ranked}
    return resampled_measures({"validation": on_validation, "test": on_test}, protocol)


def entries(ranked: Sequence[Method], resampled: Resampled, protocol: Protocol) -> list[leaderboard.Entry]:
    """Return the leaderboard of methods that `rank` ordered, with intervals and paired tests."""
    metric = protocol.selection.metric
    validation, test = resampled["validation"], resampled["test"]
    against = _against_champion(ranked, test, protocol)
    return [
        leaderboard.entry(
            method.record,
            rank=place,
            selected_by=metric,
            validation=with_intervals(method.validation, validation[method.record.name], "validation", protocol),
            test=with_intervals(method.test, test[method.record.name], "test", protocol),
            strata=_strata(method, test[method.record.name], protocol),
            against_champion=against.get(method.record.name),
            repeats=_spread(method),
            calibration=_before_and_after(method),
        )
        for place, method in enumerate(ranked, start=1)
    ]


def _spread(method: Method) -> dict[str, Any] | None:
    """Return every metric's mean and standard deviation over the repeats; None of a method trained once."""
    if method.predictions.repeats == 1:
        return None
    found: dict[str, Any] = {"count": method.predictions.repeats, "draws": method.record.draws}
    for part, evaluations in method.repeats.items():
        values = [evaluation.measure() for evaluation in evaluations]
        spreads = {name: metrics.spread([float(each[name][0]) for each in values]) for name in metrics.NAMES}
        found[part] = {
            name: leaderboard.numbers({"mean": mean, "sd": deviation}) for name, (mean, deviation) in spreads.items()
        }
    return found


def _before_and_after(method: Method) -> dict[str, Any] | None:
    """Return the calibrator in words and the metrics it is meant for before and after it; None without one."""
    if method.calibrated is None:
        return None
    found: dict[str, Any] = {"calibrator": calibrators.in_words(method.calibrated.calibrator.describe())}
    pairs = {
        "validation": (method.validation, method.calibrated.validation),
        "test": (method.test, method.calibrated.test),
    }
    for part, evaluations in pairs.items():
        before, after = (point_values(each) if each else dict.fromkeys(metrics.NAMES) for each in evaluations)
        found[part] = {name: {"before": before[name], "after": after[name]} for name in leaderboard.CALIBRATION_METRICS}
    return found


def resampled_measures(measures: Mapping[str, Mapping[str, statistics.Measure]], protocol: Protocol) -> Resampled:
    """Return the measures of every run on every part."""
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {part: {} for part in measures}
    pairs = [(part, name) for part, of_part in measures.items() for name in of_part]
    for part, name in progress(pairs, total=len(pairs), label="resampling", unit="methods and parts"):
        found[part] |= statistics.bootstrap(
            {name: measures[part][name]},
            protocol.sizes[part],
            samples=protocol.compare.bootstrap_samples,
            groups=protocol.groups(part),
            # The same for every method, so that all are measured on the same resamples.
            generator=seeds.generator(protocol.seed, "compare", part),
        )
    return found


def _with_strata(method: Method, metric: str) -> statistics.Measure:
    """Return a measure of all metrics on test, and of ``metric`` within each stratum, on the same resamples."""

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = method.test.measure(weights)
        for stratum, (rows, evaluation) in method.strata.items():
            found[_stratum_key(stratum)] = evaluation.measure(weights[:, rows], names=[metric])[metric]
        return found

    return measure


def _strata(method: Method, resampled: Mapping[str, np.ndarray], protocol: Protocol) -> dict[str, dict[str, Any]]:
    metric, groups = protocol.selection.metric, np.array(protocol.groups("test"))
    found = {}
    for stratum, (rows, evaluation) in method.strata.items():
        interval = _interval(metric, evaluation, resampled[_stratum_key(stratum)], groups[rows].tolist(), protocol)
        found[stratum] = {"n": len(rows), **leaderboard.numbers(interval._asdict())}
    return found


def _stratum_key(stratum: str) -> str:
    return f"stratum: {stratum}"


def with_intervals(
    evaluation: metrics.Evaluation, resampled: Mapping[str, np.ndarray], part: str, protocol: Protocol
) -> dict[str, dict[str, float | None]]:
    """Return {metric: {value, low, high}} of an evaluation of a part and its resampled measures."""
    groups = protocol.groups(part)
    return {
        name: leaderboard.numbers(_interval(name, evaluation, resampled[name], groups, protocol)._asdict())
        for name in metrics.NAMES
    }


def _interval(
    metric: str, evaluation: metrics.Evaluation, resampled: np.ndarray, groups: Sequence[str], protocol: Protocol
) -> statistics.Interval:
    confidence = protocol.compare.confidence
    if metric == "accuracy":
        return statistics.accuracy_interval(evaluation.correct, groups, confidence=confidence)
    return statistics.resampled_interval(
        _value(evaluation, metric),
        resampled,
        confidence=confidence,
        units=len(set(statistics.units(len(evaluation), groups))),
        limits=(0.0, metrics.largest(metric, len(protocol.classes))),
    )


def _value(evaluation: metrics.Evaluation, metric: str) -> float:
    return float(evaluation.measure(names=[metric])[metric][0])


def _against_champion(
    ranked: Sequence[Method], resampled: Mapping[str, Mapping[str, np.ndarray]], protocol: Protocol
) -> dict[str, dict[str, Any]]:
    """Return for every method but the champion its paired comparison with the champion on test."""
    champion, *others = ranked
    drawn = resampled[champion.record.name]
    pairs = [paired(champion.test, each.test, drawn, resampled[each.record.name], protocol) for each in others]
    corrected = statistics.holm([test.p for test, _ in pairs])
    found = {}
    for method, (test, difference), p_holm in zip(others, pairs, map(leaderboard.number, corrected), strict=True):
        found[method.record.name] = {
            "tested": protocol.selection.metric,
            "only_champion_right": test.only_first_right,
            "only_method_right": test.only_second_right,
            "p": leaderboard.number(test.p),
            "p_holm": p_holm,
            "told_apart": p_holm is not None and p_holm < 1 - protocol.compare.confidence,
            "difference": leaderboard.numbers(difference._asdict()),
            "ahead_on_test": metrics.is_better(protocol.selection.metric, difference.value, 0.0),
        }
    return found


def paired(
    first: metrics.Evaluation,
    second: metrics.Evaluation,
    first_drawn: Mapping[str, np.ndarray],
    second_drawn: Mapping[str, np.ndarray],
    protocol: Protocol,
) -> tuple[statistics.PairedTest, statistics.Interval]:
    """Return the test of two methods on the test part, and the interval of the difference, second minus first.

    Both are of the metric that chose, p is NaN where it is undefined; the counts are of right answers in any case.
    ``first_drawn``, ``second_drawn``: their measures on the same resamples.
    """
    metric, confidence, groups = protocol.selection.metric, protocol.compare.confidence, protocol.groups("test")
    test = statistics.paired_test(first.correct, second.correct, groups)
    if metric == "accuracy":
        return test, statistics.accuracy_difference(first.correct, second.correct, groups, confidence=confidence)
    largest = metrics.largest(metric, len(protocol.classes))
    difference = statistics.resampled_interval(
        _value(second, metric) - _value(first, metric),
        second_drawn[metric] - first_drawn[metric],
        confidence=confidence,
        units=protocol.units["test"],
        limits=(-largest, largest),
    )
    both = protocol.evaluate(
        np.concatenate([_exchangeable(each.probabilities, metric) for each in (first, second)]),
        np.tile(first.labels, 2),
    )
    p = statistics.permutation_test(
        lambda weights: both.measure(weights, names=[metric])[metric],
        len(first),
        samples=protocol.compare.bootstrap_samples,
        # The same for every pair, as resamples are the same for every method.
        generator=seeds.generator(protocol.seed, "compare", "test", "exchange"),
        groups=groups,
    )
    return test._replace(p=p), difference


def _exchangeable(probabilities: np.ndarray, metric: str) -> np.ndarray:
    """Return what of a method's predictions can change sides with another's: ranks, where the metric sees no more.

    Two methods may say the same of every image on other scales. Pooled as they are, a score of one would be compared
    with a score of the other (Venkatraman and Begg 1996).
    """
    from scipy.stats import rankdata

    return rankdata(probabilities, axis=0) if metric in metrics.OF_RANKS else probabilities


def details(ranked: Sequence[Method], found: Sequence[leaderboard.Entry], protocol: Protocol) -> dict[str, Any]:
    """Return details.json: every candidate on validation, and every method per class, per stratum, cell by cell."""
    return {
        "classes": list(protocol.classes),
        "positive_class": protocol.selection.positive_class,
        "selected_by": protocol.selection.metric,
        "images": dict(protocol.sizes),
        "intervals": protocol.compare.model_dump() | {"units": protocol.units},
        "champion": ranked[0].record.name,
        "paired_tests": {entry["run"]: entry["against_champion"] for entry in found[1:]},
        "runs": {
            method.record.name: _run_details(method, entry, protocol)
            for method, entry in zip(ranked, found, strict=True)
        },
    }


def _run_details(method: Method, entry: leaderboard.Entry, protocol: Protocol) -> dict[str, Any]:
    evaluations = {"validation": method.validation, "test": method.test}
    candidates = [
        {
            "name": candidate.name,
            "parameters": candidate.parameters,
            "converged": candidate.converged,
            "validation": point_values(protocol.evaluate(probabilities, protocol.validation.labels)),
        }
        for candidate, probabilities in zip(method.record.candidates, method.predictions.validation, strict=True)
    ]
    return {
        "selected": method.record.selected,
        "candidates": candidates,
        "intervals": {part: entry[part] for part in evaluations},
        "per_class": {
            part: {
                name: leaderboard.numbers(values)
                for name, values in metrics.per_class(
                    evaluation.probabilities, evaluation.labels, protocol.classes
                ).items()
            }
            for part, evaluation in evaluations.items()
        },
        "per_stratum": {
            stratum: {"n": len(rows), **point_values(evaluation)}
            for stratum, (rows, evaluation) in method.strata.items()
        },
        "confusion": {part: metrics.confusion(evaluation).tolist() for part, evaluation in evaluations.items()},
    }


def point_values(evaluation: metrics.Evaluation) -> dict[str, float | None]:
    """Return {metric: value}, None where it is undefined."""
    return {name: leaderboard.number(float(value[0])) for name, value in evaluation.measure().items()}
