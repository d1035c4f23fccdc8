"""The formats that data sets are published in, read without running code, and the one that they are unpacked to."""

from __future__ import annotations

import gzip
import pickle
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.sources.source import DatasetError

# A part's images, uint8 (n, height, width) grey or (n, height, width, 3) RGB, and their labels, integers (n,).
Labelled = tuple[np.ndarray, np.ndarray]

# What a pickle of NumPy arrays calls, under the names of the module before NumPy 2 and since.
_ARRAY_PARTS = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype} | {
    (module, "_reconstruct"): np.empty(0).__reduce__()[0]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray")
}


def load_npz(files: Mapping[str, Path]) -> dict[str, Labelled]:
    """Return the parts of Keras' MNIST: arrays x_train, y_train, x_test and y_test in one file."""
    (path,) = files.values()
    with np.load(path, allow_pickle=False) as arrays:
        return {part: (arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test")}


def load_idx(files: Mapping[str, Path]) -> dict[str, Labelled]:
    """Return the parts of a data set that is published like MNIST at first, in four IDX files."""
    return {
        part: (_idx(files[f"{name}-images-idx3-ubyte.gz"]), _idx(files[f"{name}-labels-idx1-ubyte.gz"]))
        for part, name in (("train", "train"), ("test", "t10k"))
    }


def load_batches(files: Mapping[str, Path]) -> dict[str, Labelled]:
    """Return the parts of CIFAR-10: pickled batches, each image a row of 1,024 red, then green, then blue pixels."""
    (path,) = files.values()
    names = [*(f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6)), "cifar-10-batches-py/test_batch"]
    batches = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:  # in the order of the file, which cannot be read backwards without starting over
            if member.name in names:
                batches[member.name] = _ArrayUnpickler(archive.extractfile(member), encoding="bytes").load()
    lost = [name for name in names if name not in batches]
    if lost:
        raise DatasetError(f"{path} must hold {', '.join(lost)}")

    def joined(chosen: Sequence[str]) -> Labelled:
        pixels = np.concatenate([batches[name][b"data"] for name in chosen]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([np.asarray(batches[name][b"labels"], dtype=np.int64) for name in chosen])
        return pixels.transpose(0, 2, 3, 1), labels

    return {"train": joined(names[:-1]), "test": joined(names[-1:])}


def png(pixels: np.ndarray) -> bytes:
    """Return an image, uint8 (height, width) grey or (height, width, 3) RGB, as a PNG file that is not compressed.

    Its bytes follow from the pixels alone. Those of a library may change with its version, and they decide into which
    part an image is drawn. Raises ValueError for more pixels than one block holds. Sources: PNG (ISO/IEC 15948), zlib
    (RFC 1950), deflate (RFC 1951, stored blocks).
    """
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    filtered = np.zeros((height, 1 + rows.shape[1]), dtype=np.uint8)  # each row begins with its filter, 0 for none
    filtered[:, 1:] = rows
    data = filtered.tobytes()
    if len(data) > 0xFFFF:
        raise ValueError(f"an image must fit into one block of 65,535 bytes, received {pixels.shape}")
    block = b"\x01" + struct.pack("<HH", len(data), len(data) ^ 0xFFFF) + data
    color = 2 if pixels.ndim == 3 else 0
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)),
        (b"IDAT", b"\x78\x01" + block + struct.pack(">I", zlib.adler32(data))),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def _idx(path: Path) -> np.ndarray:
    """Return the array in a gzipped IDX file of unsigned bytes, the format that MNIST was first published in.

    Its head: two zeros, 8 for unsigned bytes, the number of axes, and the length of each, four bytes, highest first.
    Raises DatasetError for another type.
    """
    with gzip.open(path) as file:
        content = file.read()
    if content[:3] != b"\0\0\x08":
        raise DatasetError(f"{path} must be an IDX file of unsigned bytes, received the first bytes {content[:4]!r}")
    axes = content[3]
    shape = struct.unpack_from(f">{axes}I", content, 4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, text and NumPy arrays, and refuses whatever else a pickle may call."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_PARTS:
            raise DatasetError(f"A pickle of arrays must call nothing else, received {module}.{name}")
        return _ARRAY_PARTS[module, name]
