"""Graphs for training: cut where the frozen part ends, with the pretrained network in inference mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras


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
    if not _holds_kernels(frozen):
        return Split(None, end_to_end(model), ())
    ends = all(any(output is tensor for tensor in cut) for output in trunk.outputs)
    rest = [] if ends else [keras.Model(cut[0] if len(cut) == 1 else cut, trunk.output, name=f"{trunk.name}_tail")]
    shapes = [tuple(tensor.shape[1:]) for tensor in cut]
    inputs = keras.Input((sum(math.prod(shape) for shape in shapes),), name="rows")
    names = tuple(":".join(map(str, (place.operation.name, *place[1:]))) for place in (t._keras_history for t in cut))
    return Split(frozen, _chain(model, rest, inputs, shapes), names)


def end_to_end(model: keras.Model) -> keras.Model:
    """Return the whole network, pixels to probabilities, with its trunk in inference mode whatever it is told."""
    import keras

    trunks = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    return _chain(model, trunks, keras.Input(model.input_shape[1:], name="pixels")) if trunks else model


def _holds_kernels(frozen: keras.Model) -> bool:
    """Return whether a frozen part does work: preprocessing may hold weights, too, but no more than one a channel."""
    return any(len(weight.shape) > 1 for weight in frozen.weights)


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

        def call(self, inputs):  # without a `training` argument on purpose
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


def _tensors(rows: keras.KerasTensor, shapes: Sequence[tuple[int, ...]]) -> keras.KerasTensor | list[keras.KerasTensor]:
    """Return the tensors that rows (batch, width) hold one after the other."""
    import keras

    ends = np.cumsum([math.prod(shape) for shape in shapes])
    pieces = keras.ops.split(rows, ends[:-1].tolist(), axis=1) if len(shapes) > 1 else [rows]
    tensors = [keras.ops.reshape(piece, (-1, *shape)) for piece, shape in zip(pieces, shapes, strict=True)]
    return tensors if len(tensors) > 1 else tensors[0]
