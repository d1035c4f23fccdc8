"""Train a small network from random weights: what the images alone can teach."""

from __future__ import annotations

from pipeline import artifacts, convnets, network_runs, training
from pipeline.params import Params
from pipeline.progress import Log

READS = (*network_runs.READS, "scratch")
INPUTS = network_runs.INPUTS
OUTPUTS = ("results/runs/{network}-scratch",)


def main(params: Params, *, network: str, log: Log) -> None:
    scratch = params.block("scratch", training.ScratchParams)
    training.prepare(threads=params.value("compute.threads"), seed=params.value("seed"))
    model = convnets.CONVNETS[network](
        input_size=scratch.input_size,
        n_classes=len(artifacts.read_part("train").classes),
        dropout=scratch.dropout,
    )
    network_runs.train(
        model, stage="scratch", network=network, params=params, inputs=[str(artifacts.MANIFEST)], log=log
    )
