"""What all families share: what goes into a classifier, what comes out, and how a family is found by name."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np

from pipeline.errors import BakeoffError
from pipeline.params import ParamsError

Examples = tuple[np.ndarray, np.ndarray]  # features float32 (n, width), labels int (n,)

PREPARATION_FILE = "preparation.npz"


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
    """A trained model and how training went; ``history`` maps a name to one value an iteration."""

    model: Model
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
        # The computed deviation of a constant is not always 0 but may be rounding noise, which would blow it up.
        deviation = np.where(varies, features.std(axis=0, dtype=np.float64), 1.0)
        return cls(n_classes, seen, features.mean(axis=0, dtype=np.float64), deviation)

    def features(self, features: np.ndarray) -> np.ndarray:
        """Return features as the classifier takes them, float64 if scaled, else as they are."""
        return (features - self.mean) / self.deviation if len(self.mean) else features

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
        np.savez(directory / PREPARATION_FILE, n_classes=np.int64(self.n_classes), **arrays)

    @classmethod
    def load(cls, directory: Path) -> Preparation:
        with np.load(directory / PREPARATION_FILE, allow_pickle=False) as arrays:
            return cls(int(arrays["n_classes"]), arrays["seen"], arrays["mean"], arrays["deviation"])


def sample_weights(labels: np.ndarray, class_weight: Literal["balanced"] | None) -> np.ndarray:
    """Return float64 (n,) with mean 1: ones, or n / (classes * images of the class) as in King and Zeng (2001)."""
    if class_weight is None:
        return np.ones(len(labels))
    _, position, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return len(labels) / (len(counts) * counts[position])


def find(name: str) -> ModuleType:
    """Return the module of a family. Raises ParamsError if there is none of that name."""
    module: Any = None
    if name.isidentifier():
        try:
            module = importlib.import_module(f"pipeline.classifiers.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"pipeline.classifiers.{name}":
                raise
    if not hasattr(module, "fit"):
        raise ParamsError(f"params.yaml: classifiers.{name}: there is no family pipeline/classifiers/{name}.py")
    return module
