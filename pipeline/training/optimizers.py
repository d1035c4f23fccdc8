"""Optimizers by name, at one learning rate or at rates of their own for parts of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pipeline.core.params import Block

if TYPE_CHECKING:
    import keras

Share = Annotated[float, Field(ge=0, lt=1)]


class AdamParams(Block):
    """Adam (Kingma and Ba 2015)."""

    name: Literal["adam"]


class AdamWParams(Block):
    """Adam that besides draws every weight toward 0, by ``weight_decay`` times the learning rate a step.

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".
    """

    name: Literal["adamw"]
    weight_decay: Annotated[float, Field(ge=0, le=1)]


class RMSpropParams(Block):
    """RMSprop (Hinton 2012), with ``momentum`` of the steps."""

    name: Literal["rmsprop"]
    momentum: Share


class SGDParams(Block):
    """Stochastic gradient descent with ``momentum``, plain or Nesterov's."""

    name: Literal["sgd"]
    momentum: Share
    nesterov: bool


OptimizerParams = Annotated[AdamParams | AdamWParams | RMSpropParams | SGDParams, Field(discriminator="name")]


@dataclass(frozen=True)
class Pace:
    """Variables that train at ``rate`` times the learning rate, from an epoch on; epochs count from 0.

    ``name``: of what the variables are, such as a block of a network.
    """

    name: str
    variables: Sequence[keras.Variable]
    rate: float
    first_epoch: int


def build(
    params: OptimizerParams, *, learning_rate: float, paces: Sequence[Pace] = (), steps: int = 1
) -> keras.optimizers.Optimizer:
    """Return the optimizer; variables that are in no pace train at the learning rate itself, from the start.

    ``steps``: of an epoch. A variable whose epoch has not come is not touched, and neither is what the optimizer keeps
    of its gradients; when it comes, the optimizer begins with it as with the others at their first step.
    """
    import keras

    kinds = {
        "adam": keras.optimizers.Adam,
        "adamw": keras.optimizers.AdamW,
        "rmsprop": keras.optimizers.RMSprop,
        "sgd": keras.optimizers.SGD,
    }
    settings = params.model_dump(exclude={"name"})
    if not paces:
        return kinds[params.name](learning_rate, **settings)
    if params.name == "adamw":  # which decays every weight at the same rate; see _paced
        return _paced(keras.optimizers.Adam, paces, steps, weight_decay=settings["weight_decay"])(learning_rate)
    return _paced(kinds[params.name], paces, steps)(learning_rate, **settings)


def _paced(kind: type, paces: Sequence[Pace], steps: int, *, weight_decay: float | None = None) -> type:
    """Return an optimizer of ``kind`` that takes each variable's step at the rate of its pace.

    The rate goes into the step and not into the gradient, to whose scale Adam and RMSprop are blind.
    """
    import keras

    by_variable = {id(variable): pace for pace in paces for variable in pace.variables}
    whole = Pace("", (), rate=1.0, first_epoch=0)
    pace_of: list[Pace] = []

    class Paced(kind):
        _first_step = 0

        @property
        def iterations(self) -> Any:
            """Steps since the variable that is being updated began to train: Adam corrects its means by them."""
            return super().iterations - self._first_step if self._first_step else super().iterations

        def build(self, variables: list[keras.Variable]) -> None:
            super().build(variables)
            pace_of[:] = [by_variable.get(id(variable), whole) for variable in variables]

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            pace = pace_of[self._get_variable_index(variable)]
            step = super().update_step

            def train() -> None:
                rate = keras.ops.cast(learning_rate, variable.dtype) * pace.rate
                self._first_step = pace.first_epoch * steps
                if weight_decay is not None:
                    self.assign_sub(variable, variable * weight_decay * rate)
                step(gradient, variable, rate)
                self._first_step = 0

            if pace.first_epoch:
                keras.ops.cond(self.iterations >= pace.first_epoch * steps, train, lambda: None)
            else:
                train()

    return Paced
