"""What a result was made from: the code a stage imports, the files it reads, the environment it runs in.

DVC does not follow Python imports, so dvc.yaml lists each stage's import closure and a test compares it with
`import_closure`. The same closure is the code part of a run's identity in MLflow.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import platform
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.core import artifacts
from pipeline.core.params import lookup

ROOT = Path(__file__).resolve().parent.parent.parent


def import_closure(module: str, *, root: Path = ROOT) -> list[str]:
    """Return the files of ``pipeline`` that importing ``module`` can execute, as sorted paths relative to ``root``.

    Follows every static import, at any depth of the file, and the packages' ``__init__`` files.
    """
    waiting, found = [module], set()
    while waiting:
        name = waiting.pop()
        path = _file_of(name, root)
        if path is None or path in found:
            continue
        found.add(path)
        parents = name.split(".")[:-1]
        waiting += [".".join(parents[: depth + 1]) for depth in range(len(parents))]
        waiting += _imports(path, name)
    return sorted(path.relative_to(root).as_posix() for path in found)


def resolve(templates: Iterable[str], *, item: Mapping[str, str], values: Mapping[str, Any]) -> list[str]:
    """Fill a stage's READS, INPUTS or OUTPUTS: {backbone} from the matrix item, {dataset.path} from params.yaml."""

    def fill(match: re.Match) -> str:
        name = match.group(1)
        return item[name] if name in item else str(lookup(values, name))

    return [re.sub(r"\{([\w.]+)\}", fill, template) for template in templates]


def code_digest(modules: Iterable[str], *, root: Path = ROOT) -> str:
    """Return one SHA-256 for the sources of the import closures of ``modules``."""
    files = sorted({file for module in modules for file in import_closure(module, root=root)})
    return digest({file: artifacts.sha256_file(root / file) for file in files})


def environment() -> dict[str, str]:
    """Return what may change last digits: interpreter, machine type, and the versions of the packages that compute."""
    packages = (
        "numpy",
        "scipy",
        "scikit-learn",
        "lightgbm",
        "catboost",
        "xgboost",
        "xgboost-cpu",
        "optuna",
        "tensorflow",
        "tensorflow-cpu",
        "keras",
        "openvino",
        "pillow",
    )
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        **versions,
    }


def environment_record() -> dict[str, Any]:
    """Return all that is known of where this process computes, as JSON, for people to read and to compare.

    ``decisive`` is `environment`, which identifies it; the rest (every package, processor features, threads, flags of
    the numerical libraries, git state) is evidence: never in a DVC output, and no part of any identity.
    """
    # By name: what is recorded decides no result, so no stage's import closure contains it.
    machine = importlib.import_module("pipeline.console.machine")
    return {"decisive": environment(), **machine.record(ROOT)}


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of keys. Raises TypeError for a set: it has none."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_text)
    return hashlib.sha256(text.encode()).hexdigest()


def _text(value: Any) -> str:
    if isinstance(value, set | frozenset):
        raise TypeError(f"a set has no order to be digested in: sort it, received {value!r}")
    return str(value)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        wanted = ("model name", "cpu family", "model\t", "stepping")
        found = {line.split(":", 1)[1].strip(): None for line in lines if line.startswith(wanted)}
        return " ".join(found)
    return platform.processor() or platform.machine()


def _file_of(module: str, root: Path) -> Path | None:
    if module.split(".")[0] != "pipeline":
        return None
    base = root.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _imports(path: Path, module: str) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path}:{node.lineno}: relative imports are not followed; write `from pipeline...`")
            names.append(node.module or "")
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names
