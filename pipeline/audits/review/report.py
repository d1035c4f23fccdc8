"""A review as JSON, Markdown and one HTML file: the verdict first, then what a reviewer signs, then everything."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.audits.review import causes, plan, replay, verdicts
from pipeline.audits.review.audit import Review
from pipeline.audits.review.verdicts import CLOSE, DIVERGED, EQUIVALENT, IDENTICAL, VERDICTS, Metric, ReviewParams
from pipeline.core import artifacts, provenance
from pipeline.evaluation.leaderboard import UNDEFINED

FOLDER = artifacts.RESULTS / "review"
NAMES = ("review.md", "review.json", "review.html")
SIGNATURE = ("Name", "Date", "Signature", "I accept / reject")
# The line that a reviewer fills in, once for each of them.
UNSIGNED = "________________"
HEADLINES = {
    IDENTICAL: "REPRODUCED, identical",
    CLOSE: "REPRODUCED within tolerance",
    EQUIVALENT: "REPRODUCED, statistically equivalent",
    DIVERGED: "NOT REPRODUCED",
}
# Of a directory that is named after the stages that were replayed.
LONGEST_NAME = 100
# A longer list, such as that of all packages, is for review.json.
MOST_ENTRIES = 40
# Whatever is reproduced then, is no fair comparison.
LEAKY = "REPRODUCED, with images of the test part in train"
MISSING = (
    "Of these outputs the claimed bytes are in neither git, the workspace, the DVC cache nor a DVC remote; what is left"
    " of the claim is a digest, which differs. Nobody can say whether labels changed in them, whether test images lie"
    " in train, or how predictions differ. To know, `dvc push` where they were made, `dvc pull` here, review again:"
)
# Of every run; all others only where they are not identical, and in review.json.
SHOWN_METRICS = ("validation_accuracy", "test_accuracy", "test_roc_auc")


class Table(NamedTuple):
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Section(NamedTuple):
    """``content``: paragraphs, tables and lists (tuples of text), in order."""

    title: str
    content: Sequence[str | Table | tuple[str, ...]]


def directory(
    project: Path, review_commit: str, against: str | None, *, stages: Sequence[str] = (), quick: bool = False
) -> Path:
    """Return where a review is written: one directory for each commit, other ones for reviews by other claims and for
    each choice of stages, so that none takes the place of a whole one, or of another part."""
    chosen = "-".join(sorted(set(stages)))
    if len(chosen) > LONGEST_NAME:
        chosen = f"{len(set(stages))}-stages-{provenance.digest(sorted(set(stages)))[:12]}"
    parts = [review_commit[:12], *(["against", against[:12]] if against else [])]
    return project / FOLDER / "-".join([*parts, *(["quick"] if quick else []), *([chosen] if chosen else [])])


def is_signed(place: Path) -> bool:
    """Whether a review lies there that somebody filled in, or began to."""
    file = place / NAMES[0]
    return file.is_file() and file.read_text(encoding="utf-8").count(UNSIGNED) < len(SIGNATURE)


def headline(review: Review) -> str:
    """Return the verdict in one line."""
    judged = verdicts.worst(one.verdict for one in (*review.outputs, *review.metrics))
    leaky = judged != DIVERGED and any(one.kind == causes.LEAK for one in review.findings)
    parts = [f"{LEAKY if leaky else HEADLINES[review.verdict]}: {_counts(review)}"]
    reasons = review.causes or tuple(one for one in review.findings if review.verdict == DIVERGED)
    if reasons:
        named = (f"{one.kind} ({one.stage})" if one.stage else one.kind for one in reasons)
        parts.append("; ".join(dict.fromkeys(named)))
    if review.left_out:
        parts.append(f"{len(review.left_out)} stages were not replayed")
    return ". ".join(parts)


def _counts(review: Review) -> str:
    told = []
    for what, judged in (("outputs", review.outputs), ("metrics", review.metrics)):
        counts = {verdict: sum(one.verdict == verdict for one in judged) for verdict in VERDICTS}
        listed = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
        told.append(f"of {len(judged)} {what} {listed}" if judged else f"no {what} compared")
    return "; ".join(told)


def as_json(review: Review, *, params: ReviewParams, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that a review found as one JSON value."""
    return {
        "verdict": review.verdict,
        "headline": headline(review),
        "revision": review.revision,
        "commit": review.commit,
        "against": review.against,
        "data": dict(zip(("path", "digest"), review.data, strict=True)),
        "judged_by": params.model_dump(),
        "outputs": [{**vars(one), "notes": list(one.notes)} for one in review.outputs],
        "metrics": [vars(one) for one in review.metrics],
        "findings": [vars(one) for one in review.findings],
        "causes": [vars(one) for one in review.causes],
        "stages": {one.stage: {"seconds": round(one.seconds, 1), "failure": one.failure} for one in review.executed},
        "left_out": dict(review.left_out),
        "not_recomputed": list(review.not_recomputed),
        "records": {run: digest for run, (digest, _) in review.records.items()},
        "environment": dict(environment),
        "environment_notes": list(review.environment_notes),
    }


def write(
    place: Path, review: Review, *, params: ReviewParams, environment: Mapping[str, Any], date: str
) -> list[Path]:
    """Write the three files of a review and return their paths. ``date``: of the replay, in words."""
    sections = _sections(review, params, environment, date)
    content = as_json(review, params=params, environment=environment) | {"date": date}
    paths = [place / name for name in NAMES]
    artifacts.write_text(paths[0], markdown(headline(review), sections))
    artifacts.write_json(paths[1], content)
    artifacts.write_text(paths[2], page(headline(review), sections, good=review.verdict != DIVERGED))
    return paths


# --- what it says --------------------------------------------------------------------------------------------------


def _sections(review: Review, params: ReviewParams, environment: Mapping[str, Any], date: str) -> list[Section]:
    facts = [
        ("Revision", f"{review.revision} ({review.commit})"),
        ("Claims of", review.against or "the same commit"),
        ("Raw data", f"{review.data[0]}, digest {review.data[1]}"),
        ("Replayed", f"{len(review.executed)} stages on {date}, in {_duration(review)}"),
        ("Not replayed", plan.in_words(review.left_out) or "nothing was left out"),
    ]
    signature = [(name, UNSIGNED) for name in SIGNATURE]
    sections = [
        Section("To sign", [Table(("what", "which"), facts), Table(("reviewer", ""), signature)]),
        Section("Why", _reasons(review)),
        Section("Metrics", [_metrics(review)]),
        Section("Outputs", [_outputs(review)]),
        Section("Stages", [_stages(review)]),
        Section("Environment of the replay", [_environment(review, environment)]),
        Section("How this was judged", list(_rules(params))),
    ]
    return [section for section in sections if section.content]


def _reasons(review: Review) -> list[str | Table | tuple[str, ...]]:
    content: list[str | Table | tuple[str, ...]] = []
    for title, found in (
        ("Cause of the first difference:", review.causes),
        ("Found without replaying, or whatever the replay gave:", review.findings),
    ):
        if found:
            content += [title, Table(("cause", "stage", "what"), [(one.kind, one.stage, one.text) for one in found])]
    if missing := [one.path for one in review.outputs if one.claimed_bytes_missing]:
        content += [MISSING, tuple(missing)]
    if review.environment_notes:
        content += ["Packages that are not those of requirements.lock:", tuple(review.environment_notes)]
    if review.not_recomputed:
        names = ", ".join(review.not_recomputed)
        content.append(f"Committed metrics not computed again, because the claimed predictions are not here: {names}.")
    if not content:
        content.append(
            "Nothing diverged; lock, params, code and data of the revision belong together, and the committed metrics "
            "are those of the claimed predictions."
        )
    return content


def _metrics(review: Review) -> Table:
    rows = [
        (one.run, one.name, verdicts.shown(one.claimed), verdicts.shown(one.replayed), one.verdict, one.note)
        for one in review.metrics
        if one.verdict != IDENTICAL or one.name in SHOWN_METRICS or one.run == "champion"
    ]
    return Table(("run", "metric", "claimed", "replayed", "verdict", "note"), rows)


def _outputs(review: Review) -> Table:
    rows = [
        (
            one.stage,
            one.path,
            one.verdict,
            one.basis,
            (one.claimed or UNDEFINED)[:12],
            (one.replayed or UNDEFINED)[:12],
            "; ".join(one.notes),
        )
        for one in review.outputs
    ]
    return Table(("stage", "output", "verdict", "judged by", "claimed", "replayed", "note"), rows)


def _stages(review: Review) -> Table:
    rows = [
        (one.stage, replay.spoken(one.seconds), (one.failure or "").replace("\n", " / ") or "ran to its end")
        for one in review.executed
    ]
    rows += [(name, UNDEFINED, f"not replayed: {why}") for name, why in review.left_out.items()]
    return Table(("stage", "took", "how it ended"), rows)


def _environment(review: Review, environment: Mapping[str, Any]) -> Table:
    return Table(("what", "which"), list(_flat(environment)))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and len(value) > MOST_ENTRIES:
            yield f"{prefix}{name}", f"{len(value)} entries, in {NAMES[1]}"
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _rules(params: ReviewParams) -> Iterable[str]:
    tolerance, equivalence = params.tolerance, params.equivalence
    yield f"{IDENTICAL}: the same bytes, by the digest in dvc.lock, or of the file in git."
    yield (
        f"{CLOSE}: every number differs by at most {tolerance.absolute:g} + {tolerance.relative:g} x the claimed one; "
        "of a run, every probability. Where only the digest of the claim is left, the committed metrics of the runs "
        "made from it decide."
    )
    yield (
        f"{EQUIVALENT}: the {equivalence.confidence:.0%} interval of the difference in every metric of validation and "
        f"of test lies within ±{equivalence.margin:g}, of log loss and Brier score within ±{equivalence.loss_margin:g} "
        "x what equal probabilities lose; by the score test for accuracy, by the paired bootstrap over the images "
        f"({equivalence.bootstrap_samples} resamples) for the others. Tables and figures must be what their stage "
        "makes of the claimed runs."
    )
    yield (
        f"{DIVERGED}: everything else. Causes are sought at the first stages that are not identical, and at the first "
        f"that diverged: {_kinds()}."
    )


def _kinds() -> str:
    return ", ".join(
        (
            causes.DATA,
            causes.PARAMS,
            causes.CODE,
            causes.ENVIRONMENT,
            causes.NOT_DETERMINISTIC,
            causes.FABRICATED,
            causes.UNEXPLAINED,
        )
    )


def _duration(review: Review) -> str:
    return replay.spoken(sum(one.seconds for one in review.executed))


# --- how it looks --------------------------------------------------------------------------------------------------


def markdown(title: str, sections: Iterable[Section]) -> str:
    """Return sections as Markdown, the title on the first line."""
    lines = [f"# {title}"]
    for section in sections:
        lines += ["", f"## {section.title}"]
        for part in section.content:
            lines.append("")
            if isinstance(part, Table):
                rows = [part.columns, ["---"] * len(part.columns), *part.rows]
                lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
            elif isinstance(part, tuple):
                lines += [f"- {text}" for text in part]
            else:
                lines.append(part)
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76em; margin: 2em auto; padding: 0 1em; color: #1f2933 }
h1 { font-size: 1.4em; border-left: .4em solid COLOR; padding-left: .6em }
h2 { font-size: 1.1em; margin-top: 2em }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: .8em 0 }
th, td { text-align: left; vertical-align: top; padding: .25em .8em .25em 0; border-bottom: 1px solid #d9dfe6 }
th { color: #66727f; font-weight: 600 }
tr.diverged td { background: #fbeaea }
@media print { body { margin: 0 } table { display: table } }
"""


def page(title: str, sections: Iterable[Section], *, good: bool) -> str:
    """Return sections as one HTML file that needs no other; the title is marked by whether the news is good."""
    color = "#2e7d32" if good else "#b3261e"
    body = [f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        body.append(f"<h2>{html.escape(section.title)}</h2>")
        for part in section.content:
            if isinstance(part, Table):
                body.append(_table(part))
            elif isinstance(part, tuple):
                body.append("<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in part) + "</ul>")
            else:
                body.append(f"<p>{html.escape(part)}</p>")
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE.replace("COLOR", color)}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        marked = ' class="diverged"' if DIVERGED in cells else ""
        return f"<tr{marked}>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{row(table.columns, 'th')}{''.join(row(cells, 'td') for cells in table.rows)}</table>"


def summary(review: Review, places: Sequence[Path]) -> str:
    """Return what the console says at the end."""
    lines = [headline(review)]
    lines += [f"  cause: {one.kind}, {one.stage}: {one.text}" for one in review.causes]
    lines += [f"  found: {one.kind}, {one.stage}: {one.text}" for one in review.findings if one not in review.causes]
    lines += [
        f"  {one.verdict}: {one.path} ({one.stage}){_because(one.notes)}"
        for one in review.outputs
        if one.verdict == DIVERGED
    ]
    told = (*SHOWN_METRICS, "run")
    lines += [_line(one) for one in review.metrics if one.verdict == DIVERGED and one.name in told]
    lines.append(f"to read and sign: {', '.join(map(str, places))}")
    return "\n".join(lines)


def _because(notes: Sequence[str]) -> str:
    return f": {notes[0]}" if notes else ""


def _line(one: Metric) -> str:
    sides = [verdicts.shown(value) for value in (one.replayed, one.claimed)]
    return f"  {one.verdict}: {one.run} {one.name} {sides[0]}, claimed {sides[1]}"
