"""A new head on the frozen network with augmentation: 16 epochs against `model.fit` end to end.

python -m benchmarks.head [--json FILE] [--repeats 5] [--images 440]

A subset keeps a run of the rival at a few minutes. It flatters the rival: our start-up, which does not grow with the
images, weighs more in it. Runs on still fewer images tell start-up from the rest, and so what all images would take.
"""

from __future__ import annotations

import sys

from benchmarks import fits, measure, rows
from benchmarks.workspace import BACKBONE, Workspace

EPOCHS = 16
VIEWS = 4
STAGE = ("head", "--backbone", BACKBONE)
OUTPUT = f"results/runs/{BACKBONE}-head"


def main(arguments: list[str] | None = None) -> None:
    options = fits.parser(__doc__).parse_args(arguments)
    overrides = {"head.epochs": EPOCHS, "head.early_stopping.patience": EPOCHS}
    few = Workspace("head-few", {"dataset.limit": fits.FEW, **overrides})
    many = Workspace("head", {"dataset.limit": options.images, **overrides})
    jobs = []
    for place, suffix in ((many, ""), (few, fits.ON_FEW)):
        place.prepare_images()
        jobs.append(train(f"ours, {VIEWS} views{suffix}", place, views=VIEWS))
        jobs.append(train(f"ours, fresh views{suffix}", place, views=None))
        rival_options = fits.rival_options(place, "head")
        jobs.append(place.rival(f"Keras{suffix}", "fit.py", rival_options, outputs=fits.RIVAL_OUTPUTS))
    runs = measure.alternate(jobs, repeats=options.repeats, journal=measure.Journal.beside(options.json))
    sizes = fits.Sizes(few=few.images("train"), many=many.images("train"))
    claims = [
        fits.claim(
            f"head training with augmentation, {EPOCHS} epochs, {what}, {sizes.many} training images: `model.fit`",
            runs,
            ours=name,
            sizes=sizes,
            target=target,
        )
        for what, name, target in (
            (f"{VIEWS} views an image", f"ours, {VIEWS} views", 8),
            ("fresh views every epoch", "ours, fresh views", 3),
        )
    ]
    rows.report(claims, options.json)


def train(name: str, place: Workspace, *, views: int | None) -> measure.Job:
    """Return the head stage with nothing kept from before."""

    def before() -> None:
        place.override({"augmentation.views": views})
        place.clear_store()

    return place.job(name, STAGE, before=before, outputs=[OUTPUT])


if __name__ == "__main__":
    sys.exit(measure.guarded(main))
