"""The pretrained networks by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pipeline.backbones import efficientnet_lite
from pipeline.networks import NetworkSpec
from pipeline.params import Block

if TYPE_CHECKING:
    import keras


class BackboneParams(Block):
    """``backbone`` in params.yaml. ``weights``: imagenet, random, or the path of a file of weights."""

    weights: str


@dataclass(frozen=True)
class Backbone:
    """A pretrained network with its own preprocessing.

    ``preprocess``: raw pixels in 0..255, any shape, to what the first layer of the graph makes of them, float32.
    ``build(weights=..., seed=...)``: returns the Keras network, which takes raw pixels, and its spec.
    """

    preprocess: Callable[[np.ndarray], np.ndarray]
    build: Callable[..., tuple[keras.Model, NetworkSpec]]


BACKBONES = {
    "efficientnet_lite0": Backbone(
        preprocess=efficientnet_lite.preprocess,
        build=partial(efficientnet_lite.build, efficientnet_lite.LITE0),
    ),
}
