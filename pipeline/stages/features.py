"""Compute the pooled features of every image with the frozen network, batch by batch into memory maps."""

from __future__ import annotations

import time

from pipeline import artifacts, images, inference, networks
from pipeline.params import Params
from pipeline.progress import Log, progress, say

READS = ("images", "compute")
INPUTS = (
    str(artifacts.MANIFEST),
    *(str(artifacts.SPLIT / part) for part in artifacts.PARTS),
    "data/backbones/{backbone}",
)
OUTPUTS = ("data/features/{backbone}",)


def main(params: Params, *, backbone: str, log: Log) -> None:
    compute = params.block("compute", inference.ComputeParams)
    image_params = params.block("images", images.ImageParams)
    source = artifacts.BACKBONES / backbone
    spec = networks.read_spec(source)
    say(f"preparing {backbone} for {compute.threads} threads")
    trunk = networks.cut(networks.load(source), spec.feature_layer)
    engine = inference.FrozenNetwork(trunk, threads=compute.threads)
    with artifacts.whole_directory(artifacts.FEATURES / backbone) as directory:
        for name in artifacts.PARTS:
            part = artifacts.read_part(name)
            batches = images.batches(
                part.files, size=spec.input_size, params=image_params, batch_size=compute.batch_size
            )
            features = artifacts.open_features(directory, name, shape=(len(part), spec.feature_width))
            started = time.monotonic()
            rows = inference.rows(engine, batches, names=part.paths)
            for row, values in enumerate(progress(rows, total=len(part), label=f"features of {name}", unit="images")):
                features[row] = values
            features.flush()
            seconds = time.monotonic() - started
            say(f"{name}: {len(part)} images, {spec.feature_width} features each, {len(part) / seconds:.0f} images/s")
        meta = {
            "network": backbone,
            "network_sha256": artifacts.sha256_path(source),
            "feature_layer": spec.feature_layer,
            "width": spec.feature_width,
            "input_size": spec.input_size,
            "images": image_params.model_dump(),
            "parameters": networks.count_parameters(trunk),
            "multiply_adds": networks.multiply_adds(trunk),
            "network_bytes": networks.stored_bytes(trunk),
        }
        artifacts.write_json(directory / "meta.json", meta)
