"""Show what a trained network looks at: heat maps on right and wrong validation images, feature maps, filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.console.progress import Log, say
from pipeline.core import artifacts, run_identity
from pipeline.core.params import Params, ParamsError
from pipeline.core.seeds import generator
from pipeline.explain import saliency
from pipeline.images import decode
from pipeline.networks import graphs, imagenet
from pipeline.show import explain_figures

READS = ("seed", "compute.threads", *(f"explain.{key}" for key in saliency.ExplainParams.model_fields))
INPUTS = (str(artifacts.MANIFEST), str(artifacts.SPLIT / "validation"), "results/runs/{run}")
OUTPUTS = ("results/explain/{run}",)

# Pages stay a few screens long: the first classes, some layers from the input to the end, some filters of each.
CLASSES, LAYERS, FILTERS = 10, 4, 8
TEXTBOOK_SIDE = 224


@dataclass(frozen=True)
class Subject:
    """A trained network, and the validation images with what was predicted for them, float32 (n, classes).

    ``title``: of the run, with its ablation if it is one.
    """

    title: str
    network: saliency.ExplainedNetwork
    layers: Sequence[str]
    part: artifacts.Part
    probabilities: np.ndarray
    image_params: decode.ImageParams

    def pixels(self, rows: Sequence[int], *, size: int | None = None) -> np.ndarray:
        """Return images as the network gets them, or of another size: uint8 (rows, size, size, 3)."""
        size = size or self.network.input_size
        return np.stack([decode.load(self.part.files[row], size=size, params=self.image_params) for row in rows])

    @property
    def members(self) -> dict[str, np.ndarray]:
        """Return the rows of the images of each class that is shown and has any, int64 (images,)."""
        rows = {label: np.flatnonzero(self.part.labels == index) for index, label in enumerate(self.part.classes)}
        return dict([(label, found) for label, found in rows.items() if len(found)][:CLASSES])

    @property
    def one_a_class(self) -> dict[str, int]:
        """Return for each class the row of its image in the middle of the manifest."""
        return {label: int(rows[len(rows) // 2]) for label, rows in self.members.items()}


def main(params: Params, *, run: str, log: Log) -> None:
    explain = params.block("explain", saliency.ExplainParams)
    part = artifacts.read_part("validation")
    record, probabilities = _read(run, part)
    seed = params.value("seed")
    threads = params.value("compute.threads")
    network = saliency.load(artifacts.RUNS / run, n_classes=len(part.classes), threads=threads)
    layers = explain.layers.get(record.network) or saliency.from_first_to_last(network.convolutions, LAYERS)
    try:
        network.check(layers)
    except (graphs.NetworkError, saliency.SaliencyError) as error:
        raise ParamsError(f"params.yaml: explain.layers.{record.network}: {error}") from None
    image_params = decode.ImageParams.model_validate(record.parameters["images"])
    subject = Subject(artifacts.marked(run, record.ablation), network, layers, part, probabilities, image_params)
    with artifacts.whole_directory(artifacts.RESULTS / "explain" / run) as directory:
        about = {
            "run": run,
            "ablation": record.ablation,
            "record": run_identity.record_digest(artifacts.RUNS / run),
            "heat_maps": _heat_maps(subject, explain, directory / "gradcam.png"),
            "kernels": _kernels(subject, directory / "filters.png"),
            "textbook": _textbook(subject, directory / "textbook.png"),
        }
        about["feature_maps"] = _feature_maps(subject, directory / "activations.png")
        about["patterns"] = _patterns(subject, explain, about["feature_maps"], seed, directory / "patterns.png")
        artifacts.write_json(directory / "explain.json", about)
    say(f"look at {artifacts.RESULTS / 'explain' / run}/")


def _read(run: str, part: artifacts.Part) -> tuple[artifacts.Record, np.ndarray]:
    """Return a run's record and its validation probabilities, float32 (n, classes).

    Raises ArtifactError if the run has no network of its own, or was made from another split.
    """
    directory = artifacts.RUNS / run
    record = artifacts.read_record(directory / "record.json")
    if record.stage == "sweep":
        raise artifacts.ArtifactError(
            f"{directory} is a classifier on features, without a network to look into: explain a run of head, "
            "fine_tune or scratch"
        )
    probabilities = artifacts.read_predictions(directory / "predictions.npz").validation[record.selected]
    another = record.inputs.get(str(artifacts.MANIFEST)) != artifacts.sha256_file(artifacts.MANIFEST)
    if another or tuple(record.classes) != part.classes or len(probabilities) != len(part):
        raise artifacts.ArtifactError(
            f"{directory} was made from another split than the current {artifacts.MANIFEST}: run `dvc repro`"
        )
    return record, probabilities


def _heat_maps(subject: Subject, explain: saliency.ExplainParams, path: Path) -> dict[str, Any]:
    network, predicted = subject.network, subject.probabilities.argmax(axis=1)
    chosen: dict[str, list[int]] = {}
    for label, members in subject.members.items():
        right = predicted[members] == subject.part.labels[members]
        for verdict, rows in (("right", members[right]), ("wrong", members[~right])):
            heading = f"{label}, predicted {verdict}: {len(rows)} of {len(members)} validation images"
            chosen[heading] = imagenet.evenly_spaced(rows.tolist(), explain.images)
    rows = [row for group in chosen.values() for row in group]
    say(f"heat maps of {len(rows)} images, from {network.map_layer}")
    pixels = subject.pixels(rows)
    heat = network.heat_maps(pixels, predicted[rows])
    examples = {row: _example(subject, row, *found) for row, *found in zip(rows, pixels, heat, strict=True)}
    explain_figures.heat_maps(
        [explain_figures.Group(heading, [examples[row] for row in group]) for heading, group in chosen.items()],
        title=f"What speaks for the prediction: {subject.title}",
        subtitle="Grad-CAM: the brighter the color, the more that place raised the score of the predicted class; "
        "no color: nothing did.\n"
        f"Each map of {heat.shape[1]} x {heat.shape[2]} ({network.map_layer}) is scaled by its own maximum. Images at "
        f"equal distances in the manifest, {_classes(subject)}",
        path=path,
    )
    shown = [
        {
            "path": subject.part.paths[row],
            "label": example.label,
            "predicted": example.predicted,
            "probability": _digits(example.probability),
            "largest": _digits(example.heat.max()),
        }
        for row, example in examples.items()
    ]
    return {"layer": network.map_layer, "size": list(heat.shape[1:]), "score": network.score, "images": shown}


def _example(subject: Subject, row: int, pixels: np.ndarray, heat: np.ndarray) -> explain_figures.Example:
    probabilities = subject.probabilities[row]
    return explain_figures.Example(
        pixels,
        heat,
        name=subject.part.files[row].name,
        predicted=subject.part.classes[probabilities.argmax()],
        probability=float(probabilities.max()),
        label=subject.part.classes[subject.part.labels[row]],
        of_label=float(probabilities[subject.part.labels[row]]),
    )


def _feature_maps(subject: Subject, path: Path) -> dict[str, Any]:
    say(f"feature maps of {', '.join(subject.layers)}")
    rows = subject.one_a_class
    pixels = subject.pixels(list(rows.values()))
    layers = []
    for name in subject.layers:
        maps = subject.network.feature_maps(pixels, name)
        filters = imagenet.evenly_spaced(saliency.varied(maps), FILTERS)
        layers.append(explain_figures.LayerMaps(name, filters, maps.shape[-1], maps[..., filters]))
    explain_figures.feature_maps(
        layers,
        list(zip(rows, pixels, strict=True)),
        title=f"What layers make of an image: {subject.title}",
        subtitle=f"Of each layer {FILTERS} filters at equal distances among those whose output varies at all; yellow "
        "is its greatest, violet its least value in these images.\n"
        f"The image in the middle of each class in the manifest, {_classes(subject)}",
        path=path,
    )
    return {
        "images": {label: subject.part.paths[row] for label, row in rows.items()},
        "layers": [
            {"name": layer.layer, "size": list(layer.values.shape[1:3]), "filters": layer.filters, "of": layer.total}
            for layer in layers
        ],
    }


def _kernels(subject: Subject, path: Path) -> dict[str, Any]:
    layer, values = subject.network.first_kernels()
    rows, columns = values.shape[1:3]
    shown = min(len(values), explain_figures.KERNELS)
    explain_figures.kernels(
        values,
        title=f"What the first convolution looks for: {subject.title}",
        subtitle=f"{shown} of {len(values)} kernels of {layer}, {rows} x {columns} weights for each of red, green and "
        "blue; mid-grey is 0.\nEach is scaled by its own largest weight: faint ones look as strong as strong ones.",
        path=path,
    )
    return {"layer": layer, "shape": list(values.shape[1:]), "kernels": len(values)}


def _patterns(
    subject: Subject, explain: saliency.ExplainParams, feature_maps: Mapping[str, Any], seed: int, path: Path
) -> dict[str, Any]:
    """Make images for some of the filters whose feature maps are shown."""
    settings = explain.patterns
    layers = []
    for layer in feature_maps["layers"]:
        name, filters = layer["name"], imagenet.evenly_spaced(layer["filters"], settings.filters)
        found = subject.network.patterns(name, filters, params=settings, generator=generator(seed, "explain", name))
        layers.append(explain_figures.LayerPatterns(name, filters, *found))
    explain_figures.patterns(
        layers,
        title=f"Images made for filters: {subject.title}",
        subtitle=f"{settings.steps} steps of gradient ascent from grey noise to what raises a filter's mean output, "
        "before → after;\nno photographs. The filters are some of those whose feature maps are shown.",
        path=path,
    )
    return {
        "steps": settings.steps,
        "layers": [
            {
                "name": layer.layer,
                "filters": [
                    {"filter": number, "before": _digits(before), "after": _digits(after)}
                    for number, before, after in zip(layer.filters, layer.before, layer.after, strict=True)
                ],
            }
            for layer in layers
        ],
    }


def _textbook(subject: Subject, path: Path) -> dict[str, Any]:
    label, row = next(iter(subject.one_a_class.items()))
    explain_figures.textbook_operations(
        subject.pixels([row], size=TEXTBOOK_SIDE)[0],
        title="Edges and pooling, as textbooks show them",
        subtitle=f"Fixed operations, not learned, on {subject.part.files[row].name} of the class {label}",
        path=path,
    )
    return {"image": subject.part.paths[row]}


def _classes(subject: Subject) -> str:
    shown, total = len(subject.members), len(subject.part.classes)
    return f"of {shown} of {total} classes" if shown < total else f"of all {total} classes"


def _digits(value: float) -> float:
    """Return a number as it is worth reading: the last digits differ between machines."""
    return float(f"{value:.4g}")
