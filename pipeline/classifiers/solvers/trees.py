"""Decision trees as plain arrays: found by scikit-learn, kept and followed without it.

A pickle ties a file to one version of scikit-learn and runs code when it is opened; and scikit-learn adds up a forest
in whatever order its threads end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from pipeline.core import npz

ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Tree:
    """One tree's nodes, the root first. ``feature`` int (nodes,), below 0 for a leaf; an image whose feature is at most
    ``threshold``, float64 (nodes,), goes to ``left``, else to ``right``, ints (nodes,). ``values``: (nodes, columns).
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Trees:
    """Many trees' splits and leaves, one tree behind the other.

    ``roots`` int32 (trees,), ``left`` and ``right`` int32 (splits,): a split, or below 0 the leaf -1 - number.
    ``feature`` int32 and ``threshold`` float64 (splits,); ``leaves`` float64 (leaves, columns).
    """

    roots: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    leaves: np.ndarray

    @classmethod
    def of(cls, trees: Sequence[Tree]) -> Trees:
        splits = leaves = 0
        roots, left, right = [], [], []
        for tree in trees:
            is_leaf = tree.feature < 0
            # Where each node goes in the arrays of all trees.
            place = np.where(is_leaf, -leaves - np.cumsum(is_leaf), splits + np.cumsum(~is_leaf) - 1).astype(np.int32)
            roots.append(place[0])
            left.append(place[tree.left[~is_leaf]])
            right.append(place[tree.right[~is_leaf]])
            splits, leaves = splits + int((~is_leaf).sum()), leaves + int(is_leaf.sum())
        return cls(
            roots=np.array(roots, dtype=np.int32),
            feature=np.concatenate([tree.feature[tree.feature >= 0] for tree in trees]).astype(np.int32),
            threshold=np.concatenate([tree.threshold[tree.feature >= 0] for tree in trees]).astype(np.float64),
            left=np.concatenate(left),
            right=np.concatenate(right),
            leaves=np.concatenate([tree.values[tree.feature < 0] for tree in trees]).astype(np.float64),
        )

    def sums(self, features: np.ndarray, *, classes: int = 1) -> np.ndarray:
        """Return what the leaves of each image add up to, float64 (n, classes * columns), tree by tree in their order.

        The trees of ``classes`` classes take turns: tree t counts for class t % classes.
        """
        pieces = [features[first : first + ROWS_AT_ONCE] for first in range(0, len(features), ROWS_AT_ONCE)]
        return np.concatenate([self._sums(piece, classes) for piece in pieces])

    def _sums(self, features: np.ndarray, classes: int) -> np.ndarray:
        n, trees = len(features), len(self.roots)
        place = np.tile(self.roots, (n, 1))
        images, of_tree = np.nonzero(place >= 0)
        while len(images):
            splits = place[images, of_tree]
            goes_left = features[images, self.feature[splits]] <= self.threshold[splits]
            place[images, of_tree] = found = np.where(goes_left, self.left[splits], self.right[splits])
            images, of_tree = images[found >= 0], of_tree[found >= 0]
        result = np.zeros((n, classes, self.leaves.shape[1]))
        for tree in range(trees):
            result[:, tree % classes] += self.leaves[-1 - place[:, tree]]
        return result.reshape(n, -1)

    def size(self) -> int:
        """Return of how many numbers the trees consist: one a split, and those of the leaves."""
        return len(self.feature) + self.leaves.size

    def save(self, path: Path) -> None:
        npz.save(path, **{each.name: getattr(self, each.name) for each in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Trees:
        real = ("threshold", "leaves")
        kinds = {each.name: np.floating if each.name in real else np.integer for each in fields(cls)}
        return cls(**npz.load(path, **kinds))
