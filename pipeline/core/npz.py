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

from pipeline.console.errors import reading

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


def load(path: Path, **dtypes: type[np.generic]) -> dict[str, np.ndarray]:
    """Return the arrays of a file by name: those of ``dtypes``, kinds such as ``np.floating``, in that order, else all.

    Checksums are compared. Raises ArtifactError if the file is damaged, or an array is missing or of another kind.
    """
    with reading(path), path.open("rb") as file, np.load(file, allow_pickle=False) as found:
        arrays = {name: found[name] for name in dtypes or found.files}
        for name, kind in dtypes.items():
            if not np.issubdtype(arrays[name].dtype, kind):
                raise TypeError(f"{name} must be {kind.__name__}, received {arrays[name].dtype}")
    return arrays
