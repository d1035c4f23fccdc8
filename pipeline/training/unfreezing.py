"""Which layers of a pretrained network fine-tuning trains, from when on, and how fast.

Lower layers hold what is general and may change less (discriminative learning rates), and later (gradual unfreezing).
Source: Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification".
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.core.params import Block
from pipeline.networks.graphs import NetworkSpec
from pipeline.training.fitting import FitParams, Positive, TrainingError
from pipeline.training.optimizers import Pace

if TYPE_CHECKING:
    import keras


FIRST_LAYERS = "first layers"  # what comes before the first block


class UnfreezeParams(Block):
    """The first layer that trains, with all that come after it.

    ``from_layer``: its name. ``last_layers``: the last N that have weights. ``last_blocks``: the last N blocks; all:
    everything, also what comes before the first block.
    """

    from_layer: str | None
    last_layers: Positive | None
    last_blocks: int | Literal["all"] | None

    @field_validator("last_blocks", mode="plain")
    @classmethod
    def _count_or_all(cls, value: Any) -> int | Literal["all"] | None:
        if value is None or value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
            return value
        raise ValueError("an integer of at least 1, all or null")

    @model_validator(mode="after")
    def _one_of_three(self) -> UnfreezeParams:
        given = [value for value in (self.from_layer, self.last_layers, self.last_blocks) if value is not None]
        if len(given) != 1:
            raise ValueError("exactly one of from_layer, last_layers and last_blocks (the others null)")
        return self


class GradualParams(Block):
    """Of what is unfrozen the last block trains from the start, and one more every ``epochs`` epochs.

    Early stopping waits until all of them train: its patience counts from the epoch in which the first block joins.
    An epoch without improvement before that says nothing of the blocks that have not trained yet. The best epoch is
    kept as always, also if it came earlier: `fitting.Fit.untrained` names the blocks that are then as they were.
    """

    epochs: Positive


class FineTuneParams(FitParams):
    """Continue from the trained head with the end of the network unfrozen.

    ``layer_decay``: the learning rate of a block, relative to that of the block after it; after the last one comes the
    head, at the whole rate. ``gradual``: None if all that is unfrozen trains from the start.
    """

    unfreeze: UnfreezeParams
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    gradual: GradualParams | None


def first_layer(model: keras.Model, spec: NetworkSpec, params: UnfreezeParams) -> str:
    """Return the name of the first layer to train of the trunk under a head.

    Raises TrainingError if the network has fewer blocks, or layers with weights, than are to train.
    """
    layers = _trunk(model).layers
    if params.from_layer is not None:
        return params.from_layer
    if params.last_blocks == "all":
        return layers[0].name
    if params.last_layers is not None:
        found, what, count = [layer.name for layer in layers if layer.weights], "layers", params.last_layers
    else:
        found, what, count = [block.first_layer for block in spec.blocks], "blocks", params.last_blocks
    if count > len(found):
        with_weights = " with weights" if what == "layers" else ""
        raise TrainingError(
            f"fine_tune.unfreeze.last_{what} must be at most {len(found)}, the {what}{with_weights} of {spec.name}, "
            f"received {count}"
        )
    return found[-count]


def unfreeze(model: keras.Model, *, first_layer: str) -> tuple[int, int]:
    """Make ``first_layer`` and every later layer of the trunk under a head trainable, and freeze the others.

    Returns how many of the trunk's layers train, and how many there are. Raises TrainingError for an unknown layer.
    """
    trunk = _trunk(model)
    names = [layer.name for layer in trunk.layers]
    if first_layer not in names:
        raise TrainingError(
            f"{trunk.name} has no layer {first_layer!r} to unfreeze from. Its layers: {', '.join(names)}"
        )
    start = names.index(first_layer)
    trunk.trainable = True
    for layer in trunk.layers[:start]:
        layer.trainable = False
    return len(names) - start, len(names)


def paces(model: keras.Model, spec: NetworkSpec, params: FineTuneParams) -> list[Pace]:
    """Return how fast and from when on each unfrozen block trains, the last block first; none if all do alike.

    Raises TrainingError if the epochs end before a block's turn comes.
    """
    if params.layer_decay == 1 and params.gradual is None:
        return []
    blocks = _unfrozen_blocks(model, spec)
    check_turns(len(blocks), params)
    wait = params.gradual.epochs if params.gradual else 0
    return [
        Pace(
            name=name,
            variables=[variable for layer in block for variable in layer.trainable_weights],
            rate=params.layer_decay ** (place + 1),
            first_epoch=place * wait,
        )
        for place, (name, block) in enumerate(blocks)
    ]


def check_turns(blocks: int, params: FineTuneParams) -> None:
    """Raise TrainingError if gradual unfreezing of so many blocks does not come to the first one."""
    if params.gradual and (blocks - 1) * params.gradual.epochs >= params.epochs:
        raise TrainingError(
            f"fine_tune.gradual.epochs: of {blocks} blocks, one more every {params.gradual.epochs} epochs, the last "
            f"would begin in epoch {(blocks - 1) * params.gradual.epochs + 1}, but fine_tune.epochs is {params.epochs}"
        )


def _unfrozen_blocks(model: keras.Model, spec: NetworkSpec) -> list[tuple[str, Sequence[keras.Layer]]]:
    """Return name and layers of the blocks that train, from the last; what comes before the first block is one, too."""
    layers = _trunk(model).layers
    names = [layer.name for layer in layers]
    starts = {0: FIRST_LAYERS} | {names.index(block.first_layer): block.name for block in spec.blocks}
    blocks = [
        (starts[start], [layer for layer in layers[start:end] if layer.trainable_weights])
        for start, end in itertools.pairwise([*sorted(starts), None])
    ]
    return [(name, block) for name, block in reversed(blocks) if block]


def _trunk(model: keras.Model) -> keras.Model:
    return next(layer for layer in model.layers if hasattr(layer, "layers"))
