"""The review of the real pipeline, on few images."""

from __future__ import annotations

import json
import shutil

import pytest

from pipeline.commands import demo
from pipeline.config import params_file
from tests.whole.test_pipeline import clone_of_finished, lock_of, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture
def committed(root, finished, tmp_path):
    """A clone of the finished pipeline with its results committed, and with its DVC cache."""
    clone = tmp_path / "clone"
    clone_of_finished(root, finished, clone)
    demo.commit(clone, "Results")
    return clone


def review_of(directory, *options: str) -> dict:
    """Run the review and return what it found."""
    run(directory, "python", "-m", "pipeline", "review", *options, check=False)
    (found,) = (directory / "results" / "review").glob("*/review.json")
    content = json.loads(found.read_text(encoding="utf-8"))
    shutil.rmtree(directory / "results" / "review")
    return content


def test_every_output_of_an_honest_commit_is_identical_whatever_the_workspace_holds(committed):
    shutil.rmtree(committed / "results" / "runs")
    found = review_of(committed)
    assert found["verdict"] == "identical", found["headline"]
    outputs = [out["path"] for stage in lock_of(committed).values() for out in stage["outs"]]
    assert sorted(one["path"] for one in found["outputs"]) == sorted(outputs)
    assert {one["verdict"] for one in found["outputs"] + found["metrics"]} == {"identical"}
    assert found["findings"] == found["causes"] == found["not_recomputed"] == []


def test_an_edited_family_is_the_cause_and_quick_takes_the_trained_networks_as_claimed(committed):
    """Another penalty and an edited module, committed without a re-run: one sweep diverges, the comparison with it."""
    with (committed / "pipeline" / "classifiers" / "families" / "rbf_svm.py").open("a", encoding="utf-8") as module:
        module.write("\nEDITED = True\n")
    params_file.override(committed / "params.yaml", {"classifiers.rbf_svm.grid.C": [0.001]})
    demo.commit(committed, "Edited")
    found = review_of(committed, "--quick")
    assert found["verdict"] == "diverged"
    assert {(one["kind"], one["stage"]) for one in found["causes"]} == {
        ("code", "sweep@efficientnet_lite0-rbf_svm"),
        ("params", "sweep@efficientnet_lite0-rbf_svm"),
    }
    assert found["left_out"].keys() == {
        "head@efficientnet_lite0",
        "fine_tune@efficientnet_lite0",
        "scratch@small_convnet",
    }
    diverged = {one["stage"] for one in found["outputs"] if one["verdict"] == "diverged"}
    assert diverged <= {"sweep@efficientnet_lite0-rbf_svm", "compare", "track"}
