"""Compute the pooled features of every image with the frozen network, batch by batch; images seen before are read."""

from __future__ import annotations

import time
from pathlib import Path

from pipeline.console.progress import Log, say
from pipeline.core import artifacts
from pipeline.core.params import Params
from pipeline.features import activations, inference
from pipeline.images import decode
from pipeline.networks import graphs

READS = ("images", "compute", "features")
INPUTS = (
    str(artifacts.MANIFEST),
    *(str(artifacts.SPLIT / part) for part in artifacts.PARTS),
    "data/backbones/{backbone}",
)
OUTPUTS = ("data/features/{backbone}",)


def main(params: Params, *, backbone: str, log: Log) -> None:
    compute = params.block("compute", inference.ComputeParams)
    image_params = params.block("images", decode.ImageParams)
    chosen = params.block("features", activations.FeatureParams)
    spec = graphs.read_spec(artifacts.BACKBONES / backbone)
    ablation = artifacts.ablation(spec.preprocess)
    say(f"preparing {artifacts.marked(backbone, ablation)} for {compute.threads} threads")
    frozen = activations.FrozenPart.of_features(chosen, backbone=backbone)
    with (
        activations.Activations(frozen, compute=compute, image_params=image_params) as rows,
        artifacts.whole_directory(artifacts.FEATURES / backbone) as directory,
    ):
        say(f"{rows.identity['engine']}, {compute.precision}")
        for name in artifacts.PARTS:
            _write(artifacts.read_part(name), rows, directory)
        # What the network costs up to other layers than its own is for TensorFlow to count.
        cost = spec.cost if chosen.layers is None else graphs.cost_of(frozen.build())
        meta = rows.identity | {
            "network": backbone,
            "features": chosen.model_dump(),
            "width": rows.width,
            "cost": cost.model_dump(),
            "ablation": ablation,
        }
        artifacts.write_json(directory / "meta.json", meta)


def _write(part: artifacts.Part, rows: activations.Activations, directory: Path) -> None:
    views = activations.originals(part)
    started = time.monotonic()
    computed = rows.keep(views, label=f"features of {part.name}")
    artifacts.write_features(directory, part.name, rows.stream(views), shape=(len(part), rows.width))
    rate = f"{len(part) / (time.monotonic() - started):.0f} images/s"
    kept = "" if computed in (None, len(part)) else f" ({len(part) - computed} known before)"
    say(f"{part.name}: {len(part)} images{kept}, {rows.width} features each, {rate}")
