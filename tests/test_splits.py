"""Facts of the split: membership, quotas, groups, independence of order."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import splits
from pipeline.splits import SplitParams

PARAMS = SplitParams(test=0.25, validation=0.2)


def image(index: int, label: str, stratum: str = "", group: str = "", sha256: str | None = None):
    return SimpleNamespace(
        path=f"{label}/{index}.png", label=label, stratum=stratum, group=group, sha256=sha256 or f"{index:064x}"
    )


def dataset(per_cell: int = 40) -> list:
    cells = [(label, stratum) for label in ("a", "b", "c") for stratum in ("x", "y")]
    return [
        image(number * len(cells) + position, *cell) for position, cell in enumerate(cells) for number in range(per_cell)
    ]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(30, 80), min_size=2, max_size=5),
    test=st.floats(0.1, 0.45),
    validation=st.floats(0.1, 0.45),
    seed=st.integers(0, 10**6),
)
def test_every_image_is_in_exactly_one_part_and_quotas_are_exact_to_rounding(sizes, test, validation, seed):
    images = [image(1000 * c + n, f"class{c}") for c, size in enumerate(sizes) for n in range(size)]
    parts = splits.assign(images, params=SplitParams(test=test, validation=validation), seed=seed)
    assert len(parts) == len(images)
    assert set(parts) == {"train", "validation", "test"}
    half = 0.5 + 1e-9
    assert abs(parts.count("test") - len(images) * test) <= half
    assert abs(parts.count("validation") - (len(images) - parts.count("test")) * validation) <= half
    for c, size in enumerate(sizes):
        in_test = sum(part == "test" and i.label == f"class{c}" for part, i in zip(parts, images, strict=True))
        assert abs(in_test - size * test) < 1


@settings(max_examples=40, deadline=None)
@given(group_sizes=st.lists(st.integers(1, 6), min_size=40, max_size=80), seed=st.integers(0, 1000))
def test_no_group_is_divided(group_sizes, seed):
    images = []
    for number, size in enumerate(group_sizes):
        label = "ab"[number % 2]
        images += [image(len(images) + offset, label, group=f"g{number}") for offset in range(size)]
    parts = splits.assign(images, params=PARAMS, seed=seed)
    parts_of_group = {}
    for part, member in zip(parts, images, strict=True):
        parts_of_group.setdefault(member.group, set()).add(part)
    assert all(len(found) == 1 for found in parts_of_group.values())
    # Groups are small beside the parts here, so each part is within one group of its quota in every class.
    for label in "ab":
        total = sum(member.label == label for member in images)
        in_test = sum(p == "test" and member.label == label for p, member in zip(parts, images, strict=True))
        assert abs(in_test - total * 0.25) <= 6


def test_byte_identical_images_stay_together_even_across_named_groups():
    images = dataset()
    twin = [image(9000, "a", "x", group="first", sha256="f" * 64), image(9001, "a", "x", group="second", sha256="f" * 64)]
    chain = [image(9002, "a", "x", group="second"), image(9003, "b", "x", group="first")]
    for seed in range(20):
        parts = splits.assign(images + twin + chain, params=PARAMS, seed=seed)
        assert len(set(parts[-4:])) == 1


def test_the_order_of_images_does_not_matter():
    images = dataset()
    reference = {i.path: part for i, part in zip(images, splits.assign(images, params=PARAMS, seed=3), strict=True)}
    for shuffle in range(5):
        random.Random(shuffle).shuffle(images)
        parts = splits.assign(images, params=PARAMS, seed=3)
        assert {i.path: part for i, part in zip(images, parts, strict=True)} == reference


def test_seeds_give_different_splits_and_the_same_seed_the_same():
    images = dataset()
    first, again, other = (splits.assign(images, params=PARAMS, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_test_part_does_not_depend_on_the_share_of_validation():
    images = dataset()
    tests = [
        {i.path for i, part in zip(images, splits.assign(images, params=p, seed=0), strict=True) if part == "test"}
        for p in (PARAMS, SplitParams(test=0.25, validation=0.4))
    ]
    assert tests[0] == tests[1]


def test_strata_are_divided_like_the_whole():
    parts = splits.assign(dataset(40), params=PARAMS, seed=0)
    counts = Counter((part, i.label, i.stratum) for part, i in zip(parts, dataset(40), strict=True))
    assert {counts["test", label, stratum] for label in "abc" for stratum in "xy"} == {10}
    assert {counts["validation", label, stratum] for label in "abc" for stratum in "xy"} == {6}


def test_a_class_too_small_for_three_parts_is_an_error_naming_it():
    images = dataset() + [image(9000, "rare"), image(9001, "rare")]
    with pytest.raises(splits.SplitError, match="'rare' has 2 images"):
        splits.assign(images, params=PARAMS, seed=0)


def test_one_class_is_no_comparison():
    with pytest.raises(splits.SplitError, match="at least two classes"):
        splits.assign([image(n, "only") for n in range(50)], params=PARAMS, seed=0)


def test_a_subset_keeps_the_proportions():
    images = dataset(40)
    kept = splits.subset(images, limit=60, seed=0)
    counts = Counter((images[index].label, images[index].stratum) for index in kept)
    assert set(counts.values()) == {10}
    assert kept == sorted(set(kept))
