"""Law 10: queueing theory. A replica is made into M/M/1, M/D/1 or M/M/k, and must give their known means.

How: the step table makes a decode step cost `TOKEN_S` whatever the batch and a prefill next to nothing, so that a
request's service time is its output length times `TOKEN_S`: exponential lengths of mean 10,000 tokens (rounding moves
the mean by 1e-4 and is counted in), or constant ones. `max_seqs` is the number of servers.

Method: independent replications. Each seed gives one run, the first tenth of it left out (it starts empty), and one
mean; Student's 95 % interval over the seeds must hold the theory's value, and be narrow enough to mean something.
Seeds are 0, 1, 2, ..., so the outcome is always the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import pytest
from drive import plain_table
from scipy import stats

import headway
from headway.cost import EngineSettings, Replica
from headway.metrics import Result
from headway.policies import Policy
from headway.sim import Deployment, Policies, Pool, simulate
from headway.state import Route
from headway.workload import Workload, WorkloadSpec, parse_length, workload

INTERPRETED = bool(headway.interpreted_modules())
SEEDS, REQUESTS = (12, 1500) if INTERPRETED else (24, 30_000)
WIDTH = 0.35 if INTERPRETED else 0.06  # of the half interval, relative to the theory's value
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


def measured(servers: int, output: str, utilization: float) -> dict[str, list[float]]:
    """Means over the measured requests, one per seed: waiting time, time in system, share that waits."""
    rate = servers * utilization / service_s(output)
    jobs = load(output, rate)
    means: dict[str, list[float]] = {"wait_s": [], "system_s": [], "waits": []}
    for seed in range(SEEDS):
        records = queue(servers, jobs, seed).records
        assert records is not None
        rows = records["measured"]
        wait_s = (records["admitted_s"] - records["arrival_s"])[rows]
        means["wait_s"].append(float(wait_s.mean()))
        means["system_s"].append(float(records.e2e_s[rows].mean()))
        means["waits"].append(float((wait_s > 2 * TOKEN_S).mean()))  # up to a step is waited for its end
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


@pytest.mark.parametrize("utilization", [0.3, 0.6, 0.8])
def test_mm1(utilization):
    """Time in system E[S]/(1 - rho); a share rho waits; the time in system is exponential."""
    means = measured(1, f"exp:{MEAN_TOKENS}", utilization)
    mean_s = service_s(f"exp:{MEAN_TOKENS}")
    assert_within(means["system_s"], mean_s / (1 - utilization))
    assert_within(means["wait_s"], mean_s * utilization / (1 - utilization))
    assert_within(means["waits"], utilization)


@pytest.mark.parametrize("utilization", [0.3, 0.6, 0.8])
def test_md1(utilization):
    """Half the wait of M/M/1 (Pollaczek and Khinchine)."""
    means = measured(1, f"{MEAN_TOKENS}", utilization)
    assert_within(means["wait_s"], service_s(f"{MEAN_TOKENS}") * utilization / (2 * (1 - utilization)))
    assert_within(means["waits"], utilization)


@pytest.mark.parametrize("servers", [2, 8])
@pytest.mark.parametrize("utilization", [0.5, 0.8])
def test_mmk(servers, utilization):
    """Erlang's C waits, on average C E[S] / (k (1 - rho))."""
    means = measured(servers, f"exp:{MEAN_TOKENS}", utilization)
    waits = erlang_c(servers, utilization)
    mean_s = service_s(f"exp:{MEAN_TOKENS}")
    assert_within(means["waits"], waits)
    assert_within(means["wait_s"], waits * mean_s / (servers * (1 - utilization)))
