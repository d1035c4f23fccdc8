"""Which classifier families exist.

Not imported by ``stages/sweep.py``, which finds its family by name: adding a family must re-run no other one.
"""

FAMILIES = {
    "catboost": "pipeline.classifiers.catboost",
    "gradient_boosting": "pipeline.classifiers.gradient_boosting",
    "k_nearest_neighbors": "pipeline.classifiers.k_nearest_neighbors",
    "lightgbm": "pipeline.classifiers.lightgbm",
    "linear_svm": "pipeline.classifiers.linear_svm",
    "logistic_regression": "pipeline.classifiers.logistic_regression",
    "random_forest": "pipeline.classifiers.random_forest",
    "rbf_svm": "pipeline.classifiers.rbf_svm",
    "xgboost": "pipeline.classifiers.xgboost",
}
