"""Kinds of splits and their gaps: who stays together, equal sizes, intervals against hand-worked numbers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from pipeline.audits.fairness import leakage
from pipeline.data import sources, splits
from pipeline.data.sources.groups import GroupParams

PARAMS = splits.SplitParams(test=0.25, validation=0.2, near_duplicates="report")
NO_GROUPS = GroupParams(pattern=None, csv=None, column=None, module=False)


def dataset(source: str, limit: int | None = None) -> sources.DatasetParams:
    return sources.DatasetParams(
        source=source,
        path="data",
        limit=limit,
        max_dropped=0.0,
        conflicting_duplicates="keep",
        groups=NO_GROUPS,
        allow_untracked=True,
    )


def images(n: int = 240, *, group: int = 0, near: int = 0, stratum: str = "mono") -> list[sources.SourceImage]:
    """Images of two classes; so many consecutive ones share a group, and so many a cluster of near duplicates."""
    return [
        sources.SourceImage(
            path=f"{index:04d}.png",
            label="defective" if index % 3 == 0 else "functional",
            stratum=stratum,
            group=f"g{index // group}" if group else "",
            sha256=f"{index:064d}",
            near_duplicates=f"n{index // near}" if near and index < 20 * near else "",
        )
        for index in range(n)
    ]


def test_a_group_is_in_one_part_only_in_the_split_by_groups():
    pool = images(group=6, near=2)
    variants = leakage.variants(pool, leakage.groups_of(pool, dataset("folder")))
    divided = leakage.divide(variants, params=PARAMS, seed=3)

    def straddling(kind: str, key: str) -> int:
        where: dict[str, set[str]] = {}
        for image, part in zip(pool, divided[kind], strict=True):
            if getattr(image, key) and part:
                where.setdefault(getattr(image, key), set()).add(part)
        return sum(len(found) > 1 for found in where.values())

    assert straddling(leakage.GROUPS, "group") == 0 < straddling(leakage.RANDOM, "group")
    assert straddling(leakage.NEAR_DUPLICATES, "near_duplicates") == 0 < straddling(leakage.RANDOM, "near_duplicates")
    assert straddling(leakage.NEAR_DUPLICATES, "group") > 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_kinds_have_parts_of_equal_sizes_and_give_up_few_images(seed):
    pool = images(group=7, near=2)
    divided = leakage.divide(leakage.variants(pool, [image.group for image in pool]), params=PARAMS, seed=seed)
    sizes = {
        kind: [int((parts == part).sum()) for part in ("train", "validation", "test")]
        for kind, parts in divided.items()
    }
    assert len(sizes) == 3
    assert len({tuple(found) for found in sizes.values()}) == 1
    assert all((parts == "").sum() <= 14 for parts in divided.values())
    assert sizes[leakage.RANDOM][2] >= 50


def test_no_part_gives_up_its_last_image_of_a_class():
    """Groups are large, so many images are given up; three are of a class that has one in each part."""
    rare = {4: "rare", 100: "rare", 200: "rare"}
    pool = [
        dataclasses.replace(image, label=rare.get(index, image.label), group="" if index in rare else image.group)
        for index, image in enumerate(images(group=30, near=2))
    ]
    for seed in range(10):
        divided = leakage.divide(leakage.variants(pool, [image.group for image in pool]), params=PARAMS, seed=seed)
        for parts in divided.values():
            assert len({(part, image.label) for image, part in zip(pool, parts, strict=True) if part}) == 9


def test_equal_sizes_cost_nothing_where_the_kinds_agree():
    pool = images(near=2)
    divided = leakage.divide(
        {kind: found for kind, found in leakage.variants(pool, "none").items() if not isinstance(found, str)},
        params=PARAMS,
        seed=0,
    )
    assert divided.keys() == {leakage.RANDOM, leakage.NEAR_DUPLICATES}
    assert not any((parts == "").any() for parts in divided.values())


def test_groups_are_those_of_the_catalog_or_elpvs_modules_or_unknown():
    assert leakage.groups_of(images(group=5), dataset("folder"))[:6] == ["g0"] * 5 + ["g1"]
    modules = leakage.groups_of(images(150), dataset("elpv"))
    assert [modules.count(name) for name in dict.fromkeys(modules)] == [60, 60, 30]
    assert "dataset.limit" in leakage.groups_of(images(150), dataset("elpv", limit=150))
    assert leakage.groups_of(images(150), dataset("folder")) == "dataset.groups names no groups"


def test_kinds_that_would_be_the_random_one_are_not_available():
    found = leakage.variants(images(), "dataset.groups names no groups")
    assert found[leakage.NEAR_DUPLICATES] == "no two images look the same"
    assert found[leakage.GROUPS] == "dataset.groups names no groups"
    assert not isinstance(found[leakage.RANDOM], str)


def test_predefined_parts_are_set_aside():
    pool = [sources.SourceImage(**{**vars(image), "part": "test"}) for image in images()]
    (parts,) = leakage.divide(
        {leakage.RANDOM: leakage.variants(pool, "none")[leakage.RANDOM]}, params=PARAMS, seed=0
    ).values()
    assert [int((parts == part).sum()) for part in ("train", "validation", "test")] == [144, 36, 60]


def test_the_interval_over_splits_is_nadeau_and_bengios_by_hand():
    first, second = np.array([0.86, 0.84, 0.88, 0.85]), np.array([0.83, 0.84, 0.84, 0.82])
    found = leakage.gap_over_splits(first, second, test_share=0.25, confidence=0.95)
    # Differences 3, 0, 4, 3 points: mean 2.5, sample variance 3; (1/4 + 1/3) * 3 = 1.75; t(0.975, 3) = 3.18245.
    assert found["value"] == pytest.approx(0.025)
    assert found["sd"] == pytest.approx(math.sqrt(3) / 100)
    half = 3.18245 * math.sqrt(1.75) / 100
    assert (found["low"], found["high"]) == pytest.approx((0.025 - half, 0.025 + half), abs=1e-6)


def test_without_overlap_of_tests_the_interval_over_splits_is_the_paired_t_interval():
    generator = np.random.default_rng(0)
    first, second = generator.random(9), generator.random(9)
    found = leakage.gap_over_splits(first, second, test_share=0.0, confidence=0.9)
    low, high = stats.ttest_rel(first, second).confidence_interval(0.9)
    assert (found["low"], found["high"]) == pytest.approx((low, high))


def test_one_split_has_no_interval():
    found = leakage.gap_over_splits(np.array([0.9]), np.array([0.8]), test_share=0.25, confidence=0.95)
    assert found["value"] == pytest.approx(0.1)
    assert math.isnan(found["low"]) and math.isnan(found["sd"])


def test_the_table_knows_which_split_tested_which_image():
    found = leakage.table(
        [np.array([True, False]), np.array([False, False, True])], [np.array([0, 2]), np.array([0, 1, 2])], 4
    )
    nan = np.nan
    np.testing.assert_array_equal(found, [[1, nan, 0, nan], [0, 0, 1, nan]])


def gap_over_images(first, second, clusters, **changes):
    options = dict(samples=2000, generator=np.random.default_rng(0), confidence=0.95) | changes
    return leakage.gap_over_images(np.array(first), np.array(second), clusters, **options)


def test_the_gap_over_images_is_of_the_images_that_both_kinds_tested():
    nan = np.nan
    # Image 0 is right in both of its tests and in neither; image 1 in one of two and in its only one.
    first, second = [[1.0, 0.0, nan, 0.0], [1.0, 1.0, nan, nan]], [[0.0, nan, 0.0, nan], [nan, 1.0, 0.0, nan]]
    found = gap_over_images(first, second, ["", "", "", ""])
    assert found["value"] == pytest.approx((1.0 - 0.5) / 2)
    assert found["images"] == found["clusters"] == 2


def test_images_of_one_cluster_are_resampled_together():
    generator = np.random.default_rng(1)
    # 40 clusters of 25 images that gain or lose together: there are 40 independent pieces of evidence, not 1,000.
    gain = np.repeat(generator.choice([0.0, 1.0], size=40), 25)
    names = [str(index // 25) for index in range(1000)]
    tables = np.tile(gain, (3, 1)), np.zeros((3, 1000))
    alone, together = gap_over_images(*tables, [""] * 1000), gap_over_images(*tables, names)
    share = gain.mean()
    for found, n in ((alone, 1000), (together, 40)):
        half = 1.96 * math.sqrt(share * (1 - share) / n)
        assert found["clusters"] == n and found["value"] == pytest.approx(share)
        assert (found["high"] - found["low"]) / 2 == pytest.approx(half, rel=0.15)


def test_models_that_differ_between_splits_widen_the_interval_over_images():
    """A split whose model is bad for all images is one draw, however many images it tests."""
    good, bad = np.ones(500), np.zeros(500)
    steady = gap_over_images([good] * 8, [good] * 8, [""] * 500)
    unsteady = gap_over_images([good] * 4 + [bad] * 4, [good] * 8, [""] * 500)
    assert (steady["low"], steady["high"]) == (0.0, 0.0)
    assert unsteady["value"] == -0.5
    # The share of bad splits among eight drawn: binomial(8, 1/2) / 8.
    half = 1.96 * math.sqrt(0.25 / 8)
    assert (unsteady["high"] - unsteady["low"]) / 2 == pytest.approx(half, rel=0.15)


def test_memory_bound_does_not_change_the_interval(monkeypatch):
    generator = np.random.default_rng(3)
    tables = generator.integers(0, 2, size=(2, 6, 50)).astype(float)
    whole = gap_over_images(*tables, [""] * 50)
    monkeypatch.setattr(leakage.statistics, "ELEMENTS_AT_ONCE", 50 * 7)
    assert gap_over_images(*tables, [""] * 50) == pytest.approx(whole)


def test_counterparts_are_counted_in_test_and_no_key_is_no_counterpart():
    assert leakage.counterparts(["a", "b", "b", "", "c"], ["b", "c", "", "d"]) == 3
    assert leakage.counterparts([], ["a"]) == 0
