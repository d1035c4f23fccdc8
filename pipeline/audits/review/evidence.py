"""What the split and the predictions themselves say: leaks, changed labels, and metrics computed once more.

The one module of the review that reads labels of the test part. They judge claims; they choose nothing.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.audits.review import locks
from pipeline.audits.review.tolerance import ToleranceParams
from pipeline.audits.review.verdicts import PREDICTIONS, RECORD, Truth
from pipeline.core import artifacts, params, provenance
from pipeline.evaluation import leaderboard, metrics

# Where the tables of all images and of the split lie in a project, as dvc.yaml writes it.
IMAGE_TABLE = artifacts.CATALOG.as_posix()
SPLIT_TABLE = artifacts.MANIFEST.as_posix()
MOST_SHOWN = 5


def truth(claimed: Path | None, replayed: Path, values: Mapping[str, Any]) -> Truth | None:
    """Return what paired predictions are measured by; None unless both manifests have the same images and labels in
    validation, and in test.

    ``values``: of params.yaml where the metrics were claimed.
    """
    try:
        if claimed is None or not replayed.is_file():
            return None
        before, after = (
            {part: _labelled(part, manifest) for part in ("validation", "test")} for manifest in (claimed, replayed)
        )
        if any(
            (one.classes, one.sha256) != (after[name].classes, after[name].sha256)
            or (one.labels != after[name].labels).any()
            for name, one in before.items()
        ):
            return None
        selection = params.parse(params.lookup(values, "selection"), metrics.SelectionParams, where="selection")
        positive = metrics.positive_index(after["test"].classes, selection)
        bins = params.lookup(values, "compare.calibration_bins")
    except (artifacts.ArtifactError, params.ParamsError):
        return None
    labels, groups = ({name: getattr(part, of) for name, part in after.items()} for of in ("labels", "groups"))
    return Truth(labels, positive, selection.metric, bins, groups)


def _labelled(name: str, manifest: Path) -> artifacts.Part:
    """Return a part with its labels, of test as well."""
    part = artifacts.read_part(name, manifest)
    return replace(part, labels=artifacts.read_test_labels(manifest)) if name == "test" else part


def test_part(manifest: Path) -> str:
    """Return a digest of the images of the test part and of their labels, in order."""
    part = artifacts.read_part("test", manifest)
    labels = [part.classes[label] for label in artifacts.read_test_labels(manifest)]
    return provenance.digest(list(zip(part.sha256, labels, strict=True)))


def leaks(manifest: Path) -> list[tuple[str, str]]:
    """Return (sha256, what it is in words) of every image of train or validation that has the bytes of one in the test
    part."""
    parts = {name: artifacts.read_part(name, manifest) for name in artifacts.PARTS}
    test = dict(zip(parts["test"].sha256, parts["test"].paths, strict=True))
    return [
        (sha256, f"{path} has the bytes of {test[sha256]}")
        for name in artifacts.PARTS
        if name != "test"
        for sha256, path in zip(parts[name].sha256, parts[name].paths, strict=True)
        if sha256 in test
    ]


def copies(parts: Mapping[str, Path]) -> list[tuple[str, str]]:
    """Return (sha256, what it is in words) of every file in the folders of train or validation that has the bytes of
    one in that of test.

    ``parts``: part -> folder. Looks at the files, whatever a manifest says of them.
    """
    if "test" not in parts:
        return []
    test = {artifacts.sha256_file(parts["test"] / name): name for name in locks.names_in(parts["test"])}
    return [
        (found, f"{part}/{name} has the bytes of test/{test[found]}")
        for part, folder in parts.items()
        if part != "test"
        for name in locks.names_in(folder)
        if (found := artifacts.sha256_file(folder / name)) in test
    ]


def predefined_twice(catalog: Path) -> set[str]:
    """Return the sha256 of every image that the source itself puts into its test part and into another one."""
    parts = defaultdict(set)
    for row in _rows(catalog):
        parts[row.get("sha256")].add(row.get("part"))
    return {sha256 for sha256, found in parts.items() if "test" in found and len(found) > 1}


def changed_rows(claimed: Path, replayed: Path) -> list[str]:
    """Return, in words, which images of two catalogs or manifests have another label or part, or are in one alone.

    Nothing for a table that is neither.
    """
    sides = [_rows(path) for path in (claimed, replayed)]
    if not all(rows and {"path", "label", "sha256"} <= rows[0].keys() for rows in sides):
        return []
    before, after = (_by_image(rows) for rows in sides)
    found = []
    for sha256 in dict.fromkeys([*before, *after]):
        one, other = before.get(sha256, []), after.get(sha256, [])
        if len(one) != len(other):
            which, more, less = ("claimed", one, other) if len(one) > len(other) else ("not claimed", other, one)
            beside = f", beside {less[0]['path']}, which has the same bytes" if less else ""
            found.append(f"{which}: {', '.join(row['path'] for row in more if row not in less)}{beside}")
            continue
        for first, second in zip(one, other, strict=True):
            found += [
                f"{second['path']}: {column} {second[column]}, claimed {first[column]}"
                for column in ("label", "split", "part", "group")
                if first.get(column) != second.get(column)
            ]
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _by_image(rows: Sequence[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    found = defaultdict(list)
    for row in rows:
        found[row["sha256"]].append(row)
    return found


def disagreements(
    entries: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any] | None,
    *,
    run: Callable[[str], Path | None],
    table: Path | None,
    values: Mapping[str, Any],
    tolerance: ToleranceParams,
) -> tuple[list[str], list[str]]:
    """Compute the committed metrics of a leaderboard again from the claimed predictions.

    Returns, in words, what disagrees, and the names of the runs that could not be computed. ``summary``: metrics.json.
    ``run``: returns the claimed directory of a run, None if it cannot be had. ``table``: the claimed manifest, None
    without.
    """
    found = _summary_disagrees(entries, summary)
    unknown = []
    for entry in entries:
        directory = run(entry["run"])
        try:
            if directory is None or table is None:
                raise artifacts.ArtifactError("not available")
            computed = _computed(directory, table, values)
        except (artifacts.ArtifactError, params.ParamsError, ValueError):
            unknown.append(entry["run"])
            continue
        for part, scores in computed.items():
            for name, score in scores.items():
                if name not in entry[part]:
                    continue
                stated, received = entry[part][name]["value"], leaderboard.number(score)
                if stated != received and (None in (stated, received) or not tolerance.close(stated, received)):
                    text = f"{entry['run']}: {part} {name} is committed as {stated}, its predictions give {received}"
                    found.append(text)
    return found, unknown


def _computed(directory: Path, manifest: Path, values: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    predictions = artifacts.read_predictions(directory / PREDICTIONS)
    record = artifacts.read_record(directory / RECORD)
    selection = params.parse(params.lookup(values, "selection"), metrics.SelectionParams, where="selection")
    validation = artifacts.read_part("validation", manifest)
    sides = {
        "validation": (predictions.validation[record.selected], validation.labels),
        "test": (predictions.test, artifacts.read_test_labels(manifest)),
    }
    positive = metrics.positive_index(validation.classes, selection)
    bins = params.lookup(values, "compare.calibration_bins")
    return {
        part: metrics.compute(probabilities, labels, positive=positive, calibration_bins=bins)
        for part, (probabilities, labels) in sides.items()
    }


def _summary_disagrees(entries: Sequence[Mapping[str, Any]], summary: Mapping[str, Any] | None) -> list[str]:
    """Return where metrics.json says other numbers than leaderboard.json: one of the two was not computed."""
    if summary is None or not entries:
        return []
    stated = {entry["run"]: entry for entry in entries}
    stated["champion"] = next((entry for entry in entries if entry["champion"]), entries[0])
    found = []
    for run, scores in summary.items():
        for name, value in scores.items() if run in stated else ():
            part, _, metric = name.partition("_")
            score = stated[run].get(part, {}).get(metric)
            if score is not None and score["value"] != value:
                found.append(f"{run}: {name} is {value} in metrics.json and {score['value']} in leaderboard.json")
    return found


def counted(found: Sequence[str]) -> str:
    """Return the first of many sentences, and how many more there are."""
    more = len(found) - MOST_SHOWN
    return "; ".join(found[:MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")
