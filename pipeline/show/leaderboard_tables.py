"""The comparison as a person reads it: from the entries of leaderboard.json to tables and sentences."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from pipeline.evaluation import statistics
from pipeline.evaluation.leaderboard import CONSOLE, LABELS, UNDEFINED, Entry, shown, shown_p, title_of

# Beside the metric that validation chose by; the other metrics are in the CSV and JSON.
ALWAYS_SHOWN = ("accuracy", "roc_auc", "log_loss", "expected_calibration_error")
ALIKE = "≈ champion"


def text(entries: Sequence[Entry]) -> str:
    """Return the leaderboard as aligned columns for a console, the champion marked with an asterisk."""
    metric = entries[0]["selected_by"]
    rows = [
        [
            "",
            "method",
            f"validation {LABELS[metric]}",
            *_spread_label(entries),
            f"test {LABELS[metric]}",
            *_other_labels(metric),
            _p_label(metric),
            ALIKE,
            "trainable",
            "MACs",
        ]
    ]
    for one in entries:
        rows.append(
            [
                "*" if one["champion"] else "",
                title_of(one),
                _chosen_by(one),
                *_test_spread(one),
                _with_interval(one["test"][metric]),
                *(shown(one["test"][name]["value"]) for name in _others(metric)),
                _p(one),
                _alike(one),
                _amount(one["cost"]["trainable_parameters"]),
                _amount(one["cost"]["multiply_adds"]),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    warnings = [f"{title_of(one)}: {said}" for one in entries if (said := _unconverged(one))]
    return "\n".join([*lines, *warnings, *(textwrap.fill(said, CONSOLE) for said in _about_repeats(entries))])


def markdown(
    entries: Sequence[Entry], *, sizes: Mapping[str, int], units: Mapping[str, int], confidence: float, samples: int
) -> str:
    """Return leaderboard.md: the table, what the test says, and how the numbers were made.

    ``sizes``: number of images of each part. ``units``: of images and whole groups that are drawn independently of each
    other. ``samples``: bootstrap resamples behind each interval.
    """
    metric = entries[0]["selected_by"]
    header = [
        "",
        "method",
        f"validation {LABELS[metric]}",
        *_spread_label(entries),
        f"test {LABELS[metric]} [{confidence:.0%} interval]",
        *_other_labels(metric),
        _p_label(metric),
        ALIKE,
        "trainable parameters",
        "MACs",
        "selected candidate",
    ]
    lines = [_markdown_row(header), _markdown_row(["---:", "---", *["---:"] * (len(header) - 3), "---"])]
    for one in entries:
        name = title_of(one)
        candidate = "; ".join(filter(None, [_code(one["candidate"]["name"]), _unconverged(one)]))
        lines.append(
            _markdown_row(
                [
                    str(one["rank"]),
                    f"**{name}** (champion)" if one["champion"] else name,
                    _chosen_by(one),
                    *_test_spread(one),
                    _with_interval(one["test"][metric]),
                    *(shown(one["test"][other]["value"]) for other in _others(metric)),
                    _p(one),
                    _alike(one),
                    _amount(one["cost"]["trainable_parameters"]),
                    _amount(one["cost"]["multiply_adds"]),
                    candidate,
                ]
            )
        )
    ties = "" if metric == "log_loss" else ", among equal ones by log loss"
    grouped = units["test"] < sizes["test"]
    unit, each = ("group", "a whole group") if grouped else ("image", "an image")
    wilson, drawn = "Wilson's", "the images"
    if grouped:
        wilson = "that of a ratio over whole groups, or Wilson's where it is wider"
        drawn = f"whole groups, {units['test']:,} in test, because images of one group are alike"
    test = f"permutation test that exchanges the two methods' predictions of {each}"
    if metric == "accuracy":
        test = "exact test that lets a group take sides as one" if grouped else "exact McNemar test"
    notes = (
        f"Validation ({sizes['validation']:,} images) chose each method's candidate, where training stops (epochs, "
        f"trees), and the champion, by {LABELS[metric]}{ties}; the models were trained on {sizes['train']:,} images. "
        f"This comparison read test ({sizes['test']:,} images) after that, and test chose nothing in it; "
        f"`python -m pipeline fairness looks` lists earlier looks at test. The columns to the right of validation are "
        f"of test. Intervals: {confidence:.0%}, for this split and these trained models; of accuracy, {wilson}; of "
        f"other metrics, from {samples:,} bootstrap resamples of {drawn}, widened for the number of {unit}s. "
        f"p: {test}, for the difference in {LABELS[metric]} from the champion, Holm-corrected for {len(entries) - 1} "
        f"comparisons; ≈ marks the methods that it does not tell from the champion (p of {1 - confidence:.2g} or "
        f"more), which is no proof that they are equally good. "
        f"ECE: expected calibration error; resampling biases it upwards, so its interval, in the CSV and JSON, lies "
        f"too high and can miss the value. MACs: multiply-adds for one image."
    )
    notes = " ".join([notes, *_about_repeats(entries)])
    said = [verdict(entries, confidence=confidence), *few_units(units, sizes), notes]
    return "\n\n".join(["\n".join(lines), *said]) + "\n"


def few_units(units: Mapping[str, int], sizes: Mapping[str, int]) -> list[str]:
    """Return a warning for each part with too few independent images or groups."""
    return [
        f"Warning: {part} has only {count} {'groups' if count < sizes[part] else 'images'} that are independent of "
        f"each other. With fewer than {statistics.FEW_UNITS}, take its intervals as rough."
        for part, count in units.items()
        if count < statistics.FEW_UNITS
    ]


def short_markdown(entries: Sequence[Entry], *, confidence: float) -> str:
    """Return the table of the README: what a first look needs, the rest is in leaderboard.md."""
    metric = entries[0]["selected_by"]
    header = [
        "method",
        f"validation {LABELS[metric]}",
        *_spread_label(entries),
        f"test {LABELS[metric]}",
        LABELS["roc_auc"],
        _p_label(metric),
        ALIKE,
        "trainable parameters",
    ]
    lines = [_markdown_row(header), _markdown_row(["---", *["---:"] * (len(header) - 1)])]
    for one in entries:
        name = title_of(one)
        lines.append(
            _markdown_row(
                [
                    f"**{name}**" if one["champion"] else name,
                    _chosen_by(one),
                    *_test_spread(one),
                    _with_interval(one["test"][metric]),
                    shown(one["test"]["roc_auc"]["value"]),
                    _p(one),
                    _alike(one),
                    _amount(one["cost"]["trainable_parameters"]),
                ]
            )
        )
    said = " ".join([verdict(entries, confidence=confidence), *_about_repeats(entries)])
    return "\n".join([*lines, "", said]) + "\n"


def verdict(entries: Sequence[Entry], *, confidence: float) -> str:
    """Return in words what the test part says about the champion and the others."""
    champion, *others = entries
    metric = champion["selected_by"]
    label, p = LABELS[metric], f" (p < {1 - confidence:.2g})"
    name = title_of(champion)
    repeats = champion["repeats"]
    over = f", over {repeats['count']} trainings {_mean_and_spread(champion, 'test', metric)}" if repeats else ""
    sentences = [f"On test, {name} reaches {label} {_with_interval(champion['test'][metric])}{over}."]
    groups: dict[str, list[str]] = {"better": [], "worse": [], "chance": [], "unknown": []}
    for one in others:
        paired = one["against_champion"]
        group = "unknown" if paired["p_holm"] is None else "chance"
        if paired["told_apart"]:
            group = "better" if paired["ahead_on_test"] else "worse"
        groups[group].append(title_of(one))
    if groups["worse"]:
        sentences.append(f"Its {label} is better than that of {_listed(groups['worse'])}, beyond chance{p}.")
    if groups["better"]:
        sentences.append(f"Its {label} is worse than that of {_listed(groups['better'])}, beyond chance{p}.")
    if groups["chance"]:
        sentences.append(f"The difference from {_listed(groups['chance'])} may be chance.")
    if groups["unknown"]:
        sentences.append(f"No difference can be tested: {label} is undefined on these test images.")
    ahead = [
        f"{title_of(one)} ({shown(one['test'][metric]['value'])})"
        for one in others
        if one["against_champion"]["ahead_on_test"]
    ]
    if ahead:
        sentences.append(f"On test alone {_listed(ahead)} would rank higher; test does not choose.")
    return " ".join(sentences)


def _chosen_by(one: Entry) -> str:
    """Return what validation ranked the method by: the metric that chose, its mean if there are repeats."""
    metric = one["selected_by"]
    return _mean_and_spread(one, "validation", metric) if one["repeats"] else shown(one["validation"][metric]["value"])


def _mean_and_spread(one: Entry, part: str, metric: str) -> str:
    """Return mean ± standard deviation over the repeats; ± 0 if training draws nothing."""
    spread = one["repeats"][part][metric]
    return f"{shown(spread['mean'])} ± {shown(spread['sd']) if one['repeats']['draws'] else '0'}"


def _spread_label(entries: Sequence[Entry]) -> list[str]:
    repeats = entries[0]["repeats"]
    return [f"test {LABELS[entries[0]['selected_by']]}, {repeats['count']} trainings"] if repeats else []


def _test_spread(one: Entry) -> list[str]:
    return [_mean_and_spread(one, "test", one["selected_by"])] if one["repeats"] else []


def _about_repeats(entries: Sequence[Entry]) -> list[str]:
    if not entries[0]["repeats"]:
        return []
    count = entries[0]["repeats"]["count"]
    said = (
        f"±: mean and standard deviation over {count} trainings with different seeds, all under this one split; the "
        "mean on validation ranks. Every other number is of the first training, whose model is kept."
    )
    same = [title_of(one) for one in entries if not one["repeats"]["draws"]]
    return [f"{said} ± 0: training draws nothing ({_listed(same)})." if same else said]


def _others(metric: str) -> list[str]:
    return [name for name in ALWAYS_SHOWN if name != metric]


def _other_labels(metric: str) -> list[str]:
    return [LABELS[name] for name in _others(metric)]


def _with_interval(bounds: Mapping[str, float | None]) -> str:
    return f"{shown(bounds['value'])} [{shown(bounds['low'])}, {shown(bounds['high'])}]"


def _p(one: Entry) -> str:
    return shown_p(one["against_champion"]["p_holm"]) if one["against_champion"] else UNDEFINED


def _p_label(metric: str) -> str:
    return f"p (Holm), {LABELS[metric]}"


def _alike(one: Entry) -> str:
    """Return the mark of a method that the test part does not tell from the champion."""
    paired = one["against_champion"]
    return "≈" if paired and not paired["told_apart"] else ""


def _amount(count: int) -> str:
    """Return a count as people say it: 405 M, 1.28 k."""
    for size, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def _unconverged(one: Entry) -> str:
    counts = one["candidates"]
    if not counts["unconverged"]:
        return ""
    selected = "" if one["candidate"]["converged"] else ", the selected one among them"
    if counts["count"] == 1:
        return "did not converge"
    return f"{counts['unconverged']} of {counts['count']} candidates did not converge{selected}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
