"""Measure every declared run on validation and, once, on test; rank by validation; write the comparison.

The only place that reads the labels of the test part. They choose nothing: the candidate of each method and the order
of the methods follow from the validation predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import artifacts, curves, figures, leaderboard, metrics, seeds, statistics
from pipeline.params import Params, Run, declared_runs
from pipeline.progress import Log, say

READS = ("seed", "backbones", "classifiers", "head.backbones", "fine_tune.backbones", "scratch.networks", "selection",
         "compare")  # fmt: skip
INPUTS = ("data/split/manifest.csv", "results/runs")
OUTPUTS = (
    "results/leaderboard.csv",
    "results/leaderboard.json",
    "results/leaderboard.md",
    "results/details.json",
    "results/metrics.json",
    "results/figures/confusion_matrix.png",
    "results/figures/learning_curves.png",
    "results/figures/leaderboard.png",
    "results/figures/precision_recall.png",
    "results/figures/reliability.png",
    "results/figures/roc.png",
)
FIGURES = artifacts.RESULTS / "figures"


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

    def evaluate(self, probabilities: np.ndarray, labels: np.ndarray) -> metrics.Evaluation:
        return metrics.Evaluation(
            probabilities, labels, positive=self.positive, calibration_bins=self.compare.calibration_bins
        )


@dataclass(frozen=True)
class Method:
    """One run and the evaluations of its selected candidate; ``strata``: rows of a stratum and their evaluation."""

    record: artifacts.Record
    predictions: artifacts.Predictions
    validation: metrics.Evaluation
    test: metrics.Evaluation
    strata: Mapping[str, tuple[np.ndarray, metrics.Evaluation]]

    @property
    def title(self) -> str:
        return leaderboard.title(self.record.network, self.record.method)


def main(params: Params, *, log: Log) -> None:
    protocol = _protocol(params)
    declared = _declared_runs(params)
    _warn_of_strays(declared)
    manifest = artifacts.sha256_file(artifacts.MANIFEST)
    methods = [_method(run, protocol, manifest=manifest) for run in declared]
    order = metrics.ranking(
        np.stack([method.validation.probabilities for method in methods]),
        protocol.validation.labels,
        metric=protocol.selection.metric,
        positive=protocol.positive,
    )
    ranked = [methods[index] for index in order]
    say(f"{len(ranked)} methods, each on {protocol.compare.bootstrap_samples:,} resamples of "
        f"{protocol.sizes['validation']} validation and {protocol.sizes['test']} test images")  # fmt: skip
    entries = _entries(ranked, protocol)
    _write(entries, _details(ranked, entries, protocol), protocol)
    _draw(ranked, entries, protocol)
    say(leaderboard.leaderboard_text(entries))


# --- reading -------------------------------------------------------------------------------------------------------


def _protocol(params: Params) -> Protocol:
    selection = params.block("selection", metrics.SelectionParams)
    parts = {name: artifacts.read_part(name) for name in artifacts.PARTS}
    return Protocol(
        sizes={name: len(part) for name, part in parts.items()},
        validation=parts["validation"],
        test=parts["test"],
        test_labels=artifacts.read_test_labels(),
        selection=selection,
        positive=metrics.positive_index(parts["validation"].classes, selection),
        compare=params.block("compare", statistics.CompareParams),
        seed=params.value("seed"),
    )


def _declared_runs(params: Params) -> list[Run]:
    values = {key: params.value(key) for key in ("backbones", "classifiers")}
    values |= {key: {"backbones": params.value(f"{key}.backbones")} for key in ("head", "fine_tune")}
    values["scratch"] = {"networks": params.value("scratch.networks")}
    return declared_runs(values)


def _warn_of_strays(declared: Sequence[Run]) -> None:
    names = {run.name for run in declared}
    for path in sorted(artifacts.RUNS.glob("[!.]*")):
        if path.name not in names:
            say(f"warning: {path} is not declared in params.yaml and is left out; `python -m pipeline prune` removes it")


def _method(run: Run, protocol: Protocol, *, manifest: str) -> Method:
    """Return a declared run with its evaluations. Raises ArtifactError if it was made from another split or choice."""
    directory = artifacts.RUNS / run.name
    record = artifacts.read_record(directory / "record.json")
    predictions = artifacts.read_predictions(directory / "predictions.npz")
    if record.name != run.name or record.stage != run.stage:
        raise artifacts.ArtifactError(f"{directory} must hold the {run.stage} run {run.name}, received {record.name}")
    if tuple(record.classes) != protocol.classes or record.inputs.get(INPUTS[0]) != manifest:
        raise artifacts.ArtifactError(
            f"{directory} was made from another split than the current {artifacts.MANIFEST}: run `dvc repro`"
        )
    count = len(protocol.classes)
    expected = ((len(record.candidates), len(protocol.validation), count), (len(protocol.test), count))
    received = (predictions.validation.shape, predictions.test.shape)
    if received != expected:
        raise artifacts.ArtifactError(
            f"{directory / 'predictions.npz'}: validation and test must have the shapes {expected}, received {received}"
        )
    _check_selected(record, predictions, protocol)
    strata = {}
    # A single stratum is the whole part once more.
    for stratum in sorted(set(protocol.test.strata)) if len(set(protocol.test.strata)) > 1 else []:
        rows = np.flatnonzero(np.array(protocol.test.strata) == stratum)
        strata[stratum] = (rows, protocol.evaluate(predictions.test[rows], protocol.test_labels[rows]))
    return Method(
        record=record,
        predictions=predictions,
        validation=protocol.evaluate(predictions.validation[record.selected], protocol.validation.labels),
        test=protocol.evaluate(predictions.test, protocol.test_labels),
        strata=strata,
    )


def _check_selected(record: artifacts.Record, predictions: artifacts.Predictions, protocol: Protocol) -> None:
    metric = protocol.selection.metric
    best = metrics.select(
        predictions.validation, protocol.validation.labels, metric=metric, positive=protocol.positive
    )
    if best != record.selected:
        recorded = record.candidates[record.selected].name if record.selected < len(record.candidates) else "none"
        raise artifacts.ArtifactError(
            f"{artifacts.RUNS / record.name}/record.json selects candidate {record.selected} ({recorded}), but by "
            f"validation {metric} the best is {best} ({record.candidates[best].name}): run `dvc repro`"
        )


# --- measuring -----------------------------------------------------------------------------------------------------


def _entries(ranked: Sequence[Method], protocol: Protocol) -> list[leaderboard.Entry]:
    validation = _resampled({method.record.name: method.validation.measure for method in ranked}, "validation", protocol)
    measures = {method.record.name: _with_strata(method, protocol.selection.metric) for method in ranked}
    test = _resampled(measures, "test", protocol)
    against = _against_champion(ranked, test, protocol)
    metric, confidence = protocol.selection.metric, protocol.compare.confidence
    entries = []
    for rank, method in enumerate(ranked, start=1):
        name = method.record.name
        strata = {}
        for stratum, (rows, evaluation) in method.strata.items():
            value = float(evaluation.measure(names=[metric])[metric][0])
            interval = statistics.percentile_interval(value, test[name][_stratum_key(stratum)], confidence=confidence)
            strata[stratum] = {"n": len(rows), **leaderboard.numbers(interval._asdict())}
        entries.append(
            leaderboard.entry(
                method.record,
                rank=rank,
                selected_by=metric,
                validation=_intervals(method.validation, validation[name], confidence),
                test=_intervals(method.test, test[name], confidence),
                strata=strata,
                against_champion=against.get(name),
            )
        )
    return entries


def _resampled(
    measures: Mapping[str, statistics.Measure], part: str, protocol: Protocol
) -> dict[str, dict[str, np.ndarray]]:
    return statistics.bootstrap(
        measures,
        protocol.sizes[part],
        samples=protocol.compare.bootstrap_samples,
        generator=seeds.generator(protocol.seed, "compare", part),
    )


def _with_strata(method: Method, metric: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return a measure of all metrics on test, and of ``metric`` within each stratum, on the same resamples."""

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = method.test.measure(weights)
        for stratum, (rows, evaluation) in method.strata.items():
            found[_stratum_key(stratum)] = evaluation.measure(weights[:, rows], names=[metric])[metric]
        return found

    return measure


def _stratum_key(stratum: str) -> str:
    return f"stratum: {stratum}"


def _intervals(
    evaluation: metrics.Evaluation, resampled: Mapping[str, np.ndarray], confidence: float
) -> dict[str, dict[str, float | None]]:
    return {
        name: leaderboard.numbers(
            statistics.percentile_interval(float(value[0]), resampled[name], confidence=confidence)._asdict()
        )
        for name, value in evaluation.measure().items()
    }


def _against_champion(
    ranked: Sequence[Method], resampled: Mapping[str, Mapping[str, np.ndarray]], protocol: Protocol
) -> dict[str, dict[str, Any]]:
    """Return for every method but the champion its paired comparison with the champion on test."""
    champion, *others = ranked
    metric = protocol.selection.metric
    reached = {method.record.name: float(method.test.measure(names=[metric])[metric][0]) for method in ranked}
    best = champion.record.name
    tests = [statistics.mcnemar(champion.test.correct, method.test.correct) for method in others]
    corrected = statistics.holm([test.p for test in tests])
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
            "p_holm": leaderboard.number(p_holm),
            "difference": leaderboard.numbers(difference._asdict()),
            "ahead_on_test": metrics.is_better(metric, reached[name], reached[best]),
        }
    return found


# --- writing -------------------------------------------------------------------------------------------------------


def _details(ranked: Sequence[Method], entries: Sequence[leaderboard.Entry], protocol: Protocol) -> dict[str, Any]:
    return {
        "classes": list(protocol.classes),
        "positive_class": protocol.selection.positive_class,
        "selected_by": protocol.selection.metric,
        "images": dict(protocol.sizes),
        "intervals": protocol.compare.model_dump(),
        "champion": ranked[0].record.name,
        "paired_tests": {entry["run"]: entry["against_champion"] for entry in entries[1:]},
        "runs": {method.record.name: _run_details(method, entry, protocol) for method, entry in zip(ranked, entries, strict=True)},
    }


def _run_details(method: Method, entry: leaderboard.Entry, protocol: Protocol) -> dict[str, Any]:
    evaluations = {"validation": method.validation, "test": method.test}
    candidates = [
        {
            "name": candidate.name,
            "parameters": candidate.parameters,
            "converged": candidate.converged,
            "validation": _values(protocol.evaluate(probabilities, protocol.validation.labels)),
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
            stratum: {"n": len(rows), **_values(evaluation)} for stratum, (rows, evaluation) in method.strata.items()
        },
        "confusion": {part: metrics.confusion(evaluation).tolist() for part, evaluation in evaluations.items()},
    }


def _values(evaluation: metrics.Evaluation) -> dict[str, float | None]:
    return {name: leaderboard.number(float(value[0])) for name, value in evaluation.measure().items()}


def _write(entries: Sequence[leaderboard.Entry], details: Mapping[str, Any], protocol: Protocol) -> None:
    artifacts.write_json(artifacts.LEADERBOARD, entries)
    artifacts.write_csv(artifacts.RESULTS / "leaderboard.csv", *leaderboard.csv_table(entries))
    text = leaderboard.markdown(
        entries,
        sizes=protocol.sizes,
        confidence=protocol.compare.confidence,
        samples=protocol.compare.bootstrap_samples,
    )
    artifacts.write_text(artifacts.RESULTS / "leaderboard.md", text)
    artifacts.write_json(artifacts.RESULTS / "metrics.json", leaderboard.summary(entries))
    artifacts.write_json(artifacts.RESULTS / "details.json", details)
