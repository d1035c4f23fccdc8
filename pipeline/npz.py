"""Arrays in one .npz file, the same bytes from every Python.

`numpy.savez` leaves the headers of the zip file to Python's zipfile, whose releases write them differently: the same
arrays have other bytes under 3.11.2 than under 3.11.7. `numpy.load` reads these files like any other.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

UNIX = 3
READABLE = 0o600 << 16


def save(file: Path | BinaryIO, **arrays: np.ndarray) -> None:
    """Write arrays under their names, uncompressed, in the order given."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asanyarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy")  # dated 1980, as numpy does
            entry.create_system, entry.external_attr = UNIX, READABLE
            # Written at once, so that its size is known beforehand: no release then reserves fields for larger files.
            archive.writestr(entry, content.getbuffer())
