"""Labels, strata, groups and digests -> train, validation or test.

Stratified by (label, stratum). A group is never divided, and byte-identical images always form one. Parts that the
source predefines are kept as they are; missing ones are drawn from its train part. The result depends on the seed and
the images' contents, not on the order in which they are given, and not on earlier splits.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, Protocol

from pydantic import Field

from pipeline.console.errors import BakeoffError
from pipeline.core.artifacts import PARTS
from pipeline.core.params import Block

Cell = tuple[str, str]

# A larger cluster of near duplicates says that a hash sees all images alike, not that somebody took one twice.
LARGEST_CLUSTER_SHARE, LARGEST_CLUSTER_AT_LEAST = 0.01, 10


class SplitError(BakeoffError):
    """The images cannot be divided as asked."""


class SplitParams(Block):
    """``test``: share of all images; ``validation``: share of the images that are not test.

    Where the source predefines one of the two, the other is that share of its train part. ``near_duplicates``: whether
    images that look the same stay together; ``auto`` is ``report`` for ELPV, whose published protocol knows no groups,
    and ``group`` for every other source.
    """

    test: Annotated[float, Field(gt=0, lt=0.5)]
    validation: Annotated[float, Field(gt=0, lt=0.5)]
    near_duplicates: Literal["auto", "report", "group"]

    def groups_near_duplicates(self, source: str) -> bool:
        """Whether near duplicates of this source stay together."""
        return self.near_duplicates == "group" or (self.near_duplicates == "auto" and source != "elpv")


class Splittable(Protocol):
    """What a split needs to know of an image."""

    path: str
    label: str
    stratum: str
    group: str
    sha256: str
    part: str
    near_duplicates: str


class Move(NamedTuple):
    """An image that was in another part before. ``reason``: group, if one forced it; quota, if rounding alone did."""

    path: str
    before: str
    after: str
    reason: Literal["group", "quota"]


def assign(
    images: Sequence[Splittable], *, params: SplitParams, seed: int, together: Collection[str] = ()
) -> list[str]:
    """Return the part of every image, in the order given.

    Every (label, stratum) cell is divided by the largest-remainder method, so quotas are exact to rounding. An image,
    or a group, has a rank drawn from the seed and its content. Groups of several images are placed first, largest
    first, into the part that their rank falls in, or where most is missing if that part has no room for them; single
    images then fill the quotas in the order of their ranks. So a new image takes no other one's place except for
    rounding, or where a group needs it.

    ``together``: the clusters of near duplicates that form groups as well. Raises SplitError if a part would be left
    without an image of some class.
    """
    drawn, pool = _drawn(images)
    groups = _groups([images[index] for index in pool], together)
    parts = _with_pool(images, pool, _divide([images[index] for index in pool], drawn, params, seed, groups))
    _check(images, parts, drawn)
    return parts


def _drawn(images: Sequence[Splittable]) -> tuple[list[str], list[int]]:
    """Return the parts that are drawn, and the indices of the images that they are drawn from."""
    predefined = {image.part for image in images} - {""}
    drawn = [part for part in PARTS if part == "train" or part not in predefined]
    return drawn, [index for index, image in enumerate(images) if image.part in ("", "train")]


def _with_pool(images: Sequence[Splittable], pool: Sequence[int], divided: Sequence[str]) -> list[str]:
    parts = [image.part for image in images]
    for index, part in zip(pool, divided, strict=True):
        parts[index] = part
    return parts


def _divide(
    images: Sequence[Splittable],
    drawn: Sequence[str],
    params: SplitParams,
    seed: int,
    groups: Mapping[str, Sequence[int]],
) -> list[str]:
    """Return a part among ``drawn`` for every image. ``groups``: {name: indices}; every image is in one."""
    wanted = _wanted(images, drawn, params)
    part_of: dict[int, str] = {}

    def place(members: Sequence[int], part: str) -> None:
        for member in members:
            part_of[member] = part
            wanted[part][_cell(images[member])] -= 1

    order = sorted(groups, key=lambda name: (-len(groups[name]), _rank(seed, name)))
    for name in order:
        cells = Counter(_cell(images[member]) for member in groups[name])
        # How many of the group's images each part still wants; among equals, the part that wants most of their cells.
        missing = {part: sum(min(wanted[part][cell], count) for cell, count in cells.items()) for part in drawn}
        if len(groups[name]) > 1:
            own = _part_of_rank(_rank(seed, name), drawn, params)
            room = {part: sum(wanted[part][cell] for cell in cells) for part in drawn}
            best = max(drawn, key=lambda part: (missing[part], room[part]))
            place(groups[name], own if missing[own] == len(groups[name]) else best)
        else:
            # Test fills first, then validation: the lowest ranks are test whatever the validation share is.
            place(groups[name], next((part for part in ("test", "validation") if missing.get(part, 0) > 0), "train"))
    return [part_of[index] for index in range(len(images))]


def clusters(images: Sequence[Splittable]) -> tuple[set[str], set[str]]:
    """Return the clusters of near duplicates that may form a group, and those that are too large for one."""
    sizes = Counter(image.near_duplicates for image in images if image.near_duplicates)
    largest = max(LARGEST_CLUSTER_AT_LEAST, LARGEST_CLUSTER_SHARE * len(images))
    return {name for name, size in sizes.items() if size <= largest}, {n for n, size in sizes.items() if size > largest}


def straddling(images: Sequence[Splittable], parts: Sequence[str]) -> list[list[int]]:
    """Return the indices of every cluster of near duplicates that has images in several parts."""
    members = defaultdict(list)
    for index, image in enumerate(images):
        if image.near_duplicates:
            members[image.near_duplicates].append(index)
    return [indices for indices in members.values() if len({parts[index] for index in indices}) > 1]


def owed_to_groups(
    images: Sequence[Splittable],
    parts: Sequence[str],
    *,
    params: SplitParams,
    seed: int,
    together: Collection[str] = (),
) -> set[str]:
    """Return the digests of images that are where they are because of a group: those that share one, and those that
    would be in another part if every image stood alone, because a group has taken their place or left them its own.
    """
    shared = [index for indices in _groups(images, together).values() if len(indices) > 1 for index in indices]
    drawn, pool = _drawn(images)
    members = [images[index] for index in pool]
    seen: Counter = Counter()
    alone: dict[str, list[int]] = {}
    for index in sorted(range(len(members)), key=lambda index: members[index].path):
        digest = members[index].sha256
        alone[f"{digest}/{seen[digest]}" if seen[digest] else digest] = [index]
        seen[digest] += 1
    otherwise = _with_pool(images, pool, _divide(members, drawn, params, seed, alone))
    displaced = [index for index, part in enumerate(otherwise) if part != parts[index]]
    return {images[index].sha256 for index in (*shared, *displaced)}


def moves(
    images: Sequence[Splittable], parts: Sequence[str], *, before: Mapping[str, str], grouped: Collection[str]
) -> list[Move]:
    """Return the images that are in another part than ``before``, {identity: part}; new images are not among them.

    ``grouped``: digests of the images that were or are where they are because of a group (`owed_to_groups`).
    """
    return [
        Move(image.path, before[identity(image)], part, "group" if image.sha256 in grouped else "quota")
        for image, part in zip(images, parts, strict=True)
        if before.get(identity(image), part) != part
    ]


def identity(image: Splittable) -> str:
    """Return what an image is known by from one split to the next: its bytes, whatever its name is now.

    And its predefined part: the same bytes may lie in two of those.
    """
    return f"{image.part}/{image.sha256}"


def subset(images: Sequence[Splittable], *, limit: int, seed: int) -> list[int]:
    """Return the sorted indices of about ``limit`` images, every (label, stratum, predefined part) in proportion."""
    cells = defaultdict(list)
    for index, image in enumerate(images):
        cells[(*_cell(image), image.part)].append(index)
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


def _wanted(images: Sequence[Splittable], drawn: Sequence[str], params: SplitParams) -> dict[str, Counter]:
    """Return for every part the number of images it gets of every cell."""
    cells = Counter(_cell(image) for image in images)
    test = _quotas(cells, params.test, spare=len(drawn) - 1) if "test" in drawn else Counter()
    rest = Counter({cell: count - test[cell] for cell, count in cells.items()})
    validation = _quotas(rest, params.validation, spare=1) if "validation" in drawn else Counter()
    return {
        "train": Counter({cell: rest[cell] - validation[cell] for cell in cells}),
        "validation": validation,
        "test": test,
    }


def _quotas(cells: Mapping[Cell, int], share: float, *, spare: int) -> Counter:
    """Return a share of every cell, rounded; at least one image of every class that has more than ``spare``."""
    quotas = Counter(largest_remainder({cell: count * share for cell, count in cells.items()}))
    of_class = defaultdict(list)
    for cell in sorted(cells, key=lambda cell: (-cells[cell], cell)):
        of_class[cell[0]].append(cell)
    for members in of_class.values():
        if not any(quotas[cell] for cell in members) and sum(cells[cell] for cell in members) > spare:
            quotas[members[0]] += 1
    return quotas


def _part_of_rank(rank: bytes, drawn: Sequence[str], params: SplitParams) -> str:
    """Return the part that a rank falls in: test the lowest, then validation, each with its share."""
    position = int.from_bytes(rank[:8], "big") / 2**64
    test = params.test if "test" in drawn else 0.0
    validation = (1 - test) * params.validation if "validation" in drawn else 0.0
    return "test" if position < test else "validation" if position < test + validation else "train"


def _groups(images: Sequence[Splittable], together: Collection[str]) -> dict[str, list[int]]:
    """Return {group's name: indices}: images sharing a group, a cluster or their bytes are joined, transitively."""
    parent = list(range(len(images)))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[tuple[str, str], int] = {}
    for index, image in enumerate(images):
        keys = [("sha256", image.sha256)] + ([("group", image.group)] if image.group else [])
        keys += [("near", image.near_duplicates)] if image.near_duplicates in together else []
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


def _check(images: Sequence[Splittable], parts: Sequence[str], drawn: Sequence[str]) -> None:
    """Refuse a class without an image in train, or in a part that was drawn; a predefined one is as it is."""
    classes = {image.label for image in images}
    if len(classes) < 2:
        raise SplitError(f"A comparison needs at least two classes, received {sorted(classes)}")
    for part, label in missing_classes(images, parts):
        if part in drawn:
            members = [image for image in images if image.label == label]
            groups = len({image.group or image.sha256 for image in members})
            raise SplitError(
                f"The class {label!r} has {len(members)} images in {groups} groups, too few for one in every part: "
                f"none is {part}. Add images of it, or take the class out"
            )


def missing_classes(images: Sequence[Splittable], parts: Sequence[str]) -> list[tuple[str, str]]:
    """Return (part, class) for every class that a part has no image of."""
    present = set(zip(parts, (image.label for image in images), strict=True))
    classes = sorted({image.label for image in images})
    return [(part, label) for part in PARTS for label in classes if (part, label) not in present]
