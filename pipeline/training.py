"""Keras training: a head on a frozen network, staged fine-tuning, networks from scratch.

A pretrained network always runs in inference mode: its Dropout is off and its BatchNormalization uses the moving
statistics, also in the layers that fine-tuning unfreezes. `training_graph` sees to it, because Keras does not: in a
functional model, ``trunk(inputs, training=False)`` is overridden by the ``training=True`` that ``fit`` passes down
(docs/decisions/0003).
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline import networks
from pipeline.errors import BakeoffError
from pipeline.params import Block
from pipeline.progress import SECONDS_BETWEEN_LINES, Log, say
from pipeline.seeds import child_seed, generator

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]

# Reads training image `row` as its view number `view`, uint8 (size, size, 3).
LoadView = Callable[[int, int], np.ndarray]
# Reads an image without augmentation.
LoadImage = Callable[[int], np.ndarray]


class TrainingError(BakeoffError):
    """Training did something that it must not."""


class PlateauParams(Block):
    """Multiply the learning rate by ``factor`` after ``patience`` epochs without improvement."""

    factor: Annotated[float, Field(gt=0, lt=1)]
    patience: Positive


class StoppingParams(Block):
    """Stop after ``patience`` epochs without improvement; the best epoch's weights are restored in any case."""

    patience: Positive


class FitParams(Block):
    """What every training of a network has in common. The optimizer is Adam."""

    class_weight: Literal["balanced"] | None
    batch_size: Positive
    epochs: Positive
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    monitor: Literal["val_loss", "val_accuracy"]
    reduce_on_plateau: PlateauParams
    early_stopping: StoppingParams


class HeadParams(FitParams):
    """Pooled features, dropout, dense layers, softmax on a frozen network."""

    backbones: list[str]
    dropout: Share
    hidden_units: list[Positive]


class UnfreezeParams(Block):
    """The first layer that trains: by name, or as the first layer of the last N blocks."""

    from_layer: str | None
    last_blocks: Positive | None

    @model_validator(mode="after")
    def _one_of_two(self) -> UnfreezeParams:
        if (self.from_layer is None) == (self.last_blocks is None):
            raise ValueError("exactly one of from_layer and last_blocks (the other null)")
        return self


class FineTuneParams(FitParams):
    """Continue from the trained head with the end of the network unfrozen."""

    backbones: list[str]
    unfreeze: UnfreezeParams


class ScratchParams(FitParams):
    """Small networks trained from random weights."""

    networks: list[str]
    input_size: Annotated[int, Field(ge=32)]
    dropout: Share


@dataclass(frozen=True)
class Images:
    """What a network trains on and is watched with: labels int64 (n,), and how to read an image by its row."""

    train_labels: np.ndarray
    train_view: LoadView
    validation_labels: np.ndarray
    validation_image: LoadImage


@dataclass(frozen=True)
class Fit:
    """One value an epoch under loss, accuracy, val_loss, val_accuracy, learning_rate; epochs count from 0."""

    history: dict[str, list[float]]
    best_epoch: int

    @property
    def still_improving(self) -> bool:
        """Whether the last epoch was the best one, so that more epochs may have helped."""
        return self.best_epoch == len(self.history["loss"]) - 1


def prepare(*, threads: int, seed: int) -> None:
    """Make this process train deterministically: call once, before the first network is built."""
    networks.start_tensorflow(threads=threads)
    import keras
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(child_seed(seed, "training"))


def add_head(trunk: keras.Model, *, n_classes: int, dropout: float, hidden_units: list[int]) -> keras.Model:
    """Return ``trunk`` (pixels -> pooled features), frozen, under a new softmax classifier: one chain of layers."""
    import keras

    trunk.trainable = False
    inputs = keras.Input(trunk.input_shape[1:], name="pixels")
    outputs = trunk(inputs)
    outputs = keras.layers.Dropout(dropout, name="head_dropout")(outputs)
    for position, units in enumerate(hidden_units):
        outputs = keras.layers.Dense(units, activation="relu", name=f"head_dense_{position}")(outputs)
        outputs = keras.layers.Dropout(dropout, name=f"head_dense_{position}_dropout")(outputs)
    outputs = keras.layers.Dense(n_classes, activation="softmax", name="head_predictions")(outputs)
    return keras.Model(inputs, outputs, name="head")


def unfreeze(model: keras.Model, *, first_layer: str) -> tuple[int, int]:
    """Make ``first_layer`` and every later layer of the trunk under a head trainable, and freeze the others.

    Returns how many of the trunk's layers train, and how many there are. Raises TrainingError for an unknown layer.
    """
    trunk = next(layer for layer in model.layers if hasattr(layer, "layers"))
    names = [layer.name for layer in trunk.layers]
    if first_layer not in names:
        raise TrainingError(f"{trunk.name} has no layer {first_layer!r} to unfreeze from. Its layers: {', '.join(names)}")
    start = names.index(first_layer)
    trunk.trainable = True
    for layer in trunk.layers[:start]:
        layer.trainable = False
    return len(names) - start, len(names)


def training_graph(model: keras.Model) -> keras.Model:
    """Return a model of the same layers and weights in which a trunk runs in inference mode whatever it is told.

    ``model`` is a chain of layers, one of which may be a trunk (a nested model); without one it is returned as it is.
    """
    import keras

    if not any(isinstance(layer, keras.Model) for layer in model.layers):
        return model

    class InferenceMode(keras.layers.Layer):
        def __init__(self, network: keras.Model):
            super().__init__(name=f"{network.name}_in_inference_mode")
            self.network = network

        def call(self, inputs):  # noqa: ANN001, ANN202 - symbolic tensors; without a `training` argument on purpose
            return self.network(inputs, training=False)

    inputs = keras.Input(model.input_shape[1:], name="pixels")
    outputs = inputs
    for layer in model.layers[1:]:
        outputs = (InferenceMode(layer) if isinstance(layer, keras.Model) else layer)(outputs)
    return keras.Model(inputs, outputs)


def fit(model: keras.Model, images: Images, *, params: FitParams, seed: int, log: Log) -> Fit:
    """Train ``model`` in place and leave it with the weights of its best epoch.

    Every epoch sees every training image once, in an order and as a view drawn for that epoch from ``seed``.
    Raises TrainingError if a frozen weight changed by a bit, or if the loss is no number.
    """
    import keras

    graph = training_graph(model)
    graph.compile(
        optimizer=keras.optimizers.Adam(params.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )
    before = frozen_digest(model)
    stopping = keras.callbacks.EarlyStopping(
        monitor=params.monitor, patience=params.early_stopping.patience, restore_best_weights=True
    )
    plateau = keras.callbacks.ReduceLROnPlateau(
        monitor=params.monitor, factor=params.reduce_on_plateau.factor, patience=params.reduce_on_plateau.patience
    )
    train = _batches(images.train_labels, images.train_view, batch_size=params.batch_size, seed=seed)
    validation = _batches(
        images.validation_labels, lambda row, _: images.validation_image(row), batch_size=params.batch_size, seed=None
    )
    history = graph.fit(
        train,
        validation_data=validation,
        epochs=params.epochs,
        class_weight=class_weights(images.train_labels) if params.class_weight else None,
        # The reporter comes first, so that it sees the learning rate the epoch used, not the one plateau sets next.
        callbacks=[_reporter(params.epochs, log), keras.callbacks.TerminateOnNaN(), stopping, plateau],
        shuffle=False,  # the batches are drawn in their order already
        verbose=0,
    ).history
    if not all(math.isfinite(value) for values in history.values() for value in values):
        raise TrainingError(f"The loss stopped being a number. Lower learning_rate = {params.learning_rate}")
    if frozen_digest(model) != before:
        raise TrainingError("A frozen weight changed during training")
    values = {name: [float(value) for value in values] for name, values in history.items()}
    return Fit(history=values, best_epoch=int(stopping.best_epoch))


def class_weights(labels: np.ndarray) -> dict[int, float]:
    """Return {class: n / (classes present * count)}, so that every class weighs the same in the loss."""
    classes, counts = np.unique(labels, return_counts=True)
    return {int(label): len(labels) / (len(classes) * count) for label, count in zip(classes, counts, strict=True)}


def frozen_digest(model: keras.Model) -> str:
    """Return the SHA-256 of every weight that training must not touch.

    These are the weights of frozen layers and the moving statistics of a trunk; the states of random generators and
    the moving statistics of layers that run in training mode are not among them.
    """
    digest = hashlib.sha256()
    for layer in model.layers:
        for weight in _fixed_weights(layer):
            digest.update(f"{weight.path}\0".encode())
            digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return digest.hexdigest()


def _fixed_weights(layer: keras.Layer) -> list[keras.Variable]:
    import keras

    if isinstance(layer, keras.Model):  # a trunk, called with training=False: its moving statistics are fixed, too
        trainable = {id(weight) for weight in layer.trainable_weights}
        return [weight for weight in layer.weights if id(weight) not in trainable]
    return [] if layer.trainable else layer.weights


def _batches(labels: np.ndarray, view: LoadView, *, batch_size: int, seed: int | None) -> tf.data.Dataset:
    """Return batches of (float32 pixels, labels): shuffled anew for every epoch by ``seed``, or in order if None.

    Not a `keras.utils.PyDataset`: it learns of an epoch's end while batches of that epoch are still being read.
    """
    import tensorflow as tf

    epochs = itertools.count()

    def epoch() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        number = next(epochs)
        order = np.arange(len(labels)) if seed is None else generator(seed, "order", number).permutation(len(labels))
        for start in range(0, len(labels), batch_size):
            rows = order[start : start + batch_size]
            yield np.stack([view(int(row), number) for row in rows]).astype(np.float32), labels[rows]

    shape = view(0, 0).shape
    signature = (tf.TensorSpec((None, *shape), tf.float32), tf.TensorSpec((None,), tf.int64))
    batches = tf.data.Dataset.from_generator(epoch, output_signature=signature)
    count = math.ceil(len(labels) / batch_size)
    # One thread reads ahead while the network computes; two batches in memory are enough for that.
    return batches.apply(tf.data.experimental.assert_cardinality(count)).prefetch(2)


def _reporter(epochs: int, log: Log) -> keras.callbacks.Callback:
    import keras

    class Reporter(keras.callbacks.Callback):
        """Says where training is every few seconds, and what each epoch reached."""

        def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
            self.epoch, self.started = epoch, time.monotonic()
            self.shown = self.started

        def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
            now, total = time.monotonic(), self.params["steps"]
            if now - self.shown >= SECONDS_BETWEEN_LINES and batch + 1 < total:
                self.shown = now
                left = (now - self.started) / (batch + 1) * (total - batch - 1)
                say(f"  epoch {self.epoch + 1}/{epochs}: batch {batch + 1}/{total}, loss {logs['loss']:.4f}, "
                    f"about {left:.0f} s left in this epoch")  # fmt: skip

        def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
            logs["learning_rate"] = float(self.model.optimizer.learning_rate)
            log.step(epoch, {name: float(value) for name, value in logs.items()})
            say(
                f"epoch {epoch + 1}/{epochs}: loss {logs['loss']:.4f}, accuracy {logs['accuracy']:.4f}, "
                f"val_loss {logs['val_loss']:.4f}, val_accuracy {logs['val_accuracy']:.4f}, "
                f"learning rate {logs['learning_rate']:.2g} ({time.monotonic() - self.started:.0f} s)"
            )

    return Reporter()
