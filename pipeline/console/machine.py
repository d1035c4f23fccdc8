"""The machine and the environment as they are: facts, and no judgement of them.

Standard library only, so that whoever asks gets an answer even where packages are missing or broken.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")
QUOTA = Path("/sys/fs/cgroup/cpu.max")
SECONDS_FOR_GIT = 5

# What libraries choose their kernels by, as the kernel of the system calls it (Linux), or macOS.
FEATURES: Mapping[str, tuple[str, ...]] = {
    "AVX": ("avx", "avx1.0"),
    "AVX2": ("avx2",),
    "FMA": ("fma",),
    "AVX-512": ("avx512f",),
    "AVX-512 VNNI": ("avx512_vnni",),
    "bfloat16": ("avx512_bf16", "amx_bf16", "bf16"),
    "AMX": ("amx_tile",),
    "NEON": ("asimd", "neon"),
    "SVE": ("sve",),
}

# Environment variables that may change last digits, or how fast something is. These are recorded whether set or not.
FLAGS = (
    *("TF_ENABLE_ONEDNN_OPTS", "TF_DETERMINISTIC_OPS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"),
    *("TF_XLA_FLAGS", "XLA_FLAGS", "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "OMP_NUM_THREADS"),
    *("OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "MKL_NUM_THREADS", "MKL_CBWR", "NPY_DISABLE_CPU_FEATURES"),
    *("CUDA_VISIBLE_DEVICES", "KERAS_BACKEND", "PYTHONHASHSEED", "PYTHONOPTIMIZE", "TZ", "LANG", "LC_ALL"),
)
# Not every TF_: Terraform's begin like that, too.
FAMILIES = (
    *("TF_ENABLE_", "TF_DISABLE_", "TF_FORCE_", "TF_USE_", "TF_CUDNN_", "TF_GPU_", "TF_ONEDNN_", "TF_XLA_"),
    *("XLA_", "ONEDNN_", "DNNL_", "OMP_", "KMP_", "GOMP_", "OPENBLAS_", "MKL_", "NPY_"),
)

# What decides a result: a change elsewhere in the project makes no commit a worse description of it.
DECISIVE = ("pipeline", "params.yaml", "dvc.yaml", "requirements.lock")


def record(root: Path) -> dict[str, Any]:
    """Return everything below, with the state of the git clone ``root``; no host, user or path of the machine."""
    return {
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "compiler": platform.python_compiler(),
        },
        "system": {
            "name": platform.system(),
            "release": platform.release(),
            "machine": platform.machine(),
            "libc": " ".join(platform.libc_ver()).strip(),
        },
        "cpu": {"name": cpu_name(), "features": cpu_features()},
        "threads": cores(),
        "libraries": thread_pools(),
        "flags": flags(),
        "packages": packages(),
        "git": repository(root),
    }


# --- processor -----------------------------------------------------------------------------------------------------


def cpu_name() -> str:
    """Return what the processor calls itself, as far as the system tells."""
    for line in _cpuinfo().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def cpu_features() -> list[str] | None:
    """Return those of `FEATURES` that the processor has, or None where nobody says."""
    text = _cpuinfo() or _of_macos()
    words = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, flags=re.MULTILINE)
    if not words:
        return None
    known = set(words[0].lower().split())
    return [name for name, flags in FEATURES.items() if known.intersection(flags)]


def cores() -> dict[str, float | int | None]:
    """Return the processor's ``logical`` cores, how many this process may use, and its ``quota`` of them (None: all).

    The quota is that of a container (cgroup version 2).
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"logical": os.cpu_count(), "available": available, "quota": quota()}


def quota(file: Path = QUOTA) -> float | None:
    """Return how many cores' time a container may use in all, or None without a limit."""
    try:
        granted, period = file.read_text(encoding="utf-8").split()
        return None if granted == "max" else int(granted) / int(period)
    except (OSError, ValueError):
        return None


def _cpuinfo() -> str:
    try:
        return CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _of_macos() -> str:
    """Return a line like that of Linux from what macOS knows of an Intel processor; Apple's own all have NEON."""
    if platform.system() != "Darwin":
        return ""
    if platform.machine() == "arm64":
        return "Features: asimd"
    names = ("machdep.cpu.features", "machdep.cpu.leaf7_features")
    found = _run("sysctl", "-n", *names, cwd=Path("/"))
    return f"flags: {' '.join(found.split())}" if found else ""


# --- environment ---------------------------------------------------------------------------------------------------


def packages() -> dict[str, str]:
    """Return {name: version} of every installed distribution that Python finds, names as PEP 503 writes them."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        # Of a damaged installation one or the other may be missing, depending on the release an error or None.
        with contextlib.suppress(KeyError, TypeError, OSError):
            name, version = distribution.metadata["Name"], distribution.version
            if name and version:
                found.setdefault(normal(name), version)  # The first on the path is the one that is imported.
    return dict(sorted(found.items()))


def normal(package: str) -> str:
    """Return a package's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", package).lower()


def flags(environ: Mapping[str, str] = os.environ) -> dict[str, str | None]:
    """Return `FLAGS`, None where they are not set, and whatever else of the same families is."""
    others = [name for name in environ if name.startswith(FAMILIES)]
    return {name: environ.get(name) for name in sorted({*FLAGS, *others})}


def thread_pools() -> list[dict[str, Any]]:
    """Return the numerical libraries that this process has loaded so far, with the kernels and threads they chose."""
    try:
        import threadpoolctl
    except ImportError:
        return []
    shown = ("internal_api", "version", "architecture", "threading_layer", "num_threads")
    found = [{name: pool[name] for name in shown if name in pool} for pool in threadpoolctl.threadpool_info()]
    return sorted(found, key=str)


def repository(root: Path) -> dict[str, Any] | None:
    """Return the commit and which tracked files of those that decide results differ from it; None outside of git."""
    commit = _run("git", "rev-parse", "HEAD", cwd=root)
    if commit is None:
        return None
    status = _run("git", "status", "--porcelain", "--untracked-files=no", "--", *DECISIVE, cwd=root) or ""
    changed = sorted(line.split(maxsplit=1)[1] for line in status.splitlines())
    return {"commit": commit, "dirty": bool(changed), "changed": changed}


def _run(*command: str, cwd: Path) -> str | None:
    """Return what a command says, or None if it cannot."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            capture_output=True,
            check=True,
            timeout=SECONDS_FOR_GIT,
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
