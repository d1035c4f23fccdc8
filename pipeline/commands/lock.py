"""Say which outputs in dvc.lock are identical to those of the committed dvc.lock.

`dvc repro` rewrites dvc.lock without a word when a result differs, so comparing is done here. It also keeps entries of
stages that are no more, such as a classifier taken out of params.yaml; these are named and not counted.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts import ArtifactError
from pipeline.errors import BakeoffError
from pipeline.progress import say

LOCK = Path("dvc.lock")

Outputs = Mapping[tuple[str, str], str]
"""(stage, path) -> digest."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", default="HEAD", help="the git revision to compare with (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="exit with status 1 unless every output is identical")


def main(arguments: argparse.Namespace) -> int:
    if not LOCK.is_file():
        raise ArtifactError(f"{LOCK} is missing: run `dvc repro`")
    names = declared()
    current = outputs(yaml.safe_load(LOCK.read_text(encoding="utf-8")))
    left_over = sorted({stage for stage, _ in current} - names)
    current = of_stages(current, names)
    text = committed_text(arguments.revision)
    if text is None:
        say(f"No {LOCK} at {arguments.revision}: nothing to compare {len(current)} outputs with")
        return 1 if arguments.check else 0
    comparison = compare(of_stages(outputs(yaml.safe_load(text)), names), current)
    say(describe(comparison, arguments.revision))
    if left_over:
        say(f"not counted, because dvc.yaml and params.yaml no longer declare them: {', '.join(left_over)}")
    return 1 if arguments.check and comparison.changes else 0


@dataclass(frozen=True)
class Comparison:
    """Outputs of two locks, each a list of (stage, path) in order."""

    identical: list[tuple[str, str]]
    different: list[tuple[str, str]]
    new: list[tuple[str, str]]
    missing: list[tuple[str, str]]

    @property
    def changes(self) -> int:
        return len(self.different) + len(self.new) + len(self.missing)


def outputs(lock: Mapping[str, Any] | None) -> dict[tuple[str, str], str]:
    """Return {(stage, path): digest} of every output in the contents of a dvc.lock."""
    stages = (lock or {}).get("stages", {})
    return {
        (name, output["path"]): output[output.get("hash", "md5")]
        for name, stage in stages.items()
        for output in stage.get("outs", ())
    }


def declared() -> set[str]:
    """Return the names of the stages that dvc.yaml declares with today's params.yaml, each item of a matrix for one."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            return {stage.addressing for stage in repo.index.stages}
    except DvcException as error:
        raise BakeoffError(f"DVC cannot read dvc.yaml: {error}") from None


def of_stages(found: Outputs, names: Collection[str]) -> dict[tuple[str, str], str]:
    """Return the outputs of the stages called ``names``."""
    return {(stage, path): digest for (stage, path), digest in found.items() if stage in names}


def compare(committed: Outputs, current: Outputs) -> Comparison:
    """Sort the outputs of two locks into identical, different, new and missing."""
    both = sorted(committed.keys() & current.keys())
    return Comparison(
        identical=[key for key in both if committed[key] == current[key]],
        different=[key for key in both if committed[key] != current[key]],
        new=sorted(current.keys() - committed.keys()),
        missing=sorted(committed.keys() - current.keys()),
    )


def describe(comparison: Comparison, revision: str) -> str:
    """Return "N of M outputs identical to the committed lock" and a line for every output that is not."""
    name = "the committed lock" if revision == "HEAD" else f"the lock at {revision}"
    total = len(comparison.identical) + comparison.changes
    colon = ":" if comparison.changes else ""
    lines = [f"{len(comparison.identical)} of {total} outputs identical to {name}{colon}"]
    for change in ("different", "new", "missing"):
        lines += [f"  {change}: {path} ({stage})" for stage, path in getattr(comparison, change)]
    return "\n".join(lines)


def committed_text(revision: str) -> str | None:
    """Return dvc.lock as committed at ``revision``, or None if there is none. Raises BakeoffError without git."""
    known = _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if known.returncode:
        if revision == "HEAD" and _git("rev-parse", "--git-dir").returncode == 0:
            return None  # a repository without a commit
        raise BakeoffError(f"{revision!r} is no commit of a git repository here. Choose a branch, a tag or a commit.")
    shown = _git("show", f"{revision}:./{LOCK}")
    return None if shown.returncode else shown.stdout


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8")
    except FileNotFoundError:
        raise BakeoffError("git not found: install it, DVC needs it") from None
