"""Fine-tuning the last third of the blocks, the same epochs against `model.fit` end to end.

python -m benchmarks.fine_tune [--json FILE] [--repeats 5] [--images 440]

Both start from the same trained head, whose training is not measured. Epochs, learning rate and views are those of
params.yaml. What a subset does to the ratio: see `benchmarks.head`.
"""

from __future__ import annotations

import sys

from benchmarks import fits, measure, rows
from benchmarks.workspace import BACKBONE, Workspace
from pipeline.core import params

BLOCKS = 5  # of 16
STAGE = ("fine_tune", "--backbone", BACKBONE)
HEAD = f"results/runs/{BACKBONE}-head"
OUTPUT = f"results/runs/{BACKBONE}-fine_tune"


def main(arguments: list[str] | None = None) -> None:
    options = fits.parser(__doc__).parse_args(arguments)
    epochs = params.lookup(params.load(), "fine_tune.epochs")
    overrides = {
        "head.epochs": 2,
        "fine_tune.early_stopping.patience": epochs,
        "fine_tune.unfreeze": {"from_layer": None, "last_layers": None, "last_blocks": BLOCKS},
    }
    few = Workspace("fine_tune-few", {"dataset.limit": fits.FEW, **overrides})
    many = Workspace("fine_tune", {"dataset.limit": options.images, **overrides})
    views = many.value("augmentation.views")
    jobs = []
    for place, suffix in ((many, ""), (few, fits.ON_FEW)):
        place.prepare_images()
        place.prepare(["head", "--backbone", BACKBONE])
        start = ("--head", HEAD, "--last-blocks", BLOCKS)
        rival_options = (*fits.rival_options(place, "fine_tune"), *start)
        jobs.append(place.job(f"ours{suffix}", STAGE, before=place.clear_store, outputs=[OUTPUT]))
        jobs.append(place.rival(f"Keras{suffix}", "fit.py", rival_options, outputs=fits.RIVAL_OUTPUTS))
    runs = measure.alternate(jobs, repeats=options.repeats, journal=measure.Journal.beside(options.json))
    sizes = fits.Sizes(few=few.images("train"), many=many.images("train"))
    text = (
        f"fine-tuning the last {BLOCKS} of 16 blocks, {epochs} epochs, {sizes.many} training images, "
        f"{'fresh views every epoch' if views is None else f'{views} views an image'}: `model.fit`"
    )
    rows.report([fits.claim(text, runs, ours="ours", sizes=sizes, target=3)], options.json)


if __name__ == "__main__":
    sys.exit(measure.guarded(main))
