"""What dvc.lock says of the pipeline's outputs, and what lies on disk.

DVC trusts a file whose size, time and inode it has seen before, and what a remote gave it. Here every byte is read.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from pipeline.console.errors import ArtifactError
from pipeline.console.progress import progress
from pipeline.core import artifacts, params

LOCK = Path("dvc.lock")
ALTERED = "changed after its run or fetched damaged"

Output = tuple[str, str]
"""(stage, path); the path relative to the project, with slashes."""


def claims(text: str, *, where: str = str(LOCK)) -> dict[Output, str]:
    """Return the digest of every output in the text of a dvc.lock. Raises ArtifactError if it is none."""
    try:
        # The parser in C reads a lock of 90 kB in a tenth of a second, the other one in almost a whole one.
        stages = (yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}).get("stages", {})
        return {
            (name, output["path"]): output[output.get("hash", "md5")]
            for name, stage in stages.items()
            for output in stage.get("outs", ())
        }
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        said = " ".join(str(error).split())
        raise ArtifactError(f"{where} cannot be read: {said}. Bring it back: git checkout -- {LOCK}") from None


def digests(paths: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Yield every path, with slashes, and the digest that DVC gives what lies there; None if there is nothing.

    To be called in the root of the project. Files are read in parallel, without those that .dvcignore names. Closing
    the iterator stops the reading. Raises ArtifactError for what cannot be read.
    """
    from dvc.fs import localfs
    from dvc.ignore import DvcIgnoreFilter
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    ignored = DvcIgnoreFilter(localfs, os.getcwd())
    found: list[tuple[str, list[str] | None]] = []  # with the files of a folder, relative to it
    for path in paths:
        place = os.path.abspath(path)
        if ignored.is_ignored(localfs, place, ignore_subrepos=False) or not os.path.lexists(place):
            yield path, None
        elif os.path.isdir(place):
            found.append((path, [file[len(place) + 1 :] for file in ignored.find(localfs, place)]))
        else:
            found.append((path, None))
    files = [file for path, names in found for file in ([path] if names is None else [f"{path}/{n}" for n in names])]
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        hashed = progress(pool.map(_md5, files), total=len(files), label="reading outputs", unit="files")
        for path, names in found:
            if names is None:
                yield path, next(hashed)
            else:
                tree = Tree()
                for name in names:
                    tree.add(tuple(name.split(os.sep)), None, HashInfo("md5", next(hashed)))
                tree.digest()
                yield path, tree.hash_info.value
    finally:
        pool.shutdown(cancel_futures=True)


def refuse_changed(paths: Iterable[Path]) -> None:
    """Raise ArtifactError if something at ``paths`` is not what dvc.lock says of it.

    Nothing is said of a path that is missing or that dvc.lock does not name.
    """
    if not LOCK.is_file():
        return
    said = by_path(claims(LOCK.read_text(encoding="utf-8")))
    asked = {Path(os.path.relpath(path)).as_posix() for path in paths}
    for path, digest in digests(sorted(asked & said.keys())):
        if digest is not None and digest not in said[path]:
            stage = next(iter(said[path].values()))
            raise ArtifactError(f"{path} is not what {LOCK} says, {ALTERED}. Bring it back:\n{remedy((stage, path))}")


def refuse_changed_runs() -> None:
    """Raise ArtifactError if a run of params.yaml, what it is loaded with or the comparison is not what dvc.lock says.

    For what logs models and results: nothing that was tampered with may go there as a result of this commit.
    """
    runs = params.declared_runs(params.load())
    networks = [artifacts.BACKBONES / run.network for run in runs if run.stage == "sweep"]
    compared = [artifacts.MANIFEST, artifacts.LEADERBOARD, artifacts.CALIBRATION]
    refuse_changed([*compared, *networks, *(artifacts.RUNS / run.name for run in runs)])


def by_path(claimed: Mapping[Output, str]) -> dict[str, dict[str, str]]:
    """Return {path: {digest: stage}}: stages that params.yaml no longer declares may share a path with others."""
    found: dict[str, dict[str, str]] = {}
    for (stage, path), digest in claimed.items():
        found.setdefault(path, {})[digest] = stage
    return found


def remedy(output: Output) -> str:
    """Return the commands that bring back what dvc.lock says. DVC alone may think that it is there already."""
    stage, path = output[0], shlex.quote(output[1])
    return (
        f"rm -rf {path} && dvc checkout {path}  # if git keeps it: git checkout -- {path}\n"
        f"dvc repro --force --single-item {stage}  # makes it again, should DVC's cache be wrong as well"
    )


def _md5(file: str) -> str:
    from dvc_data.hashfile.hash import file_md5

    try:
        if not os.path.isfile(file):  # a pipe, which would never end, or a link to nothing
            raise ArtifactError(f"{os.path.relpath(file)} is no file: remove it, then `dvc checkout` or `dvc repro`")
        return file_md5(file)
    except OSError as error:
        raise ArtifactError(f"{os.path.relpath(file)} cannot be read: {error.strerror or error}") from None
