"""Which run a stage computes, and the input key that identifies the computation before its result exists.

The live log of a running stage and the later filling of MLflow from records must arrive at the same key, so both ask
here.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core import artifacts, params, provenance
from pipeline.core.params import Run


@dataclass(frozen=True)
class Inputs:
    """What a run is computed from: its stage, item and parameters, the files it reads, the modules it executes."""

    stage: str
    item: dict[str, str]
    params: dict[str, Any]
    paths: tuple[str, ...]
    modules: tuple[str, ...]

    def key(self, sha256: Callable[[Path], str] = artifacts.sha256_path) -> str:
        """Return the input key. Raises ArtifactError if a file is missing.

        ``sha256`` digests a path; runs share many inputs, so a caller with several runs passes `remembering()`.
        """
        files = {path: sha256(Path(path)) for path in self.paths}
        return provenance.digest([self.stage, self.item, self.params, files, provenance.code_digest(self.modules)])


def remembering() -> Callable[[Path], str]:
    """Return a digest function that reads every path once, for as long as the function is kept."""
    return functools.cache(artifacts.sha256_path)


def item_of(run: Run) -> dict[str, str]:
    """Return the matrix item, as the command line and the templates of the stage's contract name it."""
    if run.stage == "sweep":
        return {"backbone": run.network, "classifier": run.method}
    if run.stage == "scratch":
        return {"network": run.network}
    return {"backbone": run.network}


def run_of(stage: str, item: Mapping[str, str], values: Mapping[str, Any]) -> Run | None:
    """Return the declared run that a stage and item compute, or None if that stage ends in no run."""
    runs = params.declared_runs(values)
    return next((run for run in runs if run.stage == stage and item_of(run) == dict(item)), None)


def inputs_of(run: Run, values: Mapping[str, Any]) -> Inputs:
    """Return what a declared run is computed from, under the parameters ``values``."""
    # By name, so that no stage's import closure contains another stage.
    module = importlib.import_module(f"pipeline.stages.{run.stage}")
    item = item_of(run)
    modules = [module.__name__]
    if run.stage == "sweep":
        modules.append(f"pipeline.classifiers.families.{run.method}")
    keys = provenance.resolve(module.READS, item=item, values=values)
    return Inputs(
        stage=run.stage,
        item=item,
        params={key: params.lookup(values, key) for key in keys},
        paths=tuple(provenance.resolve(module.INPUTS, item=item, values=values)),
        modules=tuple(modules),
    )
