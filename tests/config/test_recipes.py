"""The recipes of docs/recipes.md: each fits params.yaml, and the command puts it there and nothing else."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline import __main__ as command_line
from pipeline.commands import recipe as command
from pipeline.config import params_file, recipes, schema
from pipeline.core import params, provenance

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
        "fine-tuning": {
            "fine-tune-last-2-layers",
            "fine-tune-last-3-blocks",
            "fine-tune-from-block5-conv1",
            "fine-tune-everything",
            "gradual-unfreezing",
        },
        "from scratch": {"scratch-mnist", "scratch-cats-and-dogs", "scratch-cifar10", "scratch-one-convolution"},
        "looking": {"what-the-network-sees", "augmentation-as-in-keras"},
    }
    for kind, names in wanted.items():
        assert names <= RECIPES.keys(), f"{kind}: {sorted(names - RECIPES.keys())}"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_changes_params_and_what_comes_out_can_be_run(name, values):
    changes = recipes.replacements(RECIPES[name], values)
    if name not in ("square-crop", "what-the-network-sees"):  # what params.yaml does by default
        assert changes
    changed = params_file.replaced(values, changes)
    schema.check(changed)
    assert params.declared_runs(changed)


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_does_not_list_is_switched_off(name, values):
    recipe = RECIPES[name]
    flat = {
        f"{block}.{key}" if isinstance(content, dict) and block != "classifiers" else block
        for block, content in recipe.values.items()
        for key in (content if isinstance(content, dict) else [""])
    }
    changed = params_file.replaced(values, recipes.replacements(recipe, values))
    listed = recipes.LISTS.keys() & flat
    for key in recipes.LISTS:
        if not listed:
            assert params.lookup(changed, key) == params.lookup(values, key)
        elif key not in listed:
            assert not params.lookup(changed, key)


def test_a_key_that_a_recipe_names_is_replaced_whole(values):
    changed = params_file.replaced(values, recipes.replacements(RECIPES["fine-tune-last-2-layers"], values))
    assert changed["fine_tune"]["unfreeze"] == {"from_layer": None, "last_layers": 2, "last_blocks": None}
    assert changed["fine_tune"]["epochs"] == values["fine_tune"]["epochs"]
    assert values["fine_tune"]["unfreeze"]["last_layers"] is None


def test_families_in_a_list_keep_their_grids(values):
    changed = params_file.replaced(values, recipes.replacements(RECIPES["vgg16-fc2"], values))
    assert list(changed["classifiers"]) == RECIPES["vgg16-fc2"].values["classifiers"]
    assert changed["classifiers"]["rbf_svm"] == values["classifiers"]["rbf_svm"]


def test_a_family_that_params_no_longer_has_is_an_error_that_says_how_to_get_it_back(values):
    without = {**values, "classifiers": {"rbf_svm": values["classifiers"]["rbf_svm"]}}
    with pytest.raises(recipes.RecipeError, match=r"logistic_regression.*git checkout REVISION params\.yaml"):
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
        (
            "## two: Two\n\n```yaml\nseed: 1\n```\n\n```yaml\nseed: 2\n```\n",
            "two must have one block of YAML, received 2",
        ),
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


def committed(project: Path, environment: dict[str, str], message: str = "All") -> None:
    """Commit params.yaml as it is, in a repository of its own."""
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.com")
    for arguments in (["init", "-q"], ["add", "params.yaml"], [*identity, "commit", "-qm", message]):
        subprocess.run(["git", *arguments], cwd=project, env=environment, check=True, capture_output=True)


def test_recipes_do_not_add_up(project, environment, capsys):
    committed(project, environment)
    before = params.load()
    for name in RECIPES:
        (project / "params.yaml").write_bytes((provenance.ROOT / "params.yaml").read_bytes())
        apply(name)
        alone = params.load()
        for other in ("cifar10-vgg16-dense50", "scratch-cats-and-dogs", "resnet50-dense1024", "vgg16-fc2"):
            apply(other)
            apply(name)
            data = dict.fromkeys(recipes.DATA, None)  # of the recipe before, unless this one is for a data set
            if "dataset" in RECIPES[name].values:
                data = {}
            assert params.load() | data == alone | data, f"{other}, then {name}"
            (project / "params.yaml").write_bytes((provenance.ROOT / "params.yaml").read_bytes())
    capsys.readouterr()
    apply("vgg16-fc2")
    apply("mobilenet-dense64")
    assert "features.layers: [fc2] -> null" in capsys.readouterr().out
    assert params.load()["features"] == before["features"]
    assert params.load()["backbone"] == before["backbone"]


def test_what_is_said_of_the_data_stays_and_what_is_committed_counts(project, environment):
    own = {"dataset.source": "folder", "dataset.path": "photos", "selection.positive_class": "cat"}
    params_file.override(Path("params.yaml"), own)
    committed(project, environment)
    params_file.override(Path("params.yaml"), {"split.test": 0.4, "compute.threads": 3, "head.epochs": 7})
    apply("mobilenet-dense64")
    found = params.load()
    assert (found["dataset"]["path"], found["split"]["test"], found["compute"]["threads"]) == ("photos", 0.4, 3)
    assert found["head"]["epochs"] == 30
    committed(project, environment, "One recipe")
    apply("square-warp")
    assert params.load()["backbones"] == ["mobilenet"] and params.load()["images"]["square"] == "warp"
    apply("augmentation-as-in-keras")
    assert params.load()["images"]["square"] == "crop" and params.load()["head"]["hidden_units"] == [64]


def test_without_a_commit_params_are_taken_as_they_are(project, environment, monkeypatch, capsys):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent))
    apply("vgg16-fc2")
    apply("square-warp")
    assert "No commit holds params.yaml" in capsys.readouterr().out
    assert params.load()["features"]["layers"] == ["fc2"] and params.load()["images"]["square"] == "warp"


# What the courses and posts say, under the keys of params.yaml.
FLIPS = {"augmentation.horizontal_flip": True, "augmentation.vertical_flip": False, "augmentation.quarter_turns": False}
PLAIN = {
    f"augmentation.{key}": value
    for key, value in {
        "horizontal_flip": False,
        "vertical_flip": False,
        "quarter_turns": False,
        "rotation": 0.0,
        "width_shift": 0.0,
        "height_shift": 0.0,
        "shear": 0.0,
        "zoom": 0.0,
        "brightness": 0.0,
        "contrast": 0.0,
    }.items()
}
KERAS = {
    **FLIPS,
    **{
        f"augmentation.{key}": value
        for key, value in {
            "rotation": 40.0,
            "width_shift": 0.2,
            "height_shift": 0.2,
            "shear": 0.2,
            "zoom": 0.2,
            "fill": "nearest",
            "brightness": 0.0,
            "contrast": 0.0,
        }.items()
    },
}
NO_CALLBACKS = {"reduce_on_plateau": None, "early_stopping": None}
RMSPROP, ADAM = {"name": "rmsprop", "momentum": 0.0}, {"name": "adam"}


def of(block: str, **values: object) -> dict[str, object]:
    return {f"{block}.{key}": value for key, value in values.items()}


TAUGHT = {
    "imagenet-top5": {"backbones": ["vgg16", "resnet50"], "as_is.top": 5},
    "inception-v3-avg-pool": {"backbones": ["inception_v3"], "features.layers": ["avg_pool"]},
    "vgg16-fc2": {"backbones": ["vgg16"], "features.layers": ["fc2"], "backbone.input_size": None},
    "mobilenet-dense64": PLAIN
    | {"backbones": ["mobilenet"]}
    | of(
        "head",
        backbones=["mobilenet"],
        pooling="avg",
        hidden_units=[64],
        activation="relu",
        dropout=0.0,
        output="softmax",
        optimizer=ADAM,
        learning_rate=0.001,
    ),
    "cifar10-vgg16-dense50": FLIPS
    | {
        "dataset.source": "cifar10",
        "backbones": ["vgg16"],
        "backbone.input_size": 32,
        "split.validation": 0.15,
        "augmentation.brightness": 0.0,
        "augmentation.contrast": 0.0,
        "augmentation.rotation": 0.0,
        "augmentation.test_time_views": 0,
    }
    | of(
        "head",
        backbones=["vgg16"],
        hidden_units=[50],
        dropout=0.0,
        output="softmax",
        optimizer=ADAM,
        learning_rate=0.001,
        reduce_on_plateau={"factor": 0.2, "patience": 3},
        early_stopping={"patience": 5},
    ),
    "vgg16-flatten-dense256": KERAS
    | {"backbones": ["vgg16"], "backbone.input_size": 150}
    | of(
        "head",
        backbones=["vgg16"],
        pooling="flatten",
        hidden_units=[256],
        activation="relu",
        dropout=0.0,
        output="sigmoid",
        batch_size=20,
        epochs=30,
        optimizer=RMSPROP,
        learning_rate=2e-5,
        **NO_CALLBACKS,
    ),
    "resnet50-dense1024": PLAIN
    | {
        "backbones": ["resnet50", "resnet50_by_mistake"],
        "backbone.input_size": 256,
        "backbone.preprocess": "backbone",
        "backbone.variants": {"resnet50_by_mistake": {"network": "resnet50", "preprocess": "rescale"}},
    }
    | of(
        "head", pooling="avg", hidden_units=[1024], dropout=0.0, output="sigmoid", optimizer=ADAM, learning_rate=0.001
    ),
    "augmentation-as-in-keras": KERAS,
    "fine-tune-last-2-layers": of("fine_tune", unfreeze={"from_layer": None, "last_layers": 2, "last_blocks": None}),
    "fine-tune-last-3-blocks": of("fine_tune", unfreeze={"from_layer": None, "last_layers": None, "last_blocks": 3}),
    "fine-tune-from-block5-conv1": {"backbones": ["vgg16"]}
    | of("fine_tune", unfreeze={"from_layer": "block5_conv1", "last_layers": None, "last_blocks": None}),
    "fine-tune-everything": of("fine_tune", unfreeze={"from_layer": None, "last_layers": None, "last_blocks": "all"}),
    "scratch-mnist": PLAIN
    | {"dataset.source": "mnist"}
    | of(
        "scratch",
        networks=["mnist_convnet"],
        input_size=None,
        dropout=None,
        batch_size=64,
        epochs=5,
        optimizer=RMSPROP,
        learning_rate=0.001,
        **NO_CALLBACKS,
    ),
    "scratch-cats-and-dogs": KERAS
    | of(
        "scratch",
        networks=["cats_and_dogs_convnet"],
        input_size=None,
        dropout=None,
        batch_size=32,
        epochs=100,
        optimizer=RMSPROP,
        learning_rate=1e-4,
        **NO_CALLBACKS,
    ),
    "scratch-cifar10": FLIPS
    | {
        "dataset.source": "cifar10",
        "augmentation.width_shift": 0.1,
        "augmentation.height_shift": 0.1,
        "augmentation.fill": "nearest",
        "augmentation.brightness": 0.0,
        "augmentation.contrast": 0.0,
    }
    | of(
        "scratch",
        networks=["cifar_convnet"],
        input_size=None,
        dropout=None,
        batch_size=32,
        epochs=100,
        optimizer=RMSPROP,
        learning_rate=1e-4,
        **NO_CALLBACKS,
    ),
    "scratch-one-convolution": PLAIN | of("scratch", networks=["one_convnet"], input_size=None, dropout=None),
}


@pytest.mark.parametrize("name", TAUGHT)
def test_a_recipe_says_what_is_taught(name, values):
    changed = params_file.replaced(values, recipes.replacements(RECIPES[name], values))
    assert {key: params.lookup(changed, key) for key in TAUGHT[name]} == TAUGHT[name]


def test_several_layers_are_pooled_in_different_ways():
    layers = RECIPES["several-layers"].values["features"]["layers"]
    assert {"layer": "block3_pool", "pooling": "max"} in layers and "block5_pool" in layers
    assert RECIPES["several-layers"].values["features"]["pooling"] == "avg"


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
