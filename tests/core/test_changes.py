"""What a stage reads and what changes while it runs; runs and the params they are compared under."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline import __main__ as command_line
from pipeline.classifiers import table
from pipeline.config import params_file, recipes, schema
from pipeline.core import artifacts, changes, params
from pipeline.core.params import ParamsError
from pipeline.tracking import run_inputs

FOLDER = {
    "dataset.source": "folder",
    "dataset.path": "images",
    "dataset.allow_untracked": True,
    "split.near_duplicates": "report",
    "selection.positive_class": "cat",
}

# Python executes this when it starts. In the middle of a stage, just before it puts an output in place, a user edits.
EDITOR = """
import os, sys

replace = os.replace

def edit_and_replace(source, target, **options):
    if str(target) == os.environ["EDITED_AT"]:
        exec(os.environ["EDIT"])
    replace(source, target, **options)

if "pipeline" in sys.orig_argv:
    os.replace = edit_and_replace
"""
EDIT_PARAMS = "import re; text = open('params.yaml').read(); open('params.yaml', 'w').write(text.replace({!r}, {!r}))"


def edited(old: str, new: str) -> str:
    return EDIT_PARAMS.format(old, new)


def write_images(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(
                folder / label / f"{number}.png"
            )


@pytest.fixture
def world(root, tmp_path) -> Path:
    """The code and params.yaml of the project, and a folder of 24 images."""
    shutil.copytree(root / "pipeline", tmp_path / "pipeline")
    shutil.copy(root / params.PARAMS_FILE, tmp_path)
    params_file.override(tmp_path / params.PARAMS_FILE, FOLDER)
    write_images(tmp_path / "images")
    return tmp_path


@pytest.fixture
def run(environment, tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Return a function that runs a command in a place, where a user edits when ``at`` is about to be written."""
    editor = tmp_path / "editor"
    editor.mkdir()
    (editor / "sitecustomize.py").write_text(EDITOR, encoding="utf-8")

    def start(place: Path, *command: str, at: str = "", edit: str = "") -> subprocess.CompletedProcess:
        variables = environment | {"PYTHONPATH": str(editor), "EDITED_AT": at, "EDIT": edit}
        return subprocess.run(
            command, cwd=place, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    return start


STAGE = (sys.executable, "-m", "pipeline")


def test_everything_that_a_stage_reads_and_that_changed_meanwhile_is_named(world, run):
    edit = "\n".join(
        [
            edited("max_dropped: 0.01", "max_dropped: 0.02"),
            edited("module: false", "module: true"),
            "import pathlib; cats = pathlib.Path('images/cat')",
            "(cats / 'new.png').write_bytes((cats / '0.png').read_bytes())",
            "(cats / '1.png').write_bytes((cats / '2.png').read_bytes())",
            "(cats / '3.png').unlink()",
            "open('pipeline/data/quality.py', 'a').write('# edited')",
        ]
    )
    done = run(world, *STAGE, "dataset", at="results/data/suspects.png", edit=edit)
    assert done.returncode == 1
    assert done.stdout.endswith(
        "error: what the stage dataset reads changed while it ran, so its result is of a state that is no more:\n"
        "  params.yaml: dataset.max_dropped was 0.01, is 0.02 now\n"
        "  params.yaml: dataset.groups.module was False, is True now\n"
        "  images/cat/1.png was changed\n"
        "  images/cat/3.png was removed\n"
        "  images/cat/new.png was added\n"
        "  pipeline/data/quality.py was changed\n"
        "Nothing was recorded: run `dvc repro` again\n"
    )


def test_what_a_stage_does_not_read_may_change_meanwhile_and_then_the_next_one_looks_too(world, run):
    edit = "\n".join(
        [
            edited("learning_rate: 0.003", "learning_rate: 0.01"),
            edited("limit: null #", "limit: null # A new comment,"),
            "import os; os.utime('images/cat/0.png')",
            "open('pipeline/networks/convnets.py', 'a').write('# edited')",
        ]
    )
    done = run(world, *STAGE, "dataset", at="data/catalog.csv", edit=edit)
    assert done.returncode == 0, done.stdout
    assert "A new comment" in (world / params.PARAMS_FILE).read_text(encoding="utf-8")
    edit = "import shutil; shutil.copy('images/cat/0.png', 'images/dog/12.png')"
    done = run(world, *STAGE, "split", at="data/split", edit=edit)
    assert done.returncode == 1
    assert "what the stage split reads changed" in done.stdout
    assert "\n  images/dog/12.png was added\n" in done.stdout


@pytest.mark.parametrize(
    "error", [artifacts.ArtifactError("no room"), KeyboardInterrupt()], ids=["fails", "interrupted"]
)
def test_a_stage_that_fails_says_only_why(world, monkeypatch, capsys, error):
    def main(params: params.Params, *, log: Any) -> None:
        (world / "images/cat/0.png").unlink()
        raise error

    monkeypatch.chdir(world)
    monkeypatch.setattr("pipeline.stages.dataset.main", main)
    assert command_line.main(["dataset"]) == (130 if isinstance(error, KeyboardInterrupt) else 1)
    said = capsys.readouterr().err
    assert ("error: no room" in said) != ("interrupted" in said)
    assert "changed" not in said


@pytest.mark.slow
def test_dvc_records_nothing_of_a_stage_whose_params_changed_meanwhile_and_the_next_run_is_right(clone, run):
    place = clone(FOLDER, ("dvc.lock",))
    write_images(place / "images")
    assert run(place, "dvc", "init", "--force", "--quiet").returncode == 0
    edit = edited("limit: null", "limit: 10")
    done = run(place, "dvc", "repro", "dataset", at="data/catalog.csv", edit=edit)
    assert done.returncode != 0
    assert "params.yaml: dataset.limit was None, is 10 now" in done.stdout
    assert not (place / "dvc.lock").exists()
    assert "dataset:" in run(place, "dvc", "status", "dataset").stdout
    done = run(place, "dvc", "repro", "dataset")
    assert done.returncode == 0, done.stdout
    lock = yaml.safe_load((place / "dvc.lock").read_text(encoding="utf-8"))["stages"]["dataset"]
    assert lock["params"]["params.yaml"]["dataset"]["limit"] == 10
    assert len((place / "data/catalog.csv").read_text(encoding="utf-8").splitlines()) - 1 == 10
    assert "up to date" in run(place, "dvc", "status", "dataset").stdout


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        artifacts.write_text(Path(f"images/{number:02d}.png"), str(number))
    return Path("images")


def test_files_of_a_small_folder_are_compared_by_their_bytes(folder):
    files = changes.Files(["images"])
    file = folder / "03.png"
    os.utime(file, ns=(1, 1))
    assert files.changed() == []
    before = file.stat()
    file.write_text("4", encoding="utf-8")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert files.changed() == ["images/03.png was changed"]


@pytest.mark.parametrize("limit", ["SMALL_FILES", "SMALL_BYTES"])
def test_files_of_a_large_folder_are_compared_by_size_and_time(folder, monkeypatch, limit):
    monkeypatch.setattr(changes, limit, 3)
    monkeypatch.setattr(artifacts, "sha256_file", None)  # nothing is read
    files = changes.Files(["images"])
    assert files.changed() == []
    os.utime(folder / "03.png", ns=(1, 1))
    (folder / "a").mkdir()
    (folder / "a" / "12.png").write_text("12", encoding="utf-8")
    assert files.changed() == ["images/03.png was changed", "images/a/12.png was added"]


def test_links_that_lead_nowhere_and_pipes_are_no_files_and_many_changes_are_counted(folder):
    (folder / "nowhere").symlink_to("none")
    os.mkfifo(folder / "pipe")
    files = changes.Files(["images", "images/00.png", "none"])
    assert files.changed() == []
    shutil.rmtree(folder)
    changed = files.changed()
    assert changed[0] == "images/00.png was removed"
    assert changed[10:] == ["and 4 more files"]


def test_the_code_of_a_sweep_is_its_imports_and_those_of_its_family(root, stages, monkeypatch):
    monkeypatch.chdir(root)
    (stage,) = [stage for stage in stages if stage.item.get("classifier") == "lightgbm"]
    code = changes.sources("sweep", stage.item)
    assert {
        "pipeline/stages/sweep.py",
        "pipeline/classifiers/families/lightgbm.py",
        "pipeline/classifiers/solvers/boosting.py",
    } <= set(code)
    # To DVC a sweep also depends on what other families share; it does not execute that.
    assert set(code) < stage.deps


def test_no_stage_depends_on_the_module_that_watches_it(stages):
    assert not [stage.name for stage in stages if "pipeline/core/changes.py" in stage.deps]


# --- params --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"a": 1, "b": {"c": True}}, {"b": {"c": True}, "a": 1.0}, []),
        ({"seed": 0}, {}, [("seed", "0", "nothing")]),
        ({"a.b": {"c": None}}, {"a.b": {"c": "x", "d": []}}, [("a.b.c", "None", "'x'"), ("a.b.d", "nothing", "[]")]),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, [("a", "[1, {'b': 2}]", "[1, {'b': 3}]")]),
        ({"a": {"b": 1}}, {"a": None}, [("a", "{'b': 1}", "None")]),
    ],
)
def test_values_differ_where_dvc_says_so(before, after, expected):
    assert list(changes.differences(before, after)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"params\.yaml cannot be read any more: params\.yaml not found"),
        ("a: [", r"params\.yaml cannot be read any more: params\.yaml is not valid YAML"),
        ("", r"params\.yaml cannot be read any more: params\.yaml must hold a mapping"),
        ("seed: 0\n", r"params\.yaml: head\.epochs was 3, is nothing now"),
        ("head: 1\n", r"params\.yaml: head\.epochs was 3, is nothing now"),
    ],
)
def test_params_that_are_gone_or_half_saved_at_the_end_are_told_as_such(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(changes.time, "sleep", lambda seconds: None)
    if text is not None:
        params.PARAMS_FILE.write_text(text, encoding="utf-8")
    with pytest.raises(changes.ChangedError, match=message):
        changes.refuse("head", {"head.epochs": 3})


@pytest.mark.parametrize("half", [b"", b"head:\n", b"head: {epochs: 3} # \xed\x8f"])
def test_an_editor_that_is_just_saving_is_waited_for(tmp_path, monkeypatch, half):
    monkeypatch.chdir(tmp_path)
    params.PARAMS_FILE.write_bytes(half)
    saved = b"head: {epochs: 3} # \xed\x8f\xb4\n"
    monkeypatch.setattr(changes.time, "sleep", lambda seconds: seconds and params.PARAMS_FILE.write_bytes(saved))
    changes.refuse("head", {"head.epochs": 3})


# --- runs under the params of today --------------------------------------------------------------------------------


@pytest.fixture
def recorded(root, tmp_path, monkeypatch) -> dict[str, Any]:
    """The committed params.yaml, in a place with a record of every run that it declares, as far as that is looked at."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(root / params.PARAMS_FILE, tmp_path)
    values = params.load()
    for run in params.declared_runs(values):
        record = artifacts.Record(
            stage=run.stage,
            network=run.network,
            method=run.method,
            classes=["a", "b"],
            inputs={},
            candidates=[],
            parameters=run_inputs.inputs_of(run, values).params,
            selected=0,
            cost=artifacts.Cost(trainable_parameters=1, total_parameters=1, model_bytes=1, multiply_adds=1),
        )
        artifacts.write_record(artifacts.RUNS / run.name / "record.json", record)
    return values


def test_runs_of_the_present_params_may_be_compared(recorded):
    schema.check_runs(recorded)
    shutil.rmtree(artifacts.RUNS / "small_convnet-scratch")  # `compare` says that it is missing
    schema.check_runs(recorded)


@pytest.mark.parametrize("verb", ["compare", "track", "fairness"])
def test_runs_of_other_params_are_refused_before_anything_is_compared(recorded, capsys, verb):
    params_file.override(
        params.PARAMS_FILE,
        {
            "scratch.learning_rate": 0.01,
            "classifiers.rbf_svm.grid.gamma": [0.1],
            "compare.bootstrap_samples": 100,
        },
    )
    assert command_line.main([verb]) == 1
    assert capsys.readouterr().err == (
        "error: params.yaml: classifiers.rbf_svm.grid.gamma is [0.1], but results/runs/efficientnet_lite0-rbf_svm was "
        "made with ['scale']\n"
        "params.yaml: scratch.learning_rate is 0.01, but results/runs/small_convnet-scratch was made with 0.001\n"
        "Run `dvc repro`, which makes these runs again\n"
    )


def test_a_key_that_a_run_was_made_without_differs_too(recorded):
    path = artifacts.RUNS / "small_convnet-scratch" / "record.json"
    record = artifacts.read_json(path)
    record["parameters"]["scratch.old"] = record["parameters"].pop("scratch.dropout")
    artifacts.write_json(path, record)
    with pytest.raises(ParamsError) as error:
        schema.check_runs(recorded)
    assert "scratch.dropout is 0.3, but results/runs/small_convnet-scratch was made with nothing" in str(error.value)
    assert "scratch.old is nothing, but results/runs/small_convnet-scratch was made with 0.3" in str(error.value)


# --- what DVC reads otherwise --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["010", "+010", "-0_10"])
def test_a_number_that_dvc_reads_otherwise_is_refused(recorded, capsys, number):
    from dvc.utils.serialize import parse_yaml

    assert parse_yaml(f"seed: {number}", "params.yaml")["seed"] == int(number) != yaml.safe_load(number)
    text = params.PARAMS_FILE.read_text(encoding="utf-8").replace("epochs: 20", f"epochs: {number}")
    params.PARAMS_FILE.write_text(text, encoding="utf-8")
    assert command_line.main(["prune"]) == 1
    line = 1 + text[: text.index(f"epochs: {number}")].count("\n")
    said = f"params.yaml: line {line}: {number} is {yaml.safe_load(number)} to a stage and {int(number)} to DVC"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a: 00", "a: '010'", "a: 10 # 010", "a: 0.10", "a: 0x10", "a: [0, 10]"])
def test_numbers_that_both_read_the_same_are_not(text):
    schema.check_text(text)


# --- names whose values DVC does not see ---------------------------------------------------------------------------


def test_dvc_gives_the_result_of_another_value_of_a_key_that_is_called_so():
    """Why both names are banned from params.yaml, and no other one that DVC gives to facts of files and outputs."""
    from dvc.output import Meta, Output
    from dvc.stage import cache

    of_dvc = {value for kind in (Meta, Output) for name, value in inspect.getmembers(kind) if name.startswith("PARAM_")}
    assert {"path", "hash", "files", "remote", "md5", *schema.UNSEEN_BY_DVC} <= of_dvc

    def key(name: str, value: int) -> str:
        return cache._get_cache_hash({"cmd": "c", "params": {"params.yaml": {"a": [{"b": {name: value}}]}}}, key=True)

    assert {name for name in of_dvc if key(name, 1) == key(name, 2)} == set(schema.UNSEEN_BY_DVC)


def test_nothing_in_params_is_called_so(values, root):
    assert not set(schema.UNSEEN_BY_DVC) & set(keys(values))
    for recipe in recipes.read(root / "docs" / "recipes.md").values():
        assert not set(schema.UNSEEN_BY_DVC) & set(keys(recipe.values)), recipe.name
    for family in table.FAMILIES.values():
        __import__(family)
    for block in blocks(params.Block):
        assert not set(block.model_fields) & set(schema.UNSEEN_BY_DVC), block


def keys(value: Any) -> Iterator[str]:
    for name, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield name
        yield from keys(inner)


def blocks(block: type[params.Block]) -> Iterator[type[params.Block]]:
    for below in block.__subclasses__():
        yield below
        yield from blocks(below)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "explain.patterns",
            {"filters": 4, "steps": 30, "size": None},
            "explain.patterns.size: nothing may be called size.* It is called explain.patterns.input_size now",
        ),
        (
            "backbone.variants",
            {"size": {"network": "vgg16"}},
            "backbone.variants.size: nothing may be called size.* Choose another name",
        ),
        ("explain.layers", {"nfiles": ["conv"]}, "explain.layers.nfiles: nothing may be called nfiles"),
        ("features.layers", ["fc1", {"size": 3}], "features.layers.1.size: nothing may be called size"),
        ("size", 3, "params.yaml: size: nothing may be called size"),
    ],
)
def test_a_key_that_is_called_so_is_refused_with_the_reason(values, key, value, message):
    overridden = params_file.replaced({"size": 0, **values} if key == "size" else values, {key: value})
    with pytest.raises(ParamsError, match=message):
        schema.check(overridden)
