"""The on-disk contracts between stages: where things lie, what is in them, and how they are written.

Everything is written whole or not at all: into a temporary neighbour, then renamed. Every read checks shapes and
dtypes and raises `ArtifactError` naming the file.

Labels of the test part are not handed out by `read_part`; only ``compare`` calls `read_test_labels`.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from pipeline.console.errors import ArtifactError, BakeoffError, reading, system_reason
from pipeline.core import npz

PARTS = ("train", "validation", "test")
CATALOG = Path("data/catalog.csv")
SPLIT = Path("data/split")
MANIFEST = SPLIT / "manifest.csv"
BACKBONES = Path("data/backbones")
FEATURES = Path("data/features")
RESULTS = Path("results")
RUNS = RESULTS / "runs"
LEADERBOARD = RESULTS / "leaderboard.json"
CALIBRATION = RESULTS / "calibration.json"

MANIFEST_COLUMNS = ("path", "label", "split", "group", "stratum", "sha256")


# With less than this free, whatever a library says went wrong while it wrote: the disk is full.
NO_ROOM_BYTES = 64 * 1024


class WriteError(BakeoffError):
    """An output could not be written, and the system said why: no space, no permission, ..."""

    def __init__(self, path: Path, reason: str, free: int):
        super().__init__(
            f"{path} cannot be written: {reason} ({free / 1e6:,.1f} MB free there). Nothing half-written was left; "
            "mend that and run the same command again"
        )
        self.reason, self.free = reason, free


# --- writing whole files -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary neighbour of ``path`` to write to; rename it over ``path`` if the body did not raise.

    Raises WriteError if the system refuses.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
    temporary = Path(name)
    try:
        with explained(path):
            yield temporary
            # mkstemp creates files for the owner only; outputs are as readable as any file the user writes.
            temporary.chmod(0o666 & ~_umask())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary neighbour of ``path`` to fill; it replaces ``path`` only if the body did not raise.

    A neighbour that a killed process left behind is removed first: two processes never write the same output. Raises
    WriteError if the system refuses.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in path.parent.glob(f".{path.name}.*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        with explained(path):
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            shutil.rmtree(path, ignore_errors=True)
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def discard_directory(path: Path) -> None:
    """Remove a directory by way of another name, so that what a kill leaves of it is not taken for a whole one."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as doomed:
        os.replace(path, Path(doomed) / path.name)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an error into a WriteError for ``path`` if the system said why, or if there is no room left.

    For what a library writes by itself: many say "failed" and no more. Around a temporary directory's use, not around
    its removal, which makes room.
    """
    try:
        yield
    except WriteError as error:  # of a file inside the directory ``path``
        raise WriteError(path, error.reason, error.free) from error
    except (BakeoffError, PermissionError):  # The latter says which file: perhaps one that is read.
        raise
    except Exception as error:
        place = path.absolute()
        while not place.is_dir():
            place = place.parent
        free = shutil.disk_usage(place).free
        reason = system_reason(error)
        # NumPy, for one, says "8192 requested and 4096 written" and no more.
        if reason is None and free < NO_ROOM_BYTES:
            reason = "the disk is full"
        if reason is None:
            raise
        raise WriteError(path, reason, free) from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with Unix line ends, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write sorted, indented JSON. Raises ValueError for NaN and infinities, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file. Raises ArtifactError if it is missing or damaged."""
    with reading(path):
        return json.loads(path.read_text(encoding="utf-8"))


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of exactly ``columns`` as CSV with Unix line ends."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV file as text. Raises ArtifactError unless header and rows have exactly ``columns``."""
    with reading(path), path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        if tuple(reader.fieldnames or ()) != tuple(columns):
            raise ArtifactError(f"{path} must have the columns {list(columns)}, received {reader.fieldnames}")
        rows = list(reader)
        if cut := [number for number, row in enumerate(rows, start=1) if None in row or None in row.values()]:
            raise ValueError(f"row {cut[0]} has not {len(columns)} columns")
        return rows


# --- the split -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One part of the split, in manifest order.

    ``paths`` are relative to `SPLIT`. ``labels`` are int64 (n,) indices into ``classes`` (sorted by name), or None for
    the test part. ``groups``: what lies whole in this part; "" of an image that belongs to none.
    """

    name: str
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    sha256: tuple[str, ...]
    strata: tuple[str, ...]
    groups: tuple[str, ...]
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.paths)

    @functools.cached_property
    def files(self) -> list[Path]:
        return [SPLIT / path for path in self.paths]


def read_part(name: Literal["train", "validation", "test"], manifest: Path = MANIFEST) -> Part:
    """Return one part of the manifest; the test part comes without labels."""
    part, labels = _read_part(name, manifest)
    if name == "test":
        return part
    return dataclasses.replace(part, labels=labels)


def read_test_labels(manifest: Path = MANIFEST) -> np.ndarray:
    """Return the labels of the test part, int64 (n,), in manifest order. For ``compare`` alone."""
    return _read_part("test", manifest)[1]


def _read_part(name: str, manifest: Path) -> tuple[Part, np.ndarray]:
    if name not in PARTS:
        raise ValueError(f"Unknown part {name!r}. Choose from: {', '.join(PARTS)}")
    rows = read_csv(manifest, MANIFEST_COLUMNS)
    classes = tuple(sorted({row["label"] for row in rows}))
    chosen = [row for row in rows if row["split"] == name]
    if not chosen:
        raise ArtifactError(f"{manifest} has no row of the part {name!r}")
    index = {label: position for position, label in enumerate(classes)}
    part = Part(
        name=name,
        classes=classes,
        paths=tuple(row["path"] for row in chosen),
        sha256=tuple(row["sha256"] for row in chosen),
        strata=tuple(row["stratum"] for row in chosen),
        groups=tuple(row["group"] for row in chosen),
        labels=None,
    )
    return part, np.array([index[row["label"]] for row in chosen], dtype=np.int64)


# --- features ------------------------------------------------------------------------------------------------------


def write_features(directory: Path, name: str, batches: Iterable[np.ndarray], *, shape: tuple[int, int]) -> None:
    """Write rows, float32 (b, width) a batch, as ``<directory>/<name>.npy`` of ``shape``.

    One batch is in memory at a time. Raises ArtifactError if the batches hold another number of rows.
    """
    path, written = directory / f"{name}.npy", 0
    # Not through a memory map, which would count as memory of the process.
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype("<f4")), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for batch in batches:
            file.write(np.ascontiguousarray(batch, dtype="<f4"))
            written += len(batch)
    if written != shape[0]:
        raise ArtifactError(f"{path} must have {shape[0]} rows, received {written}")


def read_features(directory: Path, part: Part) -> np.ndarray:
    """Return the features of one part, float32 (n_images, width), in manifest order, memory-mapped.

    Raises ArtifactError if the file is missing, has another shape or dtype, or holds a value that is not finite.
    """
    path = directory / f"{part.name}.npy"
    with reading(path):
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    if features.dtype != np.float32 or features.ndim != 2 or len(features) != len(part):
        raise ArtifactError(f"{path} must be float32 ({len(part)}, width), received {features.dtype} {features.shape}")
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise ArtifactError(f"{path} holds values that are not finite, first in row {row}: {part.paths[row]}")
    return features


# --- predictions and records ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictions:
    """Class probabilities of one run, rows in manifest order, columns in the order of the sorted class names.

    ``validation``: float32 (candidates, n_validation, classes), every candidate.
    ``test``: float32 (n_test, classes), the selected candidate only.
    ``repeats_validation``, ``repeats_test``: float32 (repeats - 1, n, classes), the selected candidate trained again
    with other seeds; both None, and absent from the file, if it was trained once.
    """

    validation: np.ndarray
    test: np.ndarray
    repeats_validation: np.ndarray | None = None
    repeats_test: np.ndarray | None = None

    @property
    def repeats(self) -> int:
        """How many times the selected candidate was trained."""
        return 1 if self.repeats_test is None else 1 + len(self.repeats_test)


_REPEATS = ("repeats_validation", "repeats_test")


def write_predictions(path: Path, predictions: Predictions) -> None:
    _check_predictions(path, predictions)
    repeats = {name: array for name in _REPEATS if (array := getattr(predictions, name)) is not None}
    with whole_file(path) as temporary, temporary.open("wb") as file:
        npz.save(file, validation=predictions.validation, test=predictions.test, **repeats)


def read_predictions(path: Path) -> Predictions:
    arrays = npz.load(path)
    with reading(path):
        repeats = {name: arrays[name] for name in _REPEATS if name in arrays}
        predictions = Predictions(arrays["validation"], arrays["test"], **repeats)
    _check_predictions(path, predictions)
    return predictions


def _check_predictions(path: Path, predictions: Predictions) -> None:
    arrays = [("validation", predictions.validation, 3), ("test", predictions.test, 2)]
    again = predictions.repeats_validation, predictions.repeats_test
    if (again[0] is None) != (again[1] is None):
        raise ArtifactError(f"{path}: {' and '.join(_REPEATS)} must both be there or both be absent")
    if again[0] is not None:
        arrays += [(name, array, 3) for name, array in zip(_REPEATS, again, strict=True)]
    for name, array, ndim in arrays:
        if array.dtype != np.float32 or array.ndim != ndim:
            received = f"{array.dtype} {array.shape}"
            raise ArtifactError(f"{path}: {name} must be float32 with {ndim} axes, received {received}")
        if not np.isfinite(array).all() or (array < 0).any() or (np.abs(array.sum(axis=-1) - 1) > 1e-4).any():
            raise ArtifactError(f"{path}: {name} must hold probabilities that sum to 1 along the last axis")
    if predictions.validation.shape[-1] != predictions.test.shape[-1]:
        raise ArtifactError(f"{path}: validation and test have different numbers of classes")
    if again[0] is None:
        return
    expected = [(len(again[1]) or 1, *predictions.validation.shape[1:]), (len(again[1]) or 1, *predictions.test.shape)]
    if [array.shape for array in again] != expected:
        raise ArtifactError(
            f"{path}: {' and '.join(_REPEATS)} must have the shapes (repeats - 1, images, classes) of the first "
            f"training, received {again[0].shape} and {again[1].shape}"
        )


class Candidate(pydantic.BaseModel):
    """One point of a search: its parameters and how fitting it went. ``history`` maps a name to one value a step."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    name: str
    parameters: dict[str, Any]
    converged: bool = True
    notes: dict[str, float | int | str] = {}
    history: dict[str, list[float]] = {}


class Cost(pydantic.BaseModel):
    """What the selected model costs to keep and to run; deterministic counts, no times.

    ``multiply_adds``: of one image through the network and the classifier; convolutions, dense layers, kernel
    evaluations; a tree's comparisons count as none.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    trainable_parameters: int
    total_parameters: int
    model_bytes: int
    multiply_adds: int


class Repeat(pydantic.BaseModel):
    """A further training of the selected candidate, with the root seed ``seed``; the rest as in `Candidate`."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    seed: int
    converged: bool = True
    notes: dict[str, float | int | str] = {}
    history: dict[str, list[float]] = {}


def of_repeat(number: int, name: str) -> str:
    """Return what a value of a training after the first is called beside those of the first; counted from 1."""
    return f"repeat_{number}_{name}"


class Record(pydantic.BaseModel):
    """What a run was and did, without clocks, hosts, paths or metrics: metrics are computed from predictions.

    ``repeats``: the trainings after the first, in the order of the predictions. ``draws``: whether training draws
    anything from its seed; if not, every repeat is the first one again, and nothing was trained twice.
    ``ablation``: what was done wrongly on purpose (`ablation`), None for a method as it is meant.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    stage: Literal["sweep", "head", "fine_tune", "scratch"]
    network: str
    method: str
    classes: list[str]
    parameters: dict[str, Any]
    inputs: dict[str, str]
    candidates: list[Candidate]
    selected: int
    cost: Cost
    repeats: list[Repeat] = []
    draws: bool = True
    ablation: str | None = None

    @property
    def name(self) -> str:
        return f"{self.network}-{self.method}"


def ablation(preprocess: str) -> str | None:
    """Return in a few words what a network is fed in place of its own preprocessing; None if that is what it gets.

    The one name that an ablation has: in specs, features, records, tables, figures, MLflow and on the console.
    """
    return {"backbone": None, "rescale": "fed pixels / 255", "none": "fed raw pixels"}[preprocess]


def marked(title: str, ablation: str | None) -> str:
    """Return the title of a method or network with its ablation, if it is one."""
    return title if ablation is None else f"{title} (ablation: {ablation})"


def write_record(path: Path, record: Record) -> None:
    write_json(path, record.model_dump())


def read_record(path: Path) -> Record:
    with reading(path):
        return Record.model_validate(read_json(path))


def read_calibrator(run: Path, saved: Path = CALIBRATION) -> Mapping[str, Any] | None:
    """Return the calibrator that the last comparison fitted for a run, None without.

    Raises ArtifactError if it was fitted on other predictions than the run's.
    """
    with reading(saved):
        found = read_json(saved)["runs"].get(run.name) if saved.exists() else None
        if found is None:
            return None
        calibrator, calibrated = found["calibrator"], found["predictions"]
    with reading(run / "predictions.npz"):
        predictions = sha256_file(run / "predictions.npz")
    if calibrated != predictions:
        raise ArtifactError(f"{saved} calibrates other predictions than those of {run}: run `dvc repro`")
    return calibrator


# --- digests -------------------------------------------------------------------------------------------------------


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_path(path: Path) -> str:
    """Return one SHA-256 for a file, or for a directory's relative paths and bytes whatever the listing order."""
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        raise ArtifactError(f"{path} is missing: run `dvc repro`")
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
