"""Why a metric moved: shares that add up, interactions that are named, and combinations that cannot be built."""

from __future__ import annotations

import argparse
import itertools
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audits.review import clones, delta, delta_report, environments, evidence, locks, variants
from pipeline.audits.review.delta_report import Delta
from pipeline.audits.review.variants import Outcome
from pipeline.commands import explain_delta
from tests import reviewed
from tests.reviewed import commit, edit, git

DATA, PARAMS, CODE = (frozenset({name}) for name in delta.FACTORS)
ALL = DATA | PARAMS | CODE


def test_the_two_revisions_themselves_come_first():
    found = delta.combinations(["code", "data"])
    assert found == [frozenset(), DATA | CODE, DATA, CODE]
    assert len(delta.combinations(delta.FACTORS)) == 8


def test_effects_that_add_up_are_the_shares():
    every = delta.combinations(delta.FACTORS)
    values = {some: 0.8 + 0.05 * ("data" in some) - 0.02 * ("code" in some) for some in every}
    found = delta.attribute(values, delta.FACTORS)
    (reading,) = found.readings
    assert reading.shares == pytest.approx({DATA: 0.05, PARAMS: 0.0, CODE: -0.02})
    assert reading.orders == 6
    assert found.together == {}
    assert found.total == pytest.approx(0.03)


def test_what_only_happens_together_is_shown_as_such_and_shared_equally():
    values = {some: 1.0 if some >= DATA | CODE else 0.0 for some in delta.combinations(delta.FACTORS)}
    found = delta.attribute(values, delta.FACTORS)
    assert found.alone == {"data": 0, "params": 0, "code": 0}
    assert found.together == {DATA | CODE: 1.0}
    assert found.readings[0].shares == pytest.approx({DATA: 0.5, PARAMS: 0.0, CODE: 0.5})


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.floats(-1, 1), min_size=8, max_size=8))
def test_shares_are_shapley_values_by_their_other_formula_and_add_up(numbers):
    """Independently: each dividend of the interactions is divided equally among its members (Harsanyi 1963)."""
    values = dict(zip(delta.combinations(delta.FACTORS), numbers, strict=True))
    found = delta.attribute(values, delta.FACTORS)
    expected = {}
    for name in delta.FACTORS:
        others = [other for other in delta.FACTORS if other != name]
        total = 0.0
        for count in range(3):
            weight = math.factorial(count) * math.factorial(2 - count) / math.factorial(3)
            for some in itertools.combinations(others, count):
                before = frozenset(some)
                total += weight * (values[before | {name}] - values[before])
        expected[frozenset({name})] = total
    assert found.readings[0].shares == pytest.approx(expected, abs=1e-9)
    assert sum(found.readings[0].shares.values()) == pytest.approx(found.total, abs=1e-9)
    assert sum(found.alone.values()) + sum(found.together.values()) == pytest.approx(found.total, abs=1e-5)


def test_orders_through_combinations_that_cannot_be_built_are_left_out():
    """New params under old code: the schema refuses. So code comes before params in every order that counts."""
    values = {some: float(len(some)) for some in delta.combinations(["params", "code"]) if some != PARAMS}
    found = delta.attribute(values, ["params", "code"])
    assert [(reading.shares, reading.orders) for reading in found.readings] == [({PARAMS: 1.0, CODE: 1.0}, 1)]
    assert found.alone == {"code": 1.0}
    assert found.together == {}, "without all four, nothing can be said about interaction"


def test_factors_that_can_change_only_together_keep_a_common_share():
    values = {frozenset(): 0.0, PARAMS | CODE: 3.0, DATA: 1.0, ALL: 5.0}
    found = delta.attribute(values, delta.FACTORS)
    (reading,) = found.readings
    assert reading.shares == {DATA: 1.5, PARAMS | CODE: 3.5}
    assert reading.orders == 2


def test_divisions_that_contradict_each_other_are_all_told():
    values = {frozenset(): 0.0, PARAMS | CODE: 3.0, DATA | PARAMS: 2.0, ALL: 5.0}
    found = delta.attribute(values, delta.FACTORS)
    shares = sorted((sorted(reading.shares.values()) for reading in found.readings), key=str)
    assert shares == [[2.0, 3.0], [2.0, 3.0]]
    assert {frozenset(reading.shares) for reading in found.readings} == {
        frozenset({DATA | PARAMS, CODE}),
        frozenset({PARAMS | CODE, DATA}),
    }


def test_without_one_of_the_two_revisions_there_is_nothing_to_divide():
    assert delta.attribute({frozenset(): 1.0}, ["data"]) is None


def outcome(value: float, run: str = "net-svm", test: str = "t") -> Outcome:
    return Outcome({("champion", "accuracy"): value, (run, "accuracy"): value}, test=test)


def test_the_summary_says_what_moved_what_cannot_be_combined_and_what_is_not_comparable():
    outcomes = {
        frozenset(): outcome(0.8),
        PARAMS | CODE: outcome(0.9, test="other"),
        CODE: outcome(0.85),
        PARAMS: Outcome(None, "error: params.yaml: unknown key 'new'"),
    }
    found = Delta(("v1", "v2"), ("a", "b"), ("params", "code"), outcomes)
    text = delta_report.summary(found)
    assert "champion test accuracy: 0.8000 -> 0.9000 (+0.1000) = params +0.0500; code +0.0500" in text
    assert "cannot be combined: params of v2, the rest of v1: error: params.yaml: unknown key 'new'" in text
    assert "measured on other test images or labels than v1: everything of v2" in text
    content = json.loads(json.dumps(delta_report.as_json(found)))
    assert content["metrics"]["net-svm accuracy"]["alone"] == {"code": pytest.approx(0.05)}


def test_numbers_that_neither_revision_has_committed_are_told_from_those_they_have():
    outcomes = {frozenset(): outcome(0.8), PARAMS: outcome(0.9)}
    same = {("champion", "accuracy"): 0.8 + 4e-7, ("net-svm", "accuracy"): 0.8}
    other = {("champion", "accuracy"): 0.95, ("net-old", "accuracy"): 0.95}
    as_claimed = Delta(("v1", "v2"), ("a", "b"), ("params",), outcomes, claimed=(same, outcomes[PARAMS].values))
    assert "committed" not in delta_report.summary(as_claimed)
    text = delta_report.summary(as_claimed._replace(claimed=(same, other)))
    assert "not the numbers that were committed: v2 has committed champion test accuracy 0.95, its replay" in text
    assert "v2 has committed net-old test accuracy 0.95, its replay gives" in text
    assert "v2 has committed net-svm test accuracy" in text and "v1 has committed" not in text
    none = as_claimed._replace(claimed=(None, None))
    assert "v1 has no leaderboard.json in git: its replay is compared with nothing" in delta_report.summary(none)
    content = json.loads(json.dumps(delta_report.as_json(as_claimed)))
    assert content["committed"]["second"] == {"champion accuracy": 0.9, "net-svm accuracy": 0.9}


def test_other_locked_packages_are_in_no_share_and_that_is_said():
    outcomes = {frozenset(): outcome(0.8), PARAMS: outcome(0.9)}
    moved = environments.between("a==1\nb==1 ; x == 'y'\nold==3\n", "a==1\nb==2 ; x == 'y'\nNew_One==1\n")
    assert moved == ["b 1 -> 2", "new-one not there -> 1", "old 3 -> not there"]
    text = delta_report.summary(Delta(("v1", "v2"), ("a", "b"), ("params",), outcomes, packages=tuple(moved)))
    assert "the locked packages of v1 and v2 differ (b 1 -> 2; new-one not there -> 1; old 3 -> not there)" in text
    assert "what packages moved is in no share" in text


def test_relabelled_test_images_are_another_test_part(tmp_path):
    rows = [
        ["path", "label", "split", "group", "stratum", "sha256"],
        ["test/a/1.png", "a", "test", "", "", "1"],
        ["test/b/2.png", "b", "test", "", "", "2"],
        ["train/b/3.png", "b", "train", "", "", "3"],
    ]

    def digest(lines: list[list[str]]) -> str:
        (tmp_path / "manifest.csv").write_text("".join(f"{','.join(line)}\n" for line in lines), encoding="utf-8")
        return evidence.test_part(tmp_path / "manifest.csv")

    before = digest(rows)
    assert digest([*rows[:3], ["train/a/3.png", "a", "train", "", "", "3"]]) == before
    assert digest([*rows[:2], ["test/a/2.png", "a", "test", "", "", "2"], rows[3]]) != before


def test_a_revision_that_does_not_run_is_said_and_nothing_is_divided():
    outcomes = {frozenset(): outcome(0.8), PARAMS: Outcome(None, "error: no")}
    text = delta_report.summary(Delta(("v1", "v2"), ("a", "b"), ("params",), outcomes))
    assert text.splitlines()[0] == "does not run: everything of v2: error: no"


def test_a_method_that_one_revision_lacks_is_said_and_not_divided():
    outcomes = {frozenset(): outcome(0.8), PARAMS: outcome(0.9, run="net-new")}
    text = delta_report.summary(Delta(("v1", "v2"), ("a", "b"), ("params",), outcomes))
    assert "net-new test accuracy: only one of the two revisions has it" in text
    assert "net-svm test accuracy: only one of the two revisions has it" in text


# --- combinations of revisions -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Two commits that differ in data, params and code, and one after them that changes a document alone."""
    place = reviewed.make(tmp_path_factory.mktemp("made") / "project")
    git(place, "tag", "first")
    edit(place / "data/labels.txt", "41.png good", "41.png bad")
    edit(place / "params.yaml", "seed: 0", "seed: 5")
    edit(place / "pipeline/sweep.py", "0.5 * labels", "0.4 * labels")
    commit(place)
    git(place, "tag", "second")
    (place / "README.md").write_text("words", encoding="utf-8")
    edit(place / "params.yaml", "seed: 5", "seed: 5 # five\nreview: {}")
    commit(place)
    return place


def test_what_no_stage_reads_is_no_change(project):
    first, second, third = (variants.read(project, name) for name in ("first", "second", "HEAD"))
    assert variants.changed(first, second) == ["data", "params", "code"]
    assert variants.changed(second, third) == []


@pytest.mark.parametrize("some", delta.combinations(delta.FACTORS), ids=lambda some: "+".join(sorted(some)) or "none")
def test_a_combination_holds_what_it_says(project, tmp_path, some):
    first, second = (variants.read(project, name) for name in ("first", "second"))
    clone = variants.build(project, first, second, some, tmp_path / "clone")
    texts = {
        name: (clone / file).read_text(encoding="utf-8")
        for name, file in (("data", "data/labels.txt"), ("params", "params.yaml"), ("code", "pipeline/sweep.py"))
    }
    new = {"data": "41.png bad", "params": "seed: 5", "code": "0.4 * labels"}
    assert {name for name in texts if new[name] in texts[name]} == some


def test_data_that_one_side_does_not_have_cannot_be_combined(project, tmp_path):
    git(project, "checkout", "--quiet", "-b", "moved")
    try:
        git(project, "mv", "data/labels.txt", "data/other.txt")
        edit(project / "params.yaml", "data/labels.txt", "data/other.txt")
        commit(project)
        first, second = (variants.read(project, name) for name in ("second", "moved"))
        assert variants.changed(first, second) == ["data", "params"]
        with pytest.raises(locks.ReviewError, match="no data to take"):
            variants.build(project, first, second, PARAMS, tmp_path / "clone")
    finally:
        git(project, "checkout", "--quiet", "-")


def explained(project: Path, *texts: str) -> dict:
    parser = argparse.ArgumentParser()
    explain_delta.add_arguments(parser)
    arguments = parser.parse_args(texts)
    assert explain_delta.main(arguments) == 0
    commits = [clones.commit_of(project, name)[:12] for name in texts[:2]]
    return json.loads((project / f"results/review/delta-{'-'.join(commits)}/delta.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_every_combination_is_run_by_dvc_and_the_change_is_divided(project, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(project)
    monkeypatch.setenv("BAKEOFF_FEATURE_STORE", str(tmp_path / "features"))
    found = explained(project, "first", "second")
    assert len(found["combinations"]) == 8
    assert [entry["reason"] for entry in found["combinations"].values()] == [""] * 8
    champion = found["metrics"]["champion accuracy"]
    assert sum(champion["shares"][0].values()) == pytest.approx(champion["after"] - champion["before"])
    committed = reviewed.leaderboard(project)[0]["test"]["accuracy"]["value"]
    assert champion["before"] == committed, "the results in git are still those of the first revision"
    assert found["committed"]["first"]["champion accuracy"] == committed
    cautions = " ".join(found["cautions"])
    assert "second has committed champion test accuracy" in cautions
    assert "first has committed" not in cautions
    assert "champion test accuracy: " in capsys.readouterr().out
    assert git(project, "status", "--porcelain", "--untracked-files=no") == ""


@pytest.mark.slow
def test_new_params_under_old_code_are_refused_by_that_code_and_said(project, monkeypatch, tmp_path, capsys):
    git(project, "checkout", "--quiet", "-b", "new-key", "first")
    try:
        edit(project / "params.yaml", "seed: 0", "seed: 2\nnovel: 1")
        edit(project / "pipeline/__main__.py", '"compare"}', '"compare", "novel"}')
        commit(project)
        monkeypatch.chdir(project)
        monkeypatch.setenv("BAKEOFF_FEATURE_STORE", str(tmp_path / "features"))
        found = explained(project, "first", "new-key")
    finally:
        git(project, "checkout", "--quiet", "-")
    assert found["combinations"]["params"]["reason"] == "error: params.yaml: unknown key 'novel'"
    assert found["metrics"]["champion accuracy"]["orders"] == [1]
    assert "cannot be combined: params of new-key, the rest of first" in capsys.readouterr().out


def test_revisions_without_a_difference_are_done_at_once(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    parser = argparse.ArgumentParser()
    explain_delta.add_arguments(parser)
    assert explain_delta.main(parser.parse_args(["second", "second"])) == 0
    said = capsys.readouterr().out
    assert "data, params and code are the same" in said
    assert "packages" not in said and "committed" not in said
    with pytest.raises(locks.ReviewError, match="'nowhere' is no commit"):
        explain_delta.main(parser.parse_args(["second", "nowhere"]))
    assert clones.commit_of(project, "second") != clones.commit_of(project, "first")


def test_revisions_whose_packages_and_metrics_alone_differ_are_said_to(project, monkeypatch, capsys):
    git(project, "checkout", "--quiet", "-b", "newer", "second")
    try:
        edit(project / "requirements.lock", "unheard-of==1.0", "unheard-of==2.0")
        entries = reviewed.leaderboard(project)
        entries[0]["test"]["accuracy"]["value"] = 0.123
        (project / "results/leaderboard.json").write_text(json.dumps(entries), encoding="utf-8")
        commit(project)
    finally:
        git(project, "checkout", "--quiet", "-")
    monkeypatch.chdir(project)
    parser = argparse.ArgumentParser()
    explain_delta.add_arguments(parser)
    assert explain_delta.main(parser.parse_args(["second", "newer"])) == 0
    said = capsys.readouterr().out
    assert "the locked packages of second and newer differ (unheard-of 1.0 -> 2.0)" in said
    assert "Their committed metrics differ all the same" in said
