"""Facts of the split: membership, quotas, groups, independence of order."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import splits
from pipeline.data.splits import SplitParams

PARAMS = SplitParams(test=0.25, validation=0.2, near_duplicates="group")


def image(index: int, label: str, stratum: str = "", group: str = "", sha256: str | None = None, part="", near=""):
    return SimpleNamespace(
        path=f"{label}/{index}.png",
        label=label,
        stratum=stratum,
        group=group,
        sha256=sha256 or f"{index:064x}",
        part=part,
        near_duplicates=near,
    )


def shares(test: float, validation: float) -> SplitParams:
    return SplitParams(test=test, validation=validation, near_duplicates="group")


def dataset(per_cell: int = 40) -> list:
    cells = [(label, stratum) for label in ("a", "b", "c") for stratum in ("x", "y")]
    return [
        image(number * len(cells) + position, *cell)
        for position, cell in enumerate(cells)
        for number in range(per_cell)
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
    parts = splits.assign(images, params=shares(test, validation), seed=seed)
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
    twin = [
        image(9000, "a", "x", group="first", sha256="f" * 64),
        image(9001, "a", "x", group="second", sha256="f" * 64),
    ]
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
        for p in (PARAMS, shares(0.25, 0.4))
    ]
    assert tests[0] == tests[1]


def test_strata_are_divided_like_the_whole():
    parts = splits.assign(dataset(40), params=PARAMS, seed=0)
    counts = Counter((part, i.label, i.stratum) for part, i in zip(parts, dataset(40), strict=True))
    assert {counts["test", label, stratum] for label in "abc" for stratum in "xy"} == {10}
    assert {counts["validation", label, stratum] for label in "abc" for stratum in "xy"} == {6}


def test_a_class_too_small_for_three_parts_is_an_error_naming_it():
    images = [*dataset(), image(9000, "rare"), image(9001, "rare")]
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


# --- groups, near duplicates, predefined parts -----------------------------------------------------------------------


@st.composite
def folders(draw) -> list:
    """Images of two or three classes, some in groups, some byte-identical, some near duplicates; a few in several."""
    labels = "abc"[: draw(st.integers(2, 3))]
    count = draw(st.integers(60, 120))
    rng = random.Random(draw(st.integers(0, 10**6)))
    return [
        image(
            number,
            labels[number % len(labels)],
            group=rng.choice(["", "", "", f"g{rng.randrange(30)}"]),
            sha256=f"{rng.choice([number, number, rng.randrange(count)]):064x}",
            near=rng.choice(["", "", "", f"n{rng.randrange(20)}"]),
        )
        for number in range(count)
    ]


@settings(max_examples=60, deadline=None)
@given(images=folders(), seed=st.integers(0, 1000), shuffle=st.integers(0, 1000))
def test_nothing_that_belongs_together_straddles_parts_whatever_the_order(images, seed, shuffle):
    together = {i.near_duplicates for i in images} - {""}
    try:
        parts = splits.assign(images, params=PARAMS, seed=seed, together=together)
    except splits.SplitError:
        return  # joined transitively, nearly all images may be one group
    for key in ("sha256", "group", "near_duplicates"):
        members: dict[str, set[str]] = {}
        for part, member in zip(parts, images, strict=True):
            members.setdefault(getattr(member, key), set()).add(part)
        assert all(len(found) == 1 for name, found in members.items() if name)
    reference = {member.path: part for member, part in zip(images, parts, strict=True)}
    random.Random(shuffle).shuffle(images)
    again = splits.assign(images, params=PARAMS, seed=seed, together=together)
    assert {member.path: part for member, part in zip(images, again, strict=True)} == reference


def test_near_duplicates_that_are_only_reported_are_divided_like_any_others():
    images = dataset()
    expected = splits.assign(images, params=PARAMS, seed=0)
    for number, member in enumerate(images):
        member.near_duplicates = f"n{number // 2}"
    assert splits.assign(images, params=PARAMS, seed=0) == expected
    divided = splits.straddling(images, expected)
    assert divided
    assert all(len({expected[index] for index in indices}) > 1 for indices in divided)
    grouped = splits.assign(images, params=PARAMS, seed=0, together=splits.clusters(images)[0])
    assert splits.straddling(images, grouped) == []


def test_pairs_of_near_duplicates_reach_every_part_in_proportion():
    images = [image(number, "ab"[number // 2 % 2], near=f"n{number // 2}") for number in range(800)]
    parts = Counter(splits.assign(images, params=PARAMS, seed=0, together={i.near_duplicates for i in images}))
    assert abs(parts["test"] - 200) <= 4
    assert abs(parts["validation"] - 120) <= 4
    few = [image(1000 + number, "ab"[number % 2]) for number in range(4000)]
    parts = splits.assign(images + few, params=PARAMS, seed=0, together={i.near_duplicates for i in images})[:800]
    assert 150 < parts.count("test") < 250


def test_a_cluster_above_one_percent_is_too_large_for_a_group():
    names = ["large"] * 21 + ["small"] * 20 + [""] * 1959
    images = [image(number, "ab"[number % 2], near=name) for number, name in enumerate(names)]
    assert splits.clusters(images) == ({"small"}, {"large"})
    # In a small data set one percent is no image at all.
    assert splits.clusters(images[25:65]) == (set(), {"small"})
    assert splits.clusters(images[32:72]) == ({"small"}, set())


@pytest.mark.parametrize(
    ("policy", "source", "expected"),
    [
        ("auto", "elpv", False),
        ("auto", "folder", True),
        ("group", "elpv", True),
        ("report", "folder", False),
    ],
)
def test_near_duplicates_are_grouped_by_default_but_not_in_the_published_protocol(policy, source, expected):
    params = SplitParams(test=0.25, validation=0.2, near_duplicates=policy)
    assert params.groups_near_duplicates(source) == expected


@pytest.mark.parametrize("given_parts", [("validation",), ("test",), ("validation", "test")])
def test_predefined_parts_stay_and_only_missing_ones_are_drawn_from_train(given_parts):
    images = dataset()
    for number, member in enumerate(images):
        member.part = (*given_parts, "train", "train")[number % (len(given_parts) + 2)]
    parts = splits.assign(images, params=PARAMS, seed=0)
    for part, member in zip(parts, images, strict=True):
        drawn = {"validation", "test"} - set(given_parts)
        assert part == member.part if member.part != "train" else part in {"train", *drawn}
    train = sum(member.part == "train" for member in images)
    for part, share in (("validation", 0.2), ("test", 0.25)):
        if part not in given_parts:
            assert abs(parts.count(part) - share * train) <= 1


def test_predefined_parts_win_over_groups_and_duplicates():
    images = dataset()
    for number, member in enumerate(images):
        member.part = ("train", "validation", "test")[number % 3]
        member.group = f"g{number // 2}"
    images[1].sha256 = images[0].sha256
    assert splits.assign(images, params=PARAMS, seed=0) == [member.part for member in images]


def test_a_predefined_part_may_lack_a_class_but_train_may_not():
    images = dataset()
    for number, member in enumerate(images):
        member.part = "test" if number % 4 == 0 and member.label != "c" else "train"
    parts = splits.assign(images, params=PARAMS, seed=0)
    assert splits.missing_classes(images, parts) == [("test", "c")]
    for member in images:
        member.part = "test" if member.label == "c" else member.part
    with pytest.raises(splits.SplitError, match="'c' has 80 images.*none is train"):
        splits.assign(images, params=PARAMS, seed=0)


def test_a_thousand_classes_of_three_images_reach_every_part():
    images = [image(3 * label + number, f"{label:03d}") for label in range(1000) for number in range(3)]
    parts = splits.assign(images, params=PARAMS, seed=0)
    assert splits.missing_classes(images, parts) == []


# --- adding images ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(12, 60), min_size=2, max_size=4), added=st.integers(0, 3), seed=st.integers(0, 100))
def test_a_new_image_moves_others_only_as_far_as_rounding_asks(sizes, added, seed):
    """An image more changes a quota by at most one, in its own cell or, by the remainders, in another."""
    images = [image(1000 * c + n, f"class{c}") for c, size in enumerate(sizes) for n in range(size)]
    new = image(10**6 + seed, f"class{added % len(sizes)}")
    before = splits.assign(images, params=PARAMS, seed=0)
    after = splits.assign([*images, new], params=PARAMS, seed=0)[:-1]
    known = {splits.identity(member): part for member, part in zip(images, before, strict=True)}
    moved = splits.moves([*images], after, before=known, grouped=set())
    assert {move.reason for move in moved} <= {"quota"}
    for c in range(len(sizes)):
        label = f"class{c}"
        own = [i for i, member in enumerate(images) if member.label == label]
        changed = sum(before[i] != after[i] for i in own)
        counts = [Counter(parts[i] for i in own) for parts in (before, after)]
        quotas = sum(abs(counts[0][part] - counts[1][part]) for part in ("train", "validation", "test"))
        # As many as the quotas moved, plus those whose place the new image took: one a border.
        assert changed <= quotas + (2 if label == new.label else 0)


def test_doubling_a_class_leaves_nearly_all_images_where_they_were():
    old = [image(number, "ab"[number % 2]) for number in range(400)]
    new = [image(10_000 + number, "ab"[number % 2]) for number in range(400)]
    before = splits.assign(old, params=PARAMS, seed=0)
    after = splits.assign(old + new, params=PARAMS, seed=0)[:400]
    assert sum(a != b for a, b in zip(before, after, strict=True)) <= 30


def test_adding_images_leaves_groups_where_they_were_while_there_is_room():
    old = [image(number, "ab"[number // 2 % 2], group=f"g{number // 2}") for number in range(200)]
    singles = [image(1000 + number, "ab"[number % 2]) for number in range(400)]
    new = [image(10_000 + number, "ab"[number % 2]) for number in range(200)]
    before = splits.assign(old + singles, params=PARAMS, seed=0)[:200]
    assert splits.assign(old + singles + new, params=PARAMS, seed=0)[:200] == before


def test_an_image_that_joins_a_group_is_said_to_move_with_it():
    images = dataset()
    before = splits.assign(images, params=PARAMS, seed=0)
    known = {splits.identity(member): part for member, part in zip(images, before, strict=True)}
    one, other = before.index("test"), before.index("train")
    images[one].group = images[other].group = "patient"
    after = splits.assign(images, params=PARAMS, seed=0)
    grouped = splits.owed_to_groups(images, after, params=PARAMS, seed=0)
    moved = splits.moves(images, after, before=known, grouped=grouped)
    assert [move.reason for move in moved if move.path in (images[one].path, images[other].path)] == ["group"]
    assert {images[one].sha256, images[other].sha256} <= grouped
    assert len(grouped) <= 4  # and who changed places with them


def owed(images: list, parts: list[str]) -> set[str]:
    return splits.owed_to_groups(images, parts, params=PARAMS, seed=0)


def by_reason(images: list, parts: list[str], *, before: list[str], grouped: set[str]) -> Counter:
    known = {splits.identity(member): part for member, part in zip(images, before, strict=True)}
    return Counter(move.reason for move in splits.moves(images, parts, before=known, grouped=grouped))


def test_images_that_make_room_for_a_group_or_return_are_said_to_move_because_of_it():
    old = [image(number, "a") for number in range(40)] + [image(100 + number, "b") for number in range(40)]
    name = next(  # of a group whose rank falls into test
        start
        for start in range(1000, 3000, 8)
        if "test"
        in splits.assign([*old, *(image(start + n, "a", group="g") for n in range(8))], params=PARAMS, seed=0)[80:]
    )
    new = [image(name + number, "a", group="g") for number in range(8)]
    before, after = splits.assign(old, params=PARAMS, seed=0), splits.assign(old + new, params=PARAMS, seed=0)
    assert after[80:] == ["test"] * 8
    counts = [sum(part == "test" for part in parts[:40]) for parts in (before, after)]
    assert counts == [10, 4]
    assert owed(old, before) == set()
    for parts, former in ((after[:80], before), (before, after[:80])):  # the group comes, and goes
        reasons = by_reason(old, parts, before=former, grouped=owed(old, before) | owed(old + new, after))
        # Eight images more ask for two places more in test: whoever would move for that alone, moves by rounding.
        alone = splits.assign([*old, *(image(name + n, "a") for n in range(8))], params=PARAMS, seed=0)[:80]
        assert reasons["group"] >= 6
        assert reasons["quota"] <= sum(a != b for a, b in zip(alone, before, strict=True))


@settings(max_examples=30, deadline=None)
@given(images=folders(), seed=st.integers(0, 100), shuffle=st.integers(0, 100))
def test_what_is_owed_to_groups_does_not_depend_on_the_order_and_is_nothing_without_groups(images, seed, shuffle):
    for number, member in enumerate(images):
        member.path = f"{number}.png"
    try:
        parts = splits.assign(images, params=PARAMS, seed=seed)
    except splits.SplitError:
        return
    rules = {"params": PARAMS, "seed": seed}
    reference = splits.owed_to_groups(images, parts, **rules)
    together = list(zip(images, parts, strict=True))
    random.Random(shuffle).shuffle(together)
    assert splits.owed_to_groups([i for i, _ in together], [part for _, part in together], **rules) == reference
    single = [image(number, "ab"[number % 2]) for number in range(len(images))]
    parts = splits.assign(single, params=PARAMS, seed=seed)
    assert splits.owed_to_groups(single, parts, **rules) == set()
