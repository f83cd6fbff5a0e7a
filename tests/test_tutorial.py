"""The tutorial runs, block by block in an empty folder, and says what it says it does."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

import headway
from headway.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


@pytest.mark.skipif(bool(headway.interpreted_modules()), reason="takes minutes where the core is interpreted")
def test_every_block_of_the_tutorial_does_what_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said, kinds = "", []
    for kind, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        kinds.append(kind)
        if kind == "python":
            exec(compile(text, "docs/tutorial.md", "exec"), {"__name__": "tutorial"})
            said = capsys.readouterr().out
        elif kind == "sh":
            said = " ".join(ran(command) for command in commands(text))
        else:
            assert kind == "text", f"a block of {kind}: who runs it?"
            for line in text.splitlines():
                assert line.strip() in said, f"{line!r} is not in what came:\n{said}"
    assert kinds.count("sh") >= 6 and kinds[0] == kinds[-1] == "python"
    assert "rate_req_s" in Path("day.csv").read_text()
    assert "vllm serve" in Path("launch/mixed-0.sh").read_text()
    assert Path("gateway/gateway.yaml").is_file() and list(Path("manifests").iterdir())
    assert Path("plan.html").read_text().startswith("<!doctype html>")
    assert "mixed-0.sh" in said


def commands(text):
    """The commands of a block, a list of words each."""
    return [shlex.split(line) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def ran(words):
    """What a command printed, in one line; it has to succeed."""
    assert words[0] == "headway"
    done = CliRunner().invoke(main, words[1:])
    assert done.exit_code == 0, f"{shlex.join(words)}\n{done.output}"
    return " ".join(done.stdout.split())
