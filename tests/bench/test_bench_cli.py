"""`headway bench` and `headway compare` from end to end: a run against a paced source, and all that is refused."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from bench_cases import USAGE, event

from cli_cases import refused, run
from headway.bench import PacedSource, Target, bench, probe
from headway.errors import BadInput
from headway.metrics import Records, Result
from headway.workload import workload

NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def source():
    with PacedSource(0.02, 0.005) as running:
        yield running


@pytest.fixture
def engine():
    """An engine that refuses what `engine.refuses` names, and counts tokens as `engine.count` does."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, status, body):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer(*server.models)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.seen.append((self.path, body, self.headers.get("Authorization")))
            prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
            form = "chat" if "messages" in body else "ids" if isinstance(prompt, list) else "words"
            if server.refuses(form, body):
                self.answer(server.status, b'{"error": {"message": "not so, Bearer sk-1"}}')
                return
            usage = {**USAGE, "prompt_tokens": server.count(prompt)} if server.count else None
            self.answer(200, event(" a") + (event(usage=usage) if usage else b"") + b"data: [DONE]\n\n")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.models = (200, b'{"data": [{"id": "served"}]}')
    server.refuses, server.count, server.status, server.seen = lambda form, body: False, len, 400, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_run_writes_a_result_its_rows_and_the_clients_own_error(source, tmp_path):
    options = ("--input", "64", "--output", "8", "--rate", "60", "--requests", "30", "--processes", "2", "--ttft", "5s")
    files = {name: tmp_path / name for name in ("a.json", "a.csv", "b.json", "b.csv")}
    done = run("bench", source.url, *options, "--json", files["a.json"], "--records", files["a.csv"])
    assert done.exit_code == 0, done.output
    for words in ("Client's error", "2 processes", "token ids, as many as asked", "100% of requests"):
        assert words in " ".join(done.stdout.split())
    result, rows = Result.from_json(files["a.json"].read_text()), Records.read(files["a.csv"])
    assert result.requests.finished == len(rows) == 30
    told = result.provenance["measured"]
    assert told["kind"] == "measured" and told["prompt_length_error"] == 0.0 and told["answers_of_other_length"] == 0
    error = told["client"]["error"]
    assert error["pace"]["streams"] == told["client"]["peak_in_flight"] >= 1
    assert set(error["ttft_s"]) == set(error["itl_s"]) == {"p50", "p99"}
    (batch,) = workload("chat", requests=30).batches(0)
    assert rows["id"].tolist() == batch.id.tolist()
    assert result.ttft_s.p50 >= 0.02
    more = ("--no-check", "-q", "--json", files["b.json"], "--records", files["b.csv"])
    again = run("bench", source.url, *options, *more)
    assert again.exit_code == 0 and again.stdout == ""
    compared = run("compare", files["a.json"], files["b.json"], "--json", tmp_path / "c.json")
    assert compared.exit_code == 0, compared.output
    assert "requests paired by id" in compared.stdout
    assert json.loads((tmp_path / "c.json").read_text())["paired"] is True


def test_the_models_that_classes_ask_for_are_said(source, tmp_path):
    classes = [{"name": "a", "model": "auto"}, {"name": "b"}, {"name": "c", "model": "large"}]
    lengths = {name: {"kind": "constant", "tokens": tokens} for name, tokens in (("prompt", 16), ("output", 2))}
    load = {**lengths, "arrival": {"kind": "poisson", "rate_req_s": 50}, "classes": classes}
    file = tmp_path / "load.yaml"
    file.write_text(json.dumps(load))
    done = run("bench", source.url, "--workload", file, "--requests", "6", "--no-check")
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "model auto, paced, large; prompts" in said and "(completions), model auto, paced, large" in said


def test_a_stop_gives_what_there_is(source):
    seen = []
    what = workload("chat", rate=50, requests=5000)
    target = Target(url=source.url, endpoint="chat", prompts="words")
    result = bench(target, what, progress=lambda doing, so_far: seen.append(so_far), stop=lambda: len(seen) > 2)
    assert 0 < result.requests.arrived < 5000
    assert result.requests.unfinished > 0
    assert "interrupted" in result.provenance["stopped"]
    assert result.provenance["measured"]["client"]["error"] is None


# --- what an endpoint takes ---

BOTH = [("completions", "ids"), ("completions", "words"), ("chat", "words")]


def test_the_model_and_the_added_tokens_are_found_out(engine):
    engine.count = lambda prompt: len(prompt) + 1
    target, how = probe(Target(url=engine.url), "sk-1", BOTH)
    assert (target.model, target.endpoint, target.prompts) == ("served", "completions", "ids")
    assert target.overhead_tokens == 1.0
    assert "with 1 that the engine adds" in how
    assert engine.seen[0][2] == "Bearer sk-1"


def test_where_ids_are_refused_words_are_sent_and_their_tokens_counted(engine):
    engine.refuses = lambda form, body: form != "chat"
    engine.count = lambda text: round(len(text) / 3.2) + 11
    target, how = probe(Target(url=engine.url, model="m"), None, BOTH)
    assert (target.endpoint, target.prompts) == ("chat", "words")
    assert target.chars_per_token == pytest.approx(3.2, rel=0.01)
    assert target.overhead_tokens == pytest.approx(11, abs=1)
    assert "both measured" in how


def test_an_engine_that_does_not_count_is_said_to(engine):
    engine.count = None
    _, how = probe(Target(url=engine.url, model="m"), None, BOTH[1:])
    assert "does not say" in how


def test_an_engine_that_takes_ids_for_something_else_gets_words(engine):
    engine.count = lambda prompt: 5 * len(prompt) if isinstance(prompt, list) else len(prompt) // 5
    target, _ = probe(Target(url=engine.url, model="m"), None, BOTH)
    assert target.prompts == "words"


def test_what_an_endpoint_says_is_passed_on_without_the_key(engine):
    engine.refuses = lambda form, body: "ignore_eos" in body
    with pytest.raises(BadInput, match=r"HTTP 400.*not so") as found:
        probe(Target(url=engine.url, model="m"), "sk-1", BOTH)
    assert "sk-1" not in str(found.value)
    target, _ = probe(Target(url=engine.url, model="m", body={"ignore_eos": None}), "sk-1", BOTH)
    assert target.prompts == "ids"
    engine.refuses, engine.status = lambda form, body: True, 401
    with pytest.raises(BadInput, match="--key-env or --key-file"):
        probe(Target(url=engine.url, model="m"), None, BOTH)


@pytest.mark.parametrize("models", [(404, b"no"), (200, b"[]"), (200, b'{"data": []}')])
def test_without_a_list_of_models_one_is_asked_for(engine, models):
    engine.models = models
    with pytest.raises(BadInput, match="--model"):
        probe(Target(url=engine.url), None, BOTH)


# --- bad input ---


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("localhost:1",), "http://localhost:8000"),
        ((NOBODY,), "cannot be reached"),
        ((NOBODY, "--model", "m"), "is it up"),
        ((NOBODY, "--key-env", "NO_SUCH_VARIABLE"), "NO_SUCH_VARIABLE"),
        ((NOBODY, "--key-file", "no/such/file"), "cannot be read"),
        ((NOBODY, "--key-file", "x", "--key-env", "y"), "leave one of them out"),
        ((NOBODY, "--body", "{"), "no JSON"),
        ((NOBODY, "--body", "[]"), "no JSON object"),
        ((NOBODY, "--body", '{"max_tokens": 3}'), "max_tokens"),
        ((NOBODY, "--endpoint", "chat", "--prompts", "ids"), "no token ids"),
        ((NOBODY, "--processes", "0"), "not above zero"),
        ((NOBODY, "--workload", "no-such"), "no-such"),
        ((NOBODY, "--set", "pools.0.count=2"), "only fields of workload."),
        ((NOBODY, "--deployment", "no-such.yaml"), "no-such.yaml"),
        ((NOBODY, "--json", "no/such/folder/x.json"), "no folder"),
        ((NOBODY, "--records", "x.txt"), "x.txt"),
        ((NOBODY, "--timeout", "0"), "not above zero"),
        ((NOBODY, "--ttft", "soon"), "soon"),
    ],
)
def test_bad_input_of_bench_is_refused_before_anything_is_sent(words, said):
    refused(run("bench", *words), said)


def test_bad_input_of_compare_is_refused(tmp_path):
    good = tmp_path / "good.json"
    done = run("simulate", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--requests", "20", "-q", "--json", good)
    assert done.exit_code == 0, done.output
    broken, rows = tmp_path / "broken.json", tmp_path / "rows.csv"
    broken.write_text("{}")
    refused(run("compare", good, tmp_path / "none.json"), "cannot be read")
    refused(run("compare", good, broken), "broken.json")
    refused(run("compare", good, good, "--records", "x.csv"), "neither")
    Records({name: [1] for name in ("id", "arrival_s", "first_token_s", "last_token_s", "prompt_tokens",
                                    "output_tokens")} | {"status": [0]}).write(rows)  # fmt: skip
    refused(run("compare", good, good, "--records", rows, "--records", rows), "1 rows", "20 requests")
    assert "rows of both are needed" in run("compare", good, good).stdout
