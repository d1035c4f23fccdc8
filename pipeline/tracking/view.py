"""How the MLflow UI shows an experiment: the columns that compare methods, instead of times and sources only.

These are saved views of the UI, found under "Views" and kept where the UI keeps them (mlflow 3.17): in tags of the
experiment, each an envelope around the state of the page. An MLflow that knows nothing of them shows its own columns.
"""

from __future__ import annotations

import json

METHODS = "methods"
CANDIDATES = "candidates"
# Otherwise the UI opens on its pages for language models.
NEW_EXPERIMENT = {"mlflow.experimentKind": "custom_model_development"}


def tags(selected_by: str, *, smaller_is_better: bool, repeated: bool) -> dict[str, str]:
    """Return the experiment's tags that hold the saved views, around the metric by which validation chose.

    ``repeated``: methods were trained several times, and the mean over the repeats is what ranks them.
    """
    best_first = {
        "searchFilter": "tags.level = 'method' and tags.current = 'true'",
        "orderByKey": f"metrics.`validation_{selected_by}{'_mean' if repeated else ''}`",
        "orderByAsc": smaller_is_better,
    }
    # Sorted by a metric, the table would not nest the candidates under their methods.
    nested = {"searchFilter": "tags.current = 'true'"}
    views = {
        METHODS: ("Methods, best on validation first", best_first),
        CANDIDATES: ("Methods and their candidates", nested),
    }
    found = {}
    for key, (name, state) in views.items():
        page = json.dumps({**state, "selectedColumns": columns(selected_by, repeated=repeated)})
        view = {"name": name, "createdAt": 0, "updatedAt": 0, "state": page}
        found[f"mlflow.sharedViewState.{key}"] = json.dumps(view)
    return found


def columns(selected_by: str, *, repeated: bool) -> list[str]:
    """Return the columns: the metric that chose, on test with its interval, then ROC-AUC, on test and validation.

    Before them, if ``repeated``, mean and standard deviation of the metric over the trainings.
    """
    spread = [f"{part}_{selected_by}_{name}" for part in ("test", "validation") for name in ("mean", "sd")]
    names = spread if repeated else []
    names += [f"test_{selected_by}", f"test_{selected_by}_low", f"test_{selected_by}_high", "test_roc_auc"]
    names += [f"validation_{selected_by}", "validation_roc_auc"]
    return [*(f"metrics.`{name}`" for name in dict.fromkeys(names)), "params.`candidate`", "tags.`champion`"]


def address(server: str, experiment: str, view: str = METHODS) -> str:
    """Return the page of an experiment's runs in a view."""
    return f"{server}/#/experiments/{experiment}/runs?viewStateShareKey={view}"
