"""The laws of docs/laws.md on real replicas, by way of `simulate`: mixed, in stages, split, windowed, short of KV."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
from drive import BINS

import headway
from headway.cost import EngineSettings, Replica
from headway.engine.checks import check_integrity
from headway.metrics import Prices, Result, Slo
from headway.policies import Policy, policy, policy_names
from headway.policies.contract import make_pool, make_request
from headway.sim import Deployment, Policies, Pool, simulate
from headway.sim.recorder import Recorder
from headway.sim.run import build, compiled
from headway.state import Hold, Route
from headway.workload import SharedPrefix, Workload, WorkloadSpec, parse_arrival, parse_length, workload

HERE = Path(__file__).resolve().parent
INTERPRETED = bool(headway.interpreted_modules())
LLAMA = Replica(model="llama-3.1-8b", gpu="h100-sxm")
SHORT = EngineSettings(memory_utilization=0.9, max_batched_tokens=512)
SLO = Slo(ttft_s=0.3, tpot_s=0.02)


def mixed(count: int, replica: Replica, **policies: str) -> Deployment:
    return Deployment(pools=(Pool(count=count, replica=replica),), policies=Policies(**policies))


DEPLOYMENTS = {
    "mixed": mixed(2, LLAMA, route="prefix-affinity"),
    "stages": mixed(2, Replica(model="llama-3.1-70b", gpu="h100-sxm", tp=2, pp=2), route="power-of-two"),
    "window": mixed(2, Replica(model="gemma-3-27b", gpu="h100-sxm"), order="sjf"),
    "short of KV": mixed(1, Replica(model="llama-3.1-8b", gpu="l4", engine=SHORT), order="edf"),
    "split": Deployment(
        pools=(Pool(role="prefill", count=1, replica=LLAMA), Pool(role="decode", count=2, replica=LLAMA)),
        policies=Policies(route="least-tokens"),
    ),
}


def load(requests: int, arrival: str = "poisson:rate=12") -> Workload:
    """Chat-like lengths, prompts of which many begin alike."""
    spec = WorkloadSpec(
        arrival=parse_arrival(arrival),
        prompt=parse_length("lognormal:median=500,sigma=1,max=4000"),
        output=parse_length("exp:150"),
        requests=requests,
        shared_prefix=SharedPrefix(tokens=parse_length("uniform:200:800"), groups=12, skew=1.0),
        prediction_sigma=0.5,
    )
    return workload(spec)


LOADS = {
    "open": load(150 if INTERPRETED else 1500),
    "closed": load(100 if INTERPRETED else 1000, "closed:48"),
}
RUNS = [(name, kind) for name in DEPLOYMENTS for kind in LOADS]


def run(name: str, kind: str) -> Result:
    return simulate(DEPLOYMENTS[name], LOADS[kind], slo=SLO, seed=3)


# --- 1 conservation, 2 causality, 13 energy and cost ------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), RUNS)
def test_laws_1_2_and_13_of_a_result(name: str, kind: str) -> None:
    result = run(name, kind)
    ends, records = result.requests, result.records
    assert records is not None
    assert ends.arrived == LOADS[kind].requests == len(records)
    assert ends.arrived == ends.finished + ends.rejected + ends.failed + ends.unfinished
    assert ends.finished > 0.9 * ends.arrived
    (batch,) = LOADS[kind].batches(3)
    done = records.finished
    np.testing.assert_array_equal(records["output_tokens"][done], batch.output_tokens[done])
    assert result.tokens.output == records["output_tokens"].sum()
    assert result.tokens.cached <= result.tokens.prompt == batch.prompt_tokens.sum()
    records.check_integrity()
    energy, cost = result.energy, result.cost
    watts = sum(compiled(pool.replica).idle_watts * pool.count for pool in DEPLOYMENTS[name].pools)
    assert energy.joules == energy.idle_joules + energy.prefill_joules + energy.decode_joules
    assert energy.idle_joules == pytest.approx(watts * result.duration_s)
    assert min(energy.prefill_joules, energy.decode_joules) > 0.0
    assert cost.usd == pytest.approx(cost.usd_per_hour * result.duration_s / 3600)
    assert all(load.busy_s <= result.duration_s for load in result.replicas)


def test_law_1_requests_under_way_are_counted_when_a_run_is_stopped() -> None:
    def stop(ended: int, expected: int | None) -> None:
        raise KeyboardInterrupt

    jobs = load(30_000 if not INTERPRETED else 12_000, "poisson:rate=40")
    result = simulate(DEPLOYMENTS["mixed"], jobs, slo=SLO, progress=stop)
    ends = result.requests
    assert "stopped" in result.provenance
    assert ends.unfinished > 0
    assert ends.arrived == ends.finished + ends.unfinished < 30_000
    assert result.records is not None
    assert result.records["output_tokens"].sum() == result.tokens.output


def test_law_13_the_bill_is_that_of_all_gpus_idle_or_not() -> None:
    jobs = load(50)
    prices = Prices(usd_per_gpu_hour=2.0)
    one, two = (
        simulate(Deployment(pools=(Pool(count=count, replica=LLAMA),), prices=prices), jobs) for count in (1, 2)
    )
    assert one.cost.usd_per_hour == 2.0
    assert two.cost.usd_per_hour == 4.0


# --- 5 determinism ----------------------------------------------------------------------------------------------


def results() -> str:
    """All results as JSON text, a line each."""
    return "\n".join(run(name, kind).to_json(indent=0).replace("\n", "") for name, kind in RUNS)


def test_law_5_the_same_inputs_give_the_same_bytes_in_any_process() -> None:
    told = []
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", "import test_laws_real; print(test_laws_real.results())"],
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE)])},
            capture_output=True,
            check=True,
        )
        told.append(done.stdout)
    assert told[0] == told[1]
    assert told[0].decode().strip() == results()
    assert len({json.loads(line)["duration_s"] for line in told[0].splitlines()}) == len(RUNS)


def test_law_5_another_seed_gives_another_run() -> None:
    one, other = (simulate(DEPLOYMENTS["mixed"], LOADS["open"], seed=seed) for seed in (1, 2))
    assert one.ttft_s != other.ttft_s


@pytest.mark.parametrize(("name", "kind"), RUNS)
def test_law_5_keeping_no_records_changes_percentiles_by_one_percent_and_nothing_else(name: str, kind: str) -> None:
    kept = run(name, kind).to_mapping()
    counted = simulate(DEPLOYMENTS[name], LOADS[kind], slo=SLO, seed=3, records=False).to_mapping()
    for latency in ("ttft_s", "tpot_s", "e2e_s"):
        exact, binned = kept.pop(latency), counted.pop(latency)
        for number in ("mean", "p50", "p90", "p99"):
            assert binned[number] == pytest.approx(exact[number], rel=0.01)
    assert counted == kept


# --- 7 leap = step ----------------------------------------------------------------------------------------------


def columns(name: str, kind: str, leaps: bool) -> tuple[dict[str, np.ndarray], int, list[tuple[float, int, int]]]:
    """The rows of a run, its events, and what each engine counted."""
    deployment, jobs = DEPLOYMENTS[name], LOADS[kind]
    recorder = Recorder(True, jobs.requests, 0, [(1.0, 1.0, 1.0)], BINS)
    tables = tuple(compiled(pool.replica) for pool in deployment.pools)
    cluster, pools = build(deployment, jobs, tables, recorder, 3)
    engines = [engine for pool in pools for engine in pool]
    for engine in engines:
        engine.set_leaps(leaps)
    while cluster.advance(20_000):
        for engine in engines:
            check_integrity(engine)
    counted = [(engine.busy.until(cluster.now), engine.kv.peak, engine.preemptions) for engine in engines]
    return recorder.columns(), cluster.events, counted


@pytest.mark.parametrize(("name", "kind"), RUNS)
def test_law_7_leaping_equals_stepping(name: str, kind: str) -> None:
    leapt, few, counted = columns(name, kind, leaps=True)
    stepped, many, recounted = columns(name, kind, leaps=False)
    for column, values in leapt.items():
        np.testing.assert_array_equal(values, stepped[column], err_msg=column)
    assert counted == recounted
    assert few < many or name == "stages", "nothing was leapt over"


def test_the_cases_do_what_they_are_there_for() -> None:
    assert run("short of KV", "open").kv.preemptions > 0
    hits = run("mixed", "open").kv.prefix_hit_rate
    assert hits is not None and hits > 0.1


# --- 12 the same decision in every host -------------------------------------------------------------------------


class Logged(Policy):
    """Asks the router `name` and keeps, in `log`, all that it could see and what it answered."""

    log: list[tuple[tuple[int, float, int, float], str, float, object, list[tuple[int, ...]], str]]

    def __init__(self, name: str) -> None:
        self.asked = policy("route", name)
        type(self).log = []

    def route(self, request, pool):
        known = (
            request.id, request.arrival_s, request.prompt_tokens, request.predicted_output_tokens, request.node
        )  # fmt: skip
        loads = [
            (r.running, r.waiting, r.waiting_tokens, r.context_tokens, r.kv_used_blocks, r.cached_tokens(request))
            for r in pool.replicas
        ]
        stream = pool.rng.getstate()
        answer = self.asked.route(request, pool)
        nodes = [r.node for r in pool.replicas]
        self.log.append((known, pool.role, pool.now, stream, loads, nodes, told(answer)))
        return answer


def told(answer: Route | Hold) -> str:
    return f"{getattr(answer, 'index', 'held')}: {answer.reason}"


@pytest.mark.parametrize("router", policy_names("route"))
@pytest.mark.parametrize("name", ["mixed", "split"])
def test_law_12_another_host_that_shows_the_same_gets_the_same_decision(name: str, router: str) -> None:
    """The simulator's log, replayed by a fresh policy on views that no engine stands behind."""
    chosen = Policies(route="test_laws_real:Logged", params={"route": {"name": router}})
    simulate(Deployment(pools=DEPLOYMENTS[name].pools, policies=chosen), LOADS["open"], seed=5)
    replayed = policy("route", router)
    assert len(Logged.log) >= LOADS["open"].requests
    for known, role, now, stream, loads, nodes, said in Logged.log:
        rng = Random()
        rng.setstate(stream)
        fields = dict(zip(("id", "arrival_s", "prompt_tokens", "predicted_output_tokens", "node"), known, strict=True))
        answer = replayed.route(make_request(**fields), make_pool(role, loads, rng, now, nodes=nodes))
        assert told(answer) == said
