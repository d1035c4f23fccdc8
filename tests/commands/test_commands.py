"""prune, lock, demo and predict: what they remove, say and copy, and above all what they leave alone."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline import __main__ as command_line
from pipeline.audits import outputs
from pipeline.commands import demo, lock, predict, prune, sync, ui
from pipeline.config import params_file
from pipeline.console.errors import BakeoffError
from pipeline.core import artifacts, params
from pipeline.evaluation import leaderboard
from pipeline.evaluation.calibration import calibrators
from pipeline.serving import predictor
from pipeline.stages import track

VALUES = {
    "backbones": ["kept"],
    "classifiers": {"svm": {}},
    "head": {"backbones": ["kept"]},
    "fine_tune": {"backbones": []},
    "scratch": {"networks": ["small"]},
    "explain": {"runs": ["small-scratch"]},
}
DECLARED = ("results/runs/kept-svm", "results/runs/kept-head", "results/runs/small-scratch", "data/backbones/kept")
DECLARED += ("data/features/kept", "results/as_is/kept", "results/explain/small-scratch")
STRAYS = ("results/runs/kept-fine_tune", "results/runs/gone-svm", "data/backbones/gone", "data/features/gone")
STRAYS += ("results/as_is/gone", "results/explain/kept-head")


def arguments(module, *texts: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(texts)


# --- prune ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A directory with params.yaml, and with results of declared and of other items."""
    for name in (*DECLARED, *STRAYS, "data/images/gone", "results/figures"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text(name, encoding="utf-8")
        if name.startswith("results/runs/"):
            (tmp_path / name / "record.json").write_text("{}", encoding="utf-8")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(VALUES), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_prune_removes_exactly_what_params_do_not_declare_and_names_it(project, capsys):
    assert prune.main(arguments(prune)) == 0
    assert not [name for name in STRAYS if (project / name).exists()]
    assert all((project / name / "file").exists() for name in (*DECLARED, "data/images/gone", "results/figures"))
    said = capsys.readouterr().out
    assert [line.split()[1].rstrip(":") for line in said.splitlines()] == sorted(STRAYS)
    assert prune.main(arguments(prune)) == 0
    assert capsys.readouterr().out == ""


def test_prune_leaves_a_persons_notes_and_what_a_stage_is_writing(project):
    for name in ("results/runs/my notes", "results/runs/.kept-head.abc", "data/features/.kept.abc"):
        (project / name).mkdir()
        (project / name / "text").write_text("mine", encoding="utf-8")
    (project / "results/runs/readme.txt").write_text("mine", encoding="utf-8")
    prune.main(arguments(prune))
    assert (project / "results/runs/my notes/text").exists()
    assert (project / "results/runs/readme.txt").exists()
    assert (project / "results/runs/.kept-head.abc").exists()
    assert (project / "data/features/.kept.abc").exists()


def test_prune_with_a_mistyped_name_is_refused_and_removes_nothing(project, values, capsys):
    """The whole command line: params.yaml is checked before anything is removed."""
    (project / "params.yaml").write_text(yaml.safe_dump({**values, "backbones": ["kepd"]}), encoding="utf-8")
    assert command_line.main(["prune"]) == 1
    assert "unknown 'kepd'" in capsys.readouterr().err
    assert all((project / name).exists() for name in (*DECLARED, *STRAYS))


def test_prune_dry_run_names_and_removes_nothing(project, capsys):
    prune.main(arguments(prune, "--dry-run"))
    assert len(capsys.readouterr().out.splitlines()) == len(STRAYS)
    assert all((project / name).exists() for name in STRAYS)


def test_prune_removes_a_link_but_not_what_it_points_to(project, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "precious").write_text("", encoding="utf-8")
    (project / "results/runs/linked").symlink_to(elsewhere)
    (project / "results/runs/dangling").symlink_to(elsewhere / "nothing")
    prune.main(arguments(prune))
    assert (elsewhere / "precious").exists()
    assert not [path for path in (project / "results/runs").iterdir() if path.is_symlink()]


def test_prune_does_not_enter_a_linked_directory_of_items(project, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "precious").write_text("", encoding="utf-8")
    prune.remove(project / "results/as_is")
    (project / "results/as_is").symlink_to(elsewhere)
    prune.main(arguments(prune))
    assert (elsewhere / "precious").exists()


def test_prune_before_the_first_run_has_nothing_to_do(tmp_path):
    assert prune.strays(VALUES, tmp_path) == []


# --- lock ----------------------------------------------------------------------------------------------------------


def lock_text(**contents: str) -> str:
    """Return a dvc.lock that says that every stage wrote its content into NAME.npy."""
    stages = {
        name: {"cmd": name, "outs": [{"path": f"{name}.npy", "hash": "md5", "md5": md5(content)}]}
        for name, content in contents.items()
    }
    return yaml.safe_dump({"schema": "2.0", "stages": stages})


def md5(content: str) -> str:
    return hashlib.md5(content.encode(), usedforsecurity=False).hexdigest()


def run(**contents: str) -> str:
    """Write what stages would write, with dvc.lock, whose text is returned."""
    for name, content in contents.items():
        Path(f"{name}.npy").write_text(content, encoding="utf-8")
    Path("dvc.lock").write_text(lock_text(**contents), encoding="utf-8")
    return lock_text(**contents)


def git(*command: str) -> None:
    identity = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *command], check=True, capture_output=True, env=demo.environment())


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A git and DVC repository that declares the stages a, b, c and two items of a matrix."""
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    analytics = false\n", encoding="utf-8")
    stages = {name: {"cmd": name, "outs": [f"{name}.npy"]} for name in "abcd"}
    matrix = {"m": {"matrix": {"item": ["one", "two"]}, "cmd": "${item.item}", "outs": ["m-${item.item}.npy"]}}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages | matrix}), encoding="utf-8")
    return tmp_path


def commit_lock(text: str) -> None:
    Path("dvc.lock").write_text(text, encoding="utf-8")
    git("add", "dvc.lock")
    git("commit", "-m", "lock")


def test_lock_counts_identical_outputs(repository, capsys):
    commit_lock(run(a="1", b="2"))
    assert lock.main(arguments(lock, "--check")) == 0
    assert capsys.readouterr().out == "2 of 2 outputs identical to the committed lock\n"


def test_lock_names_what_differs_is_new_or_missing(repository, capsys):
    commit_lock(run(a="1", b="2", c="3"))
    Path("c.npy").unlink()
    run(a="1", b="9", d="4")
    assert lock.main(arguments(lock)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "1 of 4 outputs identical to the committed lock:",
        "  different: b.npy (b)",
        "  new: d.npy (d)",
        "  missing: c.npy (c)",
        f"missing: {lock.GET_MISSING}",
    ]
    assert lock.main(arguments(lock, "--check")) == 1


def test_lock_reads_the_bytes_and_tells_an_edit_from_another_result(repository, capsys):
    """Of the same size and time, in the same inode: what `dvc status` looks at."""
    commit_lock(run(a="1", b="2"))
    before = os.stat("a.npy")
    Path("a.npy").write_text("9", encoding="utf-8")
    os.utime("a.npy", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert lock.main(arguments(lock, "--check")) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["1 of 2 outputs identical to the committed lock:", "  edited: a.npy (a)"]
    assert said[2].startswith("edited: not what dvc.lock here says")
    assert said[3].startswith("  rm -rf a.npy && dvc checkout a.npy ")
    assert said[4].startswith("  dvc repro --force --single-item a ")


def test_lock_is_of_what_is_on_disk_also_where_the_lock_here_was_edited(repository, capsys):
    commit_lock(run(a="1"))
    Path("dvc.lock").write_text(lock_text(a="2"), encoding="utf-8")
    assert lock.main(arguments(lock, "--check")) == 1
    assert "  edited: a.npy (a)" in capsys.readouterr().out


def test_lock_names_stages_that_are_no_more_and_does_not_count_them(repository, capsys):
    commit_lock(run(**{"a": "1", "m@one": "2", "m@gone": "3"}))
    assert lock.main(arguments(lock, "--check")) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2 of 2 outputs identical to the committed lock",
        "not counted, because dvc.yaml and params.yaml no longer declare them: m@gone",
    ]
    run(**{"a": "1", "m@one": "2"})
    assert lock.main(arguments(lock, "--check")) == 0
    assert capsys.readouterr().out == "2 of 2 outputs identical to the committed lock\n"


def test_lock_with_a_dvc_yaml_that_cannot_be_read_says_so(repository):
    commit_lock(lock_text(a="1"))
    Path("dvc.yaml").write_text("stages: {a: {cmd: [}", encoding="utf-8")
    with pytest.raises(BakeoffError, match=r"DVC cannot read dvc\.yaml"):
        lock.main(arguments(lock))


def test_lock_compares_with_any_revision(repository, capsys):
    commit_lock(run(a="1"))
    commit_lock(run(a="2"))
    assert lock.main(arguments(lock, "--check")) == 0
    assert lock.main(arguments(lock, "--check", "--revision", "HEAD~1")) == 1
    assert "0 of 1 outputs identical to the lock at HEAD~1" in capsys.readouterr().out


def test_lock_without_a_committed_lock_says_so(repository, capsys):
    run(a="1")
    assert lock.main(arguments(lock)) == 0
    git("commit", "--allow-empty", "-m", "nothing")
    assert lock.main(arguments(lock)) == 0
    assert capsys.readouterr().out == "No dvc.lock at HEAD: nothing to compare 1 outputs with\n" * 2
    Path("a.npy").write_text("edited", encoding="utf-8")
    assert lock.main(arguments(lock, "--check")) == 1
    assert "edited: a.npy (a)" in capsys.readouterr().out


def test_lock_with_a_damaged_lock_says_which(repository):
    commit_lock("stages: [")
    run(a="1")
    with pytest.raises(BakeoffError, match=r"dvc\.lock at HEAD cannot be read"):
        lock.main(arguments(lock))
    Path("dvc.lock").write_text("stages: {a: {outs: [{path: a.npy}]}}", encoding="utf-8")
    with pytest.raises(BakeoffError, match=r"dvc\.lock cannot be read.*git checkout -- dvc\.lock"):
        lock.main(arguments(lock))


def test_lock_refuses_an_unknown_revision_and_a_missing_lock(repository):
    with pytest.raises(BakeoffError, match=r"dvc\.lock is missing"):
        lock.main(arguments(lock))
    commit_lock(lock_text(a="1"))
    with pytest.raises(BakeoffError, match="'nosuch' is no commit"):
        lock.main(arguments(lock, "--revision", "nosuch"))


# --- demo ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """A git clone with tracked, new, ignored and deleted files."""
    directory = tmp_path / "a source"
    (directory / "pipeline").mkdir(parents=True)
    monkeypatch.chdir(directory)
    for name in ("params.yaml", "pipeline/a.py", "deleted", "dvc.lock"):
        Path(name).write_text(name, encoding="utf-8")
    Path(".gitignore").write_text("/.venv/\n/.demo/\n", encoding="utf-8")
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "-m", "first")
    Path("deleted").unlink()
    Path("new ü").write_text("new", encoding="utf-8")
    Path(".venv").mkdir()
    Path(".venv/python").write_text("", encoding="utf-8")
    return directory


def names(directory: Path) -> set[str]:
    files = (path.relative_to(directory) for path in directory.rglob("*") if not path.is_dir())
    return {path.as_posix() for path in files if path.parts[0] != ".git"}


def test_copy_holds_tracked_and_new_files_and_no_ignored_ones(source):
    demo.copy_project(source, source / ".demo", leave_out=("dvc.lock",))
    assert names(source / ".demo") == {".gitignore", "params.yaml", "pipeline/a.py", "new ü"}


def test_copying_again_follows_the_source_and_keeps_the_results_of_the_copy(source):
    copy = source / ".demo"
    demo.copy_project(source, copy, leave_out=("dvc.lock", "results"))
    (copy / "results").mkdir()
    for name in ("dvc.lock", "results/metrics.json"):
        (copy / name).write_text("of the copy", encoding="utf-8")
    demo.commit(copy, "first")
    (source / "pipeline/a.py").rename(source / "pipeline/b.py")
    demo.copy_project(source, copy, leave_out=("dvc.lock", "results"))
    assert "pipeline/b.py" in names(copy) and "pipeline/a.py" not in names(copy)
    assert (copy / "dvc.lock").read_text(encoding="utf-8") == "of the copy"
    assert (copy / "results/metrics.json").exists()


def test_copying_what_is_no_git_clone_is_refused(tmp_path):
    with pytest.raises(BakeoffError, match="no git clone"):
        demo.copy_project(tmp_path, tmp_path / "copy")


def test_overriding_keeps_comments_and_every_other_value(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("seed: 0 # the seed\nhead: # block\n  epochs: 6\n  rate: 0.003\nlist: [a, b]\n", encoding="utf-8")
    params_file.override(path, {"head.epochs": 2, "list": []})
    assert params.load(path) == {"seed": 0, "head": {"epochs": 2, "rate": 0.003}, "list": []}
    assert "# the seed" in path.read_text(encoding="utf-8")
    with pytest.raises(params.ParamsError, match="did you mean 'epochs'"):
        params_file.override(path, {"head.epoch": 2})


def test_demo_parameters_are_valid_and_declare_three_methods(root, tmp_path):
    from pipeline.config import schema

    path = tmp_path / "params.yaml"
    path.write_bytes((root / "params.yaml").read_bytes())
    params_file.override(path, demo.OVERRIDES)
    values = params.load(path)
    schema.check(values)
    assert [run.method for run in params.declared_runs(values)] == ["logistic_regression", "head", "scratch"]


def test_a_copy_has_a_store_and_a_repository_of_its_own(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "GIT_DIR"):
        monkeypatch.setenv(name, "somewhere")
        assert name not in demo.environment()


# --- predict -------------------------------------------------------------------------------------------------------


class Stub:
    """A predictor whose model says the same of every image."""

    classes = ("cat", "dog")
    raw = np.array([[0.9, 0.1]], dtype=np.float32)

    def __init__(self, calibrator):
        self.calibrator = calibrator

    def probabilities(self, files):
        found = np.repeat(self.raw, len(files), axis=0)
        return calibrators.from_description(self.calibrator).apply(found) if self.calibrator else found


@pytest.fixture
def calibrated(tmp_path, monkeypatch) -> Path:
    """A project whose comparison calibrated its only run by temperature 2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predictor, "load", lambda run, store, calibrator: Stub(calibrator))
    run = artifacts.RUNS / "lite-svm"
    half = np.full((1, 3, 2), 0.5, np.float32)
    artifacts.write_predictions(run / "predictions.npz", artifacts.Predictions(half, half[0]))
    artifacts.write_text(run / "record.json", "{}")
    artifacts.write_json(artifacts.LEADERBOARD, [{"run": "lite-svm", "champion": True}])
    fitted = {
        "calibrator": {"kind": "temperature", "temperature": 2.0},
        "predictions": artifacts.sha256_file(run / "predictions.npz"),
    }
    artifacts.write_json(artifacts.CALIBRATION, {"kind": "temperature", "runs": {"lite-svm": fitted}})
    (tmp_path / "photo.jpg").write_bytes(b"")
    return tmp_path


def test_predict_calibrates_where_the_comparison_did_and_says_so(calibrated, capsys):
    assert predict.main(arguments(predict, "photo.jpg", "--format", "json")) == 0
    said = capsys.readouterr()
    (row,) = json.loads(said.out)
    assert row["calibration"] == "temperature"
    # The odds of 9 to 1 become their square root.
    assert [entry["probability"] for entry in row["top"]] == pytest.approx([0.75, 0.25])
    assert "calibrated on validation (temperature 2); --uncalibrated" in said.err
    predict.main(arguments(predict, "photo.jpg", "--format", "csv"))
    header, *rows = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert header == ["path", "rank", "label", "probability", "calibration"]
    assert [(row[1], row[2], row[4]) for row in rows] == [("1", "cat", "temperature"), ("2", "dog", "temperature")]


def test_predictions_of_an_ablation_say_so_in_every_row(calibrated, capsys):
    artifacts.write_json(artifacts.RUNS / "lite-svm" / "record.json", {"ablation": "fed pixels / 255"})
    assert predict.main(arguments(predict, "photo.jpg", "--format", "json")) == 0
    said = capsys.readouterr()
    (row,) = json.loads(said.out)
    assert (row["calibration"], row["ablation"]) == ("temperature", "fed pixels / 255")
    assert "lite-svm is an ablation: its network is fed pixels / 255" in said.err
    predict.main(arguments(predict, "photo.jpg", "--format", "csv", "--uncalibrated"))
    header, *rows = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert header == ["path", "rank", "label", "probability", "ablation"]
    assert {row[4] for row in rows} == {"fed pixels / 255"}


@pytest.mark.parametrize("why", ["asked for", "not calibrated", "compared by an older version"])
def test_predict_gives_the_models_own_numbers(calibrated, capsys, why):
    if why == "not calibrated":
        artifacts.write_json(artifacts.CALIBRATION, {"kind": None, "runs": {}})
    if why == "compared by an older version":
        artifacts.CALIBRATION.unlink()
    extra = ["--uncalibrated"] if why == "asked for" else []
    assert predict.main(arguments(predict, "photo.jpg", "--format", "json", *extra)) == 0
    said = capsys.readouterr()
    (row,) = json.loads(said.out)
    assert row.keys() == {"path", "label", "top"}
    assert [np.float32(entry["probability"]) for entry in row["top"]] == Stub.raw[0].tolist()
    assert "calibrated" not in said.err


def test_predict_refuses_a_calibrator_of_another_training(calibrated):
    half = np.full((1, 4, 2), 0.5, np.float32)
    artifacts.write_predictions(artifacts.RUNS / "lite-svm/predictions.npz", artifacts.Predictions(half, half[0]))
    with pytest.raises(BakeoffError, match="calibrates other predictions"):
        predict.main(arguments(predict, "photo.jpg"))
    assert predict.main(arguments(predict, "photo.jpg", "--uncalibrated")) == 0


def write_lock_of(*paths: Path) -> None:
    outs = [
        {"path": path.as_posix(), "hash": "md5", "md5": dict(outputs.digests([path.as_posix()]))[path.as_posix()]}
        for path in paths
    ]
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"made@it": {"cmd": "x", "outs": outs}}}), encoding="utf-8")


@pytest.mark.parametrize("how", ["champion", "by name", "by path", "member"])
def test_predict_loads_no_run_that_is_not_the_one_of_the_lock(calibrated, monkeypatch, capsys, how):
    run = artifacts.RUNS / "lite-svm"
    members = [{"run": "lite-svm", "weight": 1.0}]
    artifacts.write_json(leaderboard.DETAILS, {"ensemble": {"members": members}})
    artifacts.write_text(run / "model.npz", "weights")
    options = {
        "champion": [],
        "by name": ["--run", "lite-svm"],
        "by path": ["--run", str(calibrated / run)],
        "member": ["--ensemble"],
    }[how]
    monkeypatch.setattr(predictor, "load", lambda run, store, calibrator=None: Stub(calibrator))
    write_lock_of(run, artifacts.LEADERBOARD, artifacts.CALIBRATION, leaderboard.DETAILS)
    assert predict.main(arguments(predict, "photo.jpg", *options)) == 0
    replace_text(run / "model.npz", "weightz")
    monkeypatch.delattr(predictor, "load")
    with pytest.raises(
        BakeoffError, match=r"runs/lite-svm is not what dvc\.lock says.*\nrm -rf results/runs/lite-svm &&"
    ):
        predict.main(arguments(predict, "photo.jpg", *options))


def replace_text(path: Path, text: str) -> None:
    before = path.stat()
    path.write_text(text, encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("path", [artifacts.LEADERBOARD, artifacts.CALIBRATION])
def test_predict_takes_no_choice_and_no_calibrator_that_is_not_the_one_of_the_lock(calibrated, monkeypatch, path):
    write_lock_of(path)
    text = path.read_text(encoding="utf-8")
    replace_text(path, text.replace("true", "1").replace("2.0", "9.0"))
    monkeypatch.delattr(predictor, "load")
    with pytest.raises(BakeoffError, match=f"^{path} is not what dvc.lock says"):
        predict.main(arguments(predict, "photo.jpg"))


def test_sync_and_ui_log_no_run_that_is_not_the_one_of_the_lock(project, monkeypatch):
    monkeypatch.setattr(ui.signal, "signal", lambda *_: None)
    monkeypatch.delattr(track, "collect")
    run, network = artifacts.RUNS / "kept-head", artifacts.BACKBONES / "kept"
    for changed in (run, network):
        write_lock_of(run, network)
        (changed / "file").write_text("changed", encoding="utf-8")
        with pytest.raises(BakeoffError, match=f"^{changed} is not what dvc.lock says"):
            sync.main(arguments(sync))
        with pytest.raises(BakeoffError, match=f"^{changed} is not what dvc.lock says"):
            ui.main(arguments(ui))
    with pytest.raises(AttributeError, match="collect"):
        write_lock_of(run, network)
        sync.main(arguments(sync))


def test_a_run_with_a_damaged_or_missing_file_is_an_error_that_names_it(tmp_path):
    """Given by another path, or of a served model, it has no lock to be compared with."""
    record = artifacts.Record(
        stage="sweep",
        network="lite",
        method="linear_svm",
        classes=["a", "b"],
        parameters={"compute.threads": 1},
        inputs={},
        candidates=[artifacts.Candidate(name="one", parameters={})],
        selected=0,
        cost=artifacts.Cost(trainable_parameters=1, total_parameters=1, model_bytes=1, multiply_adds=1),
    )
    artifacts.write_record(tmp_path / "record.json", record)
    (tmp_path / "features.json").write_text('{"features": {}}', encoding="utf-8")
    with pytest.raises(BakeoffError, match=r"features\.json is damaged"):
        predictor.load(tmp_path, tmp_path)
    trained = {"stage": "head", "method": "head", "parameters": {"compute": {"threads": 1}}}
    artifacts.write_record(tmp_path / "record.json", record.model_copy(update=trained))
    with pytest.raises(BakeoffError, match=r"frozen\.json is missing"):
        predictor.load(tmp_path)
    artifacts.write_json(tmp_path / "frozen.json", {"tensors": [], "engine": "openvino"})
    with pytest.raises(BakeoffError, match=r"frozen\.json is damaged"):
        predictor.load(tmp_path)
    artifacts.write_json(tmp_path / "frozen.json", {"tensors": [], "engine": "openvino", "precision": "float32"})
    with pytest.raises(BakeoffError, match=r"network\.json is missing"):
        predictor.load(tmp_path)


def test_predict_averages_the_members_of_the_ensemble_by_their_weights(calibrated, monkeypatch, capsys):
    says = {"lite-svm": [[0.9, 0.1]], "lite-trees": [[0.3, 0.7]]}
    loaded = []

    def load(run, store, calibrator=None):
        loaded.append(run.name)
        stub = Stub(calibrator)
        stub.raw = np.array(says[run.name], dtype=np.float32)
        return stub

    monkeypatch.setattr(predictor, "load", load)
    artifacts.write_json(artifacts.RUNS / "lite-trees" / "record.json", {"ablation": "fed pixels / 255"})
    members = [{"run": "lite-svm", "weight": 0.25}, {"run": "lite-trees", "weight": 0.75}]
    artifacts.write_json(leaderboard.DETAILS, {"ensemble": {"members": members}})
    assert predict.main(arguments(predict, "photo.jpg", "--ensemble", "--format", "json")) == 0
    said = capsys.readouterr()
    (row,) = json.loads(said.out)
    # Calibration was fitted for each run alone; what was picked and weighted were the models' own probabilities.
    assert {one["label"]: one["probability"] for one in row["top"]} == pytest.approx({"cat": 0.45, "dog": 0.55})
    assert (row["label"], row["ablation"], row.get("calibration")) == ("dog", "fed pixels / 255", None)
    assert "ensemble of 0.25 lite-svm, 0.75 lite-trees" in said.err
    assert loaded == ["lite-svm", "lite-trees"]


@pytest.mark.parametrize("ensemble", [{}, {"ensemble": None}])
def test_predict_says_how_to_get_an_ensemble(calibrated, ensemble):
    artifacts.write_json(leaderboard.DETAILS, ensemble)
    with pytest.raises(BakeoffError, match=r"no ensemble: set compare\.ensemble in params\.yaml"):
        predict.main(arguments(predict, "photo.jpg", "--ensemble"))


def test_predict_finds_every_format_in_a_folder_and_nothing_else(tmp_path):
    from PIL import Image

    for name in ("a.jpg", "b.PNG", "deep/c.webp", "d.avif", "e.jp2", "f.ppm", "g.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    found = predict.find_images([str(tmp_path)])
    assert [path.name for path in found] == ["a.jpg", "b.PNG", "d.avif", "c.webp", "e.jp2", "f.ppm", "g.tif"]
