"""Features of a folder of images with Keras: `image_dataset_from_directory` and `model.predict`.

python features.py --split data/split --backbone data/backbones/NAME --out DIR

Stand-alone: the stored network stands in for ``keras.applications.NAME(include_top=False, pooling="avg")``.
"""

import argparse
import json
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

parser = argparse.ArgumentParser()
for name in ("--split", "--backbone", "--out"):
    parser.add_argument(name, type=Path, required=True)
options = parser.parse_args()

spec = json.loads((options.backbone / "spec.json").read_text())
network = keras.models.model_from_json((options.backbone / "network.json").read_text())
network.load_weights(options.backbone / "network.weights.h5")
model = keras.Model(network.input, network.get_layer(spec["feature_layer"]).output)

options.out.mkdir(parents=True, exist_ok=True)
for part in ("train", "validation", "test"):
    images = keras.utils.image_dataset_from_directory(
        options.split / part,
        label_mode=None,
        image_size=(spec["input_size"], spec["input_size"]),
        batch_size=32,
        shuffle=False,
    )
    np.save(options.out / f"{part}.npy", model.predict(images.prefetch(tf.data.AUTOTUNE), verbose=2))
