"""All of params.yaml, checked at once before anything expensive starts.

Called by the command line before every stage and every command that reads params.yaml. No stage imports it: a family
added here re-runs nothing.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import (
    artifacts,
    convnets,
    datasets,
    images,
    inference,
    metrics,
    networks,
    params,
    splits,
    statistics,
    training,
)
from pipeline.backbones import table as backbones
from pipeline.classifiers import table as classifiers
from pipeline.review import verdicts
from pipeline.stages import as_is


# Which networks a method runs on is DVC's business, which starts a stage for each: a stage reads the rest of its block,
# so that a network more does not train the others again.


class HeadBlock(training.HeadParams):
    backbones: list[str]


class FineTuneBlock(training.FineTuneParams):
    backbones: list[str]


class ScratchBlock(training.ScratchParams):
    networks: list[str]


BLOCKS: dict[str, type[params.Block]] = {
    "dataset": datasets.DatasetParams,
    "split": splits.SplitParams,
    "images": images.ImageParams,
    "compute": inference.ComputeParams,
    "selection": metrics.SelectionParams,
    "backbone": backbones.BackboneParams,
    "as_is": as_is.AsIsParams,
    "augmentation": images.AugmentationParams,
    "head": HeadBlock,
    "fine_tune": FineTuneBlock,
    "scratch": ScratchBlock,
    "compare": statistics.CompareParams,
    "review": verdicts.ReviewParams,
}
LOOSE = ("seed", "repeats", "backbones", "classifiers")


def check(values: Mapping[str, Any]) -> None:
    """Validate every key of params.yaml and what must fit together. Raises ParamsError naming all problems."""
    problems: list[str] = []

    def attempt(action: Callable[[], Any]) -> None:
        try:
            action()
        except params.ParamsError as error:
            problems.append(str(error))

    allowed = (*BLOCKS, *LOOSE)
    problems += [params.unknown_key(str(key), allowed) for key in values if key not in allowed]
    attempt(lambda: _check_count("seed", params.lookup(values, "seed"), at_least=0))
    attempt(lambda: _check_count("repeats", params.lookup(values, "repeats"), at_least=1))
    attempt(lambda: _names("backbones", params.lookup(values, "backbones"), backbones.BACKBONES))
    for key, model in BLOCKS.items():
        attempt(lambda key=key, model=model: params.parse(params.lookup(values, key), model, where=key))
    attempt(lambda: _check_classifiers(params.lookup(values, "classifiers")))
    if not problems:
        attempt(lambda: _check_together(values))
    if problems:
        raise params.ParamsError("\n".join(problems))


def check_against_results(values: Mapping[str, Any], *, split: bool = True) -> None:
    """Check what depends on the data and the networks, as soon as they are there. Raises ParamsError.

    ``split``: whether the one that is there is the one that counts, and not that of the data set before this one.
    """
    selection = params.parse(values["selection"], metrics.SelectionParams, where="selection")
    classes = datasets.class_names(params.parse(values["dataset"], datasets.DatasetParams, where="dataset"))
    # A name among several classes is judged when the split is there: folders without a readable image are no classes.
    if classes is not None and selection.positive_class not in classes:
        metrics.positive_index(classes, selection)
    if split and artifacts.MANIFEST.exists():
        metrics.positive_index(artifacts.read_part("train").classes, selection)
    _check_weights(values["backbone"]["weights"], values["backbones"])
    for name in values["fine_tune"]["backbones"]:
        if _is_built(name):
            _check_unfreeze(values["fine_tune"]["unfreeze"], name)


def _is_built(backbone: str) -> bool:
    return (artifacts.BACKBONES / backbone / networks.SPEC).exists()


def _check_weights(weights: str, names: Sequence[str]) -> None:
    """Require the file of weights as long as a network is still to be built from it; later, nothing reads it."""
    if weights in ("imagenet", "random") or all(_is_built(name) for name in names):
        return
    if not Path(weights).is_file():
        raise params.ParamsError(
            f"params.yaml: backbone.weights must be imagenet, random or the path of a file, received {weights!r}: "
            f"there is no such file"
        )


def _check_unfreeze(unfreeze: Mapping[str, Any], name: str) -> None:
    directory = artifacts.BACKBONES / name
    try:
        spec = networks.read_spec(directory)
    except artifacts.ArtifactError:
        return  # written by an older version: `dvc repro` is about to write it anew
    if (unfreeze["last_blocks"] or 0) > len(spec.blocks):
        raise params.ParamsError(
            f"params.yaml: fine_tune.unfreeze.last_blocks must be at most {len(spec.blocks)}, the blocks of {name}, "
            f"received {unfreeze['last_blocks']}"
        )
    if unfreeze["from_layer"] is None or not (directory / networks.ARCHITECTURE).exists():
        return
    # From the file: building the network would take TensorFlow seconds, before every stage.
    stored = artifacts.read_json(directory / networks.ARCHITECTURE)["config"]["layers"]
    layers = [layer["config"]["name"] for layer in stored]
    layers = layers[: layers.index(spec.feature_layer) + 1]  # the head goes on top of that one
    if unfreeze["from_layer"] not in layers:
        near = difflib.get_close_matches(unfreeze["from_layer"], layers, n=5, cutoff=0.0)
        starts = ", ".join(block.first_layer for block in spec.blocks)
        raise params.ParamsError(
            f"params.yaml: fine_tune.unfreeze.from_layer must be a layer of {name} up to {spec.feature_layer}, "
            f"received {unfreeze['from_layer']!r}. Nearest: {', '.join(near)}. Its blocks start at: {starts}"
        )


def _check_count(key: str, value: Any, *, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise params.ParamsError(f"params.yaml: {key} must be an integer of at least {at_least}, received {value!r}")


def _check_classifiers(families: Any) -> None:
    if not isinstance(families, Mapping):
        raise params.ParamsError(f"params.yaml: classifiers must map families to their search, received {families!r}")
    _names("classifiers", list(families), classifiers.FAMILIES)
    for family, block in families.items():
        module = importlib.import_module(classifiers.FAMILIES[family])
        params.parse(block, module.Params, where=f"classifiers.{family}")


def _check_together(values: Mapping[str, Any]) -> None:
    _names("head.backbones", values["head"]["backbones"], values["backbones"])
    _names("fine_tune.backbones", values["fine_tune"]["backbones"], values["head"]["backbones"])
    _names("scratch.networks", values["scratch"]["networks"], convnets.CONVNETS)
    if not params.declared_runs(values):
        raise params.ParamsError("params.yaml declares no run: list a backbone with a classifier, a head or a network")


def _names(key: str, names: Any, allowed: Any) -> None:
    if not isinstance(names, list):
        raise params.ParamsError(f"params.yaml: {key} must be a list of names, received {names!r}")
    for name in names:
        if not isinstance(name, str):
            raise params.ParamsError(f"params.yaml: {key} must be a list of names, received {names!r}")
        if name not in allowed:
            raise params.ParamsError(params.unknown_key(str(name), map(str, allowed), where=key).replace("key ", ""))
    if len(set(names)) != len(names):
        raise params.ParamsError(f"params.yaml: {key} names something twice, received {names!r}")
