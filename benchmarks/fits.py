"""What the benchmarks of head training and of fine-tuning share: sizes, the rival's options, a claim with its scale."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import measure, rows
from benchmarks.measure import BenchmarkError, Run
from benchmarks.workspace import Workspace

# About the least that has both classes in every part; tells start-up from what grows with the images.
FEW = 80
IMAGES = 440
ALL = 1574  # training images of the whole data set
ON_FEW = ", few images"
RIVAL_OUTPUTS = ("out/model.weights.h5", "out/predictions.npz")


class Sizes(NamedTuple):
    """Training images of the two workspaces; validation and test parts are in proportion."""

    few: int
    many: int


def parser(description: str | None) -> argparse.ArgumentParser:
    options = measure.parser(description)
    options.add_argument("--images", type=int, default=IMAGES, help="of the data set's 2,624 (default: %(default)s)")
    return options


def rival_options(place: Workspace, block: str) -> Sequence[Any]:
    """Return the options of ``rivals/fit.py`` that make it train as a block of the workspace's params.yaml says."""
    names = {"--epochs": "epochs", "--learning-rate": "learning_rate", "--batch-size": "batch_size"}
    options = {option: place.value(f"{block}.{name}") for option, name in names.items()}
    options["--dropout"] = place.value("head.dropout")
    options |= {f"--{name}": place.value(f"augmentation.{name}") for name in ("brightness", "contrast")}
    return [word for option in options.items() for word in option]


def claim(
    text: str, runs: Mapping[str, list[Run]], *, ours: str, sizes: Sizes, target: float, rival: str = "Keras"
) -> rows.Row:
    """Return the ratio of whole processes, with what it would be on all images by a straight line through two sizes."""
    return measure.ratio_row(
        text, ours=runs[ours], rival=runs[rival], target=target, detail=_on_all_images(runs, ours, rival, sizes)
    )


def _on_all_images(runs: Mapping[str, list[Run]], ours: str, rival: str, sizes: Sizes) -> str:
    try:
        fast, slow = (
            measure.line((sizes.few, measure.seconds(runs[name + ON_FEW])), (sizes.many, measure.seconds(runs[name])))
            for name in (ours, rival)
        )
    except BenchmarkError as error:
        return str(error)
    whole, rival_whole = fast.at(ALL), slow.at(ALL)
    return (
        f"start-up {fast.start:.0f} against {slow.start:.0f} s; by a straight line {whole:.0f} against "
        f"{rival_whole:.0f} s, {rival_whole / whole:.1f}x, on all {ALL:,} training images"
    )
