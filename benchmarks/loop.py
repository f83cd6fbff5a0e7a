"""The loop closed on a real engine: bench, calibrate, simulate, and what was measured beside it.

    python benchmarks/loop.py [--quick]

Three replicas of llama.cpp (`examples/llamacpp`) behind `headway serve`, real tokens, real caches. Closed loops are
measured and calibrated on; then Poisson arrivals from 30 to 90 % of capacity, which no fit has seen, are predicted and
measured; then sessions under four routing policies. Writes `results/loop.json` and ends with exit
code 1 where a target is missed. docs/loop.md says what is compared and why it may be.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml

from headway.metrics import Records, Result
from headway.metrics.attainment import T95
from headway.metrics.comparison import compare

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "examples" / "llamacpp"
RESULTS = Path(__file__).resolve().parent / "results" / "loop.json"

TOLERANCE = 0.15  # of a figure, median over loads
SEEDS = 8  # of simulations that say whether one run would show two policies to differ
DISTURBED = 0.10  # of what the engines ran: so long they may have waited for others on their core
CHANGED = 0.15  # between calibration and a run: so much may the pace of that core have changed, by whoever shares it
STARTED_S, STOPPED_S = 60.0, 20.0
LENGTHS = ("uniform:32:256", "uniform:8:40")
SESSIONS_SHARE = 0.3  # of the capacity for the other workload, whose prompts are a third as long
SESSIONS = ENGINE / "sessions.yaml"
FIGURES = {
    "TTFT": lambda result: result.ttft_s.mean,
    "ITL": lambda result: result.itl_s.mean,
    "E2E": lambda result: result.e2e_s.mean,
    "tokens/s": lambda result: result.tokens.output / result.duration_s,
}


class Size(NamedTuple):
    """How much is measured: users and lengths to calibrate on, loads by share of capacity and seconds, policies."""

    users: tuple[int, ...]
    lengths: tuple[tuple[int, int], ...]
    loads: tuple[float, ...]
    load_s: float
    policies: tuple[str, ...]
    policy_s: float
    check: bool  # whether bench reads its source of known timing after a run to compare with
    tries: int  # of a run that was disturbed


FULL = Size(
    users=(1, 3, 6, 12, 24), lengths=((32, 24), (200, 24), (400, 8)), loads=(0.3, 0.5, 0.7, 0.9), load_s=20.0,
    policies=("random_router:RandomRouter", "round-robin", "least-requests", "prefix-affinity"), policy_s=30.0,
    check=True, tries=2,
)  # fmt: skip
QUICK = Size(
    users=(1, 6, 18), lengths=((32, 24), (200, 16), (400, 8), (64, 8)), loads=(0.3, 0.6, 0.8), load_s=5.0,
    policies=("round-robin", "prefix-affinity"), policy_s=14.0, check=False, tries=1,
)  # fmt: skip


class Measured(NamedTuple):
    """A run of bench, the same in the simulator, and what engines waited for their core over what they ran on it.

    `slower`: by how much the core was slower than while it was calibrated on.
    """

    name: str
    simulated: Result
    measured: Result
    disturbed: float
    slower: float
    seeds_ttft_s: tuple[float, ...] = ()  # simulated mean TTFT by seed, where policies are compared

    @property
    def reliable(self) -> bool:
        """Whether the engines had their core at the pace calibrated on, and bench trusts its own figures."""
        return self.disturbed <= DISTURBED and abs(self.slower) <= CHANGED and not _warnings(self.measured)


class Pair(NamedTuple):
    """Two policies by mean TTFT: the second over the first, less 1, with its 95 % interval, simulated and measured.

    The simulated interval is that of one further run, from logarithms of runs of several seeds: what is measured is one
    run. The measured one is of its requests, by batch means.
    """

    policies: tuple[str, str]
    simulated: tuple[float, float, float]
    measured: tuple[float, float, float]

    @property
    def differs(self) -> bool:
        """Whether the simulator says that they differ."""
        return self.simulated[1] > 0.0 or self.simulated[2] < 0.0

    @property
    def agrees(self) -> bool:
        """Whether they differ live, the same way."""
        return self.measured[1] > 0.0 if self.simulated[0] > 0.0 else self.measured[2] < 0.0


class Found(NamedTuple):
    """What the loop found: runs by load, runs by policy, and every pair of policies."""

    loads: list[Measured]
    policies: list[Measured]
    pairs: list[Pair]

    def errors(self) -> dict[str, float]:
        """Return the median over loads of the absolute relative error, by figure."""
        return {
            name: statistics.median(abs(of(run.simulated) / of(run.measured) - 1.0) for run in self.loads)
            for name, of in FIGURES.items()
        }

    @property
    def passed(self) -> bool:
        """Whether all figures are within the tolerance, and all pairs that differ in simulation do so live."""
        return all(error <= TOLERANCE for error in self.errors().values()) and all(
            pair.agrees for pair in self.pairs if pair.differs
        )


class Pace:
    """How long the same work takes on a core, looked at five times a second while there is anything to measure.

    Whoever shares the silicon with a virtual core slows it, by half and more, and no counter of this machine says so.
    """

    def __init__(self, core: int) -> None:
        self.seen_s: list[float] = []
        threading.Thread(target=self._look, args=(core,), daemon=True).start()

    def _look(self, core: int) -> None:
        os.sched_setaffinity(0, {core})  # of this thread alone
        while True:
            began_s = time.thread_time()
            sum(range(20_000))  # a third of a millisecond
            self.seen_s.append(time.thread_time() - began_s)
            time.sleep(0.2)


class Loop:
    """The files, addresses and processes of one run of the loop, and the verbs on them."""

    def __init__(self, folder: Path, size: Size, realtime: bool) -> None:
        self.folder, self.size, self.realtime = folder, size, realtime
        self.ports = _free_ports(5)
        self.core = max(os.sched_getaffinity(0))  # that of the engines
        self.url = f"http://127.0.0.1:{self.ports[3]}"
        self.engines: list[int] = []  # the threads that compute
        self.pace = Pace(self.core)
        self.calibrated_s: list[float] = []  # the pace of the core in each run that is calibrated on

    def deployment(self, route: str) -> Path:
        """Write the example's deployment with this policy, and with paths and ports that hold here."""
        data = yaml.safe_load((ENGINE / "deployment.yaml").read_text())
        replica, gateway = data["pools"][0]["replica"], data["gateway"]
        replica["model"], replica["gpu"] = str(ENGINE / "config.json"), str(ENGINE / "core-share.yaml")
        data["policies"] = {"route": route}
        addresses = [f"127.0.0.1:{port}" for port in self.ports]
        gateway["upstreams"], gateway["listen"], gateway["admin"] = addresses[:3], addresses[3], addresses[4]
        file = self.folder / f"{route.partition(':')[0]}.yaml"
        file.write_text(yaml.safe_dump(data))
        return file

    @contextmanager
    def replicas(self) -> Iterator[None]:
        """Keep three replicas running, and everything else that is started off their core."""
        model, cores = self.folder / "tiny.gguf", os.sched_getaffinity(0)
        subprocess.run([sys.executable, ENGINE / "tiny_model.py", model], check=True)
        command = [sys.executable, str(ENGINE / "replicas.py"), str(model), "--port", str(self.ports[0]),
                   "--core", str(self.core)]  # fmt: skip
        command += ["--realtime"] if self.realtime else []
        with _process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            said = process.stdout.readline().split()
            if not said:
                raise TimeoutError("the replicas did not start; what they said is above")
            self.engines = [int(thread) for thread in said[1:]]
            os.sched_setaffinity(0, cores - {self.core} or cores)
            try:
                yield
            finally:
                os.sched_setaffinity(0, cores)

    @contextmanager
    def gateway(self, route: str) -> Iterator[Path]:
        """Serve the replicas with this policy; gives the deployment's file."""
        file = self.deployment(route)
        with _process([*HEADWAY, "serve", str(file)], stdout=subprocess.DEVNULL):
            _wait_for(f"{self.url}/v1/models")
            yield file

    def bench(self, file: Path, name: str, load: Sequence[str], tries: int = 1) -> tuple[Result, float, float]:
        """Measure a load, up to so many times while it is disturbed; the run that was disturbed least, and the pace."""
        tried = []
        for _ in range(tries):
            before, began = _on_core(self.engines), len(self.pace.seen_s)
            out = self.folder / f"{name}.measured.json"
            result = _run("bench", self.url, *load, "--deployment", str(file), out=out)
            ran, waited = (after - first for after, first in zip(_on_core(self.engines), before, strict=True))
            unsure = bool(_warnings(result))
            pace_s = statistics.median(self.pace.seen_s[began:])
            tried.append((unsure, waited / max(ran, 1e-9), result, pace_s, out.read_bytes()))
            if not unsure and tried[-1][1] <= DISTURBED:
                break
        _, disturbed, result, pace_s, text = min(tried, key=lambda one: one[:2])
        out.write_bytes(text)
        return result, disturbed, pace_s

    def simulate(self, file: Path, name: str, load: Sequence[str]) -> Result:
        """Simulate a load with the step times calibrated here."""
        calibration = ["--calibration", str(self.folder / "calibration.yaml")]
        return _run("simulate", str(file), *load, *calibration, out=self.folder / f"{name}.simulated.json")

    def both(self, file: Path, name: str, load: Sequence[str]) -> Measured:
        """Measure a load and simulate it."""
        _tell(f"{name}: {' '.join(load)}")
        check = [] if self.size.check else ["--no-check"]
        measured, disturbed, pace_s = self.bench(file, name, [*load, *check], self.size.tries)
        slower = pace_s / statistics.median(self.calibrated_s) - 1.0
        return Measured(name, self.simulate(file, name, load), measured, disturbed, slower)

    def by_seed(self, file: Path, name: str, load: Sequence[str]) -> tuple[float, ...]:
        """Simulated mean TTFT under several seeds, of arrivals, lengths and the policy's own draws."""
        runs = (self.simulate(file, f"{name}-{seed}", [*load, "--seed", str(seed)]) for seed in range(SEEDS))
        return tuple(run.ttft_s.mean or 0.0 for run in runs)

    def calibrate(self, file: Path) -> None:
        """Measure closed loops of several sizes, and calibrate on them."""
        files = []
        for seed, (users, (prompt, output)) in enumerate(itertools.product(self.size.users, self.size.lengths)):
            name = f"calibration-{users}-{prompt}-{output}"
            load = ["--input", str(prompt), "--output", str(output), "--arrival", f"closed:{users}"]
            _tell(f"{name}: {users} users, {prompt} tokens in, {output} out")
            requests = ["--requests", str(12 + 3 * users), "--seed", str(seed), "--no-check"]
            self.calibrated_s.append(self.bench(file, name, [*load, *requests])[2])
            files.append(str(self.folder / f"{name}.measured.json"))
        subprocess.run([*HEADWAY, "calibrate", *files, "--out", str(self.folder / "calibration.yaml")], check=True)

    def capacity(self, file: Path, load: Sequence[str]) -> float:
        """Requests/s that the calibrated replicas finish when there is always work."""
        full = self.simulate(file, "capacity", [*load, "--arrival", "closed:24", "--requests", "600"])
        rate = full.throughput.requests_per_s
        assert rate is not None
        return rate


def close_loop(folder: Path, size: Size, realtime: bool = False) -> Found:
    """Run the whole loop and return what it found; files stay in `folder`."""
    loop = Loop(folder, size, realtime)
    runs, by_policy = [], []
    shape = ["--input", LENGTHS[0], "--output", LENGTHS[1]]
    with loop.replicas():
        with loop.gateway("least-requests") as file:
            loop.calibrate(file)
            capacity = loop.capacity(file, shape)
            _tell(f"capacity, simulated: {capacity:.1f} requests/s")
            for place, share in enumerate(size.loads):
                load = _open(shape, share * capacity, size.load_s, seed=100 + place)
                runs.append(loop.both(file, f"load-{share:.0%}", load))
        shared = ["--workload", str(SESSIONS)]
        for route in size.policies:
            with loop.gateway(route) as file:
                load = _open(shared, SESSIONS_SHARE * capacity, size.policy_s, seed=200)
                run = loop.both(file, route.partition(":")[0], load)
                by_policy.append(run._replace(seeds_ttft_s=loop.by_seed(file, run.name, load)))
    pairs = [_pair(a, b) for a, b in itertools.combinations(by_policy, 2)]
    return Found(runs, by_policy, pairs)


def _warnings(measured: Result) -> list[str]:
    """What bench says against its own figures."""
    found: list[str] = measured.provenance["measured"]["client"]["warnings"]
    return found


def _open(load: Sequence[str], rate: float, seconds: float, seed: int) -> list[str]:
    requests = max(40, round(rate * seconds))
    return [*load, "--rate", f"{rate:.4g}", "--requests", str(requests), "--seed", str(seed)]


def _pair(a: Measured, b: Measured) -> Pair:
    ttft = next(one for one in compare(a.measured, b.measured).differences if one.figure == "TTFT mean")
    assert ttft.difference is not None and ttft.low is not None and ttft.high is not None
    logs = [math.log(second / first) for first, second in zip(a.seeds_ttft_s, b.seeds_ttft_s, strict=True)]
    mean, half = statistics.mean(logs), T95[len(logs) - 2] * statistics.stdev(logs) * math.sqrt(1.0 + 1.0 / len(logs))
    assert ttft.a is not None
    measured = (ttft.difference / ttft.a, ttft.low / ttft.a, ttft.high / ttft.a)
    return Pair((a.name, b.name), (math.expm1(mean), math.expm1(mean - half), math.expm1(mean + half)), measured)


# --- processes ------------------------------------------------------------------------------------------------

HEADWAY = [sys.executable, "-m", "headway"]


def _run(*verb: str, out: Path) -> Result:
    """Run a verb that writes a result, and return it with its rows."""
    rows = out.with_suffix(".csv")
    command = [*HEADWAY, *verb, "--json", str(out), "--records", str(rows), "--quiet"]
    subprocess.run(command, check=True, stderr=subprocess.PIPE)
    result = Result.from_json(out.read_bytes(), str(out))
    return msgspec.structs.replace(result, records=Records.read(rows))


@contextmanager
def _process(command: list[str], **pipes: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Keep a process running; it is interrupted at the end."""
    process = subprocess.Popen(command, **pipes)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(STOPPED_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on; the first three in a row."""
    for first in range(18200, 19000, 10):
        with ExitStack() as held:
            try:
                for port in range(first, first + count):
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
        return list(range(first, first + count))
    raise OSError("no five free ports in a row between 18200 and 19000")


def _wait_for(url: str) -> None:
    end_s = time.monotonic() + STARTED_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1.0):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > end_s:
                raise
            time.sleep(0.05)


def _on_core(threads: Sequence[int]) -> tuple[float, float]:
    """Nanoseconds that threads have run, and that they could have run but others did."""
    fields = [Path(f"/proc/{thread}/schedstat").read_text().split() for thread in threads]
    return sum(float(ran) for ran, _, _ in fields), sum(float(waited) for _, waited, _ in fields)


# --- what is printed ------------------------------------------------------------------------------------------


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(found: Found) -> str:
    """Return what was found as text: loads, policies, pairs."""
    names = "".join(f"{name + ' sim':>14}{'live':>10}{'':>8}" for name in FIGURES)
    lines = [f"{'load':<10}{'disturbed':>10}{'slower':>8}  {names}"]
    for run in [*found.loads, *found.policies]:
        cells = []
        for name, of in FIGURES.items():
            ours, live = of(run.simulated), of(run.measured)
            unit, scale = ("", 1.0) if name == "tokens/s" else (" ms", 1e3)
            cells.append(
                f"{scale * ours:>11.1f}{unit:<3}{scale * live:>7.1f}{unit:<3}{100 * (ours / live - 1):>+6.0f} %"
            )
        lines.append(f"{run.name[:16]:<10}{100 * run.disturbed:>8.0f} %{100 * run.slower:>+6.0f} %  " + "".join(cells))
    for name, error in found.errors().items():
        lines.append(f"{name}: median error over loads {100 * error:.1f} %, {_verdict(error <= TOLERANCE)}")
    for pair in found.pairs:
        ours, live = (f"{at:+.0%} ({low:+.0%} to {high:+.0%})" for at, low, high in pair[1:])
        said = _verdict(pair.agrees) if pair.differs else "the simulator does not tell them apart"
        lines.append(f"mean TTFT, {pair.policies[1]} against {pair.policies[0]}: simulated {ours}, live {live}; {said}")
    return "\n".join(lines)


def _verdict(good: bool) -> str:
    return "passed" if good else "FAILED"


def written(found: Found) -> dict[str, Any]:
    """Return what was found as builtins."""

    def run(one: Measured) -> dict[str, Any]:
        figures = {name: {"simulated": of(one.simulated), "measured": of(one.measured)} for name, of in FIGURES.items()}
        return {"name": one.name, "disturbed": one.disturbed, "slower": one.slower, **figures}

    pairs = [pair._asdict() | {"differs": pair.differs, "agrees": pair.agrees} for pair in found.pairs]
    return {
        "cores": os.cpu_count(), "passed": found.passed, "median_errors": found.errors(),
        "loads": [run(one) for one in found.loads], "policies": [run(one) for one in found.policies], "pairs": pairs,
    }  # fmt: skip


def main() -> int:
    """Close the loop, print the table, and say whether the targets are met."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the short version that the tests run; writes no file")
    parser.add_argument("--realtime", action="store_true", help="engines before all other work on their core")
    parser.add_argument("--keep", metavar="FOLDER", help="where all results stay")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left running
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "examples"), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(asked.keep or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        found = close_loop(folder, QUICK if asked.quick else FULL, asked.realtime)
    print(table(found))
    if not asked.quick:
        RESULTS.write_text(json.dumps(written(found), indent=1) + "\n")
    return 0 if found.passed else 1


if __name__ == "__main__":
    sys.exit(main())
