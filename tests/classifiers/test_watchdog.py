from __future__ import annotations

import subprocess
import sys
import time

import pytest

from pipeline.classifiers.search import watchdog
from pipeline.console import progress
from pipeline.core import provenance


def test_long_work_is_not_silent(capfd, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.01)
    with watchdog.watched("candidate 1/1, C=1"):
        deadline = time.monotonic() + 5
        text = ""
        while "\n" not in text and time.monotonic() < deadline:
            time.sleep(0.01)
            text += capfd.readouterr().err
    assert text.startswith("candidate 1/1, C=1: 0 s\n")


def test_work_that_ends_in_time_is_left_alone(monkeypatch):
    ended = []
    monkeypatch.setattr(watchdog.os, "_exit", ended.append)
    with watchdog.watched("work", timeout=0.2):
        pass
    time.sleep(0.3)
    assert ended == []


@pytest.mark.parametrize(
    ("work", "status", "says"),
    [
        ("while True: pass", watchdog.STATUS, "error: work: stopped after 0 s. Make it smaller."),
        ("sum(range(10**12))", 1, "Timeout (0:00:01)!"),  # never lets another thread run
    ],
)
def test_work_without_end_ends_the_process(work, status, says):
    code = (
        "from pipeline.classifiers.search import watchdog; watchdog.GRACE = 0.7\n"
        f"with watchdog.watched('work', timeout=0.3, advice='Make it smaller.'):\n    {work}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=provenance.ROOT)
    assert done.returncode == status, done.stderr
    assert says in done.stderr


def test_the_limit_comes_from_the_environment_and_is_an_hour_without(monkeypatch):
    monkeypatch.delenv(watchdog.CANDIDATE_TIMEOUT, raising=False)
    assert watchdog.candidate_timeout() == 3600
    monkeypatch.setenv(watchdog.CANDIDATE_TIMEOUT, "2.5")
    assert watchdog.candidate_timeout() == 2.5
    monkeypatch.setenv(watchdog.CANDIDATE_TIMEOUT, "inf")
    assert watchdog.candidate_timeout() == float("inf")


@pytest.mark.parametrize("text", ["", "an hour", "0", "-3", "nan"])
def test_a_limit_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv(watchdog.CANDIDATE_TIMEOUT, text)
    message = f"BAKEOFF_CANDIDATE_TIMEOUT must be a number of seconds above 0, received {text!r}"
    with pytest.raises(watchdog.TimeoutSettingError) as error:
        watchdog.candidate_timeout()
    assert str(error.value) == message
