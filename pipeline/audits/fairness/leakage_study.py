"""The leakage section: each kind of split, what the families reach on it, and the gaps, as JSON."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.audits.fairness import leakage
from pipeline.audits.fairness.study import Study
from pipeline.classifiers import repeated_splits
from pipeline.classifiers.search import search_space
from pipeline.core import artifacts, seeds
from pipeline.data import splits
from pipeline.evaluation import leaderboard


@dataclass(frozen=True)
class Tested:
    """``divided``: for every split seed {kind: parts}. ``hits``: {(family, kind): for every split bool (n_test,)}."""

    divided: list[dict[str, np.ndarray]]
    hits: dict[tuple[str, str], list[np.ndarray]]

    def accuracies(self, family: str, kind: str) -> np.ndarray:
        return np.array([float(hits.mean()) for hits in self.hits[family, kind]])

    def table(self, family: str, kind: str) -> np.ndarray:
        """Return for every split whether each image of the pool was classified right, see `leakage.table`."""
        parts = [divided[kind] for divided in self.divided]
        return leakage.table(self.hits[family, kind], [np.flatnonzero(each == "test") for each in parts], len(parts[0]))

    @property
    def test_share(self) -> float:
        """The share of the images that are in test, a mean over splits."""
        parts = [divided[leakage.RANDOM] for divided in self.divided]
        return float(np.mean([(each == "test").sum() / (each != "").sum() for each in parts]))


def section(study: Study) -> dict[str, Any]:
    """Return what each kind of split reaches, and the gaps between a random split and the others.

    Without a kind besides the random one there is nothing to compare, and nothing is fitted.
    """
    groups = leakage.groups_of(study.pool.images, study.dataset)
    kinds = _available(study, leakage.variants(study.pool.images, groups))
    usable = {kind: images for kind, images in kinds.items() if not isinstance(images, str)}
    divided = [leakage.divide(usable, params=study.split, seed=seed) for seed in study.split_seeds]
    found: dict[str, Any] = {
        "backbone": study.backbone,
        "confidence": study.compare.confidence,
        "split_seeds": list(study.split_seeds),
        "own": _own(study),
        "counterparts": _counterparts(study, groups),
        "kinds": {
            kind: {
                "unavailable": images if isinstance(images, str) else None,
                "sizes": _sizes([each[kind] for each in divided]) if kind in usable else None,
            }
            for kind, images in kinds.items()
        },
        "families": {},
    }
    if len(usable) > 1:
        tested = Tested(divided, _hits(study, divided))
        clusters = [image.near_duplicates for image in study.pool.images] if isinstance(groups, str) else groups
        found["families"] = {name: _of_family(study, name, tested, clusters) for name in study.families}
    return found


def _available(study: Study, variants: Mapping[str, leakage.Images | str]) -> dict[str, leakage.Images | str]:
    """Return the kinds of split, with the reason in place of the images of one that some seed cannot divide."""
    kinds = dict(variants)
    for kind, images in variants.items():
        if kind == leakage.RANDOM or isinstance(images, str):
            continue
        try:
            for seed in study.split_seeds:
                leakage.divide({kind: images}, params=study.split, seed=seed)
        except splits.SplitError as error:
            kinds[kind] = str(error)
    return kinds


def _hits(study: Study, divided: Sequence[Mapping[str, np.ndarray]]) -> dict[tuple[str, str], list[np.ndarray]]:
    """Return whether the candidate that validation selects is right about each test image of its split."""
    candidates = study.candidates()
    places = [(name, kind) for kinds in divided for kind in kinds for name in study.families]
    jobs = [(name, parts, candidates[name]) for kinds in divided for parts in kinds.values() for name in study.families]
    found: dict[tuple[str, str], list[np.ndarray]] = {place: [] for place in places}
    for place, hits in zip(places, study.each(_hits_of_selected, jobs, label="leakage"), strict=True):
        found[place].append(hits)
    return found


def _hits_of_selected(study: Study, job: tuple[str, np.ndarray, Sequence[search_space.Candidate]]) -> np.ndarray:
    name, parts, candidates = job
    sweep = study.sweep(name, parts, candidates, seed=study.seed)
    return repeated_splits.hits(sweep, sweep.selected, study.pool, parts)


def _of_family(study: Study, name: str, tested: Tested, clusters: Sequence[str]) -> dict[str, Any]:
    kinds = list(tested.divided[0])
    others = [kind for kind in kinds if kind != leakage.RANDOM]
    return {
        "kinds": {kind: _reached(tested.accuracies(name, kind)) for kind in kinds},
        "gaps": {kind: _gap(study, name, kind, tested, clusters) for kind in others},
    }


def _reached(accuracies: np.ndarray) -> dict[str, Any]:
    deviation = float(accuracies.std(ddof=1)) if len(accuracies) > 1 else math.nan
    return {
        "accuracy": leaderboard.number(float(accuracies.mean())),
        "sd": leaderboard.number(deviation),
        "by_split": [leaderboard.number(float(value)) for value in accuracies],
    }


def _gap(study: Study, name: str, kind: str, tested: Tested, clusters: Sequence[str]) -> dict[str, Any]:
    """Return by how much a random split flatters a family, over splits and over the images themselves."""
    over_splits = leakage.gap_over_splits(
        tested.accuracies(name, leakage.RANDOM),
        tested.accuracies(name, kind),
        test_share=tested.test_share,
        confidence=study.compare.confidence,
    )
    over_images = leakage.gap_over_images(
        tested.table(name, leakage.RANDOM),
        tested.table(name, kind),
        clusters,
        samples=study.compare.bootstrap_samples,
        generator=seeds.generator(study.seed, "fairness", "leakage", name, kind),
        confidence=study.compare.confidence,
    )
    return {"over_splits": leaderboard.numbers(over_splits), "over_images": leaderboard.numbers(over_images)}


def _sizes(divided: Sequence[np.ndarray]) -> dict[str, list[int]]:
    """Return the fewest and the most images of each part over the splits."""
    counts = {name: [int((each == name).sum()) for each in divided] for name in artifacts.PARTS}
    return {name: [min(found), max(found)] for name, found in counts.items()}


def _own(study: Study) -> str:
    """Return the kind of split that the pipeline itself makes under these parameters."""
    if any(image.group for image in study.pool.images):
        return leakage.GROUPS
    return leakage.NEAR_DUPLICATES if study.groups_near_duplicates else leakage.RANDOM


def _counterparts(study: Study, groups: list[str] | str) -> dict[str, Any]:
    """Return how many images of the pipeline's own test part have a counterpart in its training part, by kind."""
    images = study.pool.images
    near = {image.sha256: image.near_duplicates for image in images}
    named = [] if isinstance(groups, str) else zip(images, groups, strict=True)
    group = {image.sha256: name for image, name in named}
    keys: dict[str, dict[str, list[str]]] = {}
    for name in ("train", "test"):
        part = artifacts.read_part(name)
        features = artifacts.read_features(artifacts.FEATURES / study.backbone, part)
        keys[name] = {
            "bytes": list(part.sha256),
            "features": [hashlib.sha256(row.tobytes()).hexdigest() for row in features],
            "near_duplicates": [near.get(digest, "") for digest in part.sha256],
            "groups": [group.get(digest, "") for digest in part.sha256],
        }
    shared = {kind: leakage.counterparts(keys["test"][kind], keys["train"][kind]) for kind in keys["test"]}
    return {"test_images": len(keys["test"]["bytes"]), "shared": shared | ({} if group else {"groups": None})}
