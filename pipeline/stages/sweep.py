"""Fit every candidate of one classifier family on one network's features; validation selects."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pipeline import artifacts, metrics, provenance, seeds, watchdog
from pipeline.classifiers import family, proposals, search
from pipeline.params import Params
from pipeline.progress import Log, say

READS = ("seed", "compute.threads", "selection", "classifiers.{classifier}")
INPUTS = ("data/split/manifest.csv", "data/features/{backbone}")
OUTPUTS = ("results/runs/{backbone}-{classifier}",)

# Finished candidates of a sweep that was killed. Models always come from here, so a resumed sweep ends in the bytes of
# an undisturbed one.
CACHE = Path(".cache/sweeps")

TOO_SLOW = (
    "Finished candidates are kept, and the next `dvc repro` goes on from them. Make the candidate cheaper (params.yaml: "
    f"classifiers.{{classifier}}) or allow more than {{timeout:g}} s ({watchdog.CANDIDATE_TIMEOUT} in the environment)."
)


@dataclass(frozen=True)
class Data:
    """One network's features, float32 (n_images, width), of every part, and the labels that a sweep may see."""

    classes: tuple[str, ...]
    train: family.Examples
    validation: family.Examples
    test: np.ndarray


def main(params: Params, *, backbone: str, classifier: str, log: Log) -> None:
    module = family.find(classifier)
    features = artifacts.FEATURES / backbone
    inputs = _digests(features)
    key = [_fitted(params, classifier), inputs, provenance.code_digest([__name__, module.__name__]), provenance.environment()]
    cache = CACHE / f"{backbone}-{classifier}" / provenance.digest(key)
    data = _read(features)
    candidates, validation, selected = _search(params, module, data, cache=cache, log=log)

    model_files = _model(cache, selected)
    model = module.load(model_files)
    predictions = artifacts.Predictions(validation, test=model.predict_proba(data.test))
    with artifacts.whole_directory(artifacts.RUNS / f"{backbone}-{classifier}") as directory:
        shutil.copytree(model_files, directory, dirs_exist_ok=True)
        record = artifacts.Record(
            stage="sweep",
            network=backbone,
            method=classifier,
            classes=list(data.classes),
            parameters=params.declared(),
            inputs=inputs,
            candidates=candidates,
            selected=selected,
            cost=_cost(model, model_files, artifacts.read_json(features / "meta.json")["cost"]),
        )
        artifacts.write_record(directory / "record.json", record)
        artifacts.write_predictions(directory / "predictions.npz", predictions)
        # How images became features, for whoever predicts with this run later.
        shutil.copyfile(features / "meta.json", directory / "features.json")
    _discard(cache.parent)


def _fitted(params: Params, classifier: str) -> dict[str, Any]:
    """Return the declared values that decide what is fitted: `selection` does if a search learns from its scores."""
    learns = params.value(f"classifiers.{classifier}.search") == "tpe"
    return {name: value for name, value in params.declared().items() if learns or name != "selection"}


def _discard(directory: Path) -> None:
    """Remove a directory by way of another name, so that what a kill leaves of it is not taken for kept candidates."""
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as doomed:
        os.replace(directory, Path(doomed) / directory.name)


def _digests(features: Path) -> dict[str, str]:
    files = [artifacts.MANIFEST, features / "meta.json", *(features / f"{name}.npy" for name in artifacts.PARTS)]
    return {path.as_posix(): artifacts.sha256_path(path) for path in files}


def _read(features: Path) -> Data:
    parts = {name: artifacts.read_part(name) for name in artifacts.PARTS}
    arrays = {name: np.asarray(artifacts.read_features(features, part)) for name, part in parts.items()}
    return Data(
        classes=parts["train"].classes,
        train=(arrays["train"], parts["train"].labels),
        validation=(arrays["validation"], parts["validation"].labels),
        test=arrays["test"],
    )


def _search(
    params: Params, module: ModuleType, data: Data, *, cache: Path, log: Log
) -> tuple[list[artifacts.Candidate], np.ndarray, int]:
    """Return the candidates, their validation probabilities, float32 (candidates, n, classes), and the selected one."""
    classifier = module.__name__.rpartition(".")[2]
    block = params.block(f"classifiers.{classifier}", module.Params)
    selection = params.block("selection", metrics.SelectionParams)
    positive = metrics.positive_index(data.classes, selection)
    seed = seeds.child_seed(params.value("seed"), "classifiers", classifier)
    timeout = watchdog.candidate_timeout()
    proposed = proposals.Proposals(
        block, seed=seed, lower_is_better=selection.metric in metrics.LOWER_IS_BETTER
    )
    task = family.Task(
        data.train, data.validation, n_classes=len(data.classes), seed=seed, threads=params.value("compute.threads")
    )
    fitter = module.Fitter(task, block)
    labels = data.validation[1]
    candidates, validation, scores = [], [], []
    points: list[dict[str, Any]] = []
    for index in range(len(proposed)):
        point = proposed.after(scores)
        points.append(point.parameters)
        label = f"candidate {index + 1}/{len(proposed)}, {point.name}"
        started = time.monotonic()
        advice = TOO_SLOW.format(classifier=classifier, timeout=timeout)
        with watchdog.watched(f"{classifier}: {label}", timeout=timeout, advice=advice):
            if not (cache / str(index)).is_dir():
                # Always from the cache, so that an undisturbed sweep and a resumed one begin at the same numbers.
                start = fitter.start(points, index)
                begin = None if start is None else module.load(_model(cache, start))
                _keep(cache / str(index), point, fitter.fit(point.parameters, begin))
            candidate, probabilities = _kept(cache / str(index))
        score = metrics.score(selection.metric, probabilities, labels, positive=positive)
        log.step(index, {f"validation_{selection.metric}": score})
        state = "" if candidate.converged else ", not converged"
        say(f"{label}: validation {selection.metric} {score:.4f}{state}, {time.monotonic() - started:.1f} s")
        candidates.append(candidate)
        validation.append(probabilities)
        scores.append(score)
    selected = metrics.select(np.stack(validation), labels, metric=selection.metric, positive=positive)
    say(f"selected {candidates[selected].name}")
    return candidates, np.stack(validation), selected


def _keep(directory: Path, point: search.Candidate, fit: family.Fit) -> None:
    candidate = artifacts.Candidate(
        name=point.name,
        parameters=point.parameters,
        converged=fit.converged,
        notes=fit.notes,
        history=fit.history,
    )
    with artifacts.whole_directory(directory) as temporary:
        artifacts.write_json(temporary / "candidate.json", candidate.model_dump())
        np.save(temporary / "validation.npy", fit.validation)
        (temporary / "model").mkdir()
        fit.model.save(temporary / "model")


def _kept(directory: Path) -> tuple[artifacts.Candidate, np.ndarray]:
    candidate = artifacts.Candidate.model_validate(artifacts.read_json(directory / "candidate.json"))
    return candidate, np.load(directory / "validation.npy")


def _model(cache: Path, number: int) -> Path:
    return cache / str(number) / "model"


def _cost(model: family.Model, files: Path, network: Mapping[str, int]) -> artifacts.Cost:
    """Return the cost of the network up to its features plus that of the classifier, whose files lie in ``files``."""
    parameters, multiply_adds = model.cost()
    return artifacts.Cost(
        trainable_parameters=parameters,
        total_parameters=network["parameters"] + parameters,
        model_bytes=network["bytes"] + sum(file.stat().st_size for file in files.iterdir()),
        multiply_adds=network["multiply_adds"] + multiply_adds,
    )
