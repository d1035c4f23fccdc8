"""Is a folder of images kept by DVC or git, so that an experiment in a temporary workspace finds it there?"""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml

from pipeline.params import PARAMS_FILE


def by_dvc_or_git(folder: Path) -> bool:
    """Whether a .dvc file beside the folder or above it lists it, or git has files in it.

    Outside git nothing is tracked and nothing can be run in a temporary workspace: a source archive counts as tracked.
    """
    return _in_dvc_file(folder) or not _git_lists(PARAMS_FILE) or _git_lists(folder / "")


def _in_dvc_file(folder: Path) -> bool:
    wanted = folder.absolute()
    for place in list(wanted.parents)[: len(folder.parents)]:
        for file in sorted(place.glob("*.dvc")):
            if file.is_file() and any(_holds(output, wanted) for output in _outputs(file)):
                return True
    return False


def _outputs(file: Path) -> list[Path]:
    """Return what a .dvc file tracks, as absolute paths; nothing if it is damaged, which DVC itself will say."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        base = (file.parent / content.get("wdir", ".")).absolute()
        return [base / output["path"] for output in content["outs"]]
    except (OSError, UnicodeError, yaml.YAMLError, AttributeError, KeyError, TypeError):
        return []


def _holds(output: Path, wanted: Path) -> bool:
    return output == wanted or output in wanted.parents


def _git_lists(path: Path | str) -> bool:
    """Whether git tracks a file, or any file in a folder; False where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "ls-files", "-z", "--", str(path)], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    listed = [name for name in done.stdout.split(b"\0") if name]
    # A link to a folder is listed by its own name: what it leads to is not in git.
    return bool(listed) and not (Path(path).is_symlink() and len(listed) == 1)
