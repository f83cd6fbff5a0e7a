"""Deployments of several pools in one role: fleets of unlike replicas."""

from io import StringIO
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from headway.cost import EngineSettings, Replica
from headway.errors import BadInput
from headway.metrics import Slo
from headway.report import result_text
from headway.sim import Deployment, Policies, Pool, simulate
from headway.sim.run import compiled
from headway.specs import from_mapping, read_yaml, write_yaml
from headway.workload import workload

SMALL = EngineSettings(max_batched_tokens=512, max_seqs=32)
L4 = Replica(model="llama-3.2-1b", gpu="l4", engine=SMALL)
H100 = msgspec.structs.replace(L4, gpu="h100-sxm")
ROUTES = ["round-robin", "least-requests", "least-tokens", "power-of-two", "prefix-affinity"]


def pools(*counts: tuple[str, int], replica: Replica = L4) -> tuple[Pool, ...]:
    return tuple(Pool(role=role, count=count, replica=replica) for role, count in counts)


def rows(deployment: Deployment, path: Path, seed: int, load: str) -> bytes:
    """The records as they are written."""
    result = simulate(deployment, workload(load, rate=30.0, requests=50), seed=seed, slo=Slo(ttft_s=1.0))
    assert result.records is not None
    result.records.write(path)
    return path.read_bytes()


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from(ROUTES), st.integers(0, 10**6), st.booleans(), st.sampled_from(["chat", "agent"]), st.integers(2, 3)
)
def test_pools_of_like_replicas_are_one_pool(tmp_path_factory, route, seed, apart, load, count):
    """Cut into pools of one replica or whole: the same bytes of records."""
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    if apart:
        whole, cut = pools(("prefill", 2), ("decode", count)), pools(*[("prefill", 1)] * 2, *[("decode", 1)] * count)
    else:
        whole, cut = pools(("mixed", count)), pools(*[("mixed", 1)] * count)
    chosen = Policies(route=route)
    one, other = Deployment(pools=whole, policies=chosen), Deployment(pools=cut, policies=chosen)
    assert rows(one, path, seed, load) == rows(other, path, seed, load)


def test_a_fleet_of_unlike_gpus_counts_each_by_its_own_law():
    mixed = (Pool(count=2, replica=L4), Pool(count=1, replica=H100))
    result = simulate(Deployment(pools=mixed), workload("chat", rate=20.0, requests=400))
    assert result.gpus == 3
    assert result.requests.finished == 400
    assert {"mixed.0", "mixed.1"} <= set(result.provenance)
    assert result.provenance["mixed.0"] != result.provenance["mixed.1"]
    assert len(result.replicas) == 3
    console = Console(width=120, file=StringIO())
    console.print(result_text(result))
    assert "2 x tp 1 on l4" in console.file.getvalue() and "1 x tp 1 on h100-sxm" in console.file.getvalue()
    assert result.records is not None
    replica, ended = result.records["replica"], result.records["status"] == 0
    assert set(replica.tolist()) == {0, 1, 2}
    slow, fast = (np.mean(result.records.tpot_s[ended & (replica == i)]) for i in (0, 2))
    assert fast < slow / 2


def test_unlike_replicas_get_requests_by_their_weight():
    mixed = (Pool(count=2, replica=L4), Pool(count=1, replica=H100))
    params = {"route": {"weights": {"mixed": [1.0, 1.0, 6.0]}}}
    weighted = Policies(route="weighted-requests", params=params)
    results = [
        simulate(Deployment(pools=mixed, policies=policies), workload("chat", rate=40.0, requests=2000)).records[
            "replica"
        ]
        for policies in (weighted, Policies(route="weighted-requests"), Policies())
    ]
    shares = [np.bincount(replica, minlength=3) / len(replica) for replica in results]
    assert shares[0][2] > 0.7 > shares[1][2]
    assert shares[0][0] == pytest.approx(shares[0][1], abs=0.05)
    assert (results[1] == results[2]).all()  # without weights it is least-requests


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_that_is_none_is_refused(weight):
    params = {"route": {"weights": {"mixed": [1.0, weight]}}}
    fleet = Deployment(pools=pools(("mixed", 2)), policies=Policies(route="weighted-requests", params=params))
    with pytest.raises(BadInput, match=r"weights .* of mixed replicas: give numbers above 0"):
        simulate(fleet, workload("chat", rate=1.0, requests=5))


def test_a_fleet_reads_back_from_its_yaml(tmp_path):
    fleet = Deployment(pools=(Pool(count=2, replica=L4), Pool(count=1, replica=H100)))
    write_yaml(fleet, tmp_path / "fleet.yaml")
    assert from_mapping(Deployment, read_yaml(tmp_path / "fleet.yaml"), "fleet.yaml") == fleet
    assert fleet.pool_names() == ["mixed.0", "mixed.1"]
    assert Deployment(pools=pools(("prefill", 1), ("decode", 1), ("decode", 2))).pool_names() == [
        "prefill",
        "decode.0",
        "decode.1",
    ]


def test_a_request_too_long_for_the_decode_replica_it_is_sent_to_fails():
    """Of two decode pools the second has KV for short requests only: those sent there fail, and all else goes on."""
    tight = msgspec.structs.replace(L4, engine=msgspec.structs.replace(SMALL, memory_utilization=0.2))
    unlike = (*pools(("prefill", 1), ("decode", 1)), Pool(role="decode", replica=tight))
    tables = [compiled(pool.replica) for pool in unlike]
    tables[2] = msgspec.structs.replace(tables[2], kv_blocks=10)
    deployment = Deployment(pools=unlike, policies=Policies(route="round-robin"))
    result = simulate(deployment, workload("chat", rate=5.0, requests=200), tables=tuple(tables))
    assert 0 < result.requests.failed < 200
    assert result.requests.finished + result.requests.failed == 200


@pytest.mark.parametrize(
    "roles", [(), ("prefill",), ("decode", "prefill"), ("mixed", "decode"), ("prefill", "decode", "prefill")]
)
def test_pools_that_cannot_serve_a_request_whole_are_refused(roles):
    with pytest.raises(BadInput, match="mixed pools only, or prefill pools and then decode"):
        Deployment(pools=pools(*((role, 1) for role in roles)))


def test_a_prefill_pool_hands_over_to_one_of_its_model_and_precision():
    other = msgspec.structs.replace(L4, model="llama-3.2-3b")
    with pytest.raises(BadInput, match=r"pools of llama-3\.2-1b with roles"):
        Deployment(pools=(Pool(role="prefill", replica=L4), Pool(role="decode", replica=other)))
    fp8 = msgspec.structs.replace(H100, kv="fp8")
    with pytest.raises(BadInput, match="different precisions"):
        Deployment(pools=(Pool(role="prefill", replica=L4), Pool(role="decode", replica=fp8)))
    assert Deployment(pools=(Pool(replica=L4), Pool(replica=fp8))).gpus == 2
