"""The comparison as a person reads it: entries of leaderboard.json, and their text, Markdown and CSV.

An entry is one method on one network, a JSON object:

- ``run``, ``method``, ``network``, ``backbone`` (null for a network without pretraining), ``stage``;
- ``rank`` by validation, ``champion``, ``selected_by`` (the metric that validation chose by);
- ``candidate``: name, parameters and convergence of the selected one; ``candidates``: how many, how many unconverged;
- ``validation``, ``test``: {metric: {value, low, high}}; ``strata``: {stratum: {n, value, low, high}} on test;
- ``against_champion``, null for the champion: on the test part, how often only one of the two is right, p, p_holm,
  ``difference`` in the metric that chose, method minus champion, and ``ahead_on_test``;
- ``cost``: counts of the selected model;
- ``repeats``, null for a method trained once: ``count``, ``draws`` (whether training draws anything), and for
  validation and test {metric: {mean, sd}} over all trainings, where every other number is of the first one;
- ``calibration``, null without: ``calibrator`` in words, and for validation (cross-fitted) and test {metric: {before,
  after}}, where every other number is of the probabilities as the model gives them.

Numbers have six significant digits, so that a diff shows changes and not noise; null is an undefined value.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import artifacts

Entry = Mapping[str, Any]

LABELS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "roc_auc": "ROC-AUC",
    "average_precision": "average precision",
    "log_loss": "log loss",
    "brier": "Brier score",
    "expected_calibration_error": "ECE",
}
# Beside the metric that validation chose by; the other metrics are in the CSV and JSON.
ALWAYS_SHOWN = ("accuracy", "roc_auc", "log_loss", "expected_calibration_error")
UNDEFINED = "–"
CONSOLE = 120  # columns of running text
# What calibration is meant to improve, and what it must not spoil.
CALIBRATION_METRICS = ("log_loss", "brier", "expected_calibration_error", "accuracy")


def number(value: float) -> float | None:
    """Return ``value`` with six significant digits as JSON can hold it: None for NaN."""
    return None if math.isnan(value) else float(f"{value:.6g}")


def numbers(values: Mapping[str, float]) -> dict[str, Any]:
    """Return a flat mapping with every float passed through `number`; counts stay as they are."""
    return {name: number(value) if isinstance(value, float) else value for name, value in values.items()}


def shown(value: float | None) -> str:
    """Return three decimals, or a dash for an undefined value."""
    return UNDEFINED if value is None else f"{value:.3f}"


def title(network: str, method: str) -> str:
    """Return how a run is called in tables and figures."""
    return f"{network} · {method}"


def entry(
    record: artifacts.Record,
    *,
    rank: int,
    selected_by: str,
    validation: Mapping[str, Mapping[str, Any]],
    test: Mapping[str, Mapping[str, Any]],
    strata: Mapping[str, Mapping[str, Any]],
    against_champion: Mapping[str, Any] | None,
    repeats: Mapping[str, Any] | None,
    calibration: Mapping[str, Any] | None,
) -> Entry:
    """Return the entry of one run, with metrics as {value, low, high}. Rank 1 is the champion."""
    selected = record.candidates[record.selected]
    return {
        "run": record.name,
        "method": record.method,
        "network": record.network,
        "backbone": None if record.stage == "scratch" else record.network,
        "stage": record.stage,
        "rank": rank,
        "champion": rank == 1,
        "selected_by": selected_by,
        "candidate": {
            "name": selected.name,
            "parameters": selected.parameters,
            "converged": selected.converged,
        },
        "candidates": {
            "count": len(record.candidates),
            "unconverged": sum(not candidate.converged for candidate in record.candidates),
        },
        "validation": validation,
        "test": test,
        "strata": strata,
        "against_champion": against_champion,
        "cost": record.cost.model_dump(),
        "repeats": repeats,
        "calibration": calibration,
    }


def leaderboard_text(entries: Sequence[Entry]) -> str:
    """Return the leaderboard as aligned columns for a console, the champion marked with an asterisk."""
    metric = entries[0]["selected_by"]
    rows = [["", "method", f"validation {LABELS[metric]}", *_spread_label(entries), f"test {LABELS[metric]}",
             *_other_labels(metric), "p (Holm)", "trainable", "MACs"]]  # fmt: skip
    for one in entries:
        rows.append(
            [
                "*" if one["champion"] else "",
                title(one["network"], one["method"]),
                _chosen_by(one),
                *_test_spread(one),
                _with_interval(one["test"][metric]),
                *(shown(one["test"][name]["value"]) for name in _others(metric)),
                _p(one),
                _amount(one["cost"]["trainable_parameters"]),
                _amount(one["cost"]["multiply_adds"]),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in
                  enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]  # fmt: skip
    warnings = [
        f"{title(one['network'], one['method'])}: {text}" for one in entries if (text := _unconverged(one))
    ]
    return "\n".join([*lines, *warnings, *(textwrap.fill(text, CONSOLE) for text in _about_repeats(entries))])


def markdown(entries: Sequence[Entry], *, sizes: Mapping[str, int], confidence: float, samples: int) -> str:
    """Return leaderboard.md: the table, what the test says, and how the numbers were made.

    ``sizes``: number of images of each part. ``samples``: bootstrap resamples behind each interval.
    """
    metric = entries[0]["selected_by"]
    header = ["", "method", f"validation {LABELS[metric]}", *_spread_label(entries),
              f"test {LABELS[metric]} [{confidence:.0%} interval]", *_other_labels(metric), "p (Holm)", "trainable parameters", "MACs", "selected candidate"]  # fmt: skip
    lines = [_markdown_row(header), _markdown_row(["---:", "---", *["---:"] * (len(header) - 3), "---"])]
    for one in entries:
        name = title(one["network"], one["method"])
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
                    _amount(one["cost"]["trainable_parameters"]),
                    _amount(one["cost"]["multiply_adds"]),
                    candidate,
                ]
            )
        )
    notes = (
        f"Validation ({sizes['validation']:,} images) chose each method's candidate and the champion, by "
        f"{LABELS[metric]}; the models were trained on {sizes['train']:,} images. Test ({sizes['test']:,} images) was "
        f"read once, afterwards, and chose nothing; the columns to the right of validation are of test. Intervals: "
        f"{confidence:.0%}, from {samples:,} bootstrap resamples of the images, for this split and these trained "
        f"models. p: exact McNemar test against the champion, Holm-corrected for {len(entries) - 1} comparisons. "
        f"ECE: expected calibration error; resampling biases it upwards, so its interval, in the CSV and JSON, lies too "
        f"high and can miss the value. MACs: multiply-adds for one image."
    )
    notes = " ".join([notes, *_about_repeats(entries)])
    return "\n".join([*lines, "", verdict(entries, confidence=confidence), "", notes]) + "\n"


def short_markdown(entries: Sequence[Entry], *, confidence: float) -> str:
    """Return the table of the README: what a first look needs, the rest is in leaderboard.md."""
    metric = entries[0]["selected_by"]
    header = ["method", f"validation {LABELS[metric]}", *_spread_label(entries), f"test {LABELS[metric]}",
              LABELS["roc_auc"], "p (Holm)", "trainable parameters"]  # fmt: skip
    lines = [_markdown_row(header), _markdown_row(["---", *["---:"] * (len(header) - 1)])]
    for one in entries:
        name = title(one["network"], one["method"])
        lines.append(
            _markdown_row(
                [
                    f"**{name}**" if one["champion"] else name,
                    _chosen_by(one),
                    *_test_spread(one),
                    _with_interval(one["test"][metric]),
                    shown(one["test"]["roc_auc"]["value"]),
                    _p(one),
                    _amount(one["cost"]["trainable_parameters"]),
                ]
            )
        )
    said = " ".join([verdict(entries, confidence=confidence), *_about_repeats(entries)])
    return "\n".join([*lines, "", said]) + "\n"


def verdict(entries: Sequence[Entry], *, confidence: float) -> str:
    """Return in words what the test part says about the champion and the others."""
    champion, *others = entries
    metric, alpha = champion["selected_by"], 1 - confidence
    label = LABELS[metric]
    name = title(champion["network"], champion["method"])
    sentences = [f"On test, {name} reaches {label} {_with_interval(champion['test'][metric])}."]
    groups: dict[str, list[str]] = {"better": [], "worse": [], "chance": []}
    for one in others:
        paired = one["against_champion"]
        group = "chance"
        if paired["p_holm"] < alpha:
            group = "better" if paired["only_method_right"] > paired["only_champion_right"] else "worse"
        groups[group].append(title(one["network"], one["method"]))
    if groups["worse"]:
        sentences.append(f"It is right more often than {_listed(groups['worse'])}, beyond chance (p < {alpha:.2g}).")
    if groups["better"]:
        sentences.append(f"It is right less often than {_listed(groups['better'])}, beyond chance (p < {alpha:.2g}).")
    if groups["chance"]:
        sentences.append(f"The difference from {_listed(groups['chance'])} may be chance.")
    ahead = [
        f"{title(one['network'], one['method'])} ({shown(one['test'][metric]['value'])})"
        for one in others
        if one["against_champion"]["ahead_on_test"]
    ]
    if ahead:
        sentences.append(f"On test alone {_listed(ahead)} would rank higher; test does not choose.")
    return " ".join(sentences)


def csv_table(entries: Sequence[Entry]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the columns and rows of leaderboard.csv: one row an entry, four decimals."""
    rows = []
    for one in entries:
        row = {name: one[name] for name in ("rank", "run", "method", "network", "backbone", "stage", "champion")}
        row |= {"candidate": one["candidate"]["name"], "converged": one["candidate"]["converged"]}
        row |= {"candidates": one["candidates"]["count"], "unconverged": one["candidates"]["unconverged"]}
        for part in ("validation", "test"):
            for metric in LABELS:
                bounds = one[part][metric]
                row[f"{part}_{metric}"] = _decimals(bounds["value"])
                row |= {f"{part}_{metric}_{bound}": _decimals(bounds[bound]) for bound in ("low", "high")}
        paired = one["against_champion"]
        row |= {name: f"{paired[name]:.4g}" if paired else None for name in ("p", "p_holm")}
        row["difference"] = _decimals(paired["difference"]["value"]) if paired else None
        row |= _repeats_columns(one) | _calibration_columns(one)
        rows.append(row | {name: one["cost"][name] for name in artifacts.Cost.model_fields})
    return list(rows[0]), rows


def summary(entries: Sequence[Entry]) -> dict[str, dict[str, float | None]]:
    """Return metrics.json, small enough for a screen: the champion by a few metrics, every run by the chosen one."""
    champion = entries[0]
    metric = champion["selected_by"]
    names = dict.fromkeys([metric, "accuracy", "roc_auc", "log_loss"])
    found: dict[str, dict[str, float | None]] = {
        "champion": {f"validation_{metric}": champion["validation"][metric]["value"]}
        | {f"test_{name}": champion["test"][name]["value"] for name in names}
    }
    for one in entries:
        found[one["run"]] = {f"{part}_{metric}": one[part][metric]["value"] for part in ("validation", "test")}
        if one["repeats"]:
            found[one["run"]] |= {
                f"{part}_{metric}_{name}": value
                for part in ("validation", "test")
                for name, value in one["repeats"][part][metric].items()
            }
    return found


def mean_and_spread(one: Entry, part: str, metric: str) -> str:
    """Return mean ± standard deviation over the repeats; ± 0 if training draws nothing."""
    spread = one["repeats"][part][metric]
    return f"{shown(spread['mean'])} ± {shown(spread['sd']) if one['repeats']['draws'] else '0'}"


def _chosen_by(one: Entry) -> str:
    """Return what validation ranked the method by: the metric that chose, its mean if there are repeats."""
    metric = one["selected_by"]
    return mean_and_spread(one, "validation", metric) if one["repeats"] else shown(one["validation"][metric]["value"])


def _spread_label(entries: Sequence[Entry]) -> list[str]:
    repeats = entries[0]["repeats"]
    return [f"test {LABELS[entries[0]['selected_by']]}, {repeats['count']} trainings"] if repeats else []


def _test_spread(one: Entry) -> list[str]:
    return [mean_and_spread(one, "test", one["selected_by"])] if one["repeats"] else []


def _about_repeats(entries: Sequence[Entry]) -> list[str]:
    if not entries[0]["repeats"]:
        return []
    count = entries[0]["repeats"]["count"]
    text = (
        f"±: mean and standard deviation over {count} trainings with different seeds, all under this one split; the mean "
        "on validation ranks. Every other number is of the first training, whose model is kept."
    )
    same = [title(one["network"], one["method"]) for one in entries if not one["repeats"]["draws"]]
    return [f"{text} ± 0: training draws nothing ({_listed(same)})." if same else text]


def _repeats_columns(one: Entry) -> dict[str, Any]:
    repeats = one["repeats"]
    if not repeats:
        return {}
    row = {"repeats": repeats["count"], "draws": repeats["draws"]}
    for part in ("validation", "test"):
        for metric in LABELS:
            row |= {f"{part}_{metric}_{name}": _decimals(value) for name, value in repeats[part][metric].items()}
    return row


def _calibration_columns(one: Entry) -> dict[str, Any]:
    found = one["calibration"]
    if not found:
        return {}
    return {"calibrator": found["calibrator"]} | {
        f"calibrated_{part}_{metric}": _decimals(found[part][metric]["after"])
        for part in ("validation", "test")
        for metric in CALIBRATION_METRICS
    }


def _others(metric: str) -> list[str]:
    return [name for name in ALWAYS_SHOWN if name != metric]


def _other_labels(metric: str) -> list[str]:
    return [LABELS[name] for name in _others(metric)]


def _decimals(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _with_interval(bounds: Mapping[str, float | None]) -> str:
    return f"{shown(bounds['value'])} [{shown(bounds['low'])}, {shown(bounds['high'])}]"


def _p(one: Entry) -> str:
    if one["against_champion"] is None:
        return UNDEFINED
    p = one["against_champion"]["p_holm"]
    return "<0.001" if p < 0.001 else f"{p:.3f}"


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
