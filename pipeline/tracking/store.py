"""Which store to write to, and opening it: quietly, in bounded time, and safely when several processes come first."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

import filelock

from pipeline.errors import BakeoffError
from pipeline.tracking import view

if TYPE_CHECKING:
    from mlflow import MlflowClient

# A folder named `mlflow` would stand in front of the import, and MLflow takes one named `mlruns` for an old file store.
FOLDER = ".mlflow"
SQLITE = "sqlite:///"
SECONDS_TO_ANSWER = 5
SECONDS_TO_LOCK = 120

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
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
    """An MLflow store by its tracking URI."""

    uri: str

    @property
    def database(self) -> Path | None:
        """The file of an SQLite store, else None."""
        if not self.uri.startswith(SQLITE):
            return None
        return Path(unquote(self.uri.removeprefix(SQLITE)).split("?")[0]).absolute()

    @property
    def artifacts(self) -> str | None:
        """Where the artifacts of an SQLite store lie, as a URI. Other stores choose for themselves."""
        return (self.database.parent / "artifacts").as_uri() if self.database else None


@dataclass(frozen=True)
class Connection:
    """An open store and the experiment in it."""

    store: Store
    client: MlflowClient
    experiment: str


def locate(environ: Mapping[str, str] = os.environ) -> Store:
    """Return the store that ``MLFLOW_TRACKING_URI`` names, else the one in the project's ``.mlflow``.

    The project is found through ``DVC_ROOT``, which names the project itself also inside the temporary workspaces of
    ``dvc exp run --temp``: all experiments meet in one store.
    """
    if uri := environ.get("MLFLOW_TRACKING_URI"):
        return Store(uri)
    root = Path(environ.get("DVC_ROOT") or ".").absolute()
    return Store(SQLITE + quote(str(root / FOLDER / "mlflow.db")))


def connect(store: Store, experiment: str) -> Connection:
    """Open a store and its experiment, creating both if needed. Raises TrackingError in bounded time."""
    quiet()
    with translated(store), lock(store, "create"):
        _check(store)
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=store.uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            created = client.create_experiment(
                experiment, artifact_location=store.artifacts, tags=view.NEW_EXPERIMENT
            )
            return Connection(store, client, created)
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return Connection(store, client, found.experiment_id)


@contextlib.contextmanager
def lock(store: Store, purpose: str) -> Iterator[None]:
    """Hold an SQLite store's lock for one purpose; another kind of store looks after itself.

    Processes that create the tables of one new database at the same time crash each other.
    """
    if store.database is None:
        yield
        return
    store.database.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(store.database.parent / f"{purpose}.lock", timeout=SECONDS_TO_LOCK):
        yield


@contextlib.contextmanager
def translated(store: Store) -> Iterator[None]:
    """Turn whatever MLflow, its database or the network raises into a TrackingError that names the store."""
    try:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise TrackingError(f"MLflow cannot be imported: {error}") from error
    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TrackingError(f"the MLflow store {store.uri} failed: {reason}") from error


def quiet() -> None:
    """Keep MLflow and its migrations off the console and off the network, unless the user's environment differs."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _check(store: Store) -> None:
    """Raise OSError or sqlite3.Error if the store does not answer. MLflow would retry a bad database for 100 s."""
    if store.database is not None:
        with contextlib.closing(sqlite3.connect(store.database, timeout=SECONDS_TO_ANSWER)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    elif store.uri.startswith(("http://", "https://")):
        try:
            urllib.request.urlopen(store.uri.rstrip("/") + "/health", timeout=SECONDS_TO_ANSWER).close()
        except urllib.error.HTTPError:
            return  # It answers; whether it lets us in is for the client to find out.
        except urllib.error.URLError as error:
            # Certificates are the client's business: it has settings of its own for them.
            if not isinstance(error.reason, ssl.SSLError):
                raise
