"""The labels of the test part reach the comparison and nothing else: checked in the source of every module.

A label can be had in four ways: from `artifacts.read_test_labels`, by reading the manifest or the catalog, from the
reader of the source, and from the folder that an image lies in. Each has its few allowed places. A test in
`tests/whole/test_pipeline.py` adds the proof by experiment: other test labels change no trained byte.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

import pytest

from pipeline.core import provenance

PACKAGE = provenance.ROOT / "pipeline"

TEST_LABELS = {
    "read_test_labels": {"core/artifacts.py", "stages/compare.py", "audits/review/evidence.py"},
    "_read_part": {"core/artifacts.py"},
}

# Where the labels of the test part stand, as names and as paths; and who may read them there.
SPLIT_NAMES = {"MANIFEST", "MANIFEST_COLUMNS", "SPLIT", "INPUTS"}
SPLIT_PATHS = r"(\S*/)?data/split(/\S*)?|\S*manifest\.csv"
SPLIT_READERS = {"core/artifacts.py", "audits/review/evidence.py"}
CATALOG_NAMES, CATALOG_PATHS = {"CATALOG", "CATALOG_COLUMNS"}, r"\S*catalog\.csv"
CATALOG_READERS = {
    "core/artifacts.py",
    "data/sources/__init__.py",
    "stages/dataset.py",
    "stages/split.py",
    "classifiers/repeated_splits.py",
    "audits/review/evidence.py",
}
# And the package itself. The last one counts the images and compares their digest.
SOURCE_READERS = {"stages/dataset.py", "stages/split.py", "audits/health/inputs.py"}

SOURCES = ("sources", "keras_datasets", "elpv", "folder")

# What may be done with the path of such a file by everybody: digest it, write it, look whether it is there, name it.
HARMLESS_CALLS = {
    "sha256",
    "sha256_file",
    "sha256_path",
    "refuse_changed",
    "resolve",
    "write_csv",
    "whole_directory",
    "get",
    "dumps",
    "say",
    "print",
}
HARMLESS_METHODS = {"exists", "is_file", "is_dir"}
HARMLESS_KEYWORDS = {"inputs"}  # the paths whose digests a record keeps
# What gives the same thing in another form.
PASSING_CALLS = {
    "str",
    "Path",
    "PurePath",
    "PurePosixPath",
    "sorted",
    "list",
    "tuple",
    "zip",
    "enumerate",
    "iter",
    "next",
    "reversed",
    "fspath",
    "as_posix",
    "absolute",
    "joinpath",
}
PASSING_ATTRIBUTES = {"name", "as_posix", "absolute", "joinpath", "parent"}

# The folder of a path, or a piece of it.
FOLDERS = {"parent", "parents", "parts"}
PIECES = {
    "split",
    "rsplit",
    "partition",
    "rpartition",
    "startswith",
    "endswith",
    "removeprefix",
    "find",
    "index",
    "count",
    "match",
    "full_match",
}
PATH_FUNCTIONS = {"dirname", "basename", "commonpath", "splitext"}
# These look at folders of other things: of a source's images, of runs, of the project's own files, of its outputs as
# DVC digests them, of MLflow's artifacts.
FOLDER_READERS = {
    ("data/sources/__init__.py", "_below_class"),
    ("data/sources/tracked.py", "_in_dvc_file"),
    ("data/sources/tracked.py", "_holds"),
    ("commands/predict.py", "_runs"),
    ("commands/demo.py", "_is_under"),
    ("commands/demo.py", "main"),
    ("audits/outputs.py", "digests"),
    ("tracking/artifact_locations.py", "_place"),
}


def leaks(source: str, module: str) -> list[str]:
    """Return "pipeline/<module>:<line>: <what is forbidden there>" for the source of a module."""
    tree = ast.parse(source)
    rules = (calls_for_test_labels, reading_the_split, reading_the_catalog, reading_the_source, labels_from_folders)
    found = [(node.lineno, text) for rule in rules for node, text in rule(tree, module)]
    return [f"pipeline/{module}:{line}: {text}" for line, text in sorted(set(found))]


# --- the rules -----------------------------------------------------------------------------------------------------


def calls_for_test_labels(tree: ast.Module, module: str) -> Iterator[tuple[ast.AST, str]]:
    for node in ast.walk(tree):
        for name in names_in(node):
            if module not in TEST_LABELS.get(name, {module}):
                yield node, f"{name} is for {', '.join(sorted(TEST_LABELS[name]))} alone"


def reading_the_split(tree: ast.Module, module: str) -> Iterator[tuple[ast.AST, str]]:
    if module not in SPLIT_READERS:
        yield from uses(tree, SPLIT_NAMES, SPLIT_PATHS, "read the split with artifacts.read_part")


def reading_the_catalog(tree: ast.Module, module: str) -> Iterator[tuple[ast.AST, str]]:
    if module in CATALOG_READERS:
        return
    text = f"the catalog is for {', '.join(sorted(CATALOG_READERS))}"
    yield from uses(tree, CATALOG_NAMES, CATALOG_PATHS, text)
    for node in ast.walk(tree):
        if "read_catalog" in names_in(node):
            yield node, text


def reading_the_source(tree: ast.Module, module: str) -> Iterator[tuple[ast.AST, str]]:
    if module in SOURCE_READERS or module.startswith("data/sources/"):
        return
    for node in ast.walk(tree):
        of_datasets = isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith(SOURCES)
        if (of_datasets and node.attr in ("read", "READERS")) or "READERS" in names_in(node):
            yield node, f"the source, with all labels, is for {', '.join(sorted(SOURCE_READERS))}"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline.data.sources"):
            yield node, "import the module: `from pipeline.data import sources`"


def labels_from_folders(tree: ast.Module, module: str) -> Iterator[tuple[ast.AST, str]]:
    text = "a folder of an image is its label: take labels from artifacts.read_part"
    above = parents_of(tree)
    of_parts = flow(tree, above, lambda node: isinstance(node, ast.Attribute) and node.attr in ("paths", "files"))
    for node in ast.walk(tree):
        if (module, function_of(node, above)) in FOLDER_READERS:
            continue
        above_it = above.get(node)
        if isinstance(node, ast.Attribute):
            if node.value in of_parts and node.attr in FOLDERS | PIECES:
                yield node, text
            # Of whatever path: it may be an argument that was an image's path in the caller.
            named = isinstance(above_it, ast.Attribute) and above_it.attr in ("name", "stem")
            if (node.attr == "parent" and named) or (node.attr in ("parts", "parents") and not is_module_root(node)):
                yield node, text
        if isinstance(node, ast.Call):
            splits = isinstance(node.func, ast.Attribute) and node.func.attr in PIECES
            separators = [*node.args, *(keyword.value for keyword in node.keywords)]
            if splits and any(is_separator(argument) for argument in separators):
                yield node, text
            of_part = any(argument in of_parts for argument in node.args)
            if called(node) in PATH_FUNCTIONS or (of_part and ast.unparse(node.func).startswith("re.")):
                yield node, text
        if isinstance(node, ast.Compare) and any(isinstance(operator, ast.In | ast.NotIn) for operator in node.ops):
            piece = isinstance(node.left, ast.Constant) or "label" in ast.unparse(node.left)
            if piece and any(right in of_parts for right in node.comparators):
                yield node, text


# --- how they look -------------------------------------------------------------------------------------------------


def uses(tree: ast.Module, names: set[str], paths: str, text: str) -> Iterator[tuple[ast.AST, str]]:
    """Yield what is done with the named constants, or with such paths as text, beyond the harmless."""

    def is_source(node: ast.AST) -> bool:
        text = isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(paths, node.value)
        return bool(text) or (isinstance(node, ast.Name | ast.Attribute) and bool(names & names_in(node)))

    above = parents_of(tree)
    for node in flow(tree, above, is_source):
        if not is_harmless(node, above[node]):
            yield node, f"{ast.unparse(node)}: {text}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and names & {alias.name for alias in node.names}:
            yield node, "use it as an attribute of its module"


def is_harmless(node: ast.AST, above: ast.AST) -> bool:
    """Whether a use of a path by the node above it tells nothing of the file, or only passes the path on."""
    if isinstance(above, ast.Call) and node is not above.func:
        name = called(above)
        return name in HARMLESS_CALLS | PASSING_CALLS or name.endswith("Error")
    if isinstance(above, ast.keyword):
        return above.arg in HARMLESS_KEYWORDS
    if isinstance(above, ast.Attribute):
        return above.attr in HARMLESS_METHODS | PASSING_ATTRIBUTES or above.attr.isupper()
    if isinstance(above, ast.Assign | ast.AnnAssign):
        targets = above.targets if isinstance(above, ast.Assign) else [above.target]
        return node is not above.value or all(isinstance(target, ast.Name) for target in targets)
    return isinstance(
        above,
        ast.Tuple
        | ast.List
        | ast.Set
        | ast.Dict
        | ast.Starred
        | ast.Subscript
        | ast.BinOp
        | ast.IfExp
        | ast.Compare
        | ast.JoinedStr
        | ast.FormattedValue
        | ast.comprehension
        | ast.GeneratorExp
        | ast.ListComp
        | ast.SetComp
        | ast.DictComp
        | ast.For
        | ast.Call,
    )


def flow(tree: ast.Module, above: dict[ast.AST, ast.AST], is_source: Callable[[ast.AST], bool]) -> set[ast.AST]:
    """Return every expression of a module that holds what a source names: through variables, loops, containers."""
    found = {node for node in ast.walk(tree) if is_source(node)}
    variables: set[tuple[str, str]] = set()
    while True:
        size = len(found) + len(variables)
        for node in list(found):
            passes, targets = passed_on(node, above.get(node))
            found |= {above[node]} if passes else set()
            variables |= {(function_of(node, above), name) for target in targets for name in bound(target)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                places = {function_of(node, above), *functions_around(node, above), ""}
                if any((place, node.id) in variables for place in places):
                    found.add(node)
        if len(found) + len(variables) == size:
            return found


def passed_on(node: ast.AST, above: ast.AST | None) -> tuple[bool, list[ast.AST]]:
    """Return whether the node above holds the same, and the targets to which it is bound there."""
    if isinstance(above, ast.Call):
        return (called(above) in PASSING_CALLS or node is above.func), []
    if isinstance(above, ast.Attribute):
        return above.attr in PASSING_ATTRIBUTES, []
    if isinstance(above, ast.Subscript | ast.For | ast.comprehension | ast.NamedExpr | ast.AnnAssign | ast.Assign):
        value = above.iter if isinstance(above, ast.For | ast.comprehension) else above.value
        if node is not value:
            return False, []
        if isinstance(above, ast.Assign):
            return False, above.targets
        return isinstance(above, ast.Subscript | ast.NamedExpr), [above.target] if hasattr(above, "target") else []
    if isinstance(above, ast.Dict | ast.DictComp):
        return node in (above.values if isinstance(above, ast.Dict) else [above.value]), []
    containers = (
        ast.Tuple,
        ast.List,
        ast.Set,
        ast.Starred,
        ast.BinOp,
        ast.IfExp,
        ast.JoinedStr,
        ast.FormattedValue,
        ast.GeneratorExp,
        ast.ListComp,
        ast.SetComp,
    )
    return isinstance(above, containers), []


def bound(target: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}


def names_in(node: ast.AST) -> set[str]:
    """Return the name that a node is or imports; of text, the text itself, which getattr would take."""
    if isinstance(node, ast.ImportFrom):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, str) else set()
    return {name for name in (getattr(node, kind, None) for kind in ("id", "attr", "name")) if isinstance(name, str)}


def called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def is_separator(node: ast.AST) -> bool:
    return (isinstance(node, ast.Constant) and node.value in ("/", "\\")) or ast.unparse(node) in ("os.sep", "sep")


def is_module_root(node: ast.Attribute) -> bool:
    """Data that is called "parts" and belongs to no path: `comparison.parts`, `self.comparison.parts`."""
    return node.attr == "parts" and ast.unparse(node.value).endswith("comparison")


def parents_of(tree: ast.AST) -> dict[ast.AST, ast.AST]:
    return {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}


def functions_around(node: ast.AST, above: dict[ast.AST, ast.AST]) -> list[str]:
    names = []
    while (node := above.get(node)) is not None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.append(node.name)
    return names


def function_of(node: ast.AST, above: dict[ast.AST, ast.AST]) -> str:
    """Return the name of the function around a node, empty at the top of the module."""
    return next(iter(functions_around(node, above)), "")


# --- the tests -----------------------------------------------------------------------------------------------------


def test_test_labels_reach_the_comparison_and_nothing_else():
    files = sorted(PACKAGE.rglob("*.py"))
    modules = {file: file.relative_to(PACKAGE).as_posix() for file in files}
    found = [line for file, name in modules.items() for line in leaks(file.read_text(encoding="utf-8"), name)]
    assert not found, "\n".join(found)
    named = {name for names in (*TEST_LABELS.values(), SPLIT_READERS, CATALOG_READERS) for name in names}
    assert named | {module for module, _ in FOLDER_READERS} <= set(modules.values())


@pytest.mark.parametrize(
    "code",
    [
        "labels = artifacts.read_test_labels()",
        "from pipeline.core.artifacts import read_test_labels",
        "part, labels = artifacts._read_part('test', artifacts.MANIFEST)",
        "labels = getattr(artifacts, 'read_test_labels')()",
        "rows = artifacts.read_csv(artifacts.MANIFEST, columns)",
        "rows = artifacts.read_csv(path, artifacts.MANIFEST_COLUMNS)",
        "rows = csv.DictReader(open(artifacts.MANIFEST))",
        "rows = csv.DictReader(open('data/split/manifest.csv'))",
        "text = artifacts.MANIFEST.read_text()",
        "text = (artifacts.SPLIT / 'manifest.csv').read_text()",
        "text = (Path('data') / 'split' / 'manifest.csv').read_bytes()",
        "text = open(f'{artifacts.SPLIT}/{name}')",
        "where = artifacts.MANIFEST\ntable = pandas.read_csv(where)",
        "where = [str(artifacts.MANIFEST)]\nfor path in where:\n    table = numpy.loadtxt(path)",
        "table = read(INPUTS[0])",
        "table = read(network_runs.INPUTS[0])",
        "def manifest(path=artifacts.MANIFEST):\n    return path",
        "def manifest():\n    return artifacts.MANIFEST",
        "self.manifest = artifacts.MANIFEST",
        "from pipeline.core.artifacts import MANIFEST",
        "labels = [folder.name for folder in (artifacts.SPLIT / 'test').iterdir()]",
        "files = os.walk('data/split/test')",
        "rows = artifacts.read_csv(artifacts.CATALOG, sources.CATALOG_COLUMNS)",
        "rows = open('data/catalog.csv').readlines()",
        "images = sources.read(params).images",
        "images = sources.READERS['elpv'].read(params)",
        "images = sources.folder.read(params)",
        "images = sources.read_catalog()",
        "read = sources.read_catalog\nimages = read()",
        "from pipeline.data.sources import folder",
        "from pipeline.data.sources.elpv import read",
        "labels = [path.split('/')[1] for path in part.paths]",
        "labels = [path.rpartition('/')[0] for path in part.paths]",
        "for path in part.paths:\n    label = path.split(separator)[1]",
        "for row, path in enumerate(part.files):\n    label = path.parent.name",
        "for path, sha256 in zip(part.paths, part.sha256):\n    folder = Path(path).parent\n    label = folder.name",
        "label = part.files[0].parts[-2]",
        "labels = [label for label in classes for path in part.paths if label in path]",
        "labels = ['defective' in path for path in part.paths]",
        "labels = [re.search('/(.*)/', path)[1] for path in part.paths]",
        "labels = [path.startswith('test/defective') for path in part.paths]",
        "def load(file):\n    return file.parent.name",
        "def load(file):\n    return os.path.basename(os.path.dirname(file))",
        "def load(file):\n    return str(file).split('/')[-2]",
        "def load(file):\n    return file.parents[0].stem",
    ],
)
def test_every_forbidden_way_to_a_label_is_caught(code):
    found = leaks("pass\n" + code, "stages/sweep.py")
    assert found
    assert all(re.match(r"pipeline/stages/sweep\.py:\d+: ", line) for line in found)
    assert not any(line.startswith("pipeline/stages/sweep.py:1:") for line in found)


@pytest.mark.parametrize(
    "module", ["stages/compare.py", "classifiers/repeated_splits.py", "__main__.py", "stages/split.py"]
)
def test_nobody_reads_the_manifest_by_himself(module):
    assert leaks("rows = artifacts.read_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS)", module)
    assert leaks("part, labels = artifacts._read_part('test')", module)


@pytest.mark.parametrize(
    "code",
    [
        "digest = artifacts.sha256_file(artifacts.MANIFEST)",
        "files = [artifacts.MANIFEST, other]\ndigests = {p.as_posix(): artifacts.sha256_path(p) for p in files}",
        "INPUTS = (str(artifacts.MANIFEST), *(str(artifacts.SPLIT / part) for part in artifacts.PARTS))",
        "if artifacts.MANIFEST.exists():\n    pass",
        "raise ArtifactError(f'made from another {artifacts.MANIFEST}: run `dvc repro`')",
        "train(model, inputs=[str(artifacts.MANIFEST)])",
        "rows = inference.rows(engine, batches, names=part.paths)",
        "image = decode.load(part.files[row], size=size)",
        "path.parent.mkdir(parents=True)",
    ],
)
def test_digests_and_messages_are_no_reading(code):
    assert leaks(code, "stages/sweep.py") == []
