"""Law 10: queueing theory. A replica is made into M/M/1, M/D/1 or M/M/k, and must give their known means.

How: the step table makes a decode step cost `TOKEN_S` whatever the batch and a prefill next to nothing, so that a
request's service time is its output length times `TOKEN_S`: exponential lengths of mean 10,000 tokens (rounding moves
the mean by 1e-4 and is counted in), or constant ones. `max_seqs` is the number of servers.

Method: independent replications. Each seed gives one run, the first tenth of it left out (it starts empty), and one
mean; Student's 95 % interval over the seeds must hold the theory's value, and be narrow enough to mean something.
The seeds are fixed, so the outcome is always the same. Interpreted there are fewer and shorter runs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import ClassVar

import msgspec
import numpy as np
import pytest
from drive import plain_table
from scipy import stats

import headway
from headway.cost import EngineSettings, Replica, StepTable
from headway.metrics import Result
from headway.policies import Policy
from headway.sim import Deployment, Policies, Pool, simulate
from headway.sim.run import compiled
from headway.state import Route
from headway.workload import Workload, WorkloadSpec, parse_length, workload

INTERPRETED = bool(headway.interpreted_modules())
SEEDS, REQUESTS = (range(100, 110), 1500) if INTERPRETED else (range(100, 124), 30_000)
WIDTH = 0.3 if INTERPRETED else 0.06  # of the half interval, relative to the theory's value
BETWEEN = pytest.param(0.6, marks=pytest.mark.sweep)
UTILIZATIONS = [0.6] if INTERPRETED else [0.3, BETWEEN, 0.8]
MEAN_TOKENS, TOKEN_S = 10_000, 1e-4


class Probe(Policy):
    """Sends everything to the first replica and notes how many requests are there already."""

    reads_progress = False
    seen: ClassVar[list[int]] = []

    def route(self, request, pool):
        self.seen.append(pool.replicas[0].waiting + pool.replicas[0].running)
        return Route(0, "the only one")


def load(output: str, rate_req_s: float, requests: int = REQUESTS) -> Workload:
    """Poisson arrivals of one-token prompts with outputs of this length."""
    spec = WorkloadSpec(prompt=parse_length("1"), output=parse_length(output), requests=requests)
    return workload(spec, rate=rate_req_s)


def queue(servers: int, jobs: Workload, seed: int) -> Result:
    """A replica with so many servers, run once."""
    table = plain_table(decode_s=TOKEN_S, seqs=servers, block=1024, kv_blocks=10**6)
    engine = EngineSettings(max_seqs=servers, max_batched_tokens=256, block_tokens=1024, prefix_cache=False)
    pool = Pool(replica=Replica(model="llama-3.1-8b", gpu="h100-sxm", engine=engine))
    deployment = Deployment(pools=(pool,), policies=Policies(route="test_theory:Probe"))
    return simulate(deployment, jobs, seed=seed, warmup=0.1, tables=(table,))


def service_s(output: str) -> float:
    """Mean time in service: the first token comes with the prefill, which costs nothing."""
    return (parse_length(output).expected_tokens - 1) * TOKEN_S


@functools.cache
def measured(servers: int, output: str, utilization: float) -> dict[str, list[float]]:
    """Of the measured requests, one number per seed: mean wait, mean and 90th percentile of the time in system, share
    that waits, requests seen by arrivals, rate times time in system."""
    rate = servers * utilization / service_s(output)
    jobs = load(output, rate)
    means: dict[str, list[float]] = {"wait_s": [], "system_s": [], "p90_s": [], "waits": [], "seen": [], "expected": []}
    Probe.seen.clear()
    for seed in SEEDS:
        result = queue(servers, jobs, seed)
        records = result.records
        assert records is not None
        rows = records["measured"]
        wait_s = (records["admitted_s"] - records["arrival_s"])[rows]
        means["wait_s"].append(float(wait_s.mean()))
        means["system_s"].append(float(records.e2e_s[rows].mean()))
        means["p90_s"].append(float(np.percentile(records.e2e_s[rows], 90)))
        means["waits"].append(float((wait_s > 2 * TOKEN_S).mean()))  # up to a step is waited for its end
        for name, requests in zip(("seen", "expected"), seen_and_expected(result, rate), strict=True):
            means[name].append(requests)
    return means


def assert_within(samples: Iterable[float], theory: float, width: float = WIDTH) -> None:
    """The 95 % interval of the mean holds the theory's value, and is narrower than `width` of it on each side."""
    values = np.asarray(list(samples))
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    assert half <= width * theory, f"the interval {values.mean():.4g} +- {half:.2g} is too wide to tell"
    assert abs(values.mean() - theory) <= half, f"{values.mean():.5g} +- {half:.2g}, theory {theory:.5g}"


def erlang_c(servers: int, utilization: float) -> float:
    """Probability that a request waits in M/M/k (A. K. Erlang, 1917)."""
    offered = servers * utilization
    last = offered**servers / math.factorial(servers) / (1 - utilization)
    return last / (sum(offered**n / math.factorial(n) for n in range(servers)) + last)


@pytest.mark.parametrize("utilization", UTILIZATIONS)
def test_mm1(utilization):
    """Time in system E[S]/(1 - rho); a share rho waits; the time in system is exponential."""
    means = measured(1, f"exp:{MEAN_TOKENS}", utilization)
    mean_s = service_s(f"exp:{MEAN_TOKENS}")
    assert_within(means["system_s"], mean_s / (1 - utilization))
    assert_within(means["p90_s"], math.log(10) * mean_s / (1 - utilization))
    assert_within(means["wait_s"], mean_s * utilization / (1 - utilization))
    assert_within(means["waits"], utilization)


@pytest.mark.parametrize("utilization", UTILIZATIONS)
def test_md1(utilization):
    """Half the wait of M/M/1 (Pollaczek and Khinchine)."""
    means = measured(1, f"{MEAN_TOKENS}", utilization)
    assert_within(means["wait_s"], service_s(f"{MEAN_TOKENS}") * utilization / (2 * (1 - utilization)))
    assert_within(means["waits"], utilization)


@pytest.mark.parametrize(
    ("servers", "utilization"),
    [(2, 0.6)] if INTERPRETED else [
        (2, 0.8), (8, 0.6), *(pytest.param(*case, marks=pytest.mark.sweep) for case in ((2, 0.6), (8, 0.8))),
    ],
)  # fmt: skip
def test_mmk(servers, utilization):
    """Erlang's C waits, on average C E[S] / (k (1 - rho))."""
    means = measured(servers, f"exp:{MEAN_TOKENS}", utilization)
    waits = erlang_c(servers, utilization)
    mean_s = service_s(f"exp:{MEAN_TOKENS}")
    assert_within(means["waits"], waits)
    assert_within(means["wait_s"], waits * mean_s / (servers * (1 - utilization)))


# --- Little's law -----------------------------------------------------------------------------------------------


def assert_littles_law(runs: Iterable[tuple[float, float]]) -> None:
    """Pairs of (requests seen by arrivals, rate times time in system), one per seed: no difference on average.

    Poisson arrivals see time averages (R. W. Wolff, 1982), so what the router saw is L, independently of W.
    """
    seen, expected = (np.array(column) for column in zip(*runs, strict=True))
    gap = seen - expected
    half = stats.t.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / math.sqrt(len(gap))
    assert half <= WIDTH * expected.mean()
    assert abs(gap.mean()) <= half, f"{seen.mean():.4g} seen, {expected.mean():.4g} = rate times time in system"


def seen_and_expected(result: Result, rate_req_s: float) -> tuple[float, float]:
    """L as the router saw it, and lambda W, both over the measured requests; the probe is emptied."""
    assert result.records is not None
    rows = result.records["measured"]
    seen = np.array(Probe.seen)[rows]
    Probe.seen.clear()
    return float(seen.mean()), rate_req_s * float(result.records.e2e_s[rows].mean())


@pytest.mark.parametrize("utilization", UTILIZATIONS)
def test_littles_law_of_a_single_server(utilization):
    means = measured(1, f"exp:{MEAN_TOKENS}", utilization)  # of the runs of test_mm1
    assert_littles_law(zip(means["seen"], means["expected"], strict=True))


def test_littles_law_of_a_real_replica():
    """A batching replica under chat, at two thirds of what it can serve."""
    jobs = workload("chat", rate=12, requests=400 if INTERPRETED else 4000)
    pool = Pool(replica=Replica(model="llama-3.1-8b", gpu="h100-sxm"))
    deployment = Deployment(pools=(pool,), policies=Policies(route="test_theory:Probe"))
    Probe.seen.clear()
    runs = [seen_and_expected(simulate(deployment, jobs, seed=seed, warmup=0.1), 12.0) for seed in SEEDS]
    assert_littles_law(runs)
    assert np.mean([seen for seen, _ in runs]) > 10, "hardly a batch: the law says little here"


# --- capacity ---------------------------------------------------------------------------------------------------


def prefills(table: StepTable, prompt: str, rate_req_s: float, requests: int) -> Result:
    """One replica that only prefills: a token is asked of each prompt."""
    spec = WorkloadSpec(prompt=parse_length(prompt), output=parse_length("1"), requests=requests)
    engine = EngineSettings(max_seqs=table.max_seqs, max_batched_tokens=table.max_batched_tokens, prefix_cache=False)
    pool = Pool(replica=Replica(model="llama-3.1-8b", gpu="h100-sxm", engine=engine))
    return simulate(Deployment(pools=(pool,)), workload(spec, rate=rate_req_s), warmup=0.0, tables=(table,))


def test_saturated_prefills_take_full_steps():
    """A burst of N prompts of p tokens takes N p / budget steps, to the bit of the sum."""
    table = plain_table(linear_s=0.01, token_s=1e-4, budget=256, seqs=64)
    result = prefills(table, "96", rate_req_s=1e9, requests=800)
    steps = 800 * 96 / 256
    assert result.steps in (steps, steps + 1)  # the first request comes alone
    assert result.duration_s == pytest.approx(steps * (0.01 + 256e-4), rel=0.01)


@pytest.mark.parametrize("overload", [0.5, 0.9, 3.0])
def test_prefill_throughput_is_the_smaller_of_load_and_capacity(overload):
    """No more tokens per second than the best step gives; else nine tenths of it, or of what comes."""
    table = compiled(Replica(model="llama-3.1-8b", gpu="h100-sxm", engine=EngineSettings(max_batched_tokens=2048)))
    table = msgspec.structs.replace(table, prompt_step_s=0.0, intake_s=0.0)
    sizes = np.arange(1, table.max_batched_tokens + 1)
    capacity = float((sizes / (table.linear_s[1:] + table.seq_s[1])).max())  # attention and sequences only slow it
    requests = 300 if INTERPRETED else 2000
    result = prefills(table, "uniform:100:900", overload * capacity / 500, requests)
    tokens_per_s = result.tokens.prompt / result.duration_s
    assert tokens_per_s <= capacity
    assert tokens_per_s >= 0.9 * min(overload, 1.0) * capacity
