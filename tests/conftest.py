"""What several test modules share: the project's root, its stages as DVC resolves them, and clones of it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.commands import demo
from pipeline.config import params_file
from pipeline.core import params, provenance


def pytest_configure() -> None:
    """Let Ctrl-C reach what tests start: a shell has what it starts in the background ignore it, and so its children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Say which tests pytest-xdist must keep in one process: those of the finished clone, and those of a module."""
    item.add_marker(pytest.mark.xdist_group("finished" if _needs_finished(item) else item.path.stem))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the tests of the finished clone, for which others wait; end with those that take longest by far."""
    items.sort(key=lambda item: _LAST.index(item.path.stem) if _takes_longest(item) else -_needs_finished(item) - 1)


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml with its matrix item filled in."""

    name: str
    module: str
    item: Mapping[str, str]
    deps: frozenset[str]
    params: frozenset[str]
    outs: frozenset[str]

    def __str__(self) -> str:
        return self.name


@pytest.fixture(scope="session")
def root() -> Path:
    return provenance.ROOT


@pytest.fixture(scope="session")
def values(root: Path) -> dict[str, Any]:
    """The committed params.yaml."""
    return params.load(root / params.PARAMS_FILE)


@pytest.fixture(scope="session")
def stages(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Stage]:
    """Every stage of dvc.yaml as DVC resolves it, read in a place that needs no git."""
    from dvc.repo import Repo

    place = tmp_path_factory.mktemp("stages")
    (place / ".dvc").mkdir()
    (place / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n", encoding="utf-8")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(root / name, place / name)
    with Repo(str(place)) as repo:
        return [_stage(stage) for stage in repo.index.stages]


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Environment variables for commands that tests start, without those of the `make` and the git around them."""
    foreign = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON", "GPU")
    return {name: value for name, value in demo.environment().items() if name not in foreign}


@pytest.fixture
def clone(root: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a committed clone of the project, with values of params.yaml replaced."""
    if not (root / ".git").exists():
        pytest.skip("needs a git clone of the project")

    def make(overrides: Mapping[str, Any] | None = None, leave_out: tuple[str, ...] = ()) -> Path:
        destination = tmp_path / "clone"
        demo.copy_project(root, destination, leave_out=leave_out)
        params_file.override(destination / params.PARAMS_FILE, overrides or {})
        demo.commit(destination, "Clone")
        return destination

    return make


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store with MLflow's tables and nothing in them: its migrations take seconds."""
    from mlflow import MlflowClient

    from pipeline import tracking

    tracking.store.quiet()
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="module")
def keras() -> ModuleType:
    """Keras, seeded and on two threads as a stage that trains sets it up, once for each module of tests."""
    from pipeline.training import fitting

    fitting.prepare(threads=2, seed=0)
    import keras

    return keras


@pytest.fixture(scope="module")
def digits() -> Any:
    """Small images of two classes, as ``fitting.Examples``."""
    from tests import small_networks

    return small_networks.digits()


@pytest.fixture(scope="session")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which `dvc repro` has run, on few images."""
    from tests.whole.test_pipeline import prepare, run

    if not (root / ".git").exists():
        pytest.skip("needs a git clone of the project")
    destination = tmp_path_factory.mktemp("pipeline") / "a clone"
    prepare(root, destination)
    run(destination, "dvc", "repro")
    return destination


# Their slow tests take more than half an hour each.
_LAST = ("test_kill_campaign", "test_backbone_table")


def _takes_longest(item: pytest.Item) -> bool:
    return item.path.stem in _LAST and item.get_closest_marker("slow") is not None


def _needs_finished(item: pytest.Item) -> bool:
    return "finished" in getattr(item, "fixturenames", ())


def _stage(stage: Any) -> Stage:
    from dvc.dependency import ParamsDependency

    command = shlex.split(stage.cmd)
    if command[:3] != ["python", "-m", "pipeline"] or len(command) % 2:
        raise ValueError(f"dvc.yaml: {stage.name}: expected `python -m pipeline STAGE --ITEM NAME ...`: {stage.cmd}")
    items = command[4:]
    keys = {key for dep in stage.deps if isinstance(dep, ParamsDependency) for key in dep.params}
    return Stage(
        name=stage.name,
        module=f"pipeline.stages.{command[3]}",
        item=dict(zip((name.removeprefix("--") for name in items[::2]), items[1::2], strict=True)),
        deps=frozenset(_place(dep) for dep in stage.deps if not isinstance(dep, ParamsDependency)),
        params=frozenset(keys),
        outs=frozenset(_place(out) for out in stage.outs),
    )


def _place(output: Any) -> str:
    return output.def_path.replace(os.sep, "/").rstrip("/")
