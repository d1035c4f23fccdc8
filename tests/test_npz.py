"""Facts of the files that arrays are kept in: numpy reads them, and their bytes owe nothing to the Python release."""

from __future__ import annotations

import struct
import zipfile

import numpy as np

from pipeline import npz, provenance

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


def test_all_arrays_are_saved_this_way():
    for file in sorted((provenance.ROOT / "pipeline").rglob("*.py")):
        if file.name != "npz.py":
            assert "savez" not in file.read_text(encoding="utf-8"), file
