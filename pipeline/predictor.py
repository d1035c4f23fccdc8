"""A finished run as a function from image files to class probabilities.

Used by ``python -m pipeline predict`` and by the model that MLflow serves: both give the numbers that were evaluated.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import artifacts, images, inference, networks


@dataclass(frozen=True)
class Predictor:
    """``classes`` in the order of the columns of `probabilities`."""

    classes: tuple[str, ...]
    input_size: int
    image_params: images.ImageParams
    batch_size: int
    classify: Callable[[np.ndarray], np.ndarray]

    def probabilities(self, sources: Sequence[Path | bytes]) -> np.ndarray:
        """Return float32 (n, classes) for image files, or their bytes, in order. Raises images.ImageError."""
        if not sources:
            return np.empty((0, len(self.classes)), dtype=np.float32)
        batches = images.batches(
            sources, size=self.input_size, params=self.image_params, batch_size=self.batch_size
        )
        return np.concatenate([self.classify(batch) for batch in batches])


def load(run: Path, backbones: Path = artifacts.BACKBONES) -> Predictor:
    """Return the predictor of a run's directory. A classifier on features also needs its network in ``backbones``.

    How images are read comes from the run's record, so later changes of params.yaml do not touch it.
    """
    record = artifacts.read_record(run / "record.json")
    compute = inference.ComputeParams.model_validate(record.parameters["compute"])
    if record.stage == "sweep":
        meta = artifacts.read_json(run / "features.json")
        image_params = images.ImageParams.model_validate(meta["images"])
        directory = backbones / record.network
        spec = networks.read_spec(directory)
        if artifacts.sha256_path(directory) != meta["network_sha256"]:
            raise artifacts.ArtifactError(f"{directory} is not the network that {run} was trained with: run `dvc repro`")
        engine = inference.FrozenNetwork(
            networks.cut(networks.load(directory), spec.feature_layer), threads=compute.threads
        )
        fitted = importlib.import_module(f"pipeline.classifiers.{record.method}").load(run)
        input_size = spec.input_size

        def classify(batch: np.ndarray) -> np.ndarray:
            return fitted.predict_proba(engine.run(batch))

    else:
        model = networks.load(run)
        image_params = images.ImageParams.model_validate(record.parameters["images"])
        classify = inference.FrozenNetwork(model, threads=compute.threads).run
        input_size = model.input_shape[1]
    return Predictor(tuple(record.classes), input_size, image_params, compute.batch_size, classify)
