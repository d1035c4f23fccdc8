"""Continue from the trained head with the end of the network unfrozen, at a smaller learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.console.progress import Log, say
from pipeline.core import artifacts
from pipeline.core.params import Params
from pipeline.networks import graphs
from pipeline.training import network_runs, unfreezing

if TYPE_CHECKING:
    import keras

    from pipeline.training.optimizers import Pace

READS = (*network_runs.READS, *(f"fine_tune.{key}" for key in unfreezing.FineTuneParams.model_fields))
INPUTS = (*network_runs.INPUTS, "data/backbones/{backbone}", "results/runs/{backbone}-head")
OUTPUTS = ("results/runs/{backbone}-fine_tune",)


def main(params: Params, *, backbone: str, log: Log) -> None:
    fine_tune = params.block("fine_tune", unfreezing.FineTuneParams)
    spec = graphs.read_spec(artifacts.BACKBONES / backbone)
    head = artifacts.RUNS / f"{backbone}-head"

    def build(repeat: int) -> keras.Model:
        model = graphs.load(network_runs.weights_of(head, repeat))
        first_layer = unfreezing.first_layer(model, spec, fine_tune.unfreeze)
        unfrozen, layers = unfreezing.unfreeze(model, first_layer=first_layer)
        say(f"unfreezing the last {unfrozen} of {layers} layers, from {first_layer}")
        return model

    def paces(model: keras.Model) -> list[Pace]:
        found = unfreezing.paces(model, spec, fine_tune)
        for pace in found:
            say(f"  {pace.name}: {pace.rate:.3g} of the learning rate, from epoch {pace.first_epoch + 1} on")
        return found

    network_runs.run(
        build,
        stage="fine_tune",
        network=backbone,
        block=fine_tune,
        params=params,
        inputs=[str(artifacts.MANIFEST), str(artifacts.BACKBONES / backbone), str(head)],
        log=log,
        paces=paces,
    )
