"""Tables for a terminal: nothing is ever cut, at no width, and a pipe has every row on one line."""

import io
import json

import pytest
from rich.console import Console, Group
from rich.text import Text

from cli_cases import run
from headway.report.sheet import Sheet, unbound

FIGURES = ["31.1 s to +1.28 min", "+30.6 ms (+180.7%)", "-99.5 to -99.2 points", "missed (target 90%)"]
DEPLOYMENT = "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--workload", "chat", "--rate", 10, "--requests", 400
LIMITS = "--ttft", "300ms", "--tpot", "30ms"


def sheet(columns=6):
    made = Sheet()
    made.add_column("figure", words=True)
    for place in range(columns):
        made.add_column(f"by the heading {place}")
    for name in ("energy per output token (fitted)", "requests/s"):
        made.add_row(name, *(FIGURES[place % len(FIGURES)] for place in range(columns)), style="bold")
    made.add_row("short of cells", "met")
    return made


def printed(made, width, terminal=False):
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    console.print(made, crop=False)
    return console.file.getvalue().splitlines()


def words(lines):
    return sorted(" ".join(lines).replace("─", " ").split())


@pytest.mark.parametrize("width", [200, 132, 119, 100, 80, 60, 40])
@pytest.mark.parametrize("terminal", [True, False])
def test_no_word_is_lost_and_no_line_too_long(width, terminal):
    lines = printed(sheet(), width, terminal)
    assert max(map(len, lines)) <= width
    whole = words(printed(sheet(), 1_000))
    assert set(words(lines)) == set(whole)
    if width >= 100:
        assert words(lines) == whole  # in one table: no column is told twice


def test_a_figure_breaks_only_in_a_range_or_before_a_bracket():
    lines = printed(sheet(), 100)
    assert any("31.1 s to" in line for line in lines) and any("+1.28 min" in line for line in lines)
    assert not any(line.rstrip().endswith("31.1") for line in lines)


def test_a_pipe_that_no_one_measured_has_each_row_on_one_line():
    made = sheet(8)
    unbound(Group(Text("before it"), Group(made)))
    lines = [line for line in printed(made, 80) if line.strip()]
    assert len(lines[-3:]) == 3 and "energy per output token (fitted)" in lines[-3]
    assert all(each in lines[-3] for each in FIGURES)
    assert max(map(len, printed(sheet(8), 80))) <= 80


def test_a_word_longer_than_the_width_is_whole():
    made = Sheet()
    made.add_column("name", words=True)
    made.add_column("value")
    made.add_row("x" * 50, "1")
    assert any("x" * 50 in line for line in printed(made, 30)) and words(printed(made, 30)).count("1") == 1


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    files = [tmp_path_factory.mktemp("results") / f"{name}.json" for name in ("first", "second")]
    for file, replicas in zip(files, (1, 2), strict=True):
        assert run("simulate", *DEPLOYMENT, "--replicas", replicas, *LIMITS, "--json", file).exit_code == 0
    return files


@pytest.mark.parametrize("columns", [None, 100, 80])
def test_whatif_says_what_is_sure_at_every_width(columns, tmp_path, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    file = tmp_path / "one.yaml"
    file.write_text("pools: [{count: 1, replica: {model: llama-3.1-8b, gpu: h100-sxm}}]")
    if columns:
        monkeypatch.setenv("COLUMNS", f"{columns}")
    asked = "--workload", "chat", "--requests", 400, "--rate", 10, "--rate", "2x", *LIMITS
    said = run("whatif", file, *asked, "--json", tmp_path / "found.json")
    assert said.exit_code == 0, said.output
    lines = said.stdout.splitlines()
    if columns:
        assert max(map(len, lines)) <= columns
    table = lines[next(i for i, line in enumerate(lines) if set(line.strip()) == {"─"}) + 1 :]
    verdicts = json.loads((tmp_path / "found.json").read_text())["verdicts"]
    shown = {"differs": "yes", "noise": "noise", "model": "model"}
    for figure, verdict in (("TTFT p90", "ttft_s_p90"), ("E2E p90", "e2e_s_p90")):
        row = next(line for line in table if line.strip().startswith(figure))
        assert row.split()[-1] == shown[next(each for name, each in verdicts.items() if name in (verdict, figure))]
    assert "…" not in said.stdout


@pytest.mark.parametrize("columns", [None, 100, 80, 60])
def test_other_verbs_cut_nothing_either(columns, results, monkeypatch):
    monkeypatch.setenv("COLUMNS", f"{columns or ''}")
    verbs = [
        ("compare", *results),
        ("simulate", *DEPLOYMENT, *LIMITS),
        ("capacity", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--workload", "chat", "--curve", "2,10", *LIMITS),
        ("list", "gpus"),
    ]
    for verb in verbs:
        said = run(*verb)
        assert said.exit_code == 0, said.output
        assert "…" not in said.stdout
        if columns and verb[0] != "list":
            assert max(map(len, said.stdout.splitlines())) <= columns
