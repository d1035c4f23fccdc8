"""Why does an output differ from its claim? What lock and files say before anything runs, then the first difference.

A cause is sought at the first stages that are not identical, and at the first that diverged: those before which there
are none. What follows from them differs for the same reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.audits.review import locks
from pipeline.audits.review.locks import Claim, Pipeline, Stage

DATA = "data"
PARAMS = "params"
CODE = "code"
ENVIRONMENT = "environment"
NOT_DETERMINISTIC = "non-determinism"
FABRICATED = "fabricated"
LEAK = "leak"
KNOWN_LEAK = "known leak"
FAILED = "failed"
UNEXPLAINED = "unexplained"

CODE_FOLDER = "pipeline/"
MOST_SHOWN = 4
REFUSAL = "error:"  # how the last line of a stage begins that says what is wrong
MISSING_PACKAGE = re.compile(r"ModuleNotFoundError|ImportError|No module named")
TO_GET_BYTES = "`dvc pull` where they were made or kept, and a review after it,"
EDITED = "after dvc.lock was written, without a re-run"
# DVC writes 1e-05, which YAML 1.1 takes for text.
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and with which stage; of all of them if ``stage`` is empty."""

    kind: str
    stage: str
    text: str


# --- before anything runs: the lock against the files of its own revision ------------------------------------------


def of_lock(
    pipeline: Pipeline,
    claims: Mapping[str, Claim],
    values: Mapping[str, Any],
    digest: Callable[[str], str | None],
    *,
    when: str = EDITED,
) -> list[Finding]:
    """Return where dvc.lock does not belong to the params, code and data of the revision that is replayed.

    ``digest``: of a file of that revision; None if it has none. ``when``: since when or compared with what, in words.
    """
    found = []
    for stage in pipeline.stages:
        claim = claims.get(stage.name)
        if claim is None:
            found.append(Finding(CODE, stage.name, "dvc.lock does not have this stage: it never ran as it is declared"))
            continue
        found += [*_params(stage, claim, values), *_files(stage, claim, pipeline, digest, when)]
        found += _inputs(stage, claim, claims)
    return found


def _params(stage: Stage, claim: Claim, values: Mapping[str, Any]) -> list[Finding]:
    differing = [
        f"{key} is {_shown(locks.value(values, key))} in params.yaml and "
        f"{_shown(claim.params.get(key, locks.MISSING))} in dvc.lock"
        for key in dict.fromkeys([*stage.params, *claim.params])
        if _plain(locks.value(values, key)) != _plain(claim.params.get(key, locks.MISSING))
    ]
    return [Finding(PARAMS, stage.name, _listed(differing))] if differing else []


def _plain(value: Any) -> Any:
    """Return a value in which numbers that YAML took for text are numbers."""
    if isinstance(value, Mapping):
        return {key: _plain(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_plain(member) for member in value]
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def _files(
    stage: Stage, claim: Claim, pipeline: Pipeline, digest: Callable[[str], str | None], when: str
) -> list[Finding]:
    """Compare what no stage makes: modules, which are code, and everything else, which is data."""
    changed: dict[str, list[str]] = {CODE: [], DATA: []}
    for path in dict.fromkeys([*stage.deps, *claim.deps]):
        if pipeline.producer(path) is not None:
            continue
        kind = CODE if path.startswith(CODE_FOLDER) else DATA
        if path not in claim.deps:
            changed[kind].append(f"{path} is new")
        elif path not in stage.deps:
            changed[kind].append(f"{path} is no dependency any more")
        elif digest(path) != claim.deps[path]:
            changed[kind].append(f"{path} changed")
    if _words(stage.command) != _words(claim.command):
        changed[CODE].append(f"the command was `{_words(claim.command)}`")
    return [Finding(kind, stage.name, f"{_listed(texts)} {when}") for kind, texts in changed.items() if texts]


def _inputs(stage: Stage, claim: Claim, claims: Mapping[str, Claim]) -> list[Finding]:
    made = {path: wanted for other in claims.values() for path, wanted in other.outs.items()}
    stale = [path for path, used in claim.deps.items() if path in made and made[path] != used]
    if not stale:
        return []
    return [Finding(DATA, stage.name, f"by dvc.lock it ran on another {_listed(stale)} than the one claimed now")]


def of_committed(pipeline: Pipeline, claims: Mapping[str, Claim], digest: Callable[[str], str | None]) -> list[Finding]:
    """Return the results in git that are not the ones whose digests dvc.lock has: somebody edited them."""
    found = []
    for stage in pipeline.stages:
        claim = claims.get(stage.name)
        edited = [
            path
            for path in stage.outs
            if claim and path in stage.committed and digest(path) not in (None, claim.outs.get(path))
        ]
        if edited:
            text = f"{_listed(edited)} as committed is not what the stage wrote: its digest is not that in dvc.lock"
            found.append(Finding(FABRICATED, stage.name, text))
    return found


# --- after the replay ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Circumstances:
    """What is known of one diverged stage when its cause is sought.

    ``failure``: what it said when it failed, None if it did not. ``reads_data``: it reads the raw data.
    ``same_inputs``: it was judged on the very bytes that the claim was made from. ``repeated``: whether a second run on
    the same inputs gave the same bytes, None if there was none. ``environment``: how packages that it imports, or the
    machine differ. ``same_environment``: MLflow witnessed the claim in this one. ``changed_data``: what its tables say
    differs. ``contradicts``: it only computes numbers, of predictions, and claims others. ``unavailable``: some of what
    it claims is a digest only.
    """

    failure: str | None = None
    reads_data: bool = False
    same_inputs: bool = True
    repeated: bool | None = None
    environment: Sequence[str] = ()
    same_environment: bool = False
    changed_data: Sequence[str] = ()
    contradicts: bool = False
    unavailable: bool = False


def first(pipeline: Pipeline, stages: Collection[str]) -> list[str]:
    """Return those of some stages before which none of them comes, in order."""
    return [
        stage.name
        for stage in pipeline.stages
        if stage.name in stages and not pipeline.before[stage.name] & set(stages)
    ]


def explained_by(stage: str, pipeline: Pipeline, known: Sequence[Finding], *, unlike: Collection[str]) -> list[Finding]:
    """Return what was found before the replay that explains why a stage's outputs differ: of itself, else of those
    stages before it that are in ``unlike``. One whose outputs are identical explains nothing, however it was edited."""
    kinds = (DATA, PARAMS, CODE, FABRICATED)
    own = [one for one in known if one.stage == stage and one.kind in kinds]
    before = pipeline.before[stage] & set(unlike)
    return own or [one for one in known if one.stage in before and one.kind in kinds[:3]]


def of_divergence(stage: str, known: Sequence[Finding], facts: Circumstances) -> list[Finding]:
    """Return why a stage diverged first. ``known``: what `explained_by` found."""
    if facts.failure is not None:
        finding = Finding(_of_failure(facts), stage, f"the stage fails: {facts.failure}")
        return [*known, finding, *_environment(stage, facts)]
    if known:
        return list(known)
    if found := _not_deterministic(stage, facts):
        return found
    if facts.changed_data:
        text = f"the claimed table is not what the stage makes of its inputs: {_listed(facts.changed_data)}"
        return [Finding(DATA, stage, text)]
    if facts.environment:
        return _environment(stage, facts)
    if facts.same_inputs and (facts.contradicts or (facts.same_environment and not facts.unavailable)):
        what = "metrics" if facts.contradicts else "output"
        again = ", twice the same," if facts.repeated else ""
        text = f"the claimed {what} is not what this code{again} makes of the very inputs that dvc.lock names"
        return [Finding(FABRICATED, stage, text)]
    text = "data, params, code and packages are those claimed; another processor, or an output edited by hand"
    if not facts.same_inputs:
        text = "its inputs are not the claimed bytes, though close to them"
    elif facts.unavailable:
        text = (
            "data, params, code and packages are those claimed, and the claimed bytes are not here: "
            f"{TO_GET_BYTES} shows whether labels, copies or numbers differ"
        )
    return [Finding(UNEXPLAINED, stage, text)]


def of_difference(stage: str, known: Sequence[Finding], facts: Circumstances) -> list[Finding]:
    """Return why a stage that did not diverge is the first that is not identical; nothing if nobody knows."""
    return list(known) or _not_deterministic(stage, facts) or _environment(stage, facts)


def _not_deterministic(stage: str, facts: Circumstances) -> list[Finding]:
    if facts.repeated is not False:
        return []
    text = "two runs of this stage on the same inputs gave two results"
    return [Finding(NOT_DETERMINISTIC, stage, text), *_environment(stage, facts)]


def _of_failure(facts: Circumstances) -> str:
    """A package that is missing is no fault of the claim. A stage that reads the source checks it, and refuses what is
    not the data that was asked for; anything else is no refusal."""
    if MISSING_PACKAGE.search(facts.failure):
        return ENVIRONMENT
    return DATA if facts.reads_data and facts.failure.startswith(REFUSAL) else FAILED


def _environment(stage: str, facts: Circumstances) -> list[Finding]:
    return [Finding(ENVIRONMENT, stage, _listed(facts.environment))] if facts.environment else []


def _words(command: str) -> str:
    return " ".join(command.split())


def _shown(value: Any) -> str:
    return "missing" if value is locks.MISSING else repr(value)


def _listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - MOST_SHOWN} more" if len(texts) > MOST_SHOWN else ""
    return ", ".join(texts[:MOST_SHOWN]) + more
