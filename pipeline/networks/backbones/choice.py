"""``backbone`` in params.yaml: which network a name stands for, and how it is to be built."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import pydantic

from pipeline.core.params import Block, ParamsError, unknown_key
from pipeline.networks.backbones.table import BACKBONES
from pipeline.networks.graphs import NetworkSpec, Preprocess

if TYPE_CHECKING:
    import keras

InputSize = Annotated[int, pydantic.Field(ge=32, le=4096)]


class VariantParams(Block):
    """One of ``backbone.variants``: a network of the table, and what differs; the rest is as in ``backbone``."""

    network: str
    weights: str = ""
    input_size: InputSize | None = None
    preprocess: Preprocess = "backbone"

    @pydantic.field_validator("network")
    @classmethod
    def _in_the_table(cls, network: str) -> str:
        if network not in BACKBONES:
            near = difflib.get_close_matches(network, BACKBONES, n=3)
            raise ValueError(f"one of {', '.join(near or sorted(BACKBONES))}")
        return network


class BackboneParams(Block):
    """``backbone`` in params.yaml, for every network that is listed.

    ``weights``: imagenet, random, or the path of a file of weights. ``input_size``: None is the network's own.
    ``preprocess``: what the network is fed; anything but ``backbone`` is an ablation.
    ``variants``: further names for the lists of networks.
    """

    weights: str
    input_size: InputSize | None
    preprocess: Preprocess
    variants: dict[str, VariantParams]

    @pydantic.field_validator("variants")
    @classmethod
    def _names_of_their_own(cls, variants: dict[str, VariantParams]) -> dict[str, VariantParams]:
        for name in variants:
            # It becomes the name of directories, of runs (NAME-METHOD) and of DVC's stages.
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"named by lower-case letters, digits and underscores, and not {name!r}")
            if name in BACKBONES:
                raise ValueError(f"called otherwise than a network: {name!r} is one")
        return variants


class Choice(NamedTuple):
    """What one name in a list of networks stands for."""

    network: str
    weights: str
    input_size: int | None
    preprocess: Preprocess


def resolve(name: str, block: BackboneParams) -> Choice:
    """Return what ``name``, of a network or of a variant, stands for. Raises ParamsError for another name."""
    common: dict[str, Any] = {"weights": block.weights, "input_size": block.input_size, "preprocess": block.preprocess}
    if name in BACKBONES:
        return Choice(name, **common)
    if name not in block.variants:
        raise ParamsError(unknown_key(name, [*BACKBONES, *block.variants], where="backbones").replace("key ", ""))
    differs = block.variants[name].model_dump(exclude_unset=True)
    return Choice(**common | differs)


def check(names: Sequence[str], block: BackboneParams) -> None:
    """Raise ParamsError if one of the listed networks cannot be what the block says."""
    chosen = {name: resolve(name, block) for name in names}
    for name, one in chosen.items():
        problem = BACKBONES[one.network].problem(input_size=one.input_size, preprocess=one.preprocess)
        if problem:
            key, message = problem
            where = f"variants.{name}.{key}" if name in block.variants and _says(block, name, key) else key
            raise ParamsError(f"params.yaml: backbone.{where} {message}")
    of_file: dict[str, str] = {}
    for one in chosen.values():
        other = of_file.setdefault(one.weights, one.network)
        if one.weights not in ("imagenet", "random") and other != one.network:
            raise ParamsError(
                f"params.yaml: backbone.weights: {one.weights} cannot be of {other} and of {one.network}. List one of "
                "them, or give each its own file through backbone.variants"
            )


def build(name: str, block: BackboneParams, *, seed: int) -> tuple[keras.Model, NetworkSpec]:
    """Return the network that ``name`` stands for, and its spec, as `Backbone.build` does."""
    one = resolve(name, block)
    return BACKBONES[one.network].build(
        weights=one.weights, seed=seed, name=name, input_size=one.input_size, preprocess=one.preprocess
    )


def _says(block: BackboneParams, variant: str, key: str) -> bool:
    return key in block.variants[variant].model_fields_set
