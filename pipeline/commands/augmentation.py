"""Draw what the augmentation of params.yaml makes of images, without training anything."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.config import schema
from pipeline.console.errors import BakeoffError
from pipeline.console.progress import say
from pipeline.core import artifacts, params
from pipeline.core.seeds import child_seed
from pipeline.show import augmentation_sheet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", nargs="*", type=Path, metavar="IMAGE", help="image files; without one, a few of the train part"
    )
    parser.add_argument(
        "--views",
        type=int,
        help=f"views of each image; without, as many as an image has, at most {augmentation_sheet.VIEWS}",
    )
    parser.add_argument(
        "--size", type=int, default=224, help="pixels of a side, as the network takes it (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=Path("augmentation.png"), help="default: %(default)s")
    parser.epilog = "The views are those that head would train on at this size."


def main(arguments: argparse.Namespace) -> int:
    for name in ("views", "size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise BakeoffError(f"--{name} must be at least 1, received {value}")
    values = params.load()
    schema.check(values)
    with artifacts.whole_file(arguments.output) as temporary:
        augmentation_sheet.draw(
            [_example(file) for file in arguments.images] or augmentation_sheet.of_part(artifacts.read_part("train")),
            params.Params(values, values),
            size=arguments.size,
            seed=child_seed(values["seed"], "head"),
            title="What augmentation in params.yaml makes of images",
            path=temporary,
            views=arguments.views,
        )
    say(f"look at {arguments.output}")
    return 0


def _example(file: Path) -> augmentation_sheet.Example:
    if not file.is_file():
        raise BakeoffError(f"{file} is no file: name image files, or none for images of the train part")
    return augmentation_sheet.Example(file, artifacts.sha256_file(file), label="")
