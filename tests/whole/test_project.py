"""Guards of the architecture: what dvc.yaml declares is what the code does, and claims can be kept."""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from pipeline import __main__ as command_line
from pipeline.commands import leaderboard as leaderboard_command
from pipeline.core import artifacts, params, provenance
from pipeline.show import leaderboard_tables

PACKAGE = provenance.ROOT / "pipeline"

# The code of the logged models: MLflow executes it by its path, with the whole package beside it; nothing imports it.
SERVED_MODEL = PACKAGE / "serving" / "logged_model.py"

# Folders of pipeline/ that may import a library at all.
MAY_IMPORT = {
    "tensorflow": {"networks", "features", "training", "explain"},
    "keras": {"networks", "features", "training", "explain", "data"},
    "openvino": {"features"},
    "mlflow": {"tracking", "serving"},
}


def files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (provenance.ROOT / folder).rglob("*.py"))


@functools.cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(node: ast.AST, *, top_only: bool = False) -> Iterator[str]:
    """Yield the dotted names that code imports, leaving out blocks for type checkers; only at import time if asked."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        elif not (top_only and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))):
            yield from imports(child, top_only=top_only)


# --- dvc.yaml says what the stages do ------------------------------------------------------------------------------


def test_every_stage_is_a_verb_called_with_exactly_its_item(stages):
    called = {stage.module.rpartition(".")[2]: tuple(stage.item) for stage in stages}
    assert called == command_line.STAGES
    for stage in stages:
        assert stage.name.partition("@")[0] == stage.module.rpartition(".")[2]


def test_every_stage_module_is_in_dvc_yaml(stages):
    modules = {file.stem for file in files("pipeline/stages")} - {"__init__"}
    assert modules == {stage.module.rpartition(".")[2] for stage in stages}


def test_dvc_deps_are_the_import_closure_and_the_inputs(stages, values):
    for stage in stages:
        module = load(stage.module)
        code = set(provenance.import_closure(stage.module))
        if "classifier" in stage.item:
            # A matrix cannot list a dependency for some of its items: what some families share, all depend on.
            own = {name: f"pipeline/classifiers/families/{name}.py" for name in values["classifiers"]}
            families = [provenance.import_closure(f"pipeline.classifiers.families.{name}") for name in own]
            code |= set().union(*families) - set(own.values()) | {own[stage.item["classifier"]]}
        inputs = set(provenance.resolve(module.INPUTS, item=stage.item, values=values))
        assert stage.deps == code | inputs, differences(stage, "deps", code | inputs, stage.deps)


def test_dvc_params_are_the_keys_a_stage_reads(stages, values):
    for stage in stages:
        reads = set(provenance.resolve(load(stage.module).READS, item=stage.item, values=values))
        assert stage.params == reads, differences(stage, "params", reads, stage.params)


def test_dvc_outs_metrics_and_plots_are_the_outputs_a_stage_writes(stages, values):
    for stage in stages:
        writes = set(provenance.resolve(load(stage.module).OUTPUTS, item=stage.item, values=values))
        assert stage.outs == writes, differences(stage, "outs, metrics or plots", writes, stage.outs)


def test_a_sweep_depends_on_no_table_of_families(stages):
    for stage in stages:
        if "classifier" in stage.item:
            others = {
                dep
                for dep in stage.deps
                if dep.startswith("pipeline/classifiers/") and Path(dep).stem in set(values_of(stages, "classifier"))
            }
            assert others == {f"pipeline/classifiers/families/{stage.item['classifier']}.py"}
            assert "pipeline/classifiers/table.py" not in stage.deps


def values_of(stages, key: str) -> list[str]:
    return [stage.item[key] for stage in stages if key in stage.item]


def load(name: str):
    import importlib

    return importlib.import_module(name)


def differences(stage, what: str, code: set[str], declared: frozenset[str]) -> str:
    return (
        f"dvc.yaml: {stage.name}: {what}: add {sorted(code - declared) or 'nothing'}, "
        f"remove {sorted(declared - code) or 'nothing'}"
    )


# --- imports -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", MAY_IMPORT)
def test_heavy_libraries_are_imported_late_and_only_where_they_belong(library):
    for file in files("pipeline"):
        names = {name.split(".")[0] for name in imports(tree(file))}
        if library in names:
            assert file.relative_to(PACKAGE).parts[0] in MAY_IMPORT[library], f"{file} imports {library}"
        if file != SERVED_MODEL:
            early = {name.split(".")[0] for name in imports(tree(file), top_only=True)}
            assert library not in early, f"{file}: import {library} inside the function that needs it"


def test_a_sweep_imports_no_tensorflow(stages):
    modules = {stage.module for stage in stages if "classifier" in stage.item}
    modules |= {f"pipeline.classifiers.families.{name}" for name in values_of(stages, "classifier")}
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *sorted(modules)], capture_output=True, text=True, cwd=provenance.ROOT, check=True
    )
    assert modules <= set(done.stdout.split())
    assert not {"tensorflow", "keras", "mlflow", "openvino"} & set(done.stdout.split())
    for module in modules:
        for file in provenance.import_closure(module):
            names = {name.split(".")[0] for name in imports(tree(provenance.ROOT / file))}
            assert not {"tensorflow", "keras", "mlflow", "openvino"} & names, f"{module} reaches {file}"


def test_imports_are_absolute_and_nothing_is_called_utils():
    for file in files("pipeline", "tests", "benchmarks"):
        assert "util" not in file.stem
        assert not [node for node in ast.walk(tree(file)) if isinstance(node, ast.ImportFrom) and node.level]


# --- claims --------------------------------------------------------------------------------------------------------


def test_every_imported_package_is_declared(root):
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {re.split(r"[^\w.-]", line)[0].lower() for group in groups for line in group}
    imported = {name.split(".")[0] for file in files("pipeline", "tests", "benchmarks") for name in imports(tree(file))}
    foreign = imported - set(sys.stdlib_module_names) - {"pipeline", "tests", "benchmarks", "conftest"}
    foreign -= {file.stem for file in files("tests", "benchmarks")}
    distributions = metadata.packages_distributions()
    for name in foreign:
        packages = {package.lower().replace("_", "-") for package in distributions.get(name, [])}
        assert packages & declared, f"import {name}: declare one of {sorted(packages) or name} in pyproject.toml"


def documents() -> list[Path]:
    return [provenance.ROOT / "README.md", *sorted((provenance.ROOT / "docs").rglob("*.md"))]


def commands(document: Path, start: str) -> list[str]:
    """Return every command in the code of a document that begins with ``start``, from there to the end of its line."""
    text = document.read_text(encoding="utf-8")
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    lines = [line for block in fenced for line in block.splitlines()] + inline
    found = [re.search(rf"(?:^|[\s;&|$]){re.escape(start)} (.*)", line.partition("#")[0]) for line in lines]
    return [match[1].strip() for match in found if match]


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_documented_make_targets_exist(document, root):
    targets = set(re.findall(r"^([a-z]+):", (root / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for command in commands(document, "make"):
        assert {word for word in command.split() if re.fullmatch("[a-z]+", word)} <= targets, f"make {command}"


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_documented_commands_and_their_options_exist(document, capsys):
    for command in commands(document, "python -m pipeline"):
        verb = command.split()[0]
        assert verb in {**command_line.STAGES, **command_line.COMMANDS}, f"python -m pipeline {command}"
        with pytest.raises(SystemExit):
            command_line.main([verb, "--help"])
        text = capsys.readouterr().out
        for option in re.findall(r"--[a-z-]+", command):
            assert option in text, f"python -m pipeline {command}"


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_documented_dvc_commands_exist(document):
    from dvc.cli.parser import get_main_parser

    for command in commands(document, "dvc"):
        parser = get_main_parser()
        for word in command.split():
            choices = subcommands(parser)
            if not choices:
                break
            assert word in choices, f"dvc {command}"
            parser = choices[word]


def subcommands(parser) -> dict:
    return next((action.choices for action in parser._actions if isinstance(action.choices, dict)), {})


def test_every_command_has_a_module_and_its_help():
    for name in command_line.COMMANDS:
        module = load(f"pipeline.commands.{name.replace('-', '_')}")
        assert callable(module.add_arguments)
        assert callable(module.main)


def test_no_file_names_a_machine_or_a_package_index(root):
    hosts = re.compile("|".join(("pypi" + r"\.org", "pythonhosted", r"file:///", r"/home/\w+", r"/root/")))
    kinds = (".py", ".sh", ".md", ".yaml", ".toml", ".lock", ".json", ".csv")
    places = [root, *(root / name for name in ("pipeline", "scripts", "docs", "benchmarks", "results", ".dvc"))]
    for place in places:
        for file in place.glob("*") if place == root else place.rglob("*"):
            if file.suffix in kinds and file.is_file() and ".dvc/tmp" not in file.as_posix():
                found = hosts.search(file.read_text(encoding="utf-8", errors="replace"))
                assert not found, f"{file}: {found}"


def test_the_readme_shows_the_committed_leaderboard(root, values):
    document = (root / "README.md").read_text(encoding="utf-8")
    entries = artifacts.read_json(root / artifacts.LEADERBOARD)
    table = leaderboard_tables.short_markdown(entries, confidence=values["compare"]["confidence"])
    assert leaderboard_command.with_table(document, table) == document, (
        "run: python -m pipeline leaderboard --readme README.md"
    )


def test_the_committed_lock_belongs_to_the_committed_params_and_code(root, stages, values):
    """Digests in dvc.lock against the files: what `dvc repro` would re-run in a clone that has all the data."""
    lock = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    assert {stage.name for stage in stages} == lock.keys(), "dvc.lock keeps stages that are no more: take them out"
    for stage in stages:
        recorded = {dep["path"]: dep["md5"] for dep in lock[stage.name]["deps"]}
        assert recorded.keys() == stage.deps, stage.name
        for path in stage.deps:
            if path.startswith("pipeline/"):
                digest = hashlib.md5((root / path).read_bytes(), usedforsecurity=False).hexdigest()
                assert recorded[path] == digest, f"{path} changed since {stage.name} ran: run `dvc repro`"
        recorded = lock[stage.name].get("params", {}).get("params.yaml", {})
        assert recorded == {key: params.lookup(values, key) for key in stage.params}, stage.name
