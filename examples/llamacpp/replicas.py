"""Runs llama.cpp replicas on one core, each with an equal share of it that does not depend on what the others do.

    python replicas.py MODEL.gguf --port 18200 --count 3

A replica is a process of llama.cpp's own server that computes with one thread. These are pinned to one core, and one
replica at a time is let run, `--slice` seconds each, in turn, busy or not: the others are stopped. So N replicas never
need more than a core, none slows another down, and each behaves as if it had a processor of its own that is N times
slower. Without this, three busy replicas on a machine of two cores share them in a way that depends on the load, which
is not what is simulated.

Prints one line with the ids of the computing threads when all answer. Ctrl-C, SIGTERM or the end of standard input ends
it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

SLOTS, SLOT_TOKENS, STEP_TOKENS = 8, 512, 512  # of a replica: see `deployment.yaml`, which says the same
STARTED_S, STOPPED_S = 60.0, 5.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> int:
    """Start the replicas, turn them until told to stop, and leave none running."""
    asked = _asked()
    if asked.only is not None:
        serve(asked.model, asked.port + asked.only, asked.name)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    engines: list[subprocess.Popen[bytes]] = []
    try:
        urls = [f"http://127.0.0.1:{asked.port + number}" for number in range(asked.count)]
        for number in range(asked.count):
            engines.append(subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--only", str(number)],
                                            stdin=subprocess.DEVNULL, start_new_session=True))  # fmt: skip
        for url in urls:
            wait_for(f"{url}/health", engines)
        threads = {computing(engine, url): engine for engine, url in zip(engines, urls, strict=True)}
        place(threads, asked.core, asked.realtime)
        print("replicas", *threads, flush=True)
        return 0 if turn(threads, asked.slice) else 1
    except KeyboardInterrupt:
        return 0
    except TimeoutError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        stop(engines)


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("model", help="the GGUF file, as tiny_model.py writes it")
    parser.add_argument("--port", type=int, default=18200, help="of the first replica")
    parser.add_argument("--count", type=int, default=3, help="how many replicas")
    parser.add_argument("--slice", type=float, default=0.002, help="seconds that each runs in its turn")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="that they run on")
    parser.add_argument("--realtime", action="store_true", help="before all other work on that core (needs the right)")
    parser.add_argument("--name", default="tiny", help="of the model, as requests say it")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)  # be the replica of this number
    return parser.parse_args()


def serve(path: str, port: int, name: str) -> None:
    """Be one replica: llama.cpp's server, one thread for steps, a prompt cache for each slot and no other."""
    import xllamacpp

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # one that is stopped would outlive who lets it run
    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = path, {name}
    params.hostnames, params.port, params.n_threads_http, params.ui = ["127.0.0.1"], port, 2, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_gpu_layers, params.fit_params, params.verbosity = 0, False, 0
    params.n_parallel, params.n_ctx, params.kv_unified = SLOTS, SLOTS * SLOT_TOKENS, False
    params.n_batch = params.n_ubatch = STEP_TOKENS
    params.cache_ram_mib, params.cache_idle_slots, params.ctx_shift = 0, False, False
    params.endpoint_metrics = True
    server = xllamacpp.Server(params)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    del server


def wait_for(url: str, engines: list[subprocess.Popen[bytes]]) -> None:
    """Return once an address answers."""
    end_s = time.monotonic() + STARTED_S
    while time.monotonic() < end_s and all(engine.poll() is None for engine in engines):
        try:
            with urllib.request.urlopen(url, timeout=1.0):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise TimeoutError(f"{url}: no answer in {STARTED_S:g} s, or a replica ended before")


def computing(engine: subprocess.Popen[bytes], url: str) -> int:
    """Return the thread that computes steps: the one that an answer keeps busiest."""
    threads = Path(f"/proc/{engine.pid}/task")

    def ran() -> dict[int, int]:
        return {int(each.name): int((each / "schedstat").read_text().split()[0]) for each in threads.iterdir()}

    before = ran()
    body = json.dumps({"prompt": [1000] * 100, "max_tokens": 50, "ignore_eos": True}).encode()
    asked = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=STARTED_S) as answer:
        answer.read()
    return max((spent - before.get(thread, 0), thread) for thread, spent in ran().items())[1]


def place(engines: dict[int, subprocess.Popen[bytes]], core: int, realtime: bool) -> None:
    """Put the threads that compute on one core, everything else on the others.

    Where other work is on the cores, only real-time threads get their turns on time: a scheduler lets what has just
    begun finish its few milliseconds, however important the one that wakes.
    """
    others = os.sched_getaffinity(0) - {core} or {core}
    everything = {0, *(int(each.name) for one in engines.values() for each in Path(f"/proc/{one.pid}/task").iterdir())}
    for thread in everything:
        os.sched_setaffinity(thread, {core} if thread in engines else others)
        if realtime:
            os.sched_setscheduler(thread, os.SCHED_RR, os.sched_param(1 if thread in engines else 2))


def turn(engines: dict[int, subprocess.Popen[bytes]], slice_s: float) -> bool:
    """Let one engine run at a time; a turn that comes late is not made up for. Whether input ended before an engine.

    The signal to stop goes to the thread that computes, which stops its process at once: any other thread would have to
    be woken first.
    """
    kill_thread = ctypes.CDLL(None).tgkill
    due_s = time.monotonic()
    for thread, engine in engines.items():
        kill_thread(engine.pid, thread, signal.SIGSTOP)
    while all(engine.poll() is None for engine in engines.values()):
        for thread, engine in engines.items():
            engine.send_signal(signal.SIGCONT)
            due_s = max(due_s + slice_s, time.monotonic())
            time.sleep(max(0.0, due_s - time.monotonic()))
            kill_thread(engine.pid, thread, signal.SIGSTOP)
        if select.select([sys.stdin], [], [], 0.0)[0] and not sys.stdin.buffer.read1(1):
            return True
    return False


def stop(engines: list[subprocess.Popen[bytes]]) -> None:
    """Let all run again, and end them."""
    for engine in engines:
        engine.send_signal(signal.SIGCONT)
        engine.send_signal(signal.SIGTERM)
    for engine in engines:
        try:
            engine.wait(STOPPED_S)
        except subprocess.TimeoutExpired:
            engine.kill()
            engine.wait()


if __name__ == "__main__":
    sys.exit(main())
