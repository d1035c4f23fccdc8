"""A method's selected model as an MLflow model: images in, labels and probabilities out."""

from __future__ import annotations

import ast
import functools
import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core import artifacts, provenance
from pipeline.serving import answers
from pipeline.tracking import contents
from pipeline.tracking.contents import Method

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.models import ModelSignature

NAME = "model"
CALIBRATED_NAME = "model_calibrated"
CALIBRATION = "model_calibration"  # a tag: which calibrator the newest model of a run applies
LOGGED_MODEL = provenance.ROOT / "pipeline" / "serving" / "logged_model.py"


def log(client: MlflowClient, experiment: str, run: Run, method: Method) -> str:
    """Log the method's model unless the run has it; return the path that is missing for it, or an empty string.

    A calibrated model is another model: one that was logged before stays as it is.
    """
    if method.backbone is not None and not method.backbone.exists():
        return str(method.backbone)
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

    if _delete_unfinished(client, experiment, run, calibration=calibration_digest(method)):
        return ""
    name = NAME if method.calibrator is None else CALIBRATED_NAME
    model = client.create_logged_model(
        experiment,
        name,
        source_run_id=run.info.run_id,
        params=contents.parameters(method),
        model_type="classifier",
        tags={"method": method.record.method, **contents.network_tags(method.record.network, method.record.stage)}
        | ({CALIBRATION: calibration_digest(method)} if method.calibrator else {}),
    )
    with tempfile.TemporaryDirectory() as folder:
        _save(Path(folder) / NAME, run, method, model_id=model.model_id)
        client.log_model_artifacts(model.model_id, str(Path(folder) / NAME))
    client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=contents.SUMMARY_STEP)])
    # The same values again, attached to the model, so that the list of models can be compared, too.
    metrics = [
        Metric(name, value, run.info.start_time, contents.SUMMARY_STEP, model_id=model.model_id, run_id=run.info.run_id)
        for name, value in contents.method_summary(method).items()
    ]
    client.log_batch(run.info.run_id, metrics=metrics)
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    # In case that the request to create it was sent twice.
    _delete_unfinished(client, experiment, run, calibration=calibration_digest(method))
    return ""


def calibration_digest(method: Method) -> str:
    """Return which calibrator the method's model applies, empty for none."""
    return "" if method.calibrator is None else provenance.digest(method.calibrator)


def _delete_unfinished(client: MlflowClient, experiment: str, run: Run, *, calibration: str) -> bool:
    """Delete the run's models that are of no use, and return whether it has a whole one with this calibration.

    `create` and `finalize` are two steps, and an interruption may come between them.
    """
    from mlflow.entities import LoggedModelStatus

    found: set[str] = set()
    for known in client.search_logged_models([experiment], f"source_run_id = '{run.info.run_id}'"):
        applied = known.tags.get(CALIBRATION, "")
        if known.status == LoggedModelStatus.READY and applied not in found:
            found.add(applied)
        else:
            _delete(client, known.model_id)
    return calibration in found


def delete(client: MlflowClient, experiment: str, run: Run) -> None:
    """Delete the models of a run."""
    for known in client.search_logged_models([experiment], f"source_run_id = '{run.info.run_id}'"):
        _delete(client, known.model_id)


def _delete(client: MlflowClient, model_id: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.delete_logged_model(model_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # Then another machine was faster.
            raise


def dataset(entity: type, name: str, part: contents.DataSet):
    """Return an MLflow data set. Its digest holds 36 characters; the whole SHA-256 is in the source and the profile."""
    return entity(
        name=f"{name} {part.part}",
        digest=part.sha256[:36],
        source_type="local",
        source=json.dumps({"uri": f"data/split/{part.part}", "sha256": part.sha256}),
        profile=json.dumps({"images": part.images, "sha256": part.sha256}),
    )


def signature(classes: list[str]) -> ModelSignature:
    """Return the signature: a column ``image`` of base64 text; the label, then a probability for each class."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    probabilities = [ColSpec(DataType.double, name) for name in answers.columns(classes)]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "image")]),
        outputs=Schema([ColSpec(DataType.string, answers.LABEL), *probabilities]),
    )


def requirements(method: Method) -> list[str]:
    """Return the packages that the model's code imports, pinned to what is installed, sorted.

    MLflow would load the model to find out.
    """
    modules = ["pipeline.serving.predictor"]
    if method.record.stage == "sweep":
        modules.append(f"pipeline.classifiers.families.{method.record.method}")  # by name, so no import leads there
    files = {LOGGED_MODEL, *(provenance.ROOT / file for name in modules for file in provenance.import_closure(name))}
    imported = {name for file in files for name in _imported_packages(file)}
    packages = {_canonical(package) for name in imported for package in _packages().get(name, ())}
    return sorted(f"{package}=={metadata.version(package)}" for package in packages)


def _imported_packages(file: Path) -> set[str]:
    """Return the first part of every name that a file imports, wherever in the file it does so."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def _canonical(package: str) -> str:
    """Return a package's name as PEP 503 writes it: one package may call itself PyYAML and Py_YAML."""
    return re.sub(r"[-_.]+", "-", package).lower()


@functools.cache
def _packages() -> Mapping[str, list[str]]:
    """Return {name to import: the installed packages that hold it}."""
    return metadata.packages_distributions()


def _save(path: Path, run: Run, method: Method, *, model_id: str) -> None:
    from mlflow import pyfunc
    from mlflow.models import Model

    # Without the other trainings, which nobody serves.
    files = {"run": str(path.parent / "run")}
    shutil.copytree(method.directory, files["run"], ignore=shutil.ignore_patterns("repeats"))
    if method.calibrator is not None:
        files["calibrator"] = str(path.parent / "calibrator.json")
        artifacts.write_json(Path(files["calibrator"]), method.calibrator)
    if method.backbone is not None:
        files["backbone"] = str(method.backbone)
    model = Model(artifact_path=NAME, run_id=run.info.run_id, model_id=model_id)
    with warnings.catch_warnings():
        # It misses an input example, which it would want to run through the network now.
        warnings.simplefilter("ignore", UserWarning)
        pyfunc.save_model(
            str(path),
            python_model=str(LOGGED_MODEL),
            artifacts=files,
            code_paths=[str(provenance.ROOT / "pipeline")],
            signature=signature(method.record.classes),
            pip_requirements=requirements(method),
            mlflow_model=model,
        )
    # MLflow adds where on this machine the files came from, which nobody reads again.
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = LOGGED_MODEL.name
    for file in flavor["artifacts"].values():
        file["uri"] = file["path"]
    model.save(str(path / "MLmodel"))
