"""What families of boosted trees share: how many trees there may be, and what early stopping on validation leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import pydantic

from pipeline.classifiers.search import family, search_space


class Params(search_space.Search):
    """``trees``: the most there can be; for more than two classes a family may grow as many for each.

    ``patience``: trees without improvement.
    """

    trees: Annotated[int, pydantic.Field(ge=1)]
    patience: Annotated[int, pydantic.Field(ge=1)]


def fit(model: family.Model, task: family.Task, params: Params, *, history: Sequence[float], best: int) -> family.Fit:
    """Return the fit of a model that keeps its first ``best`` trees; ``history``: validation log loss after each tree.

    Not converged: the loss still improved when the last tree that was allowed was built.
    """
    return family.Fit(
        model,
        model.predict_proba(task.validation[0]),
        # scikit-learn also stops where no tree was better than none, and then the first of them is the best.
        converged=len(history) < params.trees or len(history) - best >= params.patience,
        notes={"best_iteration": best},
        history={"validation_log_loss": [float(value) for value in history]},
    )
