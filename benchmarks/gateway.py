"""What the gateway adds and costs: beside nothing, beside Envoy alone, and beside other routers, in one run.

    python benchmarks/gateway.py [--setups NAME ...] [--peers FOLDER] [--seconds 3] [--realtime]

The gateway (all its processes) on the first core, sources and load on the last one. "json": a request of some 170 bytes
and an answer of 260, by wrk in a closed loop. "paced": a first token after 50 ms and 64 of them 10 ms apart; "burst":
the same at once; read by the load generator of `headway bench`. CPU is what the kernel counts for the processes of the
gateway, memory what is theirs alone and their share of the rest (PSS) after the load. "headway, gRPC library" is the
same decision process behind grpc.aio, "in threads" behind the library's other server, with a thread for each request.
Peers are taken from the environment in FOLDER where it has them: `vllm-router`,
`litellm`. `--realtime` gives all processes precedence over whatever else runs on the machine (root only).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measure import keep, show

STREAMS = (1, 32, 256)
FEWER = {"litellm": (1, 32)}  # 256 paced streams would take it minutes
TOKENS, FIRST_S, GAP_S = 64, 0.05, 0.01
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "paced",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "a word"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13},
    }
).encode()
BODY = json.dumps(
    {"model": "paced", "messages": [{"role": "user", "content": "Say a word. " * 5}], "max_tokens": 4, "n": 1}
)
WRK = """
wrk.method, wrk.path = "POST", "/v1/chat/completions"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer sk-bench"
wrk.body = [[%s]]
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format('{"requests":%%d,"us":%%d,"failed":%%d,"p50":%%g,"p99":%%g}\\n', summary.requests,
    summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""
LIBRARY, THREADS = "headway, gRPC library", "headway, gRPC library, in threads"
LIBRARY_SERVER = Path(__file__).with_name("library_server.py")
SETUPS = ("direct", "envoy alone", "headway", LIBRARY, THREADS, "vllm-router", "litellm")


# --- sources: processes on the last core ---------------------------------------------------------------------------


class JsonSource(asyncio.Protocol):
    """Answers each POST with the same JSON, at once."""

    def connection_made(self, transport: Any) -> None:
        """A connection."""
        self.transport, self.data = transport, b""

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            length = re.search(rb"content-length: *(\d+)", self.data[:end], re.I)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self.data) < whole:
                return
            self.data = self.data[whole:]
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)
            self.transport.write(head + ANSWER)


async def serve_json() -> None:
    """Answer on a free port, which is printed."""
    server = await asyncio.get_running_loop().create_server(JsonSource, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def source(kind: str) -> Iterator[list[str]]:
    """Two sources of a kind; their addresses."""
    from headway.bench import PacedSource

    if kind != "json":
        gap_s = GAP_S if kind == "paced" else 0.0
        with PacedSource(FIRST_S, gap_s) as one, PacedSource(FIRST_S, gap_s) as other:
            yield [each.url.removeprefix("http://") for each in (one, other)]
        return
    command = [sys.executable, __file__, "--serve-json"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        yield [f"127.0.0.1:{each.stdout.readline().strip()}" for each in both if each.stdout]
    finally:
        for each in both:
            each.kill()
            each.communicate()


# --- set-ups: processes on the first core --------------------------------------------------------------------------


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def command_of(setup: str, upstreams: list[str], port: int, folder: Path, peers: Path | None) -> list[str] | None:
    """How to start a set-up on a port; None where it is not there."""
    if setup == "envoy alone":
        from headway.gateway.spec import GatewaySpec
        from headway.gateway.supervisor import envoy_binary

        config = folder / "envoy.json"
        config.write_text(json.dumps(bare_envoy(upstreams, port)))
        binary = envoy_binary(GatewaySpec(upstreams=tuple(upstreams)))
        return [binary, "-c", str(config), "-l", "error", "--concurrency", "1", "--disable-hot-restart"]
    if setup.startswith("headway"):
        addresses = {"listen": f"127.0.0.1:{port}", "admin": f"127.0.0.1:{free_port()}", "upstreams": upstreams}
        limits = {"in_flight": 4096}
        file = folder / "gateway.json"  # which is YAML, too
        file.write_text(json.dumps({"gateway": {**addresses, "models": ["paced"], "limits": limits}}))
        serve = [sys.executable, "-m", "headway", "serve", str(file)]
        how = "threads" if setup == THREADS else "aio"
        return serve if setup == "headway" else [sys.executable, str(LIBRARY_SERVER), "serve", str(file), how]
    tool = peers / "bin" / setup if peers else None
    if tool is None or not tool.exists():
        return None
    if setup == "vllm-router":
        urls = [f"http://{text}" for text in upstreams]
        return [str(tool), "--host", "127.0.0.1", "--port", str(port), "--worker-urls", *urls]
    models = [
        {
            "model_name": "paced",
            "litellm_params": {"model": "openai/paced", "api_base": f"http://{text}/v1", "api_key": "none"},
        }
        for text in upstreams
    ]
    file = folder / "litellm.yaml"
    open_to_all = {"dangerously_permit_weak_or_unset_master_key": True}
    file.write_text(json.dumps({"model_list": models, "general_settings": open_to_all}))
    return [str(tool), "--config", str(file), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]


def bare_envoy(upstreams: list[str], port: int) -> dict[str, Any]:
    """Envoy as a plain proxy: no decision, no log, no script."""
    from headway.gateway.envoy_config import TYPE

    hosts = [text.split(":") for text in upstreams]
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(at)}}}} for host, at in hosts
    ]
    manager = {
        "@type": TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bare",
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": TYPE + "envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "replicas", "timeout": "0s"}}],
                }
            ]
        },
    }
    breaker = {"max_connections": 10**6, "max_pending_requests": 10**6, "max_requests": 10**6}
    return {
        "static_resources": {
            "listeners": [
                {
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                    "filter_chains": [
                        {
                            "filters": [
                                {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
                            ]
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "replicas",
                    "type": "STATIC",
                    "lb_policy": "LEAST_REQUEST",
                    "circuit_breakers": {"thresholds": [breaker]},
                    "load_assignment": {"cluster_name": "replicas", "endpoints": [{"lb_endpoints": endpoints}]},
                }
            ],
        }
    }


@contextlib.contextmanager
def running(
    setup: str, upstreams: list[str], cores: list[int], peers: Path | None, streamed: bool = False
) -> Iterator[Running | None]:
    """A set-up that serves; None where it is not there."""
    if setup == "direct":
        yield Running(upstreams[0], None, 0.0)
        return
    with tempfile.TemporaryDirectory() as name:
        port = free_port()
        command = command_of(setup, upstreams, port, Path(name), peers)
        if command is None:
            yield None
            return
        log = open(Path(name) / "log.txt", "w+")  # noqa: SIM115
        began_s = time.perf_counter()
        process = subprocess.Popen(
            ["taskset", "-c", str(cores[0]), *command],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # it would ask the network for prices
        )
        try:
            wait_for(f"127.0.0.1:{port}", process, log, streamed)
            yield Running(f"127.0.0.1:{port}", process.pid, time.perf_counter() - began_s)
        finally:
            for number in (signal.SIGINT, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                    break
            log.close()


def wait_for(at: str, process: subprocess.Popen[bytes], log: Any, streamed: bool) -> None:
    """Wait until a request is answered with 200; sources of streams answer in streams only."""
    body = json.dumps({**json.loads(BODY), "stream": streamed}).encode()
    end = time.monotonic() + 120
    headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-bench"}
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            asked = urllib.request.Request(f"http://{at}/v1/chat/completions", body, headers)
            with urllib.request.urlopen(asked, timeout=5) as answer:
                if answer.status == 200:
                    return
        time.sleep(0.005)
    log.seek(0)
    raise RuntimeError(f"did not serve: {log.read()[-2000:]}")


class Running:
    """Processes that serve at an address, started in `cold_s`."""

    def __init__(self, at: str, pid: int | None, cold_s: float) -> None:
        self.at, self.pid, self.cold_s = at, pid, cold_s

    def processes(self) -> list[int]:
        """The process and all that it started."""
        found = [self.pid] if self.pid else []
        for pid in found:
            for file in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    found += [int(text) for text in file.read_text().split()]
        return found

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far, by what the process is."""
        spent: dict[str, float] = {"envoy": 0.0, "python": 0.0}
        for pid in self.processes():
            with contextlib.suppress(OSError):
                kind = "envoy" if "envoy" in Path(f"/proc/{pid}/comm").read_text() else "python"
                for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                    spent[kind] += int(file.read_text().split()[0]) * 1e-9
        return spent

    def memory_mib(self) -> float:
        """PSS of all processes."""
        total = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += int(re.search(r"^Pss: +(\d+)", text, re.M)[1])  # type: ignore[index]
        return total / 1024


# --- cells ---------------------------------------------------------------------------------------------------------


def json_cell(served: Running, streams: int, seconds: float) -> dict[str, Any]:
    """Requests per second and what they cost, by wrk."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(WRK % BODY)
        script.flush()
        command = ["wrk", "-t1", f"-c{streams}", f"-d{math.ceil(seconds)}s", "--timeout", "10s", "-s", script.name]
        before = served.cpu_s()
        done = subprocess.run([*command, f"http://{served.at}"], capture_output=True, text=True, check=True)
        spent = {kind: cpu_s - before[kind] for kind, cpu_s in served.cpu_s().items()}
    told = json.loads(done.stdout.splitlines()[-1])
    count, cpu_s = told["requests"], sum(spent.values())
    return {
        "streams": streams,
        "req/s": round(count / (told["us"] * 1e-6)),
        "p50 ms": round(told["p50"], 3),
        "p99 ms": round(told["p99"], 2),
        "us of Envoy": round(1e6 * spent["envoy"] / count, 1) if served.pid else None,
        "us of Python": round(1e6 * spent["python"] / count, 1) if served.pid else None,
        "req per CPU s": round(count / cpu_s) if cpu_s else None,
        "failed": told["failed"],
    }


def stream_cell(served: Running, streams: int, spread: bool) -> dict[str, Any]:
    """Times of first tokens, gaps between tokens, and events per CPU second, by the load generator."""
    from loadgen import headway

    before = served.cpu_s()
    ttft_s, gaps_s, _ = headway(f"http://{served.at}", streams, spread, max(3 * streams, 12))
    cpu_s = sum(served.cpu_s().values()) - sum(before.values())
    events = len(ttft_s) + len(gaps_s)
    return {
        "streams": streams,
        "start": "spread" if spread else "together",
        "TTFT p50 ms": round(1e3 * float(np.percentile(ttft_s, 50)), 2),
        "TTFT p99 ms": round(1e3 * float(np.percentile(ttft_s, 99)), 2),
        "gap p99 ms": round(1e3 * float(np.percentile(gaps_s, 99)), 2),
        "events per CPU s": round(events / cpu_s) if cpu_s else None,
    }


def cells(setup: str, kind: str, served: Running, seconds: float) -> list[dict[str, Any]]:
    """All cells of a kind."""
    counts = FEWER.get(setup, STREAMS)
    if kind == "json":
        return [json_cell(served, streams, seconds) for streams in counts]
    starts = (True, False) if kind == "paced" else (False,)
    return [stream_cell(served, streams, spread) for spread in starts for streams in counts]


def main() -> None:
    """Measure what is asked for, and write the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--setups", nargs="+", default=list(SETUPS), choices=SETUPS)
    parser.add_argument("--kinds", nargs="+", default=["json", "paced", "burst"])
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--realtime", action="store_true", help="run before all else on the machine")
    parser.add_argument("--dry", action="store_true", help="show, but keep nothing")
    parser.add_argument("--serve-json", nargs="*", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve_json is not None:
        asyncio.run(serve_json())
    else:
        measure(asked)


def measured(
    setup: str, kind: str, cores: list[int], asked: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The cells of a set-up and what it takes; none where it is not there."""
    with source(kind) as upstreams, running(setup, upstreams, cores, asked.peers, kind != "json") as served:
        if served is None:
            return [], []
        found = cells(setup, kind, served, asked.seconds)
        size = {"set-up": setup, "kind": kind, "PSS MiB": round(served.memory_mib(), 1)}
        return found, [size | {"first answer after s": round(served.cold_s, 2)}] if served.pid else []


def measure(asked: argparse.Namespace) -> None:
    """All cells of all set-ups."""
    if shutil.which("wrk") is None and "json" in asked.kinds:
        print("json is left out: wrk is not installed (apt install wrk)", file=sys.stderr)
        asked.kinds.remove("json")
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    if asked.realtime:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in asked.kinds}
    sizes = []
    for setup in asked.setups:
        for kind in asked.kinds:
            try:
                found, size = measured(setup, kind, cores, asked)
            except (RuntimeError, subprocess.CalledProcessError, AssertionError) as error:
                print(f"{setup}, {kind}: {str(error)[-500:]}", file=sys.stderr)
                continue
            rows[kind] += [{"set-up": setup, **cell} for cell in found]
            sizes += size
    for kind, found in rows.items():
        show(kind, found)
    show("memory and start", sizes)
    if not asked.dry:
        keep("gateway", {**rows, "sizes": sizes, "load average": os.getloadavg()[0], "realtime": asked.realtime})


if __name__ == "__main__":
    main()
