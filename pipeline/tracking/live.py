"""The log of a running stage, handed line by line to a process of its own (`pipeline.tracking.writer`).

A process and not a thread: importing MLflow takes seconds that training need not share, nothing MLflow does can raise,
block or print inside a stage, and when a stage is killed its writer sees the pipe close and says so in the store.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.console.progress import say
from pipeline.core import artifacts, provenance, run_identity
from pipeline.core.params import Run
from pipeline.tracking import run_inputs, store

# How long a finished stage waits for its writer; a store that does not answer is given up sooner.
SECONDS_TO_FLUSH = 30.0
# So that the writer finds out, and can say why, within that time: it sends a few small messages.
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}


def live(*, dataset: str, run: Run, inputs: run_inputs.Inputs) -> Live:
    """Return the log of a stage that is about to compute ``run``, a context manager around the stage."""
    return Live(dataset=dataset, run=run, inputs=inputs)


class Live:
    """A `progress.Log` that reaches MLflow. Never raises; says on standard error, once, if logging failed."""

    def __init__(self, *, dataset: str, run: Run, inputs: run_inputs.Inputs):
        self._run = run
        self._begin = {"dataset": dataset, "run": dataclasses.asdict(run), "inputs": dataclasses.asdict(inputs)}
        self._writer: subprocess.Popen[str] | None = None
        self._failed = False

    def __enter__(self) -> Live:
        try:
            self._writer = subprocess.Popen(
                [sys.executable, "-m", "pipeline.tracking.writer"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**PATIENCE, **os.environ, "PYTHONPATH": _python_path()},
                # Ctrl-C in the terminal is for the stage; the writer learns of it through the pipe.
                start_new_session=True,
            )
        except OSError as error:
            self._fail(str(error))
        self._send({**self._begin, "pid": os.getpid(), "time": _now()})
        return self

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._send({"step": step, "metrics": {name: float(value) for name, value in metrics.items()}, "time": _now()})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        finished = kind is None
        self._send({"end": "finished" if finished else "failed", "record": self._digest(finished), "time": _now()})
        if self._writer is None:
            return
        try:
            # After an error nobody waits: the writer finishes by itself.
            output, _ = self._writer.communicate(timeout=SECONDS_TO_FLUSH if finished else 0)
        except subprocess.TimeoutExpired:
            if finished:
                # What it would write later, `track` could not tell from another run of the same stage.
                self._writer.kill()
                self._writer.wait()
                self._fail(f"the store has taken more than {SECONDS_TO_FLUSH:.0f} s")
        except OSError as problem:
            self._fail(str(problem))
        else:
            if self._writer.returncode != 0:
                # The last line: a driver may have printed others.
                said = output.strip().splitlines()[-1:] or [f"the writer ended with status {self._writer.returncode}"]
                self._fail(said[0])
            for line in output.splitlines():
                if line.startswith(store.MESSAGE):
                    say(line)

    def _digest(self, finished: bool) -> str | None:
        try:
            return run_identity.record_digest(artifacts.RUNS / self._run.name) if finished else None
        except artifacts.ArtifactError:
            return None

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._writer is None or self._failed:
            return
        try:
            self._writer.stdin.write(json.dumps(message) + "\n")
            self._writer.stdin.flush()
        except (OSError, ValueError):
            self._failed = True  # The writer has gone and left its reason, which __exit__ reads.

    def _fail(self, reason: str) -> None:
        self._failed = True
        print(
            f"warning: {self._run.name} is not logged live: {reason}. The results are not affected; "
            "`python -m pipeline sync` fills MLflow from the records.",
            file=sys.stderr,
            flush=True,
        )


def _python_path() -> str:
    """Return a PYTHONPATH on which the writer finds this package, whatever the working directory."""
    return os.pathsep.join(filter(None, [str(Path(provenance.ROOT)), os.environ.get("PYTHONPATH", "")]))


def _now() -> int:
    return int(time.time() * 1000)
