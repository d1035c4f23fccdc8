"""Use the network as it is: which ImageNet classes does it see in the validation images?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic

from pipeline.console.progress import Log, say
from pipeline.core import artifacts
from pipeline.core.params import Block, Params
from pipeline.features import activations, inference
from pipeline.images import decode
from pipeline.networks import graphs, imagenet

READS = ("as_is", "images", "compute")
INPUTS = (str(artifacts.MANIFEST), str(artifacts.SPLIT / "validation"), "data/backbones/{backbone}")
OUTPUTS = ("results/as_is/{backbone}",)

CLASS_COLUMNS = ("label", "images", "imagenet_class", "name", "top_1", "top_k", "mean_probability")
# A sheet stays one screen wide and about two high: many images of few classes, or few of many.
SHEET_IMAGES, SHEET_CLASSES, SHEET_ROWS = 24, 12, 3


class AsIsParams(Block):
    """``as_is`` in params.yaml. ``top``: ImageNet classes to show for an image."""

    top: Annotated[int, pydantic.Field(ge=1, le=20)]


def main(params: Params, *, backbone: str, log: Log) -> None:
    k = params.block("as_is", AsIsParams).top
    part = artifacts.read_part("validation")
    spec = graphs.read_spec(artifacts.BACKBONES / backbone)
    out = artifacts.RESULTS / "as_is" / backbone
    if spec.prediction_layer is None:
        said = without_classes(spec)
        with artifacts.whole_directory(out) as directory:
            artifacts.write_text(directory / "no_classes.txt", f"{said}\n")
        say(said)
        return
    say(f"preparing {title(spec)}")
    probabilities = probabilities_of(
        activations.FrozenPart.up_to(spec.prediction_layer, backbone=backbone),
        activations.originals(part),
        compute=params.block("compute", inference.ComputeParams),
        image_params=params.block("images", decode.ImageParams),
    )
    top, names = imagenet.top_classes(probabilities, k=k), imagenet.class_names()
    with artifacts.whole_directory(out) as directory:
        mark = _mark(spec)
        _write_predictions(directory / "predictions.csv", part, probabilities, top, names, mark)
        for label in _write_classes(directory / "classes.csv", part, probabilities, top, names, mark):
            say(label)
        _write_sheet(directory / "sheet.png", part, probabilities, top, names, spec, params)
    say(f"look at {out / 'sheet.png'}")


def probabilities_of(
    frozen: activations.FrozenPart,
    views: Sequence[activations.View],
    *,
    compute: inference.ComputeParams,
    image_params: decode.ImageParams,
) -> np.ndarray:
    """Return ImageNet probabilities of images, float32 (n_images, 1000), by a network up to its classes."""
    with activations.Activations(frozen, compute=compute, image_params=image_params) as rows:
        rows.keep(views, label="ImageNet classes")
        return rows.rows(views)


def title(spec: graphs.NetworkSpec) -> str:
    """Return the network's name, and what there is to know before one looks at its classes."""
    drawn = ", whose weights are random: its classes mean nothing" if spec.weights.get("source") == "random" else ""
    return _name(spec) + drawn


def _name(spec: graphs.NetworkSpec) -> str:
    return artifacts.marked(spec.name, artifacts.ablation(spec.preprocess))


def _mark(spec: graphs.NetworkSpec) -> dict[str, str]:
    """Return the column that a table of an ablation has, and what stands in every row of it."""
    ablation = artifacts.ablation(spec.preprocess)
    return {} if ablation is None else {"ablation": ablation}


def without_classes(spec: graphs.NetworkSpec) -> str:
    """Return in words that a network has no classes to show, and why."""
    return (
        f"{_name(spec)} has none of ImageNet's classes: its file of weights has none, or they belong to another input "
        f"size than {spec.input_size} x {spec.input_size} (backbone.input_size: null is the network's own)"
    )


def _write_predictions(
    path: Path,
    part: artifacts.Part,
    probabilities: np.ndarray,
    top: np.ndarray,
    names: Sequence[str],
    mark: Mapping[str, str],
) -> None:
    ranks = range(1, top.shape[1] + 1)
    guesses = (f"{what}_{rank}" for rank in ranks for what in ("class", "name", "probability"))
    columns = ["path", "label", *guesses, *mark]
    rows: list[dict[str, Any]] = []
    for row, path_in_split in enumerate(part.paths):
        cells: dict[str, Any] = {"path": path_in_split, "label": part.classes[part.labels[row]]}
        for rank, index in enumerate(top[row], start=1):
            probability = f"{probabilities[row, index]:.6f}"
            cells |= {f"class_{rank}": index, f"name_{rank}": names[index], f"probability_{rank}": probability}
        rows.append(cells | mark)
    artifacts.write_csv(path, columns, rows)


def _write_classes(
    path: Path,
    part: artifacts.Part,
    probabilities: np.ndarray,
    top: np.ndarray,
    names: Sequence[str],
    mark: Mapping[str, str],
) -> list[str]:
    """Write what is guessed for each of our classes; return a sentence a class with the most frequent guesses."""
    rows, sentences = [], []
    for index, label in enumerate(part.classes):
        members = np.flatnonzero(part.labels == index)
        if not len(members):
            continue
        found = imagenet.guesses(probabilities[members], top[members])
        rows += [
            {"label": label, "images": len(members), "name": names[guess.imagenet_class], **guess._asdict()}
            | {"mean_probability": f"{guess.mean_probability:.6f}"}
            | mark
            for guess in found
        ]
        often = [guess for guess in found[:3] if guess.top_1]
        first = [f"{names[guess.imagenet_class]} {guess.top_1 / len(members):.0%}" for guess in often]
        sentences.append(f"{label}: {len(members)} images, most often seen as {', '.join(first)}")
    artifacts.write_csv(path, [*CLASS_COLUMNS, *mark], rows)
    return sentences


def _write_sheet(
    path: Path,
    part: artifacts.Part,
    probabilities: np.ndarray,
    top: np.ndarray,
    names: Sequence[str],
    spec: graphs.NetworkSpec,
    params: Params,
) -> None:
    # Imported here: params.yaml is checked with AsIsParams before every stage, and need not load Matplotlib.
    from pipeline.show import picture_sheet

    image_params = params.block("images", decode.ImageParams)
    shown = part.classes[:SHEET_CLASSES]
    rows = min(max(SHEET_IMAGES // len(shown) // picture_sheet.COLUMNS, 1), SHEET_ROWS)
    sections = {}
    for index, label in enumerate(shown):
        members = np.flatnonzero(part.labels == index).tolist()
        sections[label] = [
            picture_sheet.Cell(
                image=decode.load(part.files[row], size=spec.input_size, params=image_params),
                guesses=[(names[guess], float(probabilities[row, guess])) for guess in top[row]],
            )
            for row in imagenet.evenly_spaced(members, rows * picture_sheet.COLUMNS)
        ]
    picture_sheet.draw(
        sections,
        title=f"What {_name(spec)} sees, as it is",
        subtitle=f"Its {top.shape[1]} most probable ImageNet classes on validation images, at equal distances "
        "in the manifest",
        path=path,
    )
