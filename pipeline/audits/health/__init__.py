"""What `python -m pipeline doctor` looks at: one function a subject, each returning what it found.

No check changes anything, downloads anything, or takes longer than a second or two. Two exceptions: every byte of the
results is read, for up to `results.SECONDS_TO_READ`, and what may be far away is given `SECONDS_TO_ANSWER`. At import,
only the standard library is needed. A check that needs a package that is missing says so, and the others go on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.console.errors import BakeoffError
from pipeline.console.findings import Finding

SECONDS_TO_ANSWER = 4.0

if TYPE_CHECKING:  # So that a Python that is too old gets as far as being told so.
    Check = Callable[[], Sequence[Finding]]


def examine(subject: str, check: Check) -> Sequence[Finding]:
    """Return what a check found; its own failure is a finding, too."""
    try:
        return check()
    except ImportError as error:
        name = error.name or str(error)
        return [Finding("warning", subject, f"not looked at, because {name} cannot be imported: mend packages first")]
    except BakeoffError as error:
        return [Finding("problem", subject, " ".join(str(error).split()))]
    except OSError as error:
        return [Finding("problem", subject, f"{error.filename or 'a file'} cannot be read: {error.strerror or error}")]
    except Exception as error:  # A damaged package may raise anything, and the other checks must still be made.
        return [Finding("problem", subject, f"this check failed: {type(error).__name__}: {error}")]


def examine_within(
    checks: Sequence[tuple[str, Check]], *, seconds: float = SECONDS_TO_ANSWER
) -> Iterator[Sequence[Finding]]:
    """Yield what each check found, all of them at work at the same time and given up after ``seconds``."""
    found: dict[str, Sequence[Finding]] = {}

    def look(subject: str, check: Check) -> None:
        found[subject] = examine(subject, check)

    # Daemons: one that waits for a server that never answers must not keep the process from ending.
    threads = [(check[0], threading.Thread(target=look, args=check, daemon=True)) for check in checks]
    for _, thread in threads:
        thread.start()
    for position, (subject, thread) in enumerate(threads):
        thread.join(seconds if position == 0 else 0.1)
        silent = Finding("problem", subject, f"no answer within {seconds:.0f} s")
        yield found.get(subject, [silent])
