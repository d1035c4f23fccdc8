"""Build a pretrained network and store it, so that nothing downstream looks for weights again."""

from __future__ import annotations

from pipeline import artifacts, networks
from pipeline.backbones.table import BACKBONES, BackboneParams
from pipeline.params import Params
from pipeline.progress import Log, say

READS = ("seed", "backbone")
INPUTS = ()
OUTPUTS = ("data/backbones/{backbone}",)


def main(params: Params, *, backbone: str, log: Log) -> None:
    block = params.block("backbone", BackboneParams)
    say(f"building {backbone} with weights: {block.weights}")
    networks.start_tensorflow()
    model, spec = BACKBONES[backbone].build(weights=block.weights, seed=params.value("seed"))
    with artifacts.whole_directory(artifacts.BACKBONES / backbone) as directory:
        networks.save(model, directory)
        networks.write_spec(spec, directory)
    parameters, multiply_adds = networks.count_parameters(model), networks.multiply_adds(model)
    say(
        f"{backbone}: {parameters:,} parameters in {len(spec.blocks)} blocks, "
        f"{multiply_adds / 1e6:,.0f} million multiply-adds an image of {spec.input_size} x {spec.input_size}"
    )
