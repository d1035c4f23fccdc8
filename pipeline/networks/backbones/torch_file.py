"""Read PyTorch's legacy pickle files (``torch.save`` before 1.6) without PyTorch.

The file is a sequence: the pickles of a magic number, of a protocol version and of facts about the writing system;
the pickled object, whose tensors name their storages by key; the pickled list of keys; then for each key in that order
an int64 number of elements and the elements, raw and little-endian.
Source: ``_legacy_save`` and ``_legacy_load`` in torch/serialization.py.

A tensor is a strided view of its storage, and need not be contiguous: a file converted from TensorFlow keeps
convolution kernels as (height, width, in, out) and shows them as (out, in, height, width). Strides are honored.

Unpickling can run code. Here the unpickler knows an ordered dict, tensors and storages, and refuses every other name.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.console.errors import BakeoffError

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001

DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class TorchFileError(BakeoffError):
    """The file is not a whole legacy PyTorch file of tensors."""


@dataclass
class _Storage:
    """The elements that tensors view; ``elements`` is filled after the object is unpickled."""

    dtype: np.dtype
    size: int
    elements: np.ndarray | None = None


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _StorageType:
    """Stands for ``torch.FloatStorage`` and the like, which persistent ids carry by reference."""

    dtype: np.dtype


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Return {name: array} of a state dict saved by ``torch.save``, arrays contiguous, in the order of the file.

    Raises TorchFileError if the file has another format, is cut short, holds anything but tensors by name, or names a
    Python object other than those that tensors are made of.
    """
    try:
        with path.open("rb") as file:
            return _read(file, size=path.stat().st_size)
    except FileNotFoundError:
        raise TorchFileError(f"{path} not found") from None
    except TorchFileError as error:
        raise TorchFileError(f"{path}: {error}") from None
    # A damaged pickle can raise nearly anything, from KeyError to MemoryError; all of it means the same to the caller.
    except Exception as error:
        raise TorchFileError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _read(file: BinaryIO, *, size: int) -> dict[str, np.ndarray]:
    _read_header(file)
    storages: dict[str, _Storage] = {}
    state = _Unpickler(file, storages).load()
    if not isinstance(state, dict):
        raise TorchFileError(f"must hold a dict of tensors, received {type(state).__name__}")
    _read_storages(file, storages, size=size)
    arrays = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise TorchFileError(f"must hold tensors by name, received {type(tensor).__name__} at {name!r}")
        arrays[name] = _as_array(name, tensor)
    return arrays


def _read_header(file: BinaryIO) -> None:
    start = file.read(4)
    file.seek(0)
    if start.startswith(b"PK"):
        raise TorchFileError(
            "is in the zip format of PyTorch 1.6 and later; "
            "save it with torch.save(..., _use_new_zipfile_serialization=False)"
        )
    plain: dict[str, _Storage] = {}
    try:
        magic = _Unpickler(file, plain).load()
    except Exception:
        magic = None
    if magic != MAGIC:
        raise TorchFileError("is not a PyTorch file: it does not start with PyTorch's magic number")
    protocol = _Unpickler(file, plain).load()
    if protocol != PROTOCOL:
        raise TorchFileError(f"has protocol version {protocol!r}; this reader knows {PROTOCOL}")
    system = _Unpickler(file, plain).load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise TorchFileError("was not written on a little-endian system")


def _read_storages(file: BinaryIO, storages: dict[str, _Storage], *, size: int) -> None:
    keys = _Unpickler(file, {}).load()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise TorchFileError("its list of storages does not match the storages that its tensors view")
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(file.read(8), "little", signed=True)
        if count != storage.size:
            raise TorchFileError(f"storage {key} must have {storage.size} elements, the file says {count}")
        wanted = count * storage.dtype.itemsize
        if wanted > size - file.tell():
            raise TorchFileError(f"ends within storage {key}: {wanted} bytes expected, {size - file.tell()} left")
        storage.elements = np.frombuffer(file.read(wanted), dtype=storage.dtype)


def _as_array(name: str, tensor: _Tensor) -> np.ndarray:
    """Return the strided view as a contiguous array. Strides and offset count elements, not bytes."""
    storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
    if len(shape) != len(strides) or min((tensor.offset, *shape, *strides)) < 0:
        raise TorchFileError(f"tensor {name!r} has shape {shape}, strides {strides} and offset {tensor.offset}")
    last = tensor.offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    # as_strided reads whatever memory the strides point to, so the bounds are checked here.
    if math.prod(shape) and last >= storage.size:
        raise TorchFileError(f"tensor {name!r} reaches element {last} of a storage of {storage.size}")
    if not math.prod(shape):
        return np.empty(shape, dtype=storage.dtype)
    assert storage.elements is not None  # _read_storages has filled every storage or raised
    bytes_apart = tuple(stride * storage.dtype.itemsize for stride in strides)
    view = np.lib.stride_tricks.as_strided(storage.elements[tensor.offset :], shape, bytes_apart, writeable=False)
    return np.array(view, order="C")


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows tensors and nothing else; fills ``storages`` with those it meets."""

    def __init__(self, file: BinaryIO, storages: dict[str, _Storage]):
        # Strings written by Python 2 are bytes that hold ASCII names.
        super().__init__(file, encoding="ascii")
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in DTYPES:
            return _StorageType(DTYPES[name])
        raise TorchFileError(
            f"refers to {module}.{name}, which is not read. Allowed: collections.OrderedDict, "
            f"torch._utils._rebuild_tensor_v2, torch.{{{', '.join(sorted(DTYPES))}}}"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) != 6 or pid[0] != "storage" or not isinstance(pid[1], _StorageType):
            raise TorchFileError(f"has an unknown reference {pid!r}")
        _, kind, key, _device, size, view = pid
        if not isinstance(key, str) or not isinstance(size, int) or size < 0 or view is not None:
            raise TorchFileError(f"has an unknown storage reference: key {key!r}, size {size!r}, view {view!r}")
        storage = self._storages.setdefault(key, _Storage(kind.dtype, size))
        if (storage.dtype, storage.size) != (kind.dtype, size):
            raise TorchFileError(f"describes storage {key} in two ways")
        return storage


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_gradient_facts: Any
) -> _Tensor:
    if not isinstance(storage, _Storage) or not all(isinstance(n, int) for n in (offset, *shape, *strides)):
        raise TorchFileError("has a tensor that does not view a storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))
