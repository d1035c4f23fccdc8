"""Forward-only engine for frozen networks: OpenVINO on the CPU, in float32.

Several times faster than Keras, and equal to it within the rounding of float32. An image's result does not depend on
the batch it is in, on the order of rows or on the number of threads; tests hold it to the last bit.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pydantic

from pipeline.errors import BakeoffError
from pipeline.params import Block

if TYPE_CHECKING:
    import keras
    import openvino


class InferenceError(BakeoffError):
    """The network answers with something that is not a number."""


class ComputeParams(Block):
    """``compute`` in params.yaml.

    ``threads``: of every engine and classifier, never taken from the machine, so that results can be repeated.
    ``batch_size``: images a forward pass; bounds the memory, changes no result.
    """

    threads: Annotated[int, pydantic.Field(ge=1, le=1024)]
    batch_size: Annotated[int, pydantic.Field(ge=1, le=4096)]


class FrozenNetwork:
    """A Keras network compiled for forward passes; later changes to its weights are not seen.

    The network has one input, (batch, height, width, 3), and one output, (batch, ...).
    """

    def __init__(self, model: keras.Model, *, threads: int):
        self._compiled = _compile(_convert(model), threads=threads)
        self._shape = tuple(model.input_shape[1:])

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return the output for a batch of raw pixels, uint8 or float32 (b, height, width, 3), as float32 (b, ...)."""
        if batch.dtype not in (np.uint8, np.float32) or batch.shape[1:] != self._shape or not len(batch):
            wanted = f"uint8 or float32 (b, {', '.join(map(str, self._shape))}), b at least 1"
            raise ValueError(f"A batch must be {wanted}, received {batch.dtype} {batch.shape}")
        result = self._compiled(np.ascontiguousarray(batch, dtype=np.float32))[0]
        # The engine hands out a view of memory that it will write to again.
        return np.array(result, dtype=np.float32)


def rows(network: FrozenNetwork, batches: Iterable[np.ndarray], *, names: Sequence[str]) -> Iterator[np.ndarray]:
    """Yield the output of every image in order, float32 (...), with one batch in memory at a time.

    ``names``: of the images, for messages. Raises InferenceError for an output that is not finite.
    """
    done = 0
    for batch in batches:
        outputs = network.run(batch)
        finite = np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1)
        if not finite.all():
            name = names[done + int(np.argmin(finite))]
            raise InferenceError(f"{name}: the network's output holds values that are not finite")
        yield from outputs
        done += len(outputs)


def _convert(model: keras.Model) -> openvino.Model:
    openvino = _import_openvino()
    with tempfile.TemporaryDirectory(prefix="bakeoff-") as directory:
        path = Path(directory) / "network.xml"
        model.export(str(path), format="openvino", verbose=False)
        # Read from bytes: a model read from a path maps the file, which is about to go.
        return openvino.Core().read_model(path.read_bytes(), path.with_suffix(".bin").read_bytes())


def _compile(model: openvino.Model, *, threads: int) -> openvino.CompiledModel:
    openvino = _import_openvino()
    settings = {
        # On a CPU with AMX the default is bfloat16, which is off by percents.
        "INFERENCE_PRECISION_HINT": "f32",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # Pinned threads of two processes would share one core while another is idle.
        "ENABLE_CPU_PINNING": False,
    }
    return openvino.Core().compile_model(model, "CPU", settings)


def _import_openvino():  # noqa: ANN202 - a module
    # OpenVINO reports every conversion over the network unless this package is absent; None makes it absent.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino
