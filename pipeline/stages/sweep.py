"""Fit every candidate of one classifier family on one network's features; validation selects."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pipeline.classifiers.search import family, proposals, search_space, watchdog
from pipeline.console.errors import reading
from pipeline.console.progress import Log, say
from pipeline.core import artifacts, provenance, seeds
from pipeline.core.params import Params
from pipeline.evaluation import metrics

READS = ("seed", "repeats", "compute.threads", "selection", "classifiers.{classifier}")
INPUTS = ("data/split/manifest.csv", "data/features/{backbone}")
OUTPUTS = ("results/runs/{backbone}-{classifier}",)

# Finished candidates and repeats of a sweep that was killed. Models always come from here, so a resumed sweep ends in
# the bytes of an undisturbed one.
CACHE = Path(".cache/sweeps")
# What chooses or says how often, but fits nothing.
FITS_NOTHING = {"selection", "repeats"}

TOO_SLOW = (
    "Finished candidates are kept, and the next `dvc repro` goes on from them. Make the candidate cheaper "
    "(params.yaml: classifiers.{classifier}) or allow more than {timeout:g} s "
    f"({watchdog.CANDIDATE_TIMEOUT} in the environment)."
)


@dataclass(frozen=True)
class Data:
    """One network's features, float32 (n_images, width), of every part, and the labels that a sweep may see.

    ``groups``: of the training images, as in the manifest.
    """

    classes: tuple[str, ...]
    train: family.Examples
    validation: family.Examples
    test: np.ndarray
    groups: tuple[str, ...]


def main(params: Params, *, backbone: str, classifier: str, log: Log) -> None:
    module = family.find(classifier)
    features = artifacts.FEATURES / backbone
    inputs = _digests(features)
    meta = artifacts.read_json(features / "meta.json")
    if meta.get("ablation"):
        say(f"ablation: the features are those of {backbone} {meta['ablation']}")
    code = provenance.code_digest([__name__, module.__name__])
    key = [_fitted(params, classifier), inputs, code, provenance.environment()]
    cache = CACHE / f"{backbone}-{classifier}" / provenance.digest(key)
    data = _read(features)
    candidates, validation, selected = _search(params, module, data, cache=cache, log=log)

    model_files = _model(cache, selected)
    model = module.load(model_files)
    test = model.predict_proba(data.test)
    # Apart for each candidate, because another selection metric may choose another one from the same cache.
    of_selected = cache / "repeats" / str(selected)
    first = validation[selected], test
    repeats, draws = _repeats(params, module, data, candidates[selected], first, cache=of_selected)
    again = [np.stack(arrays) for arrays in zip(*(repeat.predictions for repeat in repeats), strict=True)]
    predictions = artifacts.Predictions(validation, test, *again)
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
            cost=_cost(model, model_files, meta["cost"]),
            repeats=[repeat.about for repeat in repeats],
            draws=draws,
            ablation=meta.get("ablation"),
        )
        artifacts.write_record(directory / "record.json", record)
        artifacts.write_predictions(directory / "predictions.npz", predictions)
        # How images became features, for whoever predicts with this run later.
        shutil.copyfile(features / "meta.json", directory / "features.json")
    artifacts.discard_directory(cache.parent)


@dataclass(frozen=True)
class Repeat:
    """The selected candidate trained once more; ``predictions``: float32 (n, classes) of validation and of test."""

    about: artifacts.Repeat
    predictions: tuple[np.ndarray, np.ndarray]


def _repeats(
    params: Params,
    module: ModuleType,
    data: Data,
    chosen: artifacts.Candidate,
    first: tuple[np.ndarray, np.ndarray],
    *,
    cache: Path,
) -> tuple[list[Repeat], bool]:
    """Return the selected candidate trained with every further seed, and whether its training draws anything.

    If it does not, each repeat is the ``first`` training again, and nothing is fitted.
    """
    classifier = module.__name__.rpartition(".")[2]
    count = params.value("repeats")
    draws = module.Fitter.draws
    found: list[Repeat] = []
    if not draws and count > 1:
        say(f"repeats: this family draws nothing, so all {count} trainings are the first one")
    for number in range(2, count + 1):
        seed = seeds.repeat_seed(params.value("seed"), number)
        if not draws:
            found.append(Repeat(artifacts.Repeat(seed=seed, converged=chosen.converged), first))
            continue
        label = f"repeat {number}/{count} of {chosen.name}, seed {seed}"
        kept = cache / str(number)
        with _watched(label, classifier):
            if not kept.is_dir():
                _keep_repeat(kept, seed, _fitter(params, module, data, repeat=number).fit(chosen.parameters), data)
        found.append(_kept_repeat(kept))
        say(f"{label}: done")
    return found, draws


def _fitter(params: Params, module: ModuleType, data: Data, *, repeat: int) -> family.Fitter:
    """Return the fitter of one repeat: as in the search, but for the seed."""
    classifier = module.__name__.rpartition(".")[2]
    seed = seeds.child_seed(seeds.repeat_seed(params.value("seed"), repeat), "classifiers", classifier)
    task = family.Task(
        data.train,
        data.validation,
        n_classes=len(data.classes),
        seed=seed,
        threads=params.value("compute.threads"),
        groups=data.groups,
    )
    return module.Fitter(task, params.block(f"classifiers.{classifier}", module.Params))


def _keep_repeat(directory: Path, seed: int, fit: family.Fit, data: Data) -> None:
    about = artifacts.Repeat(seed=seed, converged=fit.converged, notes=fit.notes, history=fit.history)
    with artifacts.whole_directory(directory) as temporary:
        artifacts.write_json(temporary / "repeat.json", about.model_dump())
        np.save(temporary / "validation.npy", fit.validation)
        np.save(temporary / "test.npy", fit.model.predict_proba(data.test))


def _kept_repeat(directory: Path) -> Repeat:
    with reading(directory):
        about = artifacts.Repeat.model_validate(artifacts.read_json(directory / "repeat.json"))
        return Repeat(about, (np.load(directory / "validation.npy"), np.load(directory / "test.npy")))


def _fitted(params: Params, classifier: str) -> dict[str, Any]:
    """Return the declared values that decide what is fitted: `selection` does if a search learns from its scores."""
    learns = params.value(f"classifiers.{classifier}.search") == "tpe"
    idle = FITS_NOTHING if not learns else FITS_NOTHING - {"selection"}
    return {name: value for name, value in params.declared().items() if name not in idle}


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
        groups=parts["train"].groups,
    )


def _search(
    params: Params, module: ModuleType, data: Data, *, cache: Path, log: Log
) -> tuple[list[artifacts.Candidate], np.ndarray, int]:
    """Return the candidates, their validation probabilities, float32 (candidates, n, classes), and the selected one."""
    classifier = module.__name__.rpartition(".")[2]
    block = params.block(f"classifiers.{classifier}", module.Params)
    selection = params.block("selection", metrics.SelectionParams)
    positive = metrics.positive_index(data.classes, selection)
    fitter = _fitter(params, module, data, repeat=1)
    proposed = proposals.Proposals(
        block, seed=fitter.task.seed, lower_is_better=selection.metric in metrics.LOWER_IS_BETTER
    )
    labels = data.validation[1]
    candidates, validation, scores = [], [], []
    points: list[dict[str, Any]] = []
    for index in range(len(proposed)):
        point = fitter.named(proposed.after(scores))
        points.append(point.parameters)
        label = f"candidate {index + 1}/{len(proposed)}, {point.name}"
        started = time.monotonic()
        with _watched(label, classifier):
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


def _watched(label: str, classifier: str) -> AbstractContextManager[None]:
    timeout = watchdog.candidate_timeout()
    advice = TOO_SLOW.format(classifier=classifier, timeout=timeout)
    return watchdog.watched(f"{classifier}: {label}", timeout=timeout, advice=advice)


def _keep(directory: Path, point: search_space.Candidate, fit: family.Fit) -> None:
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
    with reading(directory):
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
