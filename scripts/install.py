"""Build the virtual environment from a lock file, whole or not at all, and show how far it is.

    python scripts/install.py VENV LOCK

Called by environment.sh, which also reads the stamp that is written here at the end. Standard library only.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

STAMP = "installed-from"
SECONDS_BETWEEN_LINES = 4.0


class InstallError(Exception):
    """The environment could not be built; the message says why and what to do."""


def main(venv: Path, lock: Path) -> None:
    cache = Path(".cache")
    cache.mkdir(exist_ok=True)
    with (cache / f"{venv.name}.lock").open("w") as guard:
        wait_for_others(guard)
        stamp = venv / STAMP
        wanted = f"{Path.cwd().resolve()}\n".encode() + lock.read_bytes()
        if stamp.exists() and stamp.read_bytes() == wanted:
            return
        # First of all: clearing takes a while, and what is left after a kill must not carry a stamp.
        stamp.unlink(missing_ok=True)
        say(f"Building {venv} with Python {sys.version.split()[0]}")
        run([sys.executable, "-I", "-m", "venv", "--clear", str(venv)], f"python -m venv {venv}")
        install(venv, lock, guard)
        temporary = stamp.with_suffix(".new")
        temporary.write_bytes(wanted)
        temporary.replace(stamp)


def wait_for_others(guard: IO[str]) -> None:
    """Hold the lock ``guard``, waiting while another process builds the same environment."""
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("Waiting for another `make` that is building the environment ...")
        fcntl.flock(guard, fcntl.LOCK_EX)


def run(command: list[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise InstallError(f"`{name}` failed:\n{done.stdout}{done.stderr}".rstrip())


def install(venv: Path, lock: Path, guard: IO[str]) -> None:
    """Run pip on the lock file; its own long-winded output goes to ``<venv>/install.log``."""
    log_path = venv / "install.log"
    python = str(venv / "bin" / "python")
    options = ("--progress-bar", "off", "--compile", "--require-hashes", "--requirement", str(lock))
    command = [python, "-I", "-m", "pip", "--disable-pip-version-check", "--no-input", "install", *options]
    # A user's settings that would install somewhere else than into the environment.
    environment = {name: value for name, value in os.environ.items() if name not in ("PIP_TARGET", "PIP_PREFIX")}
    environment["PIP_USER"] = "0"
    with log_path.open("w+", encoding="utf-8") as log:
        pip = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            # If this process is killed, pip goes on for a while: it keeps the others waiting until it has ended.
            pass_fds=(guard.fileno(),),
        )
        progress = Progress(venv, total=count_requirements(lock))
        reader = threading.Thread(target=progress.follow, args=(pip.stdout, log), daemon=True)
        reader.start()
        try:
            while pip.poll() is None:
                progress.show()
                time.sleep(0.3)
        finally:
            pip.terminate()
            pip.wait()
            reader.join(timeout=5)
            progress.clear()
        if pip.returncode:
            log.seek(0)
            problems = [line for line in log.read().splitlines() if not line.startswith(("Collecting", "Using cached"))]
            raise InstallError(
                "pip could not install the environment:\n"
                + "\n".join(f"  {line.strip()}" for line in problems[-8:])
                + f"\nAll it said: {log_path}. The next call starts again; pip keeps what it has downloaded."
            )
        progress.say_done()


def count_requirements(lock: Path) -> int:
    """Return the number of packages in a lock file: an upper bound, since some are for other platforms."""
    return len(re.findall(r"^[\w.-]+(?:\[[^\]]*\])?==", lock.read_text(encoding="utf-8"), flags=re.MULTILINE))


class Progress:
    """One line about a running pip: rewritten in place on a terminal, otherwise repeated every few seconds."""

    def __init__(self, venv: Path, *, total: int):
        self.venv = venv
        self.total = total
        self.collected = 0
        self.megabytes = 0.0
        self.to_install = 0
        self.detail = ""
        self.started = self.shown = time.monotonic()
        self.terminal = sys.stdout.isatty()

    def follow(self, lines: IO[str], log: IO[str]) -> None:
        """Copy pip's output to ``log`` and learn from it how far pip is."""
        for line in lines:
            log.write(line)
            log.flush()
            words = line.split()
            if line.startswith(("Collecting ", "Processing ")):
                self.collected += 1
                self.detail = re.split(r"==|-\d", Path(words[1]).name)[0]
            elif (size := re.search(r"Downloading \S+ \(([\d.]+) ([kMG])B\)", line)) is not None:
                amount = float(size[1]) * {"k": 0.001, "M": 1, "G": 1000}[size[2]]
                self.megabytes += amount
                self.detail += f" ({amount:.0f} MB)" if amount >= 10 else ""
            elif line.startswith("Installing collected packages:"):
                self.to_install = len(words) - 3

    def show(self) -> None:
        now = time.monotonic()
        if self.terminal:
            print(f"\r\033[K{self.line(now)}", end="", flush=True)
        elif now - self.shown >= SECONDS_BETWEEN_LINES:
            self.shown = now
            say(self.line(now))

    def line(self, now: float) -> str:
        elapsed = f"{now - self.started:.0f} s"
        if self.to_install:
            installed = sum(1 for _ in self.venv.glob("lib/python3*/site-packages/*.dist-info"))
            done = min(installed, self.to_install)  # pip itself is one of them, but not one to install
            return f"  {elapsed}: unpacking and compiling {done} of {self.to_install} packages"
        fetched = f", {self.megabytes:.0f} MB fetched" if self.megabytes else ""
        return f"  {elapsed}: package {self.collected} of at most {self.total}{fetched}: {self.detail}"

    def clear(self) -> None:
        if self.terminal:
            print("\r\033[K", end="", flush=True)

    def say_done(self) -> None:
        say(f"  {time.monotonic() - self.started:.0f} s: {self.to_install} packages installed")


def say(message: str) -> None:
    print(message, flush=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except InstallError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("\nStopped. The next call starts again; pip keeps what it has downloaded.")
