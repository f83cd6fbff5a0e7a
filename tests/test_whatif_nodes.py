"""What a change makes of replicas on several nodes: a replica more may be one too many for a node."""

from __future__ import annotations

from typing import Any

import pytest

from cli_cases import refused, run
from gpu_cases import SLOW
from headway.metrics import Slo
from headway.plan import Question, plan
from headway.plan.sensitivity import sensitivity
from headway.report.sensitivity_text import sensitivity_words
from headway.workload import WorkloadSpec, parse_length

pytestmark = pytest.mark.usefixtures("without_curves")

PROMPT, OUTPUT = "uniform:100:1200", "uniform:50:300"
LOAD = ("--input", PROMPT, "--output", OUTPUT, "--rate", "10", "--requests", "200", "--ttft", "400ms")
ASKED = Question(
    model="opt-13b", gpu=SLOW, gpus=8, rate_req_s=25.0, slo=Slo(ttft_s=0.4, tpot_s=0.1), requests=2000, tp=(2,),
    layouts=("split",), workload=WorkloadSpec(name="w", prompt=parse_length(PROMPT), output=parse_length(OUTPUT)),
)  # fmt: skip


def told(done: Any) -> str:
    assert done.exit_code == 0, done.output
    return " ".join(done.stderr.split())


@pytest.fixture
def file(tmp_path):
    """Writes a deployment on the slow network."""

    def write(prefill: str, decode: str, route: str = "least-requests") -> str:
        path = tmp_path / "made.yaml"
        replica = f"replica: {{model: opt-13b, gpu: {SLOW}, tp: 2}}"
        pools = f"  - {{role: prefill, {prefill}, {replica}}}\n  - {{role: decode, {decode}, {replica}}}\n"
        path.write_text(f"pools:\n{pools}policies: {{route: {route}}}\n")
        return str(path)

    return write


def test_a_replica_more_than_a_node_holds_is_routed_as_the_planner_would():
    found = plan(ASKED, workers=1)
    assert found.best.name.startswith("2P tp2 + 2D tp2"), "it fills a node"
    seen = sensitivity(found, workers=1)
    more = next(each for each in seen.of("replicas") if each.what.startswith("1 decode replica more"))
    assert more.what == "1 decode replica more on 2 nodes with route=same-node"
    assert more.meets and more.goodput_req_s > 0.95 * seen.base.goodput_req_s, "over the network it serves a quarter"
    assert any(line.startswith(f"{more.what} (2 GPUs, ") for line in sensitivity_words(seen))
    fewer = [each.what for each in seen.of("replicas") if "fewer" in each.what]
    assert fewer == ["1 prefill replica fewer", "1 decode replica fewer"]


def test_that_the_changed_side_takes_more_nodes_is_said(file):
    more = ("--replicas", "decode=+1")
    said = told(run("whatif", file("count: 2", "count: 2"), *LOAD, *more))
    assert "of opt-13b take 2 nodes on the changed side, 1 as they are" in said and "0.39 GB/s" in said
    assert "--policy route=same-node keeps it on its node" in said
    said = told(run("whatif", file("count: 2", "count: 2", "same-node"), *LOAD, *more))
    assert "take 2 nodes" in said and "keeps it" not in said
    for same in (file("count: 2", "count: 1"), file("count: 3", "count: 2")):
        assert " nodes" not in told(run("whatif", same, *LOAD, *more))


NODES = ("count: 4, nodes: [0, 0, 1, 1]", "count: 3, nodes: [0, 0, 1]")


def test_other_numbers_of_replicas_whose_nodes_are_said_need_these_anew(file):
    made = file(*NODES, "same-node")
    refused(
        run("whatif", made, *LOAD, "--replicas", "decode=-1"),
        "--replicas decode=-1: the deployment says on which nodes its 3 decode replicas stand: say it of 2, as in "
        "--set 'pools.1.nodes=[0,0]'",
    )
    refused(run("whatif", made, *LOAD, "--replicas", "prefill=5"), "say it of 5", "'pools.0.nodes=[0,0,1,1,NODE]'")
    said = told(run("whatif", made, *LOAD, "--replicas", "decode=-1", "--set", "pools.1.nodes=[0,0]"))
    assert "no decode replicas stand on several nodes" in said


def test_capacity_says_that_it_places_replicas_itself(file):
    words = ("--curve", "1,2", "--input", "100", "--output", "3", "--ttft", "2s", "--workers", "1")
    assert "pools.N.nodes are left out" in told(run("capacity", file(*NODES), *words))
