"""Every recipe of docs/recipes.md, shortened, through every stage: few images, random weights, one epoch.

The images are ELPV's; of the data sets of the courses, noise in archives as they are published.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import params_file, recipes, schema
from pipeline.console.progress import NoLog
from pipeline.core import artifacts, params, provenance
from pipeline.data.sources import keras_datasets
from tests.data.test_keras_datasets import EACH, publish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RECIPES = recipes.read(provenance.ROOT / recipes.PAGE)
# These need the size of the network's original top.
FULL_SIZE = {"imagenet-top5", "vgg16-fc2"}
OFFLINE = {"efficientnet_lite0"}
SIZE, SIZE_OF_A_VARIANT = 75, 96
IMAGES = 64


def shortened(recipe: recipes.Recipe, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return params.yaml with the recipe, for few images and little training; what the recipe is about stays."""
    values = params_file.replaced(values, recipes.replacements(recipe, values))
    if values["dataset"]["source"] == "elpv":
        values["dataset"]["limit"] = IMAGES
    values["augmentation"]["views"] = 1
    values["compare"]["bootstrap_samples"] = 100
    block = values["backbone"]
    networks = {block["variants"].get(name, {"network": name})["network"] for name in values["backbones"]}
    block["weights"] = "imagenet" if networks <= OFFLINE else "random"
    if recipe.name not in FULL_SIZE:
        block["input_size"] = min(block["input_size"] or SIZE, SIZE)
        for variant in block["variants"].values():
            variant |= {"input_size": SIZE_OF_A_VARIANT} if "input_size" in variant else {}
    for family in values["classifiers"].values():
        family["grid"] = {name: choices[:1] for name, choices in family["grid"].items()}
        family |= {name: few for name, few in (("trees", 4), ("patience", 2)) if name in family}
    for stage in ("head", "fine_tune", "scratch"):
        values[stage]["epochs"] = 1
    if values["fine_tune"]["gradual"]:
        values["fine_tune"]["gradual"]["epochs"] = 1
        values["fine_tune"]["epochs"] = values["fine_tune"]["unfreeze"]["last_blocks"]  # another one in each epoch
    return values


def stages(values: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield every stage but `track`, with its item, in the order of `dvc repro`."""
    yield from (("dataset", {}), ("split", {}))
    for backbone in values["backbones"]:
        yield from ((stage, {"backbone": backbone}) for stage in ("backbone", "features", "as_is"))
        yield from (("sweep", {"backbone": backbone, "classifier": family}) for family in values["classifiers"])
    for stage in ("head", "fine_tune"):
        yield from ((stage, {"backbone": backbone}) for backbone in values[stage]["backbones"])
    yield from (("scratch", {"network": network}) for network in values["scratch"]["networks"])
    yield ("compare", {})
    yield from (("explain", {"run": run}) for run in values["explain"]["runs"])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs(name, values, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BAKEOFF_FEATURE_STORE", str(tmp_path / "store"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "elpv.json").write_bytes((root / "data" / "elpv.json").read_bytes())
    short = shortened(RECIPES[name], values)
    schema.check(short)
    source = short["dataset"]["source"]
    if source in keras_datasets.SETS:
        monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
        publish(tmp_path / "keras", source)
        Path(f"{source}.json").rename(short["dataset"]["path"])
    for stage, item in stages(short):
        module = importlib.import_module(f"pipeline.stages.{stage}")
        schema.check_against_results(short, split=artifacts.MANIFEST.exists())
        reads = provenance.resolve(module.READS, item=item, values=short)
        module.main(params.Params(short, reads), log=NoLog(), **item)
        for output in provenance.resolve(module.OUTPUTS, item=item, values=short):
            assert Path(output).exists(), f"{stage} {item}: {output}"
    if source in keras_datasets.SETS:  # the published test part, and of the rest the share that the recipe asks for
        sizes = Counter(row["split"] for row in artifacts.read_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS))
        test, rest = 10 * EACH["test"], 10 * EACH["train"]
        assert sizes["test"] == test and all("test/" in path for path in artifacts.read_part("test").paths)
        assert sizes["validation"] == pytest.approx(rest * short["split"]["validation"], abs=1)
        assert sizes["train"] == rest - sizes["validation"]
    board = artifacts.read_json(artifacts.RESULTS / "leaderboard.json")
    assert {entry["run"] for entry in board} == {run.name for run in params.declared_runs(short)}
    assert all(np.isfinite(entry["validation"]["accuracy"]["value"]) for entry in board)
