"""Finished runs to a comparison, all in memory: who is best on validation, and what test says of everyone.

`rank` and the selected candidates follow from validation alone; test labels reach only numbers that are reported.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import artifacts, leaderboard, metrics, seeds, statistics
from pipeline.calibration import calibrators, fitting
from pipeline.progress import progress

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
    validation: metrics.Evaluation
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
    again = {"validation": (), "test": ()} if predictions.repeats == 1 else {
        "validation": [protocol.evaluate(each, validation.labels) for each in predictions.repeats_validation],
        "test": [protocol.evaluate(each, test.labels) for each in predictions.repeats_test],
    }  # fmt: skip
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
    return Calibrated(
        calibrator,
        protocol.evaluate(fitting.cross_fitted(kind, validation, labels, folds), labels),
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
    metric, confidence = protocol.selection.metric, protocol.compare.confidence
    validation, test = resampled["validation"], resampled["test"]
    against = _against_champion(ranked, test, protocol)
    return [
        leaderboard.entry(
            method.record,
            rank=place,
            selected_by=metric,
            validation=with_intervals(
                method.validation, validation[method.record.name], confidence, protocol.units["validation"]
            ),
            test=with_intervals(method.test, test[method.record.name], confidence, protocol.units["test"]),
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
        before, after = (each.measure(names=leaderboard.CALIBRATION_METRICS) for each in evaluations)
        found[part] = {
            name: leaderboard.numbers({"before": float(before[name][0]), "after": float(after[name][0])})
            for name in leaderboard.CALIBRATION_METRICS
        }
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
        value = float(evaluation.measure(names=[metric])[metric][0])
        units = len(set(statistics.units(len(rows), groups[rows].tolist())))
        interval = _interval(metric, value, resampled[_stratum_key(stratum)], protocol.compare.confidence, units)
        found[stratum] = {"n": len(rows), **leaderboard.numbers(interval._asdict())}
    return found


def _stratum_key(stratum: str) -> str:
    return f"stratum: {stratum}"


def with_intervals(
    evaluation: metrics.Evaluation, resampled: Mapping[str, np.ndarray], confidence: float, units: int
) -> dict[str, dict[str, float | None]]:
    """Return {metric: {value, low, high}} of an evaluation and its resampled measures, in so many units."""
    return {
        name: leaderboard.numbers(_interval(name, float(value[0]), resampled[name], confidence, units)._asdict())
        for name, value in evaluation.measure().items()
    }


def _interval(metric: str, value: float, resampled: np.ndarray, confidence: float, units: int) -> statistics.Interval:
    if metric == "accuracy":
        return statistics.accuracy_interval(value, resampled, confidence=confidence, units=units)
    return statistics.percentile_interval(value, resampled, confidence=confidence)


def _against_champion(
    ranked: Sequence[Method], resampled: Mapping[str, Mapping[str, np.ndarray]], protocol: Protocol
) -> dict[str, dict[str, Any]]:
    """Return for every method but the champion its paired comparison with the champion on test."""
    champion, *others = ranked
    metric = protocol.selection.metric
    reached = {method.record.name: float(method.test.measure(names=[metric])[metric][0]) for method in ranked}
    best = champion.record.name
    groups = protocol.groups("test")
    tests = [statistics.paired_test(champion.test.correct, method.test.correct, groups) for method in others]
    corrected = [leaderboard.number(p) for p in statistics.holm([test.p for test in tests])]
    found = {}
    for method, test, p_holm in zip(others, tests, corrected, strict=True):
        name = method.record.name
        difference = statistics.percentile_interval(
            reached[name] - reached[best],
            resampled[name][metric] - resampled[best][metric],
            confidence=protocol.compare.confidence,
        )
        found[name] = {
            "only_champion_right": test.only_first_right,
            "only_method_right": test.only_second_right,
            "p": leaderboard.number(test.p),
            "p_holm": p_holm,
            "told_apart": p_holm < 1 - protocol.compare.confidence,
            "difference": leaderboard.numbers(difference._asdict()),
            "ahead_on_test": metrics.is_better(metric, reached[name], reached[best]),
        }
    return found


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
