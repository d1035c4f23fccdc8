"""A project small enough to train in seconds: a split of dark and bright images, a network, and runs on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.console.progress import Log, NoLog
from pipeline.core import artifacts
from pipeline.core.params import Params
from pipeline.networks import graphs
from pipeline.stages import scratch
from tests.small_networks import SPEC, trunk

FIT = {
    "class_weight": None,
    "batch_size": 8,
    "epochs": 1,
    "optimizer": {"name": "adam"},
    "learning_rate": 0.01,
    "monitor": "val_loss",
    "reduce_on_plateau": {"factor": 0.5, "patience": 1},
    "early_stopping": {"patience": 3},
}
VALUES: dict[str, Any] = {
    "seed": 0,
    "repeats": 2,
    "images": {"square": "crop", "fill": "edge", "interpolation": "bilinear"},
    "compute": {"threads": 2, "batch_size": 4, "engine": "openvino", "precision": "float32"},
    "augmentation": {
        "views": 2,
        "horizontal_flip": True,
        "vertical_flip": False,
        "quarter_turns": False,
        "rotation": 10.0,
        "width_shift": 0.1,
        "height_shift": 0.0,
        "shear": 0.0,
        "zoom": 0.1,
        "fill": "reflect",
        "brightness": 0.1,
        "contrast": 0.1,
        "test_time_views": 0,
    },
    "head": {**FIT, "pooling": "avg", "hidden_units": [], "activation": "relu", "dropout": 0.2, "output": "softmax"},
    # As good as no training: what comes out is what it started from.
    "fine_tune": {
        **FIT,
        "learning_rate": 1e-12,
        "layer_decay": 1.0,
        "gradual": None,
        "unfreeze": {"from_layer": None, "last_layers": None, "last_blocks": 1},
    },
    "scratch": {**FIT, "input_size": 32, "dropout": 0.3},
}


def write_project(root: Path) -> None:
    """Write a split of small images and a stored network, ``tiny``, below a directory."""
    random = np.random.default_rng(0)
    rows = []
    for part, count in {"train": 12, "validation": 8, "test": 8}.items():
        for number in range(count):
            label = ("bright", "dark")[number % 2]
            file = root / artifacts.SPLIT / part / label / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (32, 32, 3)) // (number % 2 + 1)
            Image.fromarray(pixels.astype(np.uint8)).save(file)
            rows.append(
                {
                    "path": f"{part}/{label}/{number}.png",
                    "label": label,
                    "split": part,
                    "group": len(rows),
                    "stratum": "",
                    "sha256": artifacts.sha256_file(file),
                }
            )
    artifacts.write_csv(root / artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS, rows)
    backbone = root / artifacts.BACKBONES / "tiny"
    backbone.mkdir(parents=True)
    network = trunk()
    graphs.save(network, backbone)
    spec = SPEC.model_copy(update={"name": "tiny", "cost": graphs.cost_of(network)})
    graphs.write_spec(spec, backbone)


def train(stage: Any, *, log: Log | None = None, values: dict[str, Any] = VALUES, **changes: Any) -> Path:
    """Run head, fine_tune or scratch in the working directory; return the directory of its run."""
    name = stage.__name__.rpartition(".")[2]
    item = {"network": "small_convnet"} if stage is scratch else {"backbone": "tiny"}
    stage.main(Params(values | changes, stage.READS), **item, log=log or NoLog())
    return artifacts.RUNS / f"{next(iter(item.values()))}-{name}"


def tiny_convnet(*, input_size: int, n_classes: int, dropout: float | None):
    """As small_convnet, but built and converted in no time."""
    import keras

    inputs = keras.Input((input_size, input_size, 3), name="pixels")
    outputs = keras.layers.Rescaling(1 / 255)(inputs)
    outputs = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, strides=2, activation="relu")(outputs))
    outputs = keras.layers.Dropout(dropout)(outputs)
    return keras.Model(inputs, keras.layers.Dense(n_classes, activation="softmax")(outputs))
