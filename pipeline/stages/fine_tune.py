"""Continue from the trained head with the end of the network unfrozen, at a smaller learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import artifacts, network_runs, networks, training
from pipeline.params import Params
from pipeline.progress import Log, say

if TYPE_CHECKING:
    import keras

READS = (*network_runs.READS, *(f"fine_tune.{key}" for key in training.FineTuneParams.model_fields))
INPUTS = (*network_runs.INPUTS, "data/backbones/{backbone}", "results/runs/{backbone}-head")
OUTPUTS = ("results/runs/{backbone}-fine_tune",)


def main(params: Params, *, backbone: str, log: Log) -> None:
    fine_tune = params.block("fine_tune", training.FineTuneParams)
    spec = networks.read_spec(artifacts.BACKBONES / backbone)
    head = artifacts.RUNS / f"{backbone}-head"
    first_layer = fine_tune.unfreeze.from_layer or _first_layer_of_last(spec, fine_tune.unfreeze.last_blocks)

    def build(repeat: int) -> keras.Model:
        model = networks.load(network_runs.weights_of(head, repeat))
        unfrozen, layers = training.unfreeze(model, first_layer=first_layer)
        say(f"unfreezing the last {unfrozen} of {layers} layers, from {first_layer}")
        return model

    network_runs.run(
        build,
        stage="fine_tune",
        network=backbone,
        block=fine_tune,
        params=params,
        inputs=[str(artifacts.MANIFEST), str(artifacts.BACKBONES / backbone), str(head)],
        log=log,
    )


def _first_layer_of_last(spec: networks.NetworkSpec, blocks: int) -> str:
    if blocks > len(spec.blocks):
        raise training.TrainingError(
            f"fine_tune.unfreeze.last_blocks must be at most {len(spec.blocks)}, the blocks of {spec.name}, "
            f"received {blocks}"
        )
    return spec.blocks[-blocks].first_layer
