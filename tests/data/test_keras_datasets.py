"""The courses' data sets: tiny archives in the published layouts, from Keras' cache to the split, and offline."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import http.server
import importlib.util
import io
import json
import os
import pickle
import re
import shutil
import socket
import struct
import sys
import tarfile
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.console.progress import NoLog
from pipeline.core import artifacts
from pipeline.core.params import Params
from pipeline.data import sources
from pipeline.data.sources import DatasetError, DatasetParams, archives, keras_datasets
from pipeline.stages import dataset, split

EACH = {"train": 8, "test": 3}  # of ten classes
Labelled = archives.Labelled


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test here reaches a network: nobody listens at this proxy."""
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # It remembers the proxies of the first call in this process.
    monkeypatch.setattr(urllib.request, "_opener", None)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Keras' empty cache, and a working directory of its own."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "keras"


def noise(source: str) -> dict[str, Labelled]:
    """Ten classes in turn, every image another noise."""
    rng = np.random.default_rng(0)
    shape = (32, 32, 3) if source == "cifar10" else (28, 28)
    return {
        part: (rng.integers(0, 256, (10 * each, *shape), dtype=np.uint8), np.arange(10 * each) % 10)
        for part, each in EACH.items()
    }


# --- archives as they are published --------------------------------------------------------------------------------


def as_npz(folder: Path, parts: dict[str, Labelled]) -> None:
    np.savez(
        folder / "mnist.npz",
        x_train=parts["train"][0],
        y_train=parts["train"][1].astype(np.uint8),
        x_test=parts["test"][0],
        y_test=parts["test"][1].astype(np.uint8),
    )


def as_idx(folder: Path, parts: dict[str, Labelled]) -> None:
    for part, name in (("train", "train"), ("test", "t10k")):
        for what, array in zip(("images-idx3", "labels-idx1"), parts[part], strict=True):
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            with gzip.open(folder / f"{name}-{what}-ubyte.gz", "wb") as file:
                file.write(head + array.astype(np.uint8).tobytes())


class Python2Pickler(pickle._Pickler):
    """Writes text as Python 2 did, which is how CIFAR-10 was pickled."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def pickled(value: Any) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def batch(images: np.ndarray, labels: np.ndarray) -> dict[bytes, Any]:
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    names = [b"%d.png" % number for number in range(len(images))]
    return {b"batch_label": b"a batch", b"labels": labels.tolist(), b"data": rows, b"filenames": names}


def as_batches(folder: Path, parts: dict[str, Labelled], **others: Any) -> None:
    members = {
        f"data_batch_{number + 1}": batch(images, labels)
        for number, (images, labels) in enumerate(zip(*(np.array_split(a, 5) for a in parts["train"]), strict=True))
    }
    members |= {"test_batch": batch(*parts["test"]), **others}
    with tarfile.open(folder / "cifar-10-batches-py-target_archive", "w:gz") as archive:
        for name in sorted(members, reverse=True):  # the published one is in no order, either
            content = pickled(members[name])
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


WRITERS: dict[str, Callable[..., None]] = {"mnist": as_npz, "fashion_mnist": as_idx, "cifar10": as_batches}
every_source = pytest.mark.parametrize("source", list(keras_datasets.SETS))


def publish(home: Path, source: str, parts: dict[str, Labelled] | None = None, **others: Any) -> dict[str, Labelled]:
    """Write the archives into Keras' cache and a description with their digests; return what is in them."""
    parts = noise(source) if parts is None else parts
    folder = home / keras_datasets.SETS[source].folder
    folder.mkdir(parents=True, exist_ok=True)
    WRITERS[source](folder, parts, **others)
    digests = {name: artifacts.sha256_file(folder / name) for name in keras_datasets.SETS[source].origins}
    artifacts.write_json(Path(f"{source}.json"), {"source": source, "sha256": digests})
    return parts


def block(source: str, **changes: Any) -> dict[str, Any]:
    groups = {"pattern": None, "csv": None, "column": None, "module": False}
    return {
        "source": source,
        "path": f"{source}.json",
        "limit": None,
        "max_dropped": 0.0,
        "groups": groups,
        "conflicting_duplicates": "drop",
        "allow_untracked": False,
        **changes,
    }


def given(source: str, **changes: Any) -> DatasetParams:
    return DatasetParams.model_validate(block(source, **changes))


def run_stages(source: str, *stages, **changes: Any) -> None:
    values = {
        "seed": 0,
        "dataset": block(source, **changes),
        "split": {"test": 0.25, "validation": 0.15, "near_duplicates": "auto"},
        "compute": {"threads": 2},
    }
    for stage in stages or (dataset, split):
        stage.main(Params(values, stage.READS), log=NoLog())


def manifest() -> list[dict[str, str]]:
    return artifacts.read_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS)


# --- from the archive to the split ---------------------------------------------------------------------------------


@every_source
def test_published_images_keep_their_pixels_labels_and_parts(home, source):
    parts = publish(home, source)
    run_stages(source)
    rows = manifest()
    # 15 % of train for validation, and every image of the published test part for test.
    assert Counter(row["split"] for row in rows) == {"train": 68, "validation": 12, "test": 30}
    classes = keras_datasets.SETS[source].classes
    seen = set()
    for row in rows:
        part = "test" if row["split"] == "test" else "train"
        number = int(Path(row["path"]).stem) - (80 if part == "test" else 0)
        images, labels = parts[part]
        with Image.open(artifacts.SPLIT / row["path"]) as image:
            assert image.mode == ("RGB" if source == "cifar10" else "L")
            np.testing.assert_array_equal(np.asarray(image), images[number])
        assert row["label"] == classes[labels[number]]
        seen.add((part, number))
    assert len(seen) == 110
    assert sources.class_names(given(source)) == tuple(sorted({row["label"] for row in rows}))


@every_source
def test_of_a_limit_no_more_images_are_unpacked_than_it_leaves(home, source):
    publish(home, source)
    run_stages(source, limit=55)
    unpacked = [path for path in (Path(".cache/datasets") / source).rglob("*") if path.is_file()]
    assert len(unpacked) == len(manifest()) == 55
    assert Counter(row["split"] for row in manifest())["test"] == 15  # in proportion


def test_the_split_unpacks_what_a_fresh_clone_does_not_have(home):
    publish(home, "mnist")
    run_stages("mnist")
    before = artifacts.sha256_path(artifacts.SPLIT)
    shutil.rmtree(".cache/datasets")
    run_stages("mnist", split)
    assert artifacts.sha256_path(artifacts.SPLIT) == before


def test_what_was_unpacked_before_a_kill_is_whole_and_is_not_written_again(home, monkeypatch):
    publish(home, "mnist")
    params = given("mnist")
    images = keras_datasets.read(params).images
    written = []

    def killed_at_the_sixth(pixels):
        written.append(pixels)
        if len(written) == 6:
            raise KeyboardInterrupt
        return whole(pixels)

    whole = archives.png
    monkeypatch.setattr(archives, "png", killed_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        keras_datasets.provide(params, images)
    monkeypatch.setattr(archives, "png", lambda pixels: written.append(pixels) or whole(pixels))
    digests = {image.path: image.sha256 for image in images}
    left = [path for path in keras_datasets.root(params).rglob("*") if path.is_file()]
    assert len(left) == 5
    for path in left:
        assert artifacts.sha256_file(path) == digests[path.relative_to(keras_datasets.root(params)).as_posix()]
    written.clear()
    keras_datasets.provide(params, images)
    assert len(written) == len(images) - 5
    assert all(artifacts.sha256_file(keras_datasets.root(params) / path) == digest for path, digest in digests.items())


def test_an_unpacked_file_that_was_changed_is_unpacked_again_and_a_whole_one_is_left(home):
    publish(home, "mnist")
    params = given("mnist")
    images = keras_datasets.read(params).images
    keras_datasets.provide(params, images)
    changed, other = (keras_datasets.root(params) / image.path for image in images[:2])
    changed.write_bytes(b"something else")
    inode = other.stat().st_ino
    keras_datasets.provide(params, images)
    assert artifacts.sha256_file(changed) == images[0].sha256
    assert other.stat().st_ino == inode


# --- archives that are not there, or not as they should be ---------------------------------------------------------


@every_source
def test_without_a_network_the_message_says_which_files_to_put_where(home, source, monkeypatch):
    parts = publish(home, source)
    digests = json.loads(Path(f"{source}.json").read_text())["sha256"]
    shutil.rmtree(home)
    monkeypatch.setitem(sys.modules, "keras", None)  # nor is it imported in vain
    with pytest.raises(DatasetError, match=rf"{source} cannot be downloaded: .*refused") as error:
        keras_datasets.read(given(source))
    message = str(error.value)
    assert f"into {home / keras_datasets.SETS[source].folder} (KERAS_HOME" in message
    for name, origin in keras_datasets.SETS[source].origins.items():
        assert f"{name}: SHA-256 {digests[name]}, from {origin}" in message
    publish(home, source, parts)
    assert len(keras_datasets.read(given(source)).images) == 110


def test_an_archive_of_another_digest_is_not_read_and_not_removed_when_there_is_no_network(home):
    publish(home, "mnist")
    archive = home / "datasets" / "mnist.npz"
    archive.write_bytes(archive.read_bytes()[:1000])
    with pytest.raises(DatasetError, match=f"what is there has {artifacts.sha256_file(archive)}"):
        keras_datasets.read(given("mnist"))
    assert archive.stat().st_size == 1000


def test_keras_downloads_and_verifies_what_is_missing_with_a_limit_to_its_patience(home, monkeypatch):
    publish(home, "fashion_mnist")
    folder = home / "datasets" / "fashion-mnist"
    elsewhere = shutil.move(folder, home.with_name("elsewhere"))
    (home / "datasets" / "fashion-mnist").mkdir()
    shutil.copy(Path(elsewhere) / "t10k-labels-idx1-ubyte.gz", folder)
    asked = []

    def get_file(name, origin, *, file_hash, hash_algorithm, cache_dir, cache_subdir):
        asked.append((name, origin))
        assert socket.getdefaulttimeout() == keras_datasets.SECONDS_TO_ANSWER
        assert (hash_algorithm, cache_dir) == ("sha256", str(home))
        path = Path(cache_dir, cache_subdir, name)
        shutil.copy(Path(elsewhere) / name, path)
        assert artifacts.sha256_file(path) == file_hash
        return str(path)

    monkeypatch.setitem(sys.modules, "keras", SimpleNamespace(utils=SimpleNamespace(get_file=get_file)))
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: io.BytesIO())
    before = socket.getdefaulttimeout()
    assert len(keras_datasets.read(given("fashion_mnist")).images) == 110
    assert socket.getdefaulttimeout() == before
    wanted = dict(keras_datasets.SETS["fashion_mnist"].origins)
    del wanted["t10k-labels-idx1-ubyte.gz"]
    assert dict(asked) == wanted
    assert len(asked) == 3


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Path]:
    """The folder of a server from which MNIST comes, for once."""
    folder = tmp_path / "server"
    folder.mkdir()
    handler = functools.partial(SilentHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{found.server_port}/mnist.npz"
        monkeypatch.setitem(
            keras_datasets.SETS,
            "mnist",
            dataclasses.replace(keras_datasets.SETS["mnist"], origins={"mnist.npz": origin}),
        )
        monkeypatch.delenv("http_proxy", raising=False)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield folder
        found.shutdown()


class SilentHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *values):
        pass


@pytest.mark.slow
def test_keras_itself_downloads_into_its_cache_and_refuses_what_has_another_digest(home, server):
    """Slow, because it imports Keras."""
    parts = publish(home, "mnist")
    archive = home / "datasets" / "mnist.npz"
    content = archive.read_bytes()
    shutil.rmtree(home)
    (server / "mnist.npz").write_bytes(content[:-1])
    with pytest.raises(DatasetError, match=r"mnist cannot be downloaded: Incomplete or corrupted file detected"):
        keras_datasets.read(given("mnist"))
    (server / "mnist.npz").write_bytes(content)
    assert len(keras_datasets.read(given("mnist")).images) == sum(len(labels) for _, labels in parts.values())
    assert archive.read_bytes() == content


@pytest.mark.parametrize(
    "content", [{"source": "cifar10", "sha256": {}}, {"source": "mnist"}, {"source": "mnist", "sha256": {}}, []]
)
def test_a_description_of_something_else_is_refused(home, content):
    artifacts.write_json(Path("mnist.json"), content)
    with pytest.raises(DatasetError, match=r"mnist\.json must describe mnist: .* of mnist\.npz; data/mnist\.json"):
        keras_datasets.read(given("mnist"))


def test_a_description_that_is_not_there_is_named(home):
    with pytest.raises(DatasetError, match=r"mnist\.json does not exist; data/mnist\.json comes with the project"):
        keras_datasets.read(given("mnist"))


class Command:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_pickle_that_calls_anything_is_refused_and_calls_nothing(home):
    publish(home, "cifar10", data_batch_3={b"data": Command()})
    with pytest.raises(DatasetError, match=r"must call nothing else, received (posix|nt)\.system"):
        keras_datasets.read(given("cifar10"))
    assert not Path("executed").exists()


def test_an_archive_without_a_batch_is_refused(home):
    publish(home, "cifar10")
    archive = home / "datasets" / "cifar-10-batches-py-target_archive"
    with tarfile.open(archive, "w:gz"):
        pass
    digests = {archive.name: artifacts.sha256_file(archive)}
    artifacts.write_json(Path("cifar10.json"), {"source": "cifar10", "sha256": digests})
    with pytest.raises(DatasetError, match=r"must hold cifar-10-batches-py/data_batch_1, .*test_batch"):
        keras_datasets.read(given("cifar10"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images, labels: (images, labels + 1), "labels of the part train must be from 0 to 9"),
        (lambda images, labels: (images[1:], labels), r"one label each, received uint8 \(79, 28, 28\) and labels"),
        (lambda images, labels: (images / 255, labels), "must be uint8 images"),
    ],
)
def test_arrays_that_are_no_labelled_images_are_refused(home, change, message):
    parts = noise("mnist")
    publish(home, "mnist", parts | {"train": change(*parts["train"])})
    with pytest.raises(DatasetError, match=message):
        keras_datasets.read(given("mnist"))


# --- PNG -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (28, 28), (3, 50), (32, 32, 3), (50, 1, 3), (100, 200, 3)])
def test_a_png_of_ours_is_read_as_it_was_written(shape):
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    with Image.open(io.BytesIO(archives.png(pixels)), formats=["PNG"]) as image:
        image.verify()
    with Image.open(io.BytesIO(archives.png(pixels))) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_a_png_of_ours_is_one_block_or_none():
    assert len(archives.png(np.zeros((255, 256), dtype=np.uint8))) < 66_000
    with pytest.raises(ValueError, match=r"one block of 65,535 bytes, received \(256, 256\)"):
        archives.png(np.zeros((256, 256), dtype=np.uint8))


# --- what is committed ---------------------------------------------------------------------------------------------


@every_source
def test_committed_descriptions_name_the_archives_and_digests_that_keras_knows(root, source):
    """Keras has a digest of two of the three; the files' names and origins it has of all."""
    description = artifacts.read_json(root / "data" / f"{source}.json")
    published = keras_datasets.SETS[source]
    assert description["source"] == source
    assert description["sha256"].keys() == published.origins.keys()
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in description["sha256"].values())
    keras = Path(importlib.util.find_spec("keras").origin).parent
    text = (keras / "src" / "datasets" / f"{source}.py").read_text(encoding="utf-8")
    for name, origin in published.origins.items():
        assert Path(origin).name in text
        assert name.removesuffix("_archive") in text
        assert source == "fashion_mnist" or description["sha256"][name] in text
    names = [name.replace("T-shirt-top", "T-shirt/top") for name in published.classes]
    if source != "mnist":  # whose classes need no table
        assert re.findall(r"^ *\| +\d+ +\| (.+?) +\|$", text, flags=re.MULTILINE) == names
