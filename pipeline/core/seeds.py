"""One seed in params.yaml, named child seeds for everything that draws.

A child depends on the root seed and its own name only, so adding a consumer moves nobody else's stream.

Deterministic for one machine type: the split, every classifier, and Keras training (op determinism is switched on and
the thread count comes from params). Not promised: equal last digits on another CPU type or thread count.
"""

from __future__ import annotations

import hashlib

import numpy as np


def child_seed(root: int, *names: str | int) -> int:
    """Return the seed, an int in [0, 2**32), of the consumer called ``names`` under the root seed."""
    text = "/".join([str(root), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def generator(root: int, *names: str | int) -> np.random.Generator:
    """Return a NumPy generator of its own for the consumer called ``names``."""
    return np.random.Generator(np.random.PCG64(child_seed(root, *names)))


def repeat_seed(root: int, repeat: int) -> int:
    """Return the root seed of one training of several; the first, number 1, is trained with the root seed itself."""
    return root if repeat == 1 else child_seed(root, "repeat", repeat)
