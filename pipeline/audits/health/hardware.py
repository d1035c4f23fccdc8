"""Is the machine up to it: processor, cores, disk?"""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from pipeline.console import machine
from pipeline.console.findings import Finding

# What `make repro` needs beside the environment, as scripts/environment.sh says; a test compares the two.
REPRO_MEGABYTES = 1300
FINISHED = Path("results/runs")
CHANGE_DIGITS = (
    *("TF_ENABLE_ONEDNN_OPTS", "TF_XLA_FLAGS", "XLA_FLAGS", "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE"),
    *("OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES"),
)


def processor() -> list[Finding]:
    """Check for what the libraries are compiled for (AVX), and name what they choose kernels by."""
    features = machine.cpu_features()
    name = machine.cpu_name()
    if features is None:
        return [Finding("ok", "processor", f"{name}; its features are unknown: {platform.system()} does not tell")]
    if platform.machine() in ("x86_64", "AMD64"):
        if "AVX" not in features:
            message = f"{name} has no AVX, which TensorFlow is compiled for: it would end with `Illegal instruction`"
            return [Finding("problem", "processor", message, "use another machine, or a TensorFlow built for this one")]
        if "AVX2" not in features:
            message = f"{name} has no AVX2: everything works, several times slower"
            return [Finding("warning", "processor", message, "use another machine if that is too slow")]
    lacks = [feature for feature in ("AVX-512", "AMX") if feature not in features]
    without = f"; no {', no '.join(lacks)}" if lacks and platform.machine() in ("x86_64", "AMD64") else ""
    return [Finding("ok", "processor", f"{name}: {', '.join(features) or 'nothing of what matters'}{without}")]


def compute() -> list[Finding]:
    """Check that there is a core for every thread that params.yaml wants, and an instruction for its precision."""
    from pipeline.core import params

    wanted = params.lookup(params.load(), "compute")
    threads, precision = wanted.get("threads"), wanted.get("precision")
    known = machine.cores()
    usable, limit = known["available"] or 1, known["quota"]
    have = f"{usable} of {known['logical']} cores" if usable != known["logical"] else f"{usable} cores"
    if limit is not None and limit < usable:
        have, usable = f"{have}, the time of {limit:g}", limit
    found = []
    if isinstance(threads, int) and threads > usable:
        message = (
            f"compute.threads is {threads}, but this process may use {have}: the threads take turns. Fewer are as "
            "fast, but another number may change last digits"
        )
        found.append(Finding("warning", "compute", message, f"params.yaml: compute.threads: {max(1, int(usable))}"))
    features = machine.cpu_features()
    if precision == "bfloat16" and features is not None and "bfloat16" not in features:
        message = (
            "compute.precision is bfloat16, which this processor has no instructions for: nothing is faster, and "
            "without AVX-512 a stage that uses OpenVINO stops"
        )
        found.append(Finding("warning", "compute", message, "params.yaml: compute.precision: float32"))
    return found or [Finding("ok", "compute", f"{threads} threads in {precision}; {have}")]


def variables() -> list[Finding]:
    """Check for environment variables that make libraries compute with other instructions than usual."""
    found = {name: value for name, value in machine.flags(os.environ).items() if name in CHANGE_DIGITS and value}
    if not found:
        return [Finding("ok", "variables", "none in the environment that changes last digits")]
    said = ", ".join(f"{name}={value}" for name, value in found.items())
    message = f"{said} may change last digits, and with them what is trained"
    return [Finding("warning", "variables", message, f"unset {' '.join(found)}")]


def disk() -> list[Finding]:
    """Check that the disk has room for what `make repro` writes."""
    free = shutil.disk_usage(Path.cwd()).free
    said = f"{free / 1e9:.1f} GB free; the whole pipeline writes {REPRO_MEGABYTES / 1e3:.1f} GB"
    if free >= REPRO_MEGABYTES * 1e6:
        return [Finding("ok", "disk", said)]
    # What is there already need not be written again, unless something changes.
    level = "warning" if FINISHED.is_dir() else "problem"
    remedy = "python -m pipeline clean-features\ndvc gc --workspace"
    return [Finding(level, "disk", said, remedy)]
