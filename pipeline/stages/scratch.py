"""Train a small network from random weights: what the images alone can teach."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import artifacts, convnets, network_runs, training
from pipeline.params import Params
from pipeline.progress import Log

if TYPE_CHECKING:
    import keras

READS = (*network_runs.READS, *(f"scratch.{key}" for key in training.ScratchParams.model_fields))
INPUTS = network_runs.INPUTS
OUTPUTS = ("results/runs/{network}-scratch",)


def main(params: Params, *, network: str, log: Log) -> None:
    scratch = params.block("scratch", training.ScratchParams)

    def build(repeat: int) -> keras.Model:
        return convnets.CONVNETS[network](
            input_size=scratch.input_size,
            n_classes=len(artifacts.read_part("train").classes),
            dropout=scratch.dropout,
        )

    network_runs.run(
        build,
        stage="scratch",
        network=network,
        block=scratch,
        params=params,
        inputs=[str(artifacts.MANIFEST)],
        log=log,
    )
