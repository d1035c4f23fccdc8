"""Every stage killed with SIGKILL at random moments, one after another, and on full disks: no half-written output ever,
and in the end the bytes of an undisturbed run.

Two stages at a time, each in a copy of one finished clone. The tests report what the campaign found.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.commands import demo
from tests.disks import small_disk
from tests.whole.test_pipeline import assert_mlflow_shows_every_run_once, lock_of

KILLS = int(os.environ.get("BAKEOFF_KILLS", "20"))
KILLS_OF_DVC = max(KILLS // 10, 1)
SEED = 0
WORKERS = 2
# Only `track` needs a store; the others must not wait for the writers of those that were killed.
NO_STORE = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
# Of a matrix the first item, unless one is named.
STAGES = (
    "dataset",
    "split",
    "backbone",
    "features",
    "as_is",
    "sweep@efficientnet_lite0-logistic_regression",
    "sweep@efficientnet_lite0-rbf_svm",
    "head",
    "fine_tune",
    "scratch",
    "explain",
    "compare",
    "track",
)
KILLED_UNDER_DVC = ("split", "sweep", "head", "compare")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@dataclass
class Outcome:
    """What happened to one stage: ``moments`` of its kills in seconds, and what was wrong."""

    seconds: float = 0.0
    moments: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Target:
    """One stage of the finished clone, to be run in a copy of it."""

    name: str
    command: tuple[str, ...]
    outputs: tuple[str, ...]
    clone: Path
    reference: Path

    @classmethod
    def of(cls, stage: str, finished: Path, clone: Path) -> Target:
        """Copy the finished clone, without what the stage writes and has kept."""
        lock = lock_of(finished)
        name = next(name for name in lock if stage in (name, name.partition("@")[0]))
        shutil.copytree(finished, clone, symlinks=True, ignore=shutil.ignore_patterns(".dvc", ".git"))
        target = cls(
            name, tuple(lock[name]["cmd"].split()), tuple(out["path"] for out in lock[name]["outs"]), clone, finished
        )
        target.start_over()
        return target

    @property
    def stage(self) -> str:
        return self.name.partition("@")[0]

    def start_over(self) -> None:
        """Forget the outputs and what earlier attempts have kept."""
        self.remove_outputs()
        shutil.rmtree(self.clone / ".cache" / "sweeps", ignore_errors=True)
        for rows in (self.clone / ".cache").glob("features/*/*.rows"):
            rows.unlink()
        if self.stage == "backbone":  # which leaves the engine's form of the network there
            shutil.rmtree(self.clone / ".cache" / "features", ignore_errors=True)
        if self.stage == "track":
            shutil.rmtree(self.clone / ".mlflow", ignore_errors=True)

    def remove_outputs(self) -> None:
        """As DVC does before it runs a stage."""
        for output in self.outputs:
            place = self.clone / output
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)

    def start(self, command: Sequence[str] = (), **options) -> subprocess.Popen:
        environment = demo.environment() | ({} if self.stage == "track" else NO_STORE)
        with (self.clone.parent / f"{self.clone.name}.log").open("w") as console:
            return subprocess.Popen(
                command or self.command,
                cwd=self.clone,
                env=environment,
                stdout=console,
                stderr=console,
                start_new_session=True,
                **options,
            )

    def said(self) -> str:
        return (self.clone.parent / f"{self.clone.name}.log").read_text()

    def differences(self, *, whole: bool) -> list[str]:
        """Return the outputs that differ from the undisturbed ones; unless ``whole``, those that are absent do not."""
        found = []
        for output in self.outputs:
            received, expected = content(self.clone / output), content(self.reference / output)
            if received != expected and (received or whole):
                wrong = {name for name in received.keys() | expected.keys() if received.get(name) != expected.get(name)}
                found.append(f"{output}: {', '.join(sorted(wrong)[:5])}")
        return found

    def litter(self) -> list[str]:
        """Return the temporary neighbors of outputs that are left over."""
        places = (place for output in self.outputs for place in [self.clone / output])
        return [str(path) for place in places for path in place.parent.glob(f".{place.name}.*")]


def content(place: Path) -> dict[str, bytes]:
    """Return the bytes of every file of an output, without hidden temporary neighbors; nothing if it is absent."""
    if place.is_file():
        return {place.name: place.read_bytes()}
    files = {file.relative_to(place): file for file in place.rglob("*") if file.is_file()}
    hidden = {name for name in files if any(part.startswith(".") for part in name.parts)}
    return {name.as_posix(): file.read_bytes() for name, file in files.items() if name not in hidden}


def kill(process: subprocess.Popen, moment: float) -> bool:
    """Kill a process and its group so many seconds from now; return False if it had ended before."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(moment)
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def campaign_on(target: Target, interrupted: threading.Event) -> Outcome:
    """Kill a stage again and again, starting over whenever it got to its end, and then let it finish."""
    outcome, moments = Outcome(), random.Random(f"{SEED} {target.name}")
    started = time.monotonic()
    if target.start().wait():
        return Outcome(problems=[f"failed undisturbed:\n{target.said()}"])
    outcome.seconds = time.monotonic() - started
    outcome.problems += target.differences(whole=True)
    target.start_over()
    while len(outcome.moments) < KILLS and not outcome.problems:
        if interrupted.is_set():
            return Outcome(problems=["interrupted"])
        target.remove_outputs()
        moment = moments.uniform(0, outcome.seconds)
        process = target.start()
        if kill(process, moment):
            outcome.moments.append(moment)
            outcome.problems += [f"killed after {moment:.2f} s: {wrong}" for wrong in target.differences(whole=False)]
            continue
        if process.returncode:
            outcome.problems.append(f"failed after {len(outcome.moments)} kills:\n{target.said()}")
        outcome.problems += target.differences(whole=True)
        target.start_over()
    target.remove_outputs()
    if target.start().wait():
        outcome.problems.append(f"failed after the last kill:\n{target.said()}")
    outcome.problems += [*target.differences(whole=True), *target.litter()]
    return outcome


@pytest.fixture(scope="module")
def campaign(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder, interrupted = tmp_path_factory.mktemp("campaign"), threading.Event()

    def run(stage: str) -> Outcome:
        clone = folder / stage
        target = Target.of(stage, finished, clone)
        outcome = campaign_on(target, interrupted)
        if stage == "track" and not outcome.problems:
            assert_mlflow_shows_every_run_once(clone)
        shutil.rmtree(clone)
        return outcome

    started = time.monotonic()
    pool = ThreadPoolExecutor(WORKERS)
    try:
        found = dict(zip(STAGES, pool.map(run, STAGES), strict=True))
    except BaseException:
        interrupted.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    for stage, outcome in found.items():
        print(f"{stage}: {len(outcome.moments)} kills within {outcome.seconds:.1f} s")
    print(f"the campaign took {time.monotonic() - started:.0f} s")
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_at_random_moments_leaves_nothing_half_written_and_ends_in_the_same_bytes(campaign, stage):
    assert not campaign[stage].problems, "\n".join(campaign[stage].problems)
    assert len(campaign[stage].moments) == KILLS


def test_the_campaign_is_about_every_stage(stages):
    assert {name.partition("@")[0] for name in STAGES} == {stage.name.partition("@")[0] for stage in stages}


@pytest.mark.parametrize("stage", KILLED_UNDER_DVC)
def test_dvc_repro_killed_at_random_moments_ends_in_the_same_lock(finished, tmp_path, stage):
    clone = tmp_path / "clone"
    shutil.copytree(finished, clone, symlinks=True, ignore=shutil.ignore_patterns("cache"))
    subprocess.run(
        ["dvc", "config", "--local", "cache.dir", finished / ".dvc" / "cache"],
        cwd=clone,
        check=True,
        env=demo.environment(),
    )
    lock = lock_of(finished)
    name = next(name for name in lock if name.partition("@")[0] == stage)
    target = Target(
        name,
        ("dvc", "repro", "--single-item", "--force", "--no-run-cache", name),
        tuple(out["path"] for out in lock[name]["outs"]),
        clone,
        finished,
    )
    started = time.monotonic()
    assert target.start().wait() == 0, target.said()
    seconds = time.monotonic() - started
    moments = random.Random(f"{SEED} dvc {stage}")
    kills = 0
    for _ in range(5 * KILLS_OF_DVC):  # it may have ended before its moment
        target.start_over()
        process = target.start()
        kills += kill(process, moments.uniform(0.2, 1) * seconds)
        assert process.returncode in (0, -signal.SIGKILL), target.said()
        assert not target.differences(whole=False)
        if kills == KILLS_OF_DVC:
            break
    assert kills == KILLS_OF_DVC, "no moment came before the end: the stage is faster than when it was timed"
    assert target.start().wait() == 0, target.said()
    assert not target.differences(whole=True)
    for key in ("deps", "outs"):
        assert lock_of(clone)[name].get(key) == lock[name].get(key)


# --- full disks ----------------------------------------------------------------------------------------------------


def place_of(stage: str) -> str:
    """Return the folder that lies on the small disk: the one that holds most of what a stage writes."""
    if stage == "track":
        return ".mlflow"
    return "data" if stage in ("dataset", "split", "backbone", "features") else "results"


@contextlib.contextmanager
def on_a_disk_with_room_for_half(target: Target) -> Iterator[Path]:
    """Put the folder of a stage's outputs on a small disk of its own that has room for half of them; yield a file whose
    removal makes room."""
    place = target.clone / place_of(target.stage)
    place.mkdir(exist_ok=True)
    there = [output for output in target.outputs if Path(output).parts[0] == place.name]
    half = sum(len(data) for output in there for data in content(target.reference / output).values()) // 2
    aside = target.clone / "aside"
    place.rename(aside)
    with small_disk(place, kilobytes=256 * 1024):
        shutil.copytree(aside, place, symlinks=True, dirs_exist_ok=True)
        room = os.statvfs(place)
        filler = place / "filler"
        filler.write_bytes(bytes(max(room.f_bavail * room.f_frsize - half, 0)))
        yield filler


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "track"])
def test_a_stage_on_a_full_disk_says_so_and_succeeds_when_there_is_room(finished, tmp_path, stage):
    target = Target.of(stage, finished, tmp_path / "clone")
    with on_a_disk_with_room_for_half(target) as filler:
        status = target.start().wait()
        said = target.said()
        assert status == 1, said
        assert "Traceback" not in said
        (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert " cannot be written: the disk is full (" in error
        assert " MB free there)" in error
        assert any(error.removeprefix("error: ").startswith(Path(output).parts[0]) for output in target.outputs), error
        assert not target.differences(whole=False)
        assert not target.litter()
        filler.unlink()
        assert target.start().wait() == 0, target.said()
        assert not target.differences(whole=True)


def test_a_limit_on_the_size_of_files_is_named(finished, tmp_path):
    target = Target.of("split", finished, tmp_path / "clone")
    limited = target.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)))
    assert limited.wait() == 1
    assert "Traceback" not in target.said()
    assert "larger than this system allows (`ulimit -f`)" in target.said()
    assert not target.differences(whole=False)


def test_track_on_a_full_disk_warns_and_sync_fills_the_store_when_there_is_room(finished, tmp_path):
    """The store is full; the marker, an output of a few hundred bytes, still fits or is named as what does not."""
    target = Target.of("track", finished, tmp_path / "clone")
    with on_a_disk_with_room_for_half(target) as filler:
        target.start().wait()
        said = target.said()
        assert "Traceback" not in said
        assert "warning: the MLflow store" in said
        assert "The results are not affected" in said
        filler.unlink()
        assert target.start().wait() == 0, target.said()
        assert_mlflow_shows_every_run_once(target.clone)
