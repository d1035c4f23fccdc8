"""All of params.yaml, checked at once before anything expensive starts.

Called by the command line before every stage and every command that reads params.yaml. No stage imports it: a family
added here re-runs nothing.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.audits.review import verdicts
from pipeline.classifiers import table as classifiers
from pipeline.core import artifacts, changes, params
from pipeline.data import sources, splits
from pipeline.evaluation import metrics, statistics
from pipeline.explain import saliency
from pipeline.features import activations, inference
from pipeline.images import augmentation, decode
from pipeline.networks import convnets, graphs
from pipeline.networks.backbones import choice as backbones
from pipeline.networks.backbones.table import BACKBONES
from pipeline.stages import as_is, scratch
from pipeline.tracking import run_inputs
from pipeline.training import heads, unfreezing
from pipeline.training.fitting import TrainingError

# Which networks a method runs on is DVC's business, which starts a stage for each: a stage reads the rest of its block,
# so that a network more does not train the others again.


class HeadBlock(heads.HeadParams):
    backbones: list[str]


class FineTuneBlock(unfreezing.FineTuneParams):
    backbones: list[str]


class ScratchBlock(scratch.ScratchParams):
    networks: list[str]


class ExplainBlock(saliency.ExplainParams):
    runs: list[str]


BLOCKS: dict[str, type[params.Block]] = {
    "dataset": sources.DatasetParams,
    "split": splits.SplitParams,
    "images": decode.ImageParams,
    "compute": inference.ComputeParams,
    "selection": metrics.SelectionParams,
    "backbone": backbones.BackboneParams,
    "features": activations.FeatureParams,
    "as_is": as_is.AsIsParams,
    "augmentation": augmentation.AugmentationParams,
    "head": HeadBlock,
    "fine_tune": FineTuneBlock,
    "scratch": ScratchBlock,
    "explain": ExplainBlock,
    "compare": statistics.CompareParams,
    "review": verdicts.ReviewParams,
}
LOOSE = ("seed", "repeats", "backbones", "classifiers")
# DVC takes them for the size of a file and the number of files in a folder, and leaves them out wherever they stand
# when it looks for an earlier result (dvc/stage/cache.py): with another value there, it would give back the old result.
UNSEEN_BY_DVC = ("size", "nfiles")
RENAMED = {"explain.patterns.size": "explain.patterns.input_size"}


def check(values: Mapping[str, Any]) -> None:
    """Validate every key of params.yaml and what must fit together. Raises ParamsError naming all problems."""
    problems: list[str] = []

    def attempt(action: Callable[[], Any]) -> None:
        try:
            action()
        except params.ParamsError as error:
            problems.append(str(error))

    problems += _unseen_by_dvc(values)
    allowed = (*BLOCKS, *LOOSE)
    problems += [params.unknown_key(str(key), allowed) for key in values if key not in allowed]
    attempt(lambda: _check_count("seed", params.lookup(values, "seed"), at_least=0))
    attempt(lambda: _check_count("repeats", params.lookup(values, "repeats"), at_least=1))
    attempt(lambda: _names("backbones", params.lookup(values, "backbones"), _networks(values)))
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
    classes = sources.class_names(params.parse(values["dataset"], sources.DatasetParams, where="dataset"))
    # A name among several classes is judged when the split is there: folders without a readable image are no classes.
    if classes is not None and selection.positive_class not in classes:
        metrics.positive_index(classes, selection)
    if split and artifacts.MANIFEST.exists():
        classes = artifacts.read_part("train").classes
        metrics.positive_index(classes, selection)
        _check_head(values["head"], classes)
    _check_weights(values)
    features = params.parse(values["features"], activations.FeatureParams, where="features")
    for name in filter(_is_built, values["backbones"]):
        _check_are_layers("features.layers", [layer for layer, _ in features.pooled_layers], name)
    for name in values["fine_tune"]["backbones"]:
        if _is_built(name):
            _check_unfreeze(params.parse(values["fine_tune"], FineTuneBlock, where="fine_tune"), name)
    for name, layers in values["explain"]["layers"].items():
        _check_are_layers(f"explain.layers.{name}", layers, name)


def check_text(text: str) -> None:
    """Refuse numbers of a params file that DVC would record as others. Raises ParamsError.

    010 is 8 in YAML 1.1, which stages read, and 10 in YAML 1.2, which DVC reads: to DVC, 10 in its place is no change.
    """
    for token in yaml.scan(text):
        octal = isinstance(token, yaml.ScalarToken) and token.plain and re.fullmatch("[-+]?0[0-7_]+", token.value)
        if octal and int(token.value, 8) != int(token.value):
            raise params.ParamsError(
                f"params.yaml: line {token.start_mark.line + 1}: {token.value} is {int(token.value, 8)} to a stage and "
                f"{int(token.value)} to DVC: write the number without a 0 in front"
            )


def check_runs(values: Mapping[str, Any]) -> None:
    """Require that every declared run was made with the parameters that params.yaml has now. Raises ParamsError.

    A run that is not there is left to whoever reads it.
    """
    problems: list[str] = []
    for run in params.declared_runs(values):
        path = artifacts.RUNS / run.name / "record.json"
        if path.exists():
            recorded, current = artifacts.read_record(path).parameters, run_inputs.inputs_of(run, values).params
            problems += [
                f"params.yaml: {key} is {now}, but {path.parent} was made with {then}"
                for key, then, now in changes.differences(recorded, current)
            ]
    if problems:
        raise params.ParamsError("\n".join([*problems, "Run `dvc repro`, which makes these runs again"]))


def _unseen_by_dvc(value: Any, where: str = "") -> list[str]:
    """Return a message for each key, at any depth, whose value DVC would not see."""
    found = []
    for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value) if _is_list(value) else ():
        key = f"{where}.{name}" if where else str(name)
        if name in UNSEEN_BY_DVC:
            now = f"It is called {RENAMED[key]} now" if key in RENAMED else "Choose another name"
            found.append(
                f"params.yaml: {key}: nothing may be called {name}. DVC leaves out what is called so when it looks "
                f"for an earlier result, and would give back that of another value. {now}"
            )
        found += _unseen_by_dvc(inner, key)
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_built(backbone: str) -> bool:
    return (artifacts.BACKBONES / backbone / graphs.SPEC).exists()


def _check_weights(values: Mapping[str, Any]) -> None:
    """Require the files of weights as long as a network is still to be built from them; later, nothing reads them."""
    block = params.parse(values["backbone"], backbones.BackboneParams, where="backbone")
    for name in values["backbones"]:
        weights = backbones.resolve(name, block).weights
        if weights in ("imagenet", "random") or _is_built(name) or Path(weights).is_file():
            continue
        raise params.ParamsError(
            f"params.yaml: backbone.weights must be imagenet, random or the path of a file, received {weights!r}: "
            f"there is no such file"
        )


def _check_head(head: Mapping[str, Any], classes: Sequence[str]) -> None:
    if head["backbones"] and head["output"] == "sigmoid" and len(classes) != 2:
        raise params.ParamsError(
            f"params.yaml: head.output must be softmax when there are {len(classes)} classes ({', '.join(classes)}): "
            "one unit tells two classes apart, received 'sigmoid'"
        )


def _stored_layers(name: str) -> list[str]:
    """Return the names of a stored network's layers, in order; none if its architecture is not there.

    From the file: building the network would take TensorFlow seconds, before every stage.
    """
    path = artifacts.BACKBONES / name / graphs.ARCHITECTURE
    if not path.exists():
        return []
    stored = artifacts.read_json(path)["config"]["layers"]
    return [layer["name"] for layer in stored if ".ops." not in layer["module"]]


def _check_are_layers(key: str, wanted: Sequence[str], name: str) -> None:
    """Require layers of a stored network, as soon as it is there."""
    layers = _stored_layers(name)
    for layer in wanted:
        if layers and layer not in layers:
            near = difflib.get_close_matches(layer, layers, n=5, cutoff=0.0)
            raise params.ParamsError(
                f"params.yaml: {key} must be layers of {name}, received {layer!r}. Nearest: "
                f"{', '.join(near)}. `python -m pipeline backbone {name}` lists them"
            )


def _check_unfreeze(fine_tune: unfreezing.FineTuneParams, name: str) -> None:
    try:
        spec = graphs.read_spec(artifacts.BACKBONES / name)
    except artifacts.ArtifactError:
        return  # written by an older version: `dvc repro` is about to write it anew
    if fine_tune.unfreeze.last_blocks is not None:
        _check_last_blocks(fine_tune, spec)
    if fine_tune.unfreeze.from_layer is not None and (layers := _stored_layers(name)):
        _check_from_layer(fine_tune.unfreeze.from_layer, spec, layers)


def _check_last_blocks(fine_tune: unfreezing.FineTuneParams, spec: graphs.NetworkSpec) -> None:
    blocks = fine_tune.unfreeze.last_blocks
    if blocks == "all":
        blocks = len(spec.blocks) + 1  # what comes before the first one counts for one, too
    elif blocks > len(spec.blocks):
        raise params.ParamsError(
            f"params.yaml: fine_tune.unfreeze.last_blocks must be at most {len(spec.blocks)}, the blocks of "
            f"{spec.name}, received {blocks}"
        )
    try:
        unfreezing.check_turns(blocks, fine_tune)
    except TrainingError as error:
        raise params.ParamsError(f"params.yaml: {error}") from None


def _check_from_layer(layer: str, spec: graphs.NetworkSpec, layers: Sequence[str]) -> None:
    layers = layers[: layers.index(spec.map_layer) + 1]  # the head goes on top of that one
    if layer not in layers:
        near = difflib.get_close_matches(layer, layers, n=5, cutoff=0.0)
        starts = ", ".join(block.first_layer for block in spec.blocks)
        raise params.ParamsError(
            f"params.yaml: fine_tune.unfreeze.from_layer must be a layer of {spec.name} up to {spec.map_layer}, "
            f"received {layer!r}. Nearest: {', '.join(near)}. Its blocks start at: {starts}"
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
    block = params.parse(values["backbone"], backbones.BackboneParams, where="backbone")
    if clash := sorted(set(block.variants) & set(convnets.CONVNETS)):
        raise params.ParamsError(f"params.yaml: backbone.variants: {clash[0]} is a network of scratch.networks")
    backbones.check(values["backbones"], block)
    _names("head.backbones", values["head"]["backbones"], values["backbones"])
    _names("fine_tune.backbones", values["fine_tune"]["backbones"], values["head"]["backbones"])
    _names("scratch.networks", values["scratch"]["networks"], convnets.CONVNETS)
    for name in values["scratch"]["networks"]:
        size, smallest = values["scratch"]["input_size"], convnets.CONVNETS[name].smallest
        if size is not None and size < smallest:
            raise params.ParamsError(
                f"params.yaml: scratch.input_size must be at least {smallest} for {name}, or null for its own "
                f"{convnets.CONVNETS[name].input_size}, received {size}"
            )
    trained = [run for run in params.declared_runs(values) if run.stage != "sweep"]
    _names("explain.runs", values["explain"]["runs"], [run.name for run in trained])
    _names("explain.layers", list(values["explain"]["layers"]), {run.network for run in trained})
    if not params.declared_runs(values):
        raise params.ParamsError("params.yaml declares no run: list a backbone with a classifier, a head or a network")


def _networks(values: Mapping[str, Any]) -> list[str]:
    """Return the networks that there are and those that ``backbone.variants`` adds, whatever else is wrong with it."""
    block = values.get("backbone")
    variants = block.get("variants") if isinstance(block, Mapping) else None
    return [*BACKBONES, *(variants if isinstance(variants, Mapping) else ())]


def _names(key: str, names: Any, allowed: Any) -> None:
    if not isinstance(names, list):
        raise params.ParamsError(f"params.yaml: {key} must be a list of names, received {names!r}")
    for name in names:
        if not isinstance(name, str):
            raise params.ParamsError(f"params.yaml: {key} must be a list of names, received {names!r}")
        if name not in allowed:
            message = params.unknown_key(str(name), map(str, allowed), where=key).replace("key ", "")
            raise params.ParamsError(
                message if allowed else f"{message}. There is nothing to choose from: set it to []"
            )
    if len(set(names)) != len(names):
        raise params.ParamsError(f"params.yaml: {key} names something twice, received {names!r}")
