"""Are the results on disk those that dvc.lock says?"""

from __future__ import annotations

import time

from pipeline.audits.health import leftovers
from pipeline.console.findings import Finding

# Then a file that is being read is read to its end.
SECONDS_TO_READ = 20.0


def results(*, seconds: float = SECONDS_TO_READ) -> list[Finding]:
    """Check every output that is on disk by its bytes, for no longer than ``seconds``; one that is missing is fine."""
    from pipeline.audits import outputs
    from pipeline.console.progress import announce

    if not outputs.LOCK.is_file():
        return [Finding("ok", "results", "none recorded yet; `dvc repro` makes them")]
    if leftovers.dvc_locks()[1]:
        return [Finding("ok", "results", "not looked at while a stage is running")]
    said = outputs.by_path(outputs.claims(outputs.LOCK.read_text(encoding="utf-8")))
    announce(f"reading {len(said)} outputs, for at most {seconds:.0f} s")
    end, looked_at, altered, missing = time.monotonic() + seconds, 0, [], 0
    reading = outputs.digests(said)
    for path, digest in reading:
        looked_at += 1
        missing += digest is None
        if digest is not None and digest not in said[path]:
            altered.append((path, outputs.remedy((next(iter(said[path].values())), path))))
        if time.monotonic() > end:
            break
    reading.close()
    found = [
        Finding("problem", "results", f"{path} is not what {outputs.LOCK} says, {outputs.ALTERED}", remedy)
        for path, remedy in altered
    ]
    if looked_at < len(said):
        message = f"{len(said) - looked_at} of {len(said)} outputs were not read within {seconds:.0f} s"
        found.append(Finding("warning", "results", message, "python -m pipeline lock"))
    elif not altered:
        rest = f"; {missing} are not on disk" if missing else ""
        found.append(Finding("ok", "results", f"{looked_at - missing} outputs as {outputs.LOCK} says{rest}"))
    return found
