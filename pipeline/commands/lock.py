"""Say which outputs on disk are identical to those of the committed dvc.lock.

`dvc repro` rewrites dvc.lock without a word when a result differs, and `dvc status` trusts the times of files, so every
byte is read here. dvc.lock also keeps entries of stages that are no more, such as a classifier taken out of
params.yaml; these are named and not counted.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.audits.outputs import ALTERED, LOCK, Output, claims, digests, remedy
from pipeline.console.errors import BakeoffError
from pipeline.console.progress import say
from pipeline.core.artifacts import ArtifactError

GET_MISSING = "`dvc checkout` or `dvc pull` fetches what is kept, `dvc repro` makes it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", default="HEAD", help="the git revision to compare with (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="exit with status 1 unless every output is identical")


def main(arguments: argparse.Namespace) -> int:
    if not LOCK.is_file():
        raise ArtifactError(f"{LOCK} is missing: run `dvc repro`")
    current = claims(LOCK.read_text(encoding="utf-8"))
    text = committed_text(arguments.revision)
    committed = current if text is None else claims(text, where=f"{LOCK} at {arguments.revision}")
    names = declared()
    left_over = sorted({stage for stage, _ in current} - names)
    committed, current = (
        {output: digest for output, digest in lock.items() if output[0] in names} for lock in (committed, current)
    )
    comparison = compare(committed, current, dict(digests(sorted({path for _, path in (*committed, *current)}))))
    if text is None:
        say(f"No {LOCK} at {arguments.revision}: nothing to compare {len(current)} outputs with")
    else:
        name = "the committed lock" if arguments.revision == "HEAD" else f"the lock at {arguments.revision}"
        count = len(comparison.identical)
        say(f"{count} of {count + comparison.changes} outputs identical to {name}{':' if comparison.changes else ''}")
    if comparison.changes:
        say(describe(comparison))
    if left_over:
        say(f"not counted, because dvc.yaml and params.yaml no longer declare them: {', '.join(left_over)}")
    return 1 if arguments.check and (comparison.changes or text is None) else 0


@dataclass(frozen=True)
class Comparison:
    """Outputs on disk, in order.

    ``different``: by the run recorded here, another result than the committed one. ``new``: not in the committed lock.
    ``edited``: not what the lock here says of their run. ``missing``: not on disk.
    """

    identical: list[Output]
    different: list[Output]
    new: list[Output]
    edited: list[Output]
    missing: list[Output]

    @property
    def changes(self) -> int:
        return len(self.different) + len(self.new) + len(self.edited) + len(self.missing)


def compare(
    committed: Mapping[Output, str], current: Mapping[Output, str], found: Mapping[str, str | None]
) -> Comparison:
    """Compare the digests ``found`` at paths with those of two locks: the committed one and the one here."""
    comparison = Comparison([], [], [], [], [])
    for output in sorted({*committed, *current}):
        digest = found[output[1]]
        if digest is None:
            state = comparison.missing
        elif digest != current.get(output):
            state = comparison.edited
        elif output not in committed:
            state = comparison.new
        else:
            state = comparison.identical if digest == committed[output] else comparison.different
        state.append(output)
    return comparison


def describe(comparison: Comparison) -> str:
    """Return a line for every output that is not identical, and what brings back those that no run has changed."""
    lines = []
    for change in ("different", "new", "edited", "missing"):
        lines += [f"  {change}: {path} ({stage})" for stage, path in getattr(comparison, change)]
    if comparison.edited:
        lines.append(f"edited: not what {LOCK} here says, {ALTERED}. This brings it back:")
        lines += [f"  {line}" for output in comparison.edited for line in remedy(output).splitlines()]
    if comparison.missing:
        lines.append(f"missing: {GET_MISSING}")
    return "\n".join(lines)


def declared() -> set[str]:
    """Return the names of the stages that dvc.yaml declares with today's params.yaml, each item of a matrix for one."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            return {stage.addressing for stage in repo.index.stages}
    except DvcException as error:
        raise BakeoffError(f"DVC cannot read dvc.yaml: {error}") from None


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
