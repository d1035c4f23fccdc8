"""The two sides of a review: the clone that is replayed, and what is claimed, by digest and if possible by bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.audits.review import locks, materials
from pipeline.audits.review.locks import Claim, Pipeline, ReviewError, Stage
from pipeline.audits.review.replay import Executed
from pipeline.core import params


@dataclass
class Sides:
    """``clone`` is replayed; ``claims_clone`` is of the revision that claims, with ``claims`` by stage.

    ``values``, ``claimed_values``: params.yaml of the two. ``executed``: the stages that were replayed, by name.
    """

    clone: Path
    claims_clone: Path
    pipeline: Pipeline
    claims: Mapping[str, Claim]
    values: Mapping[str, Any]
    claimed_values: Mapping[str, Any]
    claimed: materials.Claimed
    executed: dict[str, Executed] = field(default_factory=dict)

    @classmethod
    def open(cls, project: Path, clone: Path, claims_clone: Path, place: Path) -> Sides:
        """Read both clones. Raises ReviewError or ParamsError if one holds no pipeline or no claims."""
        return cls(
            clone=clone,
            claims_clone=claims_clone,
            pipeline=locks.declared(clone),
            claims=read_claims(claims_clone),
            values=params.load(clone / params.PARAMS_FILE),
            claimed_values=params.load(claims_clone / params.PARAMS_FILE),
            claimed=materials.Claimed(project, claims_clone, place),
        )

    def digest(self, stage: Stage, path: str) -> str | None:
        """Return the digest that is claimed of an output: of what git has, if it has it, else by the lock."""
        committed = locks.digest(self.claims_clone / path) if path in stage.committed else None
        claim = self.claims.get(stage.name)
        return committed or (claim.outs.get(path) if claim else None)

    def claimed_path(self, path: str) -> Path | None:
        """Return where the claimed bytes of an output are; None if nowhere, or if nothing is claimed of it.

        Where the replay made the very bytes, those are they.
        """
        name = self.pipeline.producer(path)
        if name is None:
            return None
        wanted = self.digest(self.pipeline.stage(name), path)
        if name in self.executed and wanted is not None and self.executed[name].digests.get(path) == wanted:
            return self.clone / path
        return self.claimed.find(path, wanted)

    def replayed_path(self, path: str) -> Path | None:
        """Return where an output of the replay is, None if its stage was not replayed or failed."""
        done = self.executed.get(self.pipeline.producer(path) or "")
        return None if done is None or done.failure is not None else self.clone / path

    def text(self, name: str) -> str:
        """Return the content of a text file of the claiming revision, nothing if it has none."""
        path = self.claims_clone / name
        return path.read_text(encoding="utf-8") if path.is_file() else ""


def read_claims(clone: Path) -> dict[str, Claim]:
    """Return the claims of the revision in a clone. Raises ReviewError if it has no dvc.lock."""
    path = clone / locks.LOCK
    if not path.is_file():
        raise ReviewError(f"There is no {locks.LOCK} at that revision: nothing is claimed, so nothing can be reviewed")
    return locks.claims(path.read_text(encoding="utf-8"))
