"""How exact the timing of `headway emulate` is with 1,000 streams: a light client in a second process keeps the time of
every token, and the simulator says when it was due.

    python benchmarks/emulate.py [--streams N] [--replicas N] [--seconds S]

On a machine with other work, `chrt -f 5` before it keeps that work from being read as lateness.

Llama-3.1-8B in bf16 on h100-sxm, prompts of 128 token ids, answers of 300 to 500 tokens; each of N connections sends
its next request when its answer is complete. The emulator is one process on one core, the client another on another.
Both read one clock, so a token's error is the time it was read by the client less the time the simulator has for it:
what is due when comes from running the engine again, in virtual time, over the arrivals that the emulator noted. A
TTFT's error is against the time the client began to send. Also measured: the emulator's CPU, and its own view.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import random
import selectors
import socket
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from measure import keep, show

from headway.cost import EngineSettings, Replica, compile_replica
from headway.emulate import Emulator, PacedReplica, Settings
from headway.engine.live import make_sequence

ENGINE = EngineSettings(max_seqs=256)
REPLICA = Replica(model="llama-3.1-8b", gpu="h100-sxm", engine=ENGINE)
PROMPT = 128
RAMP_S = 2.0
PERCENTILES = (50, 90, 99, 99.9)


def pin(core: int) -> None:
    """Stay on one core, where there are several."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})


def emulator(replicas: int, pipe: Connection) -> None:
    """Serve, noting the arrival of each request; hand over what was noted."""
    pin(0)
    server = Emulator([REPLICA] * replicas, Settings(port=0))
    noted: list[tuple[int, str, float, int, int]] = []

    def note(port: Any) -> None:
        send = port.paced.send

        def noting(seq: Any, sent_s: float) -> None:
            answer = port.under_way[seq.id]
            name = answer.frames.frame["id"]
            noted.append((port.index, name, sent_s, seq.prompt_tokens, answer.ask.limit))
            send(seq, sent_s)

        port.paced.send = noting

    async def serve() -> float:
        await server.start()
        for port in server.ports:
            note(port)
        pipe.send([port.address[1] for port in server.ports])
        told = asyncio.get_running_loop().run_in_executor
        await told(None, pipe.recv)  # the load has begun
        used_s, began_s = time.process_time(), time.monotonic()
        await told(None, pipe.recv)  # and ended
        share = (time.process_time() - used_s) / (time.monotonic() - began_s)
        server.close()
        return share

    share = asyncio.run(serve())
    epochs = [port.epoch_s for port in server.ports]
    pipe.send((noted, epochs, share, server.summary()))


def request(name: str, rng: random.Random) -> bytes:
    """One request over the wire."""
    ids = [rng.randrange(100_000) for _ in range(PROMPT)]
    fields = {"prompt": ids, "max_tokens": rng.randint(300, 500), "ignore_eos": True, "stream": True}
    body = json.dumps(fields).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-request-id: {name}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def client(ports: list[int], streams: int, seconds: float, pipe: Connection) -> None:
    """Keep all streams busy; for each request when it was sent and when its tokens were read."""
    pin(1)
    gc.disable()  # its pauses would be read as the emulator's
    rng = random.Random(1)
    poll = selectors.EpollSelector()
    bodies = [request(f"r{i}", rng) for i in range(4 * streams)]
    socks = []
    for i in range(streams):
        sock = socket.create_connection(("127.0.0.1", ports[i % len(ports)]))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        socks.append(sock)
        poll.register(sock, selectors.EVENT_READ, i)
    sent: dict[str, float] = {}
    reads: dict[str, list[tuple[float, int]]] = {}
    current = [""] * streams
    pipe.send("begins")
    started, serial, clock = time.monotonic(), 0, time.monotonic
    end_s = started + RAMP_S + seconds

    def send(i: int) -> None:
        nonlocal serial
        name, serial = f"r{serial}", serial + 1
        current[i], reads[name], sent[name] = name, [], clock()
        socks[i].send(bodies[serial - 1])

    begun = 0
    while clock() < end_s:
        while begun < streams and clock() - started >= RAMP_S * begun / streams:
            send(begun)
            begun += 1
        for key, _ in poll.select(0.002 if begun < streams else 0.1):
            data = key.fileobj.recv(65536)  # type: ignore[union-attr]
            reads[current[key.data]].append((clock(), data.count(b'"choices":[{')))
            if b"data: [DONE]" in data and serial < len(bodies):
                send(key.data)
    pipe.send((sent, reads))


def due(noted: list[tuple[int, str, float, int, int]], replicas: int) -> dict[str, list[float]]:
    """When each token of each request is due in virtual time: the engine run again over the same arrivals."""
    times: dict[str, list[float]] = {}
    table = compile_replica(REPLICA)
    for index in range(replicas):
        paced = PacedReplica(table, ENGINE)
        rows = [row for row in noted if row[0] == index]
        names = [row[1] for row in rows]
        for number, (_, _, sent_s, prompt, output) in enumerate(rows):
            # No two prompts begin alike, so their prefixes hit nothing.
            paced.send(make_sequence(number, sent_s, (prompt, output)), sent_s)
        for now, tokens, _ in paced.advance(float("inf")):
            for seq in tokens:
                times.setdefault(names[seq.id], []).append(now)
    return times


def measure(streams: int, replicas: int, seconds: float) -> dict[str, Any]:
    """One run."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=emulator, args=(replicas, theirs))
    server.start()
    ports = ours.recv()
    reading, writing = multiprocessing.Pipe()
    load = multiprocessing.Process(target=client, args=(ports, streams, seconds, writing))
    load.start()
    ours.send(reading.recv())
    sent, reads = reading.recv()
    ours.send("ended")
    noted, epochs, share, summary = ours.recv()
    server.join()
    load.join()
    times = due(noted, replicas)
    owner = {name: index for index, name, *_ in noted}
    arrivals = {row[1]: row[2] for row in noted}
    begin_s = min(sent.values()) + RAMP_S
    errors, firsts, gaps, late = [], [], [], []
    for name, pieces in reads.items():
        key = f"cmpl-{name}"
        if key not in times:
            continue
        seen = np.array([when for when, count in pieces for _ in range(count)])
        expected = np.array(times[key][: len(seen)]) + epochs[owner[key]]
        error = (seen - expected)[seen > begin_s]
        errors.append(error)
        if len(seen) and sent[name] > begin_s:
            firsts.append((seen[0] - sent[name]) - (times[key][0] - arrivals[key]))
            late.append(epochs[owner[key]] + arrivals[key] - sent[name])
        gaps.append(np.diff(seen[seen > begin_s]) - np.diff(expected[seen > begin_s]))
    errors_s = {"token": np.concatenate(errors), "gap": np.abs(np.concatenate(gaps))}
    errors_s |= {"TTFT": np.array(firsts), "arrival": np.array(late)}
    return figures(errors_s, share, summary) | {
        "streams": streams,
        "replicas": replicas,
        "seconds": seconds,
    }


def figures(errors_s: dict[str, Any], share: float, summary: list[dict[str, Any]]) -> dict[str, Any]:
    """What is kept of a run. An arrival's error is the time until the emulator had read the request."""
    steps = sum(row["steps"] for row in summary)
    tokens = errors_s["token"]
    alone = os.sched_getscheduler(0) == os.SCHED_FIFO
    row: dict[str, Any] = {"real-time priority": alone, "tokens": len(tokens), "emulator CPU share": share}
    for name, values in errors_s.items():
        if len(values):
            row |= {f"{name} error ms p{at:g}": 1e3 * float(np.percentile(values, at)) for at in PERCENTILES}
    row["token error ms, either way, p99"] = 1e3 * float(np.percentile(np.abs(tokens), 99))
    within = sum(each["steps_within_2ms"] * each["steps"] for each in summary) / steps
    return row | {"tokens within 2 ms": float(np.mean(np.abs(tokens) <= 2e-3)), "own view: steps within 2 ms": within}


def main() -> None:
    """Measure, show and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0)
    asked = parser.parse_args()
    row = measure(asked.streams, asked.replicas, asked.seconds)
    show("Timing of the emulator", [{"figure": name, "value": value} for name, value in row.items()])
    keep("emulate", {f"{asked.streams} streams on {asked.replicas} replicas": row})


if __name__ == "__main__":
    main()
