"""Forward-only engine for frozen networks: OpenVINO on a CPU, TensorFlow on a GPU, in float32 or bfloat16.

On a CPU OpenVINO is several times faster than Keras, and in float32 equal to it within rounding. There, an image's
result does not depend on the batch it is in, on the order of rows or on the number of threads; tests hold it to the
last bit. Threads may share a network: each gets what it would get alone.

A network's outputs leave as rows: all numbers of an image in one line, output after output. A network that continues
where another one ended takes such rows.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import os
import queue
import shutil
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import numpy as np
import pydantic

from pipeline.console.errors import BakeoffError
from pipeline.console.progress import announce
from pipeline.core import artifacts, provenance
from pipeline.core.params import Block
from pipeline.networks import graphs

if TYPE_CHECKING:
    import keras
    import openvino

Engine = Literal["openvino", "tensorflow"]
Build = Callable[[], "keras.Model"]


class InferenceError(BakeoffError):
    """The network answers with something that is not a number, or the processor cannot compute as params.yaml says."""


class ComputeParams(Block):
    """``compute`` in params.yaml.

    ``threads``: of every engine and classifier, never taken from the machine, so that results can be repeated.
    ``batch_size``: images a forward pass; bounds the memory, on a CPU changes no result.
    ``engine``: of frozen networks; auto is TensorFlow where it sees a GPU, else OpenVINO.
    ``precision``: of the arithmetic in frozen networks; what leaves them is float32.
    """

    threads: Annotated[int, pydantic.Field(ge=1, le=1024)]
    batch_size: Annotated[int, pydantic.Field(ge=1, le=4096)]
    engine: Literal["auto", "openvino", "tensorflow"]
    precision: Literal["float32", "bfloat16"]

    def in_float32(self) -> ComputeParams:
        return self.model_copy(update={"precision": "float32"})


class _Compiled(Protocol):
    input_shape: tuple[int, ...]
    output_shapes: list[tuple[int, ...]]

    def map(self, batches: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Yield the outputs of every batch, in order; later batches may be under way already."""


class FrozenNetwork:
    """A Keras network compiled for forward passes; later changes to its weights are not seen.

    ``build`` returns the network, with one input (batch, ...) and outputs of fixed shapes. It is called only if
    ``converted``, a directory that may be kept between processes, does not hold the network in the engine's own form:
    then Keras and TensorFlow need not even be imported.

    Safe to share between threads: they share its memory, too, which does not grow with their number. A thread may have
    to wait for others. One that is inside `map` must not start another pass of the same network before that one ends.
    """

    def __init__(self, build: Build, *, compute: ComputeParams, converted: Path | None = None):
        if chosen_engine(compute.engine) == "openvino":
            self._compiled: _Compiled = _OpenVino(build, compute, converted)
        else:
            self._compiled = _TensorFlow(build, compute)
        self._batch_size = compute.batch_size
        self.input_shape = self._compiled.input_shape
        self.width = sum(math.prod(shape) for shape in self._compiled.output_shapes)

    def map(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the rows of every batch in order, float32 (b, width), with a few batches under way.

        A batch is uint8 or float32 (b, ...) with the input's shape.
        """
        for outputs in self._compiled.map(self._checked(batch) for batch in batches):
            flat = [output.reshape(len(output), -1) for output in outputs]
            # Copied in any case: an engine may hand out a view of memory that it will write to again.
            yield np.concatenate(flat, axis=1, dtype=np.float32)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return the rows of a batch of any size, float32 (b, width)."""
        pieces = (batch[start : start + self._batch_size] for start in range(0, max(len(batch), 1), self._batch_size))
        return np.concatenate(list(self.map(pieces)))

    def _checked(self, batch: np.ndarray) -> np.ndarray:
        if batch.dtype not in (np.uint8, np.float32) or batch.shape[1:] != self.input_shape or not len(batch):
            wanted = f"uint8 or float32 (b, {', '.join(map(str, self.input_shape))}), b at least 1"
            raise ValueError(f"A batch must be {wanted}, received {batch.dtype} {batch.shape}")
        return np.ascontiguousarray(batch, dtype=np.float32)


def convert(build: Build, directory: Path) -> None:
    """Leave a network in ``directory`` in OpenVINO's form, unless it is there already."""
    _converted(build, directory)


def finite(batches: Iterable[np.ndarray], *, names: Sequence[str]) -> Iterator[np.ndarray]:
    """Yield rows, float32 (b, width), as they are. Raises InferenceError for a row that holds what is no number.

    ``names``: of the images in order, for the message.
    """
    done = 0
    for rows in batches:
        good = np.isfinite(rows).all(axis=1)
        if not good.all():
            raise InferenceError(
                f"{names[done + int(np.argmin(good))]}: the network's output holds values that are not finite"
            )
        yield rows
        done += len(rows)


def chosen_engine(engine: Literal["auto", "openvino", "tensorflow"]) -> Engine:
    """Return what auto means on this machine; imports TensorFlow only where it was installed with a GPU's libraries."""
    if engine != "auto":
        return engine
    return "tensorflow" if _tensorflow_sees_a_gpu() else "openvino"


def _tensorflow_sees_a_gpu() -> bool:
    # TensorFlow takes seconds to import. Its build for CPUs only is a distribution of its own, and the other one sees
    # no GPU without NVIDIA's libraries, which are installed beside it.
    try:
        metadata.version("tensorflow-cpu")
        return False
    except metadata.PackageNotFoundError:
        pass
    if importlib.util.find_spec("nvidia") is None:
        return False
    graphs.start_tensorflow()
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


class _OpenVino:
    def __init__(self, build: Build, compute: ComputeParams, converted: Path | None):
        core = _import_openvino().Core()
        if compute.precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            # OpenVINO would compute in float32 and not say so, and the record would be wrong.
            raise InferenceError(
                "compute.precision is bfloat16, but OpenVINO cannot compute in it on this processor. Set params.yaml: "
                "compute.precision to float32"
            )
        settings = {
            # Always set: on a CPU with AMX the default is bfloat16, which is off by percents.
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[compute.precision],
            "EXECUTION_MODE_HINT": {"float32": "ACCURACY", "bfloat16": "PERFORMANCE"}[compute.precision],
            "INFERENCE_NUM_THREADS": compute.threads,
            # One thread an image beats all threads on one image, and needs no waiting for each other.
            "NUM_STREAMS": compute.threads,
            # Pinned threads of two processes would share one core while another is idle.
            "ENABLE_CPU_PINNING": False,
        }
        model = core.compile_model(_converted(build, converted), "CPU", settings)
        self.input_shape = tuple(side.get_length() for side in list(model.inputs[0].partial_shape)[1:])
        self.output_shapes = [
            tuple(side.get_length() for side in list(output.partial_shape)[1:]) for output in model.outputs
        ]
        # Twice as many as can compute at once, so that none waits while a finished one is collected.
        self._idle: queue.SimpleQueue[openvino.InferRequest] = queue.SimpleQueue()
        for _ in range(2 * compute.threads):
            self._idle.put(model.create_infer_request())

    def map(self, batches: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
        busy: deque[openvino.InferRequest] = deque()  # of this pass: no other one gets them before they are idle
        try:
            for batch in batches:
                while (request := self._next_idle(wait=not busy)) is None:
                    yield self._collect(busy)
                busy.append(request)
                request.start_async([batch])
            while busy:
                yield self._collect(busy)
        finally:
            for request in busy:  # a failed or abandoned pass must not write while its request is used anew
                with contextlib.suppress(RuntimeError):
                    request.wait()
                self._idle.put(request)

    def _next_idle(self, *, wait: bool) -> openvino.InferRequest | None:
        try:
            return self._idle.get(block=wait)
        except queue.Empty:
            return None

    def _collect(self, busy: deque[openvino.InferRequest]) -> list[np.ndarray]:
        busy[0].wait()
        outputs = [np.array(tensor.data) for tensor in busy[0].output_tensors]
        self._idle.put(busy.popleft())
        return outputs


class _TensorFlow:
    def __init__(self, build: Build, compute: ComputeParams):
        graphs.start_tensorflow(threads=compute.threads)
        import tensorflow as tf

        model = build()
        self.input_shape = tuple(model.inputs[0].shape[1:])
        self.output_shapes = [tuple(output.shape[1:]) for output in model.outputs]
        model = _in_bfloat16(model) if compute.precision == "bfloat16" else model
        signature = [tf.TensorSpec((None, *self.input_shape), tf.float32)]
        # `training=False` reaches every layer here, because the call is not nested in a model that is told otherwise.
        self._forward = tf.function(lambda batch: model(batch, training=False), input_signature=signature)
        self._one_at_a_time = threading.Lock()  # one pass has all threads; several would multiply the memory

    def map(self, batches: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
        import tensorflow as tf

        for batch in batches:
            with self._one_at_a_time:
                outputs = [tf.cast(output, tf.float32).numpy() for output in tf.nest.flatten(self._forward(batch))]
            yield outputs


def _in_bfloat16(model: keras.Model) -> keras.Model:
    """Return a copy that computes in bfloat16 and keeps its weights in float32."""
    import keras

    def convert(layer: keras.Layer) -> keras.Layer:
        return type(layer).from_config(layer.get_config() | {"dtype": "mixed_bfloat16"})

    copy = keras.models.clone_model(model, clone_function=convert)
    copy.set_weights(model.get_weights())
    for layer in copy.layers:  # normalization of pixels keeps what it computes with apart from its weights
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()
    return copy


def _converted(build: Build, directory: Path | None) -> openvino.Model:
    """Return the network in OpenVINO's form, from ``directory`` if it is there, and leave it there if not."""
    openvino = _import_openvino()
    kept = directory / f"openvino-{_converter_version()}" if directory else None
    if kept and kept.is_dir():
        try:
            return openvino.Core().read_model(kept / "network.xml")
        except RuntimeError:  # damaged, or removed by another process since: converted anew
            shutil.rmtree(kept, ignore_errors=True)
    with _workplace(kept) as place:
        path = place / "network" / "network.xml"
        path.parent.mkdir()
        network = build()
        announce(f"converting {network.name} for OpenVINO")
        _import_export()
        with _write_errors_explained(
            kept or place, size=sum(4 * math.prod(weight.shape) for weight in network.weights)
        ):
            network.export(str(path), format="openvino", verbose=False)
            # Read from bytes: a model read from a path maps the file, which is about to go.
            model = openvino.Core().read_model(path.read_bytes(), path.with_suffix(".bin").read_bytes())
            if len(model.outputs) > len(network.outputs):
                model = _without_leftovers(model, count=len(network.outputs))
                openvino.serialize(model, str(path))
        if kept and not kept.exists():
            try:
                os.replace(path.parent, kept)
            except OSError:
                if not kept.is_dir():  # else another process was faster, with the same network
                    raise
    return model


def _without_leftovers(model: openvino.Model, *, count: int) -> openvino.Model:
    """Return a converted network with its own ``count`` outputs only.

    TensorFlow gives swish a gradient of its own, and OpenVINO takes what that keeps at hand, in every layer, for
    outputs. Keras calls the network's own Identity:0, Identity_1:0, ...
    """
    openvino = _import_openvino()
    names = ["Identity:0", *(f"Identity_{number}:0" for number in range(1, count))]
    results = [next(output for output in model.outputs if name in output.get_names()).get_node() for name in names]
    return openvino.Model(results, model.get_parameters(), model.get_friendly_name())


@contextlib.contextmanager
def _workplace(kept: Path | None) -> Iterator[Path]:
    """Yield a directory beside ``kept`` to convert a network in. Raises artifacts.WriteError if there is no room."""
    parent = Path(tempfile.gettempdir()) if kept is None else kept.parent
    with artifacts.explained(parent):
        parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=parent, prefix=".bakeoff-")
    with temporary as name, artifacts.explained(kept or Path(name)):
        yield Path(name)


@contextlib.contextmanager
def _write_errors_explained(path: Path, *, size: int) -> Iterator[None]:
    """Turn OpenVINO's error for a file that could not be written into a WriteError. ``size``: its bytes, about."""
    try:
        yield
    except RuntimeError as error:
        # OpenVINO has removed what it had written, and does not say why it could write no more.
        free = shutil.disk_usage(path if path.is_dir() else path.parent).free
        if free < size:
            raise artifacts.WriteError(path, "the disk is full", free) from error
        if "iostream" in str(error):
            raise artifacts.WriteError(path, f"the system refused it ({error})", free) from error
        raise


def _converter_version() -> str:
    return provenance.digest({name: metadata.version(name) for name in ("openvino", "keras")})[:16]


def _import_export() -> None:
    """Import what Keras exports with, without the signal processing that it imports for Fourier transforms."""
    stand_in = {"scipy.signal": ModuleType("scipy.signal")}
    with contextlib.suppress(ImportError), graphs.in_place_of(stand_in):
        importlib.import_module("keras.src.backend.openvino.core")


def _import_openvino():
    # OpenVINO reports every conversion over the network unless this package is absent; None makes it absent.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino
