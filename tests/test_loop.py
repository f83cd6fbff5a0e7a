"""The loop on a real engine, in short: what `make loop` does at length."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import headway

ENGINE = Path(__file__).resolve().parents[1] / "examples" / "llamacpp"
PACKAGE = str(Path(headway.__file__).parents[1])  # the copy under test, from wherever a process runs
NEEDED = ("xllamacpp", "gguf", "envoy", "google", "httptools")
TOLERANCE = 0.25  # median over three loads of five seconds each; `make loop` holds 0.15 over four of twenty
LACKING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


@pytest.mark.skipif("gguf" in LACKING, reason="not installed: gguf")
def test_the_file_is_of_the_architecture_that_is_simulated(tmp_path):
    import gguf

    from headway.model import model

    for name in ("a.gguf", "b.gguf"):
        subprocess.run([sys.executable, ENGINE / "tiny_model.py", tmp_path / name], check=True)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    read, spec = gguf.GGUFReader(tmp_path / "a.gguf"), model(str(ENGINE / "config.json"))
    assert sum(int(each.n_elements) for each in read.tensors) == spec.total_params()
    tokens = read.fields["tokenizer.ggml.tokens"]
    texts = [bytes(tokens.parts[place]).decode() for place in tokens.data]
    assert len(texts) == len(set(texts)) == spec.vocab
    assert all(len(text) == 4 and text.isascii() for text in texts[1000:10_000])  # what bench sends: a token, an event


@pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the threads of the engines from /proc")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="the engines have a core to themselves")
def test_what_is_calibrated_on_an_engine_predicts_it_and_ranks_policies(tmp_path, monkeypatch):
    from benchmarks import loop

    monkeypatch.setenv("PYTHONPATH", PACKAGE)
    for attempt in ("once", "again"):  # what a shared machine did to a few seconds it does not do twice
        (tmp_path / attempt).mkdir()
        found = loop.close_loop(tmp_path / attempt, loop.QUICK)
        said = loop.table(found)
        print(said)
        errors, busy = found.errors(), [run.name for run in (*found.loads, *found.policies) if not run.reliable]
        (pair,) = found.pairs
        good = all(error <= TOLERANCE for error in errors.values()) and pair.differs and pair.agrees
        if good:
            return
        if busy:
            pytest.skip(f"the machine was busy or at another pace during {', '.join(busy)}:\n{said}")
    raise AssertionError(said)
