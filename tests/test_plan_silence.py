"""What a plan does not pass over in silence: GPUs that cannot take part, orders and releases that mean nothing."""

import re

import msgspec
import pytest

from cli_cases import run
from headway.cost import Replica
from headway.cost.engines import standing_for
from headway.metrics import Slo
from headway.plan import Question, plan
from headway.plan.evaluate import Evaluator, Job
from headway.plan.space import enumerate_space, left_out
from headway.plan.trial import pooled, try_rate
from headway.sim import Deployment, Pool
from headway.sim.run import compiled
from headway.workload import RequestClass, WorkloadSpec, parse_length, workload

pytestmark = pytest.mark.usefixtures("without_curves")

QUESTION = Question(
    model="llama-3.1-8b", gpu={"a100-80gb-sxm": 1, "h100-sxm": 1}, rate_req_s=5, slo=Slo(ttft_s=0.5, tpot_s=0.05),
    requests=300, weights=("fp8",), kv=("fp8",), tp=(1,), pp=(1,), layouts=("mixed",), budget_tokens=(2048,),
)  # fmt: skip
SETS = tuple(
    word
    for each in ("layouts=[mixed]", "tp=[1]", "pp=[1]", "weights=[bf16]", "kv=[bf16]", "budget_tokens=[2048]")
    for word in ("--set", each)
)
SLO = Slo(ttft_s=5.0, tpot_s=0.1)
ASK = ("plan", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--gpus", "1", "--rate", "5", "--requests", "300",
       "--ttft", "500ms", "--tpot", "50ms", "--workers", "1", *SETS)  # fmt: skip


def changed(**changes):
    return msgspec.structs.replace(QUESTION, **changes)


@pytest.mark.parametrize(("attainment", "words"), [(0.5, "serves these."), (0.95, "or an attainment of 8")])
def test_requests_longer_than_the_context_are_counted(attainment, words):
    """Prompts are exponential of mean 1,200 and outputs one token: exp(-2047 / 1200) = 18 % are longer."""
    asked = {"model": "opt-13b", "gpu": "h100-sxm", "gpus": 1, "weights": ("bf16",), "kv": ("bf16",)}
    made = WorkloadSpec(name="long", prompt=parse_length("exp:1200"), output=parse_length("1"))
    found = plan(changed(**asked, workload=made, slo=Slo(ttft_s=9.0, attainment=attainment)), workers=1)
    assert words in found.message
    assert found.feasible == bool(found.evaluated) == (attainment == 0.5)
    if not found.feasible:
        assert (found.binding, found.discarded) == ("memory", {"context": found.enumerated})
        assert found.message.startswith("No plan of opt-13b meets the SLO, so nothing was searched. 1")
        assert "would do" not in found.message


def test_no_more_gpus_are_advised_where_it_is_the_context_that_is_short():
    """Of one seed's prompts fewer are too long than the SLO lets go, of further seeds' about as many or more."""
    made = WorkloadSpec(name="long", prompt=parse_length("uniform:1:2240"), output=parse_length("20"))
    asked = {"model": "opt-13b", "gpu": "h100-sxm", "gpus": 1, "weights": ("fp8",), "kv": ("fp8",), "rate_req_s": 1}
    found = plan(changed(**asked, workload=made, slo=SLO, requests=500), workers=1)
    assert found.evaluated and "than the context of opt-13b" in found.message
    assert "about as many as the SLO lets go; at 8" in found.message
    assert found.feasible or not re.search("would (do|serve)", found.message)


def test_further_seeds_of_which_too_many_requests_are_too_long_are_not_searched():
    made = WorkloadSpec(name="long", prompt=parse_length("uniform:1:2240"), output=parse_length("20"))
    asked = {"model": "opt-13b", "gpu": "h100-sxm", "gpus": 1, "rate_req_s": 1.0, "requests": 500}
    question = changed(**asked, workload=made, slo=SLO)
    evaluator = Evaluator(question, workload(made), 1.0)
    one = Deployment(pools=(Pool(replica=Replica(model="opt-13b", gpu="h100-sxm")),))
    runs = {seed: evaluator.load(500, seed).lengths for seed in range(1, 40)}
    long = {seed: float((run.prompt + run.output > 2048).mean()) for seed, run in runs.items()}
    fewest_first = sorted(long, key=lambda seed: long[seed])
    among = (worst := fewest_first[-1], *fewest_first[:5])
    assert sum(long[seed] for seed in among) / 6 < 0.1 < long[worst]
    assert evaluator(Job(0, one, 500, 1.0, seeds=among)).goodput.req_s > 0
    too_many = tuple(fewest_first[-6:])
    proven = evaluator(Job(0, one, 500, 1.0, seeds=too_many))
    assert (proven.goodput.req_s, proven.simulations, proven.binding, proven.seeds) == (0, 12, "memory", too_many)
    assert not proven.asked.meets
    tables = (compiled(one.pools[0].replica),)
    lowest = [try_rate(one, tables, evaluator.load(500, seed), SLO, -80) for seed in too_many]
    assert pooled(lowest, SLO, surely=False).attainment < 0.9


def test_of_several_classes_the_one_is_named_whose_requests_exceed_the_context():
    classes = tuple(
        RequestClass(
            name=name,
            rate_req_s=5.0,
            workload=WorkloadSpec(name=name, prompt=parse_length(prompt), output=parse_length("1")),
        )
        for name, prompt in (("short", "100"), ("long", "exp:1200"))
    )
    made = WorkloadSpec(name="two", classes=classes)
    asked = {"model": "opt-13b", "gpu": "h100-sxm", "gpus": 1, "weights": ("bf16",), "kv": ("bf16",)}
    slos = {"short": Slo(ttft_s=9.0, attainment=0.99), "long": Slo(ttft_s=9.0, attainment=0.87)}
    found = plan(changed(**asked, workload=made, rate_req_s=None, slo=Slo(), slos=slos), workers=1)
    assert "of requests of long are longer" in found.message and not found.evaluated
    slos["long"] = msgspec.structs.replace(slos["long"], attainment=0.7)
    served = plan(changed(**asked, workload=made, rate_req_s=None, slo=Slo(), slos=slos), workers=1)
    assert served.feasible and "of requests of long are longer" in served.message


def test_a_gpu_without_the_precisions_asked_for_is_named():
    assert left_out(QUESTION) == {"a100-80gb-sxm": "it has no fp8 weights and no fp8 KV"}
    kinds = {pool.replica.gpu for option in enumerate_space(QUESTION).options for pool in option.deployment.pools}
    assert kinds == {"h100-sxm"}
    found = plan(QUESTION, workers=1)
    assert "No plan uses a100-80gb-sxm (it has no fp8 weights and no fp8 KV)." in found.message


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"kv": ("bf16",)}, {"a100-80gb-sxm": "it has no fp8 weights"}),
        ({"weights": None}, {"a100-80gb-sxm": "it has no fp8 KV"}),
        ({"kv": ("bf16", "fp8"), "weights": ("bf16", "fp8")}, {}),
        ({"kv": None, "weights": None}, {}),
        ({"gpu": "h100-sxm", "gpus": 1}, {}),
    ],
)
def test_a_gpu_takes_part_where_it_has_any_of_them(changes, why):
    question = changed(**changes)
    assert left_out(question) == why
    kinds = {pool.replica.gpu for option in enumerate_space(question).options for pool in option.deployment.pools}
    assert kinds == set(question.stock) - set(why)


def test_gpus_that_cost_nothing_are_not_wasted():
    free = changed(gpu="h100-sxm", gpus=2, usd_per_gpu_hour={"h100-sxm": 0.0})
    found = plan(free, workers=1)
    assert [each.gpus for each in found.ranked] == sorted(each.gpus for each in found.ranked)
    assert found.best.gpus == 1 and found.ranked[-1].gpus == 2 and found.ranked[-1].meets
    assert "meets the SLO at $0.00 per hour too, but takes 2 GPUs" in found.ranked[-1].reason
    assert found.ranked[-1].name not in found.message  # nor is it tied: it has more GPUs


def test_each_order_to_try_is_told_of():
    said = run(*ASK, "--policy", "order=edf,priority")
    assert said.exit_code == 0 and "order=edf: none of the first" in said.stderr
    assert "has a deadline" not in run(*ASK, "--policy", "order=fcfs,priority").stderr


def test_a_release_that_is_not_known_is_told_of():
    said = run(*ASK, "--engine", "vllm:99").stderr
    assert "engine vllm: release 99 is not known; the step times are those of" in said
    several = run(*ASK, "--engine", "vllm:0.12,sglang:9").stderr
    assert "engine sglang: release 9 is not known" in several and "engine vllm: release" not in several
    assert "is not known" not in run(*ASK).stderr
    alone = "simulate", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--rate", "5", "--requests", "50"
    assert "release 99 is not known" in run(*alone, "--set", 'pools.0.replica.engine.version="99"').stderr


@pytest.mark.parametrize(
    ("version", "known"),
    [("", ""), ("0.12", ""), ("0.12.3", ""), ("0.10.1", ""), ("0.2", ""), ("0.1", "0.2"), ("0.13", "0.12")],
)
def test_a_release_between_known_ones_is_known(version, known):
    assert standing_for("vllm", version) == known


def test_a_gpu_without_bf16_is_told_of():
    words = ["v100" if word == "h100-sxm" else word for word in ASK]
    assert "v100 has no bf16 (compute capability 7.0): bf16 stands for fp16" in run(*words).stderr
    assert "no bf16" not in run(*ASK).stderr
