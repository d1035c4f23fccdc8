"""A small project for reviews: four stages that take no time, with the files, formats and digests of the real ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.audits.review import audit, clones, locks, materials, verdicts
from pipeline.audits.review.equivalence import EquivalenceParams
from pipeline.audits.review.tolerance import ToleranceParams

RUN = "results/runs/net-svm"
MANIFEST = "data/split/manifest.csv"
JUDGED_BY = verdicts.ReviewParams(
    tolerance=ToleranceParams(absolute=1e-6, relative=1e-4),
    equivalence=EquivalenceParams(margin=0.02, loss_margin=0.05, confidence=0.95, bootstrap_samples=200),
)
IMAGES = 60

CATALOG = """
import csv, hashlib, json
rows = [line.split() for line in open("data/labels.txt")]
with open("data/catalog.csv", "w", newline="") as file:
    table = csv.writer(file, lineterminator="\\n")
    table.writerow(["path", "label", "sha256"])
    table.writerows([name, label, hashlib.sha256(name.encode()).hexdigest()] for name, label in rows)
"""
SPLIT = """
import csv, os
rows = list(csv.DictReader(open("data/catalog.csv")))
parts = ["train"] * 20 + ["validation"] * 20 + ["test"] * 20
for part in ("train", "validation", "test"):
    os.makedirs(f"data/split/{part}", exist_ok=True)
with open("data/split/manifest.csv", "w", newline="") as file:
    table = csv.writer(file, lineterminator="\\n")
    table.writerow(["path", "label", "split", "group", "stratum", "sha256"])
    for row, part in zip(rows, parts):
        path = f"{part}/{row['label']}/{row['path']}"
        table.writerow([path, row["label"], part, "", "", row["sha256"]])
        os.makedirs(f"data/split/{part}/{row['label']}", exist_ok=True)
        open(f"data/split/{path}", "w").write(row["path"])
"""
SWEEP = """
import csv, json, os, numpy, yaml
seed = yaml.safe_load(open("params.yaml"))["seed"]
rows = list(csv.DictReader(open("data/split/manifest.csv")))
generator = numpy.random.Generator(numpy.random.PCG64(seed))
def probabilities(part):
    labels = numpy.array([row["label"] == "good" for row in rows if row["split"] == part])
    good = numpy.clip(0.25 + 0.5 * labels + generator.normal(0, 0.3, len(labels)), 0.01, 0.99).astype("float32")
    good += numpy.float32(os.environ.get("OTHER_PACKAGE", 0))
    return numpy.stack([1 - good, good], axis=1)
os.makedirs("results/runs/net-svm", exist_ok=True)
validation, test = probabilities("validation"), probabilities("test")
numpy.savez("results/runs/net-svm/predictions.npz", validation=validation[None], test=test)
record = {"stage": "sweep", "network": "net", "method": "svm", "classes": ["bad", "good"],
          "parameters": {}, "inputs": {}, "candidates": [{"name": "C=1", "parameters": {"C": 1}}], "selected": 0,
          "cost": {"trainable_parameters": 1, "total_parameters": 1, "model_bytes": 1, "multiply_adds": 1}}
json.dump(record, open("results/runs/net-svm/record.json", "w"))
"""
COMPARE = """
import csv, json, numpy
rows = list(csv.DictReader(open("data/split/manifest.csv")))
predictions = numpy.load("results/runs/net-svm/predictions.npz")
def accuracy(part, probabilities):
    labels = numpy.array([row["label"] == "good" for row in rows if row["split"] == part])
    return float(f"{(probabilities.argmax(1) == labels).mean():.6g}")
predicted = {"validation": predictions["validation"][0], "test": predictions["test"]}
scores = {part: accuracy(part, probabilities) for part, probabilities in predicted.items()}
cost = json.load(open("results/runs/net-svm/record.json"))["cost"]
entry = {"run": "net-svm", "champion": True, "rank": 1, "p_holm": 0.5, "cost": cost}
entry |= {part: {"accuracy": {"value": value}} for part, value in scores.items()}
json.dump([entry], open("results/leaderboard.json", "w"))
summary = {f"{part}_accuracy": value for part, value in scores.items()}
json.dump({"champion": summary, "net-svm": summary}, open("results/metrics.json", "w"))
"""
# Takes the place of `python -m pipeline prune --dry-run`: does this code take these params?
MAIN = """
import sys, yaml
unknown = set(yaml.safe_load(open("params.yaml"))) - {"seed", "dataset", "backbone", "selection", "compare"}
if unknown:
    sys.exit(f"error: params.yaml: unknown key {unknown.pop()!r}")
"""
SCRIPTS = {"__init__": "", "__main__": MAIN, "catalog": CATALOG, "split": SPLIT, "sweep": SWEEP, "compare": COMPARE}


def stage(name: str, deps: list[str], params: list[str], **outs: list[Any]) -> dict[str, Any]:
    code = f"pipeline/{name}.py"
    return {"cmd": f"python {code}", "deps": [*deps, code], "params": params, **outs}


STAGES = {
    "dataset": stage("catalog", ["data/labels.txt"], ["dataset"], outs=["data/catalog.csv"]),
    "split": stage(
        "split",
        ["data/catalog.csv"],
        ["seed"],
        outs=[MANIFEST, "data/split/train", "data/split/validation", "data/split/test"],
    ),
    "sweep": stage("sweep", [MANIFEST], ["seed"], outs=[RUN]),
    "compare": stage(
        "compare",
        [MANIFEST, "results/runs"],
        ["selection"],
        outs=[{"results/leaderboard.json": {"cache": False}}],
        metrics=[{"results/metrics.json": {"cache": False}}],
    ),
}
VALUES = {
    "seed": 0,
    "dataset": {"source": "folder", "path": "data/labels.txt"},
    "backbone": {"weights": "random"},
    "selection": {"metric": "accuracy", "positive_class": "good"},
    "compare": {"calibration_bins": 5},
}


def make(place: Path) -> Path:
    """Make the project, run it with DVC, and commit what a person would commit."""
    for folder in ("pipeline", "data", "results", ".dvc"):
        (place / folder).mkdir(parents=True)
    for name, text in SCRIPTS.items():
        (place / "pipeline" / f"{name}.py").write_text(text, encoding="utf-8")
    # One name that an order of bytes, of characters and of a locale would put in different places.
    names = [f"{index:02d}.png" if index != 7 else "Ä_ü.png" for index in range(IMAGES)]
    labels = [f"{name} {'good' if index % 3 else 'bad'}" for index, name in enumerate(names)]
    (place / "data/labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
    (place / "params.yaml").write_text(yaml.safe_dump(VALUES), encoding="utf-8")
    (place / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}, sort_keys=False), encoding="utf-8")
    (place / ".dvc/config").write_text("[core]\n    analytics = false\n    check_update = false\n", encoding="utf-8")
    (place / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n", encoding="utf-8")
    (place / ".gitignore").write_text("/data/split/\n/data/catalog.csv\n/results/runs/\n/.cache/\n", encoding="utf-8")
    (place / "requirements.lock").write_text("unheard-of==1.0 ; sys_platform == 'nowhere'\n", encoding="utf-8")
    git(place, "init", "--quiet")
    commit(place)
    done = subprocess.run(["dvc", "repro"], cwd=place, env=clones.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    commit(place)
    return place


def git(place: Path, *arguments: str) -> str:
    return clones.git(place, "-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", *arguments)


def commit(place: Path) -> None:
    git(place, "add", "--all")
    git(place, "commit", "--quiet", "--allow-empty", "--message", "Next")


def repro(place: Path, *, execute: bool = True, **environment: str) -> None:
    """Do what `dvc repro` does, in a hundredth of its time, and commit: run the stages, write dvc.lock, fill the cache.

    Without ``execute``, what `dvc commit` does: the outputs are taken as they are.
    """
    values = yaml.safe_load((place / "params.yaml").read_text(encoding="utf-8"))
    lock = {}
    for one in locks.declared(place).stages:
        if execute:
            for path in one.outs:
                materials.remove(place / path)
            run = [sys.executable, one.command.removeprefix("python ")]
            subprocess.run(run, cwd=place, env=clones.environment(**environment), check=True)
        lock[one.name] = {
            "cmd": one.command,
            "deps": [{"path": path, "hash": "md5", "md5": locks.digest(place / path)} for path in one.deps],
            "params": {"params.yaml": {key: values[key] for key in one.params}},
            "outs": [{"path": path, "hash": "md5", "md5": keep(place, path)} for path in one.outs],
        }
    (place / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": lock}), encoding="utf-8")
    commit(place)


def keep(place: Path, path: str) -> str:
    """Put an output into the DVC cache and return its digest."""
    digest, output = locks.digest(place / path), place / path
    entries = []
    for name in locks.names_in(output) if output.is_dir() else [""]:
        entries.append({"md5": locks.digest(output / name), "relpath": name})
        store(place, entries[-1]["md5"], (output / name).read_bytes())
    if output.is_dir():
        store(place, digest, json.dumps(entries, sort_keys=True).encode())
    return digest


def store(place: Path, digest: str, content: bytes) -> None:
    file = place / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_bytes(content)


def copy(place: Path, destination: Path) -> Path:
    shutil.copytree(place, destination)
    return destination


def edit(file: Path, before: str, after: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert before in text
    file.write_text(text.replace(before, after, 1), encoding="utf-8")


def forge(place: Path, path: str, before: str, after: str) -> None:
    """Edit an output and everything that says what it is: its digest in dvc.lock, and the file in the cache."""
    edit(place / path, before, after)
    repro(place, execute=False)


def review(project: Path, **request: Any) -> audit.Review:
    more = {"revision": "HEAD", "params": JUDGED_BY, "environment": {}}
    return audit.review(audit.Request(project=project, **{**more, **request}))


def kinds(found: audit.Review) -> set[tuple[str, str]]:
    """Return (cause, stage) of everything that a review gives as a cause."""
    return {(one.kind, one.stage) for one in found.causes}


def verdicts_of(found: audit.Review) -> Mapping[str, str]:
    return {one.path: one.verdict for one in found.outputs}


def leaderboard(place: Path) -> list[dict[str, Any]]:
    return json.loads((place / "results/leaderboard.json").read_text(encoding="utf-8"))
