"""Fill MLflow from the records and serve its pages on this machine."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from typing import IO

from pipeline import tracking
from pipeline.audits import outputs
from pipeline.console.errors import BakeoffError
from pipeline.console.progress import SECONDS_BETWEEN_LINES, say
from pipeline.core import params
from pipeline.stages import track

HOST = "127.0.0.1"
PORTS_TO_TRY = 20
SECONDS_TO_START = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=5000, help="or the next free one (default: %(default)s)")


def main(arguments: argparse.Namespace) -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):  # its terminal was closed, or the machine shuts down
        signal.signal(number, signal.default_int_handler)
    outputs.refuse_changed_runs()
    experiment = track.fill(track.collect(params.Params(params.load(), track.READS))).experiment
    store = tracking.locate()
    if store.uri.startswith(("http://", "https://")):
        say(f"MLflow: {tracking.address(store.uri.rstrip('/'), experiment)}")
        return 0
    port = free_port(arguments.port)
    if port != arguments.port:
        say(f"port {arguments.port} is taken, using {port}")
    say("MLflow is starting, which takes about 10 seconds")
    with tempfile.TemporaryFile() as messages, start(store, port, messages) as server:
        try:
            wait_until_ready(f"http://{HOST}:{port}", server, messages)
            say(f"MLflow: {tracking.address(f'http://{HOST}:{port}', experiment)}\nCtrl-C stops it")
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)


def start(store: tracking.Store, port: int, messages: IO[bytes]) -> subprocess.Popen:
    """Start the server as a process group of its own: Ctrl-C is for this command, which ends the group quietly."""
    # Its job runners, for language models, are four more processes.
    own = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_LOGGING_LEVEL": "ERROR"}
    environment = {**tracking.SETTINGS, **os.environ, **own}
    return subprocess.Popen(
        server_command(store, port), env=environment, stdout=messages, stderr=messages, start_new_session=True
    )


def server_command(store: tracking.Store, port: int) -> list[str]:
    """Return the command that serves a store to this machine alone."""
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        store.uri,
        "--host",
        HOST,
        "--port",
        str(port),
        "--workers",
        "1",
        "--uvicorn-opts",
        "--log-level=warning",
    ]
    return [*command, "--default-artifact-root", store.artifacts] if store.artifacts else command


def free_port(first: int) -> int:
    """Return the first port from ``first`` on that nobody listens on. Raises BakeoffError after twenty."""
    for port in range(first, first + PORTS_TO_TRY):
        with socket.socket() as probe:
            # A port in the pause after its last connection is free for a server, which binds in the same way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise BakeoffError(f"No free port from {first} to {first + PORTS_TO_TRY - 1}: name another with --port")


def wait_until_ready(address: str, server: subprocess.Popen, messages: IO[bytes]) -> None:
    """Return when the server answers. Raises BakeoffError with its last messages if it ends or takes too long."""
    started = shown = time.monotonic()
    while server.poll() is None and time.monotonic() < started + SECONDS_TO_START:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
        except OSError:
            time.sleep(0.3)
            if time.monotonic() - shown >= SECONDS_BETWEEN_LINES:
                shown = time.monotonic()
                say(f"MLflow is still starting: {shown - started:.0f} s")
        else:
            return
    messages.seek(0)
    last = messages.read().decode(errors="replace").strip().splitlines()[-5:]
    raise BakeoffError("\n".join([f"MLflow did not start at {address}:", *last]))
