"""Facts of a network used as it is: it names what is in a photograph, and the tables count what it named."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.__main__ import main as command_line
from pipeline.commands import as_is as as_is_command
from pipeline.console.progress import NoLog
from pipeline.core import artifacts, params
from pipeline.networks import graphs, imagenet
from pipeline.networks.backbones.choice import Choice
from pipeline.show import picture_sheet
from pipeline.stages import as_is, backbone

VALUES = {
    "seed": 0,
    "backbone": {"weights": "imagenet", "input_size": None, "preprocess": "backbone", "variants": {}},
    "as_is": {"top": 3},
    "images": {"square": "crop", "fill": "edge", "interpolation": "bicubic"},
    "compute": {"threads": 2, "batch_size": 4, "engine": "openvino", "precision": "float32"},
}


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    """The stage's directory for two photographs of ours called flower and temple, and their mirror images."""
    from sklearn.datasets import load_sample_image

    with pytest.MonkeyPatch.context() as monkeypatch:
        root = tmp_path_factory.mktemp("as_is")
        monkeypatch.chdir(root)
        rows = []
        for label, photograph in (("flower", "flower.jpg"), ("temple", "china.jpg")):
            picture = Image.fromarray(load_sample_image(photograph))
            for name, image in (("a", picture), ("b", picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))):
                path = f"validation/{label}/{name}.png"
                (artifacts.SPLIT / path).parent.mkdir(parents=True, exist_ok=True)
                image.save(artifacts.SPLIT / path)
                rows.append(
                    {
                        "path": path,
                        "label": label,
                        "split": "validation",
                        "group": "",
                        "stratum": "",
                        "sha256": artifacts.sha256_file(artifacts.SPLIT / path),
                    }
                )
        artifacts.write_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS, rows)
        for stage in (backbone, as_is):
            stage.main(params.Params(VALUES, stage.READS), backbone="efficientnet_lite0", log=NoLog())
        return root / "results" / "as_is" / "efficientnet_lite0"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_daisy_is_called_daisy(output):
    rows = rows_of(output / "predictions.csv")
    assert [row["path"] for row in rows] == [
        f"validation/{name}.png" for name in ("flower/a", "flower/b", "temple/a", "temple/b")
    ]
    assert [(row["label"], row["class_1"], row["name_1"]) for row in rows[::2]] == [
        ("flower", "985", "daisy"),
        ("temple", "698", "palace"),
    ]


def test_the_most_probable_comes_first_and_nothing_after_the_top(output):
    for row in rows_of(output / "predictions.csv"):
        probabilities = [float(row[f"probability_{rank}"]) for rank in (1, 2, 3)]
        assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) <= 1
        assert "class_4" not in row


def test_the_table_of_a_class_counts_its_predictions(output):
    predictions = rows_of(output / "predictions.csv")
    table = rows_of(output / "classes.csv")
    for label in ("flower", "temple"):
        of_label = [row for row in table if row["label"] == label]
        assert sum(int(row["top_1"]) for row in of_label) == 2
        assert sum(int(row["top_k"]) for row in of_label) == 2 * VALUES["as_is"]["top"]
        for row in of_label:
            seen = [p["class_1"] for p in predictions if p["label"] == label]
            assert int(row["top_1"]) == seen.count(row["imagenet_class"])
            assert row["images"] == "2" and 0 < float(row["mean_probability"]) < 1


def test_the_sheet_is_a_picture(output):
    with Image.open(output / "sheet.png") as sheet:
        sheet.load()
        assert sheet.format == "PNG" and sheet.width > 1000
        # Matplotlib's version and the date would change the bytes.
        assert set(sheet.info) <= {"dpi"}


def test_a_network_without_classes_says_so_and_stops_nothing(tmp_path, monkeypatch, output, capsys):
    root = output.parents[2]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("split", "backbones"):
        shutil.copytree(root / "data" / name, tmp_path / "data" / name)
    directory = artifacts.BACKBONES / "efficientnet_lite0"
    graphs.write_spec(graphs.read_spec(directory).model_copy(update={"prediction_layer": None}), directory)
    as_is.main(params.Params(VALUES, as_is.READS), backbone="efficientnet_lite0", log=NoLog())
    assert "has none of ImageNet's classes" in capsys.readouterr().out
    (file,) = (tmp_path / "results/as_is/efficientnet_lite0").iterdir()
    assert file.name == "no_classes.txt" and "another input size than 224 x 224" in file.read_text()


def test_an_ablation_is_marked_in_every_table_and_on_the_sheet(tmp_path, monkeypatch, output):
    for name in ("predictions.csv", "classes.csv"):
        assert "ablation" not in rows_of(output / name)[0]
    root = output.parents[2]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("split", "backbones"):
        shutil.copytree(root / "data" / name, tmp_path / "data" / name)
    directory = artifacts.BACKBONES / "efficientnet_lite0"
    ablation = {"preprocess": "rescale"}
    graphs.write_spec(graphs.read_spec(directory).model_copy(update=ablation), directory)
    titles = []
    monkeypatch.setattr(picture_sheet, "draw", lambda sections, *, title, subtitle, path: titles.append(title))
    as_is.main(params.Params(VALUES, as_is.READS), backbone="efficientnet_lite0", log=NoLog())
    for name in ("predictions.csv", "classes.csv"):
        rows = rows_of(Path("results/as_is/efficientnet_lite0") / name)
        assert rows and {row["ablation"] for row in rows} == {"fed pixels / 255"}
    assert titles == ["What efficientnet_lite0 (ablation: fed pixels / 255) sees, as it is"]
    graphs.write_spec(graphs.read_spec(directory).model_copy(update={"prediction_layer": None}), directory)
    as_is.main(params.Params(VALUES, as_is.READS), backbone="efficientnet_lite0", log=NoLog())
    said = Path("results/as_is/efficientnet_lite0/no_classes.txt").read_text()
    assert said.startswith("efficientnet_lite0 (ablation: fed pixels / 255) has none of ImageNet's classes")


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def project(output, monkeypatch, tmp_path) -> Path:
    """The directory of the stage's fixture, with a params.yaml; a daisy and a broken file lie in ``photos``."""
    root = output.parents[2]
    monkeypatch.chdir(root)
    (root / "params.yaml").write_text(yaml.safe_dump({**VALUES, "backbones": ["efficientnet_lite0"]}))
    photos = root / "photos"
    photos.mkdir(exist_ok=True)
    shutil.copyfile(artifacts.SPLIT / "validation/flower/a.png", photos / "daisy.png")
    (photos / "broken.png").write_bytes(b"not an image")
    return root


def test_the_command_prints_the_top_five_of_a_file(project, capsys):
    assert command_line(["as-is", "photos/daisy.png"]) == 0
    said = capsys.readouterr()
    path, *lines = said.out.splitlines()
    assert path == "photos/daisy.png" and len(lines) == 5
    assert re.fullmatch(r"  daisy +\d\d\.\d%  █+", lines[0])
    assert len({line.index("%") for line in lines}) == 1, "columns are aligned"
    shares = [float(re.search(r"([\d.]+)%", line)[1]) for line in lines]
    assert shares == sorted(shares, reverse=True)
    assert "efficientnet_lite0, 224 x 224, on 1 images" in said.err


def test_the_command_takes_folders_and_parts_and_a_broken_file_costs_only_itself(project, capsys):
    assert command_line(["as-is", "photos", "validation", "--top", "1"]) == 1
    said = capsys.readouterr()
    assert said.out.splitlines()[::2] == [
        "photos/daisy.png",
        *(f"data/split/validation/{name}.png" for name in ("flower/a", "flower/b", "temple/a", "temple/b")),
    ]
    assert "not classified: photos/broken.png" in said.err


def test_the_command_builds_a_network_that_is_not_stored(project, capsys):
    values = yaml.safe_load((project / "params.yaml").read_text())
    values["backbone"]["variants"] = {"lite_128": {"network": "efficientnet_lite0", "input_size": 128}}
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    assert command_line(["as-is", "photos/daisy.png", "--backbone", "lite_128", "--top", "1"]) == 0
    said = capsys.readouterr()
    assert "daisy" in said.out and "building lite_128 with weights: imagenet" in said.err
    assert "lite_128, 128 x 128" in said.err
    assert not (artifacts.BACKBONES / "lite_128").exists()
    assert command_line(["as-is", "photos/daisy.png", "--weights", "random"]) == 0
    assert "whose weights are random: its classes mean nothing" in capsys.readouterr().err


def test_a_network_that_another_recipe_has_left_does_not_answer(project, capsys):
    directory = artifacts.BACKBONES / "efficientnet_lite0"
    spec = graphs.read_spec(directory)
    graphs.write_spec(spec.model_copy(update={"input_size": 128, "prediction_layer": None}), directory)
    try:
        assert command_line(["as-is", "photos/daisy.png", "--top", "1"]) == 0
    finally:
        graphs.write_spec(spec, directory)
    said = capsys.readouterr()
    assert "daisy" in said.out and "building efficientnet_lite0 with weights: imagenet" in said.err
    assert "efficientnet_lite0, 224 x 224" in said.err


def test_a_stored_network_is_known_by_what_it_was_built_from(project, tmp_path):
    spec = graphs.read_spec(artifacts.BACKBONES / "efficientnet_lite0")
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"numbers")
    of_file = {"source": "file", "file": "elsewhere.pth", "sha256": artifacts.sha256_file(weights)}
    random = {"source": "random", "seed": "0"}
    for stored, asked, expected in (
        ({}, {}, True),
        ({}, {"input_size": 224}, True),
        ({"name": "variant", "network": "efficientnet_lite0"}, {}, True),
        ({"name": "variant", "network": "efficientnet_lite1"}, {}, False),
        ({"input_size": 128}, {}, False),
        ({"input_size": 128}, {"input_size": 128}, True),
        ({"preprocess": "rescale"}, {}, False),
        ({"preprocess": "rescale"}, {"preprocess": "rescale"}, True),
        ({"weights": random}, {}, False),
        ({"weights": random}, {"weights": "random"}, True),
        ({"weights": random | {"seed": "1"}}, {"weights": "random"}, False),
        ({"weights": of_file}, {}, False),
        ({"weights": of_file}, {"weights": str(weights)}, True),
        ({"weights": of_file | {"sha256": "0"}}, {"weights": str(weights)}, False),
        ({"weights": of_file}, {"weights": str(tmp_path / "gone.pth")}, False),
    ):
        choice = Choice("efficientnet_lite0", "imagenet", None, "backbone")._replace(**asked)
        found = as_is_command._is_asked_for(spec.model_copy(update=stored), choice, seed=0)
        assert found == expected, f"{stored} for {asked}"


def test_the_stored_network_answers_if_it_is_what_is_asked_for(project, capsys):
    for arguments in ([], ["--backbone", "efficientnet_lite0"], ["--weights", "imagenet"]):
        assert command_line(["as-is", "photos/daisy.png", "--top", "1", *arguments]) == 0
        assert "building" not in capsys.readouterr().err


def test_a_stored_network_that_is_not_the_one_of_the_lock_does_not_answer(project, capsys, monkeypatch):
    path = (artifacts.BACKBONES / "efficientnet_lite0").as_posix()
    outs = [{"path": path, "hash": "md5", "md5": f"{0:032}.dir"}]
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"backbone@x": {"outs": outs}}}), encoding="utf-8")
    monkeypatch.delattr(graphs, "load")
    try:
        assert command_line(["as-is", "photos/daisy.png"]) == 1
        assert f"error: {path} is not what dvc.lock says" in capsys.readouterr().err
    finally:
        Path("dvc.lock").unlink()


@pytest.mark.slow
def test_the_command_prints_vgg16s_top_five(project, capsys):
    assert command_line(["as-is", "photos/daisy.png", "--backbone", "vgg16", "--weights", "random"]) == 0
    said = capsys.readouterr()
    path, *lines = said.out.splitlines()
    assert path == "photos/daisy.png" and len(lines) == 5
    assert "vgg16, whose weights are random: its classes mean nothing, 224 x 224, on 1 images" in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos/daisy.png", "--backbone", "vgg61"], "unknown 'vgg61' (did you mean 'vgg1"),
        (["photos/daisy.png", "--top", "0"], "--top must be from 1 to 1000, received 0"),
        (["nothing.png"], "nothing.png: no image found"),
        (["photos/daisy.png", "--weights", "none.pth"], "there is no file none.pth"),
    ],
)
def test_the_command_refuses_in_words(project, capsys, arguments, message):
    assert command_line(["as-is", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_the_same_cells_make_the_same_bytes_whatever_the_user_configured(tmp_path):
    import matplotlib

    cell = picture_sheet.Cell(np.full((8, 8, 3), 90, np.uint8), [("window shade", 0.5), ("$x^2$ " + "long " * 20, 0.1)])
    sections = {"costs $5": [cell] * 4, "other": [cell]}
    for name in ("a.png", "b.png"):
        picture_sheet.draw(sections, title="Title", subtitle="Subtitle", path=tmp_path / name)
        matplotlib.rcParams["font.size"] = 30
    matplotlib.rcdefaults()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_names_belong_to_their_class_index():
    names = imagenet.class_names()
    assert len(names) == 1000
    known = {0: "tench", 207: "Golden Retriever", 281: "tabby cat", 698: "palace", 985: "daisy", 999: "toilet paper"}
    assert {index: names[index] for index in known} == known


def test_ties_go_to_the_smaller_class_index():
    probabilities = np.zeros((2, 1000), np.float32)
    probabilities[0, [7, 3, 900]] = 0.25, 0.25, 0.5
    probabilities[1, 999] = 1
    assert imagenet.top_classes(probabilities, k=3).tolist() == [[900, 3, 7], [999, 0, 1]]


def test_guesses_are_counted_by_rank():
    probabilities = np.zeros((3, 1000), np.float32)
    probabilities[:, 5], probabilities[:, 8] = [0.6, 0.7, 0.1], [0.4, 0.3, 0.9]
    found = imagenet.guesses(probabilities, imagenet.top_classes(probabilities, k=2))
    assert [(guess.imagenet_class, guess.top_1, guess.top_k) for guess in found] == [(5, 2, 3), (8, 1, 3)]
    assert found[0].mean_probability == pytest.approx((0.6 + 0.7 + 0.1) / 3)


def test_predictions_of_other_classes_than_imagenet_are_refused():
    with pytest.raises(imagenet.ImageNetError, match=r"must be \(n, 1000\), received \(2, 2\)"):
        imagenet.top_classes(np.zeros((2, 2), np.float32), k=1)


def test_the_sample_is_spread_over_all_rows():
    assert imagenet.evenly_spaced(range(100), 4) == [12, 37, 62, 87]
    assert imagenet.evenly_spaced([3, 8], 9) == [3, 8]
    assert imagenet.evenly_spaced([], 3) == []


@pytest.mark.parametrize("top", [0, 21, 2.5])
def test_a_senseless_number_of_classes_is_refused(top):
    with pytest.raises(params.ParamsError, match=r"as_is\.top must be"):
        params.parse({"top": top}, as_is.AsIsParams, where="as_is")
