"""Which classifier families exist.

Not imported by ``stages/sweep.py``, which finds its family by name: adding a family must re-run no other one.
"""

FAMILIES = {
    "catboost": "pipeline.classifiers.families.catboost",
    "gradient_boosting": "pipeline.classifiers.families.gradient_boosting",
    "k_nearest_neighbors": "pipeline.classifiers.families.k_nearest_neighbors",
    "lightgbm": "pipeline.classifiers.families.lightgbm",
    "linear_svm": "pipeline.classifiers.families.linear_svm",
    "logistic_regression": "pipeline.classifiers.families.logistic_regression",
    "random_forest": "pipeline.classifiers.families.random_forest",
    "rbf_svm": "pipeline.classifiers.families.rbf_svm",
    "xgboost": "pipeline.classifiers.families.xgboost",
}
