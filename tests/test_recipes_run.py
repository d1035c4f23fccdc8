"""Every recipe of docs/recipes.md, shortened, through every stage: few real images, random weights, one epoch."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import artifacts, params, provenance, recipes, schema
from pipeline.progress import NoLog

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RECIPES = recipes.read(provenance.ROOT / recipes.PAGE)
# These need the size of the network's original top.
FULL_SIZE = {"imagenet-top5", "vgg16-fc2"}
OFFLINE = {"efficientnet_lite0"}
SIZE, SIZE_OF_A_VARIANT = 75, 96
IMAGES = 64


def shortened(recipe: recipes.Recipe, values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return params.yaml with the recipe, for few images and little training; what the recipe is about stays."""
    values = params.replaced(values, recipes.replacements(recipe, values))
    if values["dataset"]["source"] == "elpv":
        values["dataset"]["limit"] = IMAGES
    else:
        fill_with_digits(folder)
        values["dataset"] |= {"source": "folder", "path": str(folder), "allow_untracked": True}
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
        values[stage]["epochs"] = 2 if values[stage].get("gradual") else 1
    if values["fine_tune"]["gradual"]:
        values["fine_tune"]["gradual"]["epochs"] = 1
    return values


def fill_with_digits(folder: Path) -> None:
    """Write real images of ten classes: scikit-learn's digits, 8 of each, 32 x 32."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for index in np.flatnonzero(digits.target == label)[:8]:
            pixels = Image.fromarray((digits.images[index] * 15.9).astype(np.uint8))
            pixels.resize((32, 32)).save(folder / str(label) / f"{index}.png")


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
    short = shortened(RECIPES[name], values, tmp_path / "images")
    schema.check(short)
    for stage, item in stages(short):
        module = importlib.import_module(f"pipeline.stages.{stage}")
        schema.check_against_results(short, split=artifacts.MANIFEST.exists())
        reads = provenance.resolve(module.READS, item=item, values=short)
        module.main(params.Params(short, reads), log=NoLog(), **item)
        for output in provenance.resolve(module.OUTPUTS, item=item, values=short):
            assert Path(output).exists(), f"{stage} {item}: {output}"
    board = artifacts.read_json(artifacts.RESULTS / "leaderboard.json")
    assert {entry["run"] for entry in board} == {run.name for run in params.declared_runs(short)}
    assert all(np.isfinite(entry["validation"]["accuracy"]["value"]) for entry in board)
