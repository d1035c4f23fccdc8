"""Facts of the files that arrays are kept in: numpy reads them, and their bytes owe nothing to the Python release."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
import pytest

from pipeline.console.errors import ArtifactError
from pipeline.core import npz, provenance

ARRAYS = {
    "rows": np.arange(6, dtype=np.float32).reshape(2, 3),
    "number": np.int64(7),
    "name": np.array("cosine"),
    "empty": np.empty((0, 4), dtype=np.float32),
    "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
}


def test_numpy_reads_what_was_saved(tmp_path):
    npz.save(tmp_path / "arrays.npz", **ARRAYS)
    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as found:
        assert list(found) == list(ARRAYS)
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == np.asarray(array).dtype


def test_the_headers_are_those_of_the_oldest_format(tmp_path):
    """Python releases differ in when they use fields for files of more than 4 GB; without those, nothing differs."""
    path = tmp_path / "arrays.npz"
    npz.save(path, **ARRAYS)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        contents = [archive.read(entry) for entry in entries]
    expected = b""
    for entry, content in zip(entries, contents, strict=True):
        name = entry.filename.encode()
        # Version 2.0, no flags, stored, 00:00 on 1 January 1980, checksum, sizes, lengths of the name and of no extra.
        fields = (20, 0, 0, 0, 33, zipfile.crc32(content), len(content), len(content), len(name), 0)
        expected += struct.pack("<4s5H3L2H", b"PK\3\4", *fields) + name + content
    written = path.read_bytes()
    assert written.startswith(expected)
    directory = written[len(expected) :]
    assert directory.startswith(b"PK\1\2\x14\x03\x14\x00")  # by version 2.0 under Unix, to be read by 2.0


KINDS = {"rows": np.floating, "number": np.integer, "name": np.str_, "empty": np.floating, "columns": np.integer}


def test_what_was_saved_is_loaded_by_name_and_kind(tmp_path):
    npz.save(tmp_path / "arrays.npz", **ARRAYS)
    found = npz.load(tmp_path / "arrays.npz", name=np.str_, rows=np.floating)
    assert list(found) == ["name", "rows"]
    np.testing.assert_array_equal(found["rows"], ARRAYS["rows"])
    assert list(npz.load(tmp_path / "arrays.npz")) == list(ARRAYS)


def test_one_damaged_bit_anywhere_changes_no_number_and_is_an_error_that_names_the_file(tmp_path):
    """Zip files hold a checksum of every array; what is outside of them either decides nothing or cannot be read."""
    path = tmp_path / "arrays.npz"
    npz.save(path, **ARRAYS)
    whole, refused = path.read_bytes(), 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            found = npz.load(path, **KINDS)
        except ArtifactError as error:
            refused += 1
            assert str(error).startswith(f"{path} is damaged") and "dvc checkout" in str(error)
        else:
            assert all(np.array_equal(found[name], ARRAYS[name]) for name in KINDS), position
    assert refused > len(whole) / 2


def test_a_file_that_is_cut_off_anywhere_is_an_error(tmp_path):
    path = tmp_path / "arrays.npz"
    npz.save(path, **ARRAYS)
    whole = path.read_bytes()
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"arrays\.npz is damaged"):
            npz.load(path)


def test_another_file_a_missing_array_and_another_kind_are_errors(tmp_path):
    path = tmp_path / "arrays.npz"
    with pytest.raises(ArtifactError, match=r"arrays\.npz is missing: run `dvc repro`"):
        npz.load(path)
    npz.save(path, **ARRAYS)
    for asked, said in (
        ({"weights": np.floating}, "weights"),
        ({"rows": np.integer}, "rows must be integer, received"),
    ):
        with pytest.raises(ArtifactError, match=rf"arrays\.npz is damaged or of another kind \(.*{said}"):
            npz.load(path, **asked)
    np.savez_compressed(path, rows=ARRAYS["rows"])
    with zipfile.ZipFile(path) as archive:
        start = archive.infolist()[0].header_offset + 60
    damaged = bytearray(path.read_bytes())
    damaged[start : start + 8] = b"\xff" * 8
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    for content in (damaged, b"text", b"", objects.getvalue()):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"arrays\.npz is damaged"):
            npz.load(path, rows=np.floating)


def test_all_arrays_are_saved_this_way():
    for file in sorted((provenance.ROOT / "pipeline").rglob("*.py")):
        if file.name != "npz.py":
            assert "savez" not in file.read_text(encoding="utf-8"), file
