"""What head, fine_tune and scratch feed the part of a network that trains: kept rows of the frozen part, or pixels."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from pipeline.console.progress import progress, say
from pipeline.core import artifacts
from pipeline.core.params import Params
from pipeline.features import activations, inference
from pipeline.features.activations import View
from pipeline.images import augmentation, decode
from pipeline.images.test_time_augmentation import AskedViews
from pipeline.training import fitting

# Of decoded images that a network from scratch trains on, in every epoch anew.
DECODED_BYTES = 2**30


class Rows:
    """The tail's inputs: what the frozen part makes of an image or view. Use as a context manager.

    ``about``: what of the network is frozen, which engine computed it, and which views were asked about, ``asked``.
    """

    def __init__(self, part: activations.FrozenPart, params: Params, *, seed: int):
        self._augmentation = params.block("augmentation", augmentation.AugmentationParams)
        self.asked = AskedViews.of(self._augmentation, seed=seed)
        self._activations = activations.Activations(
            part,
            compute=params.block("compute", inference.ComputeParams),
            image_params=params.block("images", decode.ImageParams),
            augmentation=self._augmentation,
            seed=seed,
        )
        self.about = self._activations.identity | {"width": self._activations.width} | self.asked.about()

    def __enter__(self) -> Rows:
        self._activations.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._activations.__exit__(*exception)

    def examples(self, train: artifacts.Part, validation: artifacts.Part, *, epochs: int) -> fitting.Examples:
        views = self._augmentation.views or epochs
        originals = activations.originals(validation)
        drawn = [_view(train, row, number) for row in range(len(train)) for number in range(min(views, epochs))]
        self._keep(drawn, label=f"frozen part of {min(views, epochs)} views of {len(train)} training images")
        self._keep(originals, label=f"frozen part of {len(validation)} validation images")
        return fitting.Examples(
            train.labels,
            lambda rows, epoch: self._activations.rows([_view(train, row, epoch % views) for row in rows]),
            validation.labels,
            lambda rows: self._activations.rows([originals[row] for row in rows]),
        )

    def predict(self, tail: inference.FrozenNetwork, part: artifacts.Part) -> np.ndarray:
        """Return class probabilities of one part, float32 (n_images, classes), in manifest order."""
        numbers = self.asked.numbers
        views = [_view(part, row, number) for row in range(len(part)) for number in numbers]
        each = f" and of {len(numbers) - 1} views of each" if len(numbers) > 1 else ""
        self._keep(views, label=f"frozen part of {len(part)} {part.name} images{each}")
        return self.asked.mean(np.concatenate([tail.run(rows) for rows in self._activations.stream(views)]))

    def _keep(self, views: Sequence[View], *, label: str) -> None:
        computed = self._activations.keep(views, label=label)
        if computed is not None:
            say(f"{label}: {computed} computed, {len(set(views)) - computed} known")


class Pixels:
    """A network's inputs where nothing is frozen: the images themselves, a new view in every epoch.

    ``about``, ``asked``: as of `Rows`.
    """

    def __init__(self, size: int, params: Params, *, seed: int):
        self._compute = params.block("compute", inference.ComputeParams)
        self._augmentation = params.block("augmentation", augmentation.AugmentationParams)
        self.asked = AskedViews.of(self._augmentation, seed=seed)
        self._seed = seed
        load = functools.partial(decode.load, size=size, params=params.block("images", decode.ImageParams))
        self._load = functools.lru_cache(maxsize=DECODED_BYTES // (3 * size * size))(load)
        self.about = {
            "tensors": [],
            "engine": inference.chosen_engine(self._compute.engine),
            "precision": self._compute.in_float32().precision,
            **self.asked.about(),
        }

    def examples(self, train: artifacts.Part, validation: artifacts.Part, *, epochs: int) -> fitting.Examples:
        def view(row: int, number: int) -> np.ndarray:
            return augmentation.augment(
                self._load(train.files[row]),
                seed=self._seed,
                sha256=train.sha256[row],
                view=number,
                params=self._augmentation,
            )

        return fitting.Examples(
            train.labels,
            lambda rows, epoch: np.stack([view(row, epoch) for row in rows]),
            validation.labels,
            lambda rows: np.stack([self._load(validation.files[row]) for row in rows]),
        )

    def predict(self, tail: inference.FrozenNetwork, part: artifacts.Part) -> np.ndarray:
        """Return class probabilities of one part, float32 (n_images, classes), in manifest order."""
        size = max(1, self._compute.batch_size // len(self.asked.numbers))
        batches = decode.batches(
            part.files,
            lambda file: self.asked.pixels(self._load(file), file),
            batch_size=size,
            threads=self._compute.threads,
        )
        outputs = progress(
            tail.map(batches), total=-(-len(part) // size), label=f"predicting {part.name}", unit="batches"
        )
        return self.asked.mean(np.concatenate(list(outputs)))


def _view(part: artifacts.Part, row: int, number: int | None) -> View:
    return View(part.files[row], part.sha256[row], number)
