"""Other users on other machines, as far as one machine can play them: what must change no byte of a result."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.commands import demo

# Python executes this when it starts. File systems list in any order; this one lists backwards.
BACKWARDS = """
import os

listdir, scandir = os.listdir, os.scandir


class Backwards:
    def __init__(self, *place):
        with scandir(*place) as entries:
            self.entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.entries)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        self.entries = iter(())


os.listdir = lambda *place: sorted(listdir(*place), reverse=True)
os.scandir = Backwards
"""

# Languages whose upper and lower case, decimal points or encodings have surprised programs before; last those that
# every machine has, of which at least the encodings differ.
LOCALES = ("tr_TR.utf8", "de_DE.iso88591", "de_DE.utf8", "ja_JP.eucjp", "fr_FR.utf8", "C", "POSIX", "C.utf8")
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)


@dataclass(frozen=True)
class World:
    """Environment variables beside or in place of the usual ones, the mask of new files, the first folder on PATH."""

    variables: dict[str, str] = field(default_factory=dict)
    umask: int = 0o022
    path: Path = Path(sys.executable).parent

    @property
    def environment(self) -> dict[str, str]:
        usual = demo.environment()
        return {**usual, **self.variables, "PATH": os.pathsep.join([str(self.path), usual["PATH"]])}

    def run(self, *command: str, cwd: Path) -> str:
        """Return what a command says. Fails with that if the command does."""
        done = subprocess.run(
            command,
            cwd=cwd,
            env=self.environment,
            umask=self.umask,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


def elsewhere(place: Path) -> World:
    """Return the world of another user, whose home is made in ``place``: everything in it is different."""
    home, customized, language = place / "Zuhause ü", place / "customized", other_locale() or "C"
    for folder in (home / "tmp", customized):
        folder.mkdir(parents=True)
    (customized / "sitecustomize.py").write_text(BACKWARDS, encoding="utf-8")
    settings = '{"floatx": "float16", "epsilon": 0.001, "image_data_format": "channels_first"}'
    (home / ".keras").mkdir()
    (home / ".keras" / "keras.json").write_text(settings, encoding="utf-8")
    variables = {
        "PYTHONHASHSEED": "4242",
        "TZ": "Asia/Kathmandu",
        "LC_ALL": language,
        "LANG": language,
        "HOME": str(home),
        "USER": "somebody",
        "LOGNAME": "somebody",
        "TMPDIR": str(home / "tmp"),
        "COLUMNS": "40",
        "PYTHONPATH": str(customized),
        "KERAS_MAX_EPOCHS": "1",
        "KERAS_MAX_STEPS_PER_EPOCH": "1",
    }
    # Threads are counted by params.yaml, and by nobody else.
    return World(variables | dict.fromkeys(THREAD_VARIABLES, "1"), umask=0o077)


@functools.cache
def other_locale() -> str | None:
    """Return the strangest locale of this machine that is another than the present one; None without any."""
    try:
        known = subprocess.run(["locale", "-a"], capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        known = ["C"]
    return next((name for name in LOCALES if name in known and settled(name) != settled()), None)


@functools.cache
def settled(name: str | None = None) -> str:
    """Return what a Python makes of a locale, or of the present one: how it sorts and writes numbers, its encoding."""
    code = (
        "import codecs, locale; locale.setlocale(locale.LC_ALL, ''); "
        "print(locale.setlocale(locale.LC_COLLATE), locale.localeconv()['decimal_point'], "
        "codecs.lookup(locale.getencoding()).name)"
    )
    environment = demo.environment() | ({"LC_ALL": name, "LANG": name} if name else {})
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def other_python(place: Path) -> World | None:
    """Return a world with another patch release of this Python and the same packages; None if there is none."""
    python = _other_release()
    if python is None:
        return None
    subprocess.run([python, "-m", "venv", "--without-pip", str(place)], check=True, capture_output=True)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "same.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    script = place / "bin" / "dvc"
    script.write_text('#!/bin/sh\nexec "$(dirname "$0")/python" -m dvc "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return World(path=place / "bin")


def _other_release() -> str | None:
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    places = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"]
    for python in dict.fromkeys(Path(place) / name for place in places):
        try:
            code = "import sys, venv, sqlite3, ssl; print(*sys.version_info[:3])"
            said = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.split()
        except (OSError, subprocess.CalledProcessError):
            continue
        if said != list(map(str, sys.version_info[:3])):
            return str(python)
    return None
