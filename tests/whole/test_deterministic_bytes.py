"""Every output is the same bytes whoever computes it where: the promises of docs/reproducibility.md.

The slow tests hold all outputs of the tiny pipeline to that; the others single stages, and what the code may not do.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.audits import outputs
from pipeline.core import provenance
from pipeline.evaluation import metrics
from tests.stages import test_compare
from tests.whole.test_pipeline import lock_of, prepare
from tests.worlds import World, elsewhere, other_locale, other_python, settled

PACKAGE = provenance.ROOT / "pipeline"


# --- the whole pipeline --------------------------------------------------------------------------------------------


def different(one: dict, other: dict) -> list[str]:
    """Return the outputs of two locks' stages that are not the same, as `python -m pipeline lock` names them."""
    claimed, found = (outputs.claims(yaml.safe_dump({"stages": stages})) for stages in (one, other))
    assert claimed.items() & found.items()
    return [f"{path} ({stage})" for stage, path in sorted({key for key, _ in claimed.items() ^ found.items()})]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_another_user_in_another_place_ends_in_the_same_lock(root, finished, tmp_path):
    """Hash seed, time zone, locale, user, home, umask, order of listings, terminal, threads of the environment: all
    differ, and so does the path, which has a space and letters of several scripts."""
    clone = tmp_path / "Kopie ü 写し" / "clone"
    prepare(root, clone)
    elsewhere(tmp_path / "home").run("dvc", "repro", cwd=clone)
    assert different(lock_of(finished), lock_of(clone)) == []
    assert lock_of(clone) == lock_of(finished)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_another_patch_release_of_python_ends_in_the_same_lock(root, finished, tmp_path):
    world = other_python(tmp_path / "python")
    if world is None:
        pytest.skip("needs another patch release of this Python")
    prepare(root, tmp_path / "clone")
    world.run("dvc", "repro", cwd=tmp_path / "clone")
    assert different(lock_of(finished), lock_of(tmp_path / "clone")) == []


def test_the_other_user_has_another_locale():
    name = other_locale()
    if name is None:
        pytest.skip("needs a locale that is not the present one: `locale -a` lists none")
    assert settled(name) != settled()


# --- single stages -------------------------------------------------------------------------------------------------


def contents(place: Path) -> dict[str, bytes]:
    return {file.relative_to(place).as_posix(): file.read_bytes() for file in place.rglob("*") if file.is_file()}


def write_folder(place: Path) -> None:
    """Write images with names of several scripts, twins, near twins, and files that are none."""
    random = np.random.default_rng(0)
    for number in range(24):
        pixels = random.integers(0, 256, (40, 40, 3)).astype(np.uint8)
        label = ("käfer", "Irmak", "zebra")[number % 3]
        file = place / label / f"{'İı' if number % 2 else 'b'} {number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
        if number % 7 == 0:
            Image.fromarray(np.clip(pixels, 1, 255)).save(file.with_name(f"near {number}.png"))
            (file.parent / f"twin {number}.png").write_bytes(file.read_bytes())
    (place / "notes.txt").write_text("of nobody", encoding="utf-8")
    (place / "zebra" / "broken.png").write_bytes(b"no image")


def test_images_are_read_and_divided_the_same_by_everybody(root, values, tmp_path):
    given = {**values, "selection": {**values["selection"], "positive_class": None}}
    given["dataset"] = {
        **values["dataset"],
        "source": "folder",
        "path": "data/images",
        "allow_untracked": True,
        "max_dropped": 0.2,
    }
    worlds = {"here": World({"PYTHONPATH": str(root)}), "Kopie ü": elsewhere(tmp_path / "home")}
    worlds["Kopie ü"].variables["PYTHONPATH"] += f":{root}"
    found = {}
    for name, world in worlds.items():
        place = tmp_path / name / "project"
        write_folder(place / "data" / "images")
        (place / "params.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
        for stage in ("dataset", "split"):
            world.run("python", "-m", "pipeline", stage, cwd=place)
        found[name] = contents(place)
    one, other = found.values()
    assert {"data/catalog.csv", "data/split/manifest.csv", "results/data/contact_sheet.png"} <= one.keys()
    assert [name for name in one if other.get(name) != one[name]] == []
    assert one.keys() == other.keys()


COMPARE = """
import json, sys
from pipeline.core.params import Params
from pipeline.console.progress import NoLog
from pipeline.stages import compare
compare.main(Params(json.loads(sys.argv[1]), compare.READS), log=NoLog())
"""


def test_methods_are_compared_the_same_by_everybody(root, tmp_path, monkeypatch):
    home = elsewhere(tmp_path / "home")
    home.variables["PYTHONPATH"] += f":{root}"
    found = []
    for name, world in (("here", World({"PYTHONPATH": str(root)})), ("Kopie ü", home)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        test_compare.write_manifest()
        test_compare.write_three_runs()
        given = test_compare.params(
            compare={
                "confidence": 0.95,
                "bootstrap_samples": 300,
                "calibration_bins": 10,
                "calibration": "temperature",
                "ensemble": 9,
            }
        )
        world.run("python", "-c", COMPARE, json.dumps(given.declared() | nested(given)), cwd=tmp_path / name)
        found.append(contents(tmp_path / name))
    one, other = found
    assert {"results/leaderboard.json", "results/figures/roc.png", "results/calibration.json"} <= one.keys()
    assert [name for name in one if other.get(name) != one[name]] == []


def nested(given) -> dict:
    """The blocks of which `compare` declares single keys."""
    return {"head": {"backbones": []}, "fine_tune": {"backbones": []}, "scratch": {"networks": ["convnet"]}}


@pytest.mark.parametrize("threads", [1, 2])
def test_metrics_of_resamples_are_the_same_bits_whatever_the_number_of_threads(threads):
    """Of the library that multiplies matrices, which takes as many as the machine has, unless told otherwise."""
    from threadpoolctl import threadpool_limits

    random = np.random.default_rng(0)
    evaluation = metrics.Evaluation(
        random.dirichlet([1, 1], 656).astype(np.float32), random.integers(0, 2, 656), positive=0
    )
    weights = random.integers(0, 4, (1500, 656)).astype(np.float64)

    def measured(limit: int) -> dict[str, bytes]:
        with threadpool_limits(limit, user_api="blas"):
            return {name: values.tobytes() for name, values in evaluation.measure(weights).items()}

    assert measured(threads) == measured(3)


@pytest.mark.parametrize("value", [{"a", "b"}, {"nested": [frozenset("ab")]}])
def test_a_set_is_refused_where_its_order_would_count(value):
    with pytest.raises(TypeError, match="sort it"):
        provenance.digest(value)
    assert provenance.digest({"path": Path("a"), "b": 1}) == provenance.digest({"b": 1, "path": "a"})


def test_limits_of_training_in_the_environment_reach_no_stage(root):
    """Keras obeys them silently: what params.yaml and the record say would not be what was done."""
    limits = {"KERAS_MAX_EPOCHS": "1", "KERAS_MAX_STEPS_PER_EPOCH": "1"}
    code = "import os, pipeline.__main__; print(sorted(name for name in os.environ if name.startswith('KERAS_')))"
    assert World(limits).run("python", "-c", code, cwd=root).splitlines()[-1] == "['KERAS_BACKEND']"


# --- what the code of stages may not do ----------------------------------------------------------------------------


@functools.cache
def parsed(file: str) -> tuple[ast.Module, dict[ast.AST, ast.AST]]:
    tree = ast.parse((provenance.ROOT / file).read_text(encoding="utf-8"))
    return tree, {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}


@functools.cache
def code_of_stages() -> list[str]:
    """Every file that a stage can execute, except what only tells MLflow of it."""
    modules = [f"pipeline.stages.{path.stem}" for path in (PACKAGE / "stages").glob("*.py")]
    modules += [
        f"pipeline.classifiers.families.{path.stem}" for path in (PACKAGE / "classifiers" / "families").glob("*.py")
    ]
    files = {file for module in modules for file in provenance.import_closure(module)}
    return sorted(file for file in files if not file.startswith("pipeline/tracking/"))


def places(wanted) -> Iterator[tuple[str, str, str]]:
    """Yield (file, function, code) of every node of the stages' code that ``wanted(node, above)`` picks."""
    for file in code_of_stages():
        tree, above = parsed(file)
        for node in ast.walk(tree):
            if wanted(node, above):
                yield file.removeprefix("pipeline/"), function_of(node, above), ast.unparse(node)


def function_of(node: ast.AST, above: dict[ast.AST, ast.AST]) -> str:
    while (node := above.get(node)) is not None:
        if isinstance(node, ast.FunctionDef):
            return node.name
    return ""


def ancestors(node: ast.AST, above: dict[ast.AST, ast.AST]) -> Iterator[ast.AST]:
    """Yield the expressions around a node, up to the statement that they belong to."""
    while (node := above.get(node)) is not None and not isinstance(node, ast.stmt):
        yield node


# Whatever order these receive, they give the same; `set` and the like give none themselves.
ORDER_FREE = {"sorted", "any", "all", "sum", "len", "set", "frozenset", "min", "max", "Counter"}
LISTINGS = {"listdir", "scandir", "iterdir", "glob", "rglob", "walk"}
# They remove what they find, or say whether there is something; or they sort what they have opened in the next line.
UNORDERED = {
    ("core/artifacts.py", "whole_directory"),
    ("stages/dataset.py", "main"),
    ("stages/compare.py", "main"),
    ("features/feature_store.py", "_remove_abandoned"),
    ("features/feature_store.py", "_bytes_in"),
    ("features/feature_store.py", "make_room"),
    ("data/sources/folder.py", "_listed"),
}


def calls(node: ast.AST, names: set[str]) -> bool:
    return isinstance(node, ast.Call) and (getattr(node.func, "attr", None) or getattr(node.func, "id", "")) in names


def test_no_stage_depends_on_the_order_in_which_a_file_system_lists():
    def unsorted(node: ast.AST, above: dict[ast.AST, ast.AST]) -> bool:
        # `ast.walk` walks over code.
        listing = calls(node, LISTINGS) and ast.unparse(node.func) != "ast.walk"
        return listing and not any(calls(around, ORDER_FREE) for around in ancestors(node, above))

    found = [place for place in places(unsorted) if place[:2] not in UNORDERED]
    assert not found, f"sort what is listed: {found}"


def test_no_stage_loops_over_a_set_whose_order_is_that_of_the_hash_seed():
    """Only where it is written as one; what a variable holds, the slow test above must find."""

    def is_set(node: ast.AST) -> bool:
        return isinstance(node, ast.Set | ast.SetComp) or calls(node, {"set", "frozenset"})

    def loops(node: ast.AST, above: dict[ast.AST, ast.AST]) -> bool:
        if not isinstance(node, ast.For | ast.comprehension) or not is_set(node.iter):
            return calls(node, {"list", "tuple", "join", "enumerate"}) and any(map(is_set, node.args))
        free = any(calls(around, ORDER_FREE) for around in ancestors(node, above))
        return not free and not isinstance(above[node], ast.SetComp)

    assert list(places(loops)) == []


CLOCKS_AND_MACHINES = re.compile(
    r"(time\.(time|time_ns|strftime|localtime|ctime|gmtime)|datetime\.\w+|date\.today|uuid\.uuid\w+|os\.getpid"
    r"|os\.(cpu_count|uname|getlogin|urandom)|multiprocessing\.cpu_count|socket\.gethostname|getpass\.getuser"
    r"|platform\.node|random\.(random|shuffle|choice|sample|randint|seed)|np\.random\.(?!Generator|PCG64|Philox)\w+"
    r"|secrets\.\w+|locale\.\w+|os\.environ\.\w+|os\.getenv)"
)
# The feature store and the caches, which are no outputs; how long to wait; where downloads lie, of checked digests.
ASKED = {
    ("features/feature_store.py", "flush"),
    ("features/feature_store.py", "_remove_abandoned"),
    ("features/feature_store.py", "from_environment"),
    ("classifiers/search/watchdog.py", "candidate_timeout"),
    ("networks/backbones/weights.py", "locate"),
    ("data/sources/keras_datasets.py", "_archives"),
}


def test_no_stage_asks_the_clock_the_machine_the_user_or_an_unseeded_generator():
    def asks(node: ast.AST, above: dict[ast.AST, ast.AST]) -> bool:
        return isinstance(node, ast.Call) and CLOCKS_AND_MACHINES.fullmatch(ast.unparse(node.func)) is not None

    found = [place for place in places(asks) if place[:2] not in ASKED]
    assert not found, f"an output may come to depend on it: {found}"


def test_text_is_read_and_written_as_utf_8_whatever_the_locale():
    def without_encoding(node: ast.AST, above: dict[ast.AST, ast.AST]) -> bool:
        if not calls(node, {"open", "read_text", "write_text", "fdopen", "TextIOWrapper"}):
            return False
        name = ast.unparse(node.func)
        if name in ("os.open", "Image.open", "artifacts.write_text", "write_text", "gzip.open", "tarfile.open"):
            return False
        modes = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        binary = any(isinstance(mode, str) and "b" in mode for mode in modes)
        return not binary and "encoding" not in {keyword.arg for keyword in node.keywords}

    assert list(places(without_encoding)) == []


GUARDS = {
    "return [x for x in p.iterdir()]": test_no_stage_depends_on_the_order_in_which_a_file_system_lists,
    "return list({1, 2})": test_no_stage_loops_over_a_set_whose_order_is_that_of_the_hash_seed,
    "return [x for x in set(p)]": test_no_stage_loops_over_a_set_whose_order_is_that_of_the_hash_seed,
    "return time.time()": test_no_stage_asks_the_clock_the_machine_the_user_or_an_unseeded_generator,
    "return np.random.rand()": test_no_stage_asks_the_clock_the_machine_the_user_or_an_unseeded_generator,
    "return p.read_text()": test_text_is_read_and_written_as_utf_8_whatever_the_locale,
}


@pytest.mark.parametrize("code", GUARDS)
def test_every_guard_catches_what_it_forbids(code, monkeypatch):
    tree = ast.parse(f"def f(p):\n    {code}")
    above = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    monkeypatch.setitem(globals(), "code_of_stages", lambda: ["pipeline/planted.py"])
    monkeypatch.setitem(globals(), "parsed", lambda file: (tree, above))
    with pytest.raises(AssertionError):
        GUARDS[code]()


def test_the_code_of_stages_is_most_of_the_package():
    assert len(code_of_stages()) > 40
    assert {
        "pipeline/evaluation/metrics.py",
        "pipeline/images/decode.py",
        "pipeline/classifiers/families/lightgbm.py",
    } <= set(code_of_stages())


def test_a_result_written_under_a_strict_mask_is_the_same_file(tmp_path):
    """Permissions are the user's; DVC keeps one bit of them, whether a file may be executed."""
    code = "from pathlib import Path; from pipeline.core import artifacts; artifacts.write_json(Path('a.json'), {})"
    modes = []
    for mask in (0o000, 0o077):
        place = tmp_path / f"{mask:o}"
        place.mkdir()
        World({"PYTHONPATH": str(provenance.ROOT)}, umask=mask).run(sys.executable, "-c", code, cwd=place)
        modes.append((place / "a.json").stat().st_mode)
    assert [mode & 0o111 for mode in modes] == [0, 0]
    assert [mode & 0o777 for mode in modes] == [0o666, 0o600]
