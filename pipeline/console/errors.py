"""The one base of every error that a user can mend, and what the system says that a user can mend, in words."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

# EPERM is not among them: the system says it for a hundred reasons.
MENDABLE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than this system allows (`ulimit -f`)",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
}


class BakeoffError(ValueError):
    """Bad input or a missing file: the command line prints the message and no traceback."""


class ArtifactError(BakeoffError):
    """A file between two stages is missing, damaged, or breaks its contract."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever is raised while ``path`` is read into an ArtifactError that names it and says what mends it.

    A damaged file may raise anything: for a zip file alone, Python has eight kinds of errors.
    """
    try:
        yield
    except BakeoffError:
        raise
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: run `dvc repro`") from None
    except Exception as error:
        if system_reason(error):
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        raise ArtifactError(
            f"{path} is damaged or of another kind ({said}). Remove it; then `dvc checkout` or `dvc pull` fetches it, "
            "`git checkout` if git keeps it, and `dvc repro` makes it again"
        ) from error


def system_reason(error: BaseException) -> str | None:
    """Return why the system refused to read or write a file, if that is in `MENDABLE`, else None.

    Looks behind the error, too: a library may have wrapped the system's in one of its own.
    """
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        if isinstance(following, OSError) and following.errno in MENDABLE:
            return MENDABLE[following.errno]
        following = following.__cause__ or following.__context__
    return None
