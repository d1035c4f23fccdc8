"""Fill MLflow from the records and show it in the browser's reach, on this machine only."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys

from pipeline import params, tracking
from pipeline.errors import BakeoffError
from pipeline.progress import say
from pipeline.stages import track

HOST = "127.0.0.1"
PORTS_TO_TRY = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=5000, help="or the next free one (default: %(default)s)")


def main(arguments: argparse.Namespace) -> int:
    track.fill(track.collect(params.Params(params.load(), track.READS)))
    store = tracking.locate()
    if store.uri.startswith(("http://", "https://")):
        say(f"MLflow is already served at {store.uri}")
        return 0
    port = free_port(arguments.port)
    if port != arguments.port:
        say(f"port {arguments.port} is taken, using {port}")
    say(f"MLflow: http://{HOST}:{port} (Ctrl-C stops it; ready in about 10 seconds)")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri, "--host", HOST,
               "--port", str(port), "--workers", "1"]  # fmt: skip
    if store.artifacts:
        command += ["--default-artifact-root", store.artifacts]
    try:
        return subprocess.run(command, env={**tracking.SETTINGS, **os.environ}, check=False).returncode
    except KeyboardInterrupt:
        return 0


def free_port(first: int) -> int:
    """Return the first port from ``first`` on that nobody listens on. Raises BakeoffError after twenty."""
    for port in range(first, first + PORTS_TO_TRY):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise BakeoffError(f"No free port from {first} to {first + PORTS_TO_TRY - 1}: name another with --port")
