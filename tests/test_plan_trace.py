"""Plans for recorded traces: of one request, of a burst, of more than is simulated."""

import msgspec
import pytest

from headway.errors import BadInput
from headway.metrics import Slo
from headway.plan import Question, plan
from headway.sim import Deployment, simulate
from headway.specs import from_mapping
from headway.workload import workload

HEAD = "arrival_s,input_tokens,output_tokens"
SLO = Slo(ttft_s=0.2, tpot_s=0.1)
QUESTION = Question(
    model="llama-3.2-1b", gpu="l4", gpus=2, slo=SLO, layouts=("mixed",), pp=(1,), weights=("bf16",), kv=("bf16",),
    budget_tokens=(2048,),
)  # fmt: skip


def saved(folder, rows, name="trace.csv"):
    file = folder / name
    file.write_text("\n".join([HEAD, *rows, ""]))
    return str(file)


def of(file, **changes):
    return msgspec.structs.replace(QUESTION, workload=file, **changes)


@pytest.mark.parametrize("slo", [SLO, Slo(tpot_s=0.1), Slo(e2e_s=2.0)])
@pytest.mark.parametrize("rate", [None, 3.0])
def test_a_trace_of_one_request_is_planned_for(tmp_path, slo, rate):
    file = saved(tmp_path, ["4,300,20"])
    found = plan(of(file, slo=slo, rate_req_s=rate), workers=1)
    assert found.feasible and found.best.attainment == 1 and found.requests == 1
    assert found.best.gpus == 1
    assert "its one request is served within the limits" in found.message
    again = simulate(from_mapping(Deployment, found.best.deployment, "best"), workload(file), slo=slo)
    assert again.ttft_s.p90 == pytest.approx(found.best.ttft_p90_s, rel=0.01)
    tight = plan(of(file, slo=Slo(ttft_s=0.02)), workers=1)
    assert not tight.feasible and tight.binding == "ttft"


def test_requests_all_at_once_have_no_rate_and_the_refusal_says_what_to_do(tmp_path):
    file = saved(tmp_path, ["0,300,20", "0,200,20"])
    with pytest.raises(BadInput, match=r"its 2 requests come all at once.*--set 'workload\.arrival={kind: poisson"):
        plan(of(file), workers=1)
    with pytest.raises(BadInput, match="no time passes between its 2 requests"):
        plan(of(file, rate_req_s=2.0), workers=1)


def test_a_trace_without_a_request_is_refused(tmp_path):
    for rows, words in (([], "holds no requests"), (["broken"], "expected")):
        with pytest.raises(BadInput, match=words):
            plan(of(saved(tmp_path, rows)), workers=1)
