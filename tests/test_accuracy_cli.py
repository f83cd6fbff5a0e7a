"""`headway validate`: what it prints, writes and refuses."""

import csv
import json

import msgspec
import pytest
from click.testing import CliRunner

from accuracy_cases import as_csv, measured_by_ourselves, point
from headway.cli import main
from test_accuracy_replay import NAME, record


def run(*words):
    return CliRunner().invoke(main, ["validate", *(str(word) for word in words)])


@pytest.fixture
def measured(tmp_path):
    rows = [measured_by_ourselves(0.8, row_id=str(c), concurrency=float(c)) for c in range(1, 7)]
    path = tmp_path / "points.csv.gz"
    rows += [point(row_id="odd", tp=3), point(row_id="fast", measured={"tpot_mean": 1e-5})]
    path.write_bytes(as_csv(rows, zipped=True))
    return path


def test_a_table_is_printed_with_errors_reasons_and_rows_that_break_physics(measured):
    said = run(measured)
    assert said.exit_code == 0, said.output
    text = " ".join(said.stdout.split())
    assert "6 of 8 rows simulated (75%)" in text
    assert "TTFT 25.0% 25.0% 25.0% +25.0%" in text
    assert "layout and number of GPUs disagree 1" in text
    assert "row fast: breaks physics: tpot_mean below the time to read the weights" in text
    assert "tok/s per GPU" in text and "throughput_per_gpu 1.00" in text


def test_a_table_without_a_usable_row_is_no_answer_and_says_why(tmp_path):
    figures = {"tpot_mean": 1e-9}
    rows = [
        point(row_id="a", tp=None, gpu_count=4, measured=figures),
        point(row_id="b", tp=None, gpu_count=4, measured=figures),
        point(row_id="c", concurrency=None, measured=figures),
        point(row_id="fast", measured=figures),
    ]
    (tmp_path / "none.csv").write_bytes(as_csv(rows))
    said = run(tmp_path / "none.csv", "--json", tmp_path / "told.json")
    assert said.exit_code == 1
    assert said.stderr.strip().endswith("none.csv: none of its 4 rows could be used, so nothing was compared")
    text = " ".join(said.stdout.split())
    assert text.startswith("none of 4 rows could be used")
    assert "layout not stated 2" in text and "load not stated 1" in text
    assert "layout not stated: fill in tp, and pp, dp, ep where there are several" in text
    assert "row fast: breaks physics: tpot_mean" in text
    assert "Kendall" not in text and "throughput" not in text  # no table of nothing
    assert json.loads((tmp_path / "told.json").read_text())["used"] == 0


def test_of_a_single_row_no_table_is_a_head_without_lines(tmp_path):
    (tmp_path / "one.csv").write_bytes(as_csv([measured_by_ourselves(0.8, row_id="a")]))
    text = run(tmp_path / "one.csv").stdout
    assert "1 of 1 rows simulated" in text and "median high / low" in text
    for head in ("source", "engine", "median, p90 and bias", "skipped because", "Kendall", "regret"):
        assert head not in text, head


def test_groups_that_are_not_shown_are_counted(tmp_path):
    rows = [measured_by_ourselves(0.8, row_id=f"{i}", concurrency=float(2**i)) for i in range(6)]
    rows.append(measured_by_ourselves(0.8, row_id="other", source="elsewhere"))
    (tmp_path / "two.csv").write_bytes(as_csv(rows))
    text = " ".join(run(tmp_path / "two.csv").stdout.split())
    assert "1 more with fewer rows (--points has every row)" in text and "elsewhere" not in text


def test_json_alone_goes_to_stdout_and_points_to_a_file(measured, tmp_path):
    said = run(measured, "--json", "-", "--points", tmp_path / "points.csv", "--workers", "1")
    data = json.loads(said.stdout)
    assert data["errors"]["tpot"]["mape"] == pytest.approx(0.25)
    lines = list(csv.DictReader((tmp_path / "points.csv").read_text().splitlines()))
    assert {line["row_id"] for line in lines} == {"1", "2", "3", "4", "5", "6"}
    assert all(float(line["predicted"]) == pytest.approx(1.25 * float(line["measured"])) for line in lines)


def test_two_processes_give_what_one_gives(measured):
    one, two = (run(measured, "--json", "-", "--quiet", "--workers", count) for count in (1, 2))
    assert one.stdout == two.stdout != ""


def test_a_sample_is_as_large_as_asked(measured):
    assert json.loads(run(measured, "--sample", "2", "--json", "-").stdout)["rows"] == 2


def test_recorded_runs_are_printed(tmp_path):
    record(tmp_path, data_parallel_size=1)
    said = run("--requests", tmp_path, "--json", tmp_path / "out.json")
    text = " ".join(said.stdout.split())
    assert f"{NAME}: 60 requests" in text and "TPOT p99" in text and "running: off by 0.0 sequences" in text
    assert json.loads((tmp_path / "out.json").read_text())["runs"][NAME]["requests"] == 60
    record(tmp_path, data_parallel_size=2)
    assert "skipped" in run("--requests", tmp_path).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name either a table of measurements"),
        (("FILE", "--requests", "."), "name either a table of measurements"),
        (("FILE", "--json", "-", "--points", "-"), "only one answer can go to stdout"),
        (("FILE", "--trace", "x"), "--trace belongs to --requests"),
        (("--requests", ".", "--sample", "3"), "--sample belongs to a table"),
        (("--requests", ".", "--points", "x"), "--points belongs to a table"),
        (("nothing.csv",), "no such file"),
        (("FILE", "--json", "nowhere/a.json"), "there is no folder"),
        (("FILE", "--sample", "0"), "not above zero"),
    ],
)
def test_what_makes_no_sense_is_refused(words, said, measured):
    result = run(*(measured if word == "FILE" else word for word in words))
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_figures_in_another_unit_are_pointed_out(tmp_path):
    rows = [measured_by_ourselves(1.0, row_id=str(c), concurrency=float(c)) for c in range(1, 7)]

    def scaled(by):
        times = ("ttft", "tpot", "itl", "e2e")
        return [
            msgspec.structs.replace(row, measured={k: v * by for k, v in row.measured.items() if k.startswith(times)})
            for row in rows
        ]

    (tmp_path / "micro.csv").write_bytes(as_csv(scaled(1000.0)))
    said = run(tmp_path / "micro.csv", "--workers", "1")
    assert "tpot: measured is 1,000 times the predicted at the median: check the unit, milliseconds" in said.stderr
    (tmp_path / "seconds.csv").write_bytes(as_csv(scaled(0.001)))
    said = run(tmp_path / "seconds.csv", "--workers", "1")
    assert "6 of 6 rows break physics: check the units (times in milliseconds)" in said.stderr
    (tmp_path / "right.csv").write_bytes(as_csv(rows))
    assert "unit" not in run(tmp_path / "right.csv", "--workers", "1").stderr
