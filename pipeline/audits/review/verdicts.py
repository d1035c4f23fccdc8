"""A verdict for every output and every committed metric: how the replay compares with what is claimed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audits.review import equivalence, tolerance
from pipeline.audits.review.equivalence import Difference, EquivalenceParams
from pipeline.audits.review.locks import Pipeline
from pipeline.audits.review.tolerance import ToleranceParams
from pipeline.core import artifacts
from pipeline.core.params import Block
from pipeline.evaluation import leaderboard, metrics

IDENTICAL = "identical"
CLOSE = "within tolerance"
EQUIVALENT = "statistically equivalent"
DIVERGED = "diverged"
VERDICTS = (IDENTICAL, CLOSE, EQUIVALENT, DIVERGED)

REMADE = "made again of the claimed inputs"
NOT_AVAILABLE = "differs, claimed bytes not available"
# What the note of a run tells of its metrics, beside the one that chose; it is judged by all.
USUAL_METRICS = ("accuracy", "roc_auc")
BY_METRICS = "committed metrics"
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

    @property
    def claimed_bytes_missing(self) -> bool:
        """Whether it was judged by no more than a digest, also where metrics vouch for it."""
        return self.basis in (NOT_AVAILABLE, BY_METRICS)


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
    """What the two sides' predictions are measured by, if both are of the same images: {part: labels, int (n,)} of
    validation and test, the positive class, the metric that chose, and the bins of the calibration error.

    ``groups``: {part: the group of each image, "" without one}; a part that is not there has none.
    """

    labels: Mapping[str, np.ndarray]
    positive: int | None
    metric: str
    calibration_bins: int = 15
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """Claimed and replayed probabilities (n, classes) of one part: of the selected candidate, which is what the
    leaderboard measures, or (``also``) of another candidate or training."""

    name: str
    part: str
    claimed: np.ndarray
    replayed: np.ndarray
    also: bool = False


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
    found = tolerance.compare(place, replayed, params.tolerance)
    return judged(CLOSE if found.close else DIVERGED, "content", *found.notes), {}


def run(
    claimed: Path, replayed: Path, *, truth: Truth | None, params: ReviewParams
) -> tuple[str, list[str], dict[str, Difference]]:
    """Judge a run's directory: its predictions decide, unless the run was of another method or candidate parameters.

    Files of models cannot be compared otherwise: two models are the same if they say the same of every image. Then the
    record has to say the same as well. Of an equivalent run it may tell of another training. Returned are the
    differences in the metrics of the leaderboard, by part and metric.
    """
    try:
        before, after = (artifacts.read_predictions(side / PREDICTIONS) for side in (claimed, replayed))
        records = [artifacts.read_record(side / RECORD) for side in (claimed, replayed)]
    except artifacts.ArtifactError as error:
        return DIVERGED, [str(error)], {}
    if notes := _other_record(*records):
        return DIVERGED, notes, {}
    sides = [(before, records[0]), (after, records[1])]
    if not all(0 <= record.selected < len(side.validation) == len(record.candidates) for side, record in sides):
        return DIVERGED, [f"{RECORD} and {PREDICTIONS} are not of the same candidates"], {}
    shapes = [[(part.name, part.claimed.shape) for part in _pairs(side, side)] for side in sides]
    if shapes[0] != shapes[1]:
        return DIVERGED, ["other numbers of candidates, trainings or images than claimed"], {}
    pairs = _pairs(*sides)
    if truth is not None and any(len(truth.labels[pair.part]) != len(pair.claimed) for pair in pairs):
        truth = None
    largest = max(tolerance.largest_difference(pair.claimed, pair.replayed) for pair in pairs)
    changed = equivalence.changed_predictions(before.test, after.test)
    notes = [f"probabilities differ by at most {largest:.3g}, the class of {changed} of {len(after.test)} test images"]
    if records[0].selected != records[1].selected:
        names = [record.candidates[record.selected].name for record in records]
        notes.append(f"validation selects {names[1]} instead of {names[0]}")
    differing = [pair for pair in pairs if not np.array_equal(pair.claimed, pair.replayed)]
    found = {} if truth is None else {pair.name: _differences(pair, truth, params) for pair in differing}
    differences = {
        f"{pair.name}_{metric}": one
        for pair in differing
        if truth is not None and not pair.also
        for metric, one in found[pair.name].items()
    }
    told = tolerance.values(*(record.model_dump() for record in records), params.tolerance)
    notes += [f"{RECORD}: {note}" for note in told.notes if not told.close]
    if all(params.tolerance.close(pair.claimed, pair.replayed) for pair in pairs):
        return (CLOSE if told.close else DIVERGED), notes, differences
    if truth is None:
        return DIVERGED, [*notes, "not of the same validation and test images, so nothing can be paired"], {}
    shown = [(pair, one) for pair in differing for one in found[pair.name].values()]
    notes += [
        f"{pair.name} {one}"
        for pair, one in shown
        if not one.equivalent or (not pair.also and one.metric in (truth.metric, *USUAL_METRICS))
    ]
    return EQUIVALENT if all(one.equivalent for _, one in shown) else DIVERGED, notes, differences


def _other_record(claimed: artifacts.Record, replayed: artifacts.Record) -> list[str]:
    """Return how two records are not of the same method, classes or parameters; what training gave may differ.

    What a network costs is no result of its training, but follows from its parameters.
    """
    same = claimed.selected == replayed.selected and claimed.stage != "sweep"

    def told(record: artifacts.Record) -> dict[str, Any]:
        wanted = ("stage", "network", "method", "classes", "parameters", "draws", "ablation")
        chosen = {name: getattr(record, name) for name in wanted}
        chosen["cost"] = record.cost.model_dump(exclude={"model_bytes"}) if same else {}
        chosen["repeats"] = [one.seed for one in record.repeats]
        return chosen | {"candidates": [[one.name, one.parameters] for one in record.candidates]}

    before, after = told(claimed), told(replayed)
    return [f"{RECORD}: {name} differ from the claimed" for name in before if before[name] != after[name]]


def _pairs(
    claimed: tuple[artifacts.Predictions, artifacts.Record], replayed: tuple[artifacts.Predictions, artifacts.Record]
) -> list[Pair]:
    """Return everything that two runs of the same shapes predict, side by side."""
    (before, one), (after, other) = claimed, replayed
    chosen = before.validation[one.selected], after.validation[other.selected]
    pairs = [Pair("validation", "validation", *chosen), Pair("test", "test", before.test, after.test)]
    names = [candidate.name for candidate in one.candidates]
    pairs += [
        Pair(f"candidate {name}, validation", "validation", *sides, also=True)
        for name, *sides in zip(names, before.validation, after.validation, strict=False)
    ]
    if before.repeats > 1 < after.repeats:
        for part, *sides in (
            ("validation", before.repeats_validation, after.repeats_validation),
            ("test", before.repeats_test, after.repeats_test),
        ):
            pairs += [
                Pair(f"repeat {number}, {part}", part, *pair, also=True)
                for number, pair in enumerate(zip(*sides, strict=False), start=1)
            ]
    return pairs


def _differences(pair: Pair, truth: Truth, params: ReviewParams) -> dict[str, Difference]:
    return equivalence.differences(
        pair.claimed,
        pair.replayed,
        truth.labels[pair.part],
        names=dict.fromkeys([truth.metric, "accuracy"]) if pair.also else metrics.NAMES,
        positive=truth.positive,
        params=params.equivalence,
        groups=truth.groups.get(pair.part, ()),
        calibration_bins=truth.calibration_bins,
        close=params.tolerance.close(pair.claimed, pair.replayed),
    )


# --- the comparison and its metrics --------------------------------------------------------------------------------


def metrics_of(
    claimed: Sequence[Mapping[str, Any]],
    replayed: Sequence[Mapping[str, Any]],
    *,
    differences: Mapping[str, Mapping[str, Difference]],
    params: ReviewParams,
) -> list[Metric]:
    """Judge every value of two leaderboards, entries of leaderboard.json, and who is the champion.

    ``differences``: of the runs that are not the same bytes, by run, then by part and metric. A metric beyond the
    tolerance is equivalent by its own paired interval, or if every probability of its part is within the tolerance: one
    near one half may flip. In either case it must be the metric of the claimed predictions.
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
                difference = differences.get(name, {}).get(f"{part}_{metric}")
                found.append(_metric(name, f"{part}_{metric}", score["value"], other, difference, params))
    return found


def _metric(
    run: str, name: str, claimed: Any, replayed: Any, difference: Difference | None, params: ReviewParams
) -> Metric:
    def judged(verdict: str, note: str = "") -> Metric:
        return Metric(run, name, claimed, replayed, verdict, note)

    if claimed == replayed:
        return judged(IDENTICAL)
    if claimed is None or replayed is None:
        return judged(DIVERGED, "defined on one side only")
    if params.tolerance.close(claimed, replayed):
        return judged(CLOSE)
    if difference is None:
        return judged(DIVERGED)
    if not params.tolerance.close(difference.claimed, claimed):
        return judged(DIVERGED, f"the claimed predictions give {leaderboard.number(difference.claimed)}")
    interval = f"[{difference.low:+.4f}, {difference.high:+.4f}], at most ±{difference.margin:.2g}"
    note = "every probability is within the tolerance" if difference.close else interval
    return judged(EQUIVALENT if difference.equivalent else DIVERGED, note)


def settled(outputs: Sequence[Output], metrics: Sequence[Metric], pipeline: Pipeline) -> list[Output]:
    """Return the outputs, judged again where only the digest of the claim is left: the committed metrics of the runs
    made from it decide, all of them within the tolerance, or diverged.

    Not of a table of images: a label, a part or a copy says nothing of itself in a metric.
    """
    return [
        _by_metrics(one, runs_from(one, outputs, pipeline), metrics)
        if one.verdict == DIVERGED and one.unavailable and not one.path.endswith(".csv")
        else one
        for one in outputs
    ]


def _by_metrics(one: Output, runs: Collection[str], metrics: Sequence[Metric]) -> Output:
    concerned = [metric for metric in metrics if metric.run in runs or metric.run == "champion"]
    known = {metric.run for metric in concerned} >= set(runs)
    if runs and known and worst(metric.verdict for metric in concerned) in (IDENTICAL, CLOSE):
        note = f"{NOT_AVAILABLE}; every committed metric made from it agrees"
        return replace(one, verdict=CLOSE, basis=BY_METRICS, notes=(*one.notes, note))
    return one


def runs_from(one: Output, outputs: Sequence[Output], pipeline: Pipeline) -> set[str]:
    """Return the names of the runs that an output is, or goes into, or, of what is made from runs, comes from."""
    later = {stage.name for stage in pipeline.after(one.stage)}
    of_runs = [two for two in outputs if is_run(two.path)]
    own = {two.path for two in of_runs if two.stage == one.stage or two.stage in later}
    own = own or {two.path for two in of_runs if two.stage in pipeline.before[one.stage]}
    return {run_name(path) for path in own}


def is_run(path: str) -> bool:
    return path.startswith(f"{artifacts.RUNS.as_posix()}/")


def run_name(path: str) -> str:
    """Return the run that an output under results/runs holds."""
    return path.removeprefix(f"{artifacts.RUNS.as_posix()}/")


def shown(value: Any) -> str:
    """Return a claimed or replayed value as a table shows it."""
    if value is None:
        return leaderboard.UNDEFINED
    return f"{value:.6g}" if isinstance(value, float) else str(value)
