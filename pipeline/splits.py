"""Labels, strata, groups and digests -> train, validation or test.

Stratified by (label, stratum). A group is never divided, and byte-identical images always form one. The result
depends on the seed and the images' contents, not on the order in which they are given.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated, Protocol

from pydantic import Field

from pipeline.errors import BakeoffError
from pipeline.artifacts import PARTS
from pipeline.params import Block

Cell = tuple[str, str]


class SplitError(BakeoffError):
    """The images cannot be divided as asked."""


class SplitParams(Block):
    """``test``: share of all images; ``validation``: share of the images that are not test."""

    test: Annotated[float, Field(gt=0, lt=0.5)]
    validation: Annotated[float, Field(gt=0, lt=0.5)]


class Splittable(Protocol):
    """What a split needs to know of an image."""

    path: str
    label: str
    stratum: str
    group: str
    sha256: str


def assign(images: Sequence[Splittable], *, params: SplitParams, seed: int) -> list[str]:
    """Return the part of every image, in the order given.

    Every (label, stratum) cell is divided by the largest-remainder method, so quotas are exact to rounding; groups of
    several images are placed first, largest first, where most is missing, and single images then fill the quotas.
    Raises SplitError if a part would be left without an image of some class.
    """
    groups = _groups(images)
    wanted = _wanted(images, params)
    part_of: dict[int, str] = {}

    def place(members: Sequence[int], part: str) -> None:
        for member in members:
            part_of[member] = part
            wanted[part][_cell(images[member])] -= 1

    order = sorted(groups, key=lambda name: (-len(groups[name]), _rank(seed, name)))
    for name in order:
        cells = Counter(_cell(images[member]) for member in groups[name])
        # How many of the group's images each part still wants; among equals, the part that wants most of their cells.
        missing = {part: sum(min(wanted[part][cell], count) for cell, count in cells.items()) for part in PARTS}
        if len(groups[name]) > 1:
            room = {part: sum(wanted[part][cell] for cell in cells) for part in PARTS}
            place(groups[name], max(PARTS, key=lambda part: (missing[part], room[part])))
        else:
            # Test fills first, then validation: the lowest ranks are test whatever the validation share is.
            place(groups[name], next((part for part in ("test", "validation") if missing[part] > 0), "train"))
    parts = [part_of[index] for index in range(len(images))]
    _check(images, parts)
    return parts


def subset(images: Sequence[Splittable], *, limit: int, seed: int) -> list[int]:
    """Return the sorted indices of about ``limit`` images, every (label, stratum) cell in proportion."""
    cells = defaultdict(list)
    for index, image in enumerate(images):
        cells[_cell(image)].append(index)
    share = min(1.0, limit / len(images))
    quotas = largest_remainder({cell: len(members) * share for cell, members in cells.items()})
    chosen = []
    for cell, members in cells.items():
        ranked = sorted(members, key=lambda index: (_rank(seed, images[index].sha256), images[index].path))
        chosen += ranked[: quotas[cell]]
    return sorted(chosen)


def largest_remainder(shares: Mapping[Hashable, float]) -> dict[Hashable, int]:
    """Round shares to integers that sum to their rounded total: the largest remainders are rounded up."""
    floors = {key: int(share + 1e-9) for key, share in shares.items()}
    left = round(sum(shares.values())) - sum(floors.values())
    by_remainder = sorted(shares, key=lambda key: (-(shares[key] - floors[key]), repr(key)))
    return {key: floors[key] + (key in by_remainder[:left]) for key in shares}


def _wanted(images: Sequence[Splittable], params: SplitParams) -> dict[str, Counter]:
    cells = Counter(_cell(image) for image in images)
    test = largest_remainder({cell: count * params.test for cell, count in cells.items()})
    rest = {cell: count - test[cell] for cell, count in cells.items()}
    validation = largest_remainder({cell: count * params.validation for cell, count in rest.items()})
    return {
        "train": Counter({cell: rest[cell] - validation[cell] for cell in cells}),
        "validation": Counter(validation),
        "test": Counter(test),
    }


def _groups(images: Sequence[Splittable]) -> dict[str, list[int]]:
    """Return {group's name: indices}: images sharing a group or their bytes are joined, transitively."""
    parent = list(range(len(images)))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[tuple[str, str], int] = {}
    for index, image in enumerate(images):
        keys = [("sha256", image.sha256)] + ([("group", image.group)] if image.group else [])
        for key in keys:
            parent[find(index)] = find(first.setdefault(key, index))
    members = defaultdict(list)
    for index in range(len(images)):
        members[find(index)].append(index)
    # Named by its smallest digest, a group has the same rank however the images are ordered.
    return {min(images[index].sha256 for index in indices): indices for indices in members.values()}


def _cell(image: Splittable) -> Cell:
    return (image.label, image.stratum)


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/split/{name}".encode()).digest()


def _check(images: Sequence[Splittable], parts: Sequence[str]) -> None:
    classes = {image.label for image in images}
    if len(classes) < 2:
        raise SplitError(f"A comparison needs at least two classes, received {sorted(classes)}")
    present = set(zip(parts, (image.label for image in images), strict=True))
    for part in PARTS:
        for label in sorted(classes):
            if (part, label) not in present:
                count = sum(image.label == label for image in images)
                raise SplitError(f"The class {label!r} has {count} images, too few for one in every part: none is {part}")
