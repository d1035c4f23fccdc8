"""What the studies that fit have in common: linear families on kept features, over several draws of the split.

Logistic regression and the linear SVM: quick enough to be fitted hundreds of times, and their predictions on validation
owe nothing to early stopping. Test accuracies are of splits of these studies' own; validation selects in each.
Predefined parts are set aside: all parts are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pipeline.classifiers import repeated_splits
from pipeline.classifiers.search import search_space
from pipeline.console.progress import progress
from pipeline.core.params import Params
from pipeline.data import sources, splits
from pipeline.evaluation import statistics
from pipeline.features import inference

Job = TypeVar("Job")
Result = TypeVar("Result")

FAMILIES = ("logistic_regression", "linear_svm")


@dataclass(frozen=True)
class Study:
    """``families`` are fitted on ``pool``, the features of ``backbone``, for each of ``split_seeds``.

    ``trainings``: with how many seeds a family that draws anything is trained on one split.
    """

    given: Params
    pool: repeated_splits.Pool
    backbone: str
    families: tuple[str, ...]
    split_seeds: tuple[int, ...]
    trainings: int

    @property
    def seed(self) -> int:
        return self.given.value("seed")

    @property
    def split(self) -> splits.SplitParams:
        return self.given.block("split", splits.SplitParams)

    @property
    def dataset(self) -> sources.DatasetParams:
        return self.given.block("dataset", sources.DatasetParams)

    @property
    def compare(self) -> statistics.CompareParams:
        return self.given.block("compare", statistics.CompareParams)

    @property
    def groups_near_duplicates(self) -> bool:
        """Whether the pipeline itself keeps near duplicates together under these parameters."""
        return self.split.groups_near_duplicates(self.dataset.source)

    def sweep(
        self, name: str, parts: np.ndarray, candidates: Sequence[search_space.Candidate], *, seed: int
    ) -> repeated_splits.Sweep:
        """Fit a family's candidates on one split of the pool, in one thread: see `each`."""
        return repeated_splits.sweep(self.given, name, self.pool, parts, seed=seed, candidates=candidates, threads=1)

    def each(self, function: Callable[[Study, Job], Result], jobs: Sequence[Job], *, label: str) -> Iterator[Result]:
        """Yield ``function(study, job)`` of all jobs in their order, computed in `compute.threads` processes.

        Whole sweeps beside each other, a thread each, take less time than one after another on all threads.
        """
        from joblib import Parallel, delayed

        threads = self.given.block("compute", inference.ComputeParams).threads
        parallel = Parallel(n_jobs=min(threads, len(jobs)), return_as="generator")
        found = parallel(delayed(function)(self, job) for job in jobs)
        yield from progress(found, total=len(jobs), label=label, unit="sweeps")

    def candidates(self) -> dict[str, list[search_space.Candidate]]:
        """Return {family: its candidates}, the same for every split."""
        return {name: repeated_splits.fixed_candidates(self.given, name) for name in self.families}
