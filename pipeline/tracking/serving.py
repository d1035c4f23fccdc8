"""The model that MLflow saves and serves, executed by MLflow itself ("models from code").

Takes a DataFrame with a column ``image``: image files (PNG, JPEG, ...) as base64 text. Returns one row an image: the
``label``, then the probability of each class, calibrated if the model was logged so. It never takes a path: over HTTP,
that would let a caller read files.
"""

import base64
import binascii
from pathlib import Path

import mlflow
import pandas

from pipeline import artifacts, predictor


class ImageClassifier(mlflow.pyfunc.PythonModel):
    """A run's selected model behind MLflow's interface."""

    def load_context(self, context: mlflow.pyfunc.PythonModelContext) -> None:
        run = Path(context.artifacts["run"])
        # Absent where the run holds its whole network; then nothing looks for a backbone there.
        backbones = Path(context.artifacts.get("backbone", run)).parent
        calibrator = context.artifacts.get("calibrator")
        self.predictor = predictor.load(
            run, backbones, calibrator=None if calibrator is None else artifacts.read_json(Path(calibrator))
        )

    def predict(self, context, model_input: pandas.DataFrame, params=None) -> pandas.DataFrame:
        """Return the labels and probabilities, a row an image. Raises ValueError for text that is no base64."""
        images = [_decode(row, text) for row, text in enumerate(model_input["image"])]
        probabilities = self.predictor.probabilities(images)
        classes = list(self.predictor.classes)
        result = pandas.DataFrame(probabilities.astype("float64"), columns=classes)
        result.insert(0, "label", [classes[index] for index in probabilities.argmax(axis=1)])
        return result


def _decode(row: int, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise ValueError(f"image in row {row} must be base64 text of an image file: {error}") from None


mlflow.models.set_model(ImageClassifier())
