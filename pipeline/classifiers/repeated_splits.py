"""All images with the features of one network, divided anew, and sweeps on such a split: for studies of the protocol.

A sweep here is the pipeline's: every candidate is fitted on train, validation selects. The catalog has the labels of
every image; those of the new test part reach `hits`, which scores a candidate that is chosen already. Groups are those
of the catalog, whatever the split: where a family divides its training images, it keeps them whole as in the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.classifiers.search import family, proposals, search_space
from pipeline.console.progress import progress
from pipeline.core import artifacts, params, seeds
from pipeline.data import sources
from pipeline.evaluation import metrics
from pipeline.features import inference


@dataclass(frozen=True)
class Pool:
    """All images of the catalog, in its order.

    ``features``: float32 (n, width). ``labels``: int64 (n,) in ``classes``.
    """

    images: tuple[sources.SourceImage, ...]
    features: np.ndarray
    classes: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Sweep:
    """The candidates of one family on one split, their fits, and which of them is ``selected``.

    ``validation``: probabilities float32 (candidates, n, classes); ``scores``: the metric on them, (candidates,).
    ``selected`` is None where validation leaves the metric undefined, and so the choice.
    """

    candidates: tuple[search_space.Candidate, ...]
    fits: tuple[family.Fit, ...]
    validation: np.ndarray
    scores: np.ndarray
    selected: int | None


def read_pool(directory: Path) -> Pool:
    """Return the images with the features that lie in ``directory``. Raises ArtifactError if it lacks one."""
    images = sources.read_catalog()
    by_digest = {}
    for name in artifacts.PARTS:
        part = artifacts.read_part(name)
        by_digest.update(zip(part.sha256, artifacts.read_features(directory, part), strict=True))
    try:
        features = np.stack([by_digest[image.sha256] for image in images])
    except KeyError as error:
        raise artifacts.ArtifactError(f"{directory} has no features of the image {error}: run `dvc repro`") from None
    classes = tuple(sorted({image.label for image in images}))
    labels = np.array([classes.index(image.label) for image in images], dtype=np.int64)
    return Pool(tuple(images), features, classes, labels)


def sweep(
    given: params.Params,
    name: str,
    pool: Pool,
    parts: np.ndarray,
    *,
    seed: int,
    candidates: Sequence[search_space.Candidate] | None = None,
    label: str | None = None,
    threads: int | None = None,
) -> Sweep:
    """Fit a family on one split of the pool and let validation select.

    ``parts``: str (n,), the part of every image; one that is in none is left out. ``seed``: the root seed of everything
    that the family draws. ``candidates``: in place of those that the family's block in params.yaml asks for.
    ``label``: of a progress bar over the candidates; none without. ``threads``: in place of `compute.threads`; they
    change no result.
    """
    selection = given.block("selection", metrics.SelectionParams)
    positive = metrics.positive_index(pool.classes, selection)
    data = {part: (pool.features[parts == part], pool.labels[parts == part]) for part in ("train", "validation")}
    groups = [image.group for image, part in zip(pool.images, parts, strict=True) if part == "train"]
    labels = data["validation"][1]

    def score(probabilities: np.ndarray) -> float:
        return metrics.score(selection.metric, probabilities, labels, positive=positive)

    tried, fits, scores = fit_all(
        given,
        name,
        data["train"],
        data["validation"],
        n_classes=len(pool.classes),
        score=score,
        seed=seed,
        candidates=candidates,
        label=label,
        lower_is_better=selection.metric in metrics.LOWER_IS_BETTER,
        threads=threads,
        groups=groups,
    )
    validation = np.stack([fit.validation for fit in fits])
    # Whether a metric is defined depends on the labels alone.
    defined = not np.isnan(scores).any()
    best = metrics.select(validation, labels, metric=selection.metric, positive=positive) if defined else None
    return Sweep(tuple(tried), tuple(fits), validation, np.array(scores), best)


def hits(found: Sweep, candidate: int, pool: Pool, parts: np.ndarray) -> np.ndarray:
    """Return for every image of the new test part whether a candidate is right about it, bool (n,)."""
    rows = parts == "test"
    return found.fits[candidate].model.predict_proba(pool.features[rows]).argmax(axis=1) == pool.labels[rows]


def fit_all(
    given: params.Params,
    name: str,
    train: family.Examples,
    validation: family.Examples,
    *,
    n_classes: int,
    score: Callable[[np.ndarray], float],
    seed: int,
    lower_is_better: bool,
    candidates: Sequence[search_space.Candidate] | None = None,
    label: str | None = None,
    threads: int | None = None,
    groups: Sequence[str] = (),
) -> tuple[list[search_space.Candidate], list[family.Fit], list[float]]:
    """Return the candidates that were tried, their fits, and their scores on validation.

    ``groups``: of the training images, see `family.Task`.
    """
    module = family.find(name)
    block = given.block(f"classifiers.{name}", module.Params)
    fit_seed = seeds.child_seed(seed, "classifiers", name)
    threads = threads or given.block("compute", inference.ComputeParams).threads
    task = family.Task(train, validation, n_classes=n_classes, seed=fit_seed, threads=threads, groups=groups)
    fitter = module.Fitter(task, block)
    proposed = proposals.Proposals(block, seed=fit_seed, lower_is_better=lower_is_better)
    scores: list[float] = []
    points = proposed.points(scores) if candidates is None else (candidate.parameters for candidate in candidates)
    one_by_one = family.fit_all(fitter, points)
    if label is not None:
        total = len(proposed) if candidates is None else len(candidates)
        one_by_one = progress(one_by_one, total=total, label=label, unit="candidates")
    fits = []
    for fit in one_by_one:
        scores.append(score(fit.validation))
        fits.append(fit)
    tried = candidates if candidates is not None else [proposed.after(scores[:index]) for index in range(len(fits))]
    return [fitter.named(candidate) for candidate in tried], fits, scores


def fixed_candidates(given: params.Params, name: str) -> list[search_space.Candidate]:
    """Return the same candidates for every split: the grid, the random draws, or for ``tpe`` as many random draws.

    What a search that learns tries depends on the split, which leaves nothing to compare between splits.
    """
    block = given.block(f"classifiers.{name}", family.find(name).Params)
    seed = seeds.child_seed(given.value("seed"), "classifiers", name)
    if block.search != "tpe":
        return search_space.candidates(block, seed=seed)
    return [search_space.candidate(block, point) for point in search_space.draw(block, block.candidates, seed=seed)]
