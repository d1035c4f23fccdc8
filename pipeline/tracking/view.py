"""How the MLflow UI shows an experiment: the columns that compare methods, instead of times and sources only.

These are saved views of the UI, found under "Views" and kept where the UI keeps them (mlflow 3.17): in tags of the
experiment, each an envelope around the state of the page. An MLflow that knows nothing of them shows its own columns.
"""

from __future__ import annotations

import json
from typing import Any

METHODS = "methods"
COLUMNS = (
    "metrics.`test_accuracy`",
    "metrics.`test_accuracy_low`",
    "metrics.`test_accuracy_high`",
    "metrics.`test_roc_auc`",
    "metrics.`validation_accuracy`",
    "metrics.`validation_roc_auc`",
    "params.`candidate`",
    "tags.`champion`",
)
_VIEWS: dict[str, tuple[str, dict[str, Any]]] = {
    METHODS: (
        "Methods, best on validation first",
        {
            "searchFilter": "tags.level = 'method' and tags.current = 'true'",
            "orderByKey": "metrics.`validation_accuracy`",
            "orderByAsc": False,
        },
    ),
    # Sorted by a metric, the table would not nest the candidates under their methods.
    "candidates": ("Methods and their candidates", {"searchFilter": "tags.current = 'true'"}),
}


def experiment_tags() -> dict[str, str]:
    """Return the tags of a new experiment: the saved views, and that it is about training models."""
    # Otherwise the UI opens on its pages for language models.
    tags = {"mlflow.experimentKind": "custom_model_development"}
    for key, (name, state) in _VIEWS.items():
        page = json.dumps({**state, "selectedColumns": list(COLUMNS)})
        view = {"name": name, "createdAt": 0, "updatedAt": 0, "state": page}
        tags[f"mlflow.sharedViewState.{key}"] = json.dumps(view)
    return tags


def address(server: str, experiment: str, view: str = METHODS) -> str:
    """Return the page of an experiment's runs in a view."""
    return f"{server}/#/experiments/{experiment}/runs?viewStateShareKey={view}"
