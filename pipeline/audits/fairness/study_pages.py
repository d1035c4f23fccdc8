"""Leakage and variance as a person reads them: from the JSON of a section to a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.audits.fairness import leakage, variance
from pipeline.audits.fairness.page import Block, Figure, Page, Table, interval, percent, points, size
from pipeline.evaluation.leaderboard import LABELS, shown, title

KINDS = {
    leakage.RANDOM: "random",
    leakage.NEAR_DUPLICATES: "near duplicates together",
    leakage.GROUPS: "groups together",
}
COUNTERPARTS = {
    "bytes": "the same file",
    "features": "the same features, as of the same pixels",
    "near_duplicates": "a near duplicate",
    "groups": "an image of the same group",
}
MOST_PLACES = 6  # columns of the table of ranks; the figure and the JSON have all

ABOUT_GAPS = (
    "*Same images*: every image is compared with itself, tested under one kind of split and under the other; the "
    "interval draws splits and, independently, whole groups (without groups, clusters of near duplicates, else "
    "images) with replacement (pigeonhole bootstrap, Owen 2007). *Over splits*: the mean over splits, where easy "
    "and hard groups that happen to be tested blur the gap; the interval is the corrected resampled t interval of "
    "Nadeau and Bengio (2003), because the splits share their images. All kinds have parts of the same sizes in a "
    "split: what does not fit is given up."
)
ABOUT_COMPONENTS = (
    "Variance components of test accuracy over splits x seeds x candidates, by the estimators of analysis of "
    "variance for random crossed effects (Searle, Casella and McCulloch 1992); what is estimated below 0 is shown "
    "as 0. *Rest*: all interactions with the seed and, where a family draws nothing, the last interaction, which "
    "is not told from noise. A family that draws nothing has no seed component by construction. "
    "*Hyper-parameters*: how far the candidates of params.yaml lie apart, good and bad ones; what validation "
    "makes of them is in the first table. The intervals there are Satterthwaite's, from {splits} splits and {seeds} "
    "seeds at most, of which {splits_free} and {seeds_free} degrees of freedom remain: with so few, a wide interval is "
    "the result. Shares have none; take them as rough as that."
)
ABOUT_SAMPLING = (
    "*sd, test images alone*: what drawing another {test:,} of the {images:,} images, or of their groups as many whole "
    "ones, would give if the fitted model stayed the same. They are drawn without replacement, so this is smaller than "
    "for new images, by the factor sqrt(1 - n / N) of a finite population."
)
ABOUT_POWER = (
    "*Smallest difference*: in points of accuracy, found with a power of {power:.0%} by the exact McNemar test, "
    "two-sided, if the two methods disagree (exactly one is right) on that share of the test images; at the level "
    "of a single planned comparison, and of the first step of Holm's correction for all comparisons with the "
    "champion. Not even a difference as large as the disagreement itself is found where there is a dash. *Other "
    "images*: against a method that was tested on as many images of its own, as published results are: {unpaired} "
    "points, by the z test of two proportions."
)
ABOUT_GROUPS = (
    "**Images come in groups here** (`dataset.groups`), and groups are whole in a part. The leaderboard and the shares "
    "of places below draw whole groups; the smallest differences are of McNemar's test, which counts single images: "
    "images of one group are alike, so the true smallest differences are larger."
)
ABOUT_RANKS = (
    "Shares of the bootstrap resamples of test in which a method has a place, by the rule of the leaderboard (the "
    "metric, then log loss); of the first training of every method. The same resamples give the intervals of the "
    "leaderboard. Kendall's tau between the places in a resample and on the part itself: validation {validation}, "
    "test {test}."
)


# --- leakage -------------------------------------------------------------------------------------------------------


def leakage_page(found: Mapping[str, Any]) -> Page:
    if "unavailable" in found:
        return Page("Leakage, priced", f"Not available: {found['unavailable']}.", [])
    counterparts = found["counterparts"]
    rows = [
        [COUNTERPARTS[kind], "groups unknown" if count is None else f"{count:,}"]
        for kind, count in counterparts["shared"].items()
    ]
    blocks: list[Block] = [
        f"The pipeline's own split: {KINDS[found['own']]}. How many of its {counterparts['test_images']:,} test images "
        "have a counterpart in its training part:",
        Table(["counterpart", "test images"], rows),
    ]
    if found["families"]:
        seeds = ", ".join(map(str, found["split_seeds"]))
        blocks += [
            f"Splits with the seeds {seeds}; features of {found['backbone']}. In each split validation selects the "
            "candidate, and the split's own test part scores it.",
            _reached(found),
            _gaps(found),
            Figure("leakage.png", "test accuracy by kind of split, and the gaps"),
            ABOUT_GAPS,
        ]
    missing = [f"{KINDS[kind]}: {one['unavailable']}" for kind, one in found["kinds"].items() if one["unavailable"]]
    if missing:
        blocks.append("Not available: " + "; ".join(missing) + ".")
    return Page("Leakage, priced", _leakage_finding(found), blocks)


def _leakage_finding(found: Mapping[str, Any]) -> str:
    if not found["families"]:
        return "There is one kind of split only: without near duplicates and without groups nothing can be priced."
    others = [kind for kind, one in found["kinds"].items() if kind != leakage.RANDOM and not one["unavailable"]]
    sentences = []
    for kind in others:
        gaps = {name: one["gaps"][kind]["over_images"] for name, one in found["families"].items()}
        said = [f"{points(gap['value'])} points {interval(gap)} for {name}" for name, gap in gaps.items()]
        sentences.append(f"A random split instead of one with {KINDS[kind]} is worth {' and '.join(said)}.")
    return " ".join(sentences)


def _reached(found: Mapping[str, Any]) -> Table:
    rows = [
        [
            f"{name}, {KINDS[kind]}",
            percent(reached["accuracy"]),
            size(reached["sd"]),
            *(_range(found["kinds"][kind]["sizes"][part]) for part in ("train", "validation", "test")),
        ]
        for name, one in found["families"].items()
        for kind, reached in one["kinds"].items()
    ]
    return Table(["family, kind of split", "test accuracy", "sd over splits", "train", "validation", "test"], rows)


def _gaps(found: Mapping[str, Any]) -> Table:
    confidence = f"{found['confidence']:.0%} interval"
    rows = [
        [
            f"{name}, random minus {KINDS[kind]}",
            *(
                cell
                for way in ("over_images", "over_splits")
                for cell in (points(gap[way]["value"]), interval(gap[way]))
            ),
        ]
        for name, one in found["families"].items()
        for kind, gap in one["gaps"].items()
    ]
    return Table(["gap in points", "same images", confidence, "over splits", confidence], rows)


def _range(bounds: Sequence[int]) -> str:
    low, high = bounds
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


# --- variance ------------------------------------------------------------------------------------------------------


def variance_page(found: Mapping[str, Any]) -> Page:
    """Return where differences come from, what the test part can tell apart, and how stable places are."""
    sources, detectable, ranks = found["sources"], found["detectable"], found["ranks"]
    blocks: list[Block] = ["## Where a test accuracy comes from"]
    if isinstance(sources, str):
        blocks.append(f"Not available: {sources}.")
    else:
        blocks += [
            _selected(sources),
            ABOUT_SAMPLING.format(test=sources["test_images"], images=sources["images"]),
            _components(sources),
            Figure("variance.png", "shares of variance"),
            _about_components(sources),
        ]
    about = ABOUT_POWER.format(power=detectable["power"], unpaired=size(detectable["unpaired"]["alpha"]))
    blocks += ["## What the test part can tell apart", *_smallest(detectable, found["metric"]), about]
    blocks += [ABOUT_GROUPS] if found["grouped"] else []
    taus = {part: _tau(ranks[part]["kendall_tau"]) for part in ("validation", "test")}
    blocks += [
        "## How stable the ranking is",
        _ranks(found),
        Figure("ranks.png", "shares of places"),
        ABOUT_RANKS.format(**taus),
    ]
    return Page("Variance", _variance_finding(found), blocks)


def _variance_finding(found: Mapping[str, Any]) -> str:
    detectable = found["detectable"]
    others = detectable["against_champion"]
    sentences = []
    if others:
        alike = sum(not one["told_apart"] for one in others)
        middle, power = detectable["any_two"]["median"], detectable["power"]
        sentences += [
            f"The {detectable['images']:,} test images cannot tell {alike} of {len(others)} methods from the champion "
            f"by {LABELS[found['metric']]}.",
            f"Of two methods that disagree as often as the median pair, on {percent(middle['discordance'])} of the "
            f"images, they show a difference of {size(middle['smallest_alpha'])} points with a power of {power:.0%}.",
            "Kendall's tau between the places on validation and on test is "
            f"{shown(found['ranks']['kendall_tau_of_validation_and_test'])}.",
        ]
    if not isinstance(found["sources"], str):
        said = [
            f"{name} {size(one['selected']['components'][variance.SPLIT_FACTOR]['sd'])} points"
            for name, one in found["sources"]["families"].items()
        ]
        sentences.append(f"Standard deviation of test accuracy over draws of the split: {', '.join(said)}.")
    return " ".join(sentences)


def _selected(sources: Mapping[str, Any]) -> Table:
    rows = []
    for name, one in sources["families"].items():
        selected = one["selected"]
        by = selected["components"]
        rows.append(
            [
                name,
                percent(selected["accuracy"]),
                _deviation(by[variance.SPLIT_FACTOR]),
                _deviation(by[variance.SEED_FACTOR]) if one["draws"] else "0, draws nothing",
                size(selected["sampling_sd"]),
                percent(sources["best_on_test"][name], digits=0),
                f"{selected['different_candidates']} of {one['candidates']}",
                shown(one["kendall_tau_of_validation_and_test"]),
            ]
        )
    confidence = f"[{sources['confidence']:.0%} interval]"
    header = [
        "selected by validation",
        "test accuracy",
        f"sd, split {confidence}",
        f"sd, seed {confidence}",
        "sd, test images alone",
        "best on test",
        "candidates selected",
        "tau, validation and test",
    ]
    return Table(header, rows)


def _deviation(found: Mapping[str, Any]) -> str:
    """Return a standard deviation with its interval; without one, nothing was estimated above 0."""
    return f"{size(found['sd'])} [{size(found['low'])}, {size(found['high'])}]"


def _components(sources: Mapping[str, Any]) -> Table:
    shown_apart = (*variance.FACTORS, f"{variance.SPLIT_FACTOR}{variance.SEPARATOR}{variance.CANDIDATE_FACTOR}")
    rows = []
    for name, one in sources["families"].items():
        found = one["components"]
        rest = [each for which, each in found.items() if which not in shown_apart]
        shares = [found[which]["share"] for which in shown_apart]
        total = None if shares[0] is None else sum(each["share"] for each in rest)
        design = f"{len(sources['split_seeds'])} x {one['trainings']} x {one['candidates']}"
        rows.append([name, design, *(percent(share, digits=0) for share in (*shares, total))])
    return Table(["share of variance", "splits x seeds x candidates", *shown_apart, "rest"], rows)


def _about_components(sources: Mapping[str, Any]) -> str:
    splits = len(sources["split_seeds"])
    seeds = max(one["trainings"] for one in sources["families"].values())
    return ABOUT_COMPONENTS.format(splits=splits, seeds=seeds, splits_free=splits - 1, seeds_free=seeds - 1)


def _smallest(detectable: Mapping[str, Any], metric: str) -> list[Block]:
    """Return the smallest differences of accuracy for pairs of methods, and for each method against the champion.

    ``metric``: by which the champion was chosen, and test tells others from it.
    """
    if not detectable["against_champion"]:
        return ["One method alone has nothing to be told from."]
    alike = f"≈ champion, {LABELS[metric]}"
    levels = [f"smallest difference, level {detectable[name]:.2g}" for name in ("alpha", "alpha_holm")]
    pairs = [
        [
            f"{name} of all pairs",
            percent(one["discordance"]),
            size(one["smallest_alpha"]),
            size(one["smallest_alpha_holm"]),
        ]
        for name, one in detectable["any_two"].items()
    ]
    champion = [
        [
            one["title"],
            points(one["difference"]),
            percent(one["discordance"]),
            size(one["smallest_alpha"]),
            size(one["smallest_alpha_holm"]),
            "" if one["told_apart"] else "≈",
        ]
        for one in detectable["against_champion"]
    ]
    return [
        Table(["two methods that disagree like the", "disagree on", *levels], pairs),
        Table(["against the champion", "difference", "disagree on", *levels, alike], champion),
    ]


def _ranks(found: Mapping[str, Any]) -> Table:
    validation, test = (found["ranks"][part]["runs"] for part in ("validation", "test"))
    count = min(len(test), MOST_PLACES)
    rows = [
        [
            found["titles"][run],
            str(validation[run]["place"]),
            str(test[run]["place"]),
            *(percent(share, digits=0) for share in test[run]["shares"][:count]),
        ]
        for run in found["titles"]
    ]
    places = [f"on test {place}." for place in range(1, count + 1)]
    return Table(["method", "place on validation", "place on test", *places], rows)


def _tau(found: Mapping[str, Any]) -> str:
    return f"{shown(found['value'])} [{shown(found['low'])}, {shown(found['high'])}]"


def titles(entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return {run: how it is called in tables}, in the order of the leaderboard."""
    return {entry["run"]: title(entry["network"], entry["method"]) for entry in entries}
