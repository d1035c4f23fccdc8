"""Ask whether the comparison is fair: what leaks, what is chance, what choosing adds, how often test was looked at.

Reads what the last `dvc repro` wrote, fits linear families on splits of its own, and writes results/fairness/. Nothing
of that is read by a stage, and nothing may be chosen by it.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline import tracking
from pipeline.audits.fairness import (
    history,
    leakage_study,
    optimism_study,
    plots,
    record_pages,
    runs,
    study_pages,
    test_set_history_study,
    variance_study,
)
from pipeline.audits.fairness.page import Figure, Page
from pipeline.audits.fairness.study import FAMILIES, Study
from pipeline.classifiers import repeated_splits
from pipeline.console.errors import BakeoffError
from pipeline.console.progress import announce, say
from pipeline.core import artifacts, params, provenance
from pipeline.evaluation import leaderboard, metrics, statistics

DIRECTORY = artifacts.RESULTS / "fairness"
INDEX = "index.md"
PAGES: dict[str, Callable[[Mapping[str, Any]], Page]] = {
    "leakage": study_pages.leakage_page,
    "variance": study_pages.variance_page,
    "optimism": record_pages.optimism_page,
    "looks": record_pages.looks_page,
}
SECTIONS = tuple(PAGES)
SPLITS, TRAININGS = 8, 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; without any, all of them"
    )
    parser.add_argument(
        "--splits",
        type=int,
        default=SPLITS,
        metavar="N",
        help="draws of the split in leakage and variance (default: %(default)s)",
    )
    parser.add_argument(
        "--trainings",
        type=int,
        default=TRAININGS,
        metavar="N",
        help="seeds on each split in variance (default: %(default)s)",
    )
    parser.add_argument("--backbone", help="whose features; without it, the first of params.yaml")
    parser.add_argument("--no-mlflow", action="store_true", help="looks: do not ask the MLflow store")
    parser.epilog = f"Writes {DIRECTORY}/. The default takes about two minutes on 2 cores and 2,624 images."


def main(arguments: argparse.Namespace) -> int:
    wanted = _sections(arguments.sections)
    for option in ("splits", "trainings"):
        if getattr(arguments, option) < 2:
            raise BakeoffError(f"--{option} must be 2 or more to show a spread, received {getattr(arguments, option)}")
    report = Report(arguments, params.load())
    report.read(wanted)
    for name in wanted:
        announce(f"{name} ...")
        say(f"{report.section(name).text()}\n")
    report.write_index()
    say(f"{DIRECTORY / INDEX}; how to read it: docs/fairness.md")
    return 0


def _sections(names: Sequence[str]) -> list[str]:
    if unknown := [name for name in names if name not in SECTIONS]:
        raise BakeoffError(f"Unknown section {unknown[0]!r}. Choose from: {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in names or not names]


class Report:
    """Computes sections and writes them. Raises ArtifactError where `dvc repro` has not finished."""

    def __init__(self, arguments: argparse.Namespace, values: dict[str, Any]):
        self._arguments, self._values = arguments, values
        self._given = params.Params(values, values)
        self._metric = self._given.block("selection", metrics.SelectionParams).metric
        # Tells sections about these results from those that were written about others.
        self._results = provenance.digest(
            [artifacts.sha256_path(artifacts.LEADERBOARD), artifacts.sha256_path(artifacts.MANIFEST), values]
        )

    def read(self, sections: Sequence[str]) -> None:
        """Read what sections need, so that what is missing is said before anything is fitted."""
        needs = {
            "leakage": lambda: self._study,
            "variance": lambda: (self._detectable, self._study),
            "optimism": lambda: self._runs,
            "looks": history.is_shallow,
        }
        for name in sections:
            needs[name]()

    def section(self, name: str) -> Page:
        """Compute one section and write its JSON, page and figures, in place of what an earlier call wrote."""
        compute = {
            "leakage": self._leakage,
            "variance": self._variance,
            "optimism": self._optimism,
            "looks": self._looks,
        }
        found = compute[name]()
        page = PAGES[name](found)
        for file, draw in plots.OF_SECTION[name].items():
            if any(isinstance(block, Figure) and block.file == file for block in page.blocks):
                draw(found, DIRECTORY / file)
            else:
                (DIRECTORY / file).unlink(missing_ok=True)  # of other results
        about = {"results": self._results, "title": page.title, "finding": page.finding}
        artifacts.write_text(DIRECTORY / f"{name}.md", page.markdown())
        artifacts.write_json(DIRECTORY / f"{name}.json", {"about": about, "found": found})
        return page

    def write_index(self) -> None:
        """Write the findings of all sections about today's results."""
        lines = ["# Is the comparison fair?", "How to read this: docs/fairness.md in the project."]
        for name in SECTIONS:
            file = DIRECTORY / f"{name}.json"
            about = artifacts.read_json(file)["about"] if file.exists() else None
            if about is None or about["results"] != self._results:
                lines.append(f"**{name}**: not computed for these results: `python -m pipeline fairness {name}`")
            else:
                lines.append(f"**[{about['title']}]({name}.md)**: {about['finding']}")
        artifacts.write_text(DIRECTORY / INDEX, "\n\n".join(lines) + "\n")

    def _leakage(self) -> dict[str, Any]:
        study = self._study
        return {"unavailable": study} if isinstance(study, str) else leakage_study.section(study)

    def _variance(self) -> dict[str, Any]:
        study = self._study
        return {
            "sources": study if isinstance(study, str) else variance_study.section(study),
            "metric": self._metric,
            "detectable": self._detectable,
            "grouped": any(artifacts.read_part("test").groups),
            "ranks": artifacts.read_json(leaderboard.DETAILS)["ranks"],
            "titles": study_pages.titles(artifacts.read_json(artifacts.LEADERBOARD)),
        }

    def _optimism(self) -> dict[str, Any]:
        compare = self._given.block("compare", statistics.CompareParams)
        groups = artifacts.read_part("validation").groups
        return optimism_study.section(
            self._runs, metric=self._metric, compare=compare, seed=self._values["seed"], groups=groups
        )

    def _looks(self) -> dict[str, Any]:
        dataset = tracking.dataset_name(self._values["dataset"])
        return test_set_history_study.section(
            metric=self._metric, dataset=dataset, mlflow=not self._arguments.no_mlflow
        )

    @functools.cached_property
    def _runs(self) -> list[runs.Run]:
        return runs.read(self._values)

    @functools.cached_property
    def _detectable(self) -> dict[str, Any]:
        return variance_study.detectable(
            artifacts.read_json(leaderboard.DETAILS), artifacts.read_json(artifacts.LEADERBOARD)
        )

    @functools.cached_property
    def _study(self) -> Study | str:
        """What leakage and variance fit, or why there is nothing to fit."""
        families = tuple(name for name in FAMILIES if name in self._values["classifiers"])
        backbones = self._values["backbones"]
        if not families:
            return f"params.yaml lists neither of {' and '.join(FAMILIES)} under classifiers"
        if not backbones:
            return "params.yaml lists no backbone, so there are no features to fit"
        backbone = self._arguments.backbone or backbones[0]
        if backbone not in backbones:
            raise BakeoffError(f"--backbone must be one of params.yaml: {', '.join(backbones)}, received {backbone!r}")
        first = self._values["seed"]
        return Study(
            given=self._given,
            pool=repeated_splits.read_pool(artifacts.FEATURES / backbone),
            backbone=backbone,
            families=families,
            split_seeds=tuple(range(first, first + self._arguments.splits)),
            trainings=self._arguments.trainings,
        )
