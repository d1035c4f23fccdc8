"""What images in training that belong to a test image are worth: one protocol, images divided in three ways. Pure.

- ``random``: every image by itself (byte-identical ones together, as always);
- ``near_duplicates``: images that look the same stay together;
- ``groups``: photographs of one thing stay together; for ELPV its modules, inferred from the order of the files.

All three have the same sizes: where groups do not fit a part exactly, the others give up as many images there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.core import artifacts, seeds
from pipeline.data import sources, splits
from pipeline.evaluation import statistics

RANDOM, NEAR_DUPLICATES, GROUPS = KINDS = ("random", "near_duplicates", "groups")


Images = Sequence[sources.SourceImage]


def groups_of(images: Images, dataset: sources.DatasetParams) -> list[str] | str:
    """Return the group of every image, in the catalog's order, or in words why there are none."""
    if any(image.group for image in images):
        return [image.group for image in images]
    if dataset.source == "elpv" and dataset.limit is None:
        return sources.elpv.modules(images)
    if dataset.source == "elpv":
        return "dataset.limit leaves out files, from whose order modules are inferred; set dataset.groups.module"
    return "dataset.groups names no groups"


def variants(images: Images, groups: list[str] | str) -> dict[str, Images | str]:
    """Return for every kind of split the images with what that kind keeps together, or why it is not available.

    Predefined parts are set aside: all parts are drawn.
    """
    plain = [dataclasses.replace(image, group="", near_duplicates="", part="") for image in images]
    found: dict[str, Images | str] = {RANDOM: plain}
    if splits.clusters(images)[0]:
        found[NEAR_DUPLICATES] = [dataclasses.replace(image, group="", part="") for image in images]
    else:
        found[NEAR_DUPLICATES] = "no two images look the same"
    if isinstance(groups, str):
        found[GROUPS] = groups
    else:
        pairs = zip(plain, groups, strict=True)
        found[GROUPS] = [dataclasses.replace(image, group=group) for image, group in pairs]
    return found


def divide(kinds: Mapping[str, Images], *, params: splits.SplitParams, seed: int) -> dict[str, np.ndarray]:
    """Return {kind: str (n,), the part of every image, empty where it was given up for equal sizes}.

    Raises SplitError if a kind cannot be divided.
    """
    found = {}
    for kind, images in kinds.items():
        together: Collection[str] = splits.clusters(images)[0] if kind == NEAR_DUPLICATES else ()
        found[kind] = np.array(splits.assign(images, params=params, seed=seed, together=together))
    return _of_equal_sizes(found, np.array([image.label for image in next(iter(kinds.values()))]), seed=seed)


def _of_equal_sizes(divided: Mapping[str, np.ndarray], labels: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """Give images up by chance, but no part's last one of a class: without it, metrics there would be undefined."""
    found = {kind: parts.astype(f"<U{max(map(len, artifacts.PARTS))}") for kind, parts in divided.items()}
    for part in artifacts.PARTS:
        size = min(int((parts == part).sum()) for parts in divided.values())
        for kind, parts in found.items():
            members = np.flatnonzero(parts == part)
            order = seeds.generator(seed, "fairness", "equal sizes", kind, part).permutation(len(members))
            last = np.unique(labels[members[order]], return_index=True)[1]
            parts[members[np.delete(order, last)[size - len(last) :]]] = ""
    return found


def gap_over_splits(first: np.ndarray, second: np.ndarray, *, test_share: float, confidence: float) -> dict[str, Any]:
    """Return mean, standard deviation and t interval of the difference of two accuracies over splits, (splits,) each.

    Splits of one set of images overlap, so the variance of their mean is not that of independent ones: the corrected
    resampled t test of Nadeau and Bengio (2003, "Inference for the Generalization Error") multiplies the
    variance of one difference by 1/J + n2/n1 instead of 1/J. n2 images are in test; n1 are what the learning algorithm
    was given, which here includes the validation images: selecting on them is a part of learning. So n2/(n1 + n2), the
    ``test_share``, is the chance that a test image of one split is one of another, which is what their correction
    rests on (section 3); fitting on fewer of the n1 images changes nothing of that.
    """
    from scipy.stats import t

    differences = first - second
    count, mean = len(differences), float(differences.mean())
    if count < 2:
        return {"value": mean, "sd": math.nan, "low": math.nan, "high": math.nan}
    deviation = float(differences.std(ddof=1))
    error = deviation * math.sqrt(1 / count + test_share / (1 - test_share))
    half = float(t.ppf((1 + confidence) / 2, count - 1)) * error
    return {"value": mean, "sd": deviation, "low": mean - half, "high": mean + half}


def gap_over_images(
    first: np.ndarray,
    second: np.ndarray,
    clusters: Sequence[str],
    *,
    samples: int,
    generator: np.random.Generator,
    confidence: float,
) -> dict[str, Any]:
    """Return the mean difference over the images that both kinds of split tested, and its interval.

    ``first``, ``second``: see `table`; of an image counts the share of right answers in the splits that tested it.
    ``clusters``: of images that are right and wrong together; an image by itself where the name is empty. The interval
    is that of the pigeonhole bootstrap (Owen 2007, "The pigeonhole bootstrap"): splits and clusters are drawn with
    replacement, independently of each other, because both the models and the images are a sample. It trains nothing.
    """
    names = [name or f"image {index}" for index, name in enumerate(clusters)]
    unique, member = np.unique(names, return_inverse=True)
    order = np.argsort(member, kind="stable")
    starts = np.flatnonzero(np.diff(member[order], prepend=-1))
    once, both = _differences(np.ones((1, len(first))), first, second)
    drawn = []
    # Of its own, so that how many draws come at a time changes nothing.
    another = generator.spawn(1)[0]
    of_splits = statistics.resamples(len(first), samples=samples, generator=generator)
    for splits_drawn, clusters_drawn in _together(of_splits, len(unique), another, at_once=len(names)):
        differences, tested = _differences(splits_drawn, first, second)
        sums, sizes = (np.add.reduceat(each[:, order], starts, axis=1) for each in (differences, tested))
        total = (clusters_drawn * sizes).sum(axis=1)
        gained = (clusters_drawn * sums).sum(axis=1)
        drawn.append(np.divide(gained, total, out=np.full(len(total), np.nan), where=total > 0))
    value = float(once.sum() / both.sum()) if both.any() else math.nan
    interval = statistics.percentile_interval(value, np.concatenate(drawn), confidence=confidence)
    return {**interval._asdict(), "images": int(both.sum()), "clusters": len(np.unique(member[both[0] > 0]))}


def _together(
    of_splits: Iterable[np.ndarray], clusters: int, generator: np.random.Generator, *, at_once: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield as many draws of clusters, (s, clusters), beside draws of splits, (s, splits), few enough for memory."""
    rows = max(1, statistics.ELEMENTS_AT_ONCE // at_once)
    for drawn in of_splits:
        for start in range(0, len(drawn), rows):
            chosen = drawn[start : start + rows]
            yield chosen, np.concatenate(list(statistics.resamples(clusters, samples=len(chosen), generator=generator)))


def _differences(weights: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each image's difference of shares, 0 where a kind did not test it, and whether both did, float64 (s, n).

    ``weights``: how often each split counts, (s, splits).
    """
    shares, tested = [], []
    for table_of_kind in (first, second):
        known = ~np.isnan(table_of_kind)
        count = weights @ known.astype(np.float64)
        right = weights @ np.where(known, table_of_kind, 0.0)
        shares.append(np.divide(right, count, out=np.zeros(count.shape), where=count > 0))
        tested.append(count > 0)
    both = (tested[0] & tested[1]).astype(np.float64)
    return (shares[0] - shares[1]) * both, both


def table(hits: Sequence[np.ndarray], rows: Sequence[np.ndarray], n: int) -> np.ndarray:
    """Return for every split whether each of ``n`` images was classified right, float64 (splits, n), NaN: not tested.

    ``hits``: bool (tested,) of every split; ``rows``: int (tested,), which images these are.
    """
    found = np.full((len(hits), n), np.nan)
    for split, (one, which) in enumerate(zip(hits, rows, strict=True)):
        found[split, which] = one
    return found


def counterparts(test: Sequence[str], train: Sequence[str]) -> int:
    """Return how many test images share their key (digest, cluster, group) with a training image; empty keys do not."""
    known = set(train) - {""}
    return sum(key in known for key in test)
