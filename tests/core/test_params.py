"""Bad params.yaml: what the message says."""

from __future__ import annotations

import copy

import pytest

from pipeline.config import params_file, schema
from pipeline.console.errors import BakeoffError
from pipeline.core import artifacts, params
from pipeline.core.params import ParamsError
from pipeline.images import decode
from pipeline.networks import graphs
from pipeline.training import heads

FROM_BLOCK_1 = {"from_layer": "block1_conv", "last_layers": None, "last_blocks": None}


@pytest.fixture
def values(values):
    """The committed params.yaml, to be changed freely."""
    return copy.deepcopy(values)


def put(values: dict, key: str, value) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        values = values[parent]
    values[last] = value


def test_the_committed_params_are_valid(values):
    schema.check(values)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("split.validation", 0.8, r"split\.validation must be less than 0\.5, received 0\.8"),
        ("split.test", "a quarter", r"split\.test must be .*number, received 'a quarter'"),
        ("seed", -1, r"seed must be an integer of at least 0, received -1"),
        ("seed", True, r"seed must be an integer"),
        ("repeats", 0, r"repeats must be an integer of at least 1, received 0"),
        ("repeats", 2.0, r"repeats must be an integer of at least 1, received 2.0"),
        ("compare.calibration", "platt", r"compare.calibration must be 'temperature' or 'isotonic', received 'platt'"),
        ("images.square", "stretch", r"images\.square must be 'crop', 'warp' or 'pad', received 'stretch'"),
        (
            "backbones",
            ["efficientnet_lite9"],
            r"backbones: unknown 'efficientnet_lite9' \(did you mean 'efficientnet_lite2'\?\)",
        ),
        ("backbones", "efficientnet_lite0", r"backbones must be a list of names"),
        ("head.backbones", ["vgg"], r"head\.backbones: unknown 'vgg'.*Choose from: efficientnet_lite0"),
        ("head.epochs", 0, r"head\.epochs must be greater than or equal to 1, received 0"),
        ("fine_tune.unfreeze.from_layer", "block5", r"unfreeze must be exactly one of from_layer, last_layers and"),
        ("fine_tune.unfreeze.last_blocks", 0, r"last_blocks must be an integer of at least 1, all or null, received 0"),
        ("fine_tune.unfreeze.last_blocks", "some", r"at least 1, all or null, received 'some'"),
        ("fine_tune.layer_decay", 0.0, r"fine_tune\.layer_decay must be greater than 0, received 0\.0"),
        ("fine_tune.gradual", {"epochs": 0}, r"gradual\.epochs must be greater than or equal to 1, received 0"),
        ("head.optimizer", {"name": "adm"}, r"optimizer\.name must be 'adam', 'adamw', .*'sgd', received 'adm'"),
        ("head.optimizer", {"momentum": 0.9}, r"params\.yaml: head\.optimizer\.name is missing"),
        ("head.optimizer", {"name": "rmsprop"}, r"params\.yaml: head\.optimizer\.momentum is missing"),
        (
            "head.optimizer",
            {"name": "rmsprop", "momentum": 1.0},
            r"optimizer\.momentum must be less than 1, received 1",
        ),
        ("head.optimizer", {"name": "adam", "nesterov": True}, r"optimizer: unknown key 'nesterov'.*Choose from: name"),
        ("head.reduce_on_plateau", {"factor": 2.0, "patience": 1}, r"plateau\.factor must be less than 1"),
        ("head.pooling", "mean", r"head\.pooling must be 'avg', 'max' or 'flatten', received 'mean'"),
        ("scratch.input_size", 15, r"at least 16 for small_convnet, or null for its own 96, received 15"),
        ("augmentation.test_time_views", -1, r"test_time_views must be greater than or equal to 0, received -1"),
        ("scratch.networks", ["small_convnet", "small_convnet"], r"scratch\.networks names something twice"),
        (
            "explain.runs",
            ["efficientnet_lite0-lightgbm"],
            r"explain\.runs: unknown 'efficientnet_lite0-lightgbm'.*-head",
        ),
        (
            "explain.layers",
            {"vgg": ["conv"]},
            r"explain\.layers: unknown 'vgg'.*Choose from: efficientnet_lite0, small_c",
        ),
        ("explain.layers", {"small_convnet": []}, r"explain\.layers\.small_convnet must be .*at least 1 item"),
        ("explain.images", 0, r"explain\.images must be greater than or equal to 1, received 0"),
        (
            "explain.patterns.input_size",
            16,
            r"explain\.patterns\.input_size must be greater than or equal to 32, received 16",
        ),
        (
            "backbone.preprocess",
            "caffe",
            r"backbone\.preprocess must be 'backbone', 'rescale' or 'none', received 'caffe'",
        ),
        ("backbone.input_size", 31, r"backbone\.input_size must be greater than or equal to 32, received 31"),
        ("backbone.variants", {"vgg16": {"network": "vgg16"}}, r"called otherwise than a network: 'vgg16' is one"),
        ("backbone.variants", {"Lite": {"network": "vgg16"}}, r"variants must be named by lower-case letters"),
        ("backbone.variants", {"lite": {"network": "vgg61"}}, r"variants\.lite\.network must be one of .*vgg16"),
        ("backbone.variants", {"small_convnet": {"network": "vgg16"}}, r"small_convnet is a network of scratch"),
        ("features.layers", [], r"features\.layers must .*at least 1"),
        ("features.layers", ["fc1", "fc1"], r"features must be layers that are named once"),
        ("features.layers", [{"layer": "fc1", "pooling": "mean"}], r"features\.layers\.pooling must be 'avg'"),
        ("features.layers", ["fc1", {"layer": "fc1"}], r"features\.layers\.pooling is missing"),
        ("features.layers", ["fc1", 3], r"features\.layers must be names of layers, or {layer: NAME, pooling: max}"),
        ("features.layers", ["fc1", {"layer": "fc1", "pooling": "avg"}], r"named once, or each time with another pool"),
        ("features", {"layers": None, "pooling": "max"}, r"pooling: avg with layers: null"),
        ("selection.metric", "acuracy", r"selection\.metric must be .*'accuracy'.*received 'acuracy'"),
        ("compute.threads", 1.5, r"compute\.threads must be .*integer.*received 1\.5"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(values, key, value, message):
    put(values, key, value)
    with pytest.raises(ParamsError, match=message):
        schema.check(values)


def test_a_method_that_is_switched_off_cannot_be_explained(values):
    values["fine_tune"]["backbones"] = []
    with pytest.raises(ParamsError, match=r"explain\.runs: unknown 'efficientnet_lite0-fine_tune'"):
        schema.check(values)
    values["explain"]["runs"] = []
    schema.check(values)


def test_a_layer_to_show_is_looked_up_in_the_network_once_it_is_built(values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values["explain"]["layers"] = {"efficientnet_lite0": ["stem_conv", "top_cnv"]}
    schema.check_against_results(values)
    layers = [{"name": name, "module": "keras.layers"} for name in ("pixels", "stem_conv", "top_conv")]
    artifacts.write_json(
        artifacts.BACKBONES / "efficientnet_lite0" / graphs.ARCHITECTURE, {"config": {"layers": layers}}
    )
    with pytest.raises(ParamsError, match=r"explain\.layers\.efficientnet_lite0 must .*'top_cnv'. Nearest: top_conv"):
        schema.check_against_results(values)
    values["explain"]["layers"]["efficientnet_lite0"] = ["top_conv"]
    schema.check_against_results(values)


def test_names_must_be_text(values):
    values["backbones"] = [["efficientnet_lite0"]]
    with pytest.raises(ParamsError, match="backbones must be a list of names"):
        schema.check(values)


def test_what_depends_on_data_and_networks_is_checked_once_they_are_there(values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values["dataset"] |= {"source": "folder", "path": "images"}
    schema.check_against_results(values)
    rows = [
        {"path": f"{split}/{label}/1.png", "label": label, "split": split, "group": "", "stratum": "", "sha256": "0"}
        for split in artifacts.PARTS
        for label in ("cat", "dog")
    ]
    artifacts.write_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS, rows)
    with pytest.raises(BakeoffError, match="positive_class"):
        schema.check_against_results(values)
    values["selection"]["positive_class"] = "dog"
    schema.check_against_results(values)
    spec = graphs.NetworkSpec(
        name="efficientnet_lite0",
        input_size=224,
        feature_layer="a",
        feature_width=1,
        prediction_layer="c",
        map_layer="b",
        preprocess="backbone",
        blocks=[graphs.BlockSpec(name="one", first_layer="d")] * 3,
        weights={},
        cost=graphs.Cost(parameters=1, bytes=1, multiply_adds=1),
    )
    graphs.write_spec(spec, artifacts.BACKBONES / "efficientnet_lite0")
    message = "last_blocks must be at most 3, the blocks of efficientnet_lite0, received 5"
    with pytest.raises(ParamsError, match=message):
        schema.check_against_results(values)
    values["fine_tune"] |= {"gradual": {"epochs": 4}, "epochs": 12}
    values["fine_tune"]["unfreeze"]["last_blocks"] = 3
    schema.check_against_results(values)
    values["fine_tune"]["unfreeze"]["last_blocks"] = "all"
    with pytest.raises(ParamsError, match=r"params\.yaml: fine_tune\.gradual\.epochs: of 4 blocks, .* in epoch 13"):
        schema.check_against_results(values)
    values["fine_tune"]["unfreeze"]["last_blocks"] = 5
    # An older version's spec is no reason to refuse the run that writes it anew.
    (artifacts.BACKBONES / "efficientnet_lite0" / graphs.SPEC).write_text("{}", encoding="utf-8")
    schema.check_against_results(values)


def test_a_stage_may_declare_all_of_a_block_or_the_keys_it_reads(values):
    keys = [f"head.{name}" for name in heads.HeadParams.model_fields]
    alone = params.Params(values, keys)
    above = params.Params({"methods": values}, ["methods"])
    assert alone.block("head", heads.HeadParams).epochs == values["head"]["epochs"]
    images_block = above.block("methods.images", decode.ImageParams)
    assert images_block == params.Params(values, ["images"]).block("images", decode.ImageParams)
    with pytest.raises(ParamsError, match="head.backbones is not among the keys"):
        alone.value("head.backbones")
    with pytest.raises(ParamsError, match=f"{keys[0]} is not among the keys"):
        params.Params(values, keys[1:]).block("head", heads.HeadParams)


def test_the_positive_class_is_checked_against_the_class_folders_before_anything_is_read(values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError, match="must name one of the two classes, received 'dog'. Choose from: def"):
        schema.check_against_results({**values, "selection": {**values["selection"], "positive_class": "dog"}})
    values["dataset"] |= {"source": "folder", "path": "images"}
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        (tmp_path / "images" / label / "1.png").write_bytes(b"")
    (tmp_path / "images" / "empty").mkdir()
    with pytest.raises(ParamsError, match="must name one of the two classes, received 'defective'. Choose from: cat"):
        schema.check_against_results(values)
    values["selection"]["positive_class"] = "dog"
    schema.check_against_results(values)
    (tmp_path / "images" / "empty" / "2.png").write_bytes(b"")
    values["selection"]["positive_class"] = "defective"
    with pytest.raises(ParamsError, match=r"must be null when there are 3 classes \(cat, dog, empty\), received 'def"):
        schema.check_against_results(values)


def test_one_unit_for_more_than_two_classes_is_refused_as_soon_as_the_split_is_there(values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values["dataset"] |= {"source": "folder", "path": "images"}
    values["selection"]["positive_class"] = None
    values["head"]["output"] = "sigmoid"
    rows = [
        {"path": f"{split}/{label}/1.png", "label": label, "split": split, "group": "", "stratum": "", "sha256": "0"}
        for split in artifacts.PARTS
        for label in ("cat", "cow", "dog")
    ]
    artifacts.write_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS, rows)
    message = r"head\.output must be softmax when there are 3 classes \(cat, cow, dog\): .* received 'sigmoid'"
    with pytest.raises(ParamsError, match=message):
        schema.check_against_results(values)
    values["head"]["backbones"], values["fine_tune"]["backbones"] = [], []
    schema.check_against_results(values)


def test_the_split_of_other_images_stops_no_stage_that_makes_the_new_one(values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"path": f"{split}/{label}/1.png", "label": label, "split": split, "group": "", "stratum": "", "sha256": "0"}
        for split in artifacts.PARTS
        for label in ("old", "older")
    ]
    artifacts.write_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS, rows)
    schema.check_against_results(values, split=False)
    with pytest.raises(ParamsError, match="Choose from: old, older"):
        schema.check_against_results(values)


@pytest.fixture
def stored_backbone(tmp_path, monkeypatch) -> graphs.NetworkSpec:
    """The spec of a small network that is stored as the backbone stage stores one, in the working directory."""
    import keras

    monkeypatch.chdir(tmp_path)
    inputs = keras.Input((8, 8, 3), name="pixels")
    outputs = keras.layers.Conv2D(2, 1, name="block1_conv")(inputs)
    outputs = keras.layers.GlobalAveragePooling2D(name="avg_pool")(outputs)
    outputs = keras.layers.Dense(3, name="predictions")(outputs)
    directory = artifacts.BACKBONES / "efficientnet_lite0"
    directory.mkdir(parents=True)
    graphs.save(keras.Model(inputs, outputs), directory)
    spec = graphs.NetworkSpec(
        name="efficientnet_lite0",
        input_size=8,
        feature_layer="avg_pool",
        feature_width=2,
        map_layer="block1_conv",
        preprocess="backbone",
        weights={},
        prediction_layer="predictions",
        blocks=[graphs.BlockSpec(name="one", first_layer="block1_conv")],
        cost=graphs.Cost(parameters=1, bytes=1, multiply_adds=1),
    )
    graphs.write_spec(spec, directory)
    return spec


@pytest.mark.usefixtures("stored_backbone")
def test_a_layer_to_take_features_from_is_looked_for_in_the_stored_network(values):
    values["fine_tune"]["unfreeze"]["last_blocks"] = 1
    values["features"]["layers"] = ["block1_conv", "predictions"]
    schema.check_against_results(values)
    values["features"]["layers"] = ["block1_conv", {"layer": "block1_pool", "pooling": "max"}]
    message = r"features\.layers must be layers of efficientnet_lite0, received 'block1_pool'\. Nearest: .*block1_conv"
    with pytest.raises(ParamsError, match=message + ".*python -m pipeline backbone efficientnet_lite0"):
        schema.check_against_results(values)


@pytest.mark.usefixtures("stored_backbone")
@pytest.mark.parametrize("layer", ["block1_conv2", "avg_pool", "predictions"])
def test_a_layer_to_unfreeze_from_is_looked_for_in_the_stored_network(values, layer):
    values["fine_tune"]["unfreeze"] = dict(FROM_BLOCK_1)
    schema.check_against_results(values)
    values["fine_tune"]["unfreeze"]["from_layer"] = layer
    message = rf"from_layer must be a layer of efficientnet_lite0 up to block1_conv, received '{layer}'.*Nearest: "
    with pytest.raises(ParamsError, match=message + r".*Its blocks start at: block1_conv"):
        schema.check_against_results(values)


def test_a_file_of_weights_must_exist_until_the_network_is_built(values, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    values["backbone"]["weights"] = "weights/lite0.h5"
    message = r"backbone\.weights must be imagenet, random or the path of a file, received 'weights/lite0\.h5'"
    with pytest.raises(ParamsError, match=message):
        schema.check_against_results(values)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/lite0.h5").write_bytes(b"numbers")
    schema.check_against_results(values)
    (tmp_path / "weights/lite0.h5").unlink()
    values["fine_tune"]["unfreeze"] = dict(FROM_BLOCK_1)
    request.getfixturevalue("stored_backbone")
    schema.check_against_results(values)


def test_an_unknown_key_names_its_neighbour(values):
    values["split"]["vaildation"] = 0.2
    with pytest.raises(ParamsError, match=r"split: unknown key 'vaildation' \(did you mean 'validation'\?\)"):
        schema.check(values)


def test_an_unknown_key_deep_inside_names_its_neighbour_too(values):
    values["head"]["early_stopping"]["patients"] = 3
    values["classifiers"]["lightgbm"]["grid"]["num_leavs"] = [3]
    with pytest.raises(ParamsError) as error:
        schema.check(values)
    assert "head.early_stopping: unknown key 'patients' (did you mean 'patience'?)" in str(error.value)
    assert "classifiers.lightgbm.grid: unknown key 'num_leavs' (did you mean 'num_leaves'?)" in str(error.value)


def test_a_number_that_yaml_reads_as_text_is_told_how_to_write_it(values):
    values["head"]["learning_rate"] = "1e-4"
    with pytest.raises(ParamsError, match=r"received '1e-4' \(as text: write 0.0001\)"):
        schema.check(values)


def test_an_unknown_classifier_names_the_choices(values):
    values["classifiers"]["lgbm"] = values["classifiers"].pop("lightgbm")
    with pytest.raises(ParamsError, match=r"classifiers: unknown 'lgbm'.*Choose from: catboost, gradient_boosting, "):
        schema.check(values)


def test_a_missing_key_is_an_error_not_a_default(values):
    del values["augmentation"]["contrast"]
    del values["compare"]
    with pytest.raises(ParamsError) as error:
        schema.check(values)
    assert "augmentation.contrast is missing" in str(error.value)
    assert "compare is missing" in str(error.value)


def test_a_stage_cannot_read_what_it_does_not_declare(values):
    given = params.Params(values, ("seed", "head"))
    assert given.value("seed") == values["seed"]
    assert given.value("head.epochs") == values["head"]["epochs"]
    with pytest.raises(ParamsError, match="split is not among the keys this stage declares"):
        given.value("split")


def test_runs_are_what_is_declared_and_nothing_else(values):
    values["fine_tune"]["backbones"] = []
    values["classifiers"] = {"rbf_svm": values["classifiers"]["rbf_svm"]}
    names = [run.name for run in params.declared_runs(values)]
    assert names == ["efficientnet_lite0-rbf_svm", "efficientnet_lite0-head", "small_convnet-scratch"]


def test_overriding_changes_no_other_line_however_often(root, tmp_path):
    before = (root / params.PARAMS_FILE).read_text(encoding="utf-8")
    file = tmp_path / "params.yaml"
    file.write_text(before, encoding="utf-8")
    for epochs in (7, 8, 30):
        params_file.override(file, {"head.epochs": epochs, "features.layers": ["fc2"] if epochs < 30 else None})
    assert file.read_text(encoding="utf-8") == before


def test_what_names_a_run_that_was_switched_off_is_told_how_to_switch_it_off_too(values):
    values = copy.deepcopy(values)
    values["head"]["backbones"] = values["fine_tune"]["backbones"] = values["scratch"]["networks"] = []
    with pytest.raises(ParamsError, match=r"explain\.runs: unknown '\S+'\. There is nothing .*: set it to \[\]"):
        schema.check(values)
