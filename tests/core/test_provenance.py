"""What a result was made from: the code a module can execute, and how stages name their files."""

from __future__ import annotations

import pytest

from pipeline.core import provenance
from pipeline.core.params import ParamsError


@pytest.fixture
def package(tmp_path):
    """A package called pipeline, elsewhere: a imports b late, b imports the package c."""
    files = {
        "pipeline/__init__.py": "",
        "pipeline/a.py": "import json\ndef f():\n    from pipeline import b\n    return b\n",
        "pipeline/b.py": "from pipeline.c import value\n",
        "pipeline/c/__init__.py": "value = 1\n",
        "pipeline/c/unused.py": "",
        "pipeline/d.py": "from . import a\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_closure_follows_late_imports_and_packages_and_nothing_else(package):
    assert provenance.import_closure("pipeline.a", root=package) == [
        "pipeline/__init__.py",
        "pipeline/a.py",
        "pipeline/b.py",
        "pipeline/c/__init__.py",
    ]
    assert provenance.import_closure("pipeline.c.unused", root=package) == [
        "pipeline/__init__.py",
        "pipeline/c/__init__.py",
        "pipeline/c/unused.py",
    ]


def test_a_relative_import_is_refused_because_it_is_not_followed(package):
    with pytest.raises(ValueError, match="d.py:1: relative imports are not followed"):
        provenance.import_closure("pipeline.d", root=package)


def test_the_code_digest_changes_with_any_module_of_the_closure_and_no_other(package):
    before = provenance.code_digest(["pipeline.a"], root=package)
    (package / "pipeline/c/unused.py").write_text("x = 1\n")
    assert provenance.code_digest(["pipeline.a"], root=package) == before
    (package / "pipeline/c/__init__.py").write_text("value = 2\n")
    assert provenance.code_digest(["pipeline.a"], root=package) != before


def test_names_in_braces_come_from_the_item_or_from_params():
    values = {"dataset": {"path": "data/elpv.json"}}
    resolved = provenance.resolve(["data/{backbone}", "{dataset.path}", "seed"], item={"backbone": "b"}, values=values)
    assert resolved == ["data/b", "data/elpv.json", "seed"]
    with pytest.raises(ParamsError, match=r"dataset\.name is missing"):
        provenance.resolve(["{dataset.name}"], item={}, values=values)


def test_the_environment_names_what_computes_and_no_host():
    import platform

    environment = provenance.environment()
    assert {"python", "machine", "cpu", "numpy", "keras", "openvino", "scikit-learn"} <= environment.keys()
    assert platform.node() not in environment.values()
    assert provenance.digest(environment) == provenance.digest(dict(reversed(environment.items())))
