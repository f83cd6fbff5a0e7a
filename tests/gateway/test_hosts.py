"""Where replicas are, and what of them Envoy is told."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from headway.errors import BadInput
from headway.gateway.envoy_config import Host, bootstrap, discovered_hosts, envoy_config
from headway.gateway.hosts import resolved
from headway.gateway.spec import GatewaySpec, Tls, upstream


@pytest.mark.parametrize(
    ("text", "host", "port", "tls"),
    [
        ("203.0.113.1:8000", "203.0.113.1", 8000, False),
        ("http://engine.example:8000/", "engine.example", 8000, False),
        ("https://engine.example:8443", "engine.example", 8443, True),
        ("https://engine.example", "engine.example", 443, True),
        ("https://[::1]:8443", "::1", 8443, True),
    ],
)
def test_upstreams_are_read(text, host, port, tls):
    assert upstream(text, "u") == (host, port, tls)


@pytest.mark.parametrize(
    "text", ["engine", "ftp://engine:1", "https://engine.example/v1", "engine:0", "http://engine", ""]
)
def test_what_is_no_upstream_is_refused(text):
    with pytest.raises(BadInput, match=r"gateway\.upstreams\.0"):
        GatewaySpec(upstreams=(text,))


@pytest.mark.parametrize("holds", [None, "no PEM", "\udcff"])
def test_certificates_that_cannot_be_used_are_refused_before_envoy_sees_them(tmp_path, holds):
    file = tmp_path / "cert.pem"
    if holds is not None:
        file.write_text(holds, errors="surrogateescape")
    with pytest.raises(BadInput, match=r"gateway\.tls\.certificate"):
        Tls(certificate=str(file), key=str(file)).read()


def test_an_address_is_kept_while_the_name_still_leads_there_or_nowhere(monkeypatch):
    answers = [["203.0.113.2", "203.0.113.1"], ["203.0.113.1", "203.0.113.3"], ["203.0.113.3"], []]

    async def lookup(self, host, port, **_):
        if not answers[0]:
            raise OSError("no such name")
        return [(2, 1, 6, "", (ip, port)) for ip in answers[0]]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", lookup)
    known, found = None, []
    while answers:
        known = asyncio.run(resolved(("https://engine.example:8443",), known))
        found.append(known[0].at)
        answers.pop(0)
    assert found == ["203.0.113.1:8443", "203.0.113.1:8443", "203.0.113.3:8443", "203.0.113.3:8443"]
    answers = [[]]
    assert asyncio.run(resolved(("https://engine.example:8443",))) == [Host("", "engine.example", True)]
    assert asyncio.run(resolved(("https://engine.example:8444",), known)) == [Host("", "engine.example", True)]


def test_what_is_watched_and_what_envoy_begins_with_are_the_whole(tmp_path):
    spec = GatewaySpec(upstreams=("127.0.0.1:1", "nowhere.invalid:2"), models=("m",))
    hosts = [Host("127.0.0.1:1"), Host("", "nowhere.invalid")]
    whole = envoy_config(spec, hosts, tmp_path / "envoy.sock", tmp_path)
    begin, files = bootstrap(whole, tmp_path)
    assert set(files) == {"listener.json", "replicas.json", "decisions.json", "records.json"}
    (listener,) = json.loads(files["listener.json"])["resources"]
    assert {name: value for name, value in listener.items() if name != "@type"} == whole["static_resources"][
        "listeners"
    ][0]
    assert '"request_headers_timeout": "10s"' in files["listener.json"], "half a header is not waited for longer"
    assert '"request_timeout": "30.000s"' in files["listener.json"], "nor half a body"
    watched = [cluster["eds_cluster_config"]["eds_config"] for cluster in begin["static_resources"]["clusters"]]
    paths = {each["path_config_source"]["path"] for each in (*watched, begin["dynamic_resources"]["lds_config"])}
    assert {Path(path).name for path in paths} == set(files)
    assert files["replicas.json"] == discovered_hosts(hosts)
    (group,) = json.loads(files["replicas.json"])["resources"][0]["endpoints"]
    assert len(group["lb_endpoints"]) == 1, "a replica without an address is not there"
