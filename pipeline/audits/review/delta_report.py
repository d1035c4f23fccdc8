"""An explained difference as text, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.audits.review import evidence, report
from pipeline.audits.review.delta import NOTHING, Attribution, Combination, attribute, ordered
from pipeline.audits.review.report import Section, Table
from pipeline.audits.review.variants import Outcome
from pipeline.core import artifacts
from pipeline.evaluation.leaderboard import UNDEFINED

NAMES = ("delta.md", "delta.json")


class Delta(NamedTuple):
    """Two revisions as they were called, their commits, the factors that differ, and what came of every combination.

    ``packages``: in words, where the locked packages of the two differ. ``claimed``: the metrics that each has
    committed, {(run or champion, metric): value}, None for one without.
    """

    names: tuple[str, str]
    commits: tuple[str, str]
    changed: tuple[str, ...]
    outcomes: Mapping[Combination, Outcome]
    packages: tuple[str, ...] = ()
    claimed: tuple[Mapping[tuple[str, str], float] | None, ...] = (None, None)

    def attributions(self) -> dict[tuple[str, str], Attribution | None]:
        """Return {(run or champion, metric): attribution}, None where one of the two revisions does not have it.

        Nothing if one of them has no result at all.
        """
        built = {some: outcome.values for some, outcome in self.outcomes.items() if outcome.values is not None}
        keys = dict.fromkeys(key for values in built.values() for key in sorted(values))
        ends = (frozenset(), frozenset(self.changed))
        if not all(end in built for end in ends):
            return {}
        shown = [key for key in keys if any(key in built[end] for end in ends)]
        found = {key: {some: values[key] for some, values in built.items() if key in values} for key in shown}
        return {key: attribute(values, self.changed) for key, values in found.items()}

    def not_as_claimed(self) -> list[str]:
        """Return, in words, where what was replayed of the two revisions is not what they have committed."""
        found = []
        for name, end, claims in zip(self.names, (frozenset(), frozenset(self.changed)), self.claimed, strict=True):
            replayed = self.outcomes[end].values if end in self.outcomes else None
            if replayed is None or claims is None:
                continue
            found += [
                f"{name} has committed {run} test {metric} {_number(claims.get((run, metric)))}, its replay gives "
                f"{_number(replayed.get((run, metric)))}"
                for run, metric in dict.fromkeys([*claims, *replayed])
                if not _same(claims.get((run, metric)), replayed.get((run, metric)))
            ]
        return found

    def other_test(self) -> list[Combination]:
        """Return the combinations whose test images, or their labels, are not those of the first revision."""
        first = self.outcomes[frozenset()].test
        return [some for some, outcome in self.outcomes.items() if outcome.values is not None and outcome.test != first]


def _same(one: float | None, other: float | None) -> bool:
    return one is other if None in (one, other) else abs(one - other) <= NOTHING


def _number(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.6g}"


def packages(names: tuple[str, str], differing: Sequence[str]) -> str:
    """Return what other locked packages mean for the shares, in one sentence."""
    return (
        f"the locked packages of {names[0]} and {names[1]} differ ({evidence.counted(differing)}), and both revisions "
        "are replayed with the packages that are installed here: what packages moved is in no share"
    )


def named(some: Combination, delta: Delta) -> str:
    """Return a combination in words."""
    if not some:
        return f"everything of {delta.names[0]}"
    if some == frozenset(delta.changed):
        return f"everything of {delta.names[1]}"
    return f"{together(some)} of {delta.names[1]}, the rest of {delta.names[0]}"


def together(some: Combination) -> str:
    return " and ".join(ordered(some))


def sentence(key: tuple[str, str], found: Attribution | None) -> str:
    """Return what moved one metric, in one sentence."""
    what = f"{key[0]} test {key[1]}"
    if found is None:
        return f"{what}: only one of the two revisions has it"
    moved = f"{what}: {found.before:.4f} -> {found.after:.4f} ({found.total:+.4f})"
    readings = [
        "; ".join(f"{together(block)} {share:+.4f}" for block, share in reading.shares.items())
        for reading in found.readings
    ]
    joint = [f"{together(some)} {effect:+.4f}" for some, effect in found.together.items()]
    only = f" (of this only together: {'; '.join(joint)})" if joint else ""
    return f"{moved} = {', or '.join(readings)}{only}"


def summary(delta: Delta) -> str:
    """Return what the console says: one line a metric, then what could not be combined."""
    found = delta.attributions()
    still = [key for key, one in found.items() if one is not None and not _moves(one)]
    lines = [sentence(key, one) for key, one in found.items() if key not in still]
    if still:
        lines.append(f"did not move, in no combination: {', '.join(f'{run} test {metric}' for run, metric in still)}")
    return "\n".join([*lines, *_cautions(delta)])


def _moves(one: Attribution) -> bool:
    """Whether a metric differs between the revisions, or any change alone would have moved it."""
    shares = [share for reading in one.readings for share in reading.shares.values()]
    return any(abs(effect) > NOTHING for effect in (one.total, *shares, *one.alone.values(), *one.together.values()))


def _cautions(delta: Delta) -> list[str]:
    whole = (frozenset(), frozenset(delta.changed))
    found = [
        f"{'does not run' if some in whole else 'cannot be combined'}: {named(some, delta)}: {outcome.reason}"
        for some, outcome in delta.outcomes.items()
        if outcome.values is None
    ]
    if others := delta.other_test():
        names = "; ".join(named(some, delta) for some in others)
        found.append(f"measured on other test images or labels than {delta.names[0]}: {names}")
    blocks = {block for one in delta.attributions().values() if one for each in one.readings for block in each.shares}
    if joint := sorted(together(block) for block in blocks if len(block) > 1):
        found.append(f"changes only together, so its share cannot be divided: {', '.join(joint)}")
    if delta.packages:
        found.append(packages(delta.names, delta.packages))
    if others := delta.not_as_claimed():
        found.append(f"not the numbers that were committed: {evidence.counted(others)}")
    found += [
        f"{name} has no leaderboard.json in git: its replay is compared with nothing"
        for name, claims in zip(delta.names, delta.claimed, strict=True)
        if claims is None
    ]
    return found


def write(place: Path, delta: Delta) -> list[Path]:
    """Write the difference as Markdown and JSON and return the paths."""
    paths = [place / name for name in NAMES]
    title = f"Why {delta.names[1]} differs from {delta.names[0]}: {', '.join(delta.changed)} changed"
    artifacts.write_text(paths[0], report.markdown(title, _sections(delta)))
    artifacts.write_json(paths[1], as_json(delta))
    return paths


def _sections(delta: Delta) -> list[Section]:
    found = delta.attributions()
    rows = [(*key, *_row(one)) for key, one in found.items()]
    shares = Table(("run", "test metric", delta.names[0], delta.names[1], "change", "by", "only together"), rows)
    champion = [key for key in found if key[0] == "champion"]
    built: list[Sequence[str]] = []
    for some, outcome in delta.outcomes.items():
        scores = [f"{key[1]} {outcome.values[key]:.4f}" for key in champion if outcome.values and key in outcome.values]
        built.append((named(some, delta), ", ".join(scores) or outcome.reason))
    return [
        Section("Shares", [shares, *([tuple(_cautions(delta))] if _cautions(delta) else [])]),
        Section("Combinations", [Table(("combination", "champion on test, or why there is no result"), built)]),
        Section(
            "How this was divided",
            [
                "Each share is the effect of a change, averaged over the orders in which data, params and code can "
                "change from one revision to the other (Shapley value); shares add up to the change. A difference of "
                "one image in the test part is no effect that another split would show as well: `review` tells how "
                "sure a metric is.",
            ],
        ),
    ]


def _row(one: Attribution | None) -> tuple[str, ...]:
    if one is None:
        return (UNDEFINED, UNDEFINED, UNDEFINED, "only one of the two has it", "")
    if not _moves(one):
        return (f"{one.before:.4f}", f"{one.after:.4f}", "0", "nothing moves it", "")
    by = " / ".join(
        "; ".join(f"{together(block)} {share:+.4f}" for block, share in reading.shares.items())
        for reading in one.readings
    )
    joint = "; ".join(f"{together(some)} {effect:+.4f}" for some, effect in one.together.items())
    return (f"{one.before:.4f}", f"{one.after:.4f}", f"{one.total:+.4f}", by, joint)


def as_json(delta: Delta) -> dict[str, Any]:
    """Return everything as one JSON value; sets of factors are joined by ` and `."""
    return {
        "revisions": dict(zip(("first", "second"), delta.names, strict=True)),
        "commits": dict(zip(("first", "second"), delta.commits, strict=True)),
        "changed": list(delta.changed),
        "packages": list(delta.packages),
        "committed": {
            name: None if claims is None else {f"{run} {metric}": value for (run, metric), value in claims.items()}
            for name, claims in zip(("first", "second"), delta.claimed, strict=True)
        },
        "combinations": {
            together(some) or "none": {
                "reason": outcome.reason,
                "test_part": outcome.test,
                "values": {f"{run} {metric}": value for (run, metric), value in (outcome.values or {}).items()},
            }
            for some, outcome in delta.outcomes.items()
        },
        "metrics": {
            " ".join(key): None
            if one is None
            else {
                "before": one.before,
                "after": one.after,
                "shares": [{together(block): share for block, share in each.shares.items()} for each in one.readings],
                "orders": [each.orders for each in one.readings],
                "alone": dict(one.alone),
                "only_together": {together(some): effect for some, effect in one.together.items()},
            }
            for key, one in delta.attributions().items()
        },
        "cautions": _cautions(delta),
    }
