"""Images that look the same: perceptual hashes find candidates, the correlation of thumbnails confirms them.

A pair is near duplicate if its 64-bit perceptual hashes differ in at most `DISTANCE` bits and its grey thumbnails
correlate with at least `CORRELATION`. Clusters are the connected components of such pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

DISTANCE = 4
CORRELATION = 0.995
ROWS, COLUMNS = 512, 2048
# Above, one product of matrices for the whole block is cheaper than one dot product a pair.
DENSE = 4096


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Return the DCT hash of grey thumbnails, uint8 (n, 32, 32), as uint64 (n,)."""
    import imagehash

    hashes = [np.packbits(imagehash.phash(Image.fromarray(thumbnail)).hash.reshape(-1)) for thumbnail in thumbnails]
    return np.array(hashes, dtype=np.uint8).reshape(-1, 8).view(">u8").astype(np.uint64).reshape(-1)


def clusters(hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """Return for every image the smallest index in its cluster, int64 (n,); an image on its own has its own index.

    ``hashes``: uint64 (n,); ``thumbnails``: uint8 (n, 32, 32). All pairs are compared, block by block, so memory grows
    with n alone. A thumbnail of one level has no correlation and no near duplicate.
    """
    count = len(hashes)
    root = np.arange(count)
    unit = _normalized(thumbnails)
    for top in range(0, count, ROWS):
        for left in range(top - top % COLUMNS, count, COLUMNS):
            # Beneath the diagonal is what another block holds above it.
            close = np.bitwise_count(hashes[top : top + ROWS, None] ^ hashes[None, left : left + COLUMNS]) <= DISTANCE
            rows, columns = np.nonzero(close)
            rows, columns = rows + top, columns + left
            open_pairs = (rows < columns) & (root[rows] != root[columns])
            rows, columns = rows[open_pairs], columns[open_pairs]
            if len(rows):
                same = _correlations(unit, rows, columns, top, left) >= CORRELATION
                _join(root, rows[same], columns[same])
    return root


def cluster_names(sha256: Sequence[str], hashes: np.ndarray, thumbnails: np.ndarray) -> list[str]:
    """Return for every image, of digests that are all different, its cluster's name, empty for an image on its own.

    A cluster is called after its smallest digest, so its name does not depend on the order of images.
    """
    root = clusters(hashes, thumbnails)
    sizes = np.bincount(root, minlength=len(root))
    smallest: dict[int, str] = {}
    for index in np.argsort(np.array(sha256, dtype=object), kind="stable"):
        smallest.setdefault(int(root[index]), sha256[index][:12])
    return [smallest[int(first)] if sizes[first] > 1 else "" for first in root]


def _normalized(thumbnails: np.ndarray) -> np.ndarray:
    """Return thumbnails with mean 0 and length 1, float32 (n, 1024): their products are correlations."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.sqrt(np.einsum("ij,ij->i", flat, flat))
    flat[length < 1e-3] = 0
    flat /= np.maximum(length, 1e-3)[:, None]
    return flat


def _correlations(unit: np.ndarray, rows: np.ndarray, columns: np.ndarray, top: int, left: int) -> np.ndarray:
    if len(rows) > DENSE:
        return (unit[top : top + ROWS] @ unit[left : left + COLUMNS].T)[rows - top, columns - left]
    return np.einsum("ij,ij->i", unit[rows], unit[columns])


def _join(root: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> None:
    """Join the clusters of every pair, in place: each gets the smallest index of those that it is joined with."""
    if not len(rows):
        return
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes, edges = np.unique(np.stack([root[rows], root[columns]]), return_inverse=True)
    ends = edges.reshape(2, -1)
    graph = coo_array((np.ones(ends.shape[1]), (ends[0], ends[1])), shape=(len(nodes), len(nodes)))
    number, component = connected_components(graph, directed=False)
    smallest = np.full(number, len(root))
    np.minimum.at(smallest, component, nodes)
    renamed = np.arange(len(root))
    renamed[nodes] = smallest[component]
    root[:] = renamed[root]
