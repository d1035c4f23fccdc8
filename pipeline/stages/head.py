"""Train a new head on the frozen network, end to end on augmented images."""

from __future__ import annotations

from pipeline import artifacts, network_runs, networks, training
from pipeline.params import Params
from pipeline.progress import Log

READS = (*network_runs.READS, "head")
INPUTS = (*network_runs.INPUTS, "data/backbones/{backbone}")
OUTPUTS = ("results/runs/{backbone}-head",)


def main(params: Params, *, backbone: str, log: Log) -> None:
    head = params.block("head", training.HeadParams)
    training.prepare(threads=params.value("compute.threads"), seed=params.value("seed"))
    directory = artifacts.BACKBONES / backbone
    trunk = networks.cut(networks.load(directory), networks.read_spec(directory).feature_layer)
    model = training.add_head(
        trunk,
        n_classes=len(artifacts.read_part("train").classes),
        dropout=head.dropout,
        hidden_units=head.hidden_units,
    )
    network_runs.train(
        model,
        stage="head",
        network=backbone,
        params=params,
        inputs=[str(artifacts.MANIFEST), str(directory)],
        log=log,
    )
