"""Replacing values of params.yaml: what the file says, and that every other character of it stays."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import params_file, recipes
from pipeline.core import params

CASES = {
    "a number, before a comment": (
        "seed: 0 # the seed\nlist: [a, b]\n",
        {"seed": 7},
        "seed: 7 # the seed\nlist: [a, b]\n",
    ),
    "a quoted text": ('fill: "#000000" # color\n', {"fill": "edge"}, "fill: edge # color\n"),
    "a text that needs quotes": ("fill: edge\n", {"fill": "#00ff00"}, "fill: '#00ff00'\n"),
    "a text that would be a number": ("name: a\n", {"name": "1.5"}, "name: '1.5'\n"),
    "한국어": ("path: a # 폴더\n", {"path": "사진/태양 전지"}, "path: 사진/태양 전지 # 폴더\n"),
    "null": ("limit: 200 # null keeps all\n", {"limit": None}, "limit: null # null keeps all\n"),
    "of null": ("limit: null # null keeps all\n", {"limit": 200}, "limit: 200 # null keeps all\n"),
    "no value at all": ("limit:\nseed: 0\n", {"limit": 200}, "limit: 200\nseed: 0\n"),
    "no value at all, before a comment": ("limit: # none\nseed: 0\n", {"limit": 200}, "limit: 200 # none\nseed: 0\n"),
    "a list in one line": (
        "units: [] # as [256, 64]\nseed: 0\n",
        {"units": [9, 3]},
        "units: [9, 3] # as [256, 64]\nseed: 0\n",
    ),
    "a block in one line": (
        "gradual: null # {epochs: 2}\n",
        {"gradual": {"epochs": 3}},
        "gradual: {epochs: 3} # {epochs: 2}\n",
    ),
    "a list in lines": (
        "head: # on it\n  backbones: # which\n    - lite0 # the small one\n\n  # Pooling:\n  pooling: avg\n",
        {"head.backbones": ["lite1", "lite2"]},
        "head: # on it\n  backbones: # which\n    - lite1\n    - lite2 # the small one\n\n  # Pooling:\n  pooling: avg\n",
    ),
    "a list in lines below its key": ("runs:\n- a\n- b\nseed: 0\n", {"runs": ["c"]}, "runs:\n- c\nseed: 0\n"),
    "a list in lines, emptied": (
        "runs: # which\n  - a\n  - b\n\n# Next:\nseed: 0\n",
        {"runs": []},
        "runs: [] # which\n\n# Next:\nseed: 0\n",
    ),
    "a list in lines, emptied, with a comment behind": (
        "runs:\n  - a\n  - b # the second\nseed: 0\n",
        {"runs": []},
        "runs: []\n  # the second\nseed: 0\n",
    ),
    "a list in lines, at the end of a file without line end": (
        "seed: 0\nruns:\n  - a",
        {"runs": []},
        "seed: 0\nruns: []\n",
    ),
    "a list in lines, of blocks": (
        "layers:\n  - fc1\nseed: 0\n",
        {"layers": ["fc2", {"layer": "x", "pooling": "max"}]},
        "layers:\n  - fc2\n  - {layer: x, pooling: max}\nseed: 0\n",
    ),
    "a block in lines": (
        "classifiers: # which\n  svm:\n    grid: # all\n      C: [1.0]\n\n# Next:\nseed: 0\n",
        {"classifiers": {"trees": {"grid": {"depth": [2, 3], "scale": [None]}}}},
        "classifiers: # which\n  trees:\n    grid:\n      depth: [2, 3]\n      scale: [null]\n\n# Next:\nseed: 0\n",
    ),
    "a block in lines by a list": ("a:\n  b: 1\nseed: 0\n", {"a": [1, 2]}, "a: [1, 2]\nseed: 0\n"),
    "a list below its key by a block": ("a:\n- 1\nseed: 0\n", {"a": {"b": 1}}, "a: {b: 1}\nseed: 0\n"),
    "one after another": ("a: {b: 1}\nc: 2\n", {"a.b": 3, "c": [1], "a": {"d": 0}}, "a: {d: 0}\nc: [1]\n"),
}


def test_each_case_is_what_it_says(tmp_path):
    for name, (before, overrides, after) in CASES.items():
        path = tmp_path / "params.yaml"
        path.write_text(before, encoding="utf-8")
        params_file.override(path, overrides)
        assert path.read_text(encoding="utf-8") == after, name
        assert yaml.safe_load(after) == params_file.replaced(yaml.safe_load(before), overrides), name


def comments(text: str) -> list[str]:
    """Return what follows the marks of comments, those inside of ``classifiers`` left out."""
    outside = re.sub(r"(?ms)^classifiers:.*?\n\n", "", text)
    return re.findall(r"(?m)(?:^|\s)# (.*)$", outside)


@pytest.fixture(scope="module")
def committed(root: Path) -> str:
    return (root / params.PARAMS_FILE).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", recipes.read())
def test_a_recipe_takes_no_comment_and_no_blank_line_along(committed, tmp_path, name):
    values = yaml.safe_load(committed)
    changes = recipes.replacements(recipes.read()[name], values)
    path = tmp_path / "params.yaml"
    path.write_text(committed, encoding="utf-8")
    params_file.override(path, changes)
    text = path.read_text(encoding="utf-8")
    assert params.load(path) == params_file.replaced(values, changes)
    assert comments(text) == comments(committed)
    assert text.count("\n\n") == committed.count("\n\n")
    params_file.override(path, {key: params.lookup(values, key) for key in changes})
    assert params.load(path) == values


def leaves(values: Any, key: str = "") -> list[str]:
    """Return the dotted keys of everything in a mapping, blocks included."""
    found = []
    for name, value in values.items():
        found.append(f"{key}{name}")
        if isinstance(value, dict):
            found += leaves(value, f"{key}{name}.")
    return found


def drawn(generator: random.Random, depth: int = 0) -> Any:
    """Return a value as params.yaml may hold it."""
    kinds = ["null", "bool", "int", "float", "text", "list", "block"]
    match generator.choice(kinds if depth < 3 else kinds[:5]):
        case "null":
            return None
        case "bool":
            return generator.random() < 0.5
        case "int":
            return generator.randrange(-5, 2000)
        case "float":
            return generator.choice([0.0, 1e-5, 0.1, 3.0, 1e20])
        case "text":
            return generator.choice(
                ["", "adam", "yes", "null", "#fff", "a: b", "- a", "1e3", " x ", "사진", "a\nb", "{", "'\""]
            )
        case "list":
            return [drawn(generator, depth + 1) for _ in range(generator.randrange(4))]
        case "block":
            return {
                name: drawn(generator, depth + 1)
                for name in generator.sample(["a", "b_c", "d1"], generator.randrange(4))
            }


@pytest.mark.parametrize("seed", range(4))
def test_any_value_at_any_key_is_read_again(committed, tmp_path, seed):
    generator = random.Random(seed)
    path = tmp_path / "params.yaml"
    path.write_text(committed, encoding="utf-8")
    for _ in range(15):
        values = params.load(path)
        key, value = generator.choice(leaves(values)), drawn(generator)
        params_file.override(path, {key: value})
        assert params.load(path) == params_file.replaced(values, {key: value}), (key, value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"seed": 1, "head.epoch": 2}, r"head: unknown key 'epoch' \(did you mean 'epochs'\?\)"),
        ({"seed.x": 1}, r"seed: unknown key 'x'"),
        ({"none.x": 1}, "none is missing"),
    ],
)
def test_an_unknown_key_changes_nothing(tmp_path, overrides, message):
    path = tmp_path / "params.yaml"
    path.write_text("seed: 0\nhead: {epochs: 3}\n", encoding="utf-8")
    with pytest.raises(params.ParamsError, match=message):
        params_file.override(path, overrides)
    assert path.read_text(encoding="utf-8") == "seed: 0\nhead: {epochs: 3}\n"


def test_what_stands_elsewhere_is_not_replaced_there(tmp_path):
    text = "base: &base\n  epochs: 3\nhead:\n  <<: *base\nother: *base\n"
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    for key, value in {"head.epochs": 5, "other.epochs": 5, "base": {"epochs": 5}}.items():
        with pytest.raises(params.ParamsError, match=f"{key} cannot be replaced in this text: change the file by hand"):
            params_file.override(path, {key: value})
        assert path.read_text(encoding="utf-8") == text
