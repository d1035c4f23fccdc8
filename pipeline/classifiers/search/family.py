"""What all families share: what goes into a classifier, what comes out, and how a family is found by name."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np

from pipeline.console.errors import BakeoffError
from pipeline.core import npz
from pipeline.core.params import Block, ParamsError

if TYPE_CHECKING:
    from pipeline.classifiers.search import search_space

Examples = tuple[np.ndarray, np.ndarray]  # features float32 (n, width), labels int (n,)
Item = TypeVar("Item")
Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Any])

PREPARATION_FILE = "preparation.npz"
ROWS_AT_ONCE = 512  # rows of a block; with the bound below, whatever the number of threads
MOST_BLOCKS = 64
# Far above what any network gives; the square of more, summed over a wide network, leaves the range of float32.
LARGEST_FEATURE = 1e15


class ClassifierError(BakeoffError):
    """Features or labels that no classifier can be trained on."""


class Model(Protocol):
    """A trained classifier. The same bytes are saved for the same training, whatever the number of threads."""

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 (n, n_classes), for float32 (n, width); unseen classes have probability 0."""

    def cost(self) -> tuple[int, int]:
        """Return (numbers the model consists of, multiply-adds for one image)."""

    def save(self, directory: Path) -> None:
        """Write the model into an existing directory."""


@dataclass(frozen=True)
class Fit:
    """A trained model and how training went; ``history`` maps a name to one value an iteration.

    ``validation``: the model's probabilities of all validation images, float32 (n, n_classes).
    """

    model: Model
    validation: np.ndarray
    converged: bool = True
    notes: dict[str, float | int | str] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Preparation:
    """How features and labels enter a classifier, and how its probabilities leave it; learned from training alone.

    ``seen``: int64 (k,), the classes that training has images of; a classifier knows them as 0..k-1.
    ``mean``, ``deviation``: float64 (width,), or empty if features are taken as they are.
    """

    n_classes: int
    seen: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def learn(cls, train: Examples, *, n_classes: int, scale: Literal["standard"] | None) -> Preparation:
        """Raises ClassifierError unless there are at least two classes and one feature that varies."""
        features, labels = train
        seen = np.unique(labels).astype(np.int64)
        if len(seen) < 2 or seen[0] < 0 or seen[-1] >= n_classes:
            raise ClassifierError(
                f"training needs images of two or more of the classes 0..{n_classes - 1}, received {seen.tolist()}"
            )
        varies = features.max(axis=0) > features.min(axis=0)
        if not varies.any():
            raise ClassifierError(f"all {features.shape[1]} features are constant over the training images")
        if scale is None:
            return cls(n_classes, seen, np.empty(0), np.empty(0))
        mean = features.mean(axis=0, dtype=np.float64)
        # By blocks, because `std` makes two float64 copies of all features.
        squares = sum(((features[rows] - mean) ** 2).sum(axis=0) for rows in blocks(len(features)))
        # The computed deviation of a constant is not always 0 but may be rounding noise, which would blow it up.
        return cls(n_classes, seen, mean, np.where(varies, np.sqrt(squares / len(features)), 1.0))

    def features(self, features: np.ndarray) -> np.ndarray:
        """Return features as the classifier takes them, float64 if scaled, else as they are."""
        if not len(self.mean):
            return features
        scaled = features - self.mean
        scaled /= self.deviation
        return scaled

    def examples(self, examples: Examples) -> Examples:
        """Return (prepared features, labels 0..k-1) of the images whose class training has seen.

        Raises ClassifierError if there are none.
        """
        features, labels = examples
        known = np.isin(labels, self.seen)
        if not known.any():
            seen = self.seen.tolist()
            raise ClassifierError(f"none of {len(labels)} images has one of the classes {seen} of training")
        return self.features(features[known]), np.searchsorted(self.seen, labels[known])

    def probabilities(self, probabilities: np.ndarray) -> np.ndarray:
        """Return float32 (n, n_classes) from the classifier's (n, k), or (n,) of the second of two classes."""
        if probabilities.ndim == 1:
            probabilities = np.stack([1.0 - probabilities, probabilities], axis=1)
        result = np.zeros((len(probabilities), self.n_classes), dtype=np.float32)
        result[:, self.seen] = probabilities
        return result

    def save(self, directory: Path) -> None:
        arrays = {"seen": self.seen, "mean": self.mean, "deviation": self.deviation}
        npz.save(directory / PREPARATION_FILE, n_classes=np.int64(self.n_classes), **arrays)

    @classmethod
    def load(cls, directory: Path) -> Preparation:
        path = directory / PREPARATION_FILE
        arrays = npz.load(path, n_classes=np.integer, seen=np.integer, mean=np.floating, deviation=np.floating)
        return cls(int(arrays.pop("n_classes")), **arrays)


@dataclass(frozen=True)
class Prepared:
    """A task's features as classifiers take them with one value of ``scale``: float64 if scaled, else as they are.

    ``features`` (n, width) and ``labels`` int (n,) in 0..k-1 are of training; ``validation`` (m, width) is of all
    validation images.
    """

    preparation: Preparation
    features: np.ndarray
    labels: np.ndarray
    validation: np.ndarray

    @property
    def k(self) -> int:
        return len(self.preparation.seen)


class Task:
    """What all candidates of one sweep are fitted to, prepared once, and the threads they may use.

    ``seed``: of everything that a family draws. ``threads``: at most so many at once; with `map`, results do not
    depend on it. ``groups``: of the training images, "" of one that belongs to none; whoever divides them keeps a group
    whole. Raises ClassifierError for features that are not finite or above `LARGEST_FEATURE` in size.
    """

    def __init__(
        self,
        train: Examples,
        validation: Examples,
        *,
        n_classes: int,
        seed: int,
        threads: int,
        groups: Sequence[str] = (),
    ):
        _require_usable("training", train[0])
        _require_usable("validation", validation[0])
        self.train, self.validation, self.groups = train, validation, groups
        self.n_classes, self.seed, self.threads = n_classes, seed, threads
        self._prepared: dict[str | None, Prepared] = {}
        self._pool: ThreadPoolExecutor | None = None

    def prepared(self, scale: Literal["standard"] | None) -> Prepared:
        """Return the features under one scaling, computed once. Raises ClassifierError as `Preparation.learn` does."""
        if scale not in self._prepared:
            preparation = Preparation.learn(self.train, n_classes=self.n_classes, scale=scale)
            features, labels = preparation.examples(self.train)
            self._prepared[scale] = Prepared(preparation, features, labels, preparation.features(self.validation[0]))
        return self._prepared[scale]

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield ``function(item)`` in the order of ``items``, computed in up to ``threads`` threads.

        A function that spends its time in NumPy, LAPACK or LIBSVM runs on several cores, because these release the
        interpreter's lock. Where BLAS is kept to one thread each (`one_blas_thread`), every item's result is the same
        whatever the number of threads, and no library waits for cores that another one has taken.
        """
        if self.threads == 1:
            return map(function, items)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="classifiers")
        return self._pool.map(function, items)


class Fitter:
    """Fits the candidates of one family to one task. What they share is computed once and kept here.

    A family derives from this and writes `fit`; `start` only if a candidate gains by beginning at another's solution.
    ``draws``: whether `fit` draws anything from the task's seed. False is a promise that no seed changes a result.
    ``variant``: what takes the place of the family's own model under this task, if anything.
    """

    draws = True
    variant = ""

    def __init__(self, task: Task, params: Block):
        self.task, self.params = task, params

    def named(self, candidate: search_space.Candidate) -> search_space.Candidate:
        """Return a candidate whose name says which `variant` it is of."""
        return candidate._replace(name=f"{candidate.name}, {self.variant}") if self.variant else candidate

    def start(self, points: Sequence[dict[str, Any]], index: int) -> int | None:
        """Return which of the candidates before ``index`` its fit begins at, if any; decided by the points alone."""
        return None

    def fit(self, parameters: dict[str, Any], start: Model | None = None) -> Fit:
        """Train one candidate; ``start`` is the model of the candidate that the method `start` named.

        A function of these two, the task and the params: not of what was fitted before, nor of the number of threads.
        """
        raise NotImplementedError


def fit_all(fitter: Fitter, points: Iterable[dict[str, Any]]) -> Iterator[Fit]:
    """Yield the fit of every candidate, in order; a point is taken when the fit before it has been yielded."""
    models: list[Model] = []
    taken: list[dict[str, Any]] = []
    for index, parameters in enumerate(points):
        taken.append(parameters)
        start = fitter.start(taken, index)
        fit = fitter.fit(parameters, None if start is None else models[start])
        models.append(fit.model)
        yield fit


def blocks(n: int) -> list[slice]:
    """Return consecutive slices that cover ``n`` rows, at most `MOST_BLOCKS`; they depend on n alone."""
    rows = max(ROWS_AT_ONCE, -(-n // MOST_BLOCKS))
    return [slice(first, min(first + rows, n)) for first in range(0, n, rows)]


def one_blas_thread(function: Function) -> Function:
    """Decorate a function that calls BLAS: each call runs in the calling thread alone.

    Several BLAS threads would change the last digits with their number, and on busy cores they wait for each other: a
    product of a 1,574 x 1,280 matrix and a vector then takes 12 ms instead of 0.5.
    """

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, user_api="blas"):
            return function(*args, **kwargs)

    return limited


def sample_weights(labels: np.ndarray, class_weight: Literal["balanced"] | None) -> np.ndarray:
    """Return float64 (n,) with mean 1: ones, or n / (classes * images of the class) as in King and Zeng (2001)."""
    if class_weight is None:
        return np.ones(len(labels))
    _, position, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return len(labels) / (len(counts) * counts[position])


def _require_usable(part: str, features: np.ndarray) -> None:
    low, high = features.min(), features.max()  # NaN if there is one
    if not (low >= -LARGEST_FEATURE and high <= LARGEST_FEATURE):
        unusable = ~(np.abs(features) <= LARGEST_FEATURE)
        row, column = (int(each[0]) for each in np.nonzero(unusable))
        raise ClassifierError(
            f"features of {part} must be finite and at most {LARGEST_FEATURE:g} in size, received "
            f"{features[row, column]} as feature {column} of image {row}, counted from 0 ({int(unusable.sum())} such)"
        )


def find(name: str) -> ModuleType:
    """Return the module of a family. Raises ParamsError if there is none of that name."""
    module: Any = None
    if name.isidentifier():
        try:
            module = importlib.import_module(f"pipeline.classifiers.families.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"pipeline.classifiers.families.{name}":
                raise
    if not hasattr(module, "Fitter"):
        where = f"pipeline/classifiers/families/{name}.py"
        raise ParamsError(f"params.yaml: classifiers.{name}: there is no family {where}")
    return module
