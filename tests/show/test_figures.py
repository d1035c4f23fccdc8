"""Figures are whole PNG files with the same bytes every time, for every shape of data that can come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from pipeline.show import figures, plotting, training_curves

HISTORY = {
    "loss": [0.7, 0.5, 0.4, 0.35],
    "accuracy": [0.6, 0.7, 0.8, 0.9],
    "val_loss": [0.65, 0.6, 0.62, 0.63],
    "val_accuracy": [0.6, 0.72, 0.7, 0.74],
    "learning_rate": [0.003, 0.003, 0.0009, 0.0009],
}
EPOCHS = figures.Training("lite · head", 0, HISTORY, best_step=1)
TREES = figures.Training("lite · lightgbm", 1, {"validation_log_loss": [0.6, 0.5, 0.52]}, best_step=1)
SVM = figures.Training("lite · rbf_svm", 2, {}, best_step=None)
RISING = np.linspace(0, 1, 20)


def lines(count: int) -> list[figures.Line]:
    return [
        figures.Line(f"network · method{place}", place, RISING, RISING ** (1 / (2 + place)), "0.900")
        for place in range(count)
    ]


def calibration(name: str) -> figures.Calibration:
    nan = np.nan
    return figures.Calibration(
        name, np.array([0, 0, 4, 9]), np.array([nan, nan, 0.6, 0.9]), np.array([nan, nan, 0.5, 1.0]), "ECE 0.050"
    )


DRAWINGS: dict[str, Callable[[Path], None]] = {
    "curves": lambda path: training_curves.draw(HISTORY, best_epoch=1, title="lite · head", path=path),
    "curves of one epoch": lambda path: training_curves.draw(
        {name: values[:1] for name, values in HISTORY.items()}, best_epoch=0, title="lite · head", path=path
    ),
    "two classes": lambda path: figures.confusion_matrix(
        np.array([[8, 2], [1, 9]]), ("defective", "functional"), title="lite · head", path=path
    ),
    "sixty classes, one never seen": lambda path: figures.confusion_matrix(
        np.diag(np.arange(60)), [f"class {index}" for index in range(60)], title="lite · head", path=path
    ),
    "a thousand classes": lambda path: figures.confusion_matrix(
        np.diag(np.arange(1000)), [f"class {index}" for index in range(1000)], title="lite · head", path=path
    ),
    "roc": lambda path: figures.roc(lines(3), title="ROC: test", path=path),
    "roc of more methods than colors": lambda path: figures.roc(lines(17), title="ROC: test", path=path),
    "roc without points": lambda path: figures.roc(
        [figures.Line("network · method", 0, np.empty(0), np.empty(0), "–")], title="ROC: test", path=path
    ),
    "precision-recall": lambda path: figures.precision_recall(
        lines(2), prevalence=0.3, title="Precision-recall: test", path=path
    ),
    "reliability": lambda path: figures.reliability(
        [calibration(f"lite · method{index}") for index in range(5)], n_classes=2, title="Reliability", path=path
    ),
    "reliability of one": lambda path: figures.reliability(
        [calibration("lite · head")], n_classes=7, title="Reliability", path=path
    ),
    "learning curves": lambda path: figures.learning_curves([EPOCHS, TREES, SVM], path=path),
    "only trees": lambda path: figures.learning_curves([TREES], path=path),
    "nothing fitted by steps": lambda path: figures.learning_curves([SVM], path=path),
    "leaderboard": lambda path: figures.leaderboard(
        [figures.Bar("lite · head", 0.9, 0.88, 0.85, 0.91), figures.Bar("net · scratch", 0.8, 0.79, 0.75, 0.83)],
        label="accuracy",
        confidence=0.95,
        path=path,
    ),
    "leaderboard of an undefined metric": lambda path: figures.leaderboard(
        [figures.Bar("lite · head", 0.9, np.nan, np.nan, np.nan)], label="ROC-AUC", confidence=0.95, path=path
    ),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_figure_is_a_png_that_shows_something_and_says_nothing_of_when_or_by_what(name, tmp_path):
    path = tmp_path / "figures" / "figure.png"
    DRAWINGS[name](path)
    with Image.open(path) as image:
        assert image.format == "PNG" and min(image.size) > 150 and max(image.size) < 4000
        assert len(image.convert("L").getcolors(256)) > 1
        assert set(image.info) <= {"dpi"}
    assert [file.name for file in path.parent.iterdir()] == ["figure.png"]


@pytest.mark.parametrize("name", ["curves", "two classes", "roc", "reliability", "learning curves", "leaderboard"])
def test_same_data_gives_the_same_bytes_whatever_the_users_matplotlib_settings(name, tmp_path):
    DRAWINGS[name](tmp_path / "a.png")
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 7, "savefig.dpi": 30}):
        DRAWINGS[name](tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_learning_curves_grow_with_their_legend_and_name_the_methods_without_a_curve(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("matplotlib.figure.Figure.suptitle", lambda figure, text, **style: said.append(text))
    figures.learning_curves([EPOCHS, TREES, SVM], path=tmp_path / "few.png")
    many = [EPOCHS._replace(name=f"network{place} · head", place=place) for place in range(24)]
    figures.learning_curves(many, path=tmp_path / "many.png")
    others = [SVM._replace(name=f"network{place} · logistic_regression") for place in range(9)]
    figures.learning_curves([EPOCHS, *others], path=tmp_path / "others.png")
    few, of_many, of_others = (text.replace("\N{NO-BREAK SPACE}", " ") for text in said)
    assert "lite · rbf_svm" in few and "lite · rbf_svm" not in of_many
    assert "lite · head" not in few
    lines = of_others.split("\n")
    assert len(lines) > 3 and all(line.startswith(("thick", "without", "network")) for line in lines), (
        "names stay whole"
    )
    with Image.open(tmp_path / "few.png") as few, Image.open(tmp_path / "many.png") as long:
        assert long.height > few.height + 150


def test_settings_of_matplotlib_are_left_as_they_were(tmp_path):
    before = dict(matplotlib.rcParams)
    DRAWINGS["roc"](tmp_path / "roc.png")
    assert dict(matplotlib.rcParams) == before


def test_methods_have_distinct_lines_up_to_four_times_the_number_of_colors():
    styles = [figures._line_style(place) for place in range(1, 4 * len(figures.COLORS))]
    assert len({(style["color"], style["linestyle"]) for style in styles}) == len(styles)


def test_classes_of_any_script_are_drawn_without_a_letter_missing(tmp_path):
    """A missing letter would be a warning, and so an error here."""
    names = ["고양이", "dog $x$", "Käfer"]
    figures.confusion_matrix(np.eye(3, dtype=int), names, title="x", path=tmp_path / "matrix.png")
    assert plotting.legible("고 é") == "\\uace0 é"
    assert plotting.legible("e\u0301") == "é"
