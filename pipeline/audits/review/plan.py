"""Which stages a review replays, and what has to be there for those whose inputs it does not make."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.audits.review import locks
from pipeline.audits.review.locks import Pipeline, ReviewError, Stage

# Training takes most of the time; what it is judged by is computed from its claimed results all the same.
LONGEST = ("head", "fine_tune", "scratch")
# Only fills MLflow, and would need the files of every run.
OPTIONAL = ("track",)


@dataclass(frozen=True)
class Plan:
    """``stages``: to replay, in order. ``given``: {path: digest} of outputs to take as claimed, because no replayed
    stage makes them. ``left_out``: {stage: why}."""

    stages: tuple[Stage, ...]
    given: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)


def plan(
    pipeline: Pipeline,
    *,
    names: Collection[str],
    quick: bool,
    claimed: Mapping[str, str],
    find: Callable[[str, str | None], Path | None],
) -> Plan:
    """Return what to replay: everything, the stages that ``names`` mean, or with ``quick`` all but the longest.

    ``claimed``: {path: digest} of every output. ``find``: returns where claimed bytes are, None if nowhere. Raises
    ReviewError if a stage was asked for whose inputs can neither be made nor had; ``quick`` leaves such a stage out.
    """
    wanted = locks.chosen(pipeline.stages, names) if names else list(pipeline.stages)
    left_out = {stage.name: "not among --stages" for stage in pipeline.stages if stage not in wanted}
    if quick:
        left_out |= {stage.name: "takes long" for stage in wanted if stage.kind in LONGEST}
        wanted = [stage for stage in wanted if stage.kind not in LONGEST]
    chosen: list[Stage] = []
    given: dict[str, str] = {}
    for stage in wanted:
        made = {path for one in chosen for path in one.outs}
        needed = inputs(stage, pipeline, made)
        missing = [path for path in needed if find(path, claimed.get(path)) is None]
        if missing and not (quick or stage.kind in OPTIONAL):
            raise ReviewError(
                f"{stage.name} reads {', '.join(missing)}, which is not replayed, and whose claimed bytes are neither "
                "in the DVC cache nor in the workspace nor in a DVC remote: replay the stages before it, too"
            )
        if missing:
            left_out[stage.name] = f"reads {missing[0]}, whose claimed bytes are not available"
            continue
        chosen.append(stage)
        given |= {path: claimed[path] for path in needed}
    if not chosen:
        raise ReviewError("No stage is left to replay")
    return Plan(tuple(chosen), given, left_out)


def inputs(stage: Stage, pipeline: Pipeline, made: Collection[str]) -> list[str]:
    """Return the outputs of other stages that a stage reads and nobody in the replay makes."""
    return [
        out
        for other in pipeline.stages
        if other.name != stage.name
        for out in other.outs
        if out not in made and any(locks.related(dep, out) for dep in stage.deps)
    ]


def in_words(left_out: Mapping[str, str]) -> str:
    """Return which stages a review left out, in words; empty for none."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{_listed(names)} ({reason})" for reason, names in by_reason.items())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
