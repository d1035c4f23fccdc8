"""Facts of the served model: what a request may look like, how it is refused, and that answers are never mixed up.

The whole way is gone: MLflow saves a model, serves it, and answers over HTTP.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas
import pytest
from PIL import Image

from pipeline.core import artifacts, provenance
from pipeline.serving import answers, predictor
from pipeline.tracking import models
from tests import served
from tests.mlflow_servers import HOST, SECONDS_TO_START, free_port

CLIENTS, REQUESTS = 16, 2000

# MLflow warns of type hints of its own, and of a missing input example.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def text(file: bytes) -> str:
    return base64.b64encode(file).decode()


def png(width: int, height: int, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def serving() -> ModuleType:
    """The served model's code, as MLflow executes it."""
    return importlib.import_module("pipeline.serving.logged_model")


# --- text to bytes -------------------------------------------------------------------------------------------------

FILE = bytes(range(256)) + b"\xfb\xff\xfe?"  # in base64 with +, / and one character of padding


@pytest.mark.parametrize(
    "sent",
    [
        text(FILE),
        base64.encodebytes(FILE).decode(),
        base64.encodebytes(FILE).decode().replace("\n", "\r\n"),
        base64.urlsafe_b64encode(FILE).decode(),
        base64.urlsafe_b64encode(FILE).decode().rstrip("="),
        text(FILE).rstrip("="),
        f"data:image/png;base64,{text(FILE)}",
        f"DATA:image/jpeg;charset=utf-8;BASE64,{text(FILE)}",
        f"data:;base64,\n{base64.encodebytes(FILE).decode()}",
    ],
)
def test_base64_is_taken_as_people_send_it(serving, sent):
    assert "=" in text(FILE) and "+" in text(FILE) and "/" in text(FILE)
    assert serving.decoded(sent, most=1000) == FILE


def test_base64_is_taken_as_the_command_of_that_name_prints_it(serving, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(FILE)
    try:
        printed = subprocess.run(["base64", tmp_path / "photo.jpg"], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("needs the command base64")
    assert printed.count("\n") > 1 and serving.decoded(printed, most=1000) == FILE


@pytest.mark.parametrize(
    "sent, reason",
    [
        (None, r"received nothing \(null\)"),
        (float("nan"), r"received nothing \(null\)"),
        (7, "received a value of type int"),
        (b"iVBO", "received a value of type bytes"),
        (["iVBO"], "received a value of type list"),
        ("", "received an empty text"),
        (" \n ", "received an empty text"),
        ("data:image/png;base64,", "received an empty text"),
        ("photo.jpg", "must be base64 text of an image file: "),
        ("größe", "must be base64 text of an image file: "),
        ("iVBOR", "must be base64 text of an image file: "),  # which character is missing?
        ("iV=BO", "must be base64 text of an image file: "),
        ("iVBOR===", "must be base64 text of an image file: "),
        ("data:image/png,%89PNG", "must be of the form data:image/png;base64,"),
        ("data:image/png;base64", "must be of the form data:image/png;base64,"),
        ("A" * 1_000_000, r"more than 0 MB: an image file may have that many \(BAKEOFF_SERVE_MEGABYTES\)"),
        ("A" * 2000, r"more than 0 MB"),
    ],
)
def test_other_text_is_refused(serving, sent, reason):
    with pytest.raises(serving.Refusal, match=reason):
        serving.decoded(sent, most=1000)


# --- limits --------------------------------------------------------------------------------------------------------


def table(*files: bytes) -> pandas.DataFrame:
    return pandas.DataFrame({"image": [text(file) for file in files]})


def test_limits_are_read_from_the_environment_and_told_if_they_are_none(serving, monkeypatch):
    assert serving.Limits.from_environment() == serving.Limits()
    monkeypatch.setenv("BAKEOFF_SERVE_ROWS", "3")
    monkeypatch.setenv("BAKEOFF_SERVE_REQUEST_MEGAPIXELS", "0400")
    assert serving.Limits.from_environment() == serving.Limits(rows=3, request_megapixels=400)
    for wrong in ("0", "-1", "1.5", "many", "", "1e3"):
        monkeypatch.setenv("BAKEOFF_SERVE_ROWS", wrong)
        with pytest.raises(ValueError, match=f"BAKEOFF_SERVE_ROWS must be a whole number above 0, received '{wrong}'"):
            serving.Limits.from_environment()


def test_a_request_is_refused_before_anything_is_decoded(serving, monkeypatch):
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda self: pytest.fail("it was decoded"))
    limits = serving.Limits(rows=3, megabytes=1, megapixels=2, request_megapixels=5)
    two = png(1600, 1250)
    assert serving.files_of(table(two, two, png(1000, 1000)), limits) == [two, two, png(1000, 1000)]
    for request, reason in (
        (table(*[png(8, 8)] * 4), r"4 rows: a request may have 3 \(BAKEOFF_SERVE_ROWS\)"),
        (table(png(8, 8), two + bytes(1_000_000)), "image in row 1: more than 1 MB"),
        (table(png(8, 8), png(1601, 1250)), r"image in row 1: 2,001,250 pixels: an image may have 2 million \(BAKE"),
        (table(two, two, png(1001, 1000)), r"image in row 2: 5,001,000 pixels with the rows before it: a request may "),
        (table(png(10_000, 9_500, "1")), "image in row 0: more than 89,478,485 pixels"),
        (table(b"GIF89a"), "image in row 0: not an image, or of a format that is not read here"),
        (pandas.DataFrame({"picture": ["a"]}), "must have a column 'image', received picture"),
    ):
        with pytest.raises(serving.Refusal, match=reason):
            serving.files_of(request, limits)


def test_avif_is_not_read_over_http(serving):
    """Its header may say 10 x 10 where the data holds 64 million pixels."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "AVIF")
    with pytest.raises(serving.Refusal, match="of a format that is not read here"):
        serving.files_of(table(file.getvalue()), serving.Limits())


# --- columns -------------------------------------------------------------------------------------------------------


def test_no_two_columns_of_an_answer_are_the_same_whatever_the_classes_are_called():
    assert answers.columns(["image", "path", "Label", "label_2"]) == ["image", "path", "Label", "label_2"]
    strange = ["label", "label_", "label__", "image", "path", "_"]
    columns = answers.columns(strange)
    assert columns[:3] == ["label_", "label__", "label___"] and columns[3:] == strange[3:]
    assert len({answers.LABEL, *columns}) == len(strange) + 1
    assert models.signature(strange).outputs.input_names() == ["label", *columns]


# --- over HTTP -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(keras, tmp_path_factory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("serving")
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(root):
        patch.setenv("BAKEOFF_FEATURE_STORE", str(root / "store"))
        served.write_project(root)
        yield root


class Served:
    """An ``mlflow models serve`` of a run, as a process of its own; what it prints is in ``log``."""

    def __init__(self, run: Path, place: Path, **environment: str):
        from mlflow import pyfunc

        self.run, self.log, self.port = run.absolute(), place / "serve.log", free_port()
        record = artifacts.read_record(run / "record.json")
        files = {"run": str(run)}
        if record.stage == "sweep":
            files["backbone"] = str(artifacts.BACKBONES / record.network)
        pyfunc.save_model(
            str(place / "model"),
            python_model=str(models.LOGGED_MODEL),
            artifacts=files,
            code_paths=[str(provenance.ROOT / "pipeline")],
            signature=models.signature(record.classes),
            pip_requirements=[],
        )
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "models",
            "serve",
            "--model-uri",
            str(place / "model"),
            "--env-manager",
            "local",
            "--host",
            HOST,
            "--port",
            str(self.port),
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=place,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={
                    **os.environ,
                    "PYTHONWARNINGS": "ignore",
                    "MLFLOW_DISABLE_TELEMETRY": "true",
                    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                    **environment,
                },
            )

    def __enter__(self) -> Served:
        end = time.monotonic() + SECONDS_TO_START
        while True:
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            with contextlib.suppress(OSError):
                if self._call("GET", "/ping")[0] == 200:
                    return self
            time.sleep(0.2)

    def __exit__(self, *error) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _call(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json"):
        connection = http.client.HTTPConnection(HOST, self.port, timeout=120)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def post(self, content: object, kind: str = "application/json") -> tuple[int, str]:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self._call("POST", "/invocations", body, kind)

    def ask(self, *files: bytes) -> tuple[int, str]:
        return self.post({"dataframe_split": {"columns": ["image"], "data": [[text(file)] for file in files]}})

    def peak(self) -> int:
        """Return the most memory, in MB, that one of its processes has had."""
        found = [0]
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                if os.getpgid(int(status.parent.name)) == self.process.pid:
                    found += [int(size) // 1024 for size in re.findall(r"VmHWM:\s+(\d+)", status.read_text())]
        return max(found)


def rows_of(model: predictor.Predictor, files: list[bytes]) -> list[dict]:
    """Return what the served model must answer, as JSON has it."""
    probabilities = model.probabilities(files).astype("float64")
    columns = answers.columns(model.classes)
    return [
        {"label": model.classes[int(row.argmax())], **dict(zip(columns, row.tolist(), strict=True))}
        for row in probabilities
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["head", "lightgbm", "linear_svm"])
def test_no_client_is_given_the_answer_to_another_ones_image(project, tmp_path, name):
    run = served.head_run() if name == "head" else served.sweep_run(name)
    files = served.pictures(50)
    expected = rows_of(predictor.load(run), files)
    assert len({json.dumps(row) for row in expected}) > 6
    with Served(run, tmp_path) as server:
        alone = [json.loads(server.ask(file)[1])["predictions"] for file in files]
        assert alone == [[row] for row in expected]
        memory = server.peak()

        def client(first: int) -> list[str]:
            wrong = []
            for number in range(first, REQUESTS, CLIENTS):
                asked = [(number * 7 + step) % len(files) for step in range(1 + number % 3)]
                status, body = server.ask(*(files[index] for index in asked))
                if status != 200 or json.loads(body)["predictions"] != [expected[index] for index in asked]:
                    wrong.append(f"{number}: {status} {body}")
            return wrong

        with ThreadPoolExecutor(CLIENTS) as clients:
            wrong = [line for lines in clients.map(client, range(CLIENTS)) for line in lines]
        assert not wrong, f"{len(wrong)} of {REQUESTS}: {wrong[:3]}"
        assert server.peak() < memory + 300


GOOD = text(png(20, 10))
COLUMN = {"columns": ["image"], "data": [[GOOD]]}


@pytest.mark.slow
def test_what_a_client_can_mend_is_told_in_a_sentence_and_nothing_of_the_server_is(project, tmp_path):
    run = served.sweep_run("linear_svm", classes=("label", "path"))
    with Served(run, tmp_path, BAKEOFF_SERVE_ROWS="5", BAKEOFF_SERVE_MEGAPIXELS="3") as server:
        (answer,) = json.loads(server.ask(png(20, 10))[1])["predictions"]
        assert list(answer) == ["label", "label_", "path"]
        assert answer["label"] == ("label" if answer["label_"] > answer["path"] else "path")
        again = {"dataframe_records": [{"image": f"data:image/png;base64,{GOOD}"}]}
        assert json.loads(server.post(again)[1])["predictions"] == [answer]

        def split(*data: object, column: str = "image") -> dict:
            return {"dataframe_split": {"columns": [column], "data": [[value] for value in data]}}

        for request, status, reason in (
            (split(GOOD, "photo.jpg"), 400, "image in row 1: it must be base64 text of an image file"),
            (split(GOOD, ""), 400, "image in row 1: it must be base64 text of an image file, received an empty text"),
            (split(GOOD, None), 400, "image in row 1: it must be base64 text of an image file, received nothing"),
            (split(None), 400, "image"),
            (split(7), 400, "image"),
            (split(GOOD, text(served.pictures(1)[0][:2000])), 400, "image in row 1: cannot be read whole"),
            (split(GOOD, text(b"<html>")), 400, "image in row 1: not an image, or of a format that is not read here"),
            (split(*[GOOD] * 6), 400, "6 rows: a request may have 5 (BAKEOFF_SERVE_ROWS)"),
            (split(text(png(2000, 2000))), 400, "4,000,000 pixels: an image may have 3 million (BAKEOFF_SERVE_MEGAPI"),
            (split("/etc/passwd"), 400, "image in row 0: "),
            (split(GOOD, column="picture"), 400, "image"),
            ({"rows": []}, 400, "dataframe_split"),
        ):
            received, body = server.post(request)
            assert received == status and reason in json.loads(body)["message"], body
            for secret in (str(tmp_path), sys.prefix, str(Path.home()), "Traceback", "stack_trace", "site-packages"):
                assert secret not in body, body
        assert json.loads(server.ask(png(20, 10))[1])["predictions"] == [answer]


@pytest.mark.slow
def test_an_error_that_nobody_expected_is_in_the_log_and_not_in_the_answer(project, tmp_path):
    run = tmp_path / "broken"
    shutil.copytree(served.sweep_run("linear_svm"), run)
    with np.load(run / "preparation.npz") as arrays:  # of another width: NumPy's error comes from deep inside
        np.savez(run / "preparation.npz", **{**arrays, "mean": np.zeros(3), "deviation": np.ones(3)})
    with Served(run, tmp_path) as server:
        status, body = server.ask(png(20, 10))
        said = json.loads(body)["message"]
        assert status == 500 and said.endswith("Error: the model failed; the server's log says why")
        assert str(tmp_path) not in body and "Traceback" not in body and "broadcast" not in body
        assert "Traceback" in server.log.read_text() and "operands could not be broadcast" in server.log.read_text()
