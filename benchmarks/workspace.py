"""Copies of the project to measure in: its stages run there as a user runs them, on other parameters.

They lie in the git-ignored cache, hold a feature store of their own, and are made anew by the next benchmark.
"""

from __future__ import annotations

import compileall
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure
from pipeline.commands import demo
from pipeline.config import params_file
from pipeline.core import artifacts, params, provenance

BACKBONE = "efficientnet_lite0"
RIVALS = Path(__file__).resolve().parent / "rivals"


class Workspace:
    """A copy of the project's files, uncommitted ones included, in ``.cache/benchmarks/work/<name>``.

    ``compute.threads`` is the number of cores, which the rivals use as well. ``overrides`` are dotted keys of
    params.yaml; an unknown one raises ParamsError.
    """

    def __init__(self, name: str, overrides: Mapping[str, Any] | None = None):
        self.directory = measure.CACHE / "work" / name
        shutil.rmtree(self.directory, ignore_errors=True)
        demo.copy_project(provenance.ROOT, self.directory, leave_out=demo.RESULTS)
        self.override({"compute.threads": measure.cores(), **(overrides or {})})
        # A user's second run finds byte code; so does the first one here.
        compileall.compile_dir(self.directory / "pipeline", quiet=1)
        self.store = self.directory / "feature_store"
        self.environment = demo.environment() | {
            "BAKEOFF_FEATURE_STORE": str(self.store),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }

    def override(self, overrides: Mapping[str, Any]) -> None:
        """Replace values of params.yaml at dotted keys."""
        params_file.override(self.directory / params.PARAMS_FILE, overrides)

    def value(self, key: str) -> Any:
        """Return the value of params.yaml at a dotted key."""
        return params.lookup(params.load(self.directory / params.PARAMS_FILE), key)

    def prepare(self, *stages: Sequence[str]) -> None:
        """Run stages, not measured."""
        for stage in stages:
            measure.measure(self.job(f"preparing {' '.join(stage)}", stage))

    def prepare_images(self) -> None:
        """Run what comes before features and training: the images, their split, the pretrained network."""
        self.prepare(["dataset"], ["split"], ["backbone", "--backbone", BACKBONE])

    def images(self, part: str) -> int:
        """Return how many images a part of the split has."""
        rows = artifacts.read_csv(self.directory / artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS)
        return sum(row["split"] == part for row in rows)

    def job(
        self,
        name: str,
        stage: Sequence[str],
        *,
        before: Callable[[], None] = lambda: None,
        outputs: Sequence[str] = (),
    ) -> measure.Job:
        """Return a job that runs one stage; its ``outputs``, relative to the workspace, are removed ahead of it."""
        return self._job(name, [sys.executable, "-m", "pipeline", *stage], before, outputs)

    def rival(self, name: str, script: str, options: Sequence[Any], *, outputs: Sequence[str] = ()) -> measure.Job:
        """Return a job that runs a stand-alone script of ``benchmarks/rivals`` on the same split and network."""
        common = ("--split", artifacts.SPLIT, "--backbone", artifacts.BACKBONES / BACKBONE, "--out", "out")
        command = [sys.executable, RIVALS / script, *common, *options]
        return self._job(name, list(map(str, command)), lambda: None, outputs)

    def clear_store(self) -> None:
        """Forget every kept feature and activation, but not what the backbone stage left: the engine's networks."""
        for about in self.store.glob("*/space.json"):
            shutil.rmtree(about.parent)

    def _job(
        self, name: str, command: Sequence[str], before: Callable[[], None], outputs: Sequence[str]
    ) -> measure.Job:
        paths = [self.directory / output for output in outputs]

        def prepare() -> None:
            for path in paths:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            before()

        return measure.Job(name, command, self.directory, self.environment, prepare, paths)
