"""Numbers and their nouns agree in what is printed: one request, one GPU, one replica."""

import re

import msgspec
import pytest
from rich.console import Console

from headway.errors import BadInput
from headway.metrics import Slo
from headway.plan import Question, plan
from headway.plan.sensitivity import sensitivity
from headway.report import capacity_text, plan_html, plan_text
from headway.report.words import outcome_words, question_rows
from report_cases import candidate, day
from report_cases import plan as planned

MANY = "requests|GPUs|replicas|slots|seeds|candidates|deployments|users|tokens|allow|read|compute|meet|miss"
ONE_OF_MANY = re.compile(rf"(?<![\d.,x])1 (?:{MANY})\b")
QUESTION = Question(
    model="llama-3.2-1b", gpu="m4-max", gpus=1, rate_req_s=1.0, slo=Slo(ttft_s=100.0), requests=1, workload="chat",
    weights=("bf16",), kv=("bf16",), budget_tokens=(2048,),
)  # fmt: skip


def printed(renderable):
    console = Console(width=2_000, record=True, file=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def changed(**changes):
    return msgspec.structs.replace(QUESTION, **changes)


def test_the_expression_finds_what_it_is_for():
    for wrong in ("of 1 requests.", "that 1 m4-max; 1 GPUs", "1 meet the SLO"):
        assert ONE_OF_MANY.search(wrong), wrong
    for right in ("21 requests", "1 request", "1.1 requests", "0,1 requests", "1x tp1"):
        assert not ONE_OF_MANY.search(right), right


def test_a_plan_of_one_request_on_one_gpu():
    found = plan(QUESTION, workers=1)
    assert found.feasible and "within the noise of 1 request." in found.message
    found = msgspec.structs.replace(found, sensitivity=sensitivity(found, workers=1))
    for said in (found.message, printed(plan_text(found, None)), plan_html(found)):
        assert not ONE_OF_MANY.search(said), ONE_OF_MANY.findall(said)


@pytest.mark.parametrize("slo", [Slo(tpot_s=1e-5), Slo(ttft_s=1e-5)])
def test_a_floor_of_one_gpu(slo):
    found = plan(changed(slo=slo), workers=1)
    assert "physical floor" in found.message and "possible on 1 m4-max" in found.message
    assert re.search("1 m4-max (reads|computes) ", found.message)
    assert not ONE_OF_MANY.search(found.message), found.message


def test_refusals_of_one_gpu():
    for wrong in ({"spare": 1}, {"tp": (2,)}):
        with pytest.raises(BadInput) as refused:
            plan(changed(**wrong), workers=1)
        assert not ONE_OF_MANY.search(str(refused.value)), refused.value


def test_one_candidate_and_one_that_does_not_fit():
    found = planned([candidate(), candidate("b", 2, meets=False)], discarded={"memory": 1, "budget": 1, "watts": 1})
    assert outcome_words(found).startswith("1 meets the SLO at 20 req/s, 1 misses it")
    assert not re.search(r"\b1 (do|cost|may) ", dict(question_rows(found))["Tried"])


def test_a_day_of_one_replica():
    found = msgspec.structs.replace(day(), peak_by_model=(1, 1))
    said = printed(capacity_text(found))
    assert "takes 1 and 1 replica." in said and not ONE_OF_MANY.search(said), said
