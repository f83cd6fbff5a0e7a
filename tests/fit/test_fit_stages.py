"""The one entry that fits everything: order, what is missing, a stage that fails, and files handed on."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from fit import __main__, accuracy, stages
from fit.stages import STAGES, lacking, stale
from headway import cost

ROOT = Path(__file__).resolve().parents[2]


def folder_with(folder, *names):
    for name in names:
        (folder / name).write_bytes(gzip.compress(b"gpu\n"))
    return folder


EVERY = sorted({file for stage in STAGES.values() for file in stage.reads})


def test_a_folder_with_every_file_lacks_nothing(tmp_path):
    assert lacking(folder_with(tmp_path, *EVERY), list(STAGES)) == ""


@pytest.mark.parametrize("name", STAGES)
def test_each_file_that_a_stage_reads_is_named_where_it_is_absent(tmp_path, name):
    for absent in STAGES[name].reads:
        folder = tmp_path / absent
        folder.mkdir()
        said = lacking(folder_with(folder, *(file for file in EVERY if file != absent)), [name])
        assert absent in said.splitlines()[0]
        assert all(file not in said.splitlines()[0] for file in EVERY if file != absent)
        assert ("aiconfigurator" in said) == absent.startswith("ops")
        assert "make fit DATA=FOLDER" in said


def test_stages_that_can_run_are_offered(tmp_path):
    said = lacking(folder_with(tmp_path, "serving.csv.gz"), list(STAGES))
    assert "--only engines uncertainty" in said
    assert lacking(tmp_path, ["engines", "uncertainty"]) == ""
    assert "no such folder" in lacking(tmp_path / "elsewhere", ["engines"])


def test_without_the_measurements_the_program_stops_before_it_does_anything(tmp_path):
    before = {stage.writes: stage.writes.read_bytes() for stage in STAGES.values()}
    with pytest.raises(SystemExit, match=r"no ops_gemm\.csv\.gz"):
        __main__.main([str(tmp_path)])
    assert {path: path.read_bytes() for path in before} == before


def test_tables_of_measurements_that_are_not_there_are_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fit.accuracy", str(tmp_path / "elsewhere")])
    with pytest.raises(SystemExit) as left:
        accuracy.main()
    assert left.value.code == 2
    assert "elsewhere/serving.csv.gz: no such file" in capsys.readouterr().err


def test_stages_run_in_the_order_of_dependence_however_they_are_asked_for(tmp_path, monkeypatch, capsys):
    run = []
    monkeypatch.setattr(__main__, "ran", lambda name, folder, cores: run.append(name) or "as before")
    monkeypatch.setattr(__main__, "lacking", lambda folder, names: "")
    __main__.main([str(tmp_path), "--only", "uncertainty", "engines"])
    assert run == ["engines", "uncertainty"]
    assert "power.yaml" in capsys.readouterr().out.splitlines()[-1]
    __main__.main([str(tmp_path)])
    assert run[2:] == ["operators", "engines", "power", "uncertainty", "published"]


def test_files_fitted_on_what_was_written_anew_are_named():
    assert stale(list(STAGES)) == ""
    assert stale(["published"]) == ""
    assert [name in stale(["engines"]) for name in ("operators.json", "power.yaml", "uncertainty.yaml")] == [
        False, True, True,
    ]  # fmt: skip


def test_a_stage_that_fails_says_why_ends_the_program_and_leaves_its_file(tmp_path):
    folder = folder_with(tmp_path, *EVERY)
    (folder / "ops_gemm.csv.gz").write_bytes(b"no gzip at all")
    before = STAGES["operators"].writes.read_bytes()
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "fit", str(folder), "--only", "operators", "engines"],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("operators: ") and "operators.json stays as it was" in done.stderr
    assert "Traceback" not in done.stderr
    assert "[1/2] operators" in done.stdout and "engines" not in done.stdout
    assert STAGES["operators"].writes.read_bytes() == before


def test_the_package_that_is_imported_gets_the_files_of_the_checkout(tmp_path, monkeypatch):
    checkout, installed = tmp_path / "src", tmp_path / "site" / "data"
    checkout.mkdir()
    installed.mkdir(parents=True)
    made = {name: stage._replace(writes=checkout / stage.writes.name) for name, stage in STAGES.items()}
    for stage in made.values():
        stage.writes.write_text("new")
    (installed / "power.yaml").write_text("old")
    monkeypatch.setattr(stages, "STAGES", made)
    monkeypatch.setattr(cost, "__file__", str(tmp_path / "site" / "__init__.py"))
    stages.hand_on()
    assert {path.name: path.read_text() for path in installed.iterdir()} == dict.fromkeys(
        ("operators.json", "engines.yaml", "power.yaml", "uncertainty.yaml", "published.yaml"), "new"
    )


def test_every_stage_writes_one_data_file_of_its_own():
    places = [stage.writes for stage in STAGES.values()]
    assert all(one != other for one, other in pairwise(sorted(places)))
    assert all(
        path.is_file() and path.parent == ROOT / "src" / "headway" / "cost" / "data" for path in places
    )
