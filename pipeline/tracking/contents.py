"""What an MLflow run says: its name, tags, parameters and metrics, derived from a record and nothing else."""

from __future__ import annotations

import contextlib
import getpass
import json
import math
import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core import artifacts, provenance

PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
# Steps of a series start at 1, so that step 0 is free for the numbers that sum up a run.
FIRST_STEP = 1
SUMMARY_STEP = 0
_SUMMARIES = ("validation_", "test_")


@dataclass(frozen=True)
class Interval:
    """A metric on the test part with its confidence interval, NaN where there is none."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        bounds = f" [{self.low:.3f}, {self.high:.3f}]" if math.isfinite(self.low) else ""
        return f"**{self.value:.3f}**{bounds}"


@dataclass(frozen=True)
class DataSet:
    """One part of the split: its name, how many images, and the SHA-256 of its list of images."""

    part: str
    images: int
    sha256: str


@dataclass(frozen=True)
class Method:
    """A finished run as MLflow is to show it.

    ``input_key``: None if the inputs are not on this machine. ``validation``: the metrics of each candidate.
    ``backbone``: the directory of the network that the saved model needs beside its own files, if any.
    ``spread``: {part: {metric: (mean, standard deviation)}} over ``repeats`` trainings, empty for one.
    ``calibrator``: its numbers, None without; ``calibrated``: {part: {metric: value after it}}.
    ``explained``: files that show what its network looks at, none if there are none of this record.
    """

    record: artifacts.Record
    record_digest: str
    directory: Path
    input_key: str | None
    validation: tuple[Mapping[str, float], ...]
    test: Mapping[str, Interval]
    champion: bool
    backbone: Path | None
    repeats: int = 1
    spread: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    calibrator: Mapping[str, Any] | None = None
    calibrated: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    explained: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Everything a store is to show: the methods, best first, and what they share.

    ``selected_by``: the metric by which validation chose; ``smaller_is_better``: of that metric.
    ``environment`` identifies where this runs, ``environment_record`` tells all that is known of it.
    """

    dataset: str
    selected_by: str
    smaller_is_better: bool
    parts: tuple[DataSet, ...]
    methods: tuple[Method, ...]
    environment: Mapping[str, str]
    files: tuple[Path, ...]
    environment_record: Mapping[str, Any] = field(default_factory=dict)


def dataset_name(block: Mapping[str, Any]) -> str:
    """Return the name of the data set that the block ``dataset`` of params.yaml describes.

    A published one has its own. A folder's is followed by a digest of its classes: every project may call its folder
    `images`, and the name must stay when images are added. Raises ArtifactError if a folder is not split yet.
    """
    if block["source"] != "folder":
        return block["source"]
    classes = artifacts.read_part("train").classes
    return f"{Path(block['path']).name}-{provenance.digest(classes)[:8]}"


def experiment_name(dataset: str) -> str:
    """Return the MLflow experiment of a data set: only runs on the same images are worth one table.

    ``MLFLOW_EXPERIMENT_NAME`` names another, for two projects or two clones that would otherwise share one.
    """
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or f"bakeoff-{dataset}"


def method_name(network: str, method: str) -> str:
    """Return a method's name in the list of runs, which cuts names short: what tells runs apart comes first."""
    return f"{method} · {network}"


def method_tags(*, network: str, method: str, stage: str, dataset: str) -> dict[str, str]:
    """Return the tags that a run has from its first moment to its last."""
    return {"level": "method", "method": method, "stage": stage, "dataset": dataset, **network_tags(network, stage)}


def network_tags(network: str, stage: str) -> dict[str, str]:
    """Return the network's name; it is a backbone, too, unless it was trained from random weights."""
    return {"network": network} | ({} if stage == "scratch" else {"backbone": network})


def environment_tags(environment: Mapping[str, str], digest: str, *, witnessed: bool) -> dict[str, str]:
    """Return what is known about where a result was computed.

    ``witnessed``: the stage itself logged it. Otherwise it is only where the record was first seen: a result that DVC
    fetched may come from another machine.
    """
    known = {f"environment.{name}": version for name, version in environment.items()}
    return {"environment": digest, "environment_witnessed": text(witnessed), **known}


def origin_tags(stage: str) -> dict[str, str]:
    """Return who and which commit, as the columns of the UI expect it; what cannot be found out is left out."""
    tags = {
        "mlflow.source.name": f"pipeline/stages/{stage}.py",
        "mlflow.source.type": "LOCAL",
        "host": socket.gethostname(),
    }
    with contextlib.suppress(KeyError, OSError):  # A user id without a name, as in some containers.
        tags["mlflow.user"] = getpass.getuser()
    if experiment := os.environ.get("DVC_EXP_NAME"):
        tags["dvc_experiment"] = experiment
    commit = _git("rev-parse", "HEAD")
    if commit is not None:
        # Of what decides a result. Outputs always differ from the commit while a pipeline runs.
        changed = _git(
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            "pipeline",
            "params.yaml",
            "dvc.yaml",
            "requirements.lock",
        )
        tags |= {"git_commit": commit, "mlflow.source.git.commit": commit, "git_dirty": text(bool(changed))}
    return tags


def lasting_tags(method: Method, comparison: Comparison) -> dict[str, str]:
    """Return the tags of a method's run that follow from the comparison, so that a later one may change them."""
    ablation = {"ablation": method.record.ablation} if method.record.ablation else {}
    parts = {f"dataset.{part.part}.sha256": part.sha256 for part in comparison.parts}
    return {"champion": text(method.champion), **ablation, **parts}


def summary(method: Method, candidate: int) -> dict[str, float]:
    """Return the metrics that every method's candidates have, and what fitting noted as numbers."""
    notes = method.record.candidates[candidate].notes
    numbers = {name: float(value) for name, value in notes.items() if isinstance(value, int | float)}
    scores = {f"validation_{name}": value for name, value in method.validation[candidate].items()}
    return finite(numbers | scores)


def method_summary(method: Method) -> dict[str, float]:
    """Return the metrics of a method's own run: its selected candidate's, its cost, and the test results.

    Over several trainings ``<part>_<metric>_mean`` and ``_sd`` as well, and after calibration
    ``calibrated_<part>_<metric>``.
    """
    test = {}
    for name, interval in method.test.items():
        test |= {f"test_{name}": interval.value, f"test_{name}_low": interval.low, f"test_{name}_high": interval.high}
    for part, spreads in method.spread.items():
        for name, (mean, deviation) in spreads.items():
            test |= {f"{part}_{name}_mean": mean, f"{part}_{name}_sd": deviation}
    for part, values in method.calibrated.items():
        test |= {f"calibrated_{part}_{name}": value for name, value in values.items()}
    cost = {name: float(count) for name, count in method.record.cost.model_dump().items()}
    if method.repeats > 1:
        cost["repeats"] = float(method.repeats)
    return summary(method, method.record.selected) | cost | finite(test)


def method_series(method: Method) -> dict[str, list[float]]:
    """Return how the selected candidate was fitted, step by step, and each further training of it."""
    record = method.record
    found = dict(record.candidates[record.selected].history)
    for number, repeat in enumerate(record.repeats, start=2):
        found |= {artifacts.of_repeat(number, name): values for name, values in repeat.history.items()}
    return found


def parameters(method: Method, candidate: int | None = None) -> dict[str, str]:
    """Return a candidate's parameters, or for the method the block's together with the selected candidate's."""
    if candidate is not None:
        return flatten(method.record.candidates[candidate].parameters)
    chosen = method.record.candidates[method.record.selected]
    return flatten(method.record.parameters) | flatten(chosen.parameters) | {"candidate": chosen.name}


def description(method: Method, selected_by: str) -> str:
    """Return one paragraph of Markdown for the page of a method's run: the metric that chose, and the usual two."""
    shown = tuple(dict.fromkeys([selected_by, "accuracy", "roc_auc"]))
    record = method.record
    chosen = record.candidates[record.selected]
    of_many = f", the best of {len(record.candidates)} candidates on validation" if len(record.candidates) > 1 else ""
    scores = method.validation[method.record.selected]
    results = [f"validation {name.replace('_', ' ')} {scores[name]:.3f}" for name in shown if name in scores]
    results += [f"test {name.replace('_', ' ')} {score}" for name in shown if (score := method.test.get(name))]
    results += [
        f"over {method.repeats} trainings {part} {name.replace('_', ' ')} {mean:.3f} ± {deviation:.3f}"
        for part, spreads in method.spread.items()
        for name, (mean, deviation) in spreads.items()
        if name == selected_by
    ]
    title = "**Champion.** " if method.champion else ""
    name = artifacts.marked(f"`{record.method}` on `{record.network}`", record.ablation)
    return f"{title}{name}: {chosen.name}{of_many}; {', '.join(results)}."


def series_name(name: str) -> str:
    """Return the metric under which a series is kept: one that sums up a run must not get steps."""
    return f"live_{name}" if is_summary(name) else name


def is_summary(name: str) -> bool:
    """Return whether a metric, by its name, sums up a run."""
    return name.startswith(_SUMMARIES)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested parameters as text under dotted names; lists and nulls as JSON."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that are numbers: ROC-AUC of a single class, for one, is none."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def text(flag: bool) -> str:
    return "true" if flag else "false"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
