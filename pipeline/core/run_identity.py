"""What identifies a finished run, whoever shows or explains it."""

from __future__ import annotations

from pathlib import Path

from pipeline.core import artifacts, provenance


def record_digest(directory: Path) -> str:
    """Return the identity of a finished run: one SHA-256 of its record and predictions."""
    files = ("record.json", "predictions.npz")
    return provenance.digest({name: artifacts.sha256_path(directory / name) for name in files})
