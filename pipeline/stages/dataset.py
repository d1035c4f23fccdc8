"""Read the source: one row an image in data/catalog.csv, what is not used and why, and what is worth knowing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.console.progress import Log, announce, progress, say
from pipeline.core import artifacts
from pipeline.core.params import Params
from pipeline.data import duplicates, quality, sources, splits
from pipeline.data.sources import SourceImage, Unused
from pipeline.images import decode
from pipeline.show import contact_sheet

QUALITY = artifacts.RESULTS / "data_quality.json"
UNUSED = artifacts.RESULTS / "unused_files.csv"
FIGURES = artifacts.RESULTS / "data"
CONTACT_SHEET, SUSPECTS = FIGURES / "contact_sheet.png", FIGURES / "suspects.png"

READS = ("seed", "dataset", "compute.threads")
INPUTS = ("{dataset.path}",)
OUTPUTS = (str(artifacts.CATALOG), str(QUALITY), str(UNUSED), str(CONTACT_SHEET), str(SUSPECTS))

UNUSED_COLUMNS = ("path", "label", "kind", "reason")
SHOWN = 20
SHEET_WIDTH, SHEET_CLASSES = 1160, 1000
# Up to so many classes: so many images of each, so many pixels a side. A page stays a few screens high.
SHEET_SIZES = ((12, 12, 88), (60, 5, 68), (SHEET_CLASSES, 2, 48))
SUSPECT_SIDE, SUSPECT_GROUPS, SUSPECT_MEMBERS = 132, 16, 8
SUSPECT_HEADINGS = {
    "conflicting": "Byte-identical, different labels",
    "conflicting_near": "Near duplicates, different labels",
    "duplicates": "Byte-identical",
    "near": "Near duplicates",
    "across_parts": "Duplicates or near duplicates in several predefined parts",
    "groups_across_parts": "Groups in several predefined parts",
    "brightness": "Far darker or brighter than the others",
    "flat": "Nothing to see: nearly one level of grey",
    "sizes": "Odd sizes",
}


@dataclass(frozen=True, kw_only=True)
class CheckedImage(SourceImage):
    """An image of the source and what decoding it found. ``thumbnail``: uint8 (32, 32) grey."""

    bytes: int
    width: int
    height: int
    mode: str
    frames: int
    turned: bool
    thumbnail: np.ndarray


def main(params: Params, *, log: Log) -> None:
    for output in map(Path, OUTPUTS):
        for abandoned in output.parent.glob(f".{output.name}.*"):  # by a reading that was killed
            abandoned.unlink()
    dataset = params.block("dataset", sources.DatasetParams)
    say(f"reading the images of {dataset.path}")
    source = sources.read(dataset)
    chosen: Sequence[SourceImage] = source.images
    if dataset.limit is not None:
        kept = splits.subset(source.images, limit=dataset.limit, seed=params.value("seed"))
        chosen = [source.images[index] for index in kept]
    sources.provide(dataset, chosen)
    say(f"checking {len(chosen)} of {len(source.images)} images")
    readable, unreadable = _check(source.root, chosen, threads=params.value("compute.threads"))
    counted = [*source.unused, *unreadable]
    if len(chosen) < len(source.images):
        # What is no image lies beside all the images, not beside those that a limit has left.
        _refuse_too_many(source.unused, len(source.images), dataset.max_dropped)
        counted = unreadable
    _refuse_too_many(counted, len(readable), dataset.max_dropped)
    announce("looking for images that look the same")
    readable = _with_clusters(readable)
    left_out = _settle_conflicts(readable, dataset.conflicting_duplicates)
    used = [image for index, image in enumerate(readable) if index not in left_out]
    _refuse_too_many([*counted, *left_out.values()], len(used), dataset.max_dropped)
    unused = sorted([*source.unused, *unreadable, *left_out.values()], key=lambda entry: entry.path)
    suspects = quality.suspects(readable, left_out=left_out)
    dropped = [entry for entry in unused if entry.kind == "dropped"]
    summary = quality.summarize(used, suspects, dropped=len(dropped), ignored=len(unused) - len(dropped))
    artifacts.write_csv(artifacts.CATALOG, sources.CATALOG_COLUMNS, [_row(image) for image in used])
    artifacts.write_csv(UNUSED, UNUSED_COLUMNS, [asdict(entry) for entry in unused])
    artifacts.write_json(QUALITY, summary)
    announce("drawing the contact sheet")
    _draw_contact_sheet(source.root, used)
    _draw_suspects(source.root, readable, suspects)
    _tell(used, unused, summary, suspects, readable=readable)


def _check(root: Path, chosen: Sequence[SourceImage], *, threads: int) -> tuple[list[CheckedImage], list[Unused]]:
    """Decode every image; return those that can be read whole, and the others with the reason."""
    with ThreadPoolExecutor(threads) as pool:
        inspections = list(
            progress(
                pool.map(decode.inspect, [root / image.path for image in chosen]),
                total=len(chosen),
                label="checking images",
                unit="images",
            )
        )
    readable, unreadable = [], []
    for image, found in zip(chosen, inspections, strict=True):
        if found.problem:
            unreadable.append(Unused(image.path, image.label, "dropped", found.problem))
        else:
            facts = {
                name: getattr(found, name) for name in ("width", "height", "mode", "frames", "turned", "thumbnail")
            }
            size = (root / image.path).stat().st_size
            readable.append(CheckedImage(**vars(image), **facts, bytes=size))
    return readable, unreadable


def _with_clusters(readable: Sequence[CheckedImage]) -> list[CheckedImage]:
    """Return the images with the name of the cluster of near duplicates they are in; equal bytes are looked at once."""
    once = {image.sha256: image for image in readable}
    thumbnails = np.array([image.thumbnail for image in once.values()])
    hashes = duplicates.perceptual_hashes(thumbnails)
    clusters = dict(zip(once, duplicates.cluster_names(list(once), hashes, thumbnails), strict=True))
    return [replace(image, near_duplicates=clusters[image.sha256]) for image in readable]


def _settle_conflicts(readable: Sequence[CheckedImage], policy: str) -> dict[int, Unused]:
    """Return {index: what becomes of it} of the images left out because equal bytes carry different labels."""
    conflicting = quality.conflicting_labels(readable)
    if policy == "keep" or not conflicting:
        return {}
    labels = defaultdict(set)
    for index in conflicting:
        labels[readable[index].sha256].add(readable[index].label)
    dropped = {}
    for index in conflicting:
        image = readable[index]
        reason = f"the same bytes are labelled {', '.join(sorted(labels[image.sha256]))}"
        dropped[index] = Unused(image.path, image.label, "dropped", reason)
    if policy == "stop":
        raise sources.DatasetError(
            f"{len(dropped)} images have the bytes of one with another label, and dataset.conflicting_duplicates is "
            f"stop:\n{_listed([*dropped.values()])}"
        )
    return dropped


def _refuse_too_many(unused: Sequence[Unused], used: int, allowed: float) -> None:
    dropped = [entry for entry in unused if entry.kind == "dropped"]
    if len(dropped) > allowed * (used + len(dropped)):
        raise sources.DatasetError(
            f"{len(dropped)} of {used + len(dropped)} files cannot be used, more than dataset.max_dropped = {allowed}:"
            f"\n{_listed(dropped)}\nMend or remove them, or raise dataset.max_dropped in params.yaml."
        )


def _listed(entries: Sequence[Unused]) -> str:
    shown = [f"  {entry.path}: {entry.reason}" for entry in entries[:SHOWN]]
    more = [f"  and {len(entries) - SHOWN} more"] if len(entries) > SHOWN else []
    return "\n".join(shown + more)


def _row(image: CheckedImage) -> dict[str, Any]:
    row = {name: getattr(image, name) for name in sources.CATALOG_COLUMNS if name != "brightness"}
    return row | {"turned": int(image.turned), "brightness": f"{image.thumbnail.mean():.1f}"}


def _tell(
    used: Sequence[CheckedImage],
    unused: Sequence[Unused],
    summary: dict[str, Any],
    suspects: quality.Suspects,
    *,
    readable: Sequence[CheckedImage],
) -> None:
    classes = Counter(image.label for image in used)
    shown = ", ".join(f"{count} {label}" for label, count in sorted(classes.items())[:SHOWN])
    more = f" and {len(classes) - SHOWN} classes more" if len(classes) > SHOWN else ""
    say(f"{len(used)} images: {shown}{more}")
    for kind in ("dropped", "ignored"):
        entries = [entry for entry in unused if entry.kind == kind]
        if entries:
            say(f"{len(entries)} {kind}, all listed in {UNUSED}:\n{_listed(entries)}")
    say(
        f"byte-identical to another: {summary['duplicates']['images']}, of them with different labels: "
        f"{summary['duplicates']['conflicting']}; near duplicates: {summary['near_duplicates']['images']}; odd in size "
        f"or brightness: {summary['sizes']['odd'] + summary['brightness']['outliers']}; look at {SUSPECTS}"
    )
    if suspects.across_parts:
        say(
            f"WARNING: {summary['duplicates_across_parts']} images of {len(suspects.across_parts)} sets of duplicates "
            f"or near duplicates lie in several predefined parts. They stay there, and flatter every method:\n"
            f"{_across(readable, suspects.across_parts)}"
        )
    if suspects.groups_across_parts:
        say(
            f"WARNING: {summary['groups_across_parts']} groups (dataset.groups) lie in several predefined parts. "
            f"They stay there, and flatter every method:\n{_across(readable, suspects.groups_across_parts)}"
        )


def _across(readable: Sequence[CheckedImage], sets: Sequence[Sequence[int]]) -> str:
    """Return a line for each of the first sets, with one image of every part."""
    lines = []
    for indices in sets[:SHOWN]:
        one_of_part = {readable[index].part: readable[index].path for index in reversed(indices)}
        lines.append("  " + ", ".join(sorted(one_of_part.values())))
    more = [f"  and {len(sets) - SHOWN} more"] if len(sets) > SHOWN else []
    return "\n".join(lines + more)


def _draw_contact_sheet(root: Path, used: Sequence[CheckedImage]) -> None:
    by_class = defaultdict(list)
    for image in used:
        by_class[image.label].append(image.path)
    labels = sorted(by_class)[:SHEET_CLASSES]
    count, side = next((count, side) for classes, count, side in SHEET_SIZES if len(labels) <= classes)
    strips = []
    for label in progress(labels, total=len(labels), label="drawing the contact sheet", unit="classes"):
        members = by_class[label]
        shown = [members[index * len(members) // min(count, len(members))] for index in range(min(count, len(members)))]
        pictures = [contact_sheet.Picture(decode.thumbnail(root / path, side=side)) for path in shown]
        strips.append(contact_sheet.Strip(f"{label}: {len(members):,}", pictures))
    with artifacts.whole_file(CONTACT_SHEET) as temporary:
        contact_sheet.draw(
            [contact_sheet.Section("", strips)],
            title=f"{len(used):,} images of {len(by_class):,} classes",
            subtitle="Some of every class, at equal distances in the order of their files"
            + (f"; the first {SHEET_CLASSES:,} classes" if len(by_class) > SHEET_CLASSES else ""),
            side=side,
            width=SHEET_WIDTH,
            path=temporary,
        )


def _draw_suspects(root: Path, readable: Sequence[CheckedImage], suspects: quality.Suspects) -> None:
    sections = []
    for field in fields(suspects):
        groups = getattr(suspects, field.name)
        if groups:
            count = f"{len(groups):,}" if len(groups) <= SUSPECT_GROUPS else f"{SUSPECT_GROUPS} of {len(groups):,}"
            heading = f"{SUSPECT_HEADINGS[field.name]} ({count})"
            strips = [_strip(root, readable, group) for group in groups[:SUSPECT_GROUPS]]
            sections.append(contact_sheet.Section(heading, strips))
    with artifacts.whole_file(SUSPECTS) as temporary:
        contact_sheet.draw(
            sections,
            title="Images to look at",
            subtitle="Whether they are wrong is yours to say" if sections else "None: nothing is out of the ordinary",
            side=SUSPECT_SIDE,
            width=SHEET_WIDTH,
            path=temporary,
        )


def _strip(root: Path, readable: Sequence[CheckedImage], group: Sequence[int]) -> contact_sheet.Strip:
    labels = sorted({readable[index].label for index in group})
    pictures = [
        contact_sheet.Picture(
            decode.thumbnail(root / image.path, side=SUSPECT_SIDE),
            f"{image.label}: {image.path}" if len(labels) > 1 else image.path,
        )
        for image in (readable[index] for index in group[:SUSPECT_MEMBERS])
    ]
    more = f" ({len(group)} images)" if len(group) > SUSPECT_MEMBERS else ""
    return contact_sheet.Strip(" / ".join(labels) + more, pictures)
