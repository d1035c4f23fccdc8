"""Is a folder of images kept by DVC or git, so that an experiment in a temporary workspace finds it there?"""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml

from pipeline.core.params import PARAMS_FILE
from pipeline.data.sources.source import LITTER


def by_dvc_or_git(folder: Path) -> bool:
    """Whether a .dvc file beside the folder or above it lists it, or git has every file in it but hidden and litter.

    Outside git nothing is tracked and nothing can be run in a temporary workspace: a source archive counts as tracked.
    """
    return _in_dvc_file(folder) or not _git_lists(PARAMS_FILE) or _in_git(folder)


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


def _in_git(folder: Path) -> bool:
    # A link to a folder is listed by its own name: what it leads to is not in git.
    if folder.is_symlink() or not _git_lists(folder):
        return False
    # What .gitignore names is not left out: it would be missing in a temporary workspace as well.
    return not _git_lists(folder, "--others", *(f"--exclude={name}" for name in (".*", *sorted(LITTER))))


def _git_lists(path: Path | str, *options: str) -> bool:
    """Whether git lists a file, or any file in a folder; False where there is no git or no repository."""
    command = ["git", "-c", "core.ignoreCase=true", "ls-files", "-z", *options, "--", str(path)]
    try:
        return bool(subprocess.run(command, capture_output=True, check=False).stdout)
    except FileNotFoundError:
        return False
