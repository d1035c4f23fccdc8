"""The training loop: what every training of a network has in common, whatever the network."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from pipeline.console.errors import BakeoffError
from pipeline.console.progress import SECONDS_BETWEEN_LINES, Log, say
from pipeline.core.params import Block
from pipeline.core.seeds import generator
from pipeline.networks import graphs
from pipeline.training import optimizers
from pipeline.training.optimizers import OptimizerParams, Pace

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

Positive = Annotated[int, Field(ge=1)]

# Returns what the rows of training images, int64 (b,), are for the trained network in an epoch: (b, ...).
LoadTrain = Callable[[np.ndarray, int], np.ndarray]
# Likewise of validation images, which are the same in every epoch.
LoadValidation = Callable[[np.ndarray], np.ndarray]


class TrainingError(BakeoffError):
    """Training did something that it must not, or is asked for what cannot be done."""


class PlateauParams(Block):
    """Multiply the learning rate by ``factor`` after ``patience`` epochs without improvement, see `FitParams`."""

    factor: Annotated[float, Field(gt=0, lt=1)]
    patience: Positive


class StoppingParams(Block):
    """Stop after ``patience`` epochs without improvement, see `FitParams`."""

    patience: Positive


class FitParams(Block):
    """What every training of a network has in common. The weights of the best epoch are kept in any case.

    An epoch is an improvement if ``monitor`` is better than in all epochs before, by however little: for the choice of
    the best epoch as for ``reduce_on_plateau`` and ``early_stopping``.

    ``reduce_on_plateau``, ``early_stopping``: None for a constant learning rate, and for all of the epochs.
    """

    class_weight: Literal["balanced"] | None
    batch_size: Positive
    epochs: Positive
    optimizer: OptimizerParams
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    monitor: Literal["val_loss", "val_accuracy"]
    reduce_on_plateau: PlateauParams | None
    early_stopping: StoppingParams | None


@dataclass(frozen=True)
class Examples:
    """What a network trains on and is watched with: labels int64 (n,), and how to get its inputs by their rows."""

    train_labels: np.ndarray
    train: LoadTrain
    validation_labels: np.ndarray
    validation: LoadValidation


@dataclass(frozen=True)
class Fit:
    """One value an epoch under loss, accuracy, val_loss, val_accuracy, learning_rate; epochs count from 0.

    ``untrained``: the paces whose turn came after the best epoch, if at all: what is kept of them never trained.
    """

    history: dict[str, list[float]]
    best_epoch: int
    untrained: tuple[str, ...] = ()

    @property
    def still_improving(self) -> bool:
        """Whether the last epoch was the best one, so that more epochs may have helped."""
        return self.best_epoch == len(self.history["loss"]) - 1


def prepare(*, threads: int, seed: int) -> None:
    """Make this process train deterministically: call before the first network of each training is built.

    What came before in the process leaves no trace: not in what is drawn, nor in the names of layers.
    """
    graphs.start_tensorflow(threads=threads)
    import keras
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)


def fit(
    graph: keras.Model,
    examples: Examples,
    *,
    whole: keras.Model,
    params: FitParams,
    seed: int,
    log: Log,
    paces: Sequence[Pace] = (),
) -> Fit:
    """Train ``graph`` in place and leave it with the weights of its best epoch.

    ``graph`` is the part of the network ``whole`` that trains, or all of it; ``paces``: of those of its variables that
    do not train at the learning rate from the start. Early stopping begins to wait when the last of them trains. Every
    epoch sees every training image once, in an order drawn for that epoch from ``seed``. Raises TrainingError if a
    frozen weight of ``whole`` changed by a bit, or if the loss is no number.
    """
    import keras

    train = _batches(examples.train_labels, examples.train, batch_size=params.batch_size, seed=seed)
    validation = _batches(
        examples.validation_labels, lambda rows, _: examples.validation(rows), batch_size=params.batch_size, seed=None
    )
    graph.compile(
        optimizer=optimizers.build(
            params.optimizer, learning_rate=params.learning_rate, paces=paces, steps=int(train.cardinality())
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )
    before = frozen_digest(whole)
    # It also remembers the best epoch, where it is never to stop as well.
    patience = params.early_stopping.patience if params.early_stopping else params.epochs
    all_train = max((pace.first_epoch for pace in paces), default=0)
    stopping = _stopping(params.monitor, patience=patience, first_epoch=all_train)
    # The reporter comes first, so that it sees the learning rate the epoch used, not the one plateau sets next.
    callbacks = [_reporter(params.epochs, log), keras.callbacks.TerminateOnNaN(), stopping]
    if params.reduce_on_plateau:
        settings = params.reduce_on_plateau.model_dump()
        # Keras would ask for an improvement by 0.0001 here, and for none at all where it stops and keeps an epoch.
        callbacks.append(keras.callbacks.ReduceLROnPlateau(monitor=params.monitor, min_delta=0, **settings))
    history = graph.fit(
        train,
        validation_data=validation,
        epochs=params.epochs,
        class_weight=class_weights(examples.train_labels) if params.class_weight else None,
        callbacks=callbacks,
        shuffle=False,  # the batches are drawn in their order already
        verbose=0,
    ).history
    if not all(math.isfinite(value) for values in history.values() for value in values):
        raise TrainingError(f"The loss stopped being a number. Lower learning_rate = {params.learning_rate}")
    if frozen_digest(whole) != before:
        raise TrainingError("A frozen weight changed during training")
    values = {name: [float(value) for value in values] for name, values in history.items()}
    best = int(stopping.best_epoch)
    return Fit(history=values, best_epoch=best, untrained=tuple(p.name for p in paces if p.first_epoch > best))


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


def _stopping(monitor: str, *, patience: int, first_epoch: int) -> keras.callbacks.EarlyStopping:
    """Return early stopping that remembers the best of all epochs and counts its patience from ``first_epoch`` on."""
    import keras

    class Stopping(keras.callbacks.EarlyStopping):
        def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
            if epoch < first_epoch:  # `start_from_epoch` of Keras would not remember these epochs
                self.wait = -1
            super().on_epoch_end(epoch, logs)

    return Stopping(monitor=monitor, patience=patience, restore_best_weights=True)


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
                say(
                    f"  epoch {self.epoch + 1}/{epochs}: batch {batch + 1}/{total}, loss {logs['loss']:.4f}, "
                    f"about {left:.0f} s left in this epoch"
                )

        def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
            logs["learning_rate"] = float(self.model.optimizer.learning_rate)
            log.step(epoch, {name: float(value) for name, value in logs.items()})
            say(
                f"epoch {epoch + 1}/{epochs}: loss {logs['loss']:.4f}, accuracy {logs['accuracy']:.4f}, "
                f"val_loss {logs['val_loss']:.4f}, val_accuracy {logs['val_accuracy']:.4f}, "
                f"learning rate {logs['learning_rate']:.2g} ({time.monotonic() - self.started:.0f} s)"
            )

    return Reporter()
