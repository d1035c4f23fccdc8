"""MLflow as a view of the records: what a stage says while it runs, and runs rebuilt from records at any time.

`live` logs a running stage. `sync` adds whatever a store lacks, adopting what `live` left there. `audit` reads whether
a store shows the records and nothing else. Nothing here is an input of any result, and a store that cannot be reached
is a `TrackingError`, never a failed stage.

mlflow is imported here and in `pipeline.serving.logged_model` alone. That is the code of the logged models: MLflow
executes it, and nothing imports it.
"""

from pipeline.tracking.audit import agrees, audit, moved
from pipeline.tracking.contents import Comparison, DataSet, Interval, Method, dataset_name, experiment_name
from pipeline.tracking.live import Live, live
from pipeline.tracking.scores import Score, scores
from pipeline.tracking.store import SETTINGS, Store, TrackingError, locate
from pipeline.tracking.sync import Report, sync
from pipeline.tracking.view import address

__all__ = [
    "SETTINGS",
    "Comparison",
    "DataSet",
    "Interval",
    "Live",
    "Method",
    "Report",
    "Score",
    "Store",
    "TrackingError",
    "address",
    "agrees",
    "audit",
    "dataset_name",
    "experiment_name",
    "live",
    "locate",
    "moved",
    "scores",
    "sync",
]
