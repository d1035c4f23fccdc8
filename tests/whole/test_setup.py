"""A new user's first minutes: the lock files, the Makefile, and the script that builds the environment."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

LOCKS = ("requirements.lock", "requirements-gpu.lock")
TARGETS = ("help", "repro", "review", "test", "lint", "ui", "demo", "bench", "clean-features", "environment", "lock")


# --- lock files ----------------------------------------------------------------------------------------------------


def pinned(lock: Path) -> set[str]:
    return set(re.findall(r"^([\w.-]+)(?:\[[^\]]*\])?==", lock.read_text(encoding="utf-8"), flags=re.MULTILINE))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("name", LOCKS)
def test_lock_names_no_host_and_gives_a_hash_for_every_package(root, name):
    text = (root / name).read_text(encoding="utf-8")
    assert "://" not in text
    assert "--index-url" not in text and "--find-links" not in text
    blocks = re.split(r"^(?=[\w.-]+(?:\[[^\]]*\])?==)", text, flags=re.MULTILINE)[1:]
    assert len(blocks) > 100
    assert all("--hash=sha256:" in block for block in blocks)


@pytest.mark.parametrize(("name", "variant"), [("requirements.lock", "cpu"), ("requirements-gpu.lock", "gpu")])
def test_lock_holds_every_dependency_at_an_allowed_version(root, name, variant):
    from packaging.requirements import Requirement

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    locked: dict[str, set[str]] = {}
    pins = re.findall(r"^([\w.-]+)==([\w.!+]+)", (root / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    for package, version in pins:
        locked.setdefault(normal(package), set()).add(version)
    for line in [*project["dependencies"], *extras[variant], *extras["test"]]:
        requirement = Requirement(line)
        versions = locked.get(normal(requirement.name), set())
        assert versions, f"{name} lacks {line}: run `make lock`"
        assert all(requirement.specifier.contains(version) for version in versions), f"{line}: {versions}"


def test_gpu_lock_differs_only_in_what_a_gpu_needs(root):
    cpu, gpu = (pinned(root / name) for name in LOCKS)
    assert cpu - gpu == {"tensorflow-cpu"}
    assert gpu - cpu and all(name.startswith("nvidia-") for name in gpu - cpu)


# --- Makefile ------------------------------------------------------------------------------------------------------


def make(directory: Path, *arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=directory, env=environment, capture_output=True, text=True)


def test_help_lists_every_target(root, environment):
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE)
    assert sorted(targets) == sorted(TARGETS)
    for arguments in ((), ("help",)):
        shown = make(root, *arguments, environment=environment).stdout
        assert re.findall(r"^make ([a-z-]+) ", shown, flags=re.MULTILINE) == targets


def test_every_target_is_phony(root):
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    assert set(re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)[1].split()) == set(TARGETS)


@pytest.mark.parametrize("variant", ["", "1"])
def test_targets_use_the_environment_of_their_variant(root, environment, variant):
    venv, lock = (".venv-gpu", "requirements-gpu.lock") if variant else (".venv", "requirements.lock")
    for target in ("repro", "review", "test", "lint", "ui", "demo", "bench", "clean-features"):
        lines = make(root, "--dry-run", target, f"GPU={variant}", environment=environment).stdout.splitlines()
        assert lines[0] == f"sh scripts/environment.sh {target} {venv} {lock}"
        assert all(
            f"$PWD/{venv}/bin:" in line for line in lines[1:] if "python" in line or "dvc" in line or "ruff" in line
        )


def test_what_the_targets_leave_behind_is_ignored_by_git(root):
    ignored = (root / ".gitignore").read_text(encoding="utf-8").splitlines()
    places = (".venv", ".venv-gpu", ".cache", ".demo", ".mlflow", "dvc_plots")
    assert {f"/{place}/" for place in places} <= set(ignored)


# --- the environment -----------------------------------------------------------------------------------------------


def write_wheel(directory: Path, *, name: str, version: str) -> str:
    """Write a wheel with one empty module; return its line for a lock file."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": b"",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [f"{path},sha256={_record_hash(data)},{len(data)}" for path, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    wheel = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


def _record_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


class Project:
    """A copy of the Makefile and its scripts, with a lock of one tiny package that pip finds on disk."""

    def __init__(self, directory: Path, root: Path, environment: dict[str, str]):
        self.directory = directory
        self.wheels = directory / "wheels"
        self.wheels.mkdir(parents=True)
        (directory / ".git").mkdir()
        shutil.copy(root / "Makefile", directory)
        shutil.copytree(root / "scripts", directory / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        self.lock = directory / "requirements.lock"
        self.lock.write_text(write_wheel(self.wheels, name="tiny", version="1.0"), encoding="utf-8")
        # Base interpreter: the tests themselves may run in an environment.
        self.environment = environment | {"PYTHON": os.path.realpath(sys.executable), "PIP_NO_INDEX": "1"}
        # pip splits this variable at spaces, which the project's path may hold.
        self.environment["PIP_CONFIG_FILE"] = str(directory / "pip.conf")
        (directory / "pip.conf").write_text(f"[global]\nfind-links =\n    {self.wheels.as_uri()}\n", encoding="utf-8")
        self.environment.pop("PIP_FIND_LINKS", None)

    def build(self, goal: str = "environment", **variables: str) -> subprocess.CompletedProcess[str]:
        return make(self.directory, goal, environment=self.environment | variables)

    @property
    def stamp(self) -> Path:
        return self.directory / ".venv" / "installed-from"

    def installed(self) -> set[str]:
        return {path.name for path in self.directory.glob(".venv/lib/python3*/site-packages/tiny*")}


@pytest.fixture
def project(tmp_path, root, environment) -> Project:
    return Project(tmp_path / "a user's project", root, environment)


def test_environment_is_built_once_by_hash_and_byte_compiled_in_any_path(project):
    first = project.build()
    assert first.returncode == 0, first.stdout + first.stderr
    assert "about" in first.stdout and "of disk" in first.stdout
    assert project.installed() == {"tiny.py", "tiny-1.0.dist-info"}
    assert list(project.directory.glob(".venv/lib/python3*/site-packages/__pycache__/tiny.*.pyc"))
    started = time.monotonic()
    second = project.build(PYTHON="/no/such/python")
    assert (second.returncode, second.stdout) == (0, ""), second.stderr
    assert time.monotonic() - started < 1


def test_changed_lock_rebuilds_and_leaves_nothing_of_the_old_one(project):
    assert project.build().returncode == 0
    project.lock.write_text(write_wheel(project.wheels, name="tiny", version="2.0"), encoding="utf-8")
    assert project.build().returncode == 0
    assert project.installed() == {"tiny.py", "tiny-2.0.dist-info"}


def test_failed_installation_is_explained_and_not_taken_for_a_whole_one(project):
    text = project.lock.read_text(encoding="utf-8")
    project.lock.write_text(re.sub("sha256:.{8}", "sha256:00000000", text), encoding="utf-8")
    failed = project.build()
    assert failed.returncode != 0
    assert "hash" in failed.stderr.lower() and "install.log" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not project.stamp.exists()


def test_killed_installation_is_not_taken_for_a_whole_one(project):
    building = subprocess.Popen(
        ["make", "environment"], cwd=project.directory, env=project.environment, start_new_session=True
    )
    while building.poll() is None and not (project.directory / ".venv" / "bin" / "python").exists():
        time.sleep(0.05)
    os.killpg(building.pid, signal.SIGKILL)
    assert building.wait() == -signal.SIGKILL
    assert not project.stamp.exists()
    assert project.build().returncode == 0
    assert project.installed() == {"tiny.py", "tiny-1.0.dist-info"}


def test_moved_project_is_rebuilt_because_its_commands_name_their_interpreter(project):
    assert project.build().returncode == 0
    project.directory = project.directory.rename(project.directory.with_name("moved"))
    assert "is needed" in project.build(PYTHON="/no/such/python").stderr


def test_an_environment_behind_a_link_is_not_emptied(project):
    assert project.build().returncode == 0
    elsewhere = project.directory.with_name("elsewhere")
    (project.directory / ".venv").rename(elsewhere)
    (project.directory / ".venv").symlink_to(elsewhere)
    project.lock.write_text(write_wheel(project.wheels, name="tiny", version="2.0"), encoding="utf-8")
    refused = project.build()
    assert refused.returncode != 0
    assert f".venv is a link to {elsewhere}" in refused.stderr and "remove the link" in refused.stderr
    assert list(elsewhere.glob("lib/python3*/site-packages/tiny-1.0.dist-info"))


def fake_pythons(directory: Path, version: str) -> Path:
    """Write programs called python, python3, python3.11 ... that all claim to be ``version``."""
    directory.mkdir()
    script = f"""#!{os.path.realpath(sys.executable)}
import sys
sys.version_info = {tuple(map(int, version.split(".")))}
exec(sys.argv[sys.argv.index("-c") + 1])
"""
    for name in ("python", "python3", "python3.11", "python3.12", "python3.13"):
        (directory / name).write_text(script, encoding="utf-8")
        (directory / name).chmod(0o755)
    return directory


@pytest.mark.parametrize("version", ["3.10.4", "3.14.0"])
def test_another_python_is_refused_in_one_line_that_names_it(project, tmp_path, version):
    fakes = fake_pythons(tmp_path / "fakes", version)
    refused = project.build(PATH=f"{fakes}{os.pathsep}{project.environment['PATH']}", PYTHON="")
    assert refused.returncode != 0
    message = [line for line in refused.stderr.splitlines() if not line.startswith("make")]
    assert len(message) == 1
    assert message[0].startswith("Python 3.11, 3.12 or 3.13 is needed, found: ")
    assert f"python3 (Python {version.rpartition('.')[0]})" in message[0]
    assert "PYTHON=" in message[0]
    assert not (project.directory / ".venv").exists()


def test_python_without_venv_is_refused_with_what_to_install(project, tmp_path):
    python = tmp_path / "python3.12"
    python.write_text(
        f"#!{os.path.realpath(sys.executable)}\nimport sys\nsys.modules['ensurepip'] = None\n"
        "exec(sys.argv[sys.argv.index('-c') + 1])\n",
        encoding="utf-8",
    )
    python.chmod(0o755)
    refused = project.build(PYTHON=str(python))
    assert refused.returncode != 0
    assert "without its module ensurepip" in refused.stderr and "-venv" in refused.stderr


def test_source_archive_is_told_what_works(project):
    (project.directory / ".git").rmdir()
    for goal in ("repro", "demo"):
        refused = project.build(goal)
        assert refused.returncode != 0
        assert "no git clone" in refused.stderr and "git init" in refused.stderr and "make test" in refused.stderr
    assert not (project.directory / ".venv").exists()


def test_too_little_disk_space_is_said_before_anything_starts(project, tmp_path):
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "df").write_text("#!/bin/sh\necho header\necho disk 9 8 1024000 90% /\n", encoding="utf-8")
    (fake / "df").chmod(0o755)
    refused = project.build(PATH=f"{fake}{os.pathsep}{project.environment['PATH']}")
    assert refused.returncode != 0
    assert "Not enough disk space" in refused.stderr and "1.0 GB free" in refused.stderr
    assert not (project.directory / ".venv").exists()
