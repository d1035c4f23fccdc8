"""Benchmarks: what follows from measurements, what is written, and what survives a kill. Nothing is measured here."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pydantic
import pytest

from benchmarks import __main__ as command_line
from benchmarks import checks, growth, measure, results, rows, whole_pipeline
from benchmarks.measure import Job, Journal, Run
from benchmarks.rows import Row
from pipeline.core import artifacts, provenance


def row(claim: str = "a claim", kind: str = "ratio", **values) -> Row:
    return Row.model_validate({"claim": claim, kind: 2.0, "low": 1.0, "high": 4.0, "n": 5} | values)


# --- rows ----------------------------------------------------------------------------------------------------------


def test_a_ratio_must_reach_its_target_and_a_value_stay_below():
    assert [row(target=target).met for target in (1.9, 2.0, 2.1, None)] == [True, True, False, None]
    assert [row(kind="value", target=target).met for target in (1.9, 2.0, 2.1, None)] == [False, True, True, None]


@pytest.mark.parametrize("wrong", [{"value": 2.0}, {"ratio": None}, {"low": 2.5}, {"high": 1.5}, {"n": 0}, {"x": 1}])
def test_a_row_that_says_something_else_than_one_number_and_its_spread_is_refused(wrong):
    with pytest.raises(pydantic.ValidationError):
        row(**wrong)


def test_rows_come_back_as_they_were_written_to_four_digits(tmp_path):
    written = [row(ratio=2.345678, target=3.0, command="c"), row(kind="value", unit="GB", detail="why")]
    rows.write(tmp_path / "results.json", written)
    assert {"claim", "ratio", "target", "low", "high", "n"} <= artifacts.read_json(tmp_path / "results.json")[0].keys()
    assert rows.read(tmp_path / "results.json") == [written[0].model_copy(update={"ratio": 2.346}), written[1]]


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (0.01234, "0.0123"), (1.0, "1.00"), (29.96, "30.0"), (1234.5, "1,234")]
)
def test_figures_have_three_significant_digits(number, text):
    assert rows.figure(number) == text


# --- what follows from measurements --------------------------------------------------------------------------------


def runs(*seconds: float) -> list[Run]:
    return [Run(value, 1.0) for value in seconds]


def test_a_ratio_is_the_median_of_the_ratios_within_a_turn():
    found = measure.ratio_row("", ours=runs(1, 10, 2), rival=runs(4, 20, 6), target=3)
    assert (found.ratio, found.low, found.high, found.n) == (3, 2, 4, 3)
    assert found.met


def test_a_machine_that_slows_down_in_one_turn_changes_no_ratio():
    found = measure.ratio_row("", ours=runs(1, 1, 9), rival=runs(2, 2, 18), target=None)
    assert (found.ratio, found.low, found.high) == (2, 2, 2)


def test_a_value_is_the_median_between_its_extremes():
    found = measure.valued("", [3.0, 1.0, 2.0, 9.0], unit="s")
    assert (found.value, found.low, found.high, found.n) == (2.5, 1.0, 9.0, 4)


def test_a_line_through_two_sizes_tells_start_up_from_the_rest():
    found = measure.line((100, 12.0), (600, 22.0))
    assert found.start == pytest.approx(10.0)
    assert found.at(2624) == pytest.approx(10 + 2624 / 50)
    with pytest.raises(measure.BenchmarkError, match="too noisy"):
        measure.line((100, 12.0), (600, 11.0))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found(power):
    sizes = [900, 3900, 15900]
    assert measure.exponent(sizes, [0.01 * size**power for size in sizes]) == pytest.approx(power)


def test_the_checks_together_have_a_target_in_every_turn():
    found = checks.claims({"fairness": runs(100, 120), "doctor": runs(5, 1)})
    assert (found[0].value, found[0].low, found[0].high, found[0].target) == (113, 105, 121, 180)
    assert [(row.value, row.target) for row in found[1:]] == [(110, None), (3, None)]


def test_growth_claims_name_the_exponent_beyond_start_up_and_the_memory_target():
    measured = {size: {"features": [Run(10 + 0.01 * (size - growth.FEW), 1.2)]} for size in (growth.FEW, *growth.SIZES)}
    found = growth.claims("features", "features", measured)
    assert found[-1].value == pytest.approx(1.0) and found[-1].met
    assert "4,000 to 60,000" in found[-1].claim, "1,000 images take hardly longer than the start-up"
    for size in growth.SIZES[:2]:
        measured[size] = {"features": [Run(9.0, 1.2)]}
    assert "16,000 to 60,000" in growth.claims("features", "features", measured)[-1].claim
    measured[growth.SIZES[2]] = measured[growth.SIZES[0]]
    assert all("exponent" not in row.claim for row in growth.claims("features", "features", measured))
    assert [claim.target for claim in found if claim.unit == "GB"] == [None, None, None, growth.LARGEST_GB]
    assert next(claim.value for claim in found if claim.unit == "s") == 10 + 0.01 * (growth.SIZES[0] - growth.FEW)


# --- processes -----------------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Return a function that makes a job of a line of Python."""
    monkeypatch.setattr(measure, "CACHE", tmp_path / "cache")

    def make(code: str, name: str = "job", **options) -> Job:
        return Job(name, [sys.executable, "-c", code], tmp_path, os.environ, **options)

    return make


def test_time_and_peak_memory_are_those_of_the_process(tmp_path):
    """Measured from a process of its own: the kernel counts from what the parent holds, and pytest may hold much."""
    code = """if True:
        import os, pathlib, sys
        from benchmarks import measure
        measure.CACHE = pathlib.Path(sys.argv[1])
        held = "import time; held = bytearray(b'1') * 400_000_000; time.sleep(0.5)"
        print(*measure.measure(measure.Job("job", [sys.executable, "-c", held], measure.CACHE, os.environ)))
    """
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=provenance.ROOT, capture_output=True, text=True, check=True
    )
    seconds, peak_gb = map(float, done.stdout.split())
    assert 0.4 < peak_gb < 0.45
    assert 0.5 < seconds < 30


def test_what_comes_before_a_run_is_not_timed(job):
    import time

    assert measure.measure(job("pass", before=lambda: time.sleep(1.0))).seconds < 1.0


def test_a_job_that_fails_or_writes_nothing_is_no_measurement(job, tmp_path):
    with pytest.raises(measure.BenchmarkError, match="status 3.*\n.*the reason"):
        measure.measure(job("import sys; print('the reason'); sys.exit(3)"))
    with pytest.raises(measure.BenchmarkError, match="did not write"):
        measure.measure(job("pass", outputs=[tmp_path / "missing"]))


def test_sides_take_turns(job, tmp_path):
    jobs = [job(f"open('order', 'a').write('{name}')", name=name) for name in "ab"]
    found = measure.alternate(jobs, repeats=3, journal=Journal(None))
    assert (tmp_path / "order").read_text() == "ababab"
    assert [len(found[name]) for name in "ab"] == [3, 3]


def test_a_killed_benchmark_goes_on_with_the_next_measurement(job, tmp_path):
    code = "open('order', 'a').write('x'); import os; os._exit(os.path.getsize('order') == 3)"
    journal = tmp_path / "rows.journal.json"
    with pytest.raises(measure.BenchmarkError):
        measure.alternate([job(code)], repeats=4, journal=Journal(journal))
    assert list(artifacts.read_json(journal)) == ["job/1", "job/2"]
    found = measure.alternate([job(code)], repeats=4, journal=Journal(journal))
    assert (tmp_path / "order").read_text() == "x" * 5
    assert len(found["job"]) == 4


# --- results -------------------------------------------------------------------------------------------------------


def render(found: list[Row], **reasons: str) -> str:
    return results.markdown(found, reasons)


def test_results_show_spread_command_and_verdict():
    text = render([row(target=1.5, command="python -m benchmarks.head"), row("memory", "value", unit="GB")])
    assert "| a claim | 2.00x [1.00, 4.00] | at least 1.50x | met | 5 |  | `python -m benchmarks.head` |" in text
    assert "| memory | 2.00 GB [1.00, 4.00] |  | reported | 5 |" in text
    assert "missed" not in text and "MISSED" not in text


def test_every_row_says_on_which_machine_and_day_it_was_measured():
    one, other = "CPU: a chip; keras 3.15.1", "CPU: another; keras 3.15.1"
    text = render(
        [
            row("first", environment=one, day="2025-01-31"),
            row("second", environment=other, day="2025-02-01"),
            row("third", environment=one, day="2025-02-02"),
        ]
    )
    assert f"A. {one}.\nB. {other}.\n" in text
    lines = [line for line in text.splitlines() if line.startswith(("| first", "| second", "| third"))]
    places = [line.split("|")[-2].strip() for line in lines]
    assert places == ["A, 2025-01-31", "B, 2025-02-01", "A, 2025-02-02"]


def test_the_environment_names_machine_system_and_packages():
    text = results.environment()
    assert "CPU: " in text and "cores: " in text and f"numpy {np.__version__}" in text


def test_a_missed_target_is_shown_with_its_reason():
    text = render([row("slow", target=3), row("fast", target=1), row("huge", "value", target=1)], slow="the disk")
    assert text.count("MISSED") == 2 and "| fast | 2.00x [1.00, 4.00] | at least 1.00x | met |" in text
    assert "- slow: the disk\n" in text and "- huge: no reason is written yet" in text


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """The command line with two benchmarks that are scripts written by the test, and results in a folder of it."""
    package = tmp_path / "benchmarks"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(command_line, "ROOT", tmp_path)
    monkeypatch.setattr(command_line, "BENCHMARKS", {name: command_line.Benchmark(name, 1) for name in ("one", "two")})
    monkeypatch.setattr(command_line, "key", lambda repeats: "same")
    monkeypatch.setattr(measure, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(results, "JSON", tmp_path / "results.json")
    monkeypatch.setattr(results, "MARKDOWN", tmp_path / "RESULTS.md")
    # A script that is written anew within a second, of the same length, has the byte code of the old one.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")

    def write(name: str, found: Row, *, works: bool = True) -> None:
        code = f"import pathlib, sys; open('{tmp_path}/started', 'a').write('{name} ')\n"
        text = json.dumps([found.model_dump()])
        code += f"pathlib.Path(sys.argv[sys.argv.index('--json') + 1]).write_text({text!r})" if works else "sys.exit(1)"
        (package / f"{name}.py").write_text(code)

    return write


def test_an_interrupted_run_measures_only_what_is_missing(runner, tmp_path, capfd):
    runner("one", row("first"))
    runner("two", row("second"), works=False)
    assert command_line.main([]) == 1
    assert [found.claim for found in rows.read(results.JSON)] == ["first"]
    runner("two", row("second"))
    assert command_line.main([]) == 0
    assert (tmp_path / "started").read_text() == "one two two "
    assert [found.claim for found in rows.read(results.JSON)] == ["first", "second"]
    assert "one: measured before" in capfd.readouterr().out


def test_a_finished_run_is_measured_again(runner, tmp_path):
    runner("one", row("first"))
    assert command_line.main(["one"]) == command_line.main(["one"]) == 0
    assert (tmp_path / "started").read_text() == "one one "


def test_fresh_forgets_what_an_interrupted_run_measured(runner, tmp_path):
    runner("one", row("first"))
    runner("two", row("second"), works=False)
    command_line.main([])
    command_line.main(["--fresh"])
    assert (tmp_path / "started").read_text() == "one two one two "


def test_one_benchmark_leaves_the_rows_of_the_others_as_they_were_measured(runner):
    for name in ("one", "two"):
        runner(name, row(name, ratio=2.0))
    command_line.main([])
    runner("one", row("one", ratio=3.0))
    command_line.main(["one"])
    assert [(found.claim, found.ratio) for found in rows.read(results.JSON)] == [("one", 3.0), ("two", 2.0)]
    elsewhere = [found.model_copy(update={"environment": "another"}) for found in rows.read(results.JSON)]
    rows.write(results.JSON, elsewhere)
    command_line.main(["one"])
    found = {each.claim: each.environment for each in rows.read(results.JSON)}
    assert found == {"one": results.environment(), "two": "another"}


def test_an_unknown_benchmark_is_refused_with_the_choices(capsys):
    with pytest.raises(SystemExit):
        command_line.main(["speed"])
    assert "unknown benchmark 'speed'. Choose from: nothing_to_do, checks, features" in capsys.readouterr().err


# --- what is committed ---------------------------------------------------------------------------------------------


def test_every_benchmark_is_a_module_that_says_what_it_takes():
    for name in command_line.BENCHMARKS:
        path = provenance.ROOT / "benchmarks" / f"{name}.py"
        if name == "sweeps" and not path.exists():
            continue
        module = importlib.import_module(f"benchmarks.{name}")
        assert module.__doc__ and ("benchmarks." in module.__doc__ or f"benchmarks/{name}.py" in module.__doc__)
        assert callable(module.main)


@pytest.mark.skipif(not results.JSON.exists(), reason="nothing is measured yet")
def test_every_committed_row_names_a_command_that_exists_and_a_missed_one_its_reason():
    committed = rows.read(results.JSON)
    reasons = artifacts.read_json(results.REASONS) if results.REASONS.exists() else {}
    assert committed
    for found in committed:
        words = shlex.split(found.command)
        assert words[:2] == ["python", "-m"] and len(words) == 3
        assert words[2].removeprefix("benchmarks.") in command_line.BENCHMARKS
        assert provenance.ROOT.joinpath(*words[2].split(".")).with_suffix(".py").is_file()
        assert found.met is not False or reasons.get(found.claim), f"{results.REASONS}: why is it missed: {found.claim}"
    text = results.MARKDOWN.read_text(encoding="utf-8")
    assert all(f"| {found.claim} |" in text for found in committed)


def test_the_pipeline_before_gets_the_choices_that_it_knows():
    now = {"seed": 1, "new": 2, "head": {"epochs": 9, "views": 4}, "grid": {"C": [1]}}
    then = {"seed": 0, "head": {"epochs": 6, "old": 1}, "grid": [0]}
    assert dict(whole_pipeline.common_values(now, then)) == {"seed": 1, "head.epochs": 9, "grid": {"C": [1]}}
    assert list(whole_pipeline.unknown_keys(now, then)) == ["new", "head.views"]


def test_pieces_are_real_pictures_in_their_photographs_part(tmp_path):
    from PIL import Image

    photographs = []
    for number, part in enumerate(artifacts.PARTS):
        name = f"{part}/defective/cell{number}.png"
        path = tmp_path / "photographs" / name
        path.parent.mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 256, (70, 70), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        row = {"path": name, "split": part, "label": "defective"}
        photographs.append(dict.fromkeys(artifacts.MANIFEST_COLUMNS, "") | row)
    growth.write_pieces(tmp_path, photographs, 8)
    manifest = artifacts.read_csv(tmp_path / artifacts.MANIFEST, artifacts.MANIFEST_COLUMNS)
    assert [found["split"] for found in manifest] == ["train"] * 3 + ["validation"] * 3 + ["test"] * 2
    files = [tmp_path / artifacts.SPLIT / found["path"] for found in manifest]
    assert [artifacts.sha256_file(file) for file in files] == [found["sha256"] for found in manifest]
    assert len({found["sha256"] for found in manifest}) == 8
    for file in files:
        with Image.open(file) as piece:
            assert piece.size == (growth.SIDE, growth.SIDE)
    with pytest.raises(measure.BenchmarkError, match="more than 3 photographs have pieces"):
        growth.write_pieces(tmp_path, photographs, 13)
