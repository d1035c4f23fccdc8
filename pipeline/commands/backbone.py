"""Describe a pretrained network: what it takes, which layers give features, its blocks, and every layer in order.

The network is built without weights, in seconds; nothing is stored and nothing is downloaded. (With ``--backbone``, the
same verb is the stage of dvc.yaml that builds and stores the network.)
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.core import artifacts, params
from pipeline.networks import graphs
from pipeline.networks.backbones import choice
from pipeline.networks.backbones.backbone import Architecture, Backbone
from pipeline.networks.backbones.table import BACKBONES

if TYPE_CHECKING:
    import keras


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="network, or one of backbone.variants; without it, all are listed"
    )


def main(arguments: argparse.Namespace) -> int:
    if arguments.name is None:
        print("\n".join(overview(BACKBONES)))
        return 0
    block = params.parse(params.lookup(params.load(), "backbone"), choice.BackboneParams, where="backbone")
    chosen = choice.resolve(arguments.name, block)
    backbone = BACKBONES[chosen.network]
    graphs.start_tensorflow()
    found = backbone.architecture(name=arguments.name, input_size=chosen.input_size, preprocess=chosen.preprocess)
    print("\n".join(describe(backbone, found, chosen)))
    return 0


def overview(backbones: Mapping[str, Backbone]) -> list[str]:
    """Return one line a network: sizes of its input, width of its features, what it makes of pixels."""
    rows = [("network", "input", "at least", "features", "preprocessing")]
    for name, one in backbones.items():
        sizes = f"{one.input_size}", f"{one.smallest_size}", f"{one.feature_width:,}"
        rows.append((name, *sizes, one.scaling.formula + (", inside the network" if one.scaled_inside else "")))
    return _columns(rows)


def describe(backbone: Backbone, found: Architecture, chosen: choice.Choice) -> list[str]:
    """Return the description of a network, in lines: the facts, its blocks, its layers."""
    return [
        *_facts(backbone, found, chosen),
        "",
        *_columns([("block", "first layer"), *((block.name, block.first_layer) for block in found.blocks)]),
        "",
        *_columns([("layer", "kind", "output", "parameters"), *map(_layer, found.model.layers)]),
    ]


def _facts(backbone: Backbone, found: Architecture, chosen: choice.Choice) -> list[str]:
    model = found.model
    size = chosen.input_size or backbone.input_size
    low, high = backbone.scaling.range
    where = f"inside the network, up to layer {backbone.scaled_inside}" if backbone.scaled_inside else "its first layer"
    scaled = f"{backbone.scaling.formula}: {low:.4g} to {high:.4g}; {where}"
    if ablation := artifacts.ablation(chosen.preprocess):
        scaled = f"ABLATION, {ablation}. Its own would be {scaled}"
    classes = found.prediction_layer or f"none at this size; at {backbone.input_size} x {backbone.input_size} there are"
    return _columns(
        [
            (model.name, "" if model.name == backbone.name else f"a variant of {backbone.name}"),
            ("input", f"{size} x {size} (its own: {backbone.input_size}, at least {backbone.smallest_size})"),
            ("preprocessing", scaled),
            ("features", f"{found.feature_layer}, {_shape(model, found.feature_layer)}"),
            ("last map", f"{found.map_layer}, {_shape(model, found.map_layer)}"),
            ("classes", classes),
            ("parameters", f"{graphs.count_parameters(model):,}"),
            ("multiply-adds", f"{graphs.multiply_adds(model) / 1e6:,.0f} million an image"),
        ]
    )


def _layer(layer: keras.Layer) -> tuple[str, ...]:
    count = sum(math.prod(weight.shape) for weight in layer.weights)
    return layer.name, type(layer).__name__, _dimensions(layer.output.shape), f"{count:,}" if count else ""


def _shape(model: keras.Model, layer: str) -> str:
    return _dimensions(model.get_layer(layer).output.shape)


def _dimensions(shape: Sequence[int | None]) -> str:
    return " x ".join(f"{length:,}" for length in shape[1:])


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
