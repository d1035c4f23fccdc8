"""Train a small network from random weights: what the images alone can teach."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.console.progress import Log
from pipeline.core import artifacts
from pipeline.core.params import Params
from pipeline.networks import convnets
from pipeline.training import fitting, network_runs, optimizers

if TYPE_CHECKING:
    import keras


class ScratchParams(fitting.FitParams):
    """Small networks trained from random weights; ``input_size``, ``dropout``: None for each network's own."""

    input_size: fitting.Positive | None
    dropout: optimizers.Share | None


READS = (*network_runs.READS, *(f"scratch.{key}" for key in ScratchParams.model_fields))
INPUTS = network_runs.INPUTS
OUTPUTS = ("results/runs/{network}-scratch",)


def main(params: Params, *, network: str, log: Log) -> None:
    scratch = params.block("scratch", ScratchParams)
    convnet = convnets.CONVNETS[network]

    def build(repeat: int) -> keras.Model:
        return convnet.build(
            input_size=scratch.input_size or convnet.input_size,
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
