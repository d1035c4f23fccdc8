"""Facts of the feature store: rows come back as they were, and nothing half written, damaged or too much is kept."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from pipeline.features import feature_store
from pipeline.features.feature_store import FeatureStore

IDENTITY = {"network_sha256": "ab", "precision": "float32"}


def keys(*numbers: int) -> list[bytes]:
    return [feature_store.key(str(number)) for number in numbers]


def rows(*numbers: int, width: int = 5) -> np.ndarray:
    return np.array([np.random.default_rng(number).normal(size=width) for number in numbers], dtype=np.float32)


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return FeatureStore(tmp_path / "store", budget=10**9)


def test_rows_come_back_in_the_order_asked_for_now_and_in_the_next_process(store):
    with store.space(IDENTITY, width=5) as space:
        space.add(keys(1, 2, 3), rows(1, 2, 3))
        found, known = space.read(keys(3, 9, 1))
        np.testing.assert_array_equal(found, np.vstack([rows(3), np.zeros((1, 5)), rows(1)]).astype(np.float32))
        assert known.tolist() == [True, False, True]
    again = store.space(IDENTITY, width=5)
    np.testing.assert_array_equal(again.read(keys(2, 1, 3))[0], rows(2, 1, 3))
    assert keys(2)[0] in again and keys(9)[0] not in again


def test_what_was_not_written_when_a_process_died_is_missing_and_nothing_else(store):
    space = store.space(IDENTITY, width=5)
    space.add(keys(1), rows(1))
    space.flush()
    space.add(keys(2), rows(2))  # never flushed
    assert store.space(IDENTITY, width=5).read(keys(1, 2))[1].tolist() == [True, False]


def test_another_identity_has_rows_of_its_own(store):
    with store.space(IDENTITY, width=5) as space:
        space.add(keys(1), rows(1))
    other = store.space({**IDENTITY, "precision": "bfloat16"}, width=5)
    assert not other.read(keys(1))[1].any()


def test_keys_tell_images_and_views_apart():
    views = [("a",), ("b",), ("a", 0), ("a", 1), ("a", "seed", 1)]
    assert len({feature_store.key(*view) for view in views}) == len(views)


def test_a_damaged_row_counts_as_missing_and_its_neighbours_do_not(store):
    with store.space(IDENTITY, width=5) as space:
        space.add(keys(1, 2, 3), rows(1, 2, 3))
    (segment,) = space.directory.glob("*.rows")
    content = bytearray(segment.read_bytes())
    content[-21] ^= 1  # in the last byte of the second of three rows of 20 bytes
    segment.write_bytes(content)
    found, known = store.space(IDENTITY, width=5).read(keys(1, 2, 3))
    assert known.tolist() == [True, False, True]
    np.testing.assert_array_equal(found[[0, 2]], rows(1, 3))


@pytest.mark.parametrize("kept", [0, 5, 100, 300])
def test_a_segment_cut_short_gives_no_wrong_row(store, kept):
    with store.space(IDENTITY, width=5) as space:
        space.add(keys(1, 2), rows(1, 2))
    (segment,) = space.directory.glob("*.rows")
    segment.write_bytes(segment.read_bytes()[:kept])
    assert not store.space(IDENTITY, width=5).read(keys(1, 2))[1].any()


def test_a_store_may_be_deleted_while_it_is_used(store):
    space = store.space(IDENTITY, width=5)
    space.add(keys(1), rows(1))
    space.flush()
    assert store.clear() > 0 and not store.directory.exists()
    assert not space.read(keys(1))[1].any()
    space.add(keys(2), rows(2))
    space.flush()
    assert store.space(IDENTITY, width=5).read(keys(1, 2))[1].tolist() == [False, True]


def test_rows_of_another_width_are_refused_and_not_read(store):
    with store.space(IDENTITY, width=5) as space:
        with pytest.raises(ValueError, match=r"float32 \(1, 5\), received float32 \(1, 4\)"):
            space.add(keys(1), rows(1, width=4))
        space.add(keys(1), rows(1))
    assert not store.space(IDENTITY, width=4).read(keys(1))[1].any()


def test_the_spaces_unused_for_longest_make_room(tmp_path):
    store = FeatureStore(tmp_path, budget=60_000)
    identities = [{"network_sha256": str(number)} for number in range(3)]
    for age, identity in zip((30, 20, 10), identities, strict=True):
        with store.space(identity, width=1000) as space:
            assert space.has_room_for(4)
            space.add(keys(1, 2, 3, 4), rows(1, 2, 3, 4, width=1000))
        os.utime(space.directory, times=(time.time() - age,) * 2)
    new = store.space({"network_sha256": "new"}, width=1000)
    assert new.has_room_for(5)
    left = [store.space(identity, width=1000).read(keys(1))[1].any() for identity in identities]
    assert left == [False, True, True]
    assert not new.has_room_for(1000)
    assert store.space(identities[2], width=1000).read(keys(1))[1].any()  # nothing was removed in vain


def test_litter_of_killed_processes_is_removed_when_it_is_old(store):
    directory = store.directory_of(IDENTITY)
    young, old = directory / ".a.rows.x", directory / ".b.rows.y"
    for file, age in ((young, 0), (old, 2 * feature_store.ABANDONED_SECONDS)):
        file.write_bytes(b"half")
        os.utime(file, times=(time.time() - age,) * 2)
    store.space(IDENTITY, width=5)
    assert young.exists() and not old.exists()


def test_processes_may_write_and_be_killed_at_once(store, root, environment):
    """Four processes add overlapping rows, two of them are killed; every row that is found is the right one."""
    code = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        sys.path.insert(0, ".")
        from pipeline.features.feature_store import FeatureStore
        from tests.features.test_feature_store import IDENTITY, keys, rows
        with FeatureStore(Path(sys.argv[1]), budget=10**9).space(IDENTITY, width=5) as space:
            print("started", flush=True)
            for start in range(int(sys.argv[2]), int(sys.argv[2]) + 300, 10):
                space.add(keys(*range(start, start + 10)), rows(*range(start, start + 10)))
                space.flush()
        """
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(store.directory), str(start)],
            stdout=subprocess.PIPE,
            cwd=root,
            env=environment,
        )
        for start in (0, 100, 200, 300)
    ]
    for process in processes:
        assert process.stdout.readline() == b"started\n"
    for process in processes[2:]:
        process.kill()
    assert [process.wait() for process in processes[:2]] == [0, 0]
    for process in processes:
        process.stdout.close()
        process.wait()
    found, known = store.space(IDENTITY, width=5).read(keys(*range(600)))
    assert known[:400].all()
    numbers = np.flatnonzero(known)
    np.testing.assert_array_equal(found[numbers], rows(*numbers.tolist()))


@pytest.mark.parametrize("text", ["many", "-1", "nan"])
def test_a_budget_that_is_no_size_is_refused(monkeypatch, text):
    monkeypatch.setenv("BAKEOFF_FEATURE_STORE_GB", text)
    with pytest.raises(feature_store.StoreError, match=f"GB must be a number of at least 0, received '{text}'"):
        feature_store.from_environment()


def test_workspaces_of_experiments_and_clones_that_say_so_share_a_store(monkeypatch, tmp_path):
    monkeypatch.delenv("BAKEOFF_FEATURE_STORE", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    assert feature_store.from_environment().directory == tmp_path / "project" / ".cache" / "features"
    monkeypatch.setenv("BAKEOFF_FEATURE_STORE", str(tmp_path / "shared"))
    assert feature_store.from_environment().directory == tmp_path / "shared"
