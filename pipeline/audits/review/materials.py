"""What a review needs besides the clone: the raw data, and the bytes that dvc.lock claims by their digests alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from pipeline.audits.review import clones
from pipeline.audits.review.locks import ReviewError, digest
from pipeline.core import params


def place_raw_data(project: Path, clone: Path, cache: Path | None, *, claimed: str | None) -> str:
    """Bring what ``dataset.path`` names into a clone, and return its digest.

    What git holds is there already. A folder that DVC tracks must have the digest of its .dvc file; one that nothing
    tracks, ``claimed``, that of dvc.lock. It is taken from the workspace or else from the cache. Raises ReviewError if
    neither has it: nothing is replayed on other data.
    """
    path = Path(params.lookup(params.load(clone / params.PARAMS_FILE), "dataset.path"))
    if path.is_absolute():
        found = digest(path)
        if found is None or claimed not in (None, found):
            raise ReviewError(f"dataset.path {path} has the digest {found}, and dvc.lock wants {claimed}")
        return found
    target = clone / path
    if target.exists():
        return digest(target) or ""
    wanted = tracked_digest(clone, path) or claimed
    if wanted is None:
        raise ReviewError(f"{path} is in neither git nor DVC, and dvc.lock claims nothing of it: no data to take")
    here = digest(project / path)
    if here == wanted:
        copy(project / path, target)
    elif cache is None or not restore(cache, wanted, target):
        raise ReviewError(
            f"{path} must have the digest {wanted}; the workspace has {here or 'none'}, and the DVC cache has no such "
            f"data: `dvc pull {path}` at that revision, and review again"
        )
    found = digest(target)
    if found != wanted:
        raise ReviewError(f"{path} must have the digest {wanted}, received {found} from the DVC cache: it is damaged")
    return found


def tracked_digest(clone: Path, path: Path) -> str | None:
    """Return the digest that the .dvc file of a path records, None without such a file."""
    file = clone / path.with_name(f"{path.name}.dvc")
    if not file.is_file():
        return None
    output = yaml.safe_load(file.read_text(encoding="utf-8"))["outs"][0]
    return output[output.get("hash", "md5")]


def restore(cache: Path, wanted: str, target: Path, *, link: bool = False) -> bool:
    """Make ``target`` the file or directory of a digest out of a DVC cache; False if the cache has not all of it.

    ``link``: by links into the cache, for reading only.
    """
    source = _object(cache, wanted)
    if not source.is_file():
        return False
    entries = [("", source)]
    if wanted.endswith(".dir"):
        listed = json.loads(source.read_text(encoding="utf-8"))
        entries = [(entry["relpath"], _object(cache, entry["md5"])) for entry in listed]
        if not all(place.is_file() for _, place in entries):
            return False
        target.mkdir(parents=True, exist_ok=True)
    for name, place in entries:
        file = target / name if name else target
        file.parent.mkdir(parents=True, exist_ok=True)
        if link:
            file.symlink_to(place)
        else:
            shutil.copyfile(place, file)
    return True


def copy(source: Path, target: Path) -> None:
    """Copy a file or a directory, links as what they lead to."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def remove(path: Path) -> None:
    """Remove a file or a directory, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def cache_of(project: Path) -> Path | None:
    """Return the directory of a project's DVC cache that holds its files; None if DVC cannot say."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(project)) as repo:
            return Path(repo.cache.local.path)
    except (DvcException, AttributeError):
        return None


def _object(cache: Path, wanted: str) -> Path:
    return cache / wanted[:2] / wanted[2:]


def place_weights(project: Path, clone: Path) -> None:
    """Copy the file of weights that params.yaml names into a clone; neither git nor DVC has to know it."""
    weights = params.lookup(params.load(clone / params.PARAMS_FILE), "backbone.weights")
    if not Path(weights).is_absolute() and (project / weights).is_file() and not (clone / weights).exists():
        copy(project / weights, clone / weights)


class Claimed:
    """The bytes that a revision claims, by path and digest, for as long as they can be had.

    Looked for in the clone of the claims (what git keeps), in the DVC cache, in the workspace, and in the DVC remote if
    there is one. What is found has the digest that was asked for, or counts as not found.

    ``clone``: the clone of the revision that claims. ``place``: a temporary directory of this object's own.
    """

    def __init__(self, project: Path, clone: Path, place: Path):
        self.clone = clone
        self._project = project
        self._place = place
        place.mkdir(parents=True, exist_ok=True)
        self._cache = cache_of(project)
        self._found: dict[tuple[str, str], Path | None] = {}
        self._remote: bool | None = None

    def find(self, path: str, wanted: str | None) -> Path | None:
        """Return where the output ``path`` of the digest ``wanted`` can be read; None if nowhere."""
        if wanted is None:
            return None
        if (path, wanted) not in self._found:
            self._found[path, wanted] = self._find(path, wanted)
        return self._found[path, wanted]

    def _find(self, path: str, wanted: str) -> Path | None:
        if digest(self.clone / path) == wanted:
            return self.clone / path
        target = self._place / "found" / wanted / path
        if self._cache and restore(self._cache, wanted, target, link=True) and digest(target) == wanted:
            return target
        if digest(self._project / path) == wanted:
            return self._project / path
        remove(target)
        fetched = self._place / "cache"
        if self._fetch(path) and restore(fetched / "files" / "md5", wanted, target, link=True):
            return target if digest(target) == wanted else None
        return None

    def _fetch(self, path: str) -> bool:
        """Fetch an output from the DVC remote into a cache of its own; False if there is no remote, or it lacks it."""
        if self._remote is None:
            self._remote = self._know_remote()
        command = ["dvc", "fetch", "--quiet", path]
        return self._remote and self._dvc(command) == 0

    def _know_remote(self) -> bool:
        """Give the clone the remote of the project, with settings that are not in git; False if it has none."""
        remote = remote_of(self._project)
        if remote is None:
            return False
        local = self._project / ".dvc" / "config.local"
        if local.is_file():
            shutil.copyfile(local, self.clone / ".dvc" / "config.local")
        # A path that is relative to the project is none in the clone.
        name, url = remote
        settings = (
            ["remote", "add", "--local", "--force", "--default", name, url] if url else None,
            ["cache", "dir", "--local", str(self._place / "cache")],
        )
        return all(self._dvc(["dvc", *setting]) == 0 for setting in settings if setting)

    def _dvc(self, command: list[str]) -> int:
        log = self._place / "dvc.txt"
        return clones.run(command, cwd=self.clone, environment=clones.environment(), log=log, tick=lambda: None)


def remote_of(project: Path) -> tuple[str, str | None] | None:
    """Return the name of a project's default DVC remote, and its path if that is a directory here; None without one."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(project)) as repo:
            config: Any = repo.config
            name = config["core"].get("remote")
            url = config.get("remote", {}).get(name, {}).get("url") if name else None
    except DvcException:
        return None
    if name is None or url is None:
        return None
    return name, str(Path(url).absolute()) if Path(url).is_dir() else None
