"""The comparison as entries of leaderboard.json, and the same as CSV and as the few numbers of metrics.json.

An entry is one method on one network, a JSON object:

- ``run``, ``method``, ``network``, ``backbone`` (null for a network without pretraining), ``stage``;
- ``ablation``: what was done wrongly on purpose, in words; null for a method as it is meant;
- ``rank`` by validation, ``champion``, ``selected_by`` (the metric that validation chose by);
- ``candidate``: name, parameters and convergence of the selected one; ``candidates``: how many, how many unconverged;
- ``validation``, ``test``: {metric: {value, low, high}}; ``strata``: {stratum: {n, value, low, high}} on test;
- ``against_champion``, null for the champion: on the test part, how often only one of the two is right; p and p_holm of
  the difference in the metric ``tested``, the one that chose (null where it is undefined); ``told_apart`` (whether
  p_holm is below 1 - confidence); the ``difference`` itself, method minus champion; and ``ahead_on_test``;
- ``cost``: counts of the selected model;
- ``repeats``, null for a method trained once: ``count``, ``draws`` (whether training draws anything), and for
  validation and test {metric: {mean, sd}} over all trainings, where every other number is of the first one;
- ``calibration``, null without: ``calibrator`` in words, and for validation (cross-fitted) and test {metric: {before,
  after}}, where every other number is of the probabilities as the model gives them.

Numbers have six significant digits, so that a diff shows changes and not noise; null is an undefined value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.core import artifacts

Entry = Mapping[str, Any]

DETAILS = artifacts.RESULTS / "details.json"
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


def shown_p(p: float | None) -> str:
    """Return a p-value with three decimals, or a dash for an undefined one."""
    return "<0.001" if p is not None and p < 0.001 else shown(p)


def title(network: str, method: str, ablation: str | None = None) -> str:
    """Return how a run is called in tables and figures."""
    return artifacts.marked(f"{network} · {method}", ablation)


def title_of(one: Entry) -> str:
    """Return how the run of an entry is called."""
    return title(one["network"], one["method"], one.get("ablation"))


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
        "ablation": record.ablation,
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


def csv_table(entries: Sequence[Entry]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the columns and rows of leaderboard.csv: one row an entry, four decimals."""
    rows = []
    for one in entries:
        about = ("rank", "run", "method", "network", "backbone", "stage", "ablation", "champion")
        row = {name: one[name] for name in about}
        row |= {"candidate": one["candidate"]["name"], "converged": one["candidate"]["converged"]}
        row |= {"candidates": one["candidates"]["count"], "unconverged": one["candidates"]["unconverged"]}
        for part in ("validation", "test"):
            for metric in LABELS:
                bounds = one[part][metric]
                row[f"{part}_{metric}"] = _decimals(bounds["value"])
                row |= {f"{part}_{metric}_{bound}": _decimals(bounds[bound]) for bound in ("low", "high")}
        paired = one["against_champion"]
        row["tested"] = paired["tested"] if paired else None
        defined = paired is not None and paired["p"] is not None
        row |= {name: f"{paired[name]:.4g}" if defined else None for name in ("p", "p_holm")}
        row["told_apart"] = paired["told_apart"] if paired else None
        row["difference"] = _decimals(paired["difference"]["value"]) if paired else None
        row |= _repeats_columns(one) | _calibration_columns(one)
        rows.append(row | {name: one["cost"][name] for name in artifacts.Cost.model_fields})
    return list(rows[0]), rows


def summary(entries: Sequence[Entry], ensemble: Mapping[str, Any] | None = None) -> dict[str, dict[str, float | None]]:
    """Return metrics.json, small enough for a screen: the champion by a few metrics, every run by the chosen one.

    Of an ensemble (see `ensemble_comparison`), what it reaches on validation, cross-fitted, and on test.
    """
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
    if ensemble:
        found["ensemble"] = {
            f"cross_fitted_{metric}": ensemble["ensemble"]["cross_fitted"][metric],
            f"test_{metric}": ensemble["ensemble"]["test"][metric]["value"],
        }
    return found


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


def _decimals(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"
