"""Facts of `backbone` in params.yaml: what a name stands for, how a network is described, how an ablation is marked."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import yaml

from pipeline.__main__ import main as command_line
from pipeline.config import schema
from pipeline.console.progress import NoLog
from pipeline.core import artifacts, params
from pipeline.core.params import ParamsError
from pipeline.evaluation import comparison, leaderboard
from pipeline.networks import graphs
from pipeline.networks.backbones import choice, keras_applications, scaling, table
from pipeline.networks.backbones.choice import BackboneParams, Choice
from pipeline.show import augmentation_sheet, leaderboard_tables, training_curves
from pipeline.stages import backbone as stage
from pipeline.stages import fine_tune, head
from pipeline.tracking import contents
from pipeline.training import fitting
from tests import photographs

BLOCK = {
    "weights": "imagenet",
    "input_size": 128,
    "preprocess": "backbone",
    "variants": {
        "own_size": {"network": "efficientnet_lite0", "input_size": None},
        "wrongly_fed": {"network": "efficientnet_lite0", "preprocess": "rescale", "weights": "random"},
    },
}


def block(**changes) -> BackboneParams:
    return params.parse(BLOCK | changes, BackboneParams, where="backbone")


def test_a_variant_says_what_differs_and_the_rest_is_as_in_the_block():
    assert choice.resolve("vgg16", block()) == Choice("vgg16", "imagenet", 128, "backbone")
    assert choice.resolve("own_size", block()) == Choice("efficientnet_lite0", "imagenet", None, "backbone")
    assert choice.resolve("wrongly_fed", block()) == Choice("efficientnet_lite0", "random", 128, "rescale")
    with pytest.raises(ParamsError, match=r"unknown 'own_sise' \(did you mean 'own_size'\?\)"):
        choice.resolve("own_sise", block())


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (
            ["vgg16", "inception_v3"],
            {"input_size": 64},
            r"backbone\.input_size must be at least 75 for inception_v3, re",
        ),
        (
            ["small"],
            {"variants": {"small": {"network": "xception", "input_size": 64}}},
            r"backbone\.variants\.small\.input_size must be at least 71 for xception",
        ),
        (["convnext_tiny"], {"preprocess": "none"}, r"backbone\.preprocess none is no ablation of convnext_tiny"),
        (["vgg16", "vgg19"], {"weights": "mine.h5"}, r"mine\.h5 cannot be of vgg16 and of vgg19"),
    ],
)
def test_what_a_network_cannot_be_is_refused_before_it_is_built(names, changes, message):
    choice.check(["vgg16", "own_size"], block())
    with pytest.raises(ParamsError, match=message):
        choice.check(names, block(**changes))


def test_lists_of_networks_name_variants(values):
    values = copy.deepcopy(values)
    values["backbone"] = copy.deepcopy(BLOCK)
    values["backbones"] = ["efficientnet_lite0", "own_size"]
    values["head"]["backbones"] = ["own_size"]
    values["fine_tune"]["backbones"] = ["own_size"]
    values["explain"]["runs"] = ["own_size-head"]
    schema.check(values)
    assert "own_size-head" in [run.name for run in params.declared_runs(values)]
    values["backbones"] = ["own_sise"]
    with pytest.raises(ParamsError, match="did you mean 'own_size'"):
        schema.check(values)


# --- the stage and the description ---------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"backbone": BLOCK}))
    return tmp_path


def test_a_variant_is_stored_under_its_own_name_and_marked_as_an_ablation(project, capsys):
    values = {"seed": 0, "backbone": BLOCK, "compute": {"engine": "openvino"}}
    stage.main(params.Params(values, stage.READS), backbone="wrongly_fed", log=NoLog())
    spec = graphs.read_spec(artifacts.BACKBONES / "wrongly_fed")
    assert (spec.name, spec.network, spec.input_size) == ("wrongly_fed", "efficientnet_lite0", 128)
    assert (spec.preprocess, artifacts.ablation(spec.preprocess)) == ("rescale", "fed pixels / 255")
    model = graphs.load(artifacts.BACKBONES / "wrongly_fed")
    assert model.input_shape == (None, 128, 128, 3)
    assert model.get_layer("preprocess").scale == 1 / 255
    said = capsys.readouterr().out
    assert "building wrongly_fed (ablation: fed pixels / 255), a variant of efficientnet_lite0, with weights" in said


def test_a_network_is_described_without_weights(project, capsys, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(project / "keras"))
    assert command_line(["backbone", "mobilenet"]) == 0
    said = capsys.readouterr().out
    lines = [line.split() for line in said.splitlines()]
    assert "128 x 128 (its own: 224, at least 32)" in said and "x / 127.5 - 1: -1 to 1; its first layer" in said
    assert "avg_pool, 1,024" in said and "conv_pw_13_relu, 4 x 4 x 1,024" in said
    assert ["conv_13", "conv_dw_13"] in lines
    assert ["conv_preds", "Conv2D", "1", "x", "1", "x", "1,000", "1,025,000"] in lines
    layers = [line[0] for line in lines[lines.index(["layer", "kind", "output", "parameters"]) + 1 :]]
    assert layers[0] == "pixels" and layers[-1] == "predictions"
    assert not (project / "keras").exists() and not artifacts.BACKBONES.exists()


def test_a_variant_is_described_as_what_it_is(project, capsys):
    assert command_line(["backbone", "wrongly_fed"]) == 0
    said = capsys.readouterr().out
    assert "a variant of efficientnet_lite0" in said
    assert "ABLATION, fed pixels / 255. Its own would be (x - 127) / 128" in said


def test_a_network_is_added_by_one_entry(project, values, capsys, monkeypatch):
    entry = keras_applications.Application(
        name="quarter_mobilenet",
        constructor="MobileNet",
        module="mobilenet",
        input_size=64,
        feature_width=1024,
        scaling=scaling.SIGNED,
        blocks=keras_applications.Blocks(r"conv_(?:dw|pw)_(\d+).*"),
        imagenet=table.BACKBONES["mobilenet"].imagenet,
    )
    monkeypatch.setitem(table.BACKBONES, entry.name, entry)
    values = copy.deepcopy(values)
    values["backbones"] = values["head"]["backbones"] = [entry.name]
    values["fine_tune"]["backbones"] = values["explain"]["runs"] = []
    values["backbone"]["weights"] = "random"
    schema.check(values)
    assert f"{entry.name}-head" in [run.name for run in params.declared_runs(values)]
    stage.main(params.Params(values, stage.READS), backbone=entry.name, log=NoLog())
    spec = graphs.read_spec(artifacts.BACKBONES / entry.name)
    assert (spec.input_size, spec.feature_layer, len(spec.blocks)) == (64, "avg_pool", 13)
    assert command_line(["backbone", entry.name]) == 0
    assert "64 x 64" in capsys.readouterr().out


def test_without_a_name_all_networks_are_listed(project, capsys):
    assert command_line(["backbone"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert rows["inception_v3"][1:4] == ["299", "75", "2,048"]
    assert rows.keys() >= table.BACKBONES.keys() and len(rows) == 1 + len(table.BACKBONES)


def test_describing_and_building_are_not_confused(project, capsys):
    with pytest.raises(SystemExit):
        command_line(["backbone", "mobilenet", "--backbone", "mobilenet"])
    assert "exclude each other" in capsys.readouterr().err
    assert command_line(["backbone", "mobilnet"]) == 1
    assert "unknown 'mobilnet' (did you mean 'mobilenet'?)" in capsys.readouterr().err


# --- ablations are marked ------------------------------------------------------------------------------------------


def test_an_ablation_is_marked_in_every_table(root):
    entries = artifacts.read_json(root / artifacts.LEADERBOARD)
    plain = [one | {"ablation": None} for one in entries]
    marked = [one | {"ablation": "fed pixels / 255" if one["rank"] < 3 else None} for one in entries]
    mark = "(ablation: fed pixels / 255)"
    tables = (
        lambda given: leaderboard_tables.text(given),
        lambda given: leaderboard_tables.short_markdown(given, confidence=0.95),
        lambda given: leaderboard_tables.markdown(
            given,
            sizes=dict.fromkeys(artifacts.PARTS, 1),
            units=dict.fromkeys(artifacts.PARTS, 1),
            confidence=0.95,
            samples=9,
        ),
    )
    for render in tables:
        assert mark not in render(plain) and render(marked).count(mark) >= 2
    columns, rows = leaderboard.csv_table(marked)
    assert "ablation" in columns
    assert [row["ablation"] for row in rows[:3]] == ["fed pixels / 255", "fed pixels / 255", None]


def test_a_trained_network_that_is_fed_wrongly_says_so_in_its_record_and_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fitting.prepare(threads=2, seed=0)
    photographs.write_project(tmp_path)
    directory = artifacts.BACKBONES / "tiny"
    graphs.write_spec(graphs.read_spec(directory).model_copy(update={"preprocess": "rescale"}), directory)
    titles = []
    for module in (training_curves, augmentation_sheet):
        monkeypatch.setattr(module, "draw", lambda *given, title, **more: titles.append(title))
    for trained in (head, fine_tune):
        run = photographs.train(trained, repeats=1)
        assert artifacts.read_record(run / "record.json").ablation == "fed pixels / 255"
        assert "ablation: tiny is fed pixels / 255" in capsys.readouterr().out
    assert titles == [
        f"{kind}tiny · {stage} (ablation: fed pixels / 255)"
        for stage in ("head", "fine_tune")
        for kind in ("", "Augmentation of ")
    ]


def test_mlflow_has_an_ablation_as_a_tag_and_in_the_note():
    def method(ablation: str | None) -> SimpleNamespace:
        chosen = artifacts.Candidate(name="head", parameters={})
        record = SimpleNamespace(network="lite0", method="head", ablation=ablation, candidates=[chosen], selected=0)
        return SimpleNamespace(record=record, champion=False, validation=[{}], test={}, repeats=1, spread={})

    compared = SimpleNamespace(parts=[])
    wrong, plain = method("fed raw pixels"), method(None)
    assert contents.lasting_tags(wrong, compared)["ablation"] == "fed raw pixels"
    assert "ablation" not in contents.lasting_tags(plain, compared)
    assert contents.description(wrong, "accuracy").startswith("`head` on `lite0` (ablation: fed raw pixels): ")
    assert "ablation" not in contents.description(plain, "accuracy")


def test_the_titles_of_the_comparisons_figures_are_marked():
    assert leaderboard.title("lite0", "head", "fed raw pixels") == "lite0 · head (ablation: fed raw pixels)"
    record = SimpleNamespace(network="lite0", method="head", ablation="fed raw pixels")
    assert comparison.Method.title.fget(SimpleNamespace(record=record)).endswith("(ablation: fed raw pixels)")
