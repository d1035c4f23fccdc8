"""The on-disk contracts: whole or not at all, checked on reading, test labels kept back."""

from __future__ import annotations

import errno
import shutil

import numpy as np
import pytest

from pipeline import __main__ as command_line
from pipeline.core import artifacts
from pipeline.core.artifacts import ArtifactError, Predictions


def manifest(path, rows):
    artifacts.write_csv(
        path,
        artifacts.MANIFEST_COLUMNS,
        [
            {
                "path": f"{split}/{label}/{n}.png",
                "label": label,
                "split": split,
                "group": "",
                "stratum": "",
                "sha256": str(n),
            }
            for n, (split, label) in enumerate(rows)
        ],
    )
    return path


ROWS = [("train", "b"), ("train", "a"), ("validation", "a"), ("validation", "b"), ("test", "b"), ("test", "a")]


def test_an_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "file.txt"
    artifacts.write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), artifacts.whole_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_an_interrupted_directory_leaves_the_old_one(tmp_path):
    path = tmp_path / "run"
    with artifacts.whole_directory(path) as directory:
        (directory / "a").write_text("old")
    with pytest.raises(RuntimeError), artifacts.whole_directory(path) as directory:
        (directory / "a").write_text("half")
        raise RuntimeError
    assert (path / "a").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    abandoned = tmp_path / ".run.abc"
    abandoned.mkdir()
    (abandoned / "half").write_text("")
    with artifacts.whole_directory(tmp_path / "run") as directory:
        (directory / "a").write_text("new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_json_is_sorted_and_refuses_what_json_does_not_have(tmp_path):
    path = tmp_path / "a.json"
    artifacts.write_json(path, {"b": 1, "a": 2})
    assert path.read_text() == '{\n  "a": 2,\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.write_json(path, {"a": float("nan")})
    assert artifacts.read_json(path) == {"a": 2, "b": 1}


@pytest.mark.parametrize("content", [b"", b'{"a": [1, 2', b'{"a": "\xff"}', b"\x00" * 100])
def test_json_that_is_damaged_is_an_error_that_names_the_file_and_what_mends_it(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"a\.json is damaged.*dvc checkout"):
        artifacts.read_json(tmp_path / "a.json")
    with pytest.raises(ArtifactError, match=r"a\.json is damaged"):
        artifacts.read_record(tmp_path / "a.json")


def test_a_table_that_is_cut_off_is_an_error_that_names_the_file(tmp_path):
    path = manifest(tmp_path / "m.csv", ROWS)
    whole = path.read_bytes()
    for content in (whole[:-70], whole.replace(b"train", b"tr\xffin", 1), whole.replace(b"train/", b'"train/', 1)):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"m\.csv is damaged"):
            artifacts.read_part("train", path)


def test_a_calibrator_that_is_not_one_is_an_error_that_names_the_file(tmp_path):
    for content in ("[]", '{"runs": {"run": {}}}', '{"runs": 1}'):
        (tmp_path / "calibration.json").write_text(content, encoding="utf-8")
        with pytest.raises(ArtifactError, match=r"calibration\.json is damaged"):
            artifacts.read_calibrator(tmp_path / "run", tmp_path / "calibration.json")


def test_a_part_has_sorted_classes_and_rows_in_manifest_order(tmp_path):
    part = artifacts.read_part("train", manifest(tmp_path / "m.csv", ROWS))
    assert part.classes == ("a", "b")
    assert part.labels.tolist() == [1, 0]
    assert part.paths == ("train/b/0.png", "train/a/1.png")


def test_the_test_part_comes_without_labels(tmp_path):
    path = manifest(tmp_path / "m.csv", ROWS)
    assert artifacts.read_part("test", path).labels is None
    assert artifacts.read_test_labels(path).tolist() == [1, 0]


@pytest.mark.parametrize("content", ["", "path,label\n", "whatever"])
def test_a_manifest_with_other_columns_is_refused(tmp_path, content):
    path = tmp_path / "m.csv"
    path.write_text(content)
    with pytest.raises(ArtifactError, match="must have the columns"):
        artifacts.read_part("train", path)


def test_missing_files_say_what_to_run(tmp_path):
    for read in (artifacts.read_json, artifacts.read_predictions, artifacts.read_record):
        with pytest.raises(ArtifactError, match="missing: run `dvc repro`"):
            read(tmp_path / "none")


def test_features_are_checked_against_the_manifest(tmp_path):
    part = artifacts.read_part("train", manifest(tmp_path / "m.csv", ROWS))
    array = np.ones((2, 3), dtype=np.float32)
    artifacts.write_features(tmp_path, "train", [array[:1], array[1:]], shape=(2, 3))
    assert artifacts.read_features(tmp_path, part).tolist() == [[1, 1, 1], [1, 1, 1]]
    np.save(tmp_path / "saved.npy", array)
    assert (tmp_path / "train.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()
    with pytest.raises(ArtifactError, match="must have 3 rows, received 2"):
        artifacts.write_features(tmp_path, "train", [array], shape=(3, 3))
    array[1, 2] = np.inf
    artifacts.write_features(tmp_path, "train", [array], shape=(2, 3))
    with pytest.raises(ArtifactError, match="not finite, first in row 1: train/a/1.png"):
        artifacts.read_features(tmp_path, part)
    np.save(tmp_path / "train.npy", np.ones((3, 3), dtype=np.float32))
    with pytest.raises(ArtifactError, match=r"must be float32 \(2, width\), received float32 \(3, 3\)"):
        artifacts.read_features(tmp_path, part)
    (tmp_path / "train.npy").write_bytes(b"\x93NUMPY half")
    with pytest.raises(ArtifactError, match=r"train\.npy is damaged"):
        artifacts.read_features(tmp_path, part)


def test_predictions_must_be_probabilities(tmp_path):
    path = tmp_path / "p.npz"
    good = Predictions(np.full((2, 3, 2), 0.5, np.float32), np.full((4, 2), 0.5, np.float32))
    artifacts.write_predictions(path, good)
    first = path.read_bytes()
    artifacts.write_predictions(path, artifacts.read_predictions(path))
    assert path.read_bytes() == first
    for bad in (good.test + 0.1, -good.test, good.test.astype(np.float64), np.full((4, 2), np.nan, np.float32)):
        with pytest.raises(ArtifactError):
            artifacts.write_predictions(path, Predictions(good.validation, bad))
    path.write_bytes(first[: len(first) // 2])
    with pytest.raises(ArtifactError, match="is damaged"):
        artifacts.read_predictions(path)


def test_repeats_are_kept_beside_the_first_training_and_absent_without_them(tmp_path):
    path = tmp_path / "p.npz"
    once = Predictions(np.full((2, 3, 2), 0.5, np.float32), np.full((4, 2), 0.5, np.float32))
    artifacts.write_predictions(path, once)
    with np.load(path) as arrays:
        assert sorted(arrays) == ["test", "validation"]
    assert artifacts.read_predictions(path).repeats == 1
    step = np.array([0, 0.5], np.float32)
    validation, test = (np.full((2, count, 2), 0.25, np.float32) + step for count in (3, 4))
    artifacts.write_predictions(path, Predictions(once.validation, once.test, validation, test))
    read = artifacts.read_predictions(path)
    assert read.repeats == 3
    np.testing.assert_array_equal(read.repeats_validation, validation)
    np.testing.assert_array_equal(read.repeats_test, test)
    for bad, problem in (
        ((validation, None), "both be there or both be absent"),
        ((None, test), "both be there or both be absent"),
        ((validation[:1], test), "must have the shapes"),
        ((validation, test[:, :-1]), "must have the shapes"),
        ((validation[:0], test[:0]), "must have the shapes"),
        ((validation, test + 1), "sum to 1"),
        ((validation, test.astype(np.float64)), "float32"),
    ):
        with pytest.raises(ArtifactError, match=problem):
            artifacts.write_predictions(path, Predictions(once.validation, once.test, *bad))


def test_a_directory_digest_sees_names_and_bytes_but_not_order(tmp_path):
    for name, order in (("one", "ab"), ("two", "ba")):
        (tmp_path / name).mkdir()
        for file in order:
            (tmp_path / name / file).write_text(file)
    assert artifacts.sha256_path(tmp_path / "one") == artifacts.sha256_path(tmp_path / "two")
    (tmp_path / "two" / "a").rename(tmp_path / "two" / "c")
    assert artifacts.sha256_path(tmp_path / "one") != artifacts.sha256_path(tmp_path / "two")


# --- a system that refuses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "quota"), (errno.EFBIG, "ulimit"), (errno.EROFS, "read-only")],
)
def test_an_output_that_the_system_refuses_is_named_with_the_reason(tmp_path, number, reason):
    with (
        pytest.raises(artifacts.WriteError, match=rf"run cannot be written: .*{reason}.* MB free there"),
        artifacts.whole_directory(tmp_path / "run") as directory,
        artifacts.whole_file(directory / "record.json"),
    ):
        raise OSError(number, "no")
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_hides_the_reason_is_seen_through(tmp_path):
    def save() -> None:
        try:
            raise OSError(errno.ENOSPC, "no")
        except OSError:
            raise RuntimeError("Can't decrement id ref count")  # noqa: B904

    with pytest.raises(artifacts.WriteError, match="the disk is full"), artifacts.whole_file(tmp_path / "file"):
        save()


def test_an_error_on_a_disk_without_room_is_taken_for_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0))
    with (
        pytest.raises(artifacts.WriteError, match=r"the disk is full \(0\.0 MB free there\)"),
        artifacts.whole_file(tmp_path / "features.npy"),
    ):
        raise OSError("8192 requested and 4096 written")


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (ValueError("shape"), PermissionError(errno.EACCES, "no", "photo.png"), artifacts.ArtifactError("x")):
        with pytest.raises(type(error)) as raised, artifacts.whole_directory(tmp_path / "out"):
            raise error
        assert raised.value is error
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_names_a_file_that_may_not_be_touched(monkeypatch, capsys):
    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, "no", "photos/a.png")

    monkeypatch.setattr(command_line, "run_stage", refuse)
    assert command_line.main(["split"]) == 1
    assert capsys.readouterr().err == "error: photos/a.png cannot be read or written: permission denied\n"
