"""Every planted fault is found with its cause, on a small project whose stages take no time."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline import tracking
from pipeline.audits.review import causes, clones, locks, replay, report, verdicts
from pipeline.commands import review as review_command
from pipeline.core import provenance, run_identity
from pipeline.tracking import reviews
from tests import reviewed
from tests.reviewed import MANIFEST, RUN, commit, edit, forge, git, kinds, repro, verdicts_of


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return reviewed.make(tmp_path_factory.mktemp("made") / "project")


@pytest.fixture
def project(made, tmp_path, monkeypatch) -> Path:
    """A copy of the project, with its results and its DVC cache; temporary places lie beside it."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return reviewed.copy(made, tmp_path / "project")


# --- a project that is as it says ----------------------------------------------------------------------------------


def test_an_honest_project_is_identical_and_nothing_of_it_changes(project):
    before = git(project, "status", "--porcelain"), locks.digest(project / RUN)
    found = reviewed.review(project)
    assert found.verdict == verdicts.IDENTICAL
    assert set(verdicts_of(found).values()) == {verdicts.IDENTICAL}
    assert len(found.outputs) == 8
    assert {metric.verdict for metric in found.metrics} == {verdicts.IDENTICAL}
    assert found.findings == found.causes == ()
    assert list(found.records) == ["net-svm"]
    assert (git(project, "status", "--porcelain"), locks.digest(project / RUN)) == before
    assert replay.known_durations(project).keys() == {"dataset", "split", "sweep", "compare"}


def test_claimed_digests_are_enough_where_everything_is_identical(project):
    """A reviewer with a clone and nothing else: neither results nor cache."""
    alone = project.with_name("alone")
    git(project, "clone", "--quiet", str(project), str(alone))
    found = reviewed.review(alone)
    assert found.verdict == verdicts.IDENTICAL
    assert found.not_recomputed == ()


def test_an_edit_that_changes_no_output_is_found_and_does_not_diverge(project):
    with (project / "pipeline/sweep.py").open("a", encoding="utf-8") as file:
        file.write("# nothing\n")
    commit(project)
    found = reviewed.review(project)
    assert found.verdict == verdicts.IDENTICAL
    assert [(one.kind, one.stage) for one in found.findings] == [(causes.CODE, "sweep")]
    partial = reviewed.review(project, stages=("compare",))
    assert partial.verdict == verdicts.DIVERGED, "the sweep was not replayed, so nobody knows"


# --- planted faults ------------------------------------------------------------------------------------------------


def test_a_changed_label_without_a_re_run_is_data(project):
    edit(project / "data/labels.txt", "41.png good", "41.png bad")
    commit(project)
    found = reviewed.review(project)
    assert found.verdict == verdicts.DIVERGED
    assert kinds(found) == {(causes.DATA, "dataset")}
    assert "data/labels.txt changed after dvc.lock was written" in found.causes[0].text


def test_a_changed_label_in_a_table_that_a_stage_wrote_is_data(project):
    forge(project, MANIFEST, "test/good/41.png,good", "test/good/41.png,bad")
    found = reviewed.review(project)
    assert kinds(found) == {(causes.DATA, "split")}
    assert "label good, claimed bad" in found.causes[0].text


def test_a_changed_param_with_an_unchanged_lock_is_params(project):
    edit(project / "params.yaml", "seed: 0", "seed: 1")
    commit(project)
    found = reviewed.review(project)
    assert found.verdict == verdicts.DIVERGED
    assert kinds(found) == {(causes.PARAMS, "sweep")}
    assert found.causes[0].text == "seed is 1 in params.yaml and 0 in dvc.lock"
    assert {(one.kind, one.stage) for one in found.findings} == {(causes.PARAMS, "split"), (causes.PARAMS, "sweep")}


def test_an_edited_stage_without_a_re_run_is_code(project):
    edit(project / "pipeline/sweep.py", "0.5 * labels", "0.1 * labels")
    commit(project)
    found = reviewed.review(project)
    assert kinds(found) == {(causes.CODE, "sweep")}
    assert "pipeline/sweep.py changed" in found.causes[0].text
    assert verdicts_of(found)[MANIFEST] == verdicts.IDENTICAL
    assert verdicts_of(found)[RUN] == verdicts_of(found)["results/metrics.json"] == verdicts.DIVERGED


def test_a_seed_from_the_clock_is_non_determinism(project):
    edit(project / "pipeline/sweep.py", "PCG64(seed)", "PCG64(__import__('time').time_ns())")
    repro(project)
    found = reviewed.review(project)
    assert found.findings == (), "the lock belongs to the code: only running it twice tells"
    assert kinds(found) == {(causes.NOT_DETERMINISTIC, "sweep")}


def test_a_seed_from_the_clock_is_not_excused_by_an_edit_of_another_stage_that_changed_nothing(project):
    edit(project / "pipeline/sweep.py", "PCG64(seed)", "PCG64(__import__('time').time_ns())")
    repro(project)
    with (project / "pipeline/catalog.py").open("a", encoding="utf-8") as file:
        file.write("# nothing\n")
    commit(project)
    found = reviewed.review(project)
    assert {(one.kind, one.stage) for one in found.findings} == {(causes.CODE, "dataset")}
    assert kinds(found) == {(causes.NOT_DETERMINISTIC, "sweep")}


def last_digits(project: Path, noise: str) -> None:
    """Give the sweep predictions that differ a little at every run, and commit what it says now.

    Never 0 or 1: the log loss of a single image would be as large as one likes.
    """
    noisy = f"    good = numpy.clip(good + {noise}, 0.01, 0.99)\n    good += "
    edit(project / "pipeline/sweep.py", "    good += ", noisy)
    repro(project)


# Without a seed it takes one from the system.
CLOCK = "numpy.float32(numpy.random.default_rng().random() * 5e-7)"


def test_a_seed_from_the_clock_is_told_even_if_nothing_diverged(project):
    last_digits(project, CLOCK)
    found = reviewed.review(project)
    assert verdicts_of(found)[RUN] == verdicts.CLOSE
    assert found.verdict == verdicts.CLOSE
    assert kinds(found) == {(causes.NOT_DETERMINISTIC, "sweep")}
    assert "non-determinism (sweep)" in report.headline(found)


def test_another_champion_has_a_cause_though_every_output_is_reproduced(project, monkeypatch):
    repro(project, OTHER_PACKAGE="1e-7")
    champion = verdicts.Metric("champion", "run", "a", "b", verdicts.DIVERGED)
    monkeypatch.setattr(verdicts, "metrics_of", lambda *sides, **more: [champion])
    found = reviewed.review(project)
    assert verdicts_of(found)[RUN] == verdicts.CLOSE
    assert found.verdict == verdicts.DIVERGED
    assert kinds(found) == {(causes.UNEXPLAINED, "sweep")}


@pytest.mark.parametrize(
    ("before", "after"),
    [('"rank": 1', '"rank": 2'), ('"p_holm": 0.5', '"p_holm": 0.001'), ('"multiply_adds": 1', '"multiply_adds": 0')],
)
def test_a_table_edited_by_hand_is_fabricated_though_the_runs_that_it_is_of_differ_in_last_digits(
    project, before, after
):
    """What the stage makes of the claimed runs is not what is claimed, whatever the replayed runs are."""
    last_digits(project, CLOCK)
    forge(project, "results/leaderboard.json", before, after)
    found = reviewed.review(project)
    assert verdicts_of(found)[RUN] == verdicts.CLOSE
    assert verdicts_of(found)["results/leaderboard.json"] == verdicts.DIVERGED
    assert verdicts_of(found)["results/metrics.json"] in (verdicts.CLOSE, verdicts.IDENTICAL)
    assert (causes.FABRICATED, "compare") in kinds(found)


def test_what_is_made_of_equivalent_runs_is_judged_by_making_it_of_the_claimed_ones(project):
    """All the numbers of the table move with the runs; it is reproduced as well as they are."""
    last_digits(project, "numpy.random.default_rng().normal(0, 0.1, len(labels)).astype('float32')")
    generous = reviewed.JUDGED_BY.equivalence.model_copy(update={"margin": 0.9, "loss_margin": 0.9})
    found = reviewed.review(project, params=reviewed.JUDGED_BY.model_copy(update={"equivalence": generous}))
    assert verdicts_of(found)[RUN] == verdicts.EQUIVALENT
    (table,) = [one for one in found.outputs if one.path == "results/leaderboard.json"]
    assert table.verdict in (verdicts.EQUIVALENT, verdicts.IDENTICAL)
    if table.verdict == verdicts.EQUIVALENT:
        assert table.basis == verdicts.REMADE
        assert table.notes[0] == "of the claimed runs: identical"


def test_another_package_version_is_environment(project):
    repro(project, OTHER_PACKAGE="0.2")
    (project / "requirements.lock").write_text("numpy==1.99.0\n", encoding="utf-8")
    commit(project)
    found = reviewed.review(project)
    assert kinds(found) == {(causes.ENVIRONMENT, "sweep")}
    assert "requirements.lock wants 1.99.0" in found.causes[0].text


def test_a_package_that_no_stage_imports_excuses_nothing(project):
    forge(project, "results/leaderboard.json", '"p_holm": 0.5', '"p_holm": 0.001')
    (project / "requirements.lock").write_text("pytest==1.0\n", encoding="utf-8")
    commit(project)
    found = reviewed.review(project)
    assert found.environment_notes, "it is told all the same"
    assert kinds(found) == {(causes.FABRICATED, "compare")}


def test_metrics_that_the_claimed_predictions_do_not_give_are_fabricated_whatever_packages_differ(project):
    value = reviewed.leaderboard(project)[0]["test"]["accuracy"]["value"]
    forge(project, "results/leaderboard.json", f"{value}", "0.99")
    (project / "requirements.lock").write_text("numpy==1.99.0\n", encoding="utf-8")
    commit(project)
    assert kinds(reviewed.review(project)) == {(causes.FABRICATED, "compare")}


def test_other_predictions_of_other_packages_do_not_make_the_comparison_fabricated(project):
    """Nobody wrote down what the claimant had: the sweep is unexplained, and the comparison is what follows from it."""
    repro(project, OTHER_PACKAGE="0.2")
    assert kinds(reviewed.review(project)) == {(causes.UNEXPLAINED, "sweep")}


def test_a_missing_package_is_environment_and_no_other_data(project):
    edit(project / "pipeline/catalog.py", "import csv", "import nowhere_to_be_found, csv")
    repro_claims = yaml.safe_load((project / "dvc.lock").read_text(encoding="utf-8"))
    for entry in repro_claims["stages"]["dataset"]["deps"]:
        entry["md5"] = locks.digest(project / entry["path"])
    (project / "dvc.lock").write_text(yaml.safe_dump(repro_claims), encoding="utf-8")
    commit(project)
    assert kinds(reviewed.review(project)) == {(causes.ENVIRONMENT, "dataset")}


def test_without_the_claimed_bytes_the_report_says_so_and_accuses_nobody(project):
    """A reviewer with a clone and nothing else, of a commit with a forged label."""
    forge(project, MANIFEST, "test/good/41.png,good", "test/good/41.png,bad")
    alone = project.with_name("alone")
    git(project, "clone", "--quiet", str(project), str(alone))
    found = reviewed.review(alone)
    assert kinds(found) == {(causes.UNEXPLAINED, "split")}
    assert "the claimed bytes are not here: `dvc pull`" in found.causes[0].text
    files = report.write(alone / "r", found, params=reviewed.JUDGED_BY, environment={}, date="today")
    text = files[0].read_text(encoding="utf-8")
    assert "the claimed bytes are in neither git" in text
    assert f"- {MANIFEST}" in text


@pytest.mark.slow
def test_the_environment_that_mlflow_saw_is_an_environment_too(project):
    repro(project, OTHER_PACKAGE="0.2")
    asked = []

    def witness(records):
        asked.extend(records)
        return {record: [{"cpu": "another", "numpy": "2"}] for record in records}

    found = reviewed.review(project, environment={"cpu": "this", "numpy": "2"}, witness=witness)
    assert kinds(found) == {(causes.ENVIRONMENT, "sweep")}
    assert found.causes[0].text == "cpu this here, another where MLflow saw the claim being made"
    assert asked == [digest for digest, _ in found.records.values()]


@pytest.mark.parametrize("thorough", [False, True], ids=["in git alone", "in dvc.lock and the cache, too"])
def test_a_fabricated_metric_is_fabricated(project, thorough):
    value = reviewed.leaderboard(project)[0]["test"]["accuracy"]["value"]
    for path in ("results/leaderboard.json", "results/metrics.json"):
        text = (project / path).read_text(encoding="utf-8")
        (project / path).write_text(text.replace(f"{value}", "0.99"), encoding="utf-8")
    repro(project, execute=False) if thorough else commit(project)
    found = reviewed.review(project)
    assert found.verdict == verdicts.DIVERGED
    assert kinds(found) == {(causes.FABRICATED, "compare")}
    texts = " ".join(one.text for one in found.findings if one.kind == causes.FABRICATED)
    assert f"test accuracy is committed as 0.99, its predictions give {value}" in texts
    assert ("is not what the stage wrote" in texts) is not thorough


def test_a_metric_in_the_summary_alone_is_fabricated_even_if_nothing_is_replayed_that_makes_it(project):
    text = json.loads((project / "results/metrics.json").read_text(encoding="utf-8"))
    text["champion"]["test_accuracy"] = 1.0
    (project / "results/metrics.json").write_text(json.dumps(text), encoding="utf-8")
    commit(project)
    found = reviewed.review(project, stages=("dataset",))
    assert found.verdict == verdicts.DIVERGED
    assert {one.kind for one in found.findings} == {causes.FABRICATED}


def test_one_image_copied_from_test_into_train_is_a_leak(project):
    rows = (project / MANIFEST).read_text(encoding="utf-8").splitlines(keepends=True)
    stolen = next(row for row in rows if row.startswith("test/good/"))
    copied = stolen.replace("test", "train", 1).replace(",test,", ",train,")
    path = copied.partition(",")[0]
    (project / "data/split" / path).write_text(Path(path).name, encoding="utf-8")
    forge(project, MANIFEST, rows[1], rows[1] + copied)
    found = reviewed.review(project)
    assert found.verdict == verdicts.DIVERGED
    assert kinds(found) == {(causes.DATA, "split")}
    leak = next(one for one in found.findings if one.kind == causes.LEAK)
    assert f"{path} has the bytes of {stolen.partition(',')[0]}" in leak.text


def test_a_leak_that_every_replay_repeats_is_no_review_to_sign(project):
    """The raw data hold the image twice, in both parts: everything is identical, and nothing is proven."""
    edit(project / "data/labels.txt", "02.png good", "59.png good")
    repro(project)
    found = reviewed.review(project)
    assert set(verdicts_of(found).values()) == {verdicts.IDENTICAL}
    assert found.verdict == verdicts.DIVERGED
    assert [one.kind for one in found.findings] == [causes.LEAK]
    assert report.headline(found).startswith(
        "REPRODUCED, with images of the test part in train: of 8 outputs 8 identical"
    )


def test_a_leak_of_the_source_is_listed_only(project):
    """As of published data sets whose predefined parts hold an image twice."""
    edit(project / "data/labels.txt", "02.png good", "59.png good")
    edit(project / "pipeline/catalog.py", '"label", "sha256"]', '"label", "sha256", "part"]')
    edit(project / "pipeline/catalog.py", ".hexdigest()]", ".hexdigest(), ['train', 'test'][number >= 40]]")
    edit(project / "pipeline/catalog.py", "for name, label in rows", "for number, (name, label) in enumerate(rows)")
    repro(project)
    found = reviewed.review(project)
    assert found.verdict == verdicts.IDENTICAL
    assert [one.kind for one in found.findings] == [causes.KNOWN_LEAK]
    # Another one, that the source has in one part alone.
    rows = (project / MANIFEST).read_text(encoding="utf-8").splitlines(keepends=True)
    stolen = next(row for row in rows if row.startswith("test/bad/"))
    forge(project, MANIFEST, rows[1], rows[1] + stolen.replace("test", "train", 1).replace(",test,", ",train,"))
    found = reviewed.review(project)
    assert {one.kind for one in found.findings} == {causes.KNOWN_LEAK, causes.LEAK}


def test_an_output_edited_by_hand_is_not_taken_for_a_result(project):
    """Neither data, params, code nor packages explain it, and MLflow saw the claim being made right here."""
    forge(project, f"{RUN}/record.json", '"multiply_adds": 1', '"multiply_adds": 2')
    found = reviewed.review(project, witness=lambda records: {record: [{}] for record in records})
    assert verdicts_of(found)[RUN] == verdicts.DIVERGED, "though the predictions are the claimed ones"
    assert kinds(found) == {(causes.FABRICATED, "sweep")}
    assert kinds(reviewed.review(project)) == {(causes.UNEXPLAINED, "sweep")}, "nobody saw it"


def test_a_stage_that_refuses_the_data_is_data(project):
    refusal = "import sys\nsys.exit('error: not the images that were asked for')\n"
    edit(project / "pipeline/catalog.py", "rows = ", f"{refusal}rows = ")
    commit(project)
    found = reviewed.review(project)
    assert ("data", "dataset") in kinds(found)
    assert "not the images that were asked for" in " ".join(one.text for one in found.causes)
    assert {one.basis for one in found.outputs} == {"execution"}
    assert "not replayed: dataset failed" in found.outputs[-1].notes


# --- parts of a review ---------------------------------------------------------------------------------------------


def test_stages_take_what_they_read_as_it_is_claimed(project):
    found = reviewed.review(project, stages=("compare",))
    assert [one.stage for one in found.executed] == ["compare"]
    assert found.verdict == verdicts.IDENTICAL
    assert found.left_out.keys() == {"dataset", "split", "sweep"}
    assert report.headline(found).endswith("3 stages were not replayed")


def test_stages_whose_inputs_nobody_has_are_refused_before_anything_runs(project, tmp_path):
    alone = tmp_path / "alone"
    git(project, "clone", "--quiet", str(project), str(alone))
    with pytest.raises(locks.ReviewError, match=r"compare reads data/split/manifest.csv, .*neither in the DVC cache"):
        reviewed.review(alone, stages=("compare",))
    with pytest.raises(locks.ReviewError, match=r"Unknown stage 'swep'. Choose from: compare, dataset, split, sweep"):
        reviewed.review(project, stages=("swep",))


@pytest.mark.slow
def test_claimed_bytes_come_from_the_remote_if_neither_cache_nor_workspace_has_them(project, tmp_path):
    def dvc(place: Path, *command: str) -> None:
        subprocess.run(["dvc", *command], cwd=place, env=clones.environment(), check=True, capture_output=True)

    dvc(project, "remote", "add", "--default", "storage", "../storage")
    dvc(project, "push")
    commit(project)
    alone = tmp_path / "alone"
    git(project, "clone", "--quiet", str(project), str(alone))
    found = reviewed.review(alone, stages=("compare",))
    assert found.verdict == verdicts.IDENTICAL
    assert not (alone / ".dvc/cache").exists(), "what was fetched was for the review alone"


@pytest.mark.slow
def test_against_judges_a_replay_by_the_claims_of_another_revision(project):
    edit(project / "params.yaml", "seed: 0", "seed: 3")
    repro(project)
    assert reviewed.review(project).verdict == verdicts.IDENTICAL
    found = reviewed.review(project, against="HEAD~1")
    assert found.verdict == verdicts.DIVERGED
    assert kinds(found) == {(causes.PARAMS, "sweep")}
    assert found.against == clones.commit_of(project, "HEAD~1")


def test_other_data_than_claimed_stops_before_anything_runs(project):
    """The folder of images is in neither git nor DVC, and is another one today."""
    git(project, "rm", "--cached", "--quiet", "data/labels.txt")
    with (project / ".gitignore").open("a", encoding="utf-8") as file:
        file.write("/data/labels.txt\n")
    commit(project)
    assert reviewed.review(project, stages=("dataset",)).verdict == verdicts.IDENTICAL
    edit(project / "data/labels.txt", "41.png good", "41.png bad")
    with pytest.raises(locks.ReviewError, match=r"data/labels.txt must have the digest \w+; the workspace has \w+"):
        reviewed.review(project)


def test_a_branch_that_only_the_remote_has_is_found_as_git_checkout_finds_it(project):
    git(project, "checkout", "--quiet", "-b", "topic/theirs")
    edit(project / "params.yaml", "seed: 0", "seed: 1")
    commit(project)
    theirs = git(project, "rev-parse", "HEAD").strip()
    git(project, "checkout", "--quiet", "-")
    alone = project.with_name("alone")
    git(project, "clone", "--quiet", str(project), str(alone))
    assert clones.commit_of(alone, "topic/theirs") == theirs
    assert clones.commit_of(alone, "HEAD") == git(project, "rev-parse", "HEAD").strip() != theirs
    git(alone, "remote", "add", "second", str(project))
    git(alone, "fetch", "--quiet", "second")
    assert clones.commit_of(alone, "topic/theirs") == theirs, "two remotes, one commit"
    git(alone, "update-ref", "refs/remotes/second/topic/theirs", "HEAD")
    with pytest.raises(locks.ReviewError, match="'topic/theirs' names other commits in several remotes"):
        clones.commit_of(alone, "topic/theirs")


def test_a_revision_without_a_lock_or_no_revision_at_all_is_a_clear_error(project):
    git(project, "rm", "--quiet", "dvc.lock")
    commit(project)
    with pytest.raises(locks.ReviewError, match=r"no dvc\.lock at that revision"):
        reviewed.review(project)
    with pytest.raises(locks.ReviewError, match="'nowhere' is no commit"):
        reviewed.review(project, revision="nowhere")


# --- the command ---------------------------------------------------------------------------------------------------


def command(project: Path, *texts: str) -> int:
    parser = argparse.ArgumentParser()
    review_command.add_arguments(parser)
    return review_command.main(parser.parse_args(texts))


@pytest.fixture
def here(project, monkeypatch) -> Path:
    """The project as the working directory, with the block of params.yaml that says how to judge; no MLflow."""
    values = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    (project / "params.yaml").write_text(yaml.safe_dump(values | {"review": reviewed.JUDGED_BY.model_dump()}), "utf-8")
    commit(project)
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return project


def test_the_command_writes_a_review_to_sign_and_does_not_overwrite_a_signed_one(here, capsys):
    assert command(here) == 0
    name = clones.commit_of(here, "HEAD")[:12]
    place = here / "results/review" / name
    text = (place / "review.md").read_text(encoding="utf-8")
    assert text.startswith("# REPRODUCED, identical: of 8 outputs 8 identical")
    assert text.index("Signature") < text.index("## Metrics")
    content = json.loads((place / "review.json").read_text(encoding="utf-8"))
    assert content["verdict"] == "identical"
    assert provenance.environment()["numpy"] in json.dumps(content["environment"])
    page = (place / "review.html").read_text(encoding="utf-8")
    assert "REPRODUCED, identical" in page
    assert "http" not in page
    assert str(here) not in text + page + json.dumps(content)
    assert "no run of these records" in capsys.readouterr().out
    assert not (here / ".mlflow").exists(), "asking MLflow creates no store"
    (place / "review.md").write_text(text.replace(report.UNSIGNED, "A. Reviewer", 1), encoding="utf-8")
    with pytest.raises(locks.ReviewError, match="somebody signed"):
        command(here)
    assert command(here, "--stages", "dataset") == command(here, "--stages", "split", "dataset") == 0
    assert command(here, "--quick") == 0
    found = {place.name.removeprefix(name) for place in (here / "results/review").iterdir()}
    assert found == {"", "-dataset", "-dataset-split", "-quick"}
    assert content["environment"]["git"]["commit"] == clones.commit_of(here, "HEAD"), "of the stages, not of the review"


@pytest.mark.filterwarnings("ignore")  # MLflow's database warns of its own old habits
def test_the_command_attaches_its_review_to_the_runs_of_the_records(here, capsys, monkeypatch, tmp_path):
    from pipeline.tracking import store

    place = tracking.Store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    dataset = tracking.dataset_name({"source": "folder", "path": "data/labels.txt"})
    connection = store.connect(place, tracking.experiment_name(dataset))
    record = run_identity.record_digest(here / reviewed.RUN)
    tags = {"level": "method", "stage": "sweep", "network": "net", "method": "svm"}
    runs = [
        connection.client.create_run(connection.experiment, tags=tags | {"record": digest})
        for digest in (record, "f" * 64)
    ]
    assert command(here) == 0
    assert "MLflow: attached to 1 runs" in capsys.readouterr().out
    commit_id = clones.commit_of(here, "HEAD")
    shown, other = (connection.client.get_run(run.info.run_id).data.tags for run in runs)
    assert (shown["review.verdict"], shown["review.commit"]) == ("identical", commit_id)
    assert "review.verdict" not in other
    files = connection.client.list_artifacts(runs[0].info.run_id, f"review/{commit_id[:12]}")
    assert {Path(file.path).name for file in files} >= {"review.md", "review.json", "review.html"}


def test_an_interrupted_review_leaves_no_process_and_no_place(here, tmp_path):
    edit(here / "pipeline/split.py", "import csv, os", "import csv, os, subprocess\nsubprocess.run(['sleep', '987'])")
    commit(here)
    (tmp_path / "aside").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "pipeline", "review"],
        cwd=here,
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(provenance.ROOT), "TMPDIR": str(tmp_path / "aside")},
    )
    for line in process.stderr:
        if line.startswith("[2/4] split"):
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in said
    assert list((tmp_path / "aside").iterdir()) == []
    assert not (here / "results/review").exists()
    assert replay.known_durations(here).keys() == {"dataset"}
    import psutil

    assert not [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", "987"]]


@pytest.mark.filterwarnings("ignore")  # MLflow's database warns of its own old habits
def test_a_review_is_attached_to_the_runs_of_its_records_and_to_no_other(tmp_path, monkeypatch):
    place = tracking.Store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert reviews.attach(place, "d", {"abc": {}}, [], name="r") == 0
    assert not (tmp_path / "mlflow.db").exists()
    from pipeline.tracking import store

    connection = store.connect(place, tracking.experiment_name("d"))
    tags = {"level": "method", "stage": "sweep", "network": "net", "method": "svm", "environment.cpu": "x"}
    tags["environment_witnessed"] = "true"
    runs = [
        connection.client.create_run(connection.experiment, tags=tags | {"record": record}, start_time=1000)
        for record in ("abc", "other")
    ]
    connection.client.set_terminated(runs[0].info.run_id, end_time=5000)
    assert reviews.durations(place, "d")["sweep@net-svm"] == pytest.approx(4)
    assert reviews.environments(place, "d", ["abc"]) == {"abc": [{"cpu": "x"}]}
    file = tmp_path / "review.md"
    file.write_text("# REPRODUCED", encoding="utf-8")
    assert reviews.attach(place, "d", {"abc": {"review.verdict": "identical"}}, [file], name="r") == 1
    shown = [connection.client.get_run(run.info.run_id).data.tags.get("review.verdict") for run in runs]
    assert shown == ["identical", None]
    found = connection.client.list_artifacts(runs[0].info.run_id, "review/r")
    assert [entry.path for entry in found] == ["review/r/review.md"]
