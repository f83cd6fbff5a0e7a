"""The examples run, and do what they are there to show."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from headway.cost import EngineSettings, Replica
from headway.hardware import gpu
from headway.metrics import Result, Slo
from headway.plan import Question
from headway.plan.space import enumerate_space
from headway.policies import check_policy
from headway.sim import Deployment, Policies, Pool, simulate
from headway.specs import from_mapping, read_yaml
from headway.workload import workload

EXAMPLES = Path(__file__).parents[1] / "examples"
SEEDS = range(10)


@pytest.fixture
def examples_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def routed(route: str, seed: int) -> Result:
    """600 calls of coding agents on four replicas: prompts of 45k tokens, of which a session's own replica has 98 %."""
    pool = Pool(count=4, replica=Replica(model="llama-3.1-8b", gpu="h100-sxm"))
    deployment = Deployment(pools=(pool,), policies=Policies(route=route))
    return simulate(deployment, workload("agent", requests=600, rate=1.0), seed=seed)


@pytest.mark.parametrize("name", ["my_router:MyRouter", "random_router:RandomRouter"])
def test_the_routers_of_the_examples_keep_the_contract(examples_on_path, name):
    check_policy("route", name)


def test_the_router_of_the_example_beats_round_robin(examples_on_path):
    pairs = [(routed("round-robin", seed), routed("my_router:MyRouter", seed)) for seed in SEEDS]
    saved_s = np.array([theirs.ttft_s.mean - mine.ttft_s.mean for theirs, mine in pairs])
    half = stats.t.ppf(0.975, len(saved_s) - 1) * stats.sem(saved_s)
    assert saved_s.mean() - half > 0, f"saved {saved_s.mean():.3f} s +- {half:.3f} of mean TTFT"
    hits = [(theirs.kv.prefix_hit_rate, mine.kv.prefix_hit_rate) for theirs, mine in pairs]
    assert all(mine > theirs for theirs, mine in hits), hits


def test_the_page_on_policies_shows_the_example_as_it_is_and_its_python_runs(examples_on_path):
    page = (EXAMPLES.parent / "docs" / "policies.md").read_text(encoding="utf-8")
    example, use, check = re.findall(r"```python\n(.*?)```", page, re.S)
    _, _, code = (EXAMPLES / "my_router.py").read_text(encoding="utf-8").partition("\n\n")
    assert example == code
    for snippet in (use, check):
        exec(compile(snippet, "docs/policies.md", "exec"), {})


def test_on_the_cluster_of_the_example_plans_keep_kv_within_nodes():
    file = str(EXAMPLES / "a100-25gbit.yaml")
    assert gpu(file).rdma_bytes_per_s * 8 == pytest.approx(25e9 / 8, rel=0.01)
    slo = Slo(ttft_s=4.0, tpot_s=0.2)
    engine = EngineSettings(name="sglang")  # which passes KV between stages
    asked = Question(model="opt-175b", gpu=file, gpus=32, workload="chat", rate_req_s=0.6, slo=slo, engine=engine)
    routes = {option.deployment.policies.route for option in enumerate_space(asked).options}
    assert routes == {"least-requests", "same-node"}


def test_two_models_share_their_requests_by_length_and_by_name():
    file = {name: value for name, value in read_yaml(EXAMPLES / "two-models.yaml").items() if name != "gateway"}
    deployment = from_mapping(Deployment, file, "two-models.yaml")
    result = simulate(deployment, workload(str(EXAMPLES / "two-models-traffic.yaml"), requests=600))
    assert result.records is not None
    rows = result.records
    large = rows["replica"] >= 2
    auto, small, named = (rows["slo_class"] == i for i in range(3))
    assert np.array_equal(large[auto], rows["prompt_tokens"][auto] >= 1024)
    assert not large[small].any() and large[named].all()
    assert {name: each.requests.finished for name, each in result.by_model.items()} == {
        "llama-3.2-3b": (~large).sum(), "llama-3.1-8b": large.sum(),
    }  # fmt: skip
