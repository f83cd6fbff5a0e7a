"""What load generators add: each reads a source whose first token comes after 50 ms and further ones 10 ms apart.

    python benchmarks/loadgen.py [--streams 128 256] [--guidellm PATH] [--aiperf PATH] [--tokenizer NAME]

As many streams at once as stated, three requests for each; the client on core 0, the source on core 1. "spread": begun
evenly spaced, latencies from the schedule. "together": a closed loop whose users all begin at one moment, so that the
source itself is late too. An error is what is read less what is true, 50 ms and 10 ms; "stated" is what the client says
itself that it reads too much, from the time at which each token was written. "headway, own reads" is without the
kernel's time stamps, "aiohttp" the usual client. GuideLLM and aiperf run from environments of their own, with a
tokenizer that Hugging Face's cache holds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import RESULTS, machine, show

from headway.bench import Job, Log, PacedSource, Target
from headway.bench import connection as edge
from headway.bench.driver import Driver
from headway.bench.selfcheck import Pace, client_error
from headway.workload import WorkloadSpec, parse_arrival, parse_length, workload

FIRST_S, GAP_S, TOKENS, ROUNDS, PROMPT = 0.05, 0.01, 64, 3, 128
CLIENTS = ("headway", "headway, own reads", "aiohttp")
PEER_S = 240


def rate_of(streams: int) -> float:
    """Requests per second that keep so many streams under way."""
    return round(streams / (FIRST_S + GAP_S * (TOKENS - 1)), 2)


def headway(
    url: str, streams: int, spread: bool, requests: int | None = None
) -> tuple[list[float], list[float], dict[str, Any]]:
    """TTFT of all requests, all gaps, and the error the client states; read by one driver in this process."""
    spec = WorkloadSpec(
        prompt=parse_length(str(PROMPT)),
        output=parse_length(str(TOKENS)),
        arrival=parse_arrival("constant" if spread else f"closed:{streams}"),
    )
    rate = rate_of(streams) if spread else None
    load = workload(spec, requests=requests or ROUNDS * streams, rate=rate)
    job = Job(Target(url=url, model="paced"), None, load, 0, 1, 0, 1)
    loop, log = edge.event_loop(), Log()

    async def run() -> None:
        driver = Driver(job, log, 0.0)
        await driver.connections.open_ahead()
        await asyncio.sleep(0.1)
        driver.start_s = time.monotonic() + 0.05
        driver.go()
        await driver.finished.wait()
        driver.close()

    loop.run_until_complete(run())
    whole = Log.joined([log.frozen()])
    assert not whole.lost, whole.lost
    pace = Pace(streams=streams, first_s=FIRST_S, gap_s=GAP_S, tokens=TOKENS, prompt_tokens=PROMPT)
    error = client_error(whole, pace)
    ttft_s = whole.times["first_token_s"] - whole.times["arrival_s"]
    return ttft_s.tolist(), whole.gaps()[0].tolist(), {} if error is None else error.ttft_s


def plain_aiohttp(url: str, streams: int, spread: bool) -> tuple[list[float], list[float], dict[str, Any]]:
    """The same by the usual client: aiohttp, lines, json."""
    import aiohttp

    ttft_s: list[float] = []
    gaps_s: list[float] = []
    body = {"model": "paced", "prompt": [1000] * PROMPT, "max_tokens": TOKENS, "stream": True}

    async def user(session: aiohttp.ClientSession, due_s: float, times: int) -> None:
        await asyncio.sleep(due_s - time.monotonic())
        for turn in range(times):
            began_s, last_s = time.monotonic() if turn else due_s, 0.0
            async with session.post(f"{url}/v1/completions", json=body) as answer:
                async for line in answer.content:
                    if not line.startswith(b"data: {") or not json.loads(line[6:])["choices"][0].get("text"):
                        continue
                    now_s = time.monotonic()
                    if last_s:
                        gaps_s.append(now_s - last_s)
                    else:
                        ttft_s.append(now_s - began_s)
                    last_s = now_s

    async def run() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            start_s, apart_s = time.monotonic() + 0.3, 1 / rate_of(streams)
            if spread:
                users = [user(session, start_s + i * apart_s, 1) for i in range(ROUNDS * streams)]
            else:
                users = [user(session, start_s, ROUNDS) for _ in range(streams)]
            await asyncio.gather(*users)

    asyncio.run(run())
    return ttft_s, gaps_s, {}


def client(name: str, url: str, streams: int, spread: bool) -> None:
    """Be one client, and print what was read."""
    if name == "headway, own reads":
        edge.STAMPED = False
    began_s = time.process_time()
    ttft_s, gaps_s, stated = (plain_aiohttp if name == "aiohttp" else headway)(url, streams, spread)
    told = row(name, streams, ttft_s, gaps_s, time.process_time() - began_s)
    for share in ("p50", "p99"):
        told[f"stated {share}"] = round(1e3 * stated[share], 2) if stated else None
    print(json.dumps(told))


def row(name: str, streams: int, ttft_s: list[float], gaps_s: list[float], cpu_s: float | None) -> dict[str, Any]:
    """The errors of one client, milliseconds."""
    ttft = 1e3 * (np.percentile(ttft_s, (50, 99)) - FIRST_S)
    gaps = 1e3 * (np.percentile(gaps_s, (1, 50, 99)) - GAP_S) if gaps_s else [None] * 3
    events = len(ttft_s) + len(gaps_s)
    return {
        "client": name,
        "streams": streams,
        "TTFT p50, ms off": round(float(ttft[0]), 2),
        "TTFT p99": round(float(ttft[1]), 2),
        "ITL p1": None if gaps[0] is None else round(float(gaps[0]), 2),
        "ITL p50": None if gaps[1] is None else round(float(gaps[1]), 2),
        "ITL p99": None if gaps[2] is None else round(float(gaps[2]), 2),
        "CPU us per token": None if cpu_s is None else round(1e6 * cpu_s / events, 1),
        "stated p50": None,
        "stated p99": None,
    }


def guidellm(command: str, tokenizer: str, url: str, streams: int, spread: bool) -> dict[str, Any]:
    """Read by GuideLLM."""
    profile = f"kind=constant,rate={rate_of(streams)}" if spread else f"kind=concurrent,streams={streams}"
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.json"
        arguments = [
            command, "run", "--backend",
            f"kind=openai_http,target={url},model=paced,request_format=/v1/completions,http2=false",
            "--profile", profile, "--constraint", f"kind=max_requests,count={ROUNDS * streams}",
            "--tokenizer", f"kind=hf_auto,model={tokenizer}",
            "--data", f"kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={TOKENS}",
            "--output", f"kind=json,path={told}", "--disable-console-interactive",
        ]  # fmt: skip
        _quietly(arguments, folder)
        metrics = json.loads(told.read_text())["benchmarks"][0]["metrics"]
    ttft, itl = (
        metrics[name]["successful"]["percentiles"] for name in ("time_to_first_token_ms", "inter_token_latency_ms")
    )
    return peer("GuideLLM", streams, ttft["p50"], ttft["p99"], itl["p50"], itl["p99"])


def aiperf(command: str, tokenizer: str, url: str, streams: int, spread: bool) -> dict[str, Any]:
    """Read by aiperf."""
    load = ["--request-rate", str(rate_of(streams)), "--arrival-pattern", "constant"]
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            command, "profile", "--url", url, "--model", "paced", "--endpoint-type", "completions", "--streaming",
            *(load if spread else ["--concurrency", str(streams)]), "--request-count", str(ROUNDS * streams),
            "--tokenizer", tokenizer, "--use-server-token-count", "--isl", str(PROMPT), "--osl", str(TOKENS),
            "--artifact-dir", folder, "--ui", "none",
        ]  # fmt: skip
        _quietly(arguments, folder)
        (told,) = Path(folder).rglob("profile_export_aiperf.json")
        metrics = json.loads(told.read_text())
    ttft, itl = metrics["time_to_first_token"], metrics["inter_token_latency"]
    return peer("aiperf", streams, ttft["p50"], ttft["p99"], itl["p50"], itl["p99"])


def peer(name: str, streams: int, *read_ms: float) -> dict[str, Any]:
    """The errors of a peer from what it says, milliseconds; its ITL is a mean per request."""
    ttft50, ttft99, itl50, itl99 = read_ms
    first, gap = 1e3 * FIRST_S, 1e3 * GAP_S
    told = row(name, streams, [FIRST_S], [], None)
    off = {
        "TTFT p50, ms off": ttft50 - first,
        "TTFT p99": ttft99 - first,
        "ITL p50": itl50 - gap,
        "ITL p99": itl99 - gap,
    }
    return told | {key: round(value, 2) for key, value in off.items()}


def _quietly(arguments: list[str], folder: str) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=PEER_S, env=environment, check=False, cwd=folder
    )
    if done.returncode:
        raise RuntimeError(f"{arguments[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")


def main() -> None:
    """Measure all clients, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, nargs="+", default=[16, 128, 256])
    parser.add_argument("--spread", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    for name in ("guidellm", "aiperf", "tokenizer"):
        parser.add_argument(f"--{name}")
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    if asked.client:
        client(asked.client, asked.url, asked.streams[0], asked.spread)
        return
    cores = sorted(os.sched_getaffinity(0))
    rows = []
    for spread in (True, False):
        for streams in asked.streams:
            os.sched_setaffinity(0, {cores[-1]})
            with PacedSource(FIRST_S, GAP_S) as source:
                os.sched_setaffinity(0, {cores[0]})
                found = measured(asked, source.url, streams, spread)
            rows += [{"start": "spread" if spread else "together", **each} for each in found]
    show("What load generators add to 50 ms and 10 ms", rows)
    (RESULTS / "loadgen.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


def measured(asked: argparse.Namespace, url: str, streams: int, spread: bool) -> list[dict[str, Any]]:
    """All clients on one source, one after the other."""
    rows = []
    for name in CLIENTS:
        again = [sys.executable, __file__, "--client", name, "--url", url, "--streams", str(streams)]
        done = subprocess.run(again + ["--spread"] * spread, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout))
    for name, read in (("guidellm", guidellm), ("aiperf", aiperf)):
        if getattr(asked, name):
            rows.append(read(getattr(asked, name), asked.tokenizer, url, streams, spread))
    return rows


if __name__ == "__main__":
    main()
