"""The one base of every error that a user can mend, and what the system says that a user can mend, in words."""

from __future__ import annotations

import errno

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
