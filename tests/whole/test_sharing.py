"""Facts of what threads share: whoever asks a model at the same time as others gets the answer to their own question."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.classifiers.families import linear_svm
from pipeline.classifiers.search import family
from pipeline.features import feature_store, inference
from pipeline.images import decode
from pipeline.serving import predictor
from tests import families, served, small_networks

CLIENTS = 16
CROP = decode.ImageParams(square="crop", fill="edge", interpolation="bilinear")


@pytest.fixture(autouse=True)
def switching_often():
    """Let threads take turns a thousand times as often as usual."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(usual)


def at_once(ask: Callable[[int], np.ndarray], count: int) -> list[np.ndarray]:
    """Return the answers to ``count`` questions, asked by as many clients as there are."""
    start = threading.Barrier(CLIENTS)

    def client(first: int) -> list[np.ndarray]:
        start.wait()
        return [ask(number) for number in range(first, count, CLIENTS)]

    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(client, range(CLIENTS)))
    return [answers[number % CLIENTS][number // CLIENTS] for number in range(count)]


def assert_own(ask: Callable[[int], np.ndarray], count: int) -> None:
    alone = [ask(number) for number in range(count)]
    assert len({answer.tobytes() for answer in alone}) > count / 8  # else a mix-up would not be seen
    for number, (expected, received) in enumerate(zip(alone, at_once(ask, count), strict=True)):
        assert received.tobytes() == expected.tobytes(), number


@pytest.fixture(scope="module")
def network(keras) -> dict[str, inference.FrozenNetwork]:
    trunk = small_networks.trunk()
    return {
        engine: inference.FrozenNetwork(
            lambda: trunk, compute=small_networks.COMPUTE.model_copy(update={"engine": engine, "batch_size": 2})
        )
        for engine in ("openvino", "tensorflow")
    }


@pytest.mark.parametrize("engine", ["openvino", "tensorflow"])
def test_a_network_that_many_threads_run_gives_each_its_own_rows(network, engine):
    """Alone, in batches, and with more batches than infer requests."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3)).astype(np.uint8)
    count = {"openvino": 480, "tensorflow": 64}[engine]
    assert_own(lambda number: network[engine].run(pixels[number % 64 : number % 64 + 1 + number % 13]), count)


def test_a_network_that_many_threads_run_makes_no_more_infer_requests(network, monkeypatch):
    """The memory of a forward pass belongs to its infer request."""
    from openvino import CompiledModel

    monkeypatch.setattr(CompiledModel, "create_infer_request", lambda self: pytest.fail("another request"))
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3)).astype(np.uint8)
    assert_own(lambda number: network["openvino"].run(pixels[number % 16 :]), 64)


def test_a_pass_that_fails_or_is_abandoned_gives_its_infer_requests_back(network):
    frozen = network["openvino"]
    batch = np.zeros((1, 32, 32, 3), np.uint8)

    def broken(number: int):
        yield from [batch] * number
        raise OSError("a damaged image")

    for number in range(20):
        with pytest.raises(OSError, match="a damaged image"):
            list(frozen.map(broken(number % 6)))
        passing = frozen.map([batch] * 6)
        next(passing)
        passing.close()
    assert len(list(frozen.map([batch] * 6))) == 6


@pytest.fixture(scope="module")
def project(keras, tmp_path_factory) -> Iterator[Path]:
    """The working directory of this module's tests of whole runs."""
    root = tmp_path_factory.mktemp("sharing")
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(root):
        patch.setenv("BAKEOFF_FEATURE_STORE", str(root / "store"))
        served.write_project(root)
        yield root


def load(run: Path, **options) -> predictor.Predictor:
    return predictor.load(run, store=feature_store.from_environment(), **options)


@pytest.mark.parametrize("name", ["head", *sorted(families.CASES)])
def test_a_run_that_many_threads_ask_gives_each_its_own_answer(project, name):
    run = served.head_run() if name == "head" else served.sweep_run(name)
    files = served.pictures(24)
    model = load(run, calibrator={"kind": "temperature", "temperature": 2.0})
    at_once(lambda number: model.probabilities(files[:1]), CLIENTS)  # for what is filled at first use
    assert_own(lambda number: model.probabilities(files[number % 24 : number % 24 + 1 + number % 3]), 48)


def test_no_classifier_ends_and_gives_the_processors_back_while_another_one_runs(project, monkeypatch):
    """The number of BLAS's threads belongs to the process, and a product's last digits may depend on it."""
    from threadpoolctl import threadpool_info, threadpool_limits

    seen = []

    @family.one_blas_thread
    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        time.sleep(0.001 * (len(seen) % 7))
        seen.extend(each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas")
        return features[:, :2]

    run = served.sweep_run("linear_svm")
    monkeypatch.setattr(linear_svm.Model, "predict_proba", predict_proba)
    models = [load(run) for _ in range(2)]
    files = served.pictures(1)
    with ThreadPoolExecutor(1) as another:  # only the thread that was first may limit, until it ends
        another.submit(threadpool_limits, 2, user_api="blas").result()
    at_once(lambda number: models[number % 2].probabilities(files), 64)
    assert set(seen) == {1}


def test_images_above_the_limit_are_refused_while_another_thread_ignores_warnings(tmp_path):
    """`warnings.catch_warnings` changes the filters of all threads."""
    file = tmp_path / "bomb.png"
    Image.new("1", (10_000, 9_500)).save(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(decode.ImageError, match="more than 89,478,485 pixels"):
            decode.load(file, size=8, params=CROP)
        assert decode.inspect(file).problem == "more than 89,478,485 pixels"


def most_at_once(model: predictor.Predictor, files: Sequence[bytes | Path], monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many images were decoded at the same time, at most, while many threads ask."""
    counting, now, most = threading.Lock(), 0, 0
    load = decode.load

    def counted(*arguments, **options):
        nonlocal now, most
        with counting:
            now += 1
            most = max(most, now)
        time.sleep(0.001)
        try:
            return load(*arguments, **options)
        finally:
            with counting:
                now -= 1

    monkeypatch.setattr(decode, "load", counted)
    at_once(lambda number: model.probabilities(files), 2 * CLIENTS)
    return most


def test_a_predictor_decodes_as_many_images_at_a_time_as_it_is_told(network, monkeypatch):
    model = predictor.Predictor(("a", "b"), CROP, network["openvino"], lambda rows: rows[:, :2], threads=2)
    files = served.pictures(4)
    assert most_at_once(model, files, monkeypatch) > 3
    limited = dataclasses.replace(model, decoding=threading.Semaphore(3))
    assert most_at_once(limited, files, monkeypatch) == 3
