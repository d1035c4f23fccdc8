"""A verdict for every output and every committed metric: how the replay compares with what is claimed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artifacts, leaderboard
from pipeline.params import Block
from pipeline.review import closeness, equivalence
from pipeline.review.closeness import ToleranceParams
from pipeline.review.equivalence import Difference, EquivalenceParams
from pipeline.review.locks import Pipeline

IDENTICAL = "identical"
CLOSE = "within tolerance"
EQUIVALENT = "statistically equivalent"
DIVERGED = "diverged"
VERDICTS = (IDENTICAL, CLOSE, EQUIVALENT, DIVERGED)

NOT_AVAILABLE = "differs, claimed bytes not available"
PREDICTIONS = "predictions.npz"
RECORD = "record.json"


class ReviewParams(Block):
    """When a result that is not the same bytes still counts as reproduced."""

    tolerance: ToleranceParams
    equivalence: EquivalenceParams


@dataclass(frozen=True)
class Output:
    """One output of one stage. ``basis``: what was compared. ``claimed``, ``replayed``: digests, None without."""

    stage: str
    path: str
    verdict: str
    basis: str
    claimed: str | None
    replayed: str | None
    notes: tuple[str, ...] = ()

    @property
    def unavailable(self) -> bool:
        return self.basis == NOT_AVAILABLE


@dataclass(frozen=True)
class Metric:
    """One number that is committed, of a run or of the comparison, and what the replay has in its place."""

    run: str
    name: str
    claimed: Any
    replayed: Any
    verdict: str
    note: str = ""


@dataclass(frozen=True)
class Truth:
    """What the two sides' predictions are measured by, if both are of the same images: labels of the test part, int
    (n,), the positive class and the metrics that count."""

    labels: np.ndarray
    positive: int | None
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Runs:
    """What became of the runs: their outputs' verdicts, and the differences in metrics of those that are not the same
    bytes."""

    verdicts: Mapping[str, str] = field(default_factory=dict)
    differences: Mapping[str, Mapping[str, Difference]] = field(default_factory=dict)


def worst(verdicts: Iterable[str]) -> str:
    """Return the verdict furthest from identical; identical of none."""
    return max(verdicts, key=VERDICTS.index, default=IDENTICAL)


def output(
    stage: str,
    path: str,
    *,
    digests: tuple[str | None, str | None],
    claimed: Callable[[], Path | None],
    replayed: Path,
    truth: Truth | None,
    params: ReviewParams,
) -> tuple[Output, dict[str, Difference]]:
    """Judge one output by its bytes, else by its content, a run by its predictions.

    ``digests``: claimed and replayed. ``claimed``: returns where the claimed bytes are, None if nowhere; it is asked
    only if they differ.
    """
    wanted, received = digests

    def judged(verdict: str, basis: str, *notes: str) -> Output:
        return Output(stage, path, verdict, basis, wanted, received, notes)

    if received is None:
        return judged(DIVERGED, "existence", "the replay did not write it"), {}
    if wanted is None:
        return judged(DIVERGED, "existence", "dvc.lock claims nothing of it"), {}
    if wanted == received:
        return judged(IDENTICAL, "bytes"), {}
    place = claimed()
    if place is None:
        return judged(DIVERGED, NOT_AVAILABLE), {}
    if (replayed / PREDICTIONS).is_file() and (place / PREDICTIONS).is_file():
        verdict, notes, differences = run(place, replayed, truth=truth, params=params)
        return judged(verdict, "per-image predictions", *notes), differences
    found = closeness.compare(place, replayed, params.tolerance)
    return judged(CLOSE if found.close else DIVERGED, "content", *found.notes), {}


def run(
    claimed: Path, replayed: Path, *, truth: Truth | None, params: ReviewParams
) -> tuple[str, list[str], dict[str, Difference]]:
    """Judge a run's directory: its predictions decide, unless the run was of another method or candidate parameters.

    Files of models cannot be compared otherwise: two models are the same if they say the same of every image.
    """
    try:
        before, after = (artifacts.read_predictions(side / PREDICTIONS) for side in (claimed, replayed))
        records = [artifacts.read_record(side / RECORD) for side in (claimed, replayed)]
    except artifacts.ArtifactError as error:
        return DIVERGED, [str(error)], {}
    if notes := _other_record(*records):
        return DIVERGED, notes, {}
    if before.validation.shape != after.validation.shape or before.test.shape != after.test.shape:
        return DIVERGED, ["other numbers of candidates or images than claimed"], {}
    largest = max(closeness.largest_difference(*pair) for pair in _pairs(before, after))
    changed = equivalence.changed_predictions(before.test, after.test)
    notes = [f"probabilities differ by at most {largest:.3g}, the class of {changed} of {len(after.test)} test images"]
    if records[0].selected != records[1].selected:
        names = [record.candidates[record.selected].name for record in records]
        notes.append(f"validation selects {names[1]} instead of {names[0]}")
    differences = {}
    if truth is not None:
        differences = equivalence.differences(
            before.test,
            after.test,
            truth.labels,
            names=truth.metrics,
            positive=truth.positive,
            params=params.equivalence,
        )
    if before.repeats == after.repeats and all(params.tolerance.close(*pair) for pair in _pairs(before, after)):
        return CLOSE, notes, differences
    if truth is None:
        return DIVERGED, [*notes, "not of the same test images, so nothing can be paired"], {}
    notes += [str(difference) for difference in differences.values()]
    within = all(difference.within(params.equivalence.margin) for difference in differences.values())
    return EQUIVALENT if differences and within else DIVERGED, notes, differences


def _other_record(claimed: artifacts.Record, replayed: artifacts.Record) -> list[str]:
    """Return how two records are not of the same method, classes or parameters; what training gave may differ."""

    def told(record: artifacts.Record) -> dict[str, Any]:
        wanted = ("stage", "network", "method", "classes", "parameters")
        chosen = {name: getattr(record, name) for name in wanted}
        return chosen | {"candidates": [[one.name, one.parameters] for one in record.candidates]}

    before, after = told(claimed), told(replayed)
    return [f"{RECORD}: {name} differ from the claimed" for name in before if before[name] != after[name]]


def _pairs(before: artifacts.Predictions, after: artifacts.Predictions) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = [(before.validation, after.validation), (before.test, after.test)]
    if before.repeats == after.repeats > 1:
        pairs += [(before.repeats_validation, after.repeats_validation), (before.repeats_test, after.repeats_test)]
    return pairs


# --- the comparison and its metrics --------------------------------------------------------------------------------


def metrics_of(
    claimed: Sequence[Mapping[str, Any]], replayed: Sequence[Mapping[str, Any]], *, runs: Runs, params: ReviewParams
) -> list[Metric]:
    """Judge every value of two leaderboards, entries of leaderboard.json, and who is the champion.

    A metric beyond the tolerance is equivalent if the paired bootstrap of its run says so; one that was not
    bootstrapped, if its run's predictions are at least that: a probability near one half may flip within the tolerance.
    """
    found = []
    champions = [next((entry["run"] for entry in side if entry["champion"]), None) for side in (claimed, replayed)]
    same = champions[0] == champions[1]
    found.append(Metric("champion", "run", *champions, IDENTICAL if same else DIVERGED))
    before, after = ({entry["run"]: entry for entry in side} for side in (claimed, replayed))
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in before or name not in after:
            sides = ["listed" if name in side else None for side in (before, after)]
            found.append(Metric(name, "run", *sides, DIVERGED, "only one of the two comparisons has it"))
            continue
        for part in ("validation", "test"):
            for metric, score in before[name][part].items():
                other = after[name][part].get(metric, {}).get("value")
                found.append(_metric(name, f"{part}_{metric}", score["value"], other, runs, params))
    return found


def _metric(run: str, name: str, claimed: Any, replayed: Any, runs: Runs, params: ReviewParams) -> Metric:
    if claimed == replayed:
        return Metric(run, name, claimed, replayed, IDENTICAL)
    if claimed is None or replayed is None:
        return Metric(run, name, claimed, replayed, DIVERGED, "defined on one side only")
    if params.tolerance.close(claimed, replayed):
        return Metric(run, name, claimed, replayed, CLOSE)
    difference = runs.differences.get(run, {}).get(name.removeprefix("test_"))
    if name.startswith("test_") and difference is not None:
        verdict = EQUIVALENT if difference.within(params.equivalence.margin) else DIVERGED
        return Metric(run, name, claimed, replayed, verdict, f"[{difference.low:+.4f}, {difference.high:+.4f}]")
    if runs.verdicts.get(run) in (CLOSE, EQUIVALENT):
        return Metric(run, name, claimed, replayed, EQUIVALENT, "as the predictions of its run")
    return Metric(run, name, claimed, replayed, DIVERGED)


def settled(outputs: Sequence[Output], metrics: Sequence[Metric], pipeline: Pipeline) -> list[Output]:
    """Return the outputs, judged again where more than themselves decides.

    - What was made of runs that are not the same bytes, tables and figures, can be no closer than they are: it gets the
      worst verdict of the metrics, if those are no divergence.
    - Where only the digest of the claim is left, the committed metrics of the runs made from it decide: all of them
      within the tolerance, or diverged.
    """
    by_stage: dict[str, list[Output]] = {}
    for one in outputs:
        by_stage.setdefault(one.stage, []).append(one)
    run_stages = {one.stage for one in outputs if _is_run(one.path)}
    found = []
    for one in outputs:
        upstream = pipeline.before.get(one.stage, frozenset())
        loose = worst(two.verdict for name in upstream & run_stages for two in by_stage[name])
        if one.verdict == DIVERGED and one.unavailable:
            one = _by_metrics(one, _runs_from(one, outputs, pipeline), metrics)
        elif one.verdict == DIVERGED and one.basis == "content" and upstream & run_stages and loose != IDENTICAL:
            of_metrics = worst(metric.verdict for metric in metrics)
            if metrics and loose != DIVERGED and of_metrics != DIVERGED:
                one = replace(one, verdict=worst([loose, of_metrics]), basis="the runs it is made from")
        found.append(one)
    return found


def _by_metrics(one: Output, runs: Collection[str], metrics: Sequence[Metric]) -> Output:
    concerned = [metric for metric in metrics if metric.run in runs or metric.run == "champion"]
    known = {metric.run for metric in concerned} >= set(runs)
    if runs and known and worst(metric.verdict for metric in concerned) in (IDENTICAL, CLOSE):
        note = f"{NOT_AVAILABLE}; every committed metric made from it agrees"
        return replace(one, verdict=CLOSE, basis="committed metrics", notes=(*one.notes, note))
    return one


def _runs_from(one: Output, outputs: Sequence[Output], pipeline: Pipeline) -> set[str]:
    """Return the names of the runs that an output is, or goes into, or, of what is made from runs, comes from."""
    later = {stage.name for stage in pipeline.after(one.stage)}
    of_runs = [two for two in outputs if _is_run(two.path)]
    own = {two.path for two in of_runs if two.stage == one.stage or two.stage in later}
    own = own or {two.path for two in of_runs if two.stage in pipeline.before[one.stage]}
    return {run_name(path) for path in own}


def _is_run(path: str) -> bool:
    return path.startswith(f"{artifacts.RUNS.as_posix()}/")


def run_name(path: str) -> str:
    """Return the run that an output under results/runs holds."""
    return path.removeprefix(f"{artifacts.RUNS.as_posix()}/")


def shown(value: Any) -> str:
    """Return a claimed or replayed value as a table shows it."""
    if value is None:
        return leaderboard.UNDEFINED
    return f"{value:.6g}" if isinstance(value, float) else str(value)
