"""Real MLflow servers for tests, on SQLite and PostgreSQL, and a proxy in front of them that misbehaves on request."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipeline import tracking

HOST = "127.0.0.1"
SECONDS_TO_START = 180
DEBIAN = Path("/usr/lib/postgresql")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


class Server:
    """An ``mlflow server`` as a process group of its own, which may be killed and started again."""

    def __init__(self, backend: str, folder: Path, *, messages: Path | None = None):
        self.port = free_port()
        self.uri = f"http://{HOST}:{self.port}"
        self._command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--backend-store-uri",
            backend,
            "--host",
            HOST,
            "--port",
            str(self.port),
            "--workers",
            "1",
            "--artifacts-destination",
            str(folder / "artifacts"),
        ]
        self._messages = messages or folder / "server.log"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it and return when it answers."""
        environment = {**os.environ, **tracking.SETTINGS, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with self._messages.open("a") as messages:
            self._process = subprocess.Popen(
                self._command, env=environment, stdout=messages, stderr=messages, start_new_session=True
            )
        end = time.monotonic() + SECONDS_TO_START
        while True:
            assert self._process.poll() is None, self._messages.read_text()
            assert time.monotonic() < end, self._messages.read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            time.sleep(0.2)

    def kill(self) -> None:
        """Kill it as a power cut would."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextlib.contextmanager
def sqlite_server(folder: Path, database: Path) -> Iterator[Server]:
    """A server on a copy of an empty database."""
    shutil.copy(database, folder / "server.db")
    server = Server(f"sqlite:///{folder / 'server.db'}", folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def postgresql_server(folder: Path) -> Iterator[Server]:
    """A server on a PostgreSQL of its own."""
    with postgresql() as uri:
        server = Server(uri, folder)
        server.start()
        try:
            yield server
        finally:
            server.kill()


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """Start PostgreSQL in a temporary folder, on a free port of this machine alone; yield its URI.

    Skips where PostgreSQL or its driver is not installed.
    """
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("needs psycopg, PostgreSQL's driver")
    found = [Path(name).parent for name in [shutil.which("initdb")] if name] + sorted(DEBIAN.glob("*/bin"))
    binaries = next((place for place in found if (place / "initdb").exists() and (place / "postgres").exists()), None)
    if binaries is None:
        pytest.skip("needs PostgreSQL's initdb and postgres, on PATH or under /usr/lib/postgresql")
    folder = Path(tempfile.mkdtemp(prefix="bakeoff-postgresql-"))  # not pytest's, which others may not enter
    # It refuses to run as root.
    other = {"user": "nobody", "extra_groups": []} if os.geteuid() == 0 else {}
    if other:
        shutil.chown(folder, "nobody")
    port = free_port()
    initialize = [
        str(binaries / "initdb"),
        "-D",
        str(folder / "data"),
        "-U",
        "bakeoff",
        "-A",
        "trust",
        "--no-sync",
        "-E",
        "UTF8",
        "--no-locale",
    ]
    serve = [
        str(binaries / "postgres"),
        "-D",
        str(folder / "data"),
        "-p",
        str(port),
        "-h",
        HOST,
        "-k",
        str(folder),
        "-F",
    ]
    try:
        subprocess.run(initialize, check=True, cwd=folder, capture_output=True, **other)
        with (folder / "log").open("w") as messages:
            process = subprocess.Popen(serve, cwd=folder, stdout=messages, stderr=messages, **other)
        try:
            wait_for_port(port, process)
            yield f"postgresql://bakeoff@{HOST}:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)  # "fast": it does not wait for its clients
            process.wait()
    finally:
        shutil.rmtree(folder)


class Relay:
    """Passes bytes on to a port of this machine until it is ``silent``: then it keeps connections and says nothing."""

    def __init__(self, target: int):
        self.silent = threading.Event()
        self._target = target
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection((HOST, self._target))
                self._open += [client, server]
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self.silent.is_set():
                    sink.sendall(data)

    def close(self) -> None:
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@contextlib.contextmanager
def relay(target: int) -> Iterator[Relay]:
    started = Relay(target)
    try:
        yield started
    finally:
        started.close()


def wait_for_port(port: int, process: subprocess.Popen) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end:
        assert process.poll() is None, "PostgreSQL ended"
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=5):
            return
        time.sleep(0.1)
    raise AssertionError("PostgreSQL does not answer")


class Proxy:
    """Passes requests on to a server, unless ``behavior(path)`` returns another `Answer` for one."""

    def __init__(self, server: Server):
        self.server = server
        self.requests: list[str] = []
        self.behavior: Callable[[str], Answer] = lambda path: PASS
        self.closing = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.close_connection = True  # an open one would stay with this proxy when the next behavior comes
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    body = _chunks(self.rfile)
                path = urlsplit(self.path).path
                proxy.requests.append(path)
                answer = proxy.behavior(path)
                proxy.closing.wait(answer.seconds_before)
                if answer.status is None and answer.passes:
                    status, kind, content = proxy.forward(self.command, self.path, dict(self.headers), body)
                else:
                    status, kind, content = answer.status, "text/html", b"<html>no MLflow here</html>"
                proxy.closing.wait(answer.seconds_after)
                if status is None or proxy.closing.is_set():
                    return
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *arguments: object) -> None:
                pass

        class Listener(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 100

        self._listener = Listener((HOST, 0), Handler)
        self.uri = f"http://{HOST}:{self._listener.server_port}"
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        headers = {name: value for name, value in headers.items() if name.lower() in ("content-type", "accept")}
        connection = http.client.HTTPConnection(HOST, self.server.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.headers.get("Content-Type", ""), response.read()
        except OSError:
            return 502, "text/plain", b""
        finally:
            connection.close()

    def count(self, part: str) -> int:
        return sum(part in path for path in self.requests)

    def close(self) -> None:
        self.closing.set()
        self._listener.shutdown()
        self._listener.server_close()


class Answer:
    """What to do with a request: pass it on or answer with ``status`` (None: cut the connection), and how slowly."""

    def __init__(self, status: int | None = None, *, passes: bool = True, before: float = 0, after: float = 0):
        self.status, self.passes, self.seconds_before, self.seconds_after = status, passes, before, after


PASS = Answer()
CUT = Answer(passes=False)
HANG = Answer(passes=False, before=3600)


def _chunks(file) -> bytes:
    body = b""
    while size := int(file.readline(), 16):
        body += file.read(size)
        file.readline()
    file.readline()
    return body
