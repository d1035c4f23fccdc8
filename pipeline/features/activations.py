"""What a frozen network makes of images and of their augmented views: computed in the engine, once, and kept.

Where the feature store has no room, the same rows are computed whenever they are asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import pydantic

from pipeline.console.errors import BakeoffError
from pipeline.console.progress import progress, say
from pipeline.core import artifacts, provenance
from pipeline.core.params import Block
from pipeline.features import feature_store, inference
from pipeline.images import augmentation, decode
from pipeline.networks import graphs

if TYPE_CHECKING:
    import keras

# Rows recomputed on every use of kept ones: enough to see another CPU or library, too few to take time.
CANARIES = 4
# How far a recomputed row may be from the kept one, relative to its largest number. OpenVINO on a CPU gives the same
# bits in every batch; a GPU chooses other algorithms for other batches and promises no more than this.
TOLERANCES = {"openvino": 0.0, "tensorflow": 1e-2}
# Rows held in memory at once when many are read.
CHUNK_BYTES = 64 * 2**20


class DriftError(BakeoffError):
    """This machine no longer computes what the feature store holds."""


class LayerParams(Block):
    """One of ``features.layers``, with a pooling of its own."""

    layer: str
    pooling: graphs.Pooling


class FeatureParams(Block):
    """``features`` in params.yaml: what of a network the classifiers learn from.

    ``layers``: names, those of the original top included, concatenated in this order; None: the network's own features.
    ``pooling``: of those that have height and width, where a layer does not say its own.
    """

    layers: Annotated[list[str | LayerParams], pydantic.Field(min_length=1)] | None
    pooling: graphs.Pooling

    @property
    def pooled_layers(self) -> list[graphs.PooledLayer]:
        """Return the layers in order, each with its pooling; none if they are the network's to choose."""
        return [
            graphs.PooledLayer(each, self.pooling)
            if isinstance(each, str)
            else graphs.PooledLayer(each.layer, each.pooling)
            for each in self.layers or ()
        ]

    @pydantic.field_validator("layers", mode="before")
    @classmethod
    def _names_or_mappings(cls, layers: Any) -> Any:
        # Else every entry that is wrong would be reported twice, once for what it is not.
        for each in layers if isinstance(layers, list) else ():
            if isinstance(each, Mapping):
                LayerParams.model_validate(each)
            elif not isinstance(each, str | LayerParams):
                raise ValueError("names of layers, or {layer: NAME, pooling: max} for one that is pooled otherwise")
        return layers

    @pydantic.model_validator(mode="after")
    def _pooling_is_of_layers(self) -> FeatureParams:
        if self.layers is None and self.pooling != "avg":
            raise ValueError("pooling: avg with layers: null; name a layer (map_layer in spec.json) to pool otherwise")
        if len(set(self.pooled_layers)) != len(self.pooled_layers):
            raise ValueError("layers that are named once, or each time with another pooling")
        return self


class View(NamedTuple):
    """An image by its file and content, and which of its augmented views; ``number`` None: the image as it is."""

    file: Path
    sha256: str
    number: int | None


def originals(part: artifacts.Part) -> list[View]:
    """Return the images of one part as they are, in manifest order."""
    return [View(file, sha256, None) for file, sha256 in zip(part.files, part.sha256, strict=True)]


@dataclass(frozen=True)
class FrozenPart:
    """A network, or its beginning, whose weights stay as they are.

    ``build``: returns it as a Keras model, pixels to ``tensors``. ``sha256``: of the stored network it is cut from.
    ``tensors``: its outputs, ``layer:node:output`` and perhaps how they are pooled, which together with ``sha256`` name
    what is computed.
    """

    build: inference.Build
    sha256: str
    tensors: tuple[str, ...]
    input_size: int

    @classmethod
    def up_to(cls, layer: str, *, backbone: str) -> FrozenPart:
        """Return a stored backbone up to the output of one layer."""
        directory = artifacts.BACKBONES / backbone
        return cls(
            build=lambda: graphs.cut(graphs.load(directory), layer),
            sha256=artifacts.sha256_path(directory),
            tensors=(f"{layer}:0:0",),
            input_size=graphs.read_spec(directory).input_size,
        )

    @classmethod
    def of_features(cls, params: FeatureParams, *, backbone: str) -> FrozenPart:
        """Return a stored backbone up to the features that ``params`` choose."""
        directory = artifacts.BACKBONES / backbone
        if params.layers is None:
            return cls.up_to(graphs.read_spec(directory).feature_layer, backbone=backbone)
        return cls(
            build=lambda: features_of(directory, params),
            sha256=artifacts.sha256_path(directory),
            tensors=tuple(f"{layer}:0:0:{pooling}" for layer, pooling in params.pooled_layers),
            input_size=graphs.read_spec(directory).input_size,
        )

    def converted(self, store: feature_store.FeatureStore) -> Path:
        """Return where the store keeps the network in the engine's own form."""
        return store.directory_of({"network_sha256": self.sha256, "tensors": list(self.tensors)})

    def identity(self, *, compute: inference.ComputeParams, image_params: decode.ImageParams) -> dict[str, Any]:
        """Return everything that a row depends on besides the image and how it was augmented."""
        return {
            "network_sha256": self.sha256,
            "tensors": list(self.tensors),
            "input_size": self.input_size,
            "images": image_params.model_dump(),
            "engine": inference.chosen_engine(compute.engine),
            "precision": compute.precision,
        }


def features_of(directory: Path, params: FeatureParams) -> keras.Model:
    """Return a stored backbone up to the features that ``params`` choose. Raises NetworkError for an unknown layer."""
    own = graphs.PooledLayer(graphs.read_spec(directory).feature_layer, params.pooling)
    return graphs.pooled(graphs.load(directory), params.pooled_layers or [own])


class Activations:
    """Rows of a frozen part, float32 (width,), by view. Use as a context manager; leaving it writes what waits.

    ``augmentation`` and ``seed`` draw the views that have a number.
    """

    def __init__(
        self,
        part: FrozenPart,
        *,
        compute: inference.ComputeParams,
        image_params: decode.ImageParams,
        augmentation: augmentation.AugmentationParams | None = None,
        seed: int = 0,
    ):
        self._size = part.input_size
        self._compute = compute
        self._image_params = image_params
        self._augmentation = augmentation
        self._seed = seed
        store = feature_store.from_environment()
        self.identity = part.identity(compute=compute, image_params=image_params)
        self._network = inference.FrozenNetwork(part.build, compute=compute, converted=part.converted(store))
        self.width = self._network.width
        self._store = store
        self._space = store.space(self.identity, width=self.width)
        drawn = augmentation.model_dump(exclude={"views", "test_time_views"}) if augmentation else None
        self._drawn = provenance.digest([seed, drawn])

    def __enter__(self) -> Activations:
        self._space.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._space.__exit__(*exception)

    def keep(self, views: Sequence[View], *, label: str) -> int | None:
        """Compute the rows that are not kept yet, showing progress; return how many, or None if there is no room.

        Raises DriftError if a few of those that were kept come out differently now, images.ImageError and
        inference.InferenceError.
        """
        keys = {self._key(view): view for view in views}
        missing = [view for key, view in keys.items() if key not in self._space]
        # Every time: rows that are new to the store say nothing about those that another machine has left there.
        self._check_canaries([view for key, view in keys.items() if key in self._space])
        if not missing:
            return 0
        if not self._space.has_room_for(len(missing)):
            say(
                f"{label}: {len(missing) * 4 * self.width / 1e9:.1f} GB do not fit into the feature store's "
                f"{self._store.budget / 1e9:g} GB (BAKEOFF_FEATURE_STORE_GB), so they are computed whenever needed"
            )
            return None
        for _ in progress(self._kept_rows_of(missing), total=len(missing), label=label, unit="images"):
            pass
        self._space.flush()
        return len(missing)

    def rows(self, views: Sequence[View]) -> np.ndarray:
        """Return the rows of views, float32 (n, width): those that are kept, the others computed."""
        rows, found = self._space.read([self._key(view) for view in views])
        if not found.all():
            lost = np.flatnonzero(~found)
            rows[lost] = np.concatenate(list(self._rows_of([views[position] for position in lost])))
        return rows

    def stream(self, views: Sequence[View]) -> Iterator[np.ndarray]:
        """Yield `rows` of all views, in order, as many at a time as fit into a little memory."""
        step = max(1, CHUNK_BYTES // (4 * self.width))
        for start in range(0, len(views), step):
            yield self.rows(views[start : start + step])

    def _kept_rows_of(self, views: Sequence[View]) -> Iterator[np.ndarray]:
        done = 0
        for rows in self._rows_of(views):
            self._space.add([self._key(view) for view in views[done : done + len(rows)]], rows)
            done += len(rows)
            yield from rows

    def _rows_of(self, views: Sequence[View]) -> Iterator[np.ndarray]:
        """Compute rows in order, a batch at a time. An image is decoded once for all of its views in a row."""
        size = self._compute.batch_size
        groups = [
            chunk for _, group in itertools.groupby(views, key=lambda view: view.file) for chunk in _chunks(group, size)
        ]
        images_a_batch = max(1, size // max(map(len, groups)))
        batches = decode.batches(groups, self._pixels, batch_size=images_a_batch, threads=self._compute.threads)
        yield from inference.finite(self._network.map(batches), names=[str(view.file) for view in views])

    def _pixels(self, views: Sequence[View]) -> np.ndarray:
        """Return views of one image, uint8 (n, size, size, 3)."""
        image = decode.load(views[0].file, size=self._size, params=self._image_params)
        return np.stack([self._drawn_from(image, view) for view in views])

    def _drawn_from(self, image: np.ndarray, view: View) -> np.ndarray:
        if view.number is None:
            return image
        return augmentation.augment(
            image, seed=self._seed, sha256=view.sha256, view=view.number, params=self._augmentation
        )

    def _key(self, view: View) -> bytes:
        drawn = () if view.number is None else (self._drawn, view.number)
        return feature_store.key(view.sha256, *drawn)

    def _check_canaries(self, kept: Sequence[View]) -> None:
        chosen = [kept[position] for position in np.linspace(0, len(kept) - 1, num=min(CANARIES, len(kept)), dtype=int)]
        if not chosen:
            return
        rows, found = self._space.read([self._key(view) for view in chosen])
        again = np.concatenate(list(self._rows_of(chosen)))
        differences = np.abs(rows - again).max(axis=1) * found
        if (differences > TOLERANCES[self.identity["engine"]] * np.abs(again).max(axis=1)).any():
            then, now = self._store.environment_of(self.identity), provenance.environment()
            changed = [
                f"{name} {then.get(name)} -> {now.get(name)}"
                for name in {**then, **now}
                if then.get(name) != now.get(name)
            ]
            raise DriftError(
                f"The feature store holds other values than this machine computes now: "
                f"{chosen[differences.argmax()].file} differs by up to {differences.max():.2g} "
                f"({self._space.directory}).\n"
                f"Changed since they were computed: {', '.join(changed) or 'nothing that is recorded'}.\n"
                "Mixing the two would make results depend on what was computed when. Delete the store with "
                "`make clean-features`, or name another one with BAKEOFF_FEATURE_STORE"
            )


def _chunks(views: Iterator[View], size: int) -> Iterator[list[View]]:
    while chunk := list(itertools.islice(views, size)):
        yield chunk
