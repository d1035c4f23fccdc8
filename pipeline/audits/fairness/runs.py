"""The runs of the leaderboard with their predictions on validation; what the test part said, from the leaderboard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.classifiers.search import search_space
from pipeline.core import artifacts, params
from pipeline.evaluation import leaderboard, metrics


@dataclass(frozen=True)
class Run:
    """A finished run: its entry of the leaderboard, and every candidate's evaluation on validation."""

    entry: leaderboard.Entry
    record: artifacts.Record
    candidates: tuple[metrics.Evaluation, ...]

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def title(self) -> str:
        return leaderboard.title(self.record.network, self.record.method)

    @property
    def stops_on_validation(self) -> bool:
        """Whether the number of trees or epochs was chosen on validation, too."""
        return any(
            name in candidate.notes for candidate in self.record.candidates for name in ("best_iteration", "best_epoch")
        )

    @property
    def learns_from_scores(self) -> bool:
        """Whether the scores on validation decided which candidates there are."""
        block = self.record.parameters.get(f"classifiers.{self.record.method}", {})
        return block.get("search") == "tpe" and len(self.candidates) > search_space.DRAWN_FIRST


def read(values: Mapping[str, Any]) -> list[Run]:
    """Return the runs that params.yaml declares, in the order of the leaderboard.

    Raises ArtifactError if a file is missing or the leaderboard is not of these predictions.
    """
    entries = {entry["run"]: entry for entry in artifacts.read_json(artifacts.LEADERBOARD)}
    declared = {run.name for run in params.declared_runs(values)}
    if declared != entries.keys():
        differing = ", ".join(sorted(declared ^ entries.keys()))
        raise artifacts.ArtifactError(
            f"{artifacts.LEADERBOARD} and params.yaml must name the same runs, but differ in {differing}: "
            "run `dvc repro`"
        )
    part = artifacts.read_part("validation")
    selection = params.parse(values["selection"], metrics.SelectionParams, where="selection")
    positive = metrics.positive_index(part.classes, selection)
    return [_read(entry, part, positive, selection.metric) for entry in entries.values()]


def _read(entry: leaderboard.Entry, part: artifacts.Part, positive: int | None, metric: str) -> Run:
    directory = artifacts.RUNS / entry["run"]
    record = artifacts.read_record(directory / "record.json")
    predictions = artifacts.read_predictions(directory / "predictions.npz").validation
    expected = (len(record.candidates), len(part), len(part.classes))
    if predictions.shape != expected:
        raise artifacts.ArtifactError(
            f"{directory}/predictions.npz: validation must have the shape {expected}, received {predictions.shape}: "
            "run `dvc repro`"
        )
    candidates = tuple(metrics.Evaluation(each, part.labels, positive=positive) for each in predictions)
    value = leaderboard.number(float(candidates[record.selected].measure(names=[metric])[metric][0]))
    if entry["selected_by"] != metric or entry["validation"][metric]["value"] != value:
        raise artifacts.ArtifactError(
            f"{artifacts.LEADERBOARD} is not of the predictions in {directory}, or of another metric than {metric}: "
            "run `dvc repro`"
        )
    return Run(entry, record, candidates)
