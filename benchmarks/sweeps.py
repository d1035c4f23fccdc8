"""Sweeps against one plain fit after another, their start-up, and what Nystroem's approximation costs.

python -m benchmarks.sweeps [--json FILE] [--repeats 5]

After `dvc repro` has left features. Ours is the code that the stage runs, in this process: `family.fit_all` with
``compute.threads`` threads. The rival is what a competent user writes: for every candidate a scikit-learn pipeline on
the same float32 features with the same folds, and its validation probabilities; libraries use as many threads as they
like. Both choose by validation with the same function, and must choose the same candidate.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure, rows
from benchmarks.rows import Row
from pipeline.classifiers.search import family, search_space
from pipeline.classifiers.solvers import sigmoid
from pipeline.core import artifacts, params, seeds
from pipeline.core.provenance import ROOT
from pipeline.evaluation import metrics


class Problem:
    """One network's features with the default grids of params.yaml."""

    def __init__(self) -> None:
        self.values = params.load()
        self.backbone = self.values["backbones"][0]
        parts = {name: artifacts.read_part(name) for name in ("train", "validation")}
        directory = artifacts.FEATURES / self.backbone
        self.train, self.validation = (
            (np.array(artifacts.read_features(directory, part)), part.labels) for part in parts.values()
        )
        self.classes = parts["train"].classes

    def block(self, name: str, **changes: Any) -> search_space.Search:
        block = {**self.values["classifiers"][name], **changes}
        return params.parse(block, family.find(name).Params, where=f"classifiers.{name}")

    def seed(self, name: str) -> int:
        return seeds.child_seed(self.values["seed"], "classifiers", name)

    def points(self, name: str) -> list[dict[str, Any]]:
        return [candidate.parameters for candidate in search_space.candidates(self.block(name), seed=self.seed(name))]

    def ours(self, name: str, **changes: Any) -> list[np.ndarray]:
        """Return the validation probabilities of every candidate, as the stage computes them."""
        task = family.Task(
            self.train,
            self.validation,
            n_classes=len(self.classes),
            seed=self.seed(name),
            threads=self.values["compute"]["threads"],
        )
        fitter = family.find(name).Fitter(task, self.block(name, **changes))
        return [fit.validation for fit in family.fit_all(fitter, self.points(name))]

    def plain(self, name: str) -> list[np.ndarray]:
        """Return the same from one plain fit after another."""
        probabilities = []
        for point in self.points(name):
            machine = PLAIN[name](point, self)
            probabilities.append(machine.predict_proba(self.validation[0]))
        return probabilities

    def select(self, probabilities: list[np.ndarray]) -> int:
        selection = params.parse(self.values["selection"], metrics.SelectionParams, where="selection")
        positive = metrics.positive_index(self.classes, selection)
        stacked = np.stack(probabilities).astype(np.float32)
        return metrics.select(stacked, self.validation[1], metric=selection.metric, positive=positive)

    def accuracy(self, probabilities: np.ndarray) -> float:
        return float((probabilities.argmax(axis=1) == self.validation[1]).mean())


def _scaled(point: dict[str, Any], machine: Any) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(*([StandardScaler()] if point["scale"] else []), machine)


def _plain_logistic_regression(point: dict[str, Any], problem: Problem) -> Any:
    from sklearn.linear_model import LogisticRegression

    machine = LogisticRegression(C=point["C"], class_weight=point["class_weight"], max_iter=1000)
    return _scaled(point, machine).fit(*problem.train)


def _plain_rbf_svm(point: dict[str, Any], problem: Problem) -> Any:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.model_selection import StratifiedKFold
    from sklearn.svm import SVC
    from sklearn.utils.class_weight import compute_sample_weight

    # Shuffled folds and weighted sigmoids as in ours: neither takes time, and without them the models are others.
    folds = StratifiedKFold(sigmoid.FOLDS, shuffle=True, random_state=problem.seed("rbf_svm"))
    machine = CalibratedClassifierCV(SVC(C=point["C"], gamma=point["gamma"]), cv=folds, ensemble=False)
    weights = compute_sample_weight(point["class_weight"], problem.train[1])
    pipeline = _scaled(point, machine)
    return pipeline.fit(*problem.train, **{f"{pipeline.steps[-1][0]}__sample_weight": weights})


def _plain_lightgbm(point: dict[str, Any], problem: Problem) -> Any:
    import lightgbm

    block = problem.block("lightgbm")
    machine = lightgbm.LGBMClassifier(
        n_estimators=block.trees,
        num_leaves=point["num_leaves"],
        learning_rate=point["learning_rate"],
        colsample_bytree=point["feature_fraction"],
        min_child_samples=point["min_data_in_leaf"],
        class_weight=point["class_weight"],
        random_state=problem.seed("lightgbm") % 2**31,
        verbosity=-1,
    )
    stopping = lightgbm.early_stopping(block.patience, verbose=False)
    features, labels = problem.validation
    machine.fit(*problem.train, eval_X=features, eval_y=labels, eval_metric="logloss", callbacks=[stopping])
    return _Columns(machine.booster_)


class _Columns:
    """LightGBM's own predictions: those of its scikit-learn class warn about names that features do not have."""

    def __init__(self, booster: Any):
        self._booster = booster

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        second = self._booster.predict(features)
        return np.stack([1 - second, second], axis=1)


def _plain_catboost(point: dict[str, Any], problem: Problem) -> Any:
    import catboost

    block = problem.block("catboost")
    machine = catboost.CatBoostClassifier(
        iterations=block.trees,
        depth=point["depth"],
        learning_rate=point["learning_rate"],
        rsm=point["feature_fraction"],
        l2_leaf_reg=point["l2_leaf_reg"],
        auto_class_weights="Balanced" if point["class_weight"] else None,
        random_seed=problem.seed("catboost"),
        early_stopping_rounds=block.patience,
        allow_writing_files=False,
        logging_level="Silent",
    )
    return machine.fit(*problem.train, eval_set=problem.validation)


PLAIN: dict[str, Callable[[dict[str, Any], Problem], Any]] = {
    "logistic_regression": _plain_logistic_regression,
    "rbf_svm": _plain_rbf_svm,
    "lightgbm": _plain_lightgbm,
    "catboost": _plain_catboost,
}


def compare(
    problem: Problem, claim: str, names: tuple[str, ...], *, target: float | None, repeats: int
) -> Iterator[Row]:
    """Yield the row of some families together, and if there are several one each (without a target)."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names:
            sides = [problem.plain, problem.ours]
            done = {side: _timed(side, name) for side in (sides if repeat % 2 == 0 else sides[::-1])}
            plain, ours = done[sides[0]], done[sides[1]]
            times[name].append((plain[0], ours[0]))
            _agree(problem, name, plain[1], ours[1])
            print(f"  {name}: plain {plain[0]:.2f} s, ours {ours[0]:.2f} s", file=sys.stderr, flush=True)
    together = [tuple(map(sum, zip(*each, strict=True))) for each in zip(*times.values(), strict=True)]
    yield _row(claim, [plain / ours for plain, ours in together], target)
    if len(names) > 1:
        for name in names:
            yield _row(f"{claim}: {name} alone", [plain / ours for plain, ours in times[name]], None)


def _agree(problem: Problem, name: str, plain: list[np.ndarray], ours: list[np.ndarray]) -> None:
    chosen, expected = problem.select(ours), problem.select(plain)
    largest = max(np.abs(a - b).max() for a, b in zip(ours, plain, strict=True))
    print(f"  {name}: selected {chosen}, plain {expected}; largest difference {largest:.1e}", file=sys.stderr)
    if chosen != expected and name in ("logistic_regression", "rbf_svm"):
        raise SystemExit(f"{name}: ours selects candidate {chosen}, plain fits select {expected}")


def start_up(problem: Problem, *, target: float, repeats: int) -> Row:
    """Time from the command to the first fitted candidate, in a copy of what a sweep reads."""
    command = [sys.executable, "-m", "pipeline", "sweep", "--backbone", problem.backbone]
    command += ["--classifier", "logistic_regression"]
    seconds = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "data").mkdir()
        (place / "params.yaml").symlink_to(ROOT / "params.yaml")
        for folder in ("split", "features"):
            (place / "data" / folder).symlink_to(ROOT / "data" / folder)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": name}
        environment.pop("MLFLOW_TRACKING_URI", None)
        for _ in range(repeats):
            started = time.perf_counter()
            with subprocess.Popen(command, cwd=place, env=environment, stdout=subprocess.PIPE, text=True) as process:
                line = process.stdout.readline()
                seconds.append(time.perf_counter() - started)
                process.stdout.read()
            if not line.startswith("candidate 1/") or process.returncode:
                raise SystemExit(f"the sweep said {line!r} and ended with status {process.returncode}")
    return _row("a sweep's first candidate is fitted, from the command", seconds, target, unit="s")


def nystroem(problem: Problem, *, repeats: int) -> Iterator[Row]:
    n = len(problem.train[1])
    components = problem.block("rbf_svm").components
    ratios = []
    for _ in range(repeats):
        exact = _timed(problem.ours, "rbf_svm")
        close = _timed(problem.ours, "rbf_svm", exact_up_to=0)
        ratios.append(exact[0] / close[0])
    claim = f"RBF SVM, {n} images, {components} Nystroem components against exact"
    yield _row(f"{claim}: speed", ratios, None)
    differences = [problem.accuracy(b) - problem.accuracy(a) for a, b in zip(exact[1], close[1], strict=True)]
    yield _row(f"{claim}: difference of validation accuracy, over candidates", differences, None, unit="of 1")


def _timed(sweep: Callable[..., list[np.ndarray]], *args: Any, **changes: Any) -> tuple[float, list[np.ndarray]]:
    started = time.perf_counter()
    result = sweep(*args, **changes)
    return time.perf_counter() - started, result


def _row(claim: str, values: list[float], target: float | None, *, unit: str | None = None) -> Row:
    """Return a row of ratios, or of values in a unit."""
    median = statistics.median(values)
    number = {"ratio": median} if unit is None else {"value": median, "unit": unit}
    return Row(claim=claim, target=target, low=min(values), high=max(values), n=len(values), **number)


def main(arguments: list[str] | None = None) -> None:
    options = measure.parser(__doc__).parse_args(arguments)
    problem = Problem()
    for name in PLAIN:  # once without a clock: libraries are imported, caches are warm
        PLAIN[name](problem.points(name)[0], problem)
    rows.report(list(_rows(problem, options.repeats)), options.json)


def _rows(problem: Problem, repeats: int) -> Iterator[Row]:
    yield start_up(problem, target=4.0, repeats=repeats)
    classical = ("logistic_regression", "rbf_svm")
    yield from compare(
        problem, "sweeps of logistic regression and RBF SVM, default grids", classical, target=8.0, repeats=repeats
    )
    yield from nystroem(problem, repeats=repeats)
    boosters = ("lightgbm", "catboost")
    yield from compare(problem, "sweeps of boosters, default grids", boosters, target=None, repeats=repeats)


if __name__ == "__main__":
    sys.exit(measure.guarded(main))
