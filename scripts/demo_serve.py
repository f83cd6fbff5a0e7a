"""`make demo-serve`: emulates three replicas, serves them, drives them, prints simulated beside measured, and ends.

    python scripts/demo_serve.py HEADWAY

HEADWAY is the program to run. Exits with the status of the first step that fails.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

DEPLOYMENT = Path(__file__).resolve().parents[1] / "examples" / "demo-serve.yaml"
GATEWAY, KEY = "http://127.0.0.1:18080", "change-me"  # the key whose hash is in the file
LOAD = ["--input", "256", "--output", "64", "--rate", "14", "--requests", "280", "--ttft", "500ms", "--tpot", "50ms"]
LONGEST = "170s"  # should this script be killed
STARTED_S, STOPPED_S = 60.0, 10.0


def main(headway: str) -> int:
    """Run the steps; whatever happens, nothing is left running."""
    os.environ["HEADWAY_API_KEY"] = KEY
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        measured, simulated = (str(Path(folder) / name) for name in ("measured", "simulated"))
        steps = (
            ("driven by `headway bench`, through the gateway",
             ["bench", GATEWAY, *LOAD, *kept(measured)]),
            ("the same requests in the simulator",
             ["simulate", str(DEPLOYMENT), *LOAD, *kept(simulated), "--quiet"]),
            ("simulated beside measured", ["compare", f"{simulated}.json", f"{measured}.json"]),
        )  # fmt: skip
        try:
            for verb in (["emulate", str(DEPLOYMENT), "--port", "18100", "--for", LONGEST], ["serve", str(DEPLOYMENT)]):
                started.append(subprocess.Popen([headway, *verb]))
            wait_for(f"{GATEWAY}/v1/models", started)
            for told, verb in steps:
                print(f"\n--- {told}: headway {' '.join(verb[:2])} ...", flush=True)
                subprocess.run([headway, *verb], check=True)
        except subprocess.CalledProcessError as error:
            return error.returncode
        except TimeoutError as error:
            print(error, file=sys.stderr)
            return 1
        finally:
            for process in reversed(started):
                stop(process)
    return 0


def kept(name: str) -> list[str]:
    """Options by which a result is kept with its rows, so that requests can be paired."""
    return ["--json", f"{name}.json", "--records", f"{name}.csv"]


def wait_for(url: str, processes: list[subprocess.Popen[bytes]]) -> None:
    """Return once an address answers."""
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {KEY}"})
    end_s = time.monotonic() + STARTED_S
    while time.monotonic() < end_s and all(process.poll() is None for process in processes):
        try:
            with urllib.request.urlopen(asked, timeout=1.0):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    ports = "18080, 18081 and 18100 to 18102"
    raise TimeoutError(f"{url}: no answer in {STARTED_S:g} s, or a process ended before; are the ports {ports} free?")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C, and after a while more than that."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOPPED_S)
        except subprocess.TimeoutExpired:
            process.kill()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/demo_serve.py HEADWAY")
    sys.exit(main(sys.argv[1]))
