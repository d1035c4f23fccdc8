"""Looks at the test part, from hand-made locks, and from the history of a small repository."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import tracking
from pipeline.audits.fairness import history, record_pages, test_set_history, test_set_history_study
from pipeline.commands import demo
from pipeline.console.errors import BakeoffError

OUT = "results/metrics.json"
SCORES = {"lite-svm": 0.85, "lite-head": 0.84}


def metrics(**scores: float) -> bytes:
    """Return a metrics.json; the first run is the champion."""
    runs = {name: {"test_accuracy": value, "validation_accuracy": 0.8} for name, value in scores.items()}
    first = next(iter(runs.values()))
    return json.dumps({"champion": {**first, "test_log_loss": 0.3}, **runs}).encode()


def lock(
    published: bytes, *, split: str = "s1", data: str = "d1", code: str = "c1", params: dict[str, Any] | None = None
) -> dict[str, Any]:
    digest = hashlib.md5(published, usedforsecurity=False).hexdigest()
    read = {"params.yaml": {"seed": 0, "selection": {"metric": "accuracy", "positive_class": None}, **(params or {})}}
    return {
        "schema": "2.0",
        "stages": {
            "dataset": {
                "cmd": "",
                "deps": [
                    {"path": "data/elpv.json", "hash": "md5", "md5": data},
                    {"path": "pipeline/data/sources/elpv.py", "hash": "md5", "md5": "x"},
                ],
            },
            "compare": {
                "cmd": "",
                "params": read,
                "deps": [
                    {"path": "data/split/manifest.csv", "hash": "md5", "md5": split},
                    {"path": "pipeline/evaluation/comparison.py", "hash": "md5", "md5": code},
                ],
                "outs": [{"path": OUT, "hash": "md5", "md5": digest}],
            },
        },
    }


def state(published: bytes, **changes: Any) -> test_set_history.State:
    return test_set_history.State(lock(published, **changes), published, "packages")


def history_of(*states: test_set_history.State) -> list[test_set_history.Point]:
    """Return points in a line, one a state."""
    befores = [None, *states[:-1]]
    return [
        test_set_history.Point(after, before, f"{number:040d}", "2024-01-01", f"commit {number}", True)
        for number, (before, after) in enumerate(zip(befores, states, strict=True))
    ]


def test_the_same_scores_again_are_no_further_look():
    first, second = metrics(**SCORES), metrics(**{**SCORES, "lite-head": 0.86})
    found = test_set_history.looks(
        history_of(state(first), state(first, code="c2"), state(second, code="c2"), state(first))
    )
    assert [look.point.subject for look in found] == ["commit 0", "commit 2"]
    assert [look.new for look in found] == [("lite-head", "lite-svm"), ("lite-head",)]
    assert all(look.vouched for look in found)
    assert found[0].champion == "lite-svm"


def test_what_changed_is_counted_from_the_look_before_not_from_the_commit_before():
    first, second = metrics(**SCORES), metrics(**{**SCORES, "lite-svm": 0.9})
    steps = [
        state(first),
        state(first, code="c2"),
        state(first, code="c2", params={"seed": 1}),
        state(second, code="c2", params={"seed": 1, "repeats": 3}),
    ]
    last = test_set_history.looks(history_of(*steps))[-1]
    assert last.changed["params"] == {"repeats": {"after": 3}, "seed": {"before": 0, "after": 1}}
    assert last.changed["code"] == ["pipeline/evaluation/comparison.py"]
    assert (last.changed["data"], last.changed["split"], last.changed["packages"]) == ([], False, False)
    assert test_set_history.looks(history_of(*steps))[0].changed == {}


def test_other_images_another_split_and_nested_keys_are_named():
    first, second = metrics(**SCORES), metrics(**{**SCORES, "lite-svm": 0.9})
    block = {"selection": {"metric": "roc_auc", "positive_class": None}, "head": {"epochs": 3, "optimizer": {"a": 1}}}
    changed = test_set_history.changes(state(first), state(second, data="d2", split="s2", params=block))
    assert changed["data"] == ["data/elpv.json"] and changed["split"] and changed["code"] == []
    assert changed["params"] == {
        "head": {"after": {"epochs": 3, "optimizer": {"a": 1}}},
        "selection.metric": {"before": "accuracy", "after": "roc_auc"},
    }


def test_the_same_scores_on_another_test_part_are_a_look_at_that_one():
    published = metrics(**SCORES)
    found = test_set_history.looks(history_of(state(published), state(published, split="s2")))
    assert [look.test_part for look in found] == ["s1", "s2"]
    assert found[1].new == ("lite-head", "lite-svm")


def test_scores_that_no_lock_has_are_unrecorded():
    honest, fabricated = metrics(**SCORES), metrics(**{**SCORES, "lite-svm": 0.99})
    found = test_set_history.looks(history_of(state(honest), test_set_history.State(lock(honest), fabricated, None)))
    assert [look.vouched for look in found] == [True, False]
    assert found[1].new == ("lite-svm",)


def test_a_lock_without_its_metrics_is_a_look_with_unknown_scores():
    published = metrics(**SCORES)
    (look,) = test_set_history.looks(history_of(test_set_history.State(lock(published), None, None)))
    assert look.scores == {} and look.champion is None and not look.vouched


@pytest.mark.parametrize("content", [None, b"", b"not json", b"[1]", b'{"champion": {}}', b'{"lite-svm": {}}'])
def test_a_commit_without_test_scores_is_no_look(content):
    scores = test_set_history.scores_of(content)
    assert not any(scores.values())
    assert (
        test_set_history.looks(
            [test_set_history.Point(test_set_history.State(None, None, None), None, "a", "", "", True)]
        )
        == []
    )


# --- a repository --------------------------------------------------------------------------------------------------


SECONDS = itertools.count(1_700_000_000)


def git(*command: str) -> None:
    """Run git; every call is a second later, because the order of commits of one second is open."""
    identity = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    now = f"{next(SECONDS)} +0000"
    environment = {**demo.environment(), "GIT_AUTHOR_DATE": now, "GIT_COMMITTER_DATE": now}
    subprocess.run(["git", *identity, *command], check=True, capture_output=True, env=environment)


def write(published: bytes, **changes: Any) -> None:
    Path(OUT).parent.mkdir(exist_ok=True)
    Path(OUT).write_bytes(published)
    Path("dvc.lock").write_text(yaml.safe_dump(lock(published, **changes)), encoding="utf-8")


def commit(subject: str) -> None:
    git("add", "--all")
    git("commit", "--quiet", "--message", subject)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two looks on the main branch, one more in an experiment that git sees but no branch holds."""
    monkeypatch.chdir(tmp_path)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    git("init", "--quiet", "--initial-branch", "main")
    write(metrics(**SCORES))
    commit("first | results")
    Path("code.py").write_text("", encoding="utf-8")
    commit("code alone")
    git("checkout", "--quiet", "--detach")
    write(metrics(**{**SCORES, "lite-svm": 0.91}), params={"seed": 7})
    commit("an experiment")
    git("update-ref", "refs/exps/ab/abcdef/lucky", "HEAD")
    git("checkout", "--quiet", "main")
    write(metrics(**{**SCORES, "lite-head": 0.88}), params={"repeats": 2})
    commit("second results")
    return tmp_path


def section(**changes: Any) -> dict[str, Any]:
    return test_set_history_study.section(**dict(metric="accuracy", dataset="elpv", mlflow=False) | changes)


def test_every_branch_and_experiment_counts_and_the_newest_comes_first(repository):
    found = section()
    assert [(look["subject"], look["inside"], look["claim"]) for look in found["looks"]] == [
        ("second results", True, True),
        ("an experiment", False, False),
        ("first | results", True, False),
    ]
    assert found["earlier"] == {"inside": 1, "elsewhere": 1, "other_test_parts": 0}
    assert found["later"] == dict.fromkeys(found["earlier"], 0)
    # Two runs, then one other score of each.
    assert found["scores"] == 4
    newest, experiment, first = found["looks"]
    assert newest["changed"]["params"] == {"repeats": {"after": 2}}
    assert experiment["changed"]["params"] == {"seed": {"before": 0, "after": 7}}
    assert (newest["new"], experiment["new"]) == (["lite-head"], ["lite-svm"])
    assert first["changed"] == {}
    page = record_pages.looks_page(found)
    assert "scored 2 times (once of that on other branches or in experiments) before this claim; 4" in page.finding
    assert "first \\| results" in page.markdown()
    assert "`seed: 0 → 7`" in page.markdown() and "`repeats (new: 2)`" in page.markdown()


def test_looks_after_the_claim_are_not_before_it(repository):
    """What is checked out was published first; another branch and an experiment came later."""
    git("checkout", "--quiet", "--detach", "HEAD~1")
    found = section()
    assert found["earlier"] == {"inside": 0, "elsewhere": 0, "other_test_parts": 0}
    assert found["later"] == {"inside": 0, "elsewhere": 2, "other_test_parts": 0}
    assert [(look["claim"], look["later"], look["inside"]) for look in found["looks"]] == [
        (False, True, False),
        (False, True, False),
        (True, False, True),
    ]
    page = record_pages.looks_page(found)
    assert "scored never before this claim, and 2 times (2 times of that on other branches" in page.finding
    assert "later, elsewhere" in page.markdown()


def test_a_claim_that_returns_to_old_scores_tells_the_looks_since_then(repository):
    write(metrics(**SCORES))
    commit("back to the first results")
    found = section()
    assert found["earlier"]["inside"] == 0
    assert found["later"] == {"inside": 1, "elsewhere": 1, "other_test_parts": 0}


def test_scores_of_a_branch_that_was_merged_as_one_commit_are_inside(repository):
    scores = metrics(**{**SCORES, "lite-svm": 0.8})
    git("checkout", "--quiet", "-b", "side")
    write(scores)
    commit("results of a branch")
    git("checkout", "--quiet", "main")
    write(scores)
    commit("the branch, squashed")
    write(metrics(**{**SCORES, "lite-svm": 0.81}))
    commit("and more")
    found = section()
    assert [(look["subject"], look["inside"]) for look in found["looks"][:2]] == [
        ("and more", True),
        ("results of a branch", True),
    ]
    assert found["earlier"] == {"inside": 3, "elsewhere": 1, "other_test_parts": 0}


def test_scores_that_mlflow_has_and_no_commit_are_listed(repository, monkeypatch):
    """Of the methods' runs in a store: one whose score was committed, one deleted, one on another test part."""
    from pipeline.core import artifacts, provenance

    Path("data/split").mkdir(parents=True)
    row = {"path": "test/a/1.png", "label": "a", "split": "test", "group": "", "stratum": "", "sha256": "1"}
    artifacts.write_csv(artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS, [row])
    here = provenance.digest([("test/a/1.png", "1")])
    known = [
        ("lite-svm", SCORES["lite-svm"], here, False),
        ("lite-svm", 0.99, here, True),
        ("lite-svm", 0.98, here, False),
        ("lite-svm", 0.97, "another", False),
    ]
    shown = [tracking.Score(run, value, f"{value}", part, deleted) for run, value, part, deleted in known]
    monkeypatch.setattr(test_set_history_study.tracking, "scores", lambda *_, **__: shown)
    found = section(mlflow=True)
    assert found["mlflow"] == {
        "unavailable": None,
        "models": 3,
        "never_committed": [
            {"run": "lite-svm", "score": 0.98, "deleted": False},
            {"run": "lite-svm", "score": 0.99, "deleted": True},
        ],
    }
    page = record_pages.looks_page(found)
    assert "MLflow has 2 scores on this test part that were never committed" in page.finding
    assert "| lite-svm | 0.990 | deleted |" in page.markdown()


def test_results_that_are_not_committed_are_the_claim(repository):
    write(metrics(**{**SCORES, "lite-head": 0.89}))
    newest, *others = section()["looks"]
    assert newest["claim"] and newest["commit"] is None and len(others) == 3
    git("checkout", "--quiet", "--force", "main")
    assert section()["looks"][0]["commit"] is not None


def test_a_fabricated_metric_is_said_to_be_unrecorded(repository):
    Path(OUT).write_bytes(metrics(**{**SCORES, "lite-svm": 0.99}))
    commit("even better results")
    found = section()
    assert [look["vouched"] for look in found["looks"]] == [False, True, True, True]
    assert "1 of the sets of scores are unrecorded" in record_pages.looks_page(found).finding


def test_a_merged_branch_and_a_conflict_that_was_committed_are_no_looks(repository):
    git("checkout", "--quiet", "-b", "side", "HEAD~1")
    write(metrics(**{**SCORES, "lite-svm": 0.8}))
    commit("results of a branch")
    git("merge", "--quiet", "--strategy", "ours", "--no-edit", "main")
    assert section()["earlier"] == {"inside": 2, "elsewhere": 1, "other_test_parts": 0}
    Path("dvc.lock").write_text("<<<<<<< ours\n", encoding="utf-8")
    commit("a conflict")
    assert [look["subject"] for look in section()["looks"]].count("a conflict") <= 1


def test_a_lock_that_was_committed_while_it_was_being_written_is_none(repository):
    """The scores were published all the same, and nothing is known of what they were made of."""
    write(metrics(**{**SCORES, "lite-svm": 0.87}), code="c9")
    whole = Path("dvc.lock").read_text(encoding="utf-8")
    Path("dvc.lock").write_text(whole[: whole.index("pipeline/evaluation/comparison.py")], encoding="utf-8")
    commit("half a lock")
    Path("dvc.lock").write_text(whole, encoding="utf-8")
    commit("the whole lock")
    found = section()
    newest, half, *_ = found["looks"]
    assert (newest["subject"], newest["vouched"]) == ("the whole lock", True)
    assert (half["subject"], half["vouched"], half["changed"]) == ("half a lock", False, {})
    page = record_pages.looks_page(found)
    assert "Another test part, or one that is unknown, was scored once." in page.finding
    (said,) = [line for line in page.markdown().splitlines() if line.startswith(f"**{half['commit']}**")]
    assert said.endswith(": its dvc.lock does not say what it was made from.")


def test_it_works_in_a_folder_below_the_repository(repository, monkeypatch):
    below = repository / "below"
    below.mkdir()
    for name in ("dvc.lock", "results"):
        (repository / name).rename(below / name)
    commit("moved")
    monkeypatch.chdir(below)
    assert section()["looks"][0]["claim"]


def test_a_shallow_clone_says_that_older_looks_are_missing(repository, tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("shallow")
    git("clone", "--quiet", "--depth", "1", repository.as_uri(), str(place / "clone"))
    monkeypatch.chdir(place / "clone")
    found = section()
    assert found["shallow"] and len(found["looks"]) == 1
    assert "This clone is shallow" in record_pages.looks_page(found).finding


def test_without_a_repository_there_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(BakeoffError, match="needs a git clone"):
        history.points()


def test_a_repository_without_a_commit_has_the_working_tree_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    assert test_set_history.looks(history.points()) == []
    assert "There is no claim here" in record_pages.looks_page(section()).finding
