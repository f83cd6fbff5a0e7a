"""DistServe's claim, coarsely: what holds of it by its own published law, and what does not (benchmarks/README.md)."""

from pathlib import Path

import numpy as np
import pytest

from headway.cost import EngineSettings, Replica, distserve_table
from headway.metrics import Slo
from headway.sim import Deployment, Pool, simulate
from headway.workload import workload

LENGTHS = Path(__file__).resolve().parents[1] / "benchmarks" / "data" / "distserve_sharegpt_300.csv"
ENGINE = EngineSettings(prefix_cache=False)


def pool(role, count, tp, pp=1, model="opt-13b"):
    replica = Replica(model=model, gpu="a100-80gb-sxm", tp=tp, pp=pp, engine=ENGINE)
    return Pool(role=role, count=count, replica=replica)


def colocated(tp, **model):
    return Deployment(pools=(pool("mixed", 1, tp, **model),))


def split(prefill, decode, **model):
    return Deployment(pools=(pool("prefill", *prefill, **model), pool("decode", *decode, **model)))


PAPERS_PLAN = split((1, 2), (1, 1))


def serve(deployment, load, slo=None, seed=0, records=False):
    replicas = [pool.replica for pool in deployment.pools]
    tables = tuple(distserve_table(each.model, each.tp, each.pp, engine=ENGINE) for each in replicas)
    return simulate(deployment, load, slo=slo, seed=seed, records=records, tables=tables, warmup=0.0)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """1,200 requests drawn from the 300 published ones."""
    pairs = np.loadtxt(LENGTHS, delimiter=",", skiprows=1, dtype=np.int64)
    drawn = pairs[np.random.default_rng(1).integers(0, len(pairs), 1200)]
    path = tmp_path_factory.mktemp("distserve") / "drawn.csv"
    np.savetxt(path, drawn, fmt="%d", delimiter=",", header="input_tokens,output_tokens", comments="")
    return workload(path, arrival="poisson", rate=1.0)


@pytest.fixture(scope="module")
def goodput(load):
    """Requests per second and GPU at which 90 % meet both limits, to 3 %."""

    def search(deployment, ttft_s, tpot_s):
        slo = Slo(ttft_s=ttft_s, tpot_s=tpot_s, attainment=0.9)
        low, high = 0.1, 32.0
        while high / low > 1.03:
            middle = (low * high) ** 0.5
            met = serve(deployment, load.at_rate(middle), slo).slo.attainment >= 0.9
            low, high = (middle, high) if met else (low, middle)
        return low / deployment.gpus

    return search


def test_a_prefill_instance_is_a_queue_that_serves_all_who_wait_at_once():
    load = workload(LENGTHS, arrival="poisson", rate=8.0)
    records = serve(PAPERS_PLAN, load, records=True).records
    a, b, c = (distserve_table("opt-13b", 2).provenance[f"prefill.{name}"].value for name in "abc")
    now, expected, batches = 0.0, [], 0
    coming = list(zip(records["arrival_s"], records["prompt_tokens"], strict=True))
    while coming:
        now, batches = max(now, coming[0][0]), batches + 1
        batch = [each for each in coming if each[0] <= now]
        coming = coming[len(batch) :]
        now += 1e-3 * (a + sum(b * tokens + c * tokens**2 for _, tokens in batch))
        expected += [now - arrival_s for arrival_s, _ in batch]
    assert 200 < batches < 290  # some waited, and together
    np.testing.assert_allclose(records["first_token_s"] - records["arrival_s"], expected, rtol=1e-9)


def test_no_decode_waits_for_a_prompt_of_its_own_instance(load):
    together, apart = serve(colocated(2), load.at_rate(3.0)), serve(split((1, 2), (1, 2)), load.at_rate(3.0))
    a, b, c = (distserve_table("opt-13b", 2).provenance[f"prefill.{name}"].value for name in "abc")
    median_prompt_s = 1e-3 * (a + b * 758 + c * 758**2)
    assert together.itl_s.p99 > median_prompt_s > 2 * apart.itl_s.p99


def test_kv_in_flight_is_bounded_and_everyone_is_served(load):
    result = serve(PAPERS_PLAN, load.at_rate(12.0))
    assert result.requests.finished == 1200
    assert 0.95 < result.kv.peak_utilization <= 1.0


def test_the_plan_of_the_paper_is_the_best_of_its_search_and_beats_the_baseline_of_the_paper(goodput):
    found = {
        (p, d): goodput(split((1, p), (1, d)), 0.2, 0.1) for p, d in ((1, 1), (1, 2), (2, 1), (2, 2))
    }
    assert 1.5 < found[2, 1] < 2.5
    assert found[2, 1] > 1.3 * max(found[1, 1], found[1, 2])
    assert found[2, 1] > 0.93 * found[2, 2]  # a tie over many requests, a clear win over 300
    assert 1.5 < found[2, 1] / goodput(colocated(1), 0.2, 0.1) < 2.6


def test_the_baseline_wins_when_it_may_choose_its_parallelism_as_well(goodput):
    assert goodput(colocated(2), 0.2, 0.1) > 1.2 * goodput(PAPERS_PLAN, 0.2, 0.1)
    assert goodput(colocated(4), 0.125, 0.2) > goodput(split((1, 4), (1, 2)), 0.125, 0.2)


def test_on_the_same_gpus_splitting_pays_where_tpot_is_tight_and_ttft_loose(goodput):
    assert goodput(split((1, 1), (3, 1)), 4.0, 0.04) > 1.15 * goodput(colocated(1), 4.0, 0.04)
    assert goodput(split((1, 1), (3, 1)), 0.2, 0.2) < goodput(colocated(1), 0.2, 0.2)


def test_of_66b_neither_wins_everywhere_and_the_plan_of_the_paper_is_not_the_best(goodput):
    mixed = colocated(4, model="opt-66b")
    papers = split((1, 4), (1, 2, 2), model="opt-66b")
    tight_tpot = split((1, 3), (1, 4), model="opt-66b")
    assert goodput(tight_tpot, 2.5, 0.075) > 1.2 * goodput(mixed, 2.5, 0.075)
    assert goodput(split((2, 3), (1, 3, 2), model="opt-66b"), 0.625, 0.15) < goodput(mixed, 0.625, 0.15)
    assert goodput(papers, 2.5, 0.15) < 0.8 * goodput(mixed, 2.5, 0.15)
