"""Is this the right Python, and are the packages those of the lock file?"""

from __future__ import annotations

import importlib.util
import platform
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from pipeline.console import machine
from pipeline.console.findings import Finding

OLDEST, NEWEST = (3, 11), (3, 13)
LOCK, GPU_LOCK = Path("requirements.lock"), Path("requirements-gpu.lock")
ENVIRONMENT, GPU_ENVIRONMENT = ".venv", ".venv-gpu"
SHOWN = 6

# Distributions that are imported under another name, of those whose absence stops the pipeline.
MODULES = {
    **{name: name for name in ("dvc", "mlflow", "keras", "openvino", "lightgbm", "catboost", "xgboost", "optuna")},
    **{name: name for name in ("numpy", "scipy", "pandas", "matplotlib", "imagehash", "joblib", "threadpoolctl")},
    **{name: name for name in ("filelock", "psutil", "h5py", "pydantic", "tqdm", "sqlalchemy", "tensorflow")},
    **{"tensorflow-cpu": "tensorflow", "xgboost-cpu": "xgboost", "scikit-learn": "sklearn", "pillow": "PIL"},
    **{"pyyaml": "yaml", "pydantic-core": "pydantic_core"},
}


def python() -> list[Finding]:
    """Check the release of this Python, and that the stages of DVC would be started with it."""
    here = Path(sys.executable)
    release = platform.python_version()
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        allowed = f"{_dotted(OLDEST)} to {_dotted(NEWEST)}"
        message = f"{release} is not supported, {allowed} are"
        return [Finding("problem", "Python", message, f"make environment PYTHON=/path/to/python{_dotted(OLDEST)}")]
    found = [Finding("ok", "Python", f"{release} ({platform.python_implementation()}), {here}")]
    first = shutil.which("python")
    if first is None or not _same_environment(Path(first), here):
        what = "there is no `python` on PATH" if first is None else f"`python` on PATH is {first}"
        activate = here.with_name("activate")
        remedy = f". {activate}" if activate.exists() else f"export PATH={shlex.quote(str(here.parent))}:$PATH"
        found.append(Finding("warning", "Python", f"{what}, and that is what DVC starts stages with", remedy))
    return found


def packages() -> list[Finding]:
    """Check every package of the lock file: missing, of another version, or recorded but not there."""
    lock = GPU_LOCK if Path(sys.prefix).name == GPU_ENVIRONMENT else LOCK
    if not lock.is_file():
        message = f"{lock} not found: this is not the root of the project, or it is not whole"
        return [Finding("problem", "packages", message)]
    wanted, unclear = pins(lock.read_text(encoding="utf-8"))
    installed = machine.packages()
    missing = sorted(f"{name} {version}" for name, version in wanted.items() if name not in installed)
    others = sorted(
        f"{name} {installed[name]} (locked: {version})"
        for name, version in wanted.items()
        if installed.get(name, version) != version
    )
    damaged = sorted(name for name, module in MODULES.items() if name in installed and not _is_whole(module))
    found = []
    if missing or others:
        parts = [("missing", missing), ("another version", others)]
        said = "; ".join(f"{what}: {listed(names)}" for what, names in parts if names)
        found.append(Finding("problem", "packages", f"{said}; of {len(wanted)} in {lock}", _installing(lock)))
    if damaged:
        pinned = " ".join(f"{name}=={installed[name]}" for name in damaged)
        message = f"recorded as installed, but not there: {listed(damaged)}"
        found.append(Finding("problem", "packages", message, f"{_pip()} install --force-reinstall --no-deps {pinned}"))
    if unclear:
        message = f"{len(unclear)} lines of {lock} are for some systems only, and packaging, which can tell, is missing"
        found.append(Finding("warning", "packages", message))
    return found or [Finding("ok", "packages", f"all {len(wanted)} as in {lock}")]


def pins(text: str) -> tuple[dict[str, str], list[str]]:
    """Return {name: version} of the lines of a lock file that are for this system, and those where that is unclear."""
    wanted, unclear = {}, []
    holds = _markers()
    pattern = r"^([\w.-]+)(?:\[[^\]]*\])?==([^\s;\\]+)(?:\s*;\s*([^\\\n]+))?"
    for name, version, marker in re.findall(pattern, text, flags=re.MULTILINE):
        if marker and holds is None:
            unclear.append(name)
        elif not marker or holds(marker.strip()).evaluate():
            wanted[machine.normal(name)] = version
    return wanted, unclear


def listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _markers() -> Any:
    """Return the class that evaluates environment markers, from where it may be found; None if nowhere."""
    for name in ("packaging.markers", "pip._vendor.packaging.markers"):
        try:
            return importlib.import_module(name).Marker
        except ImportError:
            continue
    return None


def _is_whole(module: str) -> bool:
    """Return whether Python finds a package's own code; what is left of a removed one may still be a folder."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def _same_environment(one: Path, other: Path) -> bool:
    return one.parent.resolve() == other.parent.resolve()


def _installing(lock: Path) -> str:
    """Return what makes an environment as the lock file says: this one, or one of the project's, if this is none."""
    if sys.prefix != sys.base_prefix:
        return f"{_pip()} install --require-hashes --requirement {lock}"
    environment = Path(GPU_ENVIRONMENT if lock == GPU_LOCK else ENVIRONMENT)
    built = environment / "installed-from"
    return f". {environment}/bin/activate" if built.is_file() else "make environment"


def _pip() -> str:
    return f"{shlex.quote(sys.executable)} -m pip"


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
