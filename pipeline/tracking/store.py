"""Which store to write to, and opening it: quietly, in bounded time, and safely when several processes come first."""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import sqlite3
import ssl
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, unquote, urlsplit

import filelock

from pipeline.console.errors import BakeoffError
from pipeline.console.progress import say
from pipeline.tracking import artifact_locations, view

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

SQLITE = "sqlite:///"
MESSAGE = "MLflow: "  # how a line starts that is for the person who runs a stage
HTTP = ("http://", "https://")
SECONDS_TO_ANSWER = 5
SECONDS_TO_LOCK = 120
LONGEST_REASON = 300

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # At ERROR it prints the traceback of what it raises as well.
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow's own choice, 120 s and 7 retries with growing pauses, would hold up a pipeline for many minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}


class TrackingError(BakeoffError):
    """The MLflow store cannot be reached, read or written."""


@dataclass(frozen=True)
class Store:
    """An MLflow store by its tracking URI. ``own``: it is the project's, in the project."""

    uri: str
    own: bool = False

    @classmethod
    def at(cls, database: Path, *, own: bool = False) -> Store:
        """Return the store in an SQLite file, whatever its path holds.

        MLflow makes the folder of the path as the URI writes it, SQLAlchemy opens the file that the URI means. Where
        the two differ, the URI is written without a slash: then MLflow finds no folder in it to make.
        """
        path = str(database.absolute())
        return cls(SQLITE + (quote(path, safe="") if "%" in path or "?" in path else path), own)

    @property
    def database(self) -> Path | None:
        """The file of an SQLite store, else None."""
        if not self.uri.startswith(SQLITE):
            return None
        return Path(unquote(self.uri.removeprefix(SQLITE).split("?")[0])).absolute()

    @property
    def artifacts(self) -> str | None:
        """Where the artifacts of an SQLite store lie, as a URI. Other stores choose for themselves."""
        return (self.database.parent / artifact_locations.ARTIFACTS).as_uri() if self.database else None

    @property
    def file(self) -> tuple[int, int] | None:
        """Which file an SQLite store is now, None if it is not there, and for every other store."""
        with contextlib.suppress(OSError):
            if self.database is not None:
                found = os.stat(self.database)
                return found.st_dev, found.st_ino
        return None

    @property
    def name(self) -> str:
        """The URI as messages may show it: without a password."""
        return without_password(self.uri, self.uri)


@dataclass(frozen=True)
class Deadline:
    """When to stop writing to a store that answers, but slowly. ``seconds``: None for never."""

    seconds: float | None
    end: float

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        return cls(seconds, time.monotonic() + (float("inf") if seconds is None else seconds))

    @property
    def left(self) -> float:
        return max(self.end - time.monotonic(), 0)

    def check(self, store: Store) -> None:
        """Raise TrackingError if it has passed."""
        if not self.left:
            raise TrackingError(f"the MLflow store {store.name} has taken more than {self.seconds:.0f} s")


def within(store: Store, seconds: float | None, call: Callable[[], T]) -> T:
    """Return what ``call`` returns. Raises TrackingError after ``seconds``, whatever it waits for; None for no limit.

    A database that accepts a connection and falls silent, or a server that sends a byte now and then, answers no call
    and breaks no time limit of a driver. The thread that waits for it ends with the process, or when it looks at its
    `Deadline`.
    """
    if seconds is None:
        return call()
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    if not wait([outcome], seconds).done:
        raise TrackingError(f"the MLflow store {store.name} has taken more than {seconds:.0f} s")
    return outcome.result()


@dataclass(frozen=True)
class Connection:
    """An open store and the experiment in it.

    ``claimant``: who writes, as `claimant` says. ``file``: which file was opened, as `Store.file` says.
    """

    store: Store
    experiment: str
    deadline: Deadline
    claimant: str
    opened: MlflowClient
    file: tuple[int, int] | None

    @property
    def client(self) -> MlflowClient:
        """The client, for one call. Raises TrackingError after the deadline, or if the file is no longer the store."""
        self.deadline.check(self.store)
        self._check_file()
        return self.opened

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """`translated`, and a TrackingError if the store was removed or replaced until the end.

        SQLite goes on writing to a file that was deleted, and nothing fails.
        """
        try:
            with translated(self.store):
                yield
        except TrackingError:
            self._check_file()
            raise
        self._check_file()

    def _check_file(self) -> None:
        if self.store.file != self.file:
            raise TrackingError(f"the MLflow store {self.store.name} was removed or replaced while it was in use")


def locate(environ: Mapping[str, str] = os.environ) -> Store:
    """Return the store that ``MLFLOW_TRACKING_URI`` names, unless that is the project's own one, in ``.mlflow``.

    The project is found through ``DVC_ROOT``, which names the project itself also inside the temporary workspaces of
    ``dvc exp run --temp``: all experiments meet in one store.
    """
    root = Path(environ.get("DVC_ROOT") or ".").absolute()
    own = Store.at(root / artifact_locations.FOLDER / "mlflow.db", own=True)
    named = Store(environ.get("MLFLOW_TRACKING_URI") or own.uri)
    return own if named.database == own.database else named


def connect(store: Store, experiment: str, *, seconds: float | None = None) -> Connection:
    """Open a store and its experiment, creating both if needed. Raises TrackingError in bounded time.

    The project's own store is put right, and a line says so, if it was copied or moved here with the project.
    ``seconds``: how long the connection may be used, waiting for locks included; None for as long as it takes.
    """
    quiet()
    deadline = Deadline.after(seconds)
    with translated(store), lock(store, "create", deadline):
        _check(store)
        if store.database is not None:
            _make(store, store.database)
        if store.own and (origins := artifact_locations.correct(store.database)):
            say(
                f"{MESSAGE}this project was copied or moved from {', '.join(origins)}; its store now looks for all "
                f"artifacts in {store.database.parent}"
            )
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=store.uri)
        opened = _experiment(client, store, experiment)
        return Connection(store, opened, deadline, claimant(store), client, store.file)


def look(store: Store, experiment: str, *, seconds: float | None = None) -> Connection | None:
    """Open a store and its experiment to read; None if either is not there or was deleted. Creates neither.

    Raises TrackingError in bounded time if the store cannot be read. ``seconds``: the Connection's time from now on.
    """
    quiet()
    # MLflow would create the file, and the tables in it.
    if store.database is not None and not os.path.exists(store.database):
        return None
    with translated(store):
        if store.database is None:
            ask(store)
        if not store.uri.startswith(HTTP) and not _has_tables(store):
            return None
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=store.uri)
        found = client.get_experiment_by_name(experiment)
    if found is None or found.lifecycle_stage == "deleted":
        return None
    return Connection(store, found.experiment_id, Deadline.after(seconds), "reader", client, store.file)


def _has_tables(store: Store) -> bool:
    """Return whether a database holds MLflow's tables."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(store.uri)
    try:
        return sqlalchemy.inspect(engine).has_table("experiments")
    finally:
        engine.dispose()


def _make(store: Store, database: Path) -> None:
    """Make MLflow's tables in a database that is new, whole or not at all; one that has tables is left as it is.

    MLflow makes them in place, in some fifty migrations. A process that is killed in between, or whose time is up,
    would leave a database in which every later one fails.
    """
    if os.path.getsize(database):
        with contextlib.closing(sqlite3.connect(database, timeout=SECONDS_TO_ANSWER)) as opened:
            tables = {name for (name,) in opened.execute("select name from sqlite_master where type = 'table'")}
            half = "experiments" in tables and not opened.execute("select 1 from experiments").fetchone()
        if half:
            raise TrackingError(
                f"the MLflow store {store.name} is half made, by a process that was killed, and holds nothing: remove "
                f"{database}, and `python -m pipeline sync` fills a new one"
            )
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = database.with_name(f".{database.name}.new")
    for abandoned in database.parent.glob(f"{new.name}*"):  # with what SQLite keeps beside it
        abandoned.unlink()
    SqlAlchemyStore(Store.at(new).uri, store.artifacts).engine.dispose()
    with contextlib.closing(sqlite3.connect(new)) as made:
        made.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # all in the one file that is moved, whatever mode it is in
    os.replace(new, database)


def _experiment(client: MlflowClient, store: Store, name: str) -> str:
    """Return the id of the active experiment, which another machine may be creating at this moment."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=store.artifacts, tags=view.NEW_EXPERIMENT)
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


@contextlib.contextmanager
def lock(store: Store, purpose: str, deadline: Deadline) -> Iterator[None]:
    """Hold the lock for one purpose: one process at a time of all that write to an SQLite store; on other stores, which
    have no lock to offer, of all of this user on this machine (`claimant` is for the rest).

    Processes that create the tables of one new database at the same time crash each other.
    """
    folder = _lock_folder(store)
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{purpose}.lock"
    try:
        held = filelock.FileLock(place).acquire(timeout=min(SECONDS_TO_LOCK, deadline.left))
    except filelock.Timeout:
        raise TrackingError(
            f"the MLflow store {store.name} is being written by another process, which holds {place}"
        ) from None
    with held:
        yield


def claimant(store: Store) -> str:
    """Return who writes: the same text for all that share `lock`, another one on every other machine."""
    if store.database is not None:
        return "lock"
    place = _lock_folder(store) / "claimant"
    with contextlib.suppress(FileNotFoundError):
        return place.read_text(encoding="utf-8")
    mine = uuid.uuid4().hex
    temporary = place.with_name(f".{place.name}.{mine}")
    temporary.write_text(mine, encoding="utf-8")
    with contextlib.suppress(FileExistsError):
        os.link(temporary, place)  # whoever comes first
    temporary.unlink()
    return place.read_text(encoding="utf-8")


def _lock_folder(store: Store) -> Path:
    if store.database is not None:
        return store.database.parent
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # A user id without a name, as in some containers.
        user = str(os.getuid())
    return Path(tempfile.gettempdir()) / f"bakeoff-{user}"


@contextlib.contextmanager
def translated(store: Store) -> Iterator[None]:
    """Turn whatever MLflow, its database or the network raises into a TrackingError that names the store.

    Everything: what a web server that is no MLflow answers, or a driver that is not installed, ends in any of a dozen
    kinds of exception, and no stage may fail for one of them.
    """
    try:
        yield
    except BakeoffError:
        raise
    except Exception as error:
        reason = without_password(_reason(error), store.uri)
        raise TrackingError(f"the MLflow store {store.name} failed: {reason}") from error


def _reason(error: BaseException) -> str:
    """Return one line on what happened: where the system or a database said something, that, else the outermost."""
    innermost, seen = error, {id(error)}
    while (deeper := innermost.__cause__ or innermost.__context__) is not None and id(deeper) not in seen:
        seen.add(id(deeper))
        innermost = deeper
    if isinstance(innermost, TimeoutError) and not innermost.errno:
        return "no answer in time"
    if isinstance(innermost, OSError) and innermost.strerror:
        return innermost.strerror + (f": {innermost.filename}" if innermost.filename else "")
    chosen = innermost if isinstance(innermost, sqlite3.Error) else error
    lines = str(chosen).strip().splitlines() or [""]
    text = lines[0] if isinstance(chosen, sqlite3.Error | OSError) else f"{type(chosen).__name__}: {lines[0]}"
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."


def without_password(text: str, uri: str) -> str:
    """Return a text in which the password of a URI, if it has one, is hidden."""
    try:
        password = urlsplit(uri).password
    except ValueError:
        return text
    return text.replace(f":{password}@", ":***@") if password else text


def quiet() -> None:
    """Keep MLflow and its migrations off the console and off the network, unless the user's environment differs."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _check(store: Store) -> None:
    """Raise OSError or a database's error if the store cannot be written. MLflow would retry a bad one for 100 s."""
    if store.database is None:
        ask(store)
        return
    with contextlib.closing(sqlite3.connect(store.database, timeout=SECONDS_TO_ANSWER)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.rollback()


def ask(store: Store) -> None:
    """Raise OSError or a database's error if a store that is no file does not answer."""
    if store.uri.startswith(HTTP):
        parts = urlsplit(store.uri.rstrip("/") + "/health")
        try:  # without a name and a password, which urllib takes for a part of the host
            urllib.request.urlopen(
                parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), timeout=SECONDS_TO_ANSWER
            ).close()
        except urllib.error.HTTPError:
            return  # It answers; whether it lets us in is for the client to find out.
        except urllib.error.URLError as error:
            # Certificates are the client's business: it has settings of its own for them.
            if not isinstance(error.reason, ssl.SSLError):
                raise
    elif store.uri.startswith(("postgresql", "mysql")):
        import sqlalchemy

        engine = sqlalchemy.create_engine(store.uri, connect_args={"connect_timeout": SECONDS_TO_ANSWER})
        with contextlib.closing(engine.connect()):
            engine.dispose()
