"""The data sets of the courses, MNIST, Fashion-MNIST and CIFAR-10, from the archives that Keras downloads.

Keras is asked only for what its cache does not hold: its import takes seconds, and nothing here needs it. Archives are
read when their SHA-256 is the one in the description; no code in them is run. Every image becomes a PNG file below
`root` as soon as a stage needs it, written whole or not at all.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.console.progress import progress, say
from pipeline.core import artifacts
from pipeline.data.sources import archives
from pipeline.data.sources.archives import Labelled
from pipeline.data.sources.source import DatasetError, DatasetParams, Source, SourceImage, read_description

UNPACKED = Path(".cache/datasets")
KERAS_ORIGIN = "https://storage.googleapis.com/tensorflow/tf-keras-datasets"
# Without an answer for so long, a server is taken to be out of reach.
SECONDS_TO_ANSWER = 20


@dataclass(frozen=True)
class Published:
    """A data set as it is published, in the parts train and test.

    ``folder``: of its archives, below Keras' own. ``origins``: {archive, as Keras calls it: where it comes from}.
    ``classes``: names of the labels 0, 1, ... ``load``: reads {archive: its path} as {part: images and labels}.
    """

    folder: str
    origins: Mapping[str, str]
    classes: tuple[str, ...]
    load: Callable[[Mapping[str, Path]], dict[str, Labelled]]


def root(params: DatasetParams) -> Path:
    return UNPACKED / params.source


def class_names(params: DatasetParams) -> tuple[str, ...]:
    return tuple(sorted(SETS[params.source].classes))


def read(params: DatasetParams) -> Source:
    """Return the images as <part>/<class>/<number in the data set>.png, with the digests of the files they will be.

    Raises DatasetError if an archive can neither be found nor downloaded.
    """
    parts = _load(params)
    images = [
        SourceImage(path, label, "", "", hashlib.sha256(archives.png(pixels)).hexdigest(), part)
        for path, label, part, pixels in progress(
            _pictures(params, parts), total=_count(parts), label="reading the source", unit="images"
        )
    ]
    return Source(root(params), tuple(sorted(images, key=lambda image: image.path)))


def provide(params: DatasetParams, images: Sequence[SourceImage]) -> None:
    """Write those files of ``images`` that are not there yet, or hold something else. Raises DatasetError."""
    place = root(params)
    missing = {image.path for image in images if not _holds(place / image.path, image.sha256)}
    if not missing:
        return
    say(f"unpacking {len(missing)} images into {place}")
    wanted = (picture for picture in _pictures(params, _load(params)) if picture[0] in missing)
    for path, _, _, pixels in progress(wanted, total=len(missing), label="unpacking images", unit="images"):
        with artifacts.whole_file(place / path) as temporary:
            temporary.write_bytes(archives.png(pixels))


def _holds(file: Path, sha256: str) -> bool:
    return file.is_file() and artifacts.sha256_file(file) == sha256


def _pictures(params: DatasetParams, parts: Mapping[str, Labelled]) -> Iterator[tuple[str, str, str, np.ndarray]]:
    """Yield path, label, part and pixels of every image, as published; numbers go on from one part to the next."""
    classes, numbers = SETS[params.source].classes, itertools.count()
    for part, (images, labels) in parts.items():
        for pixels, label in zip(images, labels.tolist(), strict=True):
            yield f"{part}/{classes[label]}/{next(numbers):05d}.png", classes[label], part, pixels


def _count(parts: Mapping[str, Labelled]) -> int:
    return sum(len(labels) for _, labels in parts.values())


def _load(params: DatasetParams) -> dict[str, Labelled]:
    published = SETS[params.source]
    parts = published.load(_archives(params))
    for part, (images, labels) in parts.items():
        shaped = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
        if not (images.dtype == np.uint8 and shaped and labels.shape == images.shape[:1]):
            raise DatasetError(
                f"{params.source}: the part {part} must be uint8 images and one label each, received "
                f"{images.dtype} {images.shape} and labels {labels.shape}"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(published.classes):
            raise DatasetError(
                f"{params.source}: labels of the part {part} must be from 0 to {len(published.classes) - 1}"
            )
    return parts


# --- archives ------------------------------------------------------------------------------------------------------


def _archives(params: DatasetParams) -> dict[str, Path]:
    """Return where each archive lies, of the right SHA-256, downloading what is missing. Raises DatasetError."""
    published, digests = SETS[params.source], _digests(params)
    home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    found = {name: home / published.folder / name for name in published.origins}
    received = {name: artifacts.sha256_file(path) if path.is_file() else None for name, path in found.items()}
    missing = [name for name in found if received[name] != digests[name]]
    for position, name in enumerate(missing):
        try:
            found[name] = _download(name, published, home=home, sha256=digests[name])
        except Exception as error:  # Keras raises Exception itself for whatever the network refuses.
            reason = getattr(error, "reason", None) or error
            lines = [
                f"{params.source} cannot be downloaded: {reason}",
                f"Put by hand into {home / published.folder} (KERAS_HOME in the environment names another place):",
            ]
            for lost in missing[position:]:
                lines.append(f"  {lost}: SHA-256 {digests[lost]}, from {published.origins[lost]}")
                lines += [f"    (what is there has {received[lost]})"] if received[lost] else []
            raise DatasetError("\n".join([*lines, "and run the same command again"])) from None
    return found


def _digests(params: DatasetParams) -> dict[str, str]:
    """Return {archive: SHA-256} from the description. Raises DatasetError unless it describes this source."""
    path, names = Path(params.path), list(SETS[params.source].origins)
    description = read_description(path, default=f"data/{params.source}.json")
    of_this = isinstance(description, dict) and description.get("source") == params.source
    digests = description.get("sha256") if of_this else None
    if not (isinstance(digests, dict) and all(isinstance(digests.get(name), str) for name in names)):
        raise DatasetError(
            f"{path} must describe {params.source}: an object with source and, as sha256, the digests of "
            f"{', '.join(names)}; data/{params.source}.json comes with the project"
        )
    return digests


def _download(name: str, published: Published, *, home: Path, sha256: str) -> Path:
    """Let Keras download an archive into its cache and verify it; return where it lies."""
    origin = published.origins[name]
    try:
        # Says within a second that there is no network; Keras would have to be imported first.
        urllib.request.urlopen(urllib.request.Request(origin, method="HEAD"), timeout=SECONDS_TO_ANSWER).close()
    except urllib.error.HTTPError as answer:
        answer.close()  # from a server that answers, if only not to this
    home.mkdir(parents=True, exist_ok=True)
    import keras

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS_TO_ANSWER)
    try:
        return Path(
            keras.utils.get_file(
                name,
                origin,
                file_hash=sha256,
                hash_algorithm="sha256",
                cache_dir=str(home),
                cache_subdir=published.folder,
            )
        )
    finally:
        socket.setdefaulttimeout(before)


# --- the table -----------------------------------------------------------------------------------------------------

SETS = {
    "mnist": Published(
        folder="datasets",
        origins={"mnist.npz": f"{KERAS_ORIGIN}/mnist.npz"},
        classes=tuple("0123456789"),
        load=archives.load_npz,
    ),
    "fashion_mnist": Published(
        folder="datasets/fashion-mnist",
        origins={
            f"{part}-{what}-ubyte.gz": f"{KERAS_ORIGIN}/{part}-{what}-ubyte.gz"
            for part in ("train", "t10k")
            for what in ("images-idx3", "labels-idx1")
        },
        # The first is T-shirt/top, which no folder can be called.
        classes=(
            "T-shirt-top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        load=archives.load_idx,
    ),
    "cifar10": Published(
        folder="datasets",
        origins={
            "cifar-10-batches-py-target_archive": "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        },
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        load=archives.load_batches,
    ),
}
