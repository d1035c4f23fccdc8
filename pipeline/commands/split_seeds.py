"""Repeat sweeps over several split seeds on cached features: how much does a result owe to the draw of the split?

For every seed the catalog is divided anew by the protocol of params.yaml, every candidate is fitted on the new train
part, validation selects, and the new test part scores the selected one. This is a study beside the pipeline: it writes
nothing that a stage reads, and nothing may be chosen by it.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.classifiers import repeated_splits
from pipeline.config import schema
from pipeline.console.errors import BakeoffError
from pipeline.console.progress import say
from pipeline.core import artifacts, params
from pipeline.data import sources, splits
from pipeline.evaluation import metrics

DEFAULT_FAMILIES = ("logistic_regression", "rbf_svm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="default: 0 1 2 3 4")
    parser.add_argument("--backbone", help="whose features; without it, the first of params.yaml")
    parser.add_argument(
        "--classifiers",
        nargs="+",
        default=list(DEFAULT_FAMILIES),
        metavar="FAMILY",
        help=f"default: {' '.join(DEFAULT_FAMILIES)}",
    )
    parser.add_argument("--output", type=Path, help="also write the results to this JSON file")


def main(arguments: argparse.Namespace) -> int:
    values = params.load()
    schema.check(values)
    given = params.Params(values, values)
    backbone = arguments.backbone or values["backbones"][0]
    for name in arguments.classifiers:
        if name not in values["classifiers"]:
            raise BakeoffError(f"--classifiers: {name!r} is not under classifiers in params.yaml")
    pool = repeated_splits.read_pool(artifacts.FEATURES / backbone)
    split, source = given.block("split", splits.SplitParams), given.block("dataset", sources.DatasetParams).source
    together = splits.clusters(pool.images)[0] if split.groups_near_duplicates(source) else set()
    say(f"{len(pool)} images, features of {backbone}, split seeds {', '.join(map(str, arguments.seeds))}")
    results = []
    for seed in arguments.seeds:
        try:
            parts = np.array(splits.assign(pool.images, params=split, seed=seed, together=together))
        except splits.SplitError as error:
            say(f"seed {seed}: undefined. {error}")
            results += [_undefined(name, seed=seed) for name in arguments.classifiers]
            continue
        for name in arguments.classifiers:
            result = _one(given, name, pool, parts, seed=seed)
            results.append(result)
            if result["selected"] is None:
                say(f"seed {seed}, {name}: undefined. Validation has images of one class only, and cannot select")
                continue
            say(
                f"seed {seed}, {name}: validation {result['validation_accuracy']:.4f}, "
                f"test {result['test_accuracy']:.4f} ({result['selected']})"
            )
    defined = [result for result in results if result["selected"] is not None]
    for name in arguments.classifiers:
        _summarize(name, [result["test_accuracy"] for result in defined if result["method"] == name])
    _summarize("all of them", [result["test_accuracy"] for result in defined])
    if arguments.output:
        artifacts.write_json(arguments.output, results)
    return 0


def _one(
    given: params.Params, name: str, pool: repeated_splits.Pool, parts: np.ndarray, *, seed: int
) -> dict[str, Any]:
    """Sweep one family on one split; return what validation selected and what it reaches, None if it could not."""
    found = repeated_splits.sweep(given, name, pool, parts, seed=seed, label=f"seed {seed}, {name}")
    if found.selected is None:
        return _undefined(name, seed=seed)
    positive = metrics.positive_index(pool.classes, given.block("selection", metrics.SelectionParams))
    labels = pool.labels[parts == "validation"]
    return {
        "seed": seed,
        "method": name,
        "selected": found.candidates[found.selected].name,
        "validation_accuracy": metrics.score("accuracy", found.validation[found.selected], labels, positive=positive),
        "test_accuracy": float(repeated_splits.hits(found, found.selected, pool, parts).mean()),
    }


def _undefined(name: str, *, seed: int) -> dict[str, Any]:
    return {"seed": seed, "method": name, "selected": None, "validation_accuracy": None, "test_accuracy": None}


def _summarize(name: str, accuracies: Sequence[float]) -> None:
    if not accuracies:
        say(f"{name}: test accuracy undefined")
        return
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    say(f"{name}: test accuracy {statistics.mean(accuracies):.4f} +- {spread:.4f} (sd over {len(accuracies)} runs)")
