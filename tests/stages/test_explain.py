"""The stage that shows what a trained network looks at, on a network whose answer is known."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from pipeline.console.errors import BakeoffError
from pipeline.console.progress import NoLog
from pipeline.core import artifacts, params, run_identity
from pipeline.networks import graphs
from pipeline.show import explain_figures
from pipeline.stages import explain

RUN = "tiny-scratch"
FILES = {"activations.png", "explain.json", "filters.png", "gradcam.png", "patterns.png", "textbook.png"}
CLASSES = ("blue", "red $x$ 고")
SIZE, PER_CLASS = 32, 5
VALUES = {
    "seed": 0,
    "compute": {"threads": 2},
    "explain": {"layers": {}, "images": 2, "patterns": {"filters": 2, "steps": 3, "input_size": None}},
}


@pytest.fixture
def project(tmp_path, monkeypatch, values) -> Path:
    """Validation images of a red or a blue square, a run that tells them apart, and no image of another part."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for part in artifacts.PARTS:
        for index, label in enumerate(CLASSES):
            for number in range(PER_CLASS):
                path = f"{part}/{label}/{number}.png"
                rows.append(
                    {
                        "path": path,
                        "label": label,
                        "split": part,
                        "group": "",
                        "stratum": "",
                        "sha256": f"{len(rows):064}",
                    }
                )
                if part == "validation":
                    write_image(artifacts.SPLIT / path, channel=2 - 2 * index, corner=4 * number)
    artifacts.write_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS, rows)
    write_run(values["images"])
    return tmp_path


def write_image(path: Path, *, channel: int, corner: int) -> None:
    pixels = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    pixels[corner : corner + 8, corner : corner + 8, channel] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_run(image_params: dict, *, stage: str = "scratch", wrong: int = 2) -> None:
    """Write a run whose last ``wrong`` images of the first class are taken for the second."""
    graphs.start_tensorflow(threads=2)
    import keras

    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 3))
    scaled = keras.layers.Rescaling(1 / 255)(inputs)
    maps = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(scaled)
    maps = keras.layers.Conv2D(3, 3, padding="same", activation="relu", name="conv_2")(maps)
    pooled = keras.layers.GlobalAveragePooling2D(name="avg_pool")(maps)
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax", name="predictions")(pooled))
    directory = artifacts.RUNS / RUN
    graphs.save(model, directory)
    validation = np.repeat(np.array([[0.9, 0.1], [0.2, 0.8]], dtype=np.float32), PER_CLASS, axis=0)[np.newaxis]
    validation[0, PER_CLASS - wrong : PER_CLASS] = [0.25, 0.75]
    artifacts.write_predictions(directory / "predictions.npz", artifacts.Predictions(validation, validation[0]))
    record = artifacts.Record(
        stage=stage,
        network="tiny",
        method=stage,
        classes=list(CLASSES),
        parameters={"images": image_params},
        inputs={str(artifacts.MANIFEST): artifacts.sha256_file(artifacts.MANIFEST)},
        candidates=[artifacts.Candidate(name=stage, parameters={})],
        selected=0,
        cost=artifacts.Cost(trainable_parameters=1, total_parameters=1, model_bytes=1, multiply_adds=1),
    )
    artifacts.write_record(directory / "record.json", record)


def run(**changes) -> dict:
    """Run the stage and return what it says it shows."""
    values = copy.deepcopy(VALUES)
    values["explain"] |= changes
    explain.main(params.Params(values, explain.READS), run=RUN, log=NoLog())
    return json.loads((artifacts.RESULTS / "explain" / RUN / "explain.json").read_text(encoding="utf-8"))


def contents() -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (artifacts.RESULTS / "explain" / RUN).iterdir()}


@pytest.mark.usefixtures("project")
def test_the_pages_show_what_was_chosen_from_validation_and_have_the_same_bytes_again():
    assert not (artifacts.SPLIT / "test").exists() and not (artifacts.SPLIT / "train").exists()
    about = run()
    first = contents()
    assert first.keys() == FILES
    for name in FILES - {"explain.json"}:
        with Image.open(artifacts.RESULTS / "explain" / RUN / name) as page:
            assert page.format == "PNG" and page.width == explain_figures.WIDTH and page.height > 100
            assert not page.info
            assert len(page.convert("L").getcolors(256)) > 10
    # Two right and two wrong ones of blue, two right ones of red, which has no wrong one.
    shown = [(Path(each["path"]).name, each["label"] == each["predicted"]) for each in about["heat_maps"]["images"]]
    assert shown == [
        ("0.png", True),
        ("2.png", True),
        ("3.png", False),
        ("4.png", False),
        ("1.png", True),
        ("3.png", True),
    ]
    assert [each["probability"] for each in about["heat_maps"]["images"]] == [0.9, 0.9, 0.75, 0.75, 0.8, 0.8]
    assert all(each["path"].startswith("validation/") for each in about["heat_maps"]["images"])
    assert about["heat_maps"]["layer"] == "conv_2"
    assert about["record"] == run_identity.record_digest(artifacts.RUNS / RUN)
    assert about["feature_maps"]["images"] == {label: f"validation/{label}/2.png" for label in CLASSES}
    assert [layer["name"] for layer in about["feature_maps"]["layers"]] == ["conv", "conv_2"]
    made = [entry for layer in about["patterns"]["layers"] for entry in layer["filters"]]
    assert len(made) == 4
    run()
    assert contents() == first


def test_an_ablation_is_marked_on_every_page(project, monkeypatch):
    assert run()["ablation"] is None
    record = artifacts.read_record(artifacts.RUNS / RUN / "record.json")
    ablation = artifacts.ablation("rescale")
    artifacts.write_record(artifacts.RUNS / RUN / "record.json", record.model_copy(update={"ablation": ablation}))
    titles = []
    for page in ("heat_maps", "feature_maps", "kernels", "patterns"):
        draw = getattr(explain_figures, page)
        keep = lambda *given, title, draw=draw, **more: (titles.append(title), draw(*given, title=title, **more))  # noqa: E731
        monkeypatch.setattr(explain_figures, page, keep)
    assert run()["ablation"] == ablation
    assert len(titles) == 4 and all(title.endswith(f": {artifacts.marked(RUN, ablation)}") for title in titles)


def test_a_run_that_is_always_right_has_no_wrong_image_to_show(project, values):
    write_run(values["images"], wrong=0)
    about = run(images=12)
    assert len(about["heat_maps"]["images"]) == 2 * PER_CLASS
    assert all(each["label"] == each["predicted"] for each in about["heat_maps"]["images"])
    assert contents().keys() == FILES


def test_only_the_first_classes_with_images_are_shown(project, monkeypatch):
    monkeypatch.setattr(explain, "CLASSES", 1)
    about = run()
    assert {each["label"] for each in about["heat_maps"]["images"]} == {CLASSES[0]}
    assert about["feature_maps"]["images"].keys() == {CLASSES[0]}


@pytest.mark.usefixtures("project")
def test_layers_can_be_named_for_a_network():
    about = run(layers={"tiny": ["conv_2"], "another": ["nonsense"]})
    assert [layer["name"] for layer in about["feature_maps"]["layers"]] == ["conv_2"]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("conv_3", r"explain\.layers\.tiny: .*no layer 'conv_3'. Nearest: conv_2"),
        ("avg_pool", r"explain\.layers\.tiny: .*'avg_pool' .* no height and width to show. Some that have: conv, "),
    ],
)
def test_a_layer_that_cannot_be_shown_is_named_before_anything_is_computed(layer, message, capsys):
    with pytest.raises(params.ParamsError, match=message):
        run(layers={"tiny": ["conv", layer]})
    assert "heat maps" not in capsys.readouterr().out
    assert not (artifacts.RESULTS / "explain" / RUN).exists()


def test_a_run_that_cannot_be_explained_says_why(project, values):
    with pytest.raises(BakeoffError, match=r"results/runs/none-head/record\.json is missing"):
        explain.main(params.Params(VALUES, explain.READS), run="none-head", log=NoLog())
    write_run(values["images"], stage="sweep")
    with pytest.raises(BakeoffError, match="a classifier on features, without a network to look into"):
        run()
    write_run(values["images"])
    with artifacts.MANIFEST.open("a", encoding="utf-8") as manifest:
        manifest.write("train/blue/new.png,blue,train,,,0\n")
    with pytest.raises(BakeoffError, match="made from another split"):
        run()


# --- pages ---------------------------------------------------------------------------------------------------------

GREY = np.full((20, 20, 3), 90, dtype=np.uint8)
NOTHING = explain_figures.Example(GREY, np.zeros((3, 3), np.float32), "dark.png", "cat", 0.5, "cat", 0.5)
SOMETHING = NOTHING._replace(heat=np.eye(3, dtype=np.float32))
PAGES = {
    "heat maps": lambda path: explain_figures.heat_maps(
        [explain_figures.Group("cat, right", [SOMETHING, NOTHING]), explain_figures.Group("cat, wrong: 0", [])],
        title="Title",
        subtitle="One line\nand another",
        path=path,
    ),
    "constant maps": lambda path: explain_figures.feature_maps(
        [explain_figures.LayerMaps("conv", [3], 8, np.ones((1, 4, 6, 1), np.float32))],
        [("cat", GREY)],
        title="Title",
        subtitle="Subtitle",
        path=path,
    ),
    "kernels of one channel": lambda path: explain_figures.kernels(
        np.linspace(-1, 1, 36, dtype=np.float32).reshape(4, 3, 3, 1), title="Title", subtitle="Subtitle", path=path
    ),
    "kernels of zeros": lambda path: explain_figures.kernels(
        np.zeros((100, 1, 1, 3), np.float32), title="Title", subtitle="Subtitle", path=path
    ),
    "textbook": lambda path: explain_figures.textbook_operations(GREY, title="Title", subtitle="Subtitle", path=path),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_the_same_bytes_whatever_the_users_matplotlib_settings(name, tmp_path):
    PAGES[name](tmp_path / "a.png")
    with matplotlib.rc_context({"image.cmap": "jet", "font.size": 30}):
        PAGES[name](tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_heat_brightens_its_place_and_nothing_else():
    heat = np.zeros((4, 4), dtype=np.float32)
    heat[0, 0] = 7
    dark = explain_figures.Example(np.zeros((40, 40, 3), np.uint8), heat, "a.png", "cat", 0.9, "cat", 0.9)
    plain, overlay = (picture.image for picture in explain_figures._pair(dark, 40).pictures)
    assert not plain.any()
    assert overlay[:5, :5].mean() > 100
    assert not overlay[20:].any()
