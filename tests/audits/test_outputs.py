"""Facts of outputs on disk: their digests are DVC's, whatever DVC remembers, and what is changed is refused."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from pipeline.audits import outputs
from pipeline.commands import demo, lock
from pipeline.core.artifacts import ArtifactError

STAGES = {
    "a": {
        "cmd": "mkdir -p out/deep && echo one > out/1 && echo two > out/deep/ü && echo 3 > out/10 && cp -r out more.d",
        "outs": ["out", "more.d"],
    },
    "b": {"cmd": "echo kept > in.git && printf '%1000000d' 1 > large", "outs": [{"in.git": {"cache": False}}, "large"]},
}
CONFIG = """\
[core]
    analytics = false
    remote = shared
['remote "shared"']
    url = ../../remote
"""


def shell(command: str, *, status: int = 0, cwd: Path | None = None) -> str:
    """Run a command with DVC's settings of this machine out of the way, and return all that it said."""
    settings = {"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@b", "DVC_GLOBAL_CONFIG_DIR": os.path.abspath(".none")}
    settings |= {"GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@b"}
    done = subprocess.run(
        command,
        shell=True,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=120,
        env=demo.environment() | settings,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def ran(tmp_path_factory) -> Path:
    """A DVC project whose two stages have run, committed and pushed to a local remote beside it."""
    project = tmp_path_factory.mktemp("outputs") / "project"
    project.mkdir()
    shell("git init --quiet && mkdir .dvc", cwd=project)
    (project / ".dvc" / "config").write_text(CONFIG, encoding="utf-8")
    (project / ".dvc" / ".gitignore").write_text("/cache\n/tmp\n", encoding="utf-8")
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}), encoding="utf-8")
    (project / ".dvcignore").write_text("*.tmp\n__pycache__/\n/out/.*\n", encoding="utf-8")
    shell("dvc repro && dvc push && git add --all && git commit --quiet --message all", cwd=project)
    return project


@pytest.fixture
def project(ran, tmp_path, monkeypatch) -> Path:
    """A copy of it, remote and all, as the working directory."""
    shell(f"cp -a '{ran.parent}/.' .", cwd=tmp_path)
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def recorded() -> dict[str, str]:
    claimed = outputs.claims(Path("dvc.lock").read_text(encoding="utf-8"))
    return {path: digest for (_, path), digest in claimed.items()}


def status() -> dict:
    from dvc.repo import Repo

    with Repo() as repo:
        return repo.status()


def replace_bytes(path: Path) -> None:
    """Change a file's first byte in place, and leave nothing else changed that the file system tells of it."""
    before = path.stat()
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_digests_are_those_of_dvc_for_files_folders_and_what_git_keeps(project):
    assert len(recorded()) == 4
    assert dict(outputs.digests(recorded())) == recorded()


def test_what_dvcignore_names_is_left_out_as_dvc_leaves_it_out(project):
    Path("out/__pycache__").mkdir()
    for name in ("out/1.tmp", "out/__pycache__/x", "out/.half"):
        Path(name).write_text("ignored", encoding="utf-8")
    assert dict(outputs.digests(recorded())) == recorded()
    assert status() == {}
    Path("out/deep/.half").write_text("not ignored", encoding="utf-8")
    assert dict(outputs.digests(["out"])) != {"out": recorded()["out"]}
    assert "modified" in str(status())
    Path("whole.tmp").write_text("ignored, and so not there", encoding="utf-8")
    assert dict(outputs.digests(["whole.tmp", "nowhere"])) == {"whole.tmp": None, "nowhere": None}


def test_a_changed_byte_is_seen_where_dvc_sees_none_and_the_remedy_brings_it_back(project):
    assert status() == {}  # and from now on DVC remembers these files
    for path in (Path("out/deep/ü"), Path("large"), Path("in.git")):
        replace_bytes(path)
    assert status() == {}
    changed = {path for path, digest in outputs.digests(recorded()) if digest != recorded()[path]}
    assert changed == {"out", "large", "in.git"}
    shell(outputs.remedy(("a", "out")).splitlines()[0])
    shell(outputs.remedy(("b", "in.git")).splitlines()[1])
    assert dict(outputs.digests(recorded())) == recorded()


def test_a_changed_output_is_refused_and_one_that_no_lock_knows_is_not(project):
    outputs.refuse_changed([Path("out"), project / "large", Path("unknown")])
    Path("unknown").write_text("x", encoding="utf-8")
    outputs.refuse_changed([Path("unknown")])
    replace_bytes(Path("out/1"))
    with pytest.raises(ArtifactError, match=r"^out is not what dvc\.lock says.*\nrm -rf out && dvc checkout out "):
        outputs.refuse_changed([project / "out"])
    outputs.refuse_changed([Path("large")])
    Path("dvc.lock").unlink()
    outputs.refuse_changed([Path("out")])


def test_what_is_no_file_is_an_error_and_never_waited_for(project):
    os.mkfifo("out/pipe")
    with pytest.raises(ArtifactError, match="out/pipe is no file"):
        dict(outputs.digests(["out"]))
    Path("out/pipe").unlink()
    Path("out/link").symlink_to("nowhere")
    with pytest.raises(ArtifactError, match="out/link is no file"):
        dict(outputs.digests(["out"]))


def test_closing_the_digests_stops_the_reading(project, monkeypatch):
    read = []

    def slowly(file: str) -> str:
        time.sleep(0.01)
        read.append(file)
        return "0" * 32

    monkeypatch.setattr(outputs, "_md5", slowly)
    for number in range(200):
        Path(f"out/n{number}").touch()
    reading = outputs.digests(["large", "out"])
    assert next(reading) == ("large", "0" * 32)
    reading.close()
    assert len(read) < 200


def test_lock_is_whole_after_a_run_and_names_what_was_edited(project, capsys):
    options = lock_arguments("--check")
    assert lock.main(options) == 0
    assert capsys.readouterr().out == "4 of 4 outputs identical to the committed lock\n"
    replace_bytes(Path("out/1"))
    Path("in.git").unlink()
    assert lock.main(options) == 1
    said = capsys.readouterr().out
    assert "2 of 4 outputs identical to the committed lock:\n  edited: out (a)\n  missing: in.git (b)\n" in said


def lock_arguments(*texts: str):
    import argparse

    parser = argparse.ArgumentParser()
    lock.add_arguments(parser)
    return parser.parse_args(texts)


# --- remotes -------------------------------------------------------------------------------------------------------


def test_dvc_pull_refuses_a_tampered_object_of_a_remote_that_verifies_and_takes_it_from_one_that_does_not(project):
    """Why every remote in docs is set up with ``verify true``."""
    digest = recorded()["large"]
    tampered = project.parent / "remote" / "files" / "md5" / digest[:2] / digest[2:]
    tampered.chmod(0o644)
    replace_bytes(tampered)
    tampered.chmod(0o444)  # as DVC leaves it: it trusts what nobody may write
    shell("git clone --quiet project clone", cwd=project.parent)
    clone = project.parent / "clone"
    shell("dvc pull", cwd=clone)
    assert (clone / "large").read_bytes() == tampered.read_bytes()
    shell("git clean -fdxq . && dvc remote modify shared verify true", cwd=clone)
    assert "Checkout failed" in shell("dvc pull", cwd=clone, status=1)
    assert not (clone / "large").exists()
    assert (clone / "out" / "1").exists()
