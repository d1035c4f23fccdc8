"""Optimism and test looks as a person reads them: from the JSON of a section to a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.audits.fairness.page import Block, Figure, Page, Table
from pipeline.evaluation.leaderboard import LABELS, UNDEFINED, shown

# Of what changed between two looks, on the page; the JSON has all.
MOST_NAMED = 12
LONGEST_VALUE = 60

ABOUT_OPTIMISM = (
    "*Corrected*: bootstrap bias correction (Tsamardinos, Greasidou and Borboudakis 2018) over {samples:,} "
    "resamples of the {images:,} validation images: the best candidate of each resample is scored on the images "
    "that it did not draw. The interval is of those few images, so it is wide. *Optimism*: validation minus "
    "corrected. *Other choice*: the share of resamples in which another candidate was the best. One candidate "
    "leaves nothing to choose and nothing to correct. †: the number of trees or epochs was chosen on validation, "
    "too; that part of the optimism is in every candidate's predictions and cannot be corrected. ‡: `search: tpe` "
    "proposed candidates by the scores of earlier ones on the same images; which ones there are is then a choice, too, "
    "and cannot be corrected. Corrected scores with a mark are rather too good. The test score is "
    "one more sample with an error of its own, not the truth."
)
ABOUT_LOOKS = (
    "A look is a set of test scores in a results/metrics.json that no earlier commit has; comparing again without "
    "another score is none. Commits are of every branch, tag and DVC experiment in this clone: looks in clones "
    "and on machines that were never pushed from are unknown. *Unrecorded*: the dvc.lock of that commit does not "
    "have this metrics.json, so no recorded run of `compare` wrote it. *Later*: first published after the claim's "
    "scores were, by the order of commits; a claim that returns to old scores was made with these in sight."
)


# --- optimism ------------------------------------------------------------------------------------------------------


def optimism_page(found: Mapping[str, Any]) -> Page:
    metric, champion = found["metric"], found["champion"]
    label, confidence = LABELS[metric], f"{found['confidence']:.0%}"
    header = [
        "method",
        "candidates",
        f"validation {label}",
        f"corrected [{confidence} interval]",
        "optimism",
        f"test {label} [{confidence} interval]",
        "other choice",
    ]
    rows = [[one["title"], *_optimism_row(one)] for one in found["runs"]]
    rows.append([f"the champion, best of all: {champion['title']}", *_optimism_row(champion)])
    blocks: list[Block] = [
        Table(header, rows),
        Figure("optimism.png", "validation, corrected and test score of every method"),
        ABOUT_OPTIMISM.format(samples=found["samples"], images=found["images"]),
    ]
    if found["grouped"]:
        blocks.append("Whole groups are drawn: images of one group are alike.")
    if found["repeats"] > 1:
        blocks.append(f"All scores are of the first of {found['repeats']} trainings; the mean over all ranks methods.")
    return Page("Selection optimism", _optimism_finding(found), blocks)


def _optimism_finding(found: Mapping[str, Any]) -> str:
    champion, label = found["champion"], LABELS[found["metric"]]
    corrected = champion["corrected"]
    if corrected is None:
        return f"There was nothing to choose: one candidate of one method, {champion['title']}."
    stay = {"early stopping": champion["stops_on_validation"], "search: tpe": champion["learns_from_scores"]}
    causes = " and ".join(cause for cause, true in stay.items() if true)
    rest = f" (rather too good: what {causes} chose on validation stays in)" if causes else ""
    return (
        f"The champion, {champion['title']}, is the best of {champion['candidates']} candidates of "
        f"{len(found['runs'])} methods. Validation {label} {shown(champion['validation'])}; with the choice taken out "
        f"{shown(corrected['value'])}{rest}; test {shown(champion['test']['value'])}."
    )


def _marks(one: Mapping[str, Any]) -> str:
    """Return the marks of what else was chosen on validation, each behind a space."""
    marked = {"†": one["stops_on_validation"], "‡": one["learns_from_scores"]}
    return "".join(f" {mark}" for mark, true in marked.items() if true)


def _optimism_row(one: Mapping[str, Any]) -> list[str]:
    corrected, test = one["corrected"], one["test"]
    return [
        f"{one['candidates']:,}",
        shown(one["validation"]) + _marks(one),
        UNDEFINED if corrected is None else _with_interval(corrected),
        UNDEFINED if corrected is None else _signed(one["optimism"]),
        _with_interval(test),
        UNDEFINED if corrected is None else f"{corrected['changed']:.0%}",
    ]


def _with_interval(found: Mapping[str, Any]) -> str:
    return f"{shown(found['value'])} [{shown(found['low'])}, {shown(found['high'])}]"


def _signed(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:+.3f}"


# --- looks ---------------------------------------------------------------------------------------------------------


def looks_page(found: Mapping[str, Any]) -> Page:
    blocks: list[Block] = []
    if found["looks"]:
        label = LABELS[found["metric"]]
        header = [
            "commit",
            "date",
            "what the commit says",
            "test part",
            "champion",
            f"its test {label}",
            "methods",
            "new scores",
            "",
        ]
        rows = [_look_row(look) for look in found["looks"]]
        blocks += [Table(header, rows, words=(1, 2, 3, 4, 8)), Figure("looks.png", "test scores, look by look")]
    blocks.append(_about_mlflow(found["mlflow"]))
    if found["mlflow"] and found["mlflow"].get("never_committed"):
        rows = [
            [one["run"], shown(one["score"]), "deleted" if one["deleted"] else ""]
            for one in found["mlflow"]["never_committed"]
        ]
        blocks.append(Table(["in MLflow, in no commit", f"test {LABELS[found['metric']]}", ""], rows, words=(2,)))
    blocks += ["## What changed between the looks, newest first", *map(_changes, found["looks"]), ABOUT_LOOKS]
    return Page("Test looks", _looks_finding(found), blocks)


def _looks_finding(found: Mapping[str, Any]) -> str:
    said = f"The test part was scored {_looked(found['earlier'])} before this claim"
    if any(found["later"][where] for where in ("inside", "elsewhere")):
        said += f", and {_looked(found['later'])} after it was first published"
    said += f"; {found['scores']:,} different test scores were published."
    if not any(look["claim"] for look in found["looks"]):
        said = f"There is no claim here: results/metrics.json holds no test score. {said}"
    if others := sum(found[when]["other_test_parts"] for when in ("earlier", "later")):
        unknown = any(look["test_part"] == "unknown" for look in found["looks"])
        said += f" Another test part{', or one that is unknown,' if unknown else ''} was scored {_times(others)}."
    mlflow = found["mlflow"]
    if mlflow and mlflow.get("never_committed"):
        said += f" MLflow has {len(mlflow['never_committed'])} scores on this test part that were never committed."
    if unrecorded := sum(not look["vouched"] for look in found["looks"]):
        said += f" {unrecorded} of the sets of scores are unrecorded: no dvc.lock has them."
    if found["shallow"]:
        said += " This clone is shallow: older looks are missing (`git fetch --unshallow`)."
    return said


def _looked(counts: Mapping[str, int]) -> str:
    said = _times(counts["inside"] + counts["elsewhere"])
    if counts["elsewhere"]:
        said += f" ({_times(counts['elsewhere'])} of that on other branches or in experiments)"
    return said


def _times(count: int) -> str:
    return "never" if not count else "once" if count == 1 else f"{count} times"


def _look_row(look: Mapping[str, Any]) -> list[str]:
    marks = [
        name
        for name, marked in (
            ("this claim", look["claim"]),
            ("later", look["later"]),
            ("elsewhere", not look["inside"]),
            ("unrecorded", not look["vouched"]),
        )
        if marked
    ]
    return [
        look["commit"] or "not committed",
        look["date"],
        look["subject"] if look["commit"] else "",
        look["test_part"],
        look["champion"] or UNDEFINED,
        shown(look["champion_score"]),
        f"{len(look['scores'])}",
        f"{len(look['new'])}",
        ", ".join(marks),
    ]


def _about_mlflow(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "MLflow was not asked."
    if found["unavailable"]:
        return f"MLflow: {found['unavailable']}."
    return (
        f"MLflow has {found['models']:,} models with a score on this test part, deleted runs included; "
        f"{len(found['never_committed'])} of their scores are in no commit."
    )


def _changes(look: Mapping[str, Any]) -> str:
    """Return what led to one look as a list in Markdown."""
    changed = look["changed"]
    lines = [f"**{look['commit'] or 'not committed'}**" + (f" ({look['date']})" if look["date"] else "")]
    if not changed:
        unknown = look["test_part"] == "unknown"
        return f"{lines[0]}: {'its dvc.lock does not say what it was made from' if unknown else 'the first one'}."
    params = [f"{key}{_change(sides)}" for key, sides in changed["params"].items()]
    for name, entries in (
        ("params", params),
        ("code", changed["code"]),
        ("data", changed["data"]),
        ("stages that only one of both has", changed["stages"]),
    ):
        if entries:
            lines.append(f"- {name}: {_named(entries)}")
    lines += ["- another split"] if changed["split"] else []
    lines += ["- other locked packages"] if changed["packages"] else []
    if look["new"]:
        lines.append(f"- new scores of {_named(look['new'])}")
    return "\n".join(lines) if len(lines) > 1 else f"{lines[0]}: nothing that the lock knows of."


def _named(entries: Sequence[str]) -> str:
    more = f" and {len(entries) - MOST_NAMED} more" if len(entries) > MOST_NAMED else ""
    return ", ".join(f"`{entry}`" for entry in entries[:MOST_NAMED]) + more


def _change(sides: Mapping[str, Any]) -> str:
    if "before" not in sides:
        return f" (new{_value(sides['after'])})"
    if "after" not in sides:
        return " (gone)"
    return f"{_value(sides['before'])} →{_value(sides['after']).removeprefix(':')}"


def _value(value: Any) -> str:
    """Return a parameter behind a colon; nothing for a whole block."""
    if isinstance(value, Mapping):
        return ""
    text = json.dumps(value, ensure_ascii=False)
    return f": {text}" if len(text) <= LONGEST_VALUE else f": {text[:LONGEST_VALUE]}..."
