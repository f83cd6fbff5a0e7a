"""APEX's claims, coarsely: which plans are fast, and what the least energy costs (benchmarks/README.md)."""

import pytest

from headway.cost import EngineSettings, Replica
from headway.sim import Deployment, Pool, simulate
from headway.workload import WorkloadSpec, parse_arrival, parse_length, workload


def load(prompt, output, requests, rate):
    lengths = [parse_length(f"lognormal:mean={mean},sigma=0.4") for mean in (prompt, output)]
    arrival = parse_arrival("poisson")
    spec = WorkloadSpec(name="apex", arrival=arrival, prompt=lengths[0], output=lengths[1], requests=requests)
    return workload(spec, rate=rate)


def run(requests, count=1, **layout):
    replica = Replica(model="llama-3-70b", gpu="h100-sxm", **layout)
    deployment = Deployment(pools=(Pool(count=count, replica=replica),))
    return simulate(deployment, requests, seed=1, records=False, warmup=0.0)


def test_on_two_gpus_tp_is_faster_than_a_pipeline_and_tokens_take_about_what_apex_publishes():
    room = EngineSettings(memory_utilization=0.98)
    tp, pp = (run(load(1198, 209, 100, 1.8), engine=room, **cut) for cut in ({"tp": 2}, {"pp": 2}))
    assert tp.e2e_s.mean < 0.7 * pp.e2e_s.mean
    assert tp.tpot_s.mean == pytest.approx(44.1e-3, rel=0.3)
    assert pp.tpot_s.mean == pytest.approx(62.8e-3, rel=0.5)


def test_over_two_nodes_replicas_beat_a_pipeline_the_more_the_higher_the_load():
    ratios = []
    for rate in (0.5, 16.0):
        requests = load(2400, 150, 512, rate)
        ratios.append(run(requests, tp=8, pp=2).e2e_s.mean / run(requests, count=4, tp=4).e2e_s.mean)
    assert ratios[0] < 1  # alone, a request is served fastest by the most GPUs
    assert ratios[1] > 1.8


def test_a_slower_clock_saves_energy_for_the_same_requests_and_takes_longer():
    requests = load(308, 1144, 256, 4.0)
    fast, slow = (run(requests, tp=8, clock_mhz=clock) for clock in (1980.0, 1260.0))
    assert slow.energy.joules < 0.9 * fast.energy.joules
    assert slow.e2e_s.mean > fast.e2e_s.mean
