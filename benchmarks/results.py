"""benchmarks/results.json and benchmarks/RESULTS.md: rows of several benchmarks, each with where it was measured."""

from __future__ import annotations

import datetime
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from benchmarks import measure, rows
from benchmarks.rows import Row, figure
from pipeline.core import artifacts, provenance

JSON = Path(__file__).with_name("results.json")
MARKDOWN = Path(__file__).with_name("RESULTS.md")
# Claim -> why its target is missed and what was tried; written by hand, shown beside the row while it is missed.
REASONS = Path(__file__).with_name("reasons.json")

HEAD = """# Measured claims

Written by `make bench`; one command alone: see the table, from the root of the project, with the environment active.
Every number is the median of n runs that take turns with what they are compared with; in brackets the smallest and the
largest. Times are those of whole processes, as a user waits: interpreter, imports and start-up included. Each rival is
what a competent user of that library writes, from the same files to the same kind of result: `benchmarks/rivals/`.
Compare numbers of one row; those of different rows may have been measured on different machines or days:
"""


def environment() -> str:
    """Return what times depend on besides the code, on one line: machine, system and package versions."""
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"{', '.join(f'{name}: {value}' for name, value in machine().items())}; {packages}"


def machine() -> dict[str, str]:
    """Return the hardware and the system."""
    import psutil

    return {
        "CPU": _cpu_name(),
        "cores": str(measure.cores()),
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that compute and of those around them, if they are installed."""
    packages = (
        *("numpy", "scipy", "scikit-learn", "scikit-learn-intelex", "lightgbm", "catboost", "tensorflow"),
        *("tensorflow-cpu", "keras", "openvino", "pillow", "dvc", "mlflow"),
    )
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Return the short hash of the commit, with a + if files differ from it; empty outside a git clone."""
    from pipeline.commands import demo

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=provenance.ROOT, env=demo.environment(), capture_output=True, text=True
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "--short", "HEAD")
    changed = git("status", "--porcelain", "--", "pipeline", "params.yaml", "benchmarks/*.py")
    return f"{head}+" if head and changed else head


def stamped(found: Sequence[Row], *, command: str, day: datetime.date) -> list[Row]:
    """Return rows with what measured them, where and when."""
    stamp = {"command": command, "commit": commit(), "day": day.isoformat(), "environment": environment()}
    return [row.model_copy(update=stamp) for row in found]


def merged(old: Sequence[Row], new: Mapping[str, Sequence[Row]], *, order: Sequence[str]) -> list[Row]:
    """Return the rows of ``new``, {command: rows}, and those of ``old`` that other commands of ``order`` measured.

    Old rows stay as they were measured, elsewhere perhaps: a ratio is of two sides that took turns on one machine. Rows
    are in the order of their commands.
    """
    kept = [row for row in old if row.command not in new]
    everything = [*kept, *(row for found in new.values() for row in found)]
    return sorted((row for row in everything if row.command in order), key=lambda row: order.index(row.command))


def write(found: Sequence[Row]) -> None:
    """Write both files."""
    rows.write(JSON, found)
    artifacts.write_text(MARKDOWN, markdown(found, artifacts.read_json(REASONS) if REASONS.exists() else {}))


def markdown(found: Sequence[Row], reasons: Mapping[str, str]) -> str:
    """Return RESULTS.md. A missed target stands in capitals, with its reason below the table."""
    places = list(dict.fromkeys(row.environment for row in found))
    letters = {place: _letter(position) for position, place in enumerate(places)}
    parts = [HEAD, "\n".join(f"{letters[place]}. {place}." for place in places) + "\n"]
    ratios = [row for row in found if row.ratio is not None]
    values = [row for row in found if row.value is not None]
    if ratios:
        parts += ["## How many times faster\n", _table(ratios, "ratio", letters)]
    if values:
        parts += ["## Times and memory\n", _table(values, "value", letters)]
    missed = [row for row in found if row.met is False]
    if missed:
        unknown = "no reason is written yet in reasons.json"
        lines = [f"- {row.claim}: {reasons.get(row.claim, unknown)}" for row in missed]
        parts += ["## Targets that are missed\n", "\n".join(lines) + "\n"]
    return "\n".join(parts)


def _letter(position: int) -> str:
    return chr(ord("A") + position)


def _table(found: Sequence[Row], kind: str, letters: Mapping[str, str]) -> str:
    lines = [
        f"| claim: against | {kind} | target | | n | details | command | commit | on |",
        "|---|---:|---:|---|---:|---|---|---|---|",
    ]
    for row in found:
        verdict = {True: "met", False: "MISSED", None: "reported"}[row.met]
        number = f"{row.amount(row.number)} [{figure(row.low)}, {figure(row.high)}]"
        place = f"{letters[row.environment]}, {row.day}"
        cells = (row.claim, number, row.goal(), verdict, str(row.n), row.detail, f"`{row.command}`", row.commit, place)
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
