"""The model that MLflow saves and serves, executed by MLflow itself ("models from code").

Takes a DataFrame with a column ``image``: image files (PNG, JPEG, ...) as base64 text. Returns one row an image: the
``label``, then the probability of each class, calibrated if the model was logged so. It never takes a path: over HTTP,
that would let a caller read files.

MLflow answers every request in a thread of its own, and all of them share this model: what it holds is never changed
after `load_context`, and `predictor.Predictor` is safe to share.
"""

import base64
import binascii
import dataclasses
import logging
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pandas
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE

from pipeline.console.errors import BakeoffError
from pipeline.core import artifacts
from pipeline.images import decode
from pipeline.serving import answers, predictor

# Without AVIF, which may hold many more pixels than its header says.
FORMATS = tuple(name for name in decode.FORMATS if name != "AVIF")


@dataclass(frozen=True)
class Limits:
    """What a request may ask for; each can be set in the environment (`ENVIRONMENT`).

    ``rows``: images a request. ``megabytes``: of an image file. ``megapixels``: of an image, of all images of a
    request, by their headers. ``decodes``: images that are decoded at a time, over all requests; others wait.
    """

    rows: int = 64
    megabytes: int = 20
    megapixels: int = 50
    request_megapixels: int = 200
    decodes: int = 2

    @classmethod
    def from_environment(cls) -> "Limits":
        """Raises BakeoffError for a limit that is not a whole number above 0."""
        given = {field.name: os.environ.get(ENVIRONMENT + field.name.upper()) for field in dataclasses.fields(cls)}
        for name, text in given.items():
            if text is not None and not re.fullmatch("0*[1-9][0-9]{0,8}", text):
                raise BakeoffError(f"{ENVIRONMENT}{name.upper()} must be a whole number above 0, received {text!r}")
        return cls(**{name: int(text) for name, text in given.items() if text is not None})


ENVIRONMENT = "BAKEOFF_SERVE_"


class ImageClassifier(mlflow.pyfunc.PythonModel):
    """A run's selected model behind MLflow's interface."""

    def load_context(self, context: mlflow.pyfunc.PythonModelContext) -> None:
        self.limits = Limits.from_environment()
        run = Path(context.artifacts["run"])
        # Absent where the run holds its whole network; then nothing looks for a backbone there.
        backbones = Path(context.artifacts.get("backbone", run)).parent
        calibrator = context.artifacts.get("calibrator")
        loaded = predictor.load(
            run, backbones, calibrator=None if calibrator is None else artifacts.read_json(Path(calibrator))
        )
        self.predictor = dataclasses.replace(loaded, decoding=threading.Semaphore(self.limits.decodes))

    def predict(self, context, model_input: pandas.DataFrame, params=None) -> pandas.DataFrame:
        """Return the labels and probabilities, a row an image.

        Raises MlflowException: INVALID_PARAMETER_VALUE for what the caller can mend, INTERNAL_ERROR for anything else,
        which is written to the server's log. MLflow would answer any other error with its traceback.
        """
        try:
            return self._answer(model_input)
        except Refusal as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from None
        except Exception:
            logging.getLogger(__name__).exception("A request failed")
            raise MlflowException("the model failed; the server's log says why", INTERNAL_ERROR) from None

    def _answer(self, request: pandas.DataFrame) -> pandas.DataFrame:
        files = files_of(request, self.limits)
        try:
            probabilities = self.predictor.probabilities(files)
        except decode.ImageError as error:
            row = next(row for row, file in enumerate(files) if file is error.source)
            raise Refusal(f"image in row {row}: {error.reason}") from None
        classes = list(self.predictor.classes)
        result = pandas.DataFrame(probabilities.astype("float64"), columns=answers.columns(classes))
        result.insert(0, answers.LABEL, [classes[index] for index in probabilities.argmax(axis=1)])
        return result


class Refusal(BakeoffError):
    """A request that the caller can mend."""


def files_of(request: pandas.DataFrame, limits: Limits) -> list[bytes]:
    """Return the image files of a request, within the limits by their headers; nothing is decoded yet.

    Raises Refusal, which names the row, counted from 0.
    """
    if "image" not in request:
        raise Refusal(f"a request must have a column 'image', received {', '.join(map(str, request)) or 'none'}")
    if len(request) > limits.rows:
        raise Refusal(f"{len(request)} rows: a request may have {limits.rows} ({ENVIRONMENT}ROWS)")
    files, total = [], 0
    for row, text in enumerate(request["image"]):
        try:
            file = decoded(text, most=limits.megabytes * 10**6)
            pixels = decode.announced_pixels(file, formats=FORMATS)
        except decode.ImageError as error:
            raise Refusal(f"image in row {row}: {error.reason}") from None
        except Refusal as error:
            raise Refusal(f"image in row {row}: {error}") from None
        total += pixels
        if pixels > limits.megapixels * 10**6:
            allowed = f"an image may have {limits.megapixels} million ({ENVIRONMENT}MEGAPIXELS)"
            raise Refusal(f"image in row {row}: {pixels:,} pixels: {allowed}")
        if total > limits.request_megapixels * 10**6:
            allowed = f"a request may have {limits.request_megapixels} million ({ENVIRONMENT}REQUEST_MEGAPIXELS)"
            raise Refusal(f"image in row {row}: {total:,} pixels with the rows before it: {allowed}")
        files.append(file)
    return files


def decoded(text: object, *, most: int) -> bytes:
    """Return the bytes that base64 text stands for, as people send it.

    In one line or wrapped, in the usual alphabet or the one for URLs, with or without padding, after ``data:...,`` or
    not. Raises Refusal for anything else, and for more than ``most`` bytes.
    """
    if not isinstance(text, str):
        raise Refusal(f"it must be base64 text of an image file, received {_kind(text)}")
    if len(text) > 2 * most + 1000:  # Before it is copied: even one line end a character is shorter.
        raise Refusal(_too_large(most))
    if text[:5].lower() == "data:":
        about, comma, text = text.partition(",")
        if not comma or not about.lower().endswith(";base64"):
            raise Refusal("a data: URI must be of the form data:image/png;base64,...")
    text = "".join(text.split()).replace("-", "+").replace("_", "/")
    if not text:
        raise Refusal("it must be base64 text of an image file, received an empty text")
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(f"it must be base64 text of an image file: {error}") from None
    if len(content) > most:
        raise Refusal(_too_large(most))
    return content


def _too_large(most: int) -> str:
    return f"more than {most // 10**6} MB: an image file may have that many ({ENVIRONMENT}MEGABYTES)"


def _kind(value: object) -> str:
    missing = pandas.api.types.is_scalar(value) and pandas.isna(value)
    return "nothing (null)" if missing else f"a value of type {type(value).__name__}"


mlflow.models.set_model(ImageClassifier())
