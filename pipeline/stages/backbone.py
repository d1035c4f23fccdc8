"""Build a pretrained network and store it, so that nothing downstream looks for weights again."""

from __future__ import annotations

import functools

from pipeline.console.progress import Log, say
from pipeline.core import artifacts
from pipeline.core.params import Params
from pipeline.features import activations, feature_store, inference
from pipeline.networks import graphs
from pipeline.networks.backbones import choice

READS = ("seed", "backbone", "compute.engine")
INPUTS = ()
OUTPUTS = ("data/backbones/{backbone}",)


def main(params: Params, *, backbone: str, log: Log) -> None:
    block = params.block("backbone", choice.BackboneParams)
    chosen = choice.resolve(backbone, block)
    name = artifacts.marked(backbone, artifacts.ablation(chosen.preprocess))
    of = "" if chosen.network == backbone else f", a variant of {chosen.network},"
    say(f"building {name}{of} with weights: {chosen.weights}")
    graphs.start_tensorflow()
    model, spec = choice.build(backbone, block, seed=params.value("seed"))
    with artifacts.whole_directory(artifacts.BACKBONES / backbone) as directory:
        graphs.save(model, directory)
        graphs.write_spec(spec, directory)
    if inference.chosen_engine(params.value("compute.engine")) == "openvino":
        # TensorFlow, which the conversion needs, runs here anyway; the next stages then start without it.
        for layer in filter(None, (spec.feature_layer, spec.prediction_layer)):
            part = activations.FrozenPart.up_to(layer, backbone=backbone)
            cut = functools.partial(graphs.cut, model, layer)
            inference.convert(cut, part.converted(feature_store.from_environment()))
    parameters, multiply_adds = graphs.count_parameters(model), graphs.multiply_adds(model)
    say(
        f"{name}: {parameters:,} parameters in {len(spec.blocks)} blocks, "
        f"{multiply_adds / 1e6:,.0f} million multiply-adds an image of {spec.input_size} x {spec.input_size}"
    )
    if spec.prediction_layer is None:
        say(f"{backbone} comes without ImageNet's classes: its file has none, or they are of another input size")
