"""Calibrators: maps from any row of class probabilities to another, and the JSON that holds all their numbers.

Calibrated probabilities are float64: in float32, rounding could make two classes equal that were not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Kind = Literal["temperature", "isotonic"]


@dataclass(frozen=True)
class Temperature:
    """All log probabilities divided by one number (Guo et al. 2017, "On Calibration of Modern Neural Networks").

    Above 1 it makes predictions less sure. The order of the classes stays, and a probability of exactly 0 stays 0.
    """

    temperature: float

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Return float64 (n, classes) for probabilities (n, classes)."""
        found = powers(logarithms(probabilities) / self.temperature)
        return found / found.sum(axis=1, keepdims=True)

    def describe(self) -> dict[str, Any]:
        return {"kind": "temperature", "temperature": self.temperature}


@dataclass(frozen=True)
class Isotonic:
    """A rising step-like map for each class against the rest, then rows divided by their sum (Zadrozny and Elkan 2002).

    ``maps``: for each class its knots, float64 (2, m): probabilities and what they become, linear between two knots and
    level outside. None leaves the class's probabilities as they are. With two classes there is one map, of the second.
    A row that becomes 0 for all classes stays what it was.
    """

    maps: tuple[np.ndarray | None, ...]

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Return float64 (n, classes) for probabilities (n, classes)."""
        before = probabilities.astype(np.float64)
        if len(self.maps) == 1:
            second = _mapped(before[:, 1], self.maps[0])
            return np.stack([1 - second, second], axis=1)
        after = np.stack([_mapped(before[:, column], knots) for column, knots in enumerate(self.maps)], axis=1)
        total = after.sum(axis=1, keepdims=True)
        return np.divide(after, total, out=before.copy(), where=total > 0)

    def describe(self) -> dict[str, Any]:
        maps = [None if knots is None else {"from": knots[0].tolist(), "to": knots[1].tolist()} for knots in self.maps]
        return {"kind": "isotonic", "maps": maps}


Calibrator = Temperature | Isotonic


def from_description(description: Mapping[str, Any]) -> Calibrator:
    """Return the calibrator that `describe` described, which holds all its numbers. Raises ValueError for another."""
    if description["kind"] == "temperature":
        return Temperature(float(description["temperature"]))
    if description["kind"] == "isotonic":
        maps = description["maps"]
        return Isotonic(tuple(None if knots is None else np.array([knots["from"], knots["to"]]) for knots in maps))
    raise ValueError(f"kind must be temperature or isotonic, received {description['kind']!r}")


def in_words(description: Mapping[str, Any]) -> str:
    """Return a calibrator's name as a table or a console shows it."""
    if description["kind"] == "temperature":
        return f"temperature {description['temperature']:.3g}"
    return description["kind"]


def _mapped(scores: np.ndarray, knots: np.ndarray | None) -> np.ndarray:
    return scores if knots is None else np.interp(scores, *knots)


def logarithms(probabilities: np.ndarray) -> np.ndarray:
    """Return float64 logarithms, minus infinity where a probability is 0."""
    values = probabilities.astype(np.float64)
    return np.log(values, out=np.full_like(values, -np.inf), where=values > 0)


def powers(scores: np.ndarray) -> np.ndarray:
    """Return exponentials in proportion to the softmax of each row, the largest of them 1."""
    return np.exp(scores - scores.max(axis=1, keepdims=True))
