"""What `doctor` says of a machine, an environment and a project, each wrong in one way."""

from __future__ import annotations

import collections
import hashlib
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import types
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from pipeline.audits import health
from pipeline.audits.health import hardware, inputs, installation, leftovers, results, stores
from pipeline.commands import demo, doctor
from pipeline.console import findings, machine
from pipeline.console.errors import BakeoffError
from pipeline.console.findings import Finding
from pipeline.core import artifacts, provenance
from pipeline.features import feature_store


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict) -> Path:
    """An empty folder with the committed params.yaml, as the working directory."""
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "BAKEOFF_FEATURE_STORE", "BAKEOFF_FEATURE_STORE_GB", "KERAS_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    write_params(values)
    return tmp_path


def write_params(values: dict, **changes: object) -> None:
    changed = yaml.safe_load(yaml.safe_dump(values))
    for key, value in changes.items():
        block, _, name = key.replace("__", ".").partition(".")
        if name:
            changed[block][name] = value
        else:
            changed[block] = value
    Path("params.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")


def levels(found) -> list[str]:
    return [finding.level for finding in found]


# --- findings ------------------------------------------------------------------------------------------------------


def test_the_table_wraps_what_is_wrong_and_never_the_command_that_mends_it():
    command = "python -m pip install " + "x" * 150
    text = findings.table([Finding("problem", "packages", "word " * 60, command), Finding("ok", "git", "fine")])
    lines = text.splitlines()
    assert lines[0].startswith("problem  packages  word")
    assert any(line.strip() == f"-> {command}" for line in lines)
    assert all(len(line) <= findings.CONSOLE for line in lines if "->" not in line)
    assert lines[-1] == "ok       git       fine"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "nothing is wrong"),
        (["ok"], "nothing is wrong"),
        (["problem", "ok", "problem"], "2 problems"),
        (["warning", "problem"], "1 problem and 1 warning"),
    ],
)
def test_the_verdict_counts(given, said):
    assert findings.verdict([Finding(level, "", "") for level in given]) == said


def test_a_check_that_fails_is_a_finding_and_stops_no_other():
    def fail(error: Exception):
        def check():
            raise error

        return check

    def found(error: Exception) -> Finding:
        (finding,) = health.examine("subject", fail(error))
        return finding

    missing = found(ModuleNotFoundError("No module named 'numpy'", name="numpy"))
    assert (missing.level, "numpy cannot be imported" in missing.message) == ("warning", True)
    assert found(BakeoffError("mend this")) == Finding("problem", "subject", "mend this")
    assert "TypeError: odd" in found(TypeError("odd")).message
    assert found(TypeError("odd")).level == "problem"


def test_what_never_answers_is_given_up_and_the_others_are_heard():
    silent = ("silent", lambda: time.sleep(30) or [])
    quick = ("quick", lambda: [Finding("ok", "quick", "here")])
    started = time.monotonic()
    (first,), (second,) = health.examine_within([silent, quick], seconds=0.3)
    assert time.monotonic() - started < 3
    assert first == Finding("problem", "silent", "no answer within 0 s")
    assert second.level == "ok"


# --- installation --------------------------------------------------------------------------------------------------

LOCKED = """\
absl-py==2.5.1 \\
    --hash=sha256:00
contourpy==1.3.3 ; python_full_version < '3.12' \\
    --hash=sha256:00
contourpy==1.4.0 ; python_full_version >= '3.12' \\
    --hash=sha256:00
Ruamel.YAML[jinja2]==0.18 \\
    --hash=sha256:00
pywin32==312 ; sys_platform == 'win32' \\
    --hash=sha256:00
"""


def test_a_lock_files_lines_count_where_their_marker_holds():
    pins, unclear = installation.pins(LOCKED)
    contourpy = "1.3.3" if sys.version_info < (3, 12) else "1.4.0"
    assert pins == {"absl-py": "2.5.1", "contourpy": contourpy, "ruamel-yaml": "0.18"}
    assert unclear == []


def test_without_anything_to_read_markers_the_other_lines_still_count(monkeypatch):
    monkeypatch.setattr(installation, "_markers", lambda: None)
    assert installation.pins(LOCKED) == (
        {"absl-py": "2.5.1", "ruamel-yaml": "0.18"},
        ["contourpy", "contourpy", "pywin32"],
    )


def test_packages_that_are_missing_or_of_another_version_are_named_and_more_of_them_are_fine(project, monkeypatch):
    Path("requirements.lock").write_text("numpy==2.4.6 \\\nkeras==3.15.1 \\\nscipy==1.17.0 \\\n", encoding="utf-8")
    monkeypatch.setattr(installation, "MODULES", {})
    monkeypatch.setattr(machine, "packages", lambda: {"numpy": "2.4.5", "scipy": "1.17.0", "my-own": "1"})
    (finding,) = installation.packages()
    assert finding.level == "problem"
    assert finding.message == (
        "missing: keras 3.15.1; another version: numpy 2.4.5 (locked: 2.4.6); of 3 in requirements.lock"
    )
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    assert installation.packages()[0].remedy.endswith("-m pip install --require-hashes --requirement requirements.lock")
    # Not in an environment: nothing is installed into the system's Python.
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    assert installation.packages()[0].remedy == "make environment"
    artifacts.write_text(Path(".venv/installed-from"), "")
    assert installation.packages()[0].remedy == ". .venv/bin/activate"
    whole = {"numpy": "2.4.6", "keras": "3.15.1", "scipy": "1.17.0", "my-own": "1"}
    monkeypatch.setattr(machine, "packages", lambda: whole)
    assert levels(installation.packages()) == ["ok"]


def test_a_package_whose_files_are_gone_is_named_with_what_brings_it_back(project, monkeypatch):
    Path("requirements.lock").write_text("numpy==2.4.6 \\\n", encoding="utf-8")
    monkeypatch.setattr(machine, "packages", lambda: {"numpy": "2.4.6"})
    monkeypatch.setattr(installation, "MODULES", {"numpy": "a_module_that_is_not_there"})
    (finding,) = installation.packages()
    assert "recorded as installed, but not there: numpy" in finding.message
    assert finding.remedy.endswith("-m pip install --force-reinstall --no-deps numpy==2.4.6")


def test_every_module_that_is_looked_for_belongs_to_a_declared_package(root):
    pins, _ = installation.pins((root / "requirements.lock").read_text(encoding="utf-8"))
    others = {"tensorflow", "tensorflow-cpu", "xgboost", "xgboost-cpu"}  # one of two, by the system
    assert set(installation.MODULES) - others <= set(pins)
    for package, module in installation.MODULES.items():
        if package in machine.packages():
            assert installation._is_whole(module), package


def test_an_unsupported_python_is_a_problem(monkeypatch):
    monkeypatch.setattr(installation, "OLDEST", (3, 98))
    monkeypatch.setattr(installation, "NEWEST", (3, 99))
    (finding,) = installation.python()
    assert (finding.level, finding.remedy) == ("problem", "make environment PYTHON=/path/to/python3.98")


def test_a_path_on_which_dvc_would_find_another_python_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert levels(installation.python()) == ["ok"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no `python` on PATH" in installation.python()[1].message
    (tmp_path / "python").write_text("#!/bin/sh\n", encoding="utf-8")
    (tmp_path / "python").chmod(0o755)
    found = installation.python()
    assert levels(found) == ["ok", "warning"]
    assert str(tmp_path / "python") in found[1].message


# --- hardware ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "level", "word"),
    [
        (["AVX", "AVX2", "AVX-512", "AMX"], "ok", "AVX-512, AMX"),
        (["AVX", "AVX2"], "ok", "no AVX-512, no AMX"),
        (["AVX"], "warning", "no AVX2"),
        ([], "problem", "no AVX"),
        (None, "ok", "unknown"),
    ],
)
def test_a_processor_is_judged_by_what_libraries_are_compiled_for(monkeypatch, features, level, word):
    monkeypatch.setattr(machine, "cpu_features", lambda: features)
    monkeypatch.setattr(hardware.platform, "machine", lambda: "x86_64")
    (finding,) = hardware.processor()
    assert finding.level == level
    assert word in finding.message


def test_more_threads_than_cores_is_a_warning_also_in_a_container(project, values, monkeypatch):
    write_params(values, compute__threads=2)
    for cores, level in (
        ({"logical": 8, "available": 8, "quota": None}, "ok"),
        ({"logical": 8, "available": 1, "quota": None}, "warning"),
        ({"logical": 8, "available": 8, "quota": 1.5}, "warning"),
    ):
        monkeypatch.setattr(machine, "cores", lambda cores=cores: cores)
        (finding,) = hardware.compute()
        assert finding.level == level, cores
    assert finding.remedy == "params.yaml: compute.threads: 1"


def test_bfloat16_without_its_instructions_is_a_warning(project, values, monkeypatch):
    write_params(values, compute__precision="bfloat16", compute__threads=1)
    monkeypatch.setattr(machine, "cpu_features", lambda: ["AVX2"])
    assert levels(hardware.compute()) == ["warning"]
    monkeypatch.setattr(machine, "cpu_features", lambda: ["AVX2", "bfloat16"])
    assert levels(hardware.compute()) == ["ok"]


def test_variables_that_change_last_digits_are_named_and_thread_counts_are_not_among_them(monkeypatch):
    for name in hardware.CHANGE_DIGITS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert levels(hardware.variables()) == ["ok"]
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    (finding,) = hardware.variables()
    assert (finding.level, finding.remedy) == ("warning", "unset TF_ENABLE_ONEDNN_OPTS")
    assert set(hardware.CHANGE_DIGITS) <= set(machine.FLAGS)


def test_a_disk_that_is_too_small_is_a_problem_unless_most_is_there_already(project, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 10**8))
    assert levels(hardware.disk()) == ["problem"]
    hardware.FINISHED.mkdir(parents=True)
    assert levels(hardware.disk()) == ["warning"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 10**11))
    assert levels(hardware.disk()) == ["ok"]


def test_the_disk_that_is_wanted_is_what_make_repro_announces(root):
    script = (root / "scripts" / "environment.sh").read_text(encoding="utf-8")
    (announced,) = re.findall(r"^ *repro\) .*megabytes=(\d+)", script, flags=re.MULTILINE)
    assert int(announced) == hardware.REPRO_MEGABYTES


# --- inputs --------------------------------------------------------------------------------------------------------


def test_params_are_checked_as_before_every_stage(project, values):
    assert levels(doctor.choices()) == ["ok"]
    write_params(values, split__validation=0.8, seed=-1)
    found = doctor.choices()
    assert levels(found) == ["problem", "problem"]
    assert any("split.validation must be less than 0.5, received 0.8" in finding.message for finding in found)


def test_the_images_are_compared_with_their_description(project, root, values):
    (project / "data").mkdir()
    shutil.copy(root / "data" / "elpv.json", project / "data")
    (finding,) = inputs.images()
    assert (finding.level, "2,624 of elpv" in finding.message) == ("ok", True)
    text = (project / "data" / "elpv.json").read_text(encoding="utf-8")
    wrong = re.sub(r'("sha256": ")[0-9a-f]{8}', r"\g<1>00000000", text)
    assert wrong != text
    (project / "data" / "elpv.json").write_text(wrong, encoding="utf-8")
    (finding,) = inputs.images()
    assert finding.level == "problem"
    assert "wants images with digest 00000000" in finding.message


def test_a_folder_of_images_must_be_there_hold_classes_and_be_tracked(project, values):
    write_params(values, dataset__source="folder", dataset__path="data/images")
    (finding,) = inputs.images()
    assert (finding.level, finding.remedy) == ("problem", "copy class folders with images into data/images")
    Path("data").mkdir()
    Path("data/images.dvc").write_text("outs:\n- path: images\n", encoding="utf-8")
    (finding,) = inputs.images()
    assert (finding.level, finding.remedy) == ("problem", "dvc pull data/images.dvc")
    for name in ("cat", "dog"):
        Path("data/images", name).mkdir(parents=True)
        Path("data/images", name, "1.png").write_bytes(b"x")
    (finding,) = inputs.images()
    assert (finding.level, finding.message.startswith("2 classes")) == ("ok", True)
    Path("data/images.dvc").unlink()
    demo.commit(project, "images")
    subprocess.run(["git", "rm", "-r", "--quiet", "--cached", "data/images"], check=True, env=demo.environment())
    (finding,) = inputs.images()
    assert (finding.level, finding.remedy) == ("problem", "dvc add data/images")


def test_weights_in_a_package_are_compared_with_their_digest(project, monkeypatch):
    from pipeline.networks.backbones import weights

    (finding,) = inputs.weights()
    assert finding.level == "ok"
    assert finding.message.startswith("efficientnet_lite0: ") and "right digest" in finding.message
    other = weights.PackageFile(package="a-package-that-is-not-there", file="x", sha256="0")
    monkeypatch.setattr(inputs, "_official", lambda entry: other)
    (finding,) = inputs.weights()
    assert (finding.level, "is not installed" in finding.message) == ("problem", True)
    artifacts.write_json(artifacts.BACKBONES / "efficientnet_lite0" / "spec.json", {})
    (finding,) = inputs.weights()
    assert (finding.level, "built before" in finding.message) == ("warning", True)


def test_weights_may_be_random_or_a_file(project, values):
    write_params(values, backbone__weights="random")
    assert levels(inputs.weights()) == ["ok"]
    write_params(values, backbone__weights="mine.weights.h5")
    (finding,) = inputs.weights()
    assert (finding.level, "there is no file mine.weights.h5" in finding.message) == ("problem", True)
    Path("mine.weights.h5").write_bytes(b"numbers")
    assert hashlib.sha256(b"numbers").hexdigest()[:12] in inputs.weights()[0].message


def test_weights_that_keras_downloads_are_looked_for_and_not_downloaded(project, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(project / "home"))
    digest = hashlib.md5(b"numbers", usedforsecurity=False).hexdigest()
    official = types.SimpleNamespace(name="vgg16.h5", url="https://nowhere.invalid/vgg16.h5", checksum=digest)
    monkeypatch.setattr(inputs, "_official", lambda entry: official)
    (finding,) = inputs.weights()
    assert (finding.level, "https://nowhere.invalid/vgg16.h5" in finding.message) == ("warning", True)
    assert not (project / "home").exists()
    place = project / "home" / "models" / "vgg16.h5"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"numbers")
    assert levels(inputs.weights()) == ["ok"]
    place.write_bytes(b"others")
    (finding,) = inputs.weights()
    assert (finding.level, finding.remedy) == ("problem", f"rm {place}")


# --- stores --------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_git_clone_is_a_problem(project):
    (finding,) = stores.git()
    assert (finding.level, finding.remedy.startswith("git init && git add --all && git commit")) == ("problem", True)
    demo.commit(project, "first")
    (finding,) = stores.git()
    assert (finding.level, finding.message.endswith("of what decides results: nothing")) == ("ok", True)
    Path("params.yaml").write_text("seed: 1\n", encoding="utf-8")
    assert stores.git()[0].message.endswith("of what decides results: 1 file")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    file = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(file)) as opened:
        opened.execute("CREATE TABLE runs (x TEXT)")
        opened.executemany("INSERT INTO runs VALUES (?)", [("x" * 500,)] * 200)
        opened.commit()
    return file


def test_a_whole_database_is_fine_and_left_as_it_is(database):
    before = database.read_bytes()
    (finding,) = stores.database(database)
    assert (finding.level, finding.message.endswith("whole")) == ("ok", True)
    assert database.read_bytes() == before
    assert sorted(path.name for path in database.parent.iterdir()) == ["mlflow.db"]


def test_a_database_that_is_not_there_is_not_made(tmp_path):
    assert levels(stores.database(tmp_path / "none.db")) == ["ok"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "overwritten", "no database", "another's"])
def test_a_damaged_database_is_a_problem_with_a_way_out(database, damage):
    content = database.read_bytes()
    if damage == "cut":
        database.write_bytes(content[: len(content) // 2])
    if damage == "overwritten":
        database.write_bytes(content[:8192] + b"\xff" * 8192 + content[16384:])
    if damage == "no database":
        database.write_bytes(b"no database" * 100)
    if damage == "another's":
        with closing(sqlite3.connect(database)) as opened:
            opened.execute("ALTER TABLE runs RENAME TO others")
    (finding,) = stores.database(database)
    assert finding.level == "problem"
    assert finding.remedy == f"mv {database} {database}.broken && python -m pipeline sync"


def test_a_database_that_somebody_writes_is_a_warning(database):
    with closing(sqlite3.connect(database)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        (finding,) = stores.database(database)
    assert (finding.level, "locked" in finding.message) == ("warning", True)


def test_a_large_database_is_read_only_for_so_long(database, monkeypatch):
    monkeypatch.setattr(stores, "STEPS_BETWEEN_LOOKS", 1)
    with closing(sqlite3.connect(database)) as opened:
        opened.set_progress_handler(lambda: True, 1)
        assert stores._damage(opened) == ""


def test_a_server_that_is_away_is_a_problem_and_its_password_stays_hidden(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    (finding,) = health.examine("MLflow", stores.mlflow)
    assert finding.level == "problem"
    assert "Connection refused" in finding.message and "secret" not in finding.message
    assert finding.remedy.startswith("unset MLFLOW_TRACKING_URI")


def remote(project: Path, config: str) -> list[Finding]:
    (project / ".dvc").mkdir(exist_ok=True)
    (project / ".dvc" / "config").write_text(config, encoding="utf-8")
    return list(health.examine("DVC remote", stores.dvc_remote))


def test_a_project_without_a_remote_is_fine(project, monkeypatch):
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(project / "none"))
    (finding,) = remote(project, "[core]\n    analytics = false\n")
    assert (finding.level, finding.message.startswith("none")) == ("ok", True)


def test_a_remote_must_be_there_or_be_makeable_and_one_must_be_the_default(project, monkeypatch):
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(project / "none"))
    (project / "storage").mkdir()
    (finding,) = remote(project, f"[core]\n    remote = here\n['remote \"here\"']\n    url = {project}/storage\n")
    assert (finding.level, finding.message.endswith("answers")) == ("ok", True)
    (finding,) = remote(project, f"[core]\n    remote = here\n['remote \"here\"']\n    url = {project}/new\n")
    assert (finding.level, "first `dvc push` makes it" in finding.message) == ("ok", True)
    assert not (project / "new").exists()
    (finding,) = remote(project, f"['remote \"here\"']\n    url = {project}/storage\n")
    assert (finding.level, finding.remedy) == ("warning", "dvc remote default here")
    (finding,) = remote(project, "[core]\n    remote = gone\n['remote \"here\"']\n    url = /tmp\n")
    assert (finding.level, "remote 'gone' doesn't exist" in finding.message) == ("problem", True)


def test_every_remote_that_does_not_verify_is_a_warning_whichever_file_names_it(project, monkeypatch):
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(project / "global"))
    (project / "global").mkdir()
    (project / ".dvc").mkdir()
    config = "['remote \"team\"']\n    url = /team\n    verify = true\n['remote \"open\"']\n    url = /open\n"
    (project / ".dvc" / "config").write_text(config, encoding="utf-8")
    (finding,) = stores.verified_remotes()
    assert (finding.level, finding.remedy) == ("warning", "dvc remote modify open verify true")
    local = "['remote \"team\"']\n    verify = false\n['remote \"open\"']\n    verify = true\n"
    (project / ".dvc" / "config.local").write_text(local, encoding="utf-8")
    (project / "global" / "config").write_text("['remote \"mine\"']\n    url = /mine\n", encoding="utf-8")
    found = stores.verified_remotes()
    assert {finding.remedy for finding in found} == {
        "dvc remote modify --local team verify true",
        "dvc remote modify --global mine verify true",
    }
    for finding in found:
        subprocess.run([sys.executable, "-m", *finding.remedy.split()], check=True, capture_output=True)
    (finding,) = stores.verified_remotes()
    assert (finding.level, finding.message) == (
        "ok",
        "what is fetched from mine, open, team is compared with its digest",
    )


def test_a_remote_on_a_server_that_is_away_is_a_problem_in_bounded_time(project, monkeypatch):
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(project / "none"))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        (project / ".dvc").mkdir()
        config = f"[core]\n    remote = web\n['remote \"web\"']\n    url = http://127.0.0.1:{port}/dvc\n"
        (project / ".dvc" / "config").write_text(config, encoding="utf-8")
        from dvc import config, fs  # noqa: F401  # their import is not what is measured

        started = time.monotonic()
        ((finding,),) = health.examine_within([("DVC remote", stores.dvc_remote)], seconds=1)
        assert time.monotonic() - started < 5
    assert finding.level == "problem"


def test_kept_computations_of_another_environment_are_a_warning_and_none_counts_as_used(project, monkeypatch):
    assert levels(stores.kept_computations()) == ["ok"]
    assert not Path(".cache").exists()
    store = feature_store.from_environment()
    for network in ("here", "there"):
        store.space({"network": network}, width=3)
    spaces = [space.directory for space in store.spaces()]
    for directory in spaces:
        os.utime(directory, (0, 0))
    assert levels(stores.kept_computations()) == ["ok"]
    about = artifacts.read_json(spaces[0] / "space.json")
    about["environment"]["openvino"] = "2020.1"
    (spaces[0] / "space.json").write_text(str(about).replace("'", '"'), encoding="utf-8")
    os.utime(spaces[0], (0, 0))
    found = stores.kept_computations()
    assert levels(found) == ["ok", "warning"]
    assert "1 of 2 networks" in found[1].message
    assert f"openvino 2020.1, here {provenance.environment()['openvino']}" in found[1].message
    assert [directory.stat().st_mtime for directory in spaces] == [0, 0]
    monkeypatch.setenv("BAKEOFF_FEATURE_STORE_GB", "0")
    assert levels(stores.kept_computations()) == ["warning", "warning"]
    monkeypatch.setenv("BAKEOFF_FEATURE_STORE_GB", "much")
    assert health.examine("kept computations", stores.kept_computations)[0].level == "problem"


# --- results -------------------------------------------------------------------------------------------------------


def write_result(recorded: str, found: str) -> None:
    digest = hashlib.md5(recorded.encode(), usedforsecurity=False).hexdigest()
    entry = {"cmd": "a", "outs": [{"path": "results/a b", "hash": "md5", "md5": digest}, {"path": "b", "md5": "0"}]}
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"a@x": entry}}), encoding="utf-8")
    Path("results").mkdir(exist_ok=True)
    Path("results/a b").write_text(found, encoding="utf-8")


def test_results_that_are_not_those_of_the_lock_are_a_problem_and_missing_ones_are_none(project):
    assert levels(results.results()) == ["ok"]
    write_result("result", "result")
    assert results.results() == [Finding("ok", "results", "1 outputs as dvc.lock says; 1 are not on disk")]
    write_result("result", "resulT")
    (finding,) = results.results()
    assert finding.level == "problem"
    assert finding.message.startswith("results/a b is not what dvc.lock says")
    assert finding.remedy.splitlines()[0].startswith("rm -rf 'results/a b' && dvc checkout 'results/a b'")
    assert finding.remedy.splitlines()[1].startswith("dvc repro --force --single-item a@x")


def test_results_that_take_longer_than_the_time_given_are_a_warning(project):
    write_result("result", "resulT")
    found = results.results(seconds=-1)
    assert levels(found) == ["warning"]
    assert (found[0].message, found[0].remedy) == (
        "1 of 2 outputs were not read within -1 s",
        "python -m pipeline lock",
    )


def test_results_are_left_alone_while_a_stage_writes_them(project):
    write_result("result", "half")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "dvc", "repro"]) as running:
        write_lock(lock_of(running.pid))
        assert "while a stage is running" in results.results()[0].message
        running.kill()
    assert levels(results.results()) == ["problem"]


# --- leftovers -----------------------------------------------------------------------------------------------------


def lock_of(pid: int) -> str:
    return f'{{"write": {{"/a/file": {{"pid": {pid}, "cmd": "dvc repro"}}}}, "read": {{}}}}'


def write_lock(text: str) -> None:
    leftovers.DVC_LOCKS.parent.mkdir(parents=True, exist_ok=True)
    leftovers.DVC_LOCKS.write_text(text, encoding="utf-8")


def test_a_clean_project_has_no_leftovers(project):
    write_lock('{"write": {}, "read": {}}')
    assert leftovers.leftovers() == [Finding("ok", "leftovers", "none")]


@pytest.mark.parametrize("text", ['{"write"', "[]", '{"write": {"a": 1}}', ""])
def test_a_damaged_lock_of_dvc_is_a_problem(project, text):
    write_lock(text)
    assert leftovers.leftovers()[0][:2] == ("problem", "leftovers")
    assert leftovers.leftovers()[0].remedy == "rm .dvc/tmp/rwlock"


def test_a_lock_of_a_process_that_ended_is_none_and_of_another_program_a_problem(project):
    ended = subprocess.Popen(["true"])
    ended.wait()
    write_lock(lock_of(ended.pid))
    assert levels(leftovers.leftovers()) == ["ok"]
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            write_lock(lock_of(other.pid))
            (finding,) = leftovers.leftovers()
        finally:
            other.kill()
    assert (finding.level, finding.remedy) == ("problem", "rm .dvc/tmp/rwlock")


def test_what_a_killed_stage_was_writing_is_named_unless_one_runs_now(project):
    half = ["data/backbones/.lite0.ab12cd", "results/runs/.lite0-head.x_y8", "results/.metrics.json.q1.json"]
    for name in half:
        Path(name).mkdir(parents=True)
    for name in ("results/.gitignore", "data/images/cat/.thumb.nail.png", "data/.gitignore"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("", encoding="utf-8")
    (finding,) = leftovers.leftovers()
    assert finding.level == "warning"
    assert finding.remedy == f"rm -r {' '.join(sorted(half))}"
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "dvc", "repro"]) as running:
        try:
            write_lock(lock_of(running.pid))
            (finding,) = leftovers.leftovers()
        finally:
            running.kill()
    assert (finding.level, finding.message) == ("ok", "none; running now: dvc repro")


def test_locks_of_git_and_workspaces_of_experiments_are_warnings(project):
    for name in (".git", ".dvc/tmp/exps/standalone/tmpabc"):
        Path(name).mkdir(parents=True)
    Path(".git/index.lock").write_text("", encoding="utf-8")
    assert [finding.remedy for finding in leftovers.leftovers()] == [
        "rm .git/index.lock",
        "rm -r .dvc/tmp/exps/standalone/tmpabc",
    ]


# --- the command ---------------------------------------------------------------------------------------------------


def run_doctor(*options: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**demo.environment(), **variables}
    command = [sys.executable, *options, "-m", "pipeline", "doctor"]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_without_any_package_it_names_those_that_are_missing(root):
    """-S leaves out site-packages: as in an environment that was never built."""
    done = run_doctor("-S", cwd=root)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(r"^problem  packages .*missing: absl-py", done.stdout, flags=re.MULTILINE)
    assert re.search(r"-> (make environment|.* pip install --require-hashes|\. .*activate)", done.stdout)
    assert re.search(r"^warning  images .*cannot be imported", done.stdout, flags=re.MULTILINE)
    assert re.search(r"^ok       (processor|git|disk) ", done.stdout, flags=re.MULTILINE)


def test_a_package_that_is_broken_is_a_finding_too(root, tmp_path):
    (tmp_path / "pydantic.py").write_text("raise RuntimeError('half an installation')\n", encoding="utf-8")
    done = run_doctor(cwd=root, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "RuntimeError: half an installation" in done.stdout


def test_it_looks_at_everything_within_seconds_and_changes_nothing(root):
    def state() -> str:
        command = ["git", "status", "--porcelain", "--ignored"]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout

    if not (root / ".git").exists():
        pytest.skip("needs a git clone of the project")
    run_doctor(cwd=root)  # compiles byte code
    before, started = state(), time.monotonic()
    done = run_doctor(cwd=root)
    assert time.monotonic() - started < 20  # 5 on an idle machine
    assert state() == before
    lines = [line for line in done.stdout.splitlines() if line[:8].strip() in findings.LEVELS]
    subjects = {line[9:].split("  ")[0].strip() for line in lines}
    assert subjects == {*doctor.CHECKS, *doctor.AWAY}
    assert done.returncode == ("problem  " in done.stdout)
    assert "Traceback" not in done.stderr


def test_elsewhere_it_says_where_to_go(tmp_path):
    done = run_doctor(cwd=tmp_path, PYTHONPATH=str(provenance.ROOT))
    assert done.returncode == 1
    assert "cd to the root of the project" in done.stdout
