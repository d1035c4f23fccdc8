"""Temporary clones of a revision, and commands in them that leave nothing behind when they are interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from pipeline.audits.review.locks import ReviewError

SECONDS_BETWEEN_TICKS = 1.0
SECONDS_TO_END = 10.0
# What names the repository, the experiment or the stores of the calling process.
FOREIGN = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "DVC_ROOT",
    "DVC_STAGE",
    "DVC_EXP_NAME",
    "MLFLOW_RUN_ID",
    "MLFLOW_TRACKING_URI",
    "BAKEOFF_FEATURE_STORE",
)


@contextlib.contextmanager
def temporary_place() -> Iterator[Path]:
    """Yield a temporary directory, removed at the end however that comes: SIGTERM raises KeyboardInterrupt as Ctrl-C.

    It lies where TMPDIR says; a review of the default data set fills up to two gigabytes.
    """
    # Resolved: DVC compares paths, and on some systems the temporary directory is behind a link.
    with _stopped_like_ctrl_c(), tempfile.TemporaryDirectory(prefix="bakeoff-review-") as place:
        yield Path(place).resolve()


def commit_of(project: Path, revision: str) -> str:
    """Return the full id of the commit that a revision names, or a branch of a remote, as `git checkout` finds one.

    Raises ReviewError.
    """
    try:
        return git(project, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").strip()
    except ReviewError:
        pass
    try:
        remote = set(git(project, "for-each-ref", "--format=%(objectname)", f"refs/remotes/*/{revision}").split())
    except ReviewError:
        remote = set()
    if len(remote) == 1:
        return remote.pop()
    several = "names other commits in several remotes" if remote else "is no commit of a git repository here"
    raise ReviewError(
        f"{revision!r} {several}. Choose a branch, a tag or a commit; `git fetch` brings those of others."
    )


def clone(project: Path, commit: str, destination: Path) -> Path:
    """Check a commit out in a new clone and return where the project lies in it.

    The clone borrows the objects of the repository: nothing is copied, and any commit there can be checked out.
    """
    top, prefix = (git(project, "rev-parse", f"--show-{name}").strip() for name in ("toplevel", "prefix"))
    git(project, "clone", "--quiet", "--shared", "--no-checkout", top, str(destination))
    git(destination, "-c", "advice.detachedHead=false", "checkout", "--quiet", "--detach", commit)
    return destination / prefix


def git(directory: Path, *arguments: str) -> str:
    """Return what git prints. Raises ReviewError with what it complains of."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=directory,
            env=environment(),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
    except FileNotFoundError:
        raise ReviewError("git not found: install it, DVC needs it") from None
    if done.returncode:
        raise ReviewError(f"`git {' '.join(arguments)}` failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


def environment(**more: str) -> dict[str, str]:
    """Return the environment for commands in a clone: this interpreter first on PATH, no store of the caller."""
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    # Not resolved: in a virtual environment the interpreter is a link to one outside.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**kept, "PATH": path, **more}


def run(
    command: str | Sequence[str], *, cwd: Path, environment: Mapping[str, str], log: Path, tick: Callable[[], None]
) -> int:
    """Run a command (text: in a shell) with its output in ``log``, and return its status.

    ``tick`` is called every second. Whatever it started is ended when this is interrupted.
    """
    with log.open("ab") as console:
        process = subprocess.Popen(
            command,
            shell=isinstance(command, str),
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=SECONDS_BETWEEN_TICKS)
            tick()
    except BaseException:
        end(process)
        raise


def end(process: subprocess.Popen) -> None:
    """Kill a process and everything it started, also what has a session of its own, and wait until they are gone."""
    # Before it dies: afterwards they have another parent. The log's writer would build its store anew, in a place that
    # is being removed.
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(family, timeout=SECONDS_TO_END)


def changed(project: Path) -> bool:
    """Whether the workspace has changes of tracked files that are not committed."""
    return bool(git(project, "status", "--porcelain", "--untracked-files=no").strip())


@contextlib.contextmanager
def _stopped_like_ctrl_c() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
