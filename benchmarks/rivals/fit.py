"""Transfer learning with Keras, end to end with `model.fit`: a new head on a frozen base, or fine-tuning from one.

python fit.py --split data/split --backbone data/backbones/NAME --out DIR --epochs 16 --learning-rate 0.003
python fit.py ... --head results/runs/NAME-head --last-blocks 5

Stand-alone, after the guides of Keras: the stored network stands in for ``keras.applications.NAME(weights=...)``. The
base is called with ``training=False``; BatchNormalization stays frozen while fine-tuning, so it uses its moving
statistics. Augmentation runs in the input pipeline, where it overlaps with training.
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
parser.add_argument("--epochs", type=int, required=True)
parser.add_argument("--learning-rate", type=float, required=True)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--dropout", type=float, default=0.2)
parser.add_argument("--brightness", type=float, default=0.1)
parser.add_argument("--contrast", type=float, default=0.1)
parser.add_argument("--head", type=Path, help="a trained head to fine-tune from")
parser.add_argument("--last-blocks", type=int, help="how many blocks to unfreeze, with --head")
options = parser.parse_args()

keras.utils.set_random_seed(0)
spec = json.loads((options.backbone / "spec.json").read_text())
size = spec["input_size"]


def load(directory: Path) -> keras.Model:
    network = keras.models.model_from_json((directory / "network.json").read_text())
    network.load_weights(directory / "network.weights.h5")
    return network


def read(part: str, *, shuffle: bool, batch_size: int | None) -> tf.data.Dataset:
    return keras.utils.image_dataset_from_directory(
        options.split / part, image_size=(size, size), batch_size=batch_size, shuffle=shuffle, seed=0
    )


def quarter_turn(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    # Not RandomRotation, which interpolates: it would cost the input pipeline several milliseconds an image.
    return tf.image.rot90(image, tf.random.uniform((), 0, 4, tf.int32)), label


augmentation = keras.Sequential(
    [
        keras.layers.RandomFlip("horizontal_and_vertical"),
        keras.layers.RandomBrightness(options.brightness, value_range=(0, 255)),
        keras.layers.RandomContrast(options.contrast, value_range=(0, 255)),
    ]
)
train = read("train", shuffle=True, batch_size=None)
classes = train.class_names
train = train.map(quarter_turn, num_parallel_calls=tf.data.AUTOTUNE).batch(options.batch_size)
train = train.map(lambda x, y: (augmentation(x, training=True), y), num_parallel_calls=tf.data.AUTOTUNE)
train = train.prefetch(tf.data.AUTOTUNE)
validation = read("validation", shuffle=False, batch_size=options.batch_size).prefetch(tf.data.AUTOTUNE)
test = read("test", shuffle=False, batch_size=options.batch_size).map(lambda x, y: x).prefetch(tf.data.AUTOTUNE)

inputs = keras.Input((size, size, 3))
if options.head is None:
    network = load(options.backbone)
    base = keras.Model(network.input, network.get_layer(spec["feature_layer"]).output)
    base.trainable = False
    outputs = keras.layers.Dropout(options.dropout)(base(inputs, training=False))
    outputs = keras.layers.Dense(len(classes), activation="softmax")(outputs)
else:
    trained = load(options.head)
    base = next(layer for layer in trained.layers if isinstance(layer, keras.Model))
    first = spec["blocks"][-options.last_blocks]["first_layer"]
    names = [layer.name for layer in base.layers]
    base.trainable = True
    for position, layer in enumerate(base.layers):
        if position < names.index(first) or isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    outputs = base(inputs, training=False)
    for layer in trained.layers[trained.layers.index(base) + 1 :]:
        outputs = layer(outputs)

model = keras.Model(inputs, outputs)
model.compile(
    optimizer=keras.optimizers.Adam(options.learning_rate),
    loss=keras.losses.SparseCategoricalCrossentropy(),
    metrics=["accuracy"],
)
model.fit(
    train,
    validation_data=validation,
    epochs=options.epochs,
    callbacks=[
        keras.callbacks.EarlyStopping(patience=options.epochs, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau(factor=0.3, patience=2),
    ],
    verbose=2,
)

options.out.mkdir(parents=True, exist_ok=True)
model.save_weights(options.out / "model.weights.h5")
predictions = {"validation": model.predict(validation, verbose=2), "test": model.predict(test, verbose=2)}
np.savez(options.out / "predictions.npz", **predictions)
