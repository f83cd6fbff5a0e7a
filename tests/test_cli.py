"""The command line as a whole: help, catalogues, unknown words, and that docs/cli.md names every option."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

import headway
from cli_cases import refused, run
from headway.cli import main

ROOT = Path(__file__).resolve().parents[1]
VERBS = sorted(main.commands)


def options_of(command):
    return {name for parameter in command.params if isinstance(parameter, click.Option) for name in parameter.opts}


# --- help and version ---


def test_version_is_that_of_the_package():
    result = run("--version")
    assert result.stdout == f"headway {headway.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_names_each_of_its_options(verb):
    result = run(verb, "--help")
    assert result.exit_code == 0
    for option in options_of(main.commands[verb]):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", result.stdout), option


def test_help_lists_the_verbs_with_the_main_one_first():
    shown = run("--help").stdout.partition("Commands:")[2].split()
    assert [word for word in shown if word in VERBS] == [
        "plan", "simulate", "capacity", "bench", "compare", "validate", "calibrate", "profile", "emulate", "serve",
        "picker", "replay", "whatif", "report", "export", "list"
    ]  # fmt: skip


def test_help_loads_neither_numpy_nor_rich_nor_any_room():
    code = "from headway.cli import main; main(['plan', '-h'], standalone_mode=False); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    rooms = {f"headway.{path.parent.name}" for path in Path(headway.__file__).parent.glob("*/__init__.py")}
    assert "headway.cli" in loaded
    assert not loaded & ({"numpy", "rich", "msgspec", "yaml", "altair", "scipy", "pyarrow"} | rooms - {"headway.cli"})


def test_the_module_runs_as_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "headway.cli", "list", "nothing"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    allowed = "exports, gpus, models, nodes, policies, workloads"
    assert done.stderr == f"Error: unknown catalogue 'nothing': allowed: {allowed}\n"


# --- unknown words ---


def test_an_unknown_option_names_the_nearest():
    refused(run("simulate", "--modle", "x"), "--modle", "--model")


def test_an_unknown_verb_names_the_nearest():
    refused(run("simulat"), "no verb 'simulat'", "simulate")
    refused(run("xyzzy"), "verbs are " + ", ".join(main.list_commands(None)))


def test_an_unknown_catalogue_names_the_nearest():
    refused(run("list", "model"), "unknown catalogue 'model'", "nearest: models")


# --- headway list ---


@pytest.mark.parametrize(
    ("catalogue", "name", "column"),
    [
        ("models", "llama-3.1-70b", "parameters"),
        ("exports", "vllm", "what it writes"),
        ("gpus", "h100-sxm", "$/h"),
        ("nodes", "h100-sxm-x8", "to other nodes"),
        ("policies", "prefix-affinity", "what it does"),
        ("workloads", "chat", "prompt tokens"),
    ],
)
def test_list_prints_a_table_and_json(catalogue, name, column):
    table = run("list", catalogue)
    assert table.exit_code == 0
    assert name in table.stdout
    assert column in table.stdout
    rows = json.loads(run("list", catalogue, "--json").stdout)
    assert name in {row.get("key") or row["name"] for row in rows}


def test_listed_models_carry_what_the_model_says():
    from headway.model import model

    rows = {row["key"]: row for row in json.loads(run("list", "models", "--json").stdout)}
    spec = model("mixtral-8x7b")
    row = rows["mixtral-8x7b"]
    assert (row["total_params"], row["active_params"]) == (spec.total_params(), spec.active_params())
    assert row["kv_bytes_per_token"] == spec.kv_bytes_per_token("bf16")


def test_listed_gpus_carry_the_source_of_each_number():
    rows = json.loads(run("list", "gpus", "--json").stdout)
    for row in rows:
        assert row["sources"]["memory_bytes"]["kind"] in ("vendor", "measured", "modelled")


# --- docs/cli.md ---

DOC = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def section(verb):
    return DOC.partition(f"## `headway {verb}`")[2].partition("\n## ")[0]


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_documented_and_no_other(verb):
    options, text = options_of(main.commands[verb]), section(verb)
    assert text, f"docs/cli.md has no section for {verb}"
    for option in options:
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", text), f"{option} of {verb} is not in docs/cli.md"
    tables = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", re.sub(r"`headway [^`]*`", "", tables)))
    assert named <= options | set().union(*map(options_of, main.commands.values()))


def documented_commands():
    blocks = re.findall(r"```sh\n(.*?)```", DOC, re.S)
    return [line for block in blocks for line in block.replace("\\\n", "").splitlines() if line.startswith("headway ")]


@pytest.mark.parametrize("line", documented_commands())
def test_documented_commands_parse(line):
    verb, *words = shlex.split(line)[1:]
    with main.commands[verb].make_context(verb, words) as ctx:
        assert ctx.params


def test_the_command_of_the_makefile_parses():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    words = re.search(r"^PLAN := (.*)$", makefile, re.M)
    assert words is not None
    verb, *rest = shlex.split(f"{words[1]} --html headway-plan.html")
    with main.commands[verb].make_context(verb, rest) as ctx:
        assert ctx.params["html_to"] == "headway-plan.html"


def test_a_policy_named_anew_leaves_the_parameters_of_the_one_before():
    from headway.cli.asked import chosen_policies
    from headway.sim import Policies

    params = {"route": {"weights": {"mixed": [1.0]}}, "choose_model": {"at": 100}}
    before = Policies(route="weighted-requests", choose_model="threshold", params=params)
    assert chosen_policies(before, ["choose_model=first"]).params == {"route": params["route"]}
    assert chosen_policies(before, ["choose_model=threshold", "order=edf"]).params == params
