"""A finished run as a function from image files to class probabilities.

Used by ``python -m pipeline predict`` and by the model that MLflow serves: both give the numbers that were evaluated,
passed through a calibrator if they are given one.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.console.errors import reading
from pipeline.core import artifacts
from pipeline.evaluation.calibration import calibrators
from pipeline.features import activations, feature_store, inference
from pipeline.images import decode
from pipeline.images.test_time_augmentation import AskedViews
from pipeline.networks import graphs
from pipeline.training import frozen_split

# Images a forward pass; the prediction of an image does not depend on it.
BATCH_SIZE = 8

# Not every library lets threads share a booster, and all families take and give back BLAS's threads, which belong to
# the process: of one whose turn ends, another would get them in the middle of a product.
_one_classifier_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Predictor:
    """``classes`` in the order of the columns of `probabilities`; ``calibrator``: what these pass through, if any.

    ``asked``: the views of an image, over which its probabilities are averaged. ``decoding``: entered for every image
    that is decoded, for example a semaphore that lets a few at a time pass.

    Safe to share between threads, also several predictors of one process: each call gets what it would get alone.
    What they share is the network, which sees to that itself, the classifier, which takes one call at a time, and
    numbers that nothing changes. Whoever makes a predictor without `load` sees to the classifier.
    """

    classes: tuple[str, ...]
    image_params: decode.ImageParams
    frozen: inference.FrozenNetwork
    classify: Callable[[np.ndarray], np.ndarray]
    threads: int
    asked: AskedViews = dataclasses.field(default_factory=AskedViews)
    calibrator: calibrators.Calibrator | None = None
    decoding: AbstractContextManager[Any] = dataclasses.field(default_factory=nullcontext)

    def probabilities(self, sources: Sequence[Path | bytes]) -> np.ndarray:
        """Return (n, classes) for image files, or their bytes, in order: float32, or calibrated float64.

        Raises images.ImageError.
        """
        if not sources:
            return np.empty((0, len(self.classes)), dtype=np.float32)
        size = self.frozen.input_shape[0]

        def read(source: Path | bytes) -> np.ndarray:
            with self.decoding:
                image = decode.load(source, size=size, params=self.image_params)
            return self.asked.pixels(image, source)

        batch_size = max(1, BATCH_SIZE // len(self.asked.numbers))
        batches = decode.batches(sources, read, batch_size=batch_size, threads=self.threads)
        found = self.asked.mean(np.concatenate([self.classify(rows) for rows in self.frozen.map(batches)]))
        return found if self.calibrator is None else self.calibrator.apply(found)


@dataclass(frozen=True)
class Ensemble:
    """The weighted mean of what several predictors of the same classes say. The weights add up to 1."""

    members: tuple[tuple[Predictor, float], ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.members[0][0].classes

    def probabilities(self, sources: Sequence[Path | bytes]) -> np.ndarray:
        """Return float64 (n, classes) for image files, or their bytes, in order. Raises images.ImageError."""
        found = np.zeros((len(sources), len(self.classes)))
        for member, weight in self.members:
            found += weight * member.probabilities(sources)
        return found


def load(
    run: Path,
    backbones: Path = artifacts.BACKBONES,
    store: feature_store.FeatureStore | None = None,
    *,
    calibrator: Mapping[str, Any] | None = None,
) -> Predictor:
    """Return the predictor of a run's directory. A classifier on features also needs its network in ``backbones``.

    How images are read and computed comes from the run, so later changes of params.yaml do not touch it. Networks are
    kept in ``store`` in the engine's own form, so that the next call need not convert them. ``calibrator``: as a
    comparison saved it (`artifacts.read_calibrator`).
    """
    record = artifacts.read_record(run / "record.json")
    of_classifier = record.stage == "sweep"
    found = _of_classifier(run, record, backbones, store) if of_classifier else _of_network(run, record, store)
    if calibrator is None:
        return found
    return dataclasses.replace(found, calibrator=calibrators.from_description(calibrator))


def _of_classifier(
    run: Path, record: artifacts.Record, backbones: Path, store: feature_store.FeatureStore | None
) -> Predictor:
    with reading(run / "features.json"):
        meta = artifacts.read_json(run / "features.json")
        chosen = activations.FeatureParams.model_validate(meta["features"])
        image_params = decode.ImageParams.model_validate(meta["images"])
        compute = _compute(meta, threads=record.parameters["compute.threads"])
        identity = {key: meta[key] for key in ("network_sha256", "tensors")}
    directory = backbones / record.network
    if artifacts.sha256_path(directory) != identity["network_sha256"]:
        raise artifacts.ArtifactError(f"{directory} is not the network that {run} was trained with: run `dvc repro`")
    frozen = inference.FrozenNetwork(
        lambda: activations.features_of(directory, chosen),
        compute=compute,
        converted=store and store.directory_of(identity),
    )
    fitted = importlib.import_module(f"pipeline.classifiers.families.{record.method}").load(run)

    def classify(rows: np.ndarray) -> np.ndarray:
        with _one_classifier_at_a_time:
            return fitted.predict_proba(rows)

    return Predictor(tuple(record.classes), image_params, frozen, classify, compute.threads)


def _of_network(run: Path, record: artifacts.Record, store: feature_store.FeatureStore | None) -> Predictor:
    with reading(run / "frozen.json"):
        about = artifacts.read_json(run / "frozen.json")
        asked = AskedViews.from_about(about)
        identity = {key: about[key] for key in ("network_sha256", "tensors")} if about["tensors"] else None
        compute = _compute(about, threads=record.parameters["compute"]["threads"])
    digests = {name: artifacts.sha256_path(run / name) for name in (graphs.ARCHITECTURE, graphs.WEIGHTS)}
    split = functools.cache(lambda: frozen_split.split(graphs.load(run)))
    tail = inference.FrozenNetwork(
        lambda: split().tail, compute=compute.in_float32(), converted=store and store.directory_of(digests)
    )
    image_params = decode.ImageParams.model_validate(record.parameters["images"])
    classes = tuple(record.classes)
    if identity is None:
        return Predictor(classes, image_params, tail, lambda rows: rows, compute.threads, asked)
    frozen = inference.FrozenNetwork(
        lambda: split().frozen,
        compute=compute,
        converted=store and store.directory_of(identity),
    )
    return Predictor(classes, image_params, frozen, tail.run, compute.threads, asked)


def _compute(about: Mapping[str, Any], *, threads: int) -> inference.ComputeParams:
    return inference.ComputeParams(
        threads=threads, batch_size=BATCH_SIZE, engine=about["engine"], precision=about["precision"]
    )
