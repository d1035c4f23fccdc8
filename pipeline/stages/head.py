"""Train a new head on the frozen network, from augmented images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.console.progress import Log
from pipeline.core import artifacts
from pipeline.core.params import Params
from pipeline.networks import graphs
from pipeline.training import heads, network_runs

if TYPE_CHECKING:
    import keras

READS = (*network_runs.READS, *(f"head.{key}" for key in heads.HeadParams.model_fields))
INPUTS = (*network_runs.INPUTS, "data/backbones/{backbone}")
OUTPUTS = ("results/runs/{backbone}-head",)


def main(params: Params, *, backbone: str, log: Log) -> None:
    head = params.block("head", heads.HeadParams)
    directory = artifacts.BACKBONES / backbone

    def build(repeat: int) -> keras.Model:
        trunk = heads.pooled(graphs.load(directory), graphs.read_spec(directory), head.pooling)
        return heads.add_head(trunk, n_classes=len(artifacts.read_part("train").classes), params=head)

    network_runs.run(
        build,
        stage="head",
        network=backbone,
        block=head,
        params=params,
        inputs=[str(artifacts.MANIFEST), str(directory)],
        log=log,
        keep_weights=True,  # fine_tune starts each repeat from the head of that repeat
    )
