"""Measure every declared run on validation and on test; rank by validation; write the comparison.

The only place that reads the labels of the test part. They choose nothing here: the candidate of each method and the
order of the methods follow from the validation predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.console.progress import Log, progress, say
from pipeline.core import artifacts
from pipeline.core.params import Params, Run, declared_runs
from pipeline.evaluation import comparison, curves, ensemble_comparison, leaderboard, metrics, stability, statistics
from pipeline.evaluation.comparison import Method, Protocol
from pipeline.show import calibration_table, ensemble_table, figures, leaderboard_tables

READS = (
    "seed",
    "repeats",
    "backbones",
    "classifiers",
    "head.backbones",
    "fine_tune.backbones",
    "scratch.networks",
    "selection",
    "compare",
)
INPUTS = ("data/split/manifest.csv", "results/runs")
OUTPUTS = (
    "results/leaderboard.csv",
    "results/leaderboard.json",
    "results/leaderboard.md",
    "results/details.json",
    "results/calibration.json",
    "results/metrics.json",
    "results/figures/confusion_matrix.png",
    "results/figures/learning_curves.png",
    "results/figures/leaderboard.png",
    "results/figures/precision_recall.png",
    "results/figures/reliability.png",
    "results/figures/roc.png",
)
FIGURES = artifacts.RESULTS / "figures"


def main(params: Params, *, log: Log) -> None:
    for output in map(Path, OUTPUTS):
        for abandoned in output.parent.glob(f".{output.name}.*"):  # by a comparison that was killed
            abandoned.unlink()
    ranked, protocol = evaluate(params)
    counts = (f"{protocol.sizes[part]:,} {part} images{_in_groups(protocol, part)}" for part in protocol.units)
    say(f"{len(ranked)} methods, each on {protocol.compare.bootstrap_samples:,} resamples of {' and '.join(counts)}")
    for warning in leaderboard_tables.few_units(protocol.units, protocol.sizes):
        say(warning)
    resampled = comparison.resample(ranked, protocol)
    entries = comparison.entries(ranked, resampled, protocol)
    stable = {"pairs": stability.pairs(ranked), "ranks": stability.ranks(ranked, resampled, protocol)}
    ensemble = ensemble_comparison.beside_champion(ranked, resampled, protocol)
    details = comparison.details(ranked, entries, protocol) | stable | {"ensemble": ensemble}
    _write(entries, details, protocol)
    _write_calibrators(ranked, protocol)
    say("drawing the figures")
    _draw(ranked, entries, protocol)
    tables = [leaderboard_tables.text(entries), calibration_table.text(entries), ensemble_table.text(ensemble)]
    say("\n\n".join(filter(None, tables)))


def _in_groups(protocol: Protocol, part: str) -> str:
    count = protocol.units[part]
    return f" (in {count:,} groups, which are drawn whole)" if count < protocol.sizes[part] else ""


def evaluate(params: Params) -> tuple[list[Method], Protocol]:
    """Return every declared run with its evaluations, best first, and what they were measured by. Writes nothing.

    Raises ArtifactError if a run is missing, or was made from another split or choice.
    """
    protocol = _protocol(params)
    declared = _declared_runs(params)
    _warn_of_strays(declared)
    manifest = artifacts.sha256_file(artifacts.MANIFEST)
    repeats = params.value("repeats")
    methods = [_method(run, protocol, manifest=manifest, repeats=repeats) for run in declared]
    return comparison.rank(methods, protocol), protocol


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
            say(f"warning: {path} is not declared in params.yaml and left out; `python -m pipeline prune` removes it")


def _method(run: Run, protocol: Protocol, *, manifest: str, repeats: int) -> Method:
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
    if not predictions.repeats == len(record.repeats) + 1 == repeats:
        raise artifacts.ArtifactError(
            f"{directory} holds {predictions.repeats} trainings, its record {len(record.repeats) + 1}, but "
            f"params.yaml: repeats is {repeats}: run `dvc repro`"
        )
    _check_selected(record, predictions, protocol)
    return comparison.evaluate(record, predictions, protocol)


def _check_selected(record: artifacts.Record, predictions: artifacts.Predictions, protocol: Protocol) -> None:
    metric = protocol.selection.metric
    best = metrics.select(predictions.validation, protocol.validation.labels, metric=metric, positive=protocol.positive)
    if best != record.selected:
        recorded = record.candidates[record.selected].name if record.selected < len(record.candidates) else "none"
        raise artifacts.ArtifactError(
            f"{artifacts.RUNS / record.name}/record.json selects candidate {record.selected} ({recorded}), but by "
            f"validation {metric} the best is {best} ({record.candidates[best].name}): run `dvc repro`"
        )


# --- writing -------------------------------------------------------------------------------------------------------


def _write(entries: Sequence[leaderboard.Entry], details: Mapping[str, Any], protocol: Protocol) -> None:
    artifacts.write_json(artifacts.LEADERBOARD, entries)
    artifacts.write_csv(artifacts.RESULTS / "leaderboard.csv", *leaderboard.csv_table(entries))
    text = leaderboard_tables.markdown(
        entries,
        sizes=protocol.sizes,
        units=protocol.units,
        confidence=protocol.compare.confidence,
        samples=protocol.compare.bootstrap_samples,
    )
    ensemble = details["ensemble"]
    text = "\n".join(filter(None, [text, calibration_table.markdown(entries), ensemble_table.markdown(ensemble)]))
    artifacts.write_text(artifacts.RESULTS / "leaderboard.md", text)
    artifacts.write_json(artifacts.RESULTS / "metrics.json", leaderboard.summary(entries, ensemble))
    artifacts.write_json(leaderboard.DETAILS, details)


def _write_calibrators(ranked: Sequence[Method], protocol: Protocol) -> None:
    """Write every method's calibrator, or none, for whoever predicts with one of the runs later."""
    calibrators = {
        method.record.name: {
            "calibrator": method.calibrated.calibrator.describe(),
            "predictions": artifacts.sha256_file(artifacts.RUNS / method.record.name / "predictions.npz"),
        }
        for method in ranked
        if method.calibrated
    }
    artifacts.write_json(artifacts.CALIBRATION, {"kind": protocol.compare.calibration, "runs": calibrators})


# --- drawing -------------------------------------------------------------------------------------------------------


def _draw(ranked: Sequence[Method], entries: Sequence[leaderboard.Entry], protocol: Protocol) -> None:
    drawings = (_draw_confusion_matrix, _draw_curves, _draw_reliability, _draw_learning_curves, _draw_leaderboard)
    for draw in progress(drawings, total=len(drawings), label="drawing", unit="kinds of figures"):
        draw(ranked, entries, protocol)


def _draw_confusion_matrix(ranked: Sequence[Method], entries: Sequence[leaderboard.Entry], protocol: Protocol) -> None:
    champion = ranked[0]
    metric = protocol.selection.metric
    reached = f"{leaderboard.LABELS[metric]} {leaderboard.shown(entries[0]['test'][metric]['value'])}"
    figures.confusion_matrix(
        metrics.confusion(champion.test),
        protocol.classes,
        title=f"{champion.title} (champion) on test: {reached}",
        path=FIGURES / "confusion_matrix.png",
    )


def _draw_reliability(ranked: Sequence[Method], entries: Sequence[leaderboard.Entry], protocol: Protocol) -> None:
    kind = protocol.compare.calibration
    figures.reliability(
        [_reliability(method, entry) for method, entry in zip(ranked, entries, strict=True)],
        n_classes=len(protocol.classes),
        title=f"Reliability on test, {protocol.sizes['test']:,} images"
        + (f", with {kind} calibration (dashed: before)" if kind else ""),
        path=FIGURES / "reliability.png",
    )


def _reliability(method: Method, entry: leaderboard.Entry) -> figures.Calibration:
    error = leaderboard.shown(entry["test"]["expected_calibration_error"]["value"])
    before = figures.Calibration(method.title, **metrics.calibration(method.test), note=f"ECE {error}")
    if method.calibrated is None:
        return before
    after = leaderboard.shown(entry["calibration"]["test"]["expected_calibration_error"]["after"])
    note = f"ECE {error} → {after}"
    return figures.Calibration(method.title, **metrics.calibration(method.calibrated.test), note=note, before=before)


def _draw_learning_curves(ranked: Sequence[Method], entries: Sequence[leaderboard.Entry], protocol: Protocol) -> None:
    figures.learning_curves(
        [_training(place, method) for place, method in enumerate(ranked)], path=FIGURES / "learning_curves.png"
    )


def _draw_leaderboard(ranked: Sequence[Method], entries: Sequence[leaderboard.Entry], protocol: Protocol) -> None:
    metric = protocol.selection.metric
    figures.leaderboard(
        [_bar(method, entry, metric) for method, entry in zip(ranked, entries, strict=True)],
        label=leaderboard.LABELS[metric],
        confidence=protocol.compare.confidence,
        path=FIGURES / "leaderboard.png",
    )


def _draw_curves(ranked: Sequence[Method], entries: Sequence[leaderboard.Entry], protocol: Protocol) -> None:
    def lines(curve: Callable[..., curves.Curve], metric: str) -> list[figures.Line]:
        return [
            figures.Line(
                method.title,
                place,
                *curve(method.predictions.test, protocol.test_labels, positive=protocol.positive),
                note=leaderboard.shown(entries[place]["test"][metric]["value"]),
            )
            for place, method in enumerate(ranked)
        ]

    shares = np.bincount(protocol.test_labels, minlength=len(protocol.classes)) / len(protocol.test_labels)
    if protocol.positive is None:
        of, prevalence = "mean of one-vs-rest curves", float(shares[shares > 0].mean())
    else:
        of, prevalence = f"positive: {protocol.classes[protocol.positive]}", float(shares[protocol.positive])
    title = f"test, {protocol.sizes['test']:,} images, {of}"
    figures.roc(lines(curves.roc, "roc_auc"), title=f"ROC: {title}", path=FIGURES / "roc.png")
    figures.precision_recall(
        lines(curves.precision_recall, "average_precision"),
        prevalence=prevalence,
        title=f"Precision-recall: {title}",
        path=FIGURES / "precision_recall.png",
    )


def _training(place: int, method: Method) -> figures.Training:
    """Return how the selected candidate was fitted; networks note the kept epoch, boosters the kept number of trees."""
    selected = method.record.candidates[method.record.selected]
    kept = selected.notes.get("best_epoch", selected.notes.get("best_iteration"))
    return figures.Training(method.title, place, selected.history, best_step=None if kept is None else int(kept) - 1)


def _bar(method: Method, entry: leaderboard.Entry, metric: str) -> figures.Bar:
    repeats = entry["repeats"]
    validation = repeats["validation"][metric]["mean"] if repeats else entry["validation"][metric]["value"]
    test = entry["test"][metric]
    values = (validation, test["value"], test["low"], test["high"])
    others = [float(each.measure(names=[metric])[metric][0]) for each in method.repeats["test"][1:]]
    return figures.Bar(method.title, *(np.nan if value is None else value for value in values), others=others)
