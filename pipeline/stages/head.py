"""Train a new head on the frozen network, from augmented images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import artifacts, network_runs, networks, training
from pipeline.params import Params
from pipeline.progress import Log

if TYPE_CHECKING:
    import keras

READS = (*network_runs.READS, *(f"head.{key}" for key in training.HeadParams.model_fields))
INPUTS = (*network_runs.INPUTS, "data/backbones/{backbone}")
OUTPUTS = ("results/runs/{backbone}-head",)


def main(params: Params, *, backbone: str, log: Log) -> None:
    head = params.block("head", training.HeadParams)
    directory = artifacts.BACKBONES / backbone

    def build(repeat: int) -> keras.Model:
        trunk = networks.cut(networks.load(directory), networks.read_spec(directory).feature_layer)
        return training.add_head(
            trunk,
            n_classes=len(artifacts.read_part("train").classes),
            dropout=head.dropout,
            hidden_units=head.hidden_units,
        )

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
