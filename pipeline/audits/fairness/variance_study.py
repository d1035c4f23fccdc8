"""The variance section: where test accuracies come from, what test can tell apart, how stable ranks are, as JSON."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.audits.fairness import power, variance
from pipeline.audits.fairness.study import Study
from pipeline.classifiers import repeated_splits
from pipeline.classifiers.search import family, search_space
from pipeline.core import seeds
from pipeline.core.artifacts import ArtifactError
from pipeline.data import splits
from pipeline.evaluation import leaderboard, metrics, statistics

POWER = 0.8  # with which a difference is to be found: what most sample sizes are planned for (Cohen 1988)


@dataclass(frozen=True)
class Fitted:
    """One family: ``test`` accuracies and ``validation`` scores, more is better, (splits, trainings, candidates), and
    which candidate validation ``selected``, int (splits, trainings). ``sampling``: the variance of that one's accuracy
    by the draw of the test images alone, (splits, trainings)."""

    test: np.ndarray
    validation: np.ndarray
    selected: np.ndarray
    sampling: np.ndarray

    @classmethod
    def empty(cls, *shape: int) -> Fitted:
        return cls(
            np.full(shape, np.nan),
            np.full(shape, np.nan),
            np.zeros(shape[:2], dtype=np.int64),
            np.full(shape[:2], np.nan),
        )

    @property
    def reached(self) -> np.ndarray:
        """The test accuracies of the selected candidates, (splits, trainings)."""
        return np.take_along_axis(self.test, self.selected[:, :, np.newaxis], axis=2)[:, :, 0]


def section(study: Study) -> dict[str, Any] | str:
    """Return where the test accuracies of each family come from, and how stable the order of the families is.

    Or in words why there is no such design: some seed cannot divide the images.
    """
    try:
        divided = _divided(study)
    except splits.SplitError as error:
        return str(error)
    fitted = _fit(study, divided)
    return {
        "backbone": study.backbone,
        "split_seeds": list(study.split_seeds),
        "test_images": int((divided[0] == "test").sum()),
        "images": len(study.pool),
        "confidence": study.compare.confidence,
        "families": {name: _sources(name, found, study.compare.confidence) for name, found in fitted.items()},
        "best_on_test": _best({name: found.reached[:, 0] for name, found in fitted.items()}),
    }


def _divided(study: Study) -> list[np.ndarray]:
    """Return the parts of every image for every split seed, by the pipeline's own protocol."""
    images = [dataclasses.replace(image, part="") for image in study.pool.images]
    together = splits.clusters(images)[0] if study.groups_near_duplicates else set()
    return [
        np.array(splits.assign(images, params=study.split, seed=seed, together=together)) for seed in study.split_seeds
    ]


def _fit(study: Study, divided: Sequence[np.ndarray]) -> dict[str, Fitted]:
    """Fit every candidate with every seed on every split; a family that draws nothing once on each."""
    candidates = study.candidates()
    trainings = {name: study.trainings if family.find(name).Fitter.draws else 1 for name in study.families}
    found = {name: Fitted.empty(len(divided), trainings[name], len(candidates[name])) for name in study.families}
    places = [
        (split, name, training)
        for split, name in itertools.product(range(len(divided)), study.families)
        for training in range(trainings[name])
    ]
    jobs = [
        (name, divided[split], candidates[name], seeds.repeat_seed(study.seed, training + 1))
        for split, name, training in places
    ]
    metric = study.given.block("selection", metrics.SelectionParams).metric
    groups = np.array([image.group for image in study.pool.images])
    population = len(set(statistics.units(len(groups), groups.tolist())))
    sign = -1.0 if metric in metrics.LOWER_IS_BETTER else 1.0
    fitted = study.each(_fitted, jobs, label="variance")
    for (split, name, training), (selected, scores, hits) in zip(places, fitted, strict=True):
        found[name].selected[split, training] = selected
        found[name].validation[split, training] = sign * scores
        found[name].test[split, training] = [each.mean() for each in hits]
        found[name].sampling[split, training] = variance.sampling_variance(
            hits[selected], groups[divided[split] == "test"].tolist(), population=population
        )
    return found


def _fitted(
    study: Study, job: tuple[str, np.ndarray, Sequence[search_space.Candidate], int]
) -> tuple[int, np.ndarray, list[np.ndarray]]:
    """Return the selected candidate, the validation scores of all, and what each is right about on test."""
    name, parts, candidates, seed = job
    sweep = study.sweep(name, parts, candidates, seed=seed)
    hits = [repeated_splits.hits(sweep, candidate, study.pool, parts) for candidate in range(len(candidates))]
    return sweep.selected, sweep.scores, hits


def _sources(name: str, found: Fitted, confidence: float) -> dict[str, Any]:
    """Return the components of one family's accuracies: of all its candidates, and of those that were selected."""
    mean = float(found.reached.mean())
    cells = np.ndindex(found.selected.shape)
    taus = [variance.agreement(found.validation[cell], found.test[cell]) for cell in cells]
    defined = [tau for tau in taus if not math.isnan(tau)]
    return {
        "draws": family.find(name).Fitter.draws,
        "trainings": found.test.shape[1],
        "candidates": found.test.shape[2],
        "components": _numbers(variance.summary(found.test, confidence=confidence)),
        "selected": {
            "accuracy": leaderboard.number(mean),
            "by_split": [leaderboard.number(float(value)) for value in found.reached.mean(axis=1)],
            "components": _numbers(variance.summary(found.reached, variance.FACTORS[:2], confidence=confidence)),
            "sampling_sd": leaderboard.number(math.sqrt(float(found.sampling.mean()))),
            "different_candidates": len(np.unique(found.selected)),
        },
        "kendall_tau_of_validation_and_test": leaderboard.number(float(np.mean(defined)) if defined else math.nan),
    }


def _best(reached: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return for each family the share of splits in which it is the best on test; those who tie share the split."""
    table = np.stack(list(reached.values()), axis=1)
    best = table == table.max(axis=1, keepdims=True)
    shares = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    return {name: leaderboard.number(float(share)) for name, share in zip(reached, shares, strict=True)}


def _numbers(table: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    return {name: leaderboard.numbers(values) for name, values in table.items()}


# --- what the pipeline's own test part can tell --------------------------------------------------------------------


def detectable(details: Mapping[str, Any], entries: Sequence[leaderboard.Entry]) -> dict[str, Any]:
    """Return the smallest differences of accuracy that the test part can show, from details.json and the leaderboard.

    At the significance level of the comparison, for one planned comparison (``alpha``) and for the first of as many as
    there are against the champion (``alpha_holm``, the strictest step of Holm's correction).
    """
    if "pairs" not in details or "ranks" not in details:
        raise ArtifactError("results/details.json was written by an older version: run `dvc repro`")
    n = details["images"]["test"]
    alpha = 1 - details["intervals"]["confidence"]
    levels = {"alpha": alpha, "alpha_holm": alpha / max(1, len(entries) - 1)}
    accuracy = entries[0]["test"]["accuracy"]["value"]
    disagreeing = sorted((pair["only_first_right"] + pair["only_second_right"]) / n for pair in details["pairs"])
    typical = (
        {}
        if not disagreeing
        else {"least": disagreeing[0], "median": float(np.median(disagreeing)), "most": disagreeing[-1]}
    )
    return {
        "images": n,
        "power": POWER,
        **{name: leaderboard.number(level) for name, level in levels.items()},
        "against_champion": [_against(entry, n, levels) for entry in entries[1:]],
        "any_two": {
            name: {"discordance": leaderboard.number(share), **_smallest(n, share, levels)}
            for name, share in typical.items()
        },
        "unpaired": {
            name: leaderboard.number(power.smallest_unpaired_difference(n, accuracy=accuracy, alpha=level, power=POWER))
            for name, level in levels.items()
        },
    }


def _against(entry: leaderboard.Entry, n: int, levels: Mapping[str, float]) -> dict[str, Any]:
    paired = entry["against_champion"]
    lost, won = paired["only_champion_right"], paired["only_method_right"]
    return {
        "run": entry["run"],
        "title": leaderboard.title(entry["network"], entry["method"]),
        "difference": leaderboard.number((won - lost) / n),
        "discordance": leaderboard.number((won + lost) / n),
        "told_apart": paired["told_apart"],
        **_smallest(n, (won + lost) / n, levels),
    }


def _smallest(n: int, discordance: float, levels: Mapping[str, float]) -> dict[str, Any]:
    return {
        f"smallest_{name}": leaderboard.number(
            power.smallest_paired_difference(n, discordance=discordance, alpha=level, power=POWER)
        )
        for name, level in levels.items()
    }
