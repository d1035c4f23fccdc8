"""What is worth knowing about a data set before anything is trained on it: numbers, and which images to look at."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

# Tukey 1977: beyond three times the range between the quartiles, a value is far out.
FAR_OUT = 3.0
# Where most values are equal the quartiles meet; less than this many grey levels, or octaves of size, is no outlier.
LEAST_BRIGHTNESS, LEAST_OCTAVES = 16.0, 1.0
# The center crop of an image this many times as long as wide shows a third of it.
LONGEST_PROPORTION = 3.0
SMALLEST_SIDE = 32
# Grey levels: standard deviation of a thumbnail that shows nothing.
FLAT = 1.0


class Described(Protocol):
    """What is known of an image. ``thumbnail``: uint8 (32, 32) grey."""

    label: str
    group: str
    part: str
    near_duplicates: str
    sha256: str
    width: int
    height: int
    frames: int
    thumbnail: np.ndarray


@dataclass
class Suspects:
    """Indices of images to look at; those that belong together in one list."""

    conflicting: list[list[int]] = field(default_factory=list)
    conflicting_near: list[list[int]] = field(default_factory=list)
    duplicates: list[list[int]] = field(default_factory=list)
    near: list[list[int]] = field(default_factory=list)
    across_parts: list[list[int]] = field(default_factory=list)
    groups_across_parts: list[list[int]] = field(default_factory=list)
    brightness: list[list[int]] = field(default_factory=list)
    flat: list[list[int]] = field(default_factory=list)
    sizes: list[list[int]] = field(default_factory=list)


def suspects(images: Sequence[Described], *, left_out: Collection[int] = ()) -> Suspects:
    """Return which images are duplicates, near duplicates, outliers in brightness or of odd sizes.

    ``left_out``: indices of images that will not be used, and so lie in no part.
    """
    found = Suspects()
    for same in _several(images, lambda image: image.sha256):
        (found.conflicting if _differ(images, same, "label") else found.duplicates).append(same)
    for alike in _several(images, lambda image: image.near_duplicates):
        (found.conflicting_near if _differ(images, alike, "label") else found.near).append(alike)

    def across(key: Callable[[Described], str]) -> list[list[int]]:
        used = ([index for index in indices if index not in left_out] for indices in _several(images, key))
        return [indices for indices in used if _differ(images, indices, "part")]

    # Equal bytes are in one cluster, if in any.
    found.across_parts = across(lambda image: image.near_duplicates or image.sha256)
    found.groups_across_parts = across(lambda image: image.group)
    means = np.array([image.thumbnail.mean() for image in images])
    found.brightness = [[index] for index in _far_out(means, least=LEAST_BRIGHTNESS)]
    found.flat = [[index] for index, image in enumerate(images) if image.thumbnail.std() < FLAT]
    shorter = np.array([min(image.width, image.height) for image in images])
    longer = np.array([max(image.width, image.height) for image in images])
    # A data set of small images, as MNIST, is not odd altogether.
    odd = (longer >= LONGEST_PROPORTION * shorter) | (shorter < min(SMALLEST_SIDE, np.median(shorter)))
    odd[_far_out(np.log2(shorter), least=LEAST_OCTAVES)] = True
    found.sizes = [[int(index)] for index in np.flatnonzero(odd)]
    return found


def summarize(images: Sequence[Described], found: Suspects, *, dropped: int, ignored: int) -> dict[str, Any]:
    """Return the numbers of a data set as one nested mapping; counts of images unless the name says otherwise.

    ``duplicates_across_parts``: the images that are used, each once, of which a duplicate or near duplicate lies in
    another predefined part. ``groups_across_parts``: the groups, as ``groups`` counts them, that lie in several.
    """
    classes = Counter(image.label for image in images)
    shorter = [min(image.width, image.height) for image in images]
    means = np.array([image.thumbnail.mean() for image in images])
    return {
        "images": len(images),
        "dropped": dropped,
        "ignored": ignored,
        "classes": {"count": len(classes), "smallest": min(classes.values()), "largest": max(classes.values())},
        "groups": len({image.group for image in images} - {""}),
        "duplicates": {
            "images": _count(found.duplicates) + _count(found.conflicting),
            "conflicting": _count(found.conflicting),
        },
        "near_duplicates": {
            "clusters": len(found.near) + len(found.conflicting_near),
            "images": _count(found.near) + _count(found.conflicting_near),
            "conflicting": _count(found.conflicting_near),
        },
        "duplicates_across_parts": _count(found.across_parts),
        "groups_across_parts": len(found.groups_across_parts),
        "sizes": {"smallest_side": min(shorter), "largest_side": max(shorter), "odd": _count(found.sizes)},
        "brightness": {
            "median": round(float(np.median(means)), 1),
            "outliers": _count(found.brightness),
            "flat": _count(found.flat),
        },
        "animated": sum(image.frames > 1 for image in images),
    }


def conflicting_labels(images: Sequence[Described]) -> list[int]:
    """Return the indices of images whose bytes appear under another label as well."""
    groups = _several(images, lambda image: image.sha256)
    return sorted(index for same in groups if _differ(images, same, "label") for index in same)


def _several(images: Sequence[Described], key: Callable[[Described], str]) -> list[list[int]]:
    """Return the indices of images of one key, for every key that several images have; an empty key is none."""
    members = defaultdict(list)
    for index, image in enumerate(images):
        members[key(image)].append(index)
    return [indices for name, indices in members.items() if name and len(indices) > 1]


def _differ(images: Sequence[Described], indices: Sequence[int], name: str) -> bool:
    return len({getattr(images[index], name) for index in indices}) > 1


def _far_out(values: np.ndarray, *, least: float) -> list[int]:
    low, high = np.quantile(values, [0.25, 0.75])
    margin = max(FAR_OUT * (high - low), least)
    return [int(index) for index in np.flatnonzero((values < low - margin) | (values > high + margin))]


def _count(groups: Sequence[Sequence[int]]) -> int:
    return sum(map(len, groups))
