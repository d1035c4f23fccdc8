"""Which classifier families exist.

Not imported by ``stages/sweep.py``, which finds its family by name: adding a family must re-run no other one.
"""

FAMILIES = {
    "catboost": "pipeline.classifiers.catboost",
    "lightgbm": "pipeline.classifiers.lightgbm",
    "logistic_regression": "pipeline.classifiers.logistic_regression",
    "rbf_svm": "pipeline.classifiers.rbf_svm",
}
