"""Votes of the nearest training images, by Euclidean or cosine distance."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic

from pipeline.classifiers.search import family, search_space
from pipeline.core import npz

MODEL_FILE = "model.npz"
ENTRIES_AT_ONCE = 2**23  # distances in a block, 64 MB; many more would only fill the memory
# For each feature, a safe bound of the rounding of squared distances from a product of matrices, relative to the
# squared norms.
ROUNDING = 4 * np.finfo(np.float64).eps


class Grid(search_space.Grid):
    """Named as in scikit-learn. ``weights``: of a vote, the same for all or the inverse of the distance."""

    n_neighbors: search_space.Values[Annotated[int, pydantic.Field(ge=1)]]
    metric: search_space.Values[Literal["cosine", "euclidean"]]
    weights: search_space.Values[Literal["uniform", "distance"]]


class Params(search_space.Search):
    grid: Grid


class Neighborhood:
    """The training images as points, float64 (n, width): for cosine distances of length 1 (a zero stays zero).

    Half the squared distance of two points of length 1 is their cosine distance.
    """

    def __init__(self, features: np.ndarray, metric: str):
        self.cosine = metric == "cosine"
        self.points = self._placed(features)
        self._squares = np.einsum("ij,ij->i", self.points, self.points)
        self.rows_at_once = max(1, ENTRIES_AT_ONCE // len(features))

    def nearest(self, features: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ``count`` nearest training images of each row, int (m, count), and distances, float64 (m, count).

        The nearest first, of equally distant ones the first in training. A product of matrices finds those that may be
        among them; their distances are then computed one by one, because the rounding of a product depends on what
        else is in it and would decide between duplicates.
        """
        places = self._placed(features)
        squares = np.einsum("ij,ij->i", places, places)[:, None]
        rough = places @ self.points.T
        rough *= -2
        rough += squares
        rough += self._squares
        farthest = np.partition(rough, count - 1, axis=1)[:, count - 1 : count]
        near = rough <= farthest + ROUNDING * places.shape[1] * (squares + self._squares.max())
        rows, distances = np.empty((len(places), count), dtype=np.int64), np.empty((len(places), count))
        for row, place in enumerate(places):
            candidates = np.flatnonzero(near[row])
            exact = self._squared_distances(place, candidates)
            order = np.argsort(exact, kind="stable")[:count]
            rows[row], distances[row] = candidates[order], exact[order]
        return rows, distances / 2 if self.cosine else np.sqrt(distances)

    def _squared_distances(self, place: np.ndarray, rows: np.ndarray) -> np.ndarray:
        pieces = [rows[first : first + family.ROWS_AT_ONCE] for first in range(0, len(rows), family.ROWS_AT_ONCE)]
        return np.concatenate([((self.points[piece] - place) ** 2).sum(axis=1) for piece in pieces])

    def _placed(self, features: np.ndarray) -> np.ndarray:
        features = features.astype(np.float64, copy=not self.cosine)
        if not self.cosine:
            return features
        norms = np.sqrt(np.einsum("ij,ij->i", features, features))[:, None]
        return np.divide(features, norms, out=np.zeros_like(features), where=norms > 0)


@dataclass(frozen=True)
class Model:
    """``features`` float32 (n, width) of training, not scaled; ``labels`` int (n,) in 0..k-1; ``votes`` (n,): what each
    image's vote counts. All training images vote if they are fewer than ``n_neighbors``.
    """

    preparation: family.Preparation
    features: np.ndarray
    labels: np.ndarray
    votes: np.ndarray
    n_neighbors: int
    metric: str
    weights: str

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        count, step = min(self.n_neighbors, len(self.labels)), self._neighborhood.rows_at_once
        blocks = [features[first : first + step] for first in range(0, len(features), step)]
        found = [_nearest(self._neighborhood, self.preparation.features(block), count) for block in blocks]
        return self.probabilities(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))

    def probabilities(self, rows: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """Return the shares of the votes, float32 (m, n_classes); images at distance 0 outvote all others."""
        votes = self.votes[rows]
        if self.weights == "distance":
            same = distances == 0
            inverse = np.divide(1.0, distances, out=np.zeros_like(distances), where=~same)
            votes = votes * np.where(same.any(axis=1, keepdims=True), same, inverse)
        shares = np.zeros((len(rows), len(self.preparation.seen)))
        np.add.at(shares, (np.arange(len(rows))[:, None], self.labels[rows]), votes)
        return self.preparation.probabilities(shares / shares.sum(axis=1, keepdims=True))

    @functools.cached_property
    def _neighborhood(self) -> Neighborhood:
        return Neighborhood(self.preparation.features(self.features), self.metric)

    def cost(self) -> tuple[int, int]:
        return self.features.size + self.labels.size + self.votes.size, self.features.size

    def save(self, directory: Path) -> None:
        self.preparation.save(directory)
        npz.save(
            directory / MODEL_FILE,
            features=self.features,
            labels=self.labels,
            votes=self.votes,
            n_neighbors=np.int64(self.n_neighbors),
            metric=np.array(self.metric),
            weights=np.array(self.weights),
        )


class Fitter(family.Fitter):
    """Finds the neighbors of the validation images once for each scaling and metric: as many as any candidate asks for.

    Class weights are weights of votes.
    """

    draws = False

    def __init__(self, task: family.Task, params: Params):
        super().__init__(task, params)
        asked = params.grid.n_neighbors
        most = asked.high if isinstance(asked, search_space.Range) else max(asked)
        self._most = min(most, len(task.train[1]))
        self._found: dict[tuple[str | None, str], tuple[np.ndarray, np.ndarray]] = {}

    def fit(self, parameters: dict[str, Any], start: family.Model | None = None) -> family.Fit:
        prepared = self.task.prepared(parameters["scale"])
        rows, distances = self._neighbors(prepared, parameters["scale"], parameters["metric"])
        model = Model(
            prepared.preparation,
            features=np.asarray(self.task.train[0]),
            labels=prepared.labels,
            votes=family.sample_weights(prepared.labels, parameters["class_weight"]),
            n_neighbors=parameters["n_neighbors"],
            metric=parameters["metric"],
            weights=parameters["weights"],
        )
        count = min(model.n_neighbors, len(model.labels))
        return family.Fit(model, model.probabilities(rows[:, :count], distances[:, :count]), notes={"voters": count})

    def _neighbors(self, prepared: family.Prepared, scale: str | None, metric: str) -> tuple[np.ndarray, np.ndarray]:
        if (scale, metric) not in self._found:
            neighborhood = Neighborhood(prepared.features, metric)
            step = neighborhood.rows_at_once
            blocks = [prepared.validation[first : first + step] for first in range(0, len(prepared.validation), step)]
            found = self.task.map(lambda block: _nearest(neighborhood, block, self._most), blocks)
            rows, distances = zip(*found, strict=True)
            self._found[scale, metric] = np.concatenate(rows), np.concatenate(distances)
        return self._found[scale, metric]


@family.one_blas_thread
def _nearest(neighborhood: Neighborhood, features: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    return neighborhood.nearest(features, count)


def load(directory: Path) -> Model:
    arrays = npz.load(
        directory / MODEL_FILE,
        features=np.floating,
        labels=np.integer,
        votes=np.floating,
        n_neighbors=np.integer,
        metric=np.str_,
        weights=np.str_,
    )
    scalars = {name: arrays.pop(name).item() for name in ("n_neighbors", "metric", "weights")}
    return Model(family.Preparation.load(directory), **arrays, **scalars)
