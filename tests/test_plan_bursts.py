"""Bursts of arrivals in the planner's estimates: told from chance, and no reason to leave a candidate out."""

import pytest

from headway.metrics import Slo
from headway.plan import Question, plan
from headway.plan.trial import Load
from headway.specs import from_mapping
from headway.workload import WorkloadSpec, workload

pytestmark = pytest.mark.usefixtures("without_curves")

CONSTANT = {"kind": "constant", "tokens": 100}
ON_OFF = {"kind": "on_off", "rate_on_req_s": 30.0, "on_s": 20.0, "off_s": 40.0}


@pytest.mark.parametrize(
    ("arrival", "peak", "bursts"),
    [
        ({"kind": "constant", "rate_req_s": 5.0}, 1.0, 1.0),
        ({"kind": "poisson", "rate_req_s": 5.0}, 1.0, 1.0),
        ({"kind": "gamma", "rate_req_s": 5.0, "cv": 2.0}, 1.25, 2.7),  # the longest gaps count as pauses
        (ON_OFF, 3.0, 1.0),
        (ON_OFF | {"cv": 1.5}, 3.0, 2.25),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_bursts_are_told_from_chance(arrival, peak, bursts, seed):
    asked = {"name": "a", "prompt": CONSTANT, "output": CONSTANT, "arrival": arrival}
    source = workload(from_mapping(WorkloadSpec, asked, "workload"))
    lengths = Load(source, 8000, 2.0, seed).lengths
    assert lengths.pace == 1.0
    assert lengths.peak == pytest.approx(peak, rel=0.12)
    assert lengths.bursts == pytest.approx(bursts, rel=0.2)
    assert Load(source, 100, 2.0, seed).lengths.bursts == 1.0


@pytest.mark.parametrize(
    ("arrival", "prompt", "output", "slo", "rate", "layout", "gpus"),
    [
        ({"rate_on_req_s": 30, "on_s": 5, "off_s": 15}, 500, 100, Slo(ttft_s=30, tpot_s=0.1), 60, "mixed", 1),
        ({"rate_on_req_s": 60, "on_s": 2, "off_s": 18}, 100, 400, Slo(ttft_s=1, tpot_s=0.05), 8, "split", 2),
    ],
    ids=["requests can wait", "answers outlast them"],
)
def test_bursts_that_are_served_later_hide_no_cheaper_plan(arrival, prompt, output, slo, rate, layout, gpus):
    lengths = {name: CONSTANT | {"tokens": tokens} for name, tokens in (("prompt", prompt), ("output", output))}
    asked = {"name": "a", "arrival": {"kind": "on_off", **arrival}, **lengths}
    made = workload(from_mapping(WorkloadSpec, asked, "workload"))
    question = Question(
        model="llama-3.1-8b", gpu="h100-sxm", gpus=4, rate_req_s=rate, slo=slo, layouts=(layout,), weights=("bf16",),
        kv=("bf16",), budget_tokens=(2048,), max_tp=1, requests=600,
    )  # fmt: skip
    assert plan(question, made=made, workers=1).best.gpus == gpus
