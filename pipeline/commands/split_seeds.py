"""Repeat sweeps over several split seeds on cached features: how much does a result owe to the draw of the split?

For every seed the catalog is divided anew by the protocol of params.yaml, every candidate is fitted on the new train
part, validation selects, and the new test part scores the selected one. This is a study beside the pipeline: it writes
nothing that a stage reads, and nothing may be chosen by it.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pipeline import artifacts, datasets, inference, metrics, params, schema, seeds, splits
from pipeline.classifiers import family, proposals, search
from pipeline.errors import BakeoffError
from pipeline.progress import progress, say

DEFAULT_FAMILIES = ("logistic_regression", "rbf_svm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="default: 0 1 2 3 4")
    parser.add_argument("--backbone", help="whose features; without it, the first of params.yaml")
    parser.add_argument("--classifiers", nargs="+", default=list(DEFAULT_FAMILIES), metavar="FAMILY",
                        help=f"default: {' '.join(DEFAULT_FAMILIES)}")  # fmt: skip
    parser.add_argument("--output", type=Path, help="also write the results to this JSON file")


def main(arguments: argparse.Namespace) -> int:
    values = params.load()
    schema.check(values)
    given = params.Params(values, values)
    backbone = arguments.backbone or values["backbones"][0]
    for name in arguments.classifiers:
        if name not in values["classifiers"]:
            raise BakeoffError(f"--classifiers: {name!r} is not under classifiers in params.yaml")
    images, features = _pool(artifacts.FEATURES / backbone)
    split, source = given.block("split", splits.SplitParams), given.block("dataset", datasets.DatasetParams).source
    together = splits.clusters(images)[0] if split.groups_near_duplicates(source) else set()
    say(f"{len(images)} images, features of {backbone}, split seeds {', '.join(map(str, arguments.seeds))}")
    results = []
    for seed in arguments.seeds:
        parts = splits.assign(images, params=split, seed=seed, together=together)
        for name in arguments.classifiers:
            result = _one(given, name, images, features, np.array(parts), seed=seed)
            results.append(result)
            say(f"seed {seed}, {name}: validation {result['validation_accuracy']:.4f}, "
                f"test {result['test_accuracy']:.4f} ({result['selected']})")  # fmt: skip
    for name in arguments.classifiers:
        _summarize(name, [result["test_accuracy"] for result in results if result["method"] == name])
    _summarize("all of them", [result["test_accuracy"] for result in results])
    if arguments.output:
        artifacts.write_json(arguments.output, results)
    return 0


def _pool(directory: Path) -> tuple[list[datasets.SourceImage], np.ndarray]:
    """Return the images of the catalog and their features, float32 (n, width), in the catalog's order."""
    images = datasets.read_catalog()
    by_digest = {}
    for name in artifacts.PARTS:
        part = artifacts.read_part(name)
        by_digest.update(zip(part.sha256, artifacts.read_features(directory, part), strict=True))
    try:
        return images, np.stack([by_digest[image.sha256] for image in images])
    except KeyError as error:
        raise artifacts.ArtifactError(f"{directory} has no features of the image {error}: run `dvc repro`") from None


def _one(
    given: params.Params,
    name: str,
    images: Sequence[datasets.SourceImage],
    features: np.ndarray,
    parts: np.ndarray,
    *,
    seed: int,
) -> dict[str, Any]:
    """Sweep one family on one split; return what validation selected and what it reaches."""
    module = family.find(name)
    classes = sorted({image.label for image in images})
    labels = np.array([classes.index(image.label) for image in images])
    data = {part: (features[parts == part], labels[parts == part]) for part in artifacts.PARTS}
    selection = given.block("selection", metrics.SelectionParams)
    positive = metrics.positive_index(classes, selection)

    def score(probabilities: np.ndarray) -> float:
        return metrics.score(selection.metric, probabilities, data["validation"][1], positive=positive)

    lower = selection.metric in metrics.LOWER_IS_BETTER
    points, fits = _fit_all(given, module, name, data, len(classes), score, seed=seed, lower_is_better=lower)
    validation = np.stack([fit.validation for fit in fits])
    best = metrics.select(validation, data["validation"][1], metric=selection.metric, positive=positive)
    test = fits[best].model.predict_proba(data["test"][0])
    return {
        "seed": seed,
        "method": name,
        "selected": points[best].name,
        "validation_accuracy": metrics.score("accuracy", validation[best], data["validation"][1], positive=positive),
        "test_accuracy": metrics.score("accuracy", test, data["test"][1], positive=positive),
    }


def _fit_all(
    given: params.Params,
    module: ModuleType,
    name: str,
    data: dict,
    n_classes: int,
    score: Callable[[np.ndarray], float],
    *,
    seed: int,
    lower_is_better: bool,
) -> tuple[list[search.Candidate], list[family.Fit]]:
    block = given.block(f"classifiers.{name}", module.Params)
    fit_seed = seeds.child_seed(seed, "classifiers", name)
    proposed = proposals.Proposals(block, seed=fit_seed, lower_is_better=lower_is_better)
    threads = given.block("compute", inference.ComputeParams).threads
    task = family.Task(data["train"], data["validation"], n_classes=n_classes, seed=fit_seed, threads=threads)
    scores: list[float] = []
    fits = []
    one_by_one = family.fit_all(module.Fitter(task, block), proposed.points(scores))
    for fit in progress(one_by_one, total=len(proposed), label=f"seed {seed}, {name}", unit="candidates"):
        scores.append(score(fit.validation))
        fits.append(fit)
    return [proposed.after(scores[:index]) for index in range(len(fits))], fits


def _summarize(name: str, accuracies: Sequence[float]) -> None:
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    say(f"{name}: test accuracy {statistics.mean(accuracies):.4f} +- {spread:.4f} (sd over {len(accuracies)} runs)")
