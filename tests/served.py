"""Runs as a model is served from: small, whole, each of another kind, and images whose answers differ."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.console.progress import NoLog
from pipeline.core import artifacts
from pipeline.core.params import Params
from pipeline.features import activations, feature_store, inference
from pipeline.images import decode
from pipeline.stages import features, head
from tests import families, photographs

CLASSES = ("bright", "dark")


def write_project(root: Path) -> None:
    """Write a project with a network, ``tiny``, and with what its features are computed from, into a directory."""
    photographs.write_project(root)
    values = photographs.VALUES | {"features": {"layers": None, "pooling": "avg"}}
    features.main(Params(values, features.READS), backbone="tiny", log=NoLog())


def head_run() -> Path:
    """Train a head in the working directory: a run that holds its whole network."""
    return photographs.train(head, repeats=1)


def sweep_run(name: str, *, classes: Sequence[str] = CLASSES) -> Path:
    """Train a classifier of a family in the working directory, on enough images that its answers differ."""
    meta = artifacts.read_json(artifacts.FEATURES / "tiny" / "meta.json")
    part = activations.FrozenPart.of_features(activations.FeatureParams(**meta["features"]), backbone="tiny")
    compute = inference.ComputeParams(**photographs.VALUES["compute"])
    network = inference.FrozenNetwork(
        part.build, compute=compute, converted=part.converted(feature_store.from_environment())
    )
    params = decode.ImageParams(**photographs.VALUES["images"])
    rows = network.run(np.stack([decode.load(file, size=32, params=params) for file in pictures(160)]))
    # What is to be learned: whether an image's red is above its blue, with a few mistakes.
    labels = np.array([(number * 7 % 16 < 8) ^ (number % 13 == 0) for number in range(160)]).astype(np.int64)
    model = families.fit(name, (rows[:120], labels[:120]), (rows[120:], labels[120:]), n_classes=2).model
    run = artifacts.RUNS / f"tiny-{name}"
    run.mkdir(parents=True, exist_ok=True)
    model.save(run)
    shutil.copy(artifacts.FEATURES / "tiny" / "meta.json", run / "features.json")
    record = artifacts.Record(
        stage="sweep",
        network="tiny",
        method=name,
        classes=list(classes),
        parameters={"compute.threads": 2},
        inputs={},
        candidates=[artifacts.Candidate(name="only", parameters={}, converged=True)],
        selected=0,
        cost=artifacts.Cost(trainable_parameters=1, total_parameters=1, model_bytes=1, multiply_adds=1),
    )
    artifacts.write_record(run / "record.json", record)
    validation = model.predict_proba(rows[120:])
    artifacts.write_predictions(run / "predictions.npz", artifacts.Predictions(validation[np.newaxis], validation))
    return run


def pictures(count: int) -> list[bytes]:
    """Return PNG files of noise in many colors, the first ones the same whatever the number."""
    return [_picture(number) for number in range(count)]


def _picture(number: int) -> bytes:
    random, file = np.random.default_rng(number), io.BytesIO()
    colors = np.array([number * 7 % 16, number * 3 % 16, 16 - number * 7 % 16]) * 12
    pixels = colors + random.integers(0, 60, (40, 32, 3))
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
