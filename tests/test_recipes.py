"""The recipes of docs/recipes.md: each fits params.yaml, and the command puts it there and nothing else."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import yaml

from pipeline import __main__ as command_line
from pipeline import params, provenance, recipes, schema
from pipeline.commands import recipe as command

RECIPES = recipes.read(provenance.ROOT / recipes.PAGE)

PAGE = """# Title

## Not a recipe

```yaml
seed: 9
```

## small: A title: with a colon

Text.

```yaml
seed: 3
images: {square: warp}
```
"""


@pytest.fixture
def project(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with the committed params.yaml and the page, as the command sees them."""
    (tmp_path / "docs").mkdir()
    for name in ("params.yaml", "docs/recipes.md"):
        (tmp_path / name).write_bytes((root / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def apply(name: str | None, *, dry_run: bool = False) -> int:
    return command.main(argparse.Namespace(name=name, dry_run=dry_run))


def test_the_page_has_a_recipe_for_every_way_of_teaching():
    wanted = {
        "networks as they are": {"imagenet-top5"},
        "squares": {"square-crop", "square-warp", "square-pad-edge", "square-pad-black"},
        "features": {"inception-v3-avg-pool", "vgg16-fc2", "several-layers", "lower-layers"},
        "heads": {"mobilenet-dense64", "vgg16-flatten-dense256", "resnet50-dense1024", "cifar10-vgg16-dense50"},
        "fine-tuning": {"fine-tune-last-2-layers", "fine-tune-last-3-blocks", "fine-tune-from-block5-conv1",
                        "fine-tune-everything", "gradual-unfreezing"},
        "from scratch": {"scratch-mnist", "scratch-cats-and-dogs", "scratch-cifar10", "scratch-one-convolution"},
        "looking": {"what-the-network-sees", "augmentation-as-in-keras"},
    }  # fmt: skip
    for kind, names in wanted.items():
        assert names <= RECIPES.keys(), f"{kind}: {sorted(names - RECIPES.keys())}"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_changes_params_and_what_comes_out_can_be_run(name, values):
    changes = recipes.replacements(RECIPES[name], values)
    if name not in ("square-crop", "what-the-network-sees"):  # what params.yaml does by default
        assert changes
    changed = params.replaced(values, changes)
    schema.check(changed)
    assert params.declared_runs(changed)


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_does_not_list_is_switched_off(name, values):
    recipe = RECIPES[name]
    flat = {f"{block}.{key}" if isinstance(content, dict) and block != "classifiers" else block
            for block, content in recipe.values.items() for key in (content if isinstance(content, dict) else [""])}  # fmt: skip
    changed = params.replaced(values, recipes.replacements(recipe, values))
    listed = recipes.LISTS.keys() & flat
    for key in recipes.LISTS:
        if not listed:
            assert params.lookup(changed, key) == params.lookup(values, key)
        elif key not in listed:
            assert not params.lookup(changed, key)


def test_a_key_that_a_recipe_names_is_replaced_whole(values):
    changed = params.replaced(values, recipes.replacements(RECIPES["fine-tune-last-2-layers"], values))
    assert changed["fine_tune"]["unfreeze"] == {"from_layer": None, "last_layers": 2, "last_blocks": None}
    assert changed["fine_tune"]["epochs"] == values["fine_tune"]["epochs"]
    assert values["fine_tune"]["unfreeze"]["last_layers"] is None


def test_families_in_a_list_keep_their_grids(values):
    changed = params.replaced(values, recipes.replacements(RECIPES["vgg16-fc2"], values))
    assert list(changed["classifiers"]) == RECIPES["vgg16-fc2"].values["classifiers"]
    assert changed["classifiers"]["rbf_svm"] == values["classifiers"]["rbf_svm"]


def test_a_family_that_params_no_longer_has_is_an_error_that_says_how_to_get_it_back(values):
    without = {**values, "classifiers": {"rbf_svm": values["classifiers"]["rbf_svm"]}}
    with pytest.raises(recipes.RecipeError, match=r"logistic_regression.*git checkout params\.yaml"):
        recipes.replacements(RECIPES["vgg16-fc2"], without)


def test_a_page_of_ones_own(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    found = recipes.read(page)
    assert list(found) == ["small"]
    assert found["small"].title == "A title: with a colon"
    assert found["small"].values == {"seed": 3, "images": {"square": "warp"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PAGE + "\n## small: Again\n\n```yaml\nseed: 4\n```\n", "two recipes are called small"),
        ("## empty: Nothing in it\n\nText.\n", "empty must have one block of YAML, received 0"),
        ("## two: Two\n\n```yaml\nseed: 1\n```\n\n```yaml\nseed: 2\n```\n", "two must have one block of YAML, received 2"),
        ("## broken: Broken\n\n```yaml\nseed: [1\n```\n", "broken is not valid YAML"),
        ("## list: A list\n\n```yaml\n- seed\n```\n", "list must hold a mapping, received list"),
    ],
)
def test_a_page_with_a_section_that_is_no_whole_recipe_is_refused(tmp_path, text, message):
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(recipes.RecipeError, match=message):
        recipes.read(page)


def test_the_command_writes_what_it_says_and_keeps_the_comments(project, capsys):
    before = (project / "params.yaml").read_text(encoding="utf-8")
    assert apply("vgg16-fc2") == 0
    text = capsys.readouterr().out
    assert "backbones: [efficientnet_lite0] -> [vgg16]" in text
    assert "features.layers: null -> [fc2]" in text
    after = (project / "params.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(after)["backbones"] == ["vgg16"]
    assert {line.partition("#")[2] for line in before.splitlines() if line.startswith("#")} == {
        line.partition("#")[2] for line in after.splitlines() if line.startswith("#")
    }
    assert apply("vgg16-fc2") == 0
    assert "says so already" in capsys.readouterr().out
    assert (project / "params.yaml").read_text(encoding="utf-8") == after


def test_a_dry_run_changes_nothing(project):
    before = (project / "params.yaml").read_bytes()
    assert apply("fine-tune-everything", dry_run=True) == 0
    assert (project / "params.yaml").read_bytes() == before


def test_a_recipe_that_does_not_fit_params_changes_nothing(project):
    page = project / recipes.PAGE
    page.write_text("## wrong: Wrong\n\n```yaml\nbackbones: [vgg_16]\n```\n", encoding="utf-8")
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(params.ParamsError, match="did you mean 'vgg16'"):
        apply("wrong")
    page.write_text("## wrong: Wrong\n\n```yaml\nimages: {squared: warp}\n```\n", encoding="utf-8")
    with pytest.raises(params.ParamsError, match="did you mean 'square'"):
        apply("wrong")
    assert (project / "params.yaml").read_bytes() == before


def test_without_a_name_all_are_listed_and_a_wrong_name_gets_the_nearest(project, capsys):
    assert apply(None) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in RECIPES)
    assert command_line.main(["recipe", "vgg16-fc1"]) == 1
    assert "vgg16-fc2" in capsys.readouterr().err
