"""Keras networks on disk, and facts about them that need no data.

A stored network is a directory: ``network.json`` (the architecture), ``network.weights.h5`` (the numbers) and, for a
backbone, ``spec.json`` (which layers the other stages need). All three are the same bytes for the same network,
which a ``.keras`` file is not: it holds dates.

Networks take raw RGB pixels, float32 (batch, height, width, 3) in 0..255; their first layers scale them.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pydantic

from pipeline.console.errors import BakeoffError, reading
from pipeline.console.progress import announce
from pipeline.core import artifacts

if TYPE_CHECKING:
    import keras

ARCHITECTURE = "network.json"
WEIGHTS = "network.weights.h5"
SPEC = "spec.json"

# What a network is fed: by its own preprocessing, by pixels / 255 in its place, or by pixels as they are.
Preprocess = Literal["backbone", "rescale", "none"]
# What becomes of a layer's height and width when its output is used as features.
Pooling = Literal["avg", "max", "flatten"]


class PooledLayer(NamedTuple):
    """A layer by name, and what becomes of its output if that has height and width."""

    layer: str
    pooling: Pooling


# Keras imports these wherever they are installed, for functions that nobody calls here: a third of its start.
UNCALLED = ("matplotlib", "pandas", "sklearn")


class NetworkError(BakeoffError):
    """A network has no such layer, or a question that it cannot answer."""


class BlockSpec(pydantic.BaseModel):
    """A residual block or the like: the unit in which fine-tuning unfreezes. It starts at ``first_layer``."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    name: str
    first_layer: str


class Cost(pydantic.BaseModel):
    """What a network holds and does: numbers, bytes on disk, and multiply-adds of one image."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    parameters: int
    bytes: int
    multiply_adds: int


class NetworkSpec(pydantic.BaseModel):
    """What the other stages need to know of a pretrained network.

    ``network``: the backbone of which ``name`` is a variant; None if it is none.
    ``feature_layer``: its output is the pooled features, float32 (batch, feature_width).
    ``map_layer``: the last layer with height and width; pooled (and normalized, in ConvNeXt), it is the features.
    ``prediction_layer``: its output is the probabilities of the classes the network was trained on; None if it cannot
    have them at this input size, or if its file of weights has none.
    ``preprocess``: what the network is fed; anything but ``backbone`` is an ablation (`artifacts.ablation`).
    ``blocks``: from input to output.
    ``weights``: where the numbers come from; never a path of one machine.
    ``cost``: of the network up to its features.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    name: str
    network: str | None = None
    input_size: int = pydantic.Field(gt=0)
    map_layer: str
    feature_layer: str
    feature_width: int = pydantic.Field(gt=0)
    prediction_layer: str | None
    preprocess: Preprocess
    blocks: list[BlockSpec]
    weights: dict[str, str]
    cost: Cost


def start_tensorflow(*, threads: int | None = None) -> None:
    """Import TensorFlow and run a first operation, without the greetings that would bury what a stage has to say.

    They are written by C++ before any setting of the log level counts, so standard error is closed meanwhile; errors
    are exceptions and get through. ``threads``: of an operation, which can only be set before the first one.
    """
    if "tensorflow" in sys.modules:
        return
    announce("starting TensorFlow")
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with in_place_of(dict.fromkeys(UNCALLED)):
            import keras
            import tensorflow as tf

        if threads is not None:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.constant(0.0) + 1.0
        # Else a user's ~/.keras/keras.json decides them: with float16 there, every network would be another one.
        keras.config.set_floatx("float32")
        keras.config.set_epsilon(1e-7)
        keras.config.set_image_data_format("channels_last")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def in_place_of(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """Let imports find others in place of modules that this process has not imported yet; None: nothing.

    Afterwards they can be imported as ever.
    """
    given = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(given)
    try:
        yield
    finally:
        for name in given:
            del sys.modules[name]


def write_spec(spec: NetworkSpec, directory: Path) -> None:
    artifacts.write_json(directory / SPEC, spec.model_dump())


def read_spec(directory: Path) -> NetworkSpec:
    """Return the spec of a stored backbone. Raises ArtifactError if it is missing or breaks the contract."""
    path = directory / SPEC
    with reading(path):
        return NetworkSpec.model_validate(artifacts.read_json(path))


def save(model: keras.Model, directory: Path) -> None:
    """Write the architecture and the weights; not the optimizer, and not how the model was compiled."""
    import keras

    architecture = _architecture(model)
    bare = model
    if model.compiled:  # An optimizer's state would go into the weights file, so it is rebuilt from what is written.
        bare = keras.models.model_from_json(architecture)
        bare.set_weights(model.get_weights())
        # The state of a dropout layer is stored too, is none of its weights, and starts at random.
        for new, old in zip(_generators(bare), _generators(model), strict=True):
            new.state.assign(old.state)
    artifacts.write_text(directory / ARCHITECTURE, architecture)
    with artifacts.whole_file(directory / WEIGHTS) as temporary:
        # Keras insists on the suffix .weights.h5; the temporary name ends in .h5 only.
        named = temporary.with_name(f"{temporary.stem}.weights.h5")
        try:
            bare.save_weights(named)
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)


def load(directory: Path) -> keras.Model:
    """Return the network stored by `save`. Raises ArtifactError if a file is missing or the two do not match."""
    start_tensorflow()
    import keras

    with reading(directory / ARCHITECTURE):
        model = keras.models.model_from_json((directory / ARCHITECTURE).read_text(encoding="utf-8"))
    with reading(directory / WEIGHTS):
        model.load_weights(directory / WEIGHTS)
    return model


def cost_of(model: keras.Model) -> Cost:
    """Return what the network costs to keep and to run."""
    return Cost(parameters=count_parameters(model), bytes=_stored_bytes(model), multiply_adds=multiply_adds(model))


def _stored_bytes(model: keras.Model) -> int:
    """Return how many bytes `save` writes for the network."""
    with tempfile.TemporaryDirectory(prefix="bakeoff-") as directory:
        save(model, Path(directory))
        return sum(file.stat().st_size for file in Path(directory).iterdir())


def cut(model: keras.Model, layer_name: str) -> keras.Model:
    """Return the network from the input of ``model`` to the output of one layer; the two share their weights."""
    import keras

    return keras.Model(model.input, find_layer(model, layer_name).output, name=f"{model.name}_to_{layer_name}")


def find_layer(model: keras.Model, layer_name: str) -> keras.Layer:
    """Return a layer of ``model`` by name. Raises NetworkError with the nearest names if there is none."""
    names = [layer.name for layer in model.layers]
    if layer_name not in names:
        choices = difflib.get_close_matches(layer_name, names, n=5, cutoff=0.0)
        raise NetworkError(f"Network {model.name!r} has no layer {layer_name!r}. Nearest: {', '.join(choices)}")
    return model.get_layer(layer_name)


def last_map_layer(model: keras.Model) -> str:
    """Return the name of the last layer, also of a nested network, whose output has height and width.

    Global pooling that keeps its axes is not taken for one. Raises NetworkError if there is none.
    """
    import keras

    others = keras.layers.InputLayer, keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D
    names = [layer.name for layer in _leaves(model) if len(layer.output.shape) == 4 and not isinstance(layer, others)]
    if not names:
        raise NetworkError(f"Network {model.name!r} has no layer whose output has height and width")
    return names[-1]


def pooled(model: keras.Model, layers: Sequence[PooledLayer]) -> keras.Model:
    """Return the network from the input of ``model`` to the outputs of ``layers``, in that order, one output a layer.

    What has height and width is pooled over both, or flattened. Raises NetworkError for an unknown layer.
    """
    import keras

    kinds = {
        "avg": keras.layers.GlobalAveragePooling2D,
        "max": keras.layers.GlobalMaxPooling2D,
        "flatten": keras.layers.Flatten,
    }

    def output(name: str, pooling: Pooling) -> keras.KerasTensor:
        tensor = find_layer(model, name).output
        return kinds[pooling](name=f"{name}_{pooling}")(tensor) if len(tensor.shape) == 4 else tensor

    outputs = [output(*layer) for layer in layers]
    return keras.Model(model.input, outputs if len(outputs) > 1 else outputs[0], name=f"{model.name}_features")


def count_parameters(model: keras.Model) -> int:
    """Return how many numbers the network holds, moving statistics of batch normalization included."""
    return sum(math.prod(weight.shape) for weight in model.weights)


def count_trainable_parameters(model: keras.Model) -> int:
    """Return how many numbers gradient descent may change, as the layers' ``trainable`` says now."""
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def multiply_adds(model: keras.Model) -> int:
    """Return the multiply-adds of one image.

    Counted are convolutions and dense layers, as is the custom; scaling, normalization, activations, pooling and
    biases count as none. Raises NetworkError for another layer with a weight matrix, and for sizes that are not fixed.
    """
    return sum(_layer_multiply_adds(layer) for layer in _leaves(model))


def _leaves(model: keras.Model) -> Iterator[keras.Layer]:
    """Yield the layers of a network and of the networks nested in it."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _leaves(layer)
        else:
            yield layer


def _generators(model: keras.Model) -> list[keras.random.SeedGenerator]:
    """Return what dropout layers draw from, in the order of the layers."""
    found = (getattr(layer, "seed_generator", None) for layer in _leaves(model))
    return [generator for generator in found if generator is not None]


def forget_draws(model: keras.Model) -> None:
    """Set what dropout layers draw from to the same state in every process: of a network that never drops anything."""
    for generator in _generators(model):
        generator.state.assign([0, 0])


def _layer_multiply_adds(layer: keras.Layer) -> int:
    import keras

    if not any(len(weight.shape) > 1 for weight in layer.weights):
        return 0
    outputs = layer.output.shape[1:]
    if None in outputs:
        raise NetworkError(f"Layer {layer.name!r} has the output shape {outputs}: fix the size of the input")
    if isinstance(layer, keras.layers.SeparableConv2D):
        rows, columns, channels, multiplier = layer.depthwise_kernel.shape
        per_position = channels * multiplier * (rows * columns + layer.filters)
        return math.prod(_positions(layer, outputs)) * per_position
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return math.prod(outputs) * math.prod(layer.kernel.shape[:2])
    if isinstance(layer, keras.layers.Conv2D):
        # A kernel is (rows, columns, channels of one group, filters).
        return math.prod(outputs) * math.prod(layer.kernel.shape[:3])
    if isinstance(layer, keras.layers.Dense):
        return math.prod(outputs) * layer.kernel.shape[0]
    raise NetworkError(
        f"Layer {layer.name!r} is a {type(layer).__name__}, whose multiply-adds are not known. "
        "Known: Conv2D, DepthwiseConv2D, SeparableConv2D, Dense"
    )


def _positions(layer: keras.Layer, outputs: tuple[int, ...]) -> tuple[int, ...]:
    return outputs[:-1] if layer.data_format == "channels_last" else outputs[1:]


def _architecture(model: keras.Model) -> str:
    """Return the architecture as JSON text that depends on nothing but the network."""
    return json.dumps(_without_process_state(json.loads(model.to_json())), indent=1, sort_keys=True) + "\n"


def _without_process_state(value: Any) -> Any:
    """Drop how the model was compiled, and object ids, which are memory addresses."""
    if isinstance(value, dict):
        dropped = ("compile_config", "shared_object_id")
        return {key: _without_process_state(item) for key, item in value.items() if key not in dropped}
    if isinstance(value, list):
        return [_without_process_state(item) for item in value]
    return value
