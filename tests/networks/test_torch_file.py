"""Facts of the reader: strided tensors come out as they were, and nothing but tensors is ever unpickled."""

from __future__ import annotations

import os
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import hypothesis.extra.numpy
import numpy as np
import pytest
from hypothesis import strategies as st

from pipeline.networks.backbones import torch_file
from pipeline.networks.backbones.torch_file import TorchFileError, read_state_dict

STORAGES = {dtype: name for name, dtype in torch_file.DTYPES.items()}


class View:
    """A tensor as PyTorch sees it: a shape and strides over flat elements."""

    def __init__(self, elements: np.ndarray, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0):
        self.elements, self.shape, self.strides, self.offset = elements, shape, strides, offset

    @classmethod
    def of(cls, array: np.ndarray) -> View:
        """Return the view that PyTorch would save for an array, which may be a transposed one."""
        elements = array.ravel(order="K")
        return cls(elements, array.shape, tuple(stride // array.itemsize for stride in array.strides))


def write(path: Path, state: Any, *, protocol: int = torch_file.PROTOCOL) -> Path:
    """Write what ``torch.save`` of old writes, without PyTorch."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in torch_file.DTYPES:
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2(*arguments: Any) -> None:
        raise AssertionError("only the reader rebuilds")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    storages: dict[str, np.ndarray] = {}

    class Storage:
        def __init__(self, key: str, elements: np.ndarray):
            self.key, self.elements = key, elements

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if not isinstance(value, Storage):
                return None
            kind = getattr(torch, STORAGES[value.elements.dtype])
            return ("storage", kind, value.key, "cpu", value.elements.size, None)

        def reducer_override(self, value: Any) -> Any:
            if not isinstance(value, View):
                return NotImplemented
            key = str(1000 - len(storages))
            storages[key] = value.elements
            gradient_facts = (False, OrderedDict())
            storage = Storage(key, value.elements)
            return _rebuild_tensor_v2, (storage, value.offset, value.shape, value.strides, *gradient_facts)

    with mock.patch.dict(sys.modules, {"torch": torch, "torch._utils": utils}), path.open("wb") as file:
        for header in (torch_file.MAGIC, protocol, {"protocol_version": protocol, "little_endian": True}):
            pickle.dump(header, file, protocol=2)
        Pickler(file, protocol=2).dump(state)
        pickle.dump(sorted(storages), file, protocol=2)
        for key in sorted(storages):
            file.write(storages[key].size.to_bytes(8, "little"))
            file.write(storages[key].tobytes())
    return path


def write_views(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    return write(path, OrderedDict((name, View.of(array)) for name, array in arrays.items()))


@hypothesis.given(st.data())
def test_every_transposed_tensor_comes_back_as_it_was(tmp_path_factory, data):
    dtype = data.draw(st.sampled_from(sorted(STORAGES, key=str)))
    shapes = hypothesis.extra.numpy.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4)
    array = data.draw(hypothesis.extra.numpy.arrays(dtype, shapes))
    array = array.transpose(data.draw(st.permutations(range(array.ndim))))
    path = write_views(tmp_path_factory.mktemp("torch") / "x.pth", {"weight": array})
    received = read_state_dict(path)["weight"]
    assert received.dtype == dtype and received.flags.c_contiguous
    np.testing.assert_array_equal(received, array)


def test_a_kernel_stored_as_height_width_in_out_is_read_as_out_in_height_width(tmp_path):
    stored = np.arange(3 * 3 * 2 * 4, dtype=np.float32).reshape(3, 3, 2, 4)
    path = write(tmp_path / "x.pth", {"kernel": View(stored.ravel(), (4, 2, 3, 3), (1, 4, 24, 8))})
    np.testing.assert_array_equal(read_state_dict(path)["kernel"], stored.transpose(3, 2, 0, 1))


def test_offsets_and_the_order_of_names_are_kept(tmp_path):
    elements = np.arange(10, dtype=np.int64)
    views = {"b": View(elements, (3,), (2,), offset=4), "a": View(elements[:0], (0, 3), (3, 1))}
    state = read_state_dict(write(tmp_path / "x.pth", views))
    assert list(state) == ["b", "a"]
    assert state["b"].tolist() == [4, 6, 8]
    assert state["a"].shape == (0, 3)


@pytest.mark.parametrize(
    "view",
    [
        View(np.zeros(6, np.float32), (7,), (1,)),
        View(np.zeros(6, np.float32), (2, 3), (4, 1)),
        View(np.zeros(6, np.float32), (3,), (1,), offset=4),
        View(np.zeros(6, np.float32), (3,), (-1,), offset=4),
        View(np.zeros(6, np.float32), (3,), (1, 1)),
    ],
)
def test_a_tensor_that_reaches_out_of_its_storage_is_refused(tmp_path, view):
    with pytest.raises(TorchFileError, match="tensor 'weight'"):
        read_state_dict(write(tmp_path / "x.pth", {"weight": view}))


class Shout:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harm",)


@pytest.mark.parametrize("harmful", [Shout(), {"weight": Shout()}, np.float64(3.0)])
def test_no_other_python_object_is_unpickled(tmp_path, monkeypatch, harmful):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "x.pth", harmful)
    with pytest.raises(TorchFileError, match="which is not read. Allowed: collections.OrderedDict"):
        read_state_dict(path)
    assert not (tmp_path / "harm").exists()


def test_a_harmful_header_is_not_unpickled_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pth").write_bytes(pickle.dumps(Shout(), protocol=2))
    with pytest.raises(TorchFileError, match="magic number"):
        read_state_dict(tmp_path / "x.pth")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1, 2], "must hold a dict of tensors, received list"),
        ({"epoch": 3}, "must hold tensors by name, received int at 'epoch'"),
        ({7: View(np.zeros(1, np.float32), (1,), (1,))}, "received _Tensor at 7"),
    ],
)
def test_anything_but_tensors_by_name_is_refused(tmp_path, state, message):
    with pytest.raises(TorchFileError, match=message):
        read_state_dict(write(tmp_path / "x.pth", state))


def test_every_shortened_file_is_refused(tmp_path):
    whole = write_views(tmp_path / "x.pth", {"weight": np.ones((2, 3), np.float32)}).read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(TorchFileError, match=r"cut\.pth"):
            read_state_dict(tmp_path / "cut.pth")


def test_other_formats_are_named(tmp_path):
    (tmp_path / "zip.pth").write_bytes(b"PK\x03\x04rest")
    with pytest.raises(TorchFileError, match=r"zip format of PyTorch 1\.6"):
        read_state_dict(tmp_path / "zip.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(TorchFileError, match="not a PyTorch file"):
        read_state_dict(tmp_path / "text.pth")
    with pytest.raises(TorchFileError, match="protocol version 1002"):
        read_state_dict(write(tmp_path / "new.pth", {}, protocol=1002))
    with pytest.raises(TorchFileError, match="not found"):
        read_state_dict(tmp_path / "none.pth")
