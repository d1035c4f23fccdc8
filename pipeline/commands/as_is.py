"""Print what a pretrained network, as it is, sees in image files: the most probable of ImageNet's 1,000 classes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.audits import outputs
from pipeline.console.errors import BakeoffError
from pipeline.console.progress import announce
from pipeline.core import artifacts, params, provenance
from pipeline.features import activations, inference
from pipeline.images import decode
from pipeline.images.find import find_images
from pipeline.networks import graphs, imagenet
from pipeline.networks.backbones import choice
from pipeline.networks.backbones.table import BACKBONES
from pipeline.stages import as_is

BAR = 20  # characters of a probability of 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="image files, folders, patterns, or parts: train, validation, test"
    )
    parser.add_argument("--backbone", help="network or variant; without it, the first that params.yaml lists")
    parser.add_argument("--weights", help="imagenet, random or a file; without it, as params.yaml says")
    parser.add_argument("--top", type=int, default=5, help="classes to show for an image (default: %(default)s)")


def main(arguments: argparse.Namespace) -> int:
    if not 1 <= arguments.top <= imagenet.CLASSES:
        raise BakeoffError(f"--top must be from 1 to {imagenet.CLASSES}, received {arguments.top}")
    values = params.load()
    compute = params.parse(params.lookup(values, "compute"), inference.ComputeParams, where="compute")
    image_params = params.parse(params.lookup(values, "images"), decode.ImageParams, where="images")
    files = find(arguments.paths)
    frozen, spec = _network(values, arguments.backbone, arguments.weights)
    announce(f"{as_is.title(spec)}, {spec.input_size} x {spec.input_size}, on {len(files)} images")
    readable, broken = [], []
    for file in files:  # a broken file costs only itself
        try:
            decode.load(file, size=spec.input_size, params=image_params)
            readable.append(file)
        except decode.ImageError as error:
            broken.append(str(error))
    if readable:
        views = [activations.View(file, artifacts.sha256_file(file), None) for file in readable]
        rows = as_is.probabilities_of(frozen, views, compute=compute, image_params=image_params)
        print("\n".join(lines(readable, rows, imagenet.class_names(), top=arguments.top)))
    for message in broken:
        print(f"not classified: {message}", file=sys.stderr)
    return 1 if broken else 0


def find(paths: Sequence[str]) -> list[Path]:
    """Return files from files, folders, patterns and parts of the split, each once, in the order given.

    Raises BakeoffError for what is none of these. A file or folder comes before a part of the same name.
    """
    found: dict[Path, None] = {}
    for text in paths:
        is_part = text in artifacts.PARTS and not Path(text).exists()
        found.update(dict.fromkeys(artifacts.read_part(text).files if is_part else find_images([text])))
    return list(found)


def lines(files: Sequence[Path], rows: np.ndarray, names: Sequence[str], *, top: int) -> list[str]:
    """Return a heading and ``top`` lines an image: class, probability and a bar, in columns.

    ``rows``: ImageNet probabilities, float32 (n_images, 1000).
    """
    best = imagenet.top_classes(rows, k=top)
    width = max(len(names[index]) for index in np.unique(best))
    found = []
    for file, row, classes in zip(files, rows, best, strict=True):
        found.append(str(file))
        for index in classes:
            bar = "█" * round(BAR * float(row[index]))
            found.append(f"  {names[index]:<{width}}  {row[index]:6.1%}  {bar}".rstrip())
    return found


def _network(
    values: dict, backbone: str | None, weights: str | None
) -> tuple[activations.FrozenPart, graphs.NetworkSpec]:
    """Return a network up to its classes, and its spec: the stored one if it is what is asked for, else one built now.

    A recipe or an edit of params.yaml leaves networks of other sizes, weights or preprocessing behind.
    """
    block = params.parse(params.lookup(values, "backbone"), choice.BackboneParams, where="backbone")
    name = backbone or next(iter(params.lookup(values, "backbones")), None)
    if name is None:
        raise BakeoffError("params.yaml: backbones is empty: name a network with --backbone")
    if weights is not None:
        variants = {
            variant: given.model_copy(update={"weights": weights}) if variant == name else given
            for variant, given in block.variants.items()
        }
        block = block.model_copy(update={"weights": weights, "variants": variants})
    asked, seed = choice.resolve(name, block), params.lookup(values, "seed")
    stored = artifacts.BACKBONES / name
    if (stored / graphs.SPEC).is_file():
        spec = graphs.read_spec(stored)
        if _is_asked_for(spec, asked, seed=seed):
            outputs.refuse_changed([stored])
            return activations.FrozenPart.up_to(_classes_of(spec), backbone=name), spec
    announce(f"building {name} with weights: {asked.weights}")
    graphs.start_tensorflow()
    model, spec = choice.build(name, block, seed=seed)
    layer = _classes_of(spec)
    code = provenance.code_digest(["pipeline.networks.backbones.table"])
    return activations.FrozenPart(
        build=lambda: graphs.cut(model, layer),
        sha256=provenance.digest([spec.model_dump(), code]),
        tensors=(f"{layer}:0:0",),
        input_size=spec.input_size,
    ), spec


def _is_asked_for(spec: graphs.NetworkSpec, asked: choice.Choice, *, seed: int) -> bool:
    """Return whether a stored network is the one that a name stands for now."""
    size = asked.input_size or BACKBONES[asked.network].input_size
    if (spec.network or spec.name, spec.input_size, spec.preprocess) != (asked.network, size, asked.preprocess):
        return False
    if asked.weights == "imagenet":
        return spec.weights.get("source") == "imagenet"
    if asked.weights == "random":
        return spec.weights == {"source": "random", "seed": str(seed)}
    file = Path(asked.weights)
    return file.is_file() and spec.weights.get("sha256") == artifacts.sha256_file(file)


def _classes_of(spec: graphs.NetworkSpec) -> str:
    if spec.prediction_layer is None:
        raise BakeoffError(as_is.without_classes(spec))
    return spec.prediction_layer
