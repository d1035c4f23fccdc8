"""What is recorded of a machine and its environment, and that it names no place, person or host."""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pipeline.commands import demo
from pipeline.console import machine
from pipeline.core import provenance

INTEL = "model name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx fma avx2 avx512f avx512_vnni amx_bf16 amx_tile\n"
OLD = "model name\t: Some Atom\nflags\t\t: fpu sse4_2\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16 sve\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (INTEL, ["AVX", "AVX2", "FMA", "AVX-512", "AVX-512 VNNI", "bfloat16", "AMX"]),
        (OLD, []),
        (ARM, ["bfloat16", "NEON", "SVE"]),
        ("", None),
    ],
    ids=["intel", "old", "arm", "unknown"],
)
def test_processor_features_are_read_as_each_architecture_writes_them(tmp_path, monkeypatch, text, expected):
    file = tmp_path / "cpuinfo"
    file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(machine, "CPUINFO", file)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert machine.cpu_features() == expected


@pytest.mark.parametrize(("text", "expected"), [("max 100000\n", None), ("150000 100000\n", 1.5), ("nonsense", None)])
def test_the_quota_of_a_container_is_in_cores(tmp_path, text, expected):
    file = tmp_path / "cpu.max"
    file.write_text(text, encoding="utf-8")
    assert machine.quota(file) == expected
    assert machine.quota(tmp_path / "none") is None


def test_packages_have_the_versions_that_are_imported():
    found = machine.packages()
    assert list(found) == sorted(found)
    for name in ("numpy", "scikit-learn", "pyyaml", "ruamel-yaml"):
        assert found[name] == metadata.version(name)


def test_flags_are_recorded_whether_they_are_set_or_not_with_others_of_their_families():
    others = {"TF_CLI_CONFIG_FILE": "of Terraform", "MLFLOW_TRACKING_PASSWORD": "secret"}
    found = machine.flags({"OMP_NUM_THREADS": "1", "TF_ENABLE_NEW": "x", **others})
    assert found["OMP_NUM_THREADS"] == "1"
    assert found["TF_ENABLE_ONEDNN_OPTS"] is None
    assert found["TF_ENABLE_NEW"] == "x"
    assert not set(others.values()) & set(found.values())


def test_the_git_state_names_the_commit_and_what_decides_results(tmp_path):
    assert machine.repository(tmp_path) is None
    (tmp_path / "params.yaml").write_text("seed: 0\n", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    demo.commit(tmp_path, "first")
    clean = machine.repository(tmp_path)
    assert clean["dirty"] is False and clean["changed"] == [] and len(clean["commit"]) == 40
    (tmp_path / "notes.txt").write_text("changed", encoding="utf-8")
    assert machine.repository(tmp_path) == clean
    (tmp_path / "params.yaml").write_text("seed: 1\n", encoding="utf-8")
    assert machine.repository(tmp_path) == {**clean, "dirty": True, "changed": ["params.yaml"]}


def test_the_environment_record_is_json_without_host_user_or_place():
    record = provenance.environment_record()
    text = json.dumps(record, allow_nan=False)
    assert {"decisive", "python", "cpu", "threads", "libraries", "flags", "packages", "git"} <= record.keys()
    assert record["decisive"] == provenance.environment()
    assert record["threads"]["available"] >= 1
    for word in (platform.node(), str(Path.home()) + "/", str(provenance.ROOT)):
        assert len(word) < 4 or word not in text
    assert f'"{getpass.getuser()}"' not in text


def test_the_record_is_no_part_of_any_stages_code():
    assert "pipeline/console/machine.py" not in provenance.import_closure("pipeline.core.provenance")


def test_the_machine_is_described_without_any_package():
    code = (
        "import json, pathlib; from pipeline.console import machine; print(json.dumps(machine.record(pathlib.Path())))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=provenance.ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["libraries"] == []
