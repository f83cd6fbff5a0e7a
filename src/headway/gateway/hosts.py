"""Where the replicas are: names become addresses, and stay what they are while the name still says so."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
from pathlib import Path

from headway.gateway.envoy_config import Host
from headway.gateway.spec import GatewaySpec, Upstream, upstream

ADDRESSES = "addresses.json"  # in the folder of a decision process: IP:port by replica, as the supervisor resolved them
GATEWAY = "gateway.id"  # there, too: what its supervisor calls the gateway
LOOKUP_S = 3.0


async def resolved(upstreams: tuple[str, ...], known: list[Host] | None = None) -> list[Host]:
    """Return the replicas with their addresses; `at` is "" where a name does not resolve, and the path of a socket.

    A name may lead to several addresses, in changing order: one of `known` is kept while it is among them, and while
    the name cannot be looked up.
    """
    return list(await asyncio.gather(*(_host(upstream(text, "gateway.upstreams"), known or []) for text in upstreams)))


async def _host(where: Upstream, known: list[Host]) -> Host:
    if not where.port:
        return Host(where.host)
    name = "" if _is_address(where.host) and not where.tls else where.host
    try:
        async with asyncio.timeout(LOOKUP_S):
            infos = await asyncio.get_running_loop().getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError):
        infos = []
        kept = next((host for host in known if name == host.name and host.at.endswith(f":{where.port}")), None)
        if kept is not None:
            return kept._replace(tls=where.tls)
    found = sorted({(info[0] != socket.AF_INET, str(info[4][0])) for info in infos})
    texts = [f"[{ip}]:{where.port}" if ":" in ip else f"{ip}:{where.port}" for _, ip in found]
    before = {host.at for host in known}
    at = next((text for text in texts if text in before), texts[0] if texts else "")
    return Host(at, name, where.tls)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def addresses_in(folder: Path, spec: GatewaySpec) -> list[str]:
    """Return the replicas' addresses as the supervisor left them in `folder`; resolved here where there is none."""
    file = folder / ADDRESSES
    if file.exists():
        return [str(text) for text in json.loads(file.read_text())]
    return [host.at for host in asyncio.run(resolved(spec.upstreams))]
