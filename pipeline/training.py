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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline import networks
from pipeline.errors import BakeoffError
from pipeline.params import Block
from pipeline.progress import SECONDS_BETWEEN_LINES, Log, say
from pipeline.seeds import generator

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]

# Returns what the rows of training images, int64 (b,), are for the trained network in an epoch: (b, ...).
LoadTrain = Callable[[np.ndarray, int], np.ndarray]
# Likewise of validation images, which are the same in every epoch.
LoadValidation = Callable[[np.ndarray], np.ndarray]


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

    unfreeze: UnfreezeParams


class ScratchParams(FitParams):
    """Small networks trained from random weights."""

    input_size: Annotated[int, Field(ge=32)]
    dropout: Share


@dataclass(frozen=True)
class Examples:
    """What a network trains on and is watched with: labels int64 (n,), and how to get its inputs by their rows."""

    train_labels: np.ndarray
    train: LoadTrain
    validation_labels: np.ndarray
    validation: LoadValidation


@dataclass(frozen=True)
class Split:
    """A network in two: ``tail(frozen(pixels))``, of which only ``tail`` holds weights that training changes.

    ``frozen`` is None if nothing worth computing beforehand is frozen; then ``tail`` takes pixels. Else ``frozen`` has
    one output for each tensor that enters the tail, called ``tensors``, and the tail takes them as rows, float32
    (batch, width): all numbers of an image, tensor after tensor. Both share their weights with the whole network.
    """

    frozen: keras.Model | None
    tail: keras.Model
    tensors: tuple[str, ...]


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
    """Make this process train deterministically: call before the first network of each training is built.

    What came before in the process leaves no trace: not in what is drawn, nor in the names of layers.
    """
    networks.start_tensorflow(threads=threads)
    import keras
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)


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


def split(model: keras.Model) -> Split:
    """Cut a network where its frozen part ends, so that the frozen part need not be computed in training.

    ``model`` is a chain of layers, one of which may be a trunk (a nested model). Frozen is what depends on no weight
    that trains, found in the trunk's graph: so the cut is one tensor where layers form a chain, and several where
    branches cross it. The trunk's part of the tail runs in inference mode whatever it is told.
    """
    import keras

    trunk = next((layer for layer in model.layers if isinstance(layer, keras.Model)), None)
    if trunk is None:
        return Split(None, model, ())
    cut = _cut(trunk)
    frozen = keras.Model(trunk.input, cut[0] if len(cut) == 1 else cut, name=f"{trunk.name}_frozen")
    if not frozen.weights:
        return Split(None, _chain(model, [trunk], keras.Input(model.input_shape[1:], name="pixels")), ())
    ends = all(any(output is tensor for tensor in cut) for output in trunk.outputs)
    rest = [] if ends else [keras.Model(cut[0] if len(cut) == 1 else cut, trunk.output, name=f"{trunk.name}_tail")]
    shapes = [tuple(tensor.shape[1:]) for tensor in cut]
    inputs = keras.Input((sum(math.prod(shape) for shape in shapes),), name="rows")
    names = tuple(":".join(map(str, (place.operation.name, *place[1:]))) for place in (t._keras_history for t in cut))
    return Split(frozen, _chain(model, rest, inputs, shapes), names)


def training_graph(model: keras.Model) -> keras.Model:
    """Return the whole network, pixels to probabilities, with its trunk in inference mode whatever it is told."""
    import keras

    trunks = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    if not trunks:
        return model
    return _chain(model, trunks, keras.Input(model.input_shape[1:], name="pixels"))


def _cut(trunk: keras.Model) -> list[keras.KerasTensor]:
    """Return the tensors of a graph that depend on no weight that trains and that something else needs, in order."""
    from keras import Layer

    frozen: dict[int, keras.KerasTensor] = {}
    needed: dict[int, keras.KerasTensor] = {}
    for depth in sorted(trunk._nodes_by_depth, reverse=True):
        for node in trunk._nodes_by_depth[depth]:
            trains = isinstance(node.operation, Layer) and node.operation.trainable_weights
            if not trains and all(id(tensor) in frozen for tensor in node.input_tensors):
                frozen |= {id(tensor): tensor for tensor in node.output_tensors}
            else:
                needed |= {id(tensor): tensor for tensor in node.input_tensors if id(tensor) in frozen}
    return list((needed | {id(tensor): tensor for tensor in trunk.outputs if id(tensor) in frozen}).values())


def _chain(
    model: keras.Model,
    trunk: list[keras.Model],
    inputs: keras.KerasTensor,
    shapes: Sequence[tuple[int, ...]] | None = None,
) -> keras.Model:
    """Return ``model`` with ``trunk``, a network or none, in place of its own, in inference mode.

    ``shapes``: of the tensors that the rows of ``inputs`` hold; None if ``inputs`` is what the trunk takes.
    """
    import keras

    class InferenceMode(keras.layers.Layer):
        def __init__(self, network: keras.Model):
            super().__init__(name=f"{network.name}_in_inference_mode")
            self.network = network

        def call(self, inputs):  # noqa: ANN001, ANN202 - symbolic tensors; without a `training` argument on purpose
            return self.network(inputs if shapes is None else _tensors(inputs, shapes), training=False)

    outputs = inputs
    for network in trunk:
        outputs = InferenceMode(network)(outputs)
    if not trunk and len(shapes[0]) > 1:
        outputs = keras.layers.Reshape(shapes[0])(outputs)
    for layer in model.layers[1:]:
        if not isinstance(layer, keras.Model):
            outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def _tensors(rows, shapes: Sequence[tuple[int, ...]]):  # noqa: ANN001, ANN202 - symbolic tensors
    """Return the tensors that rows (batch, width) hold one after the other."""
    import keras

    ends = np.cumsum([math.prod(shape) for shape in shapes])
    pieces = keras.ops.split(rows, ends[:-1].tolist(), axis=1) if len(shapes) > 1 else [rows]
    tensors = [keras.ops.reshape(piece, (-1, *shape)) for piece, shape in zip(pieces, shapes, strict=True)]
    return tensors if len(tensors) > 1 else tensors[0]


def fit(graph: keras.Model, examples: Examples, *, whole: keras.Model, params: FitParams, seed: int, log: Log) -> Fit:
    """Train ``graph`` in place and leave it with the weights of its best epoch.

    ``graph`` is the part of the network ``whole`` that trains, or all of it. Every epoch sees every training image
    once, in an order drawn for that epoch from ``seed``. Raises TrainingError if a frozen weight of ``whole`` changed
    by a bit, or if the loss is no number.
    """
    import keras

    graph.compile(
        optimizer=keras.optimizers.Adam(params.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )
    before = frozen_digest(whole)
    stopping = keras.callbacks.EarlyStopping(
        monitor=params.monitor, patience=params.early_stopping.patience, restore_best_weights=True
    )
    plateau = keras.callbacks.ReduceLROnPlateau(
        monitor=params.monitor, factor=params.reduce_on_plateau.factor, patience=params.reduce_on_plateau.patience
    )
    train = _batches(examples.train_labels, examples.train, batch_size=params.batch_size, seed=seed)
    validation = _batches(
        examples.validation_labels, lambda rows, _: examples.validation(rows), batch_size=params.batch_size, seed=None
    )
    history = graph.fit(
        train,
        validation_data=validation,
        epochs=params.epochs,
        class_weight=class_weights(examples.train_labels) if params.class_weight else None,
        # The reporter comes first, so that it sees the learning rate the epoch used, not the one plateau sets next.
        callbacks=[_reporter(params.epochs, log), keras.callbacks.TerminateOnNaN(), stopping, plateau],
        shuffle=False,  # the batches are drawn in their order already
        verbose=0,
    ).history
    if not all(math.isfinite(value) for values in history.values() for value in values):
        raise TrainingError(f"The loss stopped being a number. Lower learning_rate = {params.learning_rate}")
    if frozen_digest(whole) != before:
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


def _batches(labels: np.ndarray, load: LoadTrain, *, batch_size: int, seed: int | None) -> tf.data.Dataset:
    """Return batches of (float32 inputs, labels): shuffled anew for every epoch by ``seed``, or in order if None.

    Not a `keras.utils.PyDataset`: it learns of an epoch's end while batches of that epoch are still being read.
    """
    import tensorflow as tf

    epochs = itertools.count()

    def epoch() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        number = next(epochs)
        order = np.arange(len(labels)) if seed is None else generator(seed, "order", number).permutation(len(labels))
        for start in range(0, len(labels), batch_size):
            rows = order[start : start + batch_size]
            yield load(rows, number).astype(np.float32, copy=False), labels[rows]

    shape = load(np.zeros(1, dtype=np.int64), 0).shape[1:]
    signature = (tf.TensorSpec((None, *shape), tf.float32), tf.TensorSpec((None,), tf.int64))
    batches = tf.data.Dataset.from_generator(epoch, output_signature=signature)
    count = math.ceil(len(labels) / batch_size)
    options = tf.data.Options()
    # Nothing here can be tuned, and the thread that would try sleeps for seconds when an epoch's iterator waits for it.
    options.autotune.enabled = False
    # One thread reads ahead while the network computes; two batches in memory are enough for that.
    return batches.apply(tf.data.experimental.assert_cardinality(count)).prefetch(2).with_options(options)


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
