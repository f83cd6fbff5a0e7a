"""What is said of bad input: what came, what is allowed, nothing of how it was found."""

import json

import numpy as np
import pytest

from cli_cases import refused, run
from headway.cost import EngineSettings, Replica
from headway.cost.calibration import Calibration, Term
from headway.cost.speculation import Speculation
from headway.errors import BadInput
from headway.export import export
from headway.hardware import Link
from headway.metrics import Slo
from headway.model import model
from headway.plan import Case, Question, capacity, fleet, plan, plans, whatif
from headway.plan.why import why
from headway.sim import Deployment, Policies, Pool, simulate
from headway.specs import from_mapping
from headway.workload import workload

ONE = ("simulate", "--model", "llama-3.2-1b", "--gpu", "l4")
PLAN = ("plan", "--model", "llama-3.2-1b", "--gpu", "l4", "--gpus", "1", "--ttft", "1s", "--rate", "1")


def test_an_unknown_arrival_is_no_model():
    result = run(*ONE, "--arrival", "gama:cv=3")
    refused(result, "unknown process in the arrival 'gama:cv=3': 'gama': nearest: gamma")
    assert "list models" not in result.stderr


def test_the_forms_of_arrivals_name_every_field_of_bursts():
    refused(run(*ONE, "--arrival", "onoff:on=5s"), "onoff:rate_on=20,rate_off=2,on=5s,off=30s,cv=1")


def test_a_value_that_is_not_one_of_a_few_names_them():
    refused(run(*PLAN, "--set", "layouts=[foo]"), "layouts.0: unknown value 'foo': allowed: mixed, split")
    refused(run(*ONE, "--set", "pools.0.role=mixd"), "pools.0.role: unknown value 'mixd': nearest: mixed")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            '{"headway":"workload/1"}\n{"prompt_tokens":5,"output\n',
            ':2: came \'{"prompt_tokens":5,"output\'; expected valid',
        ),
        ('{"headway":"workload/1","block_tokens":63}\n', "expected a multiple of 16 at block_tokens"),
    ],
)
def test_broken_lines_say_what_is_expected_in_words(tmp_path, lines, said):
    path = tmp_path / "t.jsonl"
    path.write_text(lines)
    with pytest.raises(BadInput) as error:
        workload(str(path))
    assert said in str(error.value)
    assert "truncated" not in str(error.value) and "that's" not in str(error.value)


def test_times_that_no_number_can_hold_are_refused():
    refused(run(*ONE, "--rate", "1e-300"), "longer than 136 years", "raise the rate, or ask for fewer requests")
    assert workload("chat", rate=1e-5, requests=10_000).rate_req_s == 1e-5
    with pytest.raises(BadInput, match="136 years"):
        workload("chat", rate=1e-5, requests=1_000_000)


def test_what_is_assumed_does_not_stand_before_an_error():
    result = run(*ONE, "--ttft", "1s", "--set", "slo.ttft_z=1")
    refused(result, "unknown field 'ttft_z'")
    assert "assuming" not in result.stderr
    result = run("simulate", "--model", "llama-3.1-405b", "--gpu", "l4")
    assert result.exit_code == 1 and "assuming" not in result.stderr
    assert "assuming workload chat" in run(*ONE, "--requests", "10").stderr


def test_a_link_needs_no_name():
    pool = {"replica": {"model": "llama-3.2-1b", "gpu": "l4"}}
    data = {"pools": [{"role": "prefill", **pool}, {"role": "decode", **pool}]}
    data["kv_link"] = {"bytes_per_s": 1e9, "latency_s": 1e-5}
    link = from_mapping(Deployment, data, "d.yaml").kv_link
    assert link is not None and link.bytes_per_s == 1e9


def test_a_folder_that_holds_a_config_is_a_model(tmp_path, monkeypatch):
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "max_position_embeddings": 2048,
    }
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    assert model("mine").layers == model("mine/config.json").layers == 2


# --- what Python gives ---

REPLICA = Replica(model="llama-3.2-1b", gpu="l4")
FLEET = Deployment(pools=(Pool(replica=REPLICA),))
CHAT = workload("chat", rate=1.0, requests=50)
SLO = Slo(ttft_s=1.0)
CASE = Case(FLEET, CHAT, SLO)
QUESTION = Question(model="llama-3.2-1b", gpu="l4", gpus=1, workload="chat", rate_req_s=1.0, slo=SLO, requests=100)


def replica(**changes):
    return Replica(model="llama-3.2-1b", gpu="l4", **changes)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: replica(tp="2"), "replica: tp: expected int, came '2'"),
        (lambda: replica(tp=True), "replica: tp: expected int, came True"),
        (lambda: replica(apart="yes"), "replica: apart: expected bool, came 'yes'"),
        (lambda: replica(cap_watts="300"), "replica: cap_watts: expected float | None, came '300'"),
        (lambda: replica(weights=8), 'replica: weights: expected str, came 8; quote it to give text: "8"'),
        (lambda: replica(engine=None), "replica: engine: expected EngineSettings, came nothing"),
        (lambda: replica(engine={"max_seq": 3}), "replica: engine: unknown field 'max_seq': nearest: max_seqs"),
        (lambda: Replica(model="llama-3.2-1b", gpu=None), "replica: gpu: expected str, came nothing"),
        (lambda: EngineSettings(max_seqs="8"), "engine: max_seqs: expected int, came '8'"),
        (lambda: Speculation(tokens="2", acceptance=0.8, draft="mtp"), "speculation: tokens: expected int, came '2'"),
        (lambda: Calibration(gpu="l4", engine="vllm", context=1.0), "calibration: context: expected Term, came 1.0"),
        (lambda: Term(value="1", low=1.0, high=1.0), "calibration term: value: expected float, came '1'"),
        (lambda: Link(bytes_per_s="1e9", latency_s=0.0), "link: bytes_per_s: expected float, came '1e9'"),
        (lambda: Pool(count="2", replica=REPLICA), "pool: count: expected int, came '2'"),
        (lambda: Pool(count=1.5, replica=REPLICA), "pool: count: expected int, came 1.5"),
        (lambda: Pool(role="prefil", replica=REPLICA), "pool: role: unknown value 'prefil': nearest: prefill"),
        (lambda: Pool(nodes="01", replica=REPLICA), "pool: nodes: expected list | None, came '01'"),
        (lambda: Pool(replica=None), "pool: replica: expected Replica, came nothing"),
        (lambda: Policies(params={"route": 3}), "policies: params.route: expected dict, came 3"),
        (lambda: Deployment(pools=FLEET.pools[0]), "deployment: pools: expected list of Pool, came Pool(role='mixed'"),
        (lambda: Deployment(pools=None), "deployment: pools: expected list of Pool, came nothing"),
        (lambda: Deployment(pools=({"count": 2},)), "deployment: pools.0: the field 'replica' is missing"),
        (lambda: Deployment(pools=FLEET.pools, policies="lru"), "deployment: policies: expected Policies, came 'lru'"),
        (lambda: Deployment(pools=FLEET.pools, prices=3), "deployment: prices: expected Prices, came 3"),
        (lambda: Deployment(pools=FLEET.pools, kv_link=3), "deployment: kv_link: expected Link | None, came 3"),
    ],
)
def test_a_deployment_of_other_types_is_refused_where_it_is_built(build, said):
    with pytest.raises(BadInput) as error:
        build()
    assert str(error.value).startswith(said)


def test_a_deployment_takes_what_converts_without_loss():
    made = Deployment(pools=[{"replica": replica(engine={"max_seqs": 3})}], policies={"route": "round-robin"})
    pool = Pool(replica=replica(engine=EngineSettings(max_seqs=3)))
    assert made == Deployment(pools=(pool,), policies=Policies(route="round-robin"))
    assert type(made.pools) is tuple and made.nodes == [[-1]]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: simulate({}, CHAT), "deployment: expected Deployment, came a mapping of 0; as in Deployment("),
        (lambda: simulate(FLEET, "chat"), "workload: expected Workload, came 'chat'; as in headway.workload.workload("),
        (lambda: simulate(FLEET, CHAT, slo="500ms"), "slo: expected Slo, came '500ms'; as in Slo.parse(ttft="),
        (lambda: simulate(FLEET, CHAT, slo={}), "slo: expected Slo, came a mapping of 0; as in Slo.parse(ttft="),
        (lambda: simulate(FLEET, CHAT, slo={0: "1s"}), "slo[0]: expected Slo, came '1s'; as in Slo.parse(ttft="),
        (lambda: simulate(FLEET, CHAT, slo={"a": SLO}), "class number of slo: expected int, came 'a'; as in {0: Slo("),
        (lambda: simulate(FLEET, CHAT, seed="0"), "seed: expected int, came '0'"),
        (lambda: simulate(FLEET, CHAT, warmup="5%"), "warmup: expected float | None, came '5%'"),
        (lambda: whatif(FLEET, FLEET, []), "before: expected Case, came Deployment(name=''"),
        (lambda: whatif(CASE, CASE._replace(slo="1s"), []), "after.slo: expected Slo, came '1s'"),
        (lambda: whatif(CASE._replace(workload="chat"), CASE, []), "before.workload: expected Workload, came 'chat'"),
        (lambda: whatif(CASE, CASE, "more"), "changes: expected list, came 'more'"),
        (lambda: capacity(FLEET, "chat", SLO), "workload: expected Workload, came 'chat'"),
        (lambda: capacity(FLEET, CHAT, None), "the SLO limits nothing"),
        (lambda: capacity(FLEET, CHAT, SLO, curve=["1", 2]), "curve.0: expected float, came '1'; as in [0.5, 4, 2]"),
        (lambda: capacity(FLEET, CHAT, SLO, slot_s="1h"), "slot_s: expected float | None, came '1h'"),
        (
            lambda: capacity(FLEET, CHAT, SLO, usd_per_gpu_hour={"l4": "1"}),
            "usd_per_gpu_hour.l4: expected float, came '1'",
        ),
        (lambda: export([FLEET], "vllm"), "deployment: expected Deployment, came a list of 1"),
        (lambda: export(FLEET, "vllm", hosts="node-1"), "hosts: expected list, came 'node-1'"),
        (lambda: export(FLEET, "gateway", slo="1s"), "slo: expected list of SloClass, came '1s'; as in Slo.parse("),
        (lambda: plan({"model": "llama-3.2-1b"}), "question: expected Question, came a mapping of 1; as in Question("),
        (lambda: plan(QUESTION, made="chat"), "made: expected Workload | None, came 'chat'"),
        (lambda: plan(QUESTION, workers="2"), "workers: expected int | None, came '2'; as in 4, or RayCluster("),
        (lambda: next(plans([QUESTION], workers="2")), "workers: expected int | None, came '2'"),
        (lambda: fleet({}), "question: expected Question, came a mapping of 0"),
        (lambda: why({}), "found: expected Plan | Fleet, came a mapping of 0; as in why(plan(question))"),
    ],
)
def test_an_argument_of_another_type_is_named_with_what_is_expected(ask, said):
    with pytest.raises(BadInput) as error:
        ask()
    assert str(error.value).startswith(said)


def test_numbers_of_numpy_are_numbers_to_a_simulation():
    given = simulate(FLEET, CHAT, seed=np.int64(3), warmup=np.float64(0.1), slo={np.int64(0): SLO})
    plain = simulate(FLEET, CHAT, seed=3, warmup=0.1, slo={0: SLO})
    assert (given.ttft_s, given.slo) == (plain.ttft_s, plain.slo)
