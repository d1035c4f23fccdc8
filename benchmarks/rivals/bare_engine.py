"""The engine alone: OpenVINO on arrays that lie in memory already, nothing but forward passes in the clock.

python bare_engine.py --split data/split --backbone data/backbones/NAME --out DIR --threads 2

Writes {"images_per_second": ...}, the better of two ways to feed the engine: one request of 16 images after another, or
one image each for as many streams as there are threads. Each is the median of several passes.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from PIL import Image

sys.modules["openvino_telemetry"] = None
import openvino  # noqa: E402 - after its telemetry is switched off

parser = argparse.ArgumentParser()
for name in ("--split", "--backbone", "--out"):
    parser.add_argument(name, type=Path, required=True)
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("--images", type=int, default=256)
parser.add_argument("--precision", default="f32")
options = parser.parse_args()

PASSES = 3

spec = json.loads((options.backbone / "spec.json").read_text())
network = keras.models.model_from_json((options.backbone / "network.json").read_text())
network.load_weights(options.backbone / "network.weights.h5")
trunk = keras.Model(network.input, network.get_layer(spec["feature_layer"]).output)
core = openvino.Core()
with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "trunk.xml"
    trunk.export(str(path), format="openvino", verbose=False)
    model = core.read_model(path.read_bytes(), path.with_suffix(".bin").read_bytes())

size = (spec["input_size"], spec["input_size"])
files = sorted(options.split.rglob("*.png"))[: options.images]
images = np.stack([np.asarray(Image.open(file).convert("RGB").resize(size), dtype=np.float32) for file in files])


def images_per_second(batch_size: int, streams: int) -> float:
    settings = {
        "INFERENCE_PRECISION_HINT": options.precision,
        "INFERENCE_NUM_THREADS": options.threads,
        "NUM_STREAMS": streams,
    }
    queue = openvino.AsyncInferQueue(core.compile_model(model, "CPU", settings), streams)
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    taken = []
    for _ in range(1 + PASSES):
        started = time.perf_counter()
        for batch in batches:
            queue.start_async(batch, share_inputs=True)
        queue.wait_all()
        taken.append(time.perf_counter() - started)
    return len(images) / statistics.median(taken[1:])  # the first pass warms up


rates = {f"{size} x {streams}": images_per_second(size, streams) for size, streams in ((16, 1), (1, options.threads))}
options.out.mkdir(parents=True, exist_ok=True)
(options.out / "engine.json").write_text(json.dumps({"images_per_second": max(rates.values()), "all": rates}))
print(rates)
