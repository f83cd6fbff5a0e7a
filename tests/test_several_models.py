"""Deployments of several models: who may serve whom, and that models share nothing but the arrivals."""

from io import StringIO
from random import Random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from headway.cost import EngineSettings, Replica
from headway.errors import BadInput, UnknownName
from headway.metrics import Slo
from headway.policies import Policy, policy
from headway.policies.contract import make_cluster, make_pool, make_request
from headway.report import result_html, result_text
from headway.sim import Deployment, Policies, Pool, simulate
from headway.sim.recorder import Recorder
from headway.sim.run import BINS, build, compiled
from headway.specs import from_mapping, read_yaml, write_yaml
from headway.state import Choose, Hold, Route
from headway.workload import workload
from headway.workload.spec import RequestClass

pytestmark = pytest.mark.usefixtures("without_curves")

SETTINGS = EngineSettings(max_batched_tokens=512, max_seqs=8)
SMALL = Replica(model="llama-3.2-1b", gpu="l4", engine=SETTINGS)
LARGE = Replica(model="llama-3.2-3b", gpu="h100-sxm", engine=SETTINGS)
ROUTES = ["round-robin", "least-requests", "least-tokens", "power-of-two", "prefix-affinity", "late-binding"]
CHOICES = ["first", "threshold", "in-time", f"{__name__}:ByTurns"]
SPLIT = ("prefill", "decode")


class ByTurns(Policy):
    """Each of the request's models in turn, by the request's number."""

    def choose_model(self, request, cluster):
        return Choose(request.models[request.id % len(request.models)], "its turn")


class Elsewhere(Policy):
    def choose_model(self, request, cluster):
        return Choose("llama-3.2-1b", "whatever it asked for")


class Never(Policy):
    def choose_model(self, request, cluster):
        raise AssertionError("asked")


class HoldsByMemory(Policy):
    """Waits for a replica whose KV has room: what it says changes when KV is handed on or given up."""

    def route(self, request, pool):
        open_ = [each for each in pool.replicas if each.kv_used_blocks < 400]
        return Route(open_[0].index, "room") if open_ else Hold("no room")


def pools(small: tuple[str, ...] = ("mixed",), large: tuple[str, ...] = ("mixed",)) -> tuple[Pool, ...]:
    return tuple(
        Pool(role=role, count=2, replica=each) for each, roles in ((SMALL, small), (LARGE, large)) for role in roles
    )


def asking(*models: str, load: str = "chat", rate: float = 30.0, requests: int = 120, deadline_s: float | None = None):
    """A workload of which each class asks for a name."""
    classes = tuple(RequestClass(name=f"c{i}", model=name, deadline_s=deadline_s) for i, name in enumerate(models))
    made = workload(load, rate=rate, requests=requests)
    return workload(msgspec.structs.replace(made.spec, classes=classes))


@settings(max_examples=15, deadline=None)
@given(
    route=st.sampled_from(ROUTES), choice=st.sampled_from(CHOICES),
    admit=st.sampled_from(["accept-all", "queue-limit"]),
    small=st.sampled_from([("mixed",), SPLIT]), large=st.sampled_from([("mixed",), SPLIT]),
    load=st.sampled_from(["chat", "agent"]), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_a_request_is_served_by_the_model_it_asked_for_and_each_is_counted_once(
    route, choice, admit, small, large, load, seed
):
    names = {"choose_model": choice, "route": route, "admit": admit}
    limited = {"admit": {"limit": 2}} if admit == "queue-limit" else {}
    deployment = Deployment(
        pools=pools(small, large), aliases={"big": (LARGE.model,)}, policies=Policies(**names, params=limited)
    )
    result = simulate(deployment, asking("", SMALL.model, "big", "auto", load=load), slo=Slo(ttft_s=0.2), seed=seed)
    rows = result.records
    first_large = 2 * len(small)
    on_large = rows["replica"] >= first_large
    served = rows.finished
    assert not on_large[served & (rows["slo_class"] == 1)].any()
    assert on_large[served & (rows["slo_class"] == 2)].all()
    told = result.by_model.values()
    for field in ("arrived", "finished", "rejected", "failed", "unfinished"):
        assert sum(getattr(each.requests, field) for each in told) == getattr(result.requests, field)
    assert sum(each.prompt_tokens for each in told) == result.tokens.prompt
    assert sum(each.output_tokens for each in told) == result.tokens.output
    assert sum(each.slo.attained for each in told) == result.slo.attained
    assert result.by_model[LARGE.model].requests.finished == (served & on_large).sum()
    assert sum(each.slo.measured for each in told) == result.window.measured


class Part:
    """The requests of one class, as a workload."""

    def __init__(self, whole, slo_class: int) -> None:
        self.whole, self.slo_class = whole, slo_class
        self.block_tokens, self.concurrency, self.think_s = whole.block_tokens, None, 0.0
        self.spec = msgspec.structs.replace(whole.spec, classes=())
        self.models = ()

    def batches(self, seed: int):
        for batch in self.whole.batches(seed):
            for i in np.flatnonzero(batch.slo_class == self.slo_class).tolist():
                yield batch.rows(i, i + 1)


def times(deployment: Deployment, load, seed: int) -> dict[str, np.ndarray]:
    recorder = Recorder(True, 0, 0, [(1.0, 1.0, 1.0)], BINS)
    cluster, _ = build(deployment, load, tuple(compiled(pool.replica) for pool in deployment.pools), recorder, seed)
    while cluster.advance(1000):
        pass
    return recorder.columns()


@pytest.mark.parametrize("deadline_s", [None, 1.0])
@pytest.mark.parametrize("roles", [("mixed",), SPLIT])
@pytest.mark.parametrize("route", ["round-robin", "prefix-affinity", "late-binding", f"{__name__}:HoldsByMemory"])
def test_two_models_in_one_deployment_are_two_deployments(route, roles, deadline_s):
    """What is asked of one changes nothing for the other: the same times to the bit, each alone or together."""
    chosen = Policies(route=route, order="sjf")
    load = asking(SMALL.model, LARGE.model, load="agent", rate=6.0, deadline_s=deadline_s)
    both = pools(roles, roles)
    together = times(Deployment(pools=both, policies=chosen), load, 4)
    for number, name in enumerate((SMALL.model, LARGE.model)):
        alone = Deployment(pools=tuple(pool for pool in both if pool.model == name), policies=chosen)
        own = times(alone, Part(load, number), 4)
        for column in ("id", "admitted_s", "first_token_s", "last_token_s", "cached_tokens", "status"):
            np.testing.assert_array_equal(own[column], together[column][together["slo_class"] == number], column)


@pytest.mark.parametrize("name", ["", "auto", "nick", "plain"])
def test_with_one_model_names_change_nothing(name):
    plain = Deployment(pools=(Pool(count=2, replica=SMALL),))
    named = Deployment(
        pools=(Pool(count=2, replica=SMALL, serves="plain"),), aliases={"nick": ("plain",)},
        policies=Policies(choose_model=f"{__name__}:Never"),
    )  # fmt: skip
    one, other = simulate(plain, asking("")), simulate(named, asking(name))
    assert one.by_model == other.by_model == {}
    for column, values in one.records.columns.items():
        np.testing.assert_array_equal(values, other.records[column], column)
    assert one.ttft_s == other.ttft_s and one.energy == other.energy


def test_a_policy_is_asked_only_where_there_is_a_choice():
    chosen = Policies(choose_model=f"{__name__}:Never")
    deployment = Deployment(pools=pools(), aliases={"big": (LARGE.model,)}, policies=chosen)
    assert simulate(deployment, asking(SMALL.model, "big")).requests.finished == 120
    with pytest.raises(AssertionError, match="asked"):
        simulate(deployment, asking("auto"))


def test_a_policy_may_not_go_beyond_what_the_request_allows():
    chosen = Policies(choose_model=f"{__name__}:Elsewhere")
    deployment = Deployment(
        pools=(*pools(), Pool(replica=LARGE, serves="tuned")), aliases={"big": (LARGE.model, "tuned")}, policies=chosen
    )
    with pytest.raises(BadInput, match=r"choose_model policy answered Choose\('llama-3.2-1b'.*llama-3.2-3b, tuned"):
        simulate(deployment, asking("big"))


def test_two_names_of_one_architecture_are_two_models():
    deployment = Deployment(pools=(Pool(replica=SMALL, serves="base"), Pool(replica=SMALL, serves="tuned")))
    assert deployment.models == ("base", "tuned") and deployment.pool_names() == ["base.mixed", "tuned.mixed"]
    result = simulate(deployment, asking("base", "tuned"))
    assert np.array_equal(result.records["replica"], result.records["slo_class"])
    assert {"base.mixed", "tuned.mixed"} <= set(result.provenance)


def test_scaling_goes_by_model():
    """Only the model that is asked for grows."""
    busy = tuple(msgspec.structs.replace(pool, count=1, most=4, startup_s=1.0) for pool in pools())
    chosen = Policies(scale="target-load", params={"scale": {"target": 2}})
    deployment = Deployment(pools=busy, policies=chosen, scale_every_s=1.0)
    scaled = simulate(deployment, asking(SMALL.model, rate=40.0, requests=400)).scaling
    assert {change.pool for change in scaled.changes} == {f"{SMALL.model}.mixed"}


def test_a_file_reads_back_and_the_report_names_each_model(tmp_path):
    deployment = Deployment(pools=pools(), aliases={"any": (LARGE.model, SMALL.model)})
    write_yaml(deployment, tmp_path / "two.yaml")
    assert from_mapping(Deployment, read_yaml(tmp_path / "two.yaml"), "two.yaml") == deployment
    assert deployment.may_serve("any") == (LARGE.model, SMALL.model)
    assert deployment.may_serve("auto") == deployment.may_serve("") == deployment.models
    result = simulate(deployment, asking("any", SMALL.model), slo=Slo(ttft_s=1.0))
    console = Console(width=140, file=StringIO())
    console.print(result_text(result))
    said = console.file.getvalue()
    assert f"Model {SMALL.model}" in said and f"{LARGE.model}: 2 x tp 1 on h100-sxm" in said
    assert f"Model {LARGE.model}" in result_html(result)
    assert type(result).from_json(result.to_json()).by_model == result.by_model


def test_those_that_were_refused_before_a_choice_belong_to_no_model():
    tight = Policies(admit="queue-limit", choose_model=f"{__name__}:ByTurns", params={"admit": {"limit": 1}})
    result = simulate(Deployment(pools=pools(), policies=tight), asking("auto", rate=2000.0))
    assert result.by_model[""].requests.arrived == result.by_model[""].requests.rejected == result.requests.rejected > 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pools": (Pool(replica=SMALL), Pool(replica=LARGE), Pool(replica=SMALL))}, "next to each other"),
        ({"pools": (Pool(replica=SMALL), Pool(replica=LARGE, role="prefill"))}, "pools of llama-3.2-3b with roles"),
        ({"pools": (Pool(replica=SMALL, serves="a"), Pool(replica=LARGE, serves="a"))}, "one model for each name"),
        ({"pools": pools(), "aliases": {"x": ("llama-3.2-1",)}}, "llama-3.2-1b"),
        ({"pools": pools(), "aliases": {"x": ()}}, "models that it may"),
        ({"pools": pools(), "aliases": {SMALL.model: (LARGE.model,)}}, "a name that no pool serves"),
        ({"pools": pools(), "aliases": {"x": (LARGE.model, LARGE.model)}}, "each once"),
    ],
)
def test_a_deployment_that_cannot_be_is_refused(fields, said):
    with pytest.raises((BadInput, UnknownName), match=said):
        Deployment(**fields)


def test_a_workload_that_asks_for_what_is_not_served_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownName, match="nearest: llama"):
        simulate(Deployment(pools=pools()), asking("llama-3.2-3"))


# --- the built-in policies ----------------------------------------------------------------------------------------


def cluster_of(*waiting_tokens: int, now: float = 10.0):
    named = [
        make_pool("mixed", [(0, 1, tokens, 0, 0, 0)] * 2, Random(0), now, model=f"m{i}")
        for i, tokens in enumerate(waiting_tokens)
    ]
    return make_cluster(tuple(named), Random(0), now)


def chosen(kind: Policy, cluster, **fields) -> str:
    known = {
        "id": 0,
        "arrival_s": 10.0,
        "prompt_tokens": 1000,
        "models": tuple(p.model for p in cluster.pools),
    } | fields
    return kind.choose_model(make_request(**known), cluster).model


@pytest.mark.parametrize(("prompt", "model"), [(99, "m0"), (100, "m1"), (999, "m1"), (1000, "m2"), (10**6, "m2")])
def test_threshold_goes_up_with_the_attribute(prompt, model):
    assert (
        chosen(policy("choose_model", "threshold", {"at": [100, 1000]}), cluster_of(0, 0, 0), prompt_tokens=prompt)
        == model
    )


def test_threshold_takes_the_last_where_nothing_is_known_and_where_models_are_few():
    by_output = policy("choose_model", "threshold", {"at": [10.0, 20.0], "attribute": "predicted_output_tokens"})
    assert chosen(by_output, cluster_of(0, 0, 0)) == "m2"
    assert chosen(by_output, cluster_of(0, 0), predicted_output_tokens=50.0) == "m1"
    with pytest.raises(UnknownName, match="prompt_tokens"):
        policy("choose_model", "threshold", {"attribute": "prompt_token"})
    with pytest.raises(BadInput, match="rise"):
        policy("choose_model", "threshold", {"at": [2.0, 1.0]})


@pytest.mark.parametrize(
    ("waiting", "fields", "model"),
    [
        ((0, 0), {}, "m0"),
        ((8000, 0), {}, "m0"),
        ((9001, 0), {}, "m1"),  # 1 s of prompts before it and its own
        ((9001, 99_001), {}, "m0"),  # neither is in time: the sooner
        ((6000, 0), {"deadline_s": 10.5}, "m1"),
        ((9001, 0), {"models": ("m1", "m0")}, "m1"),
        ((0, 9001), {"models": ("m1", "m0")}, "m0"),
    ],
)
def test_in_time_takes_the_first_that_is(waiting, fields, model):
    assert chosen(policy("choose_model", "in-time"), cluster_of(*waiting), **fields) == model


def test_in_time_spills_over_when_the_first_is_busy():
    """The more comes, the more of it goes to the second model; both are used when both are needed."""
    rule = Policies(choose_model="in-time", params={"choose_model": {"ttft_s": 0.2, "prompt_tokens_per_s": 4000.0}})
    shares = []
    for rate in (1.0, 6.0, 20.0):
        result = simulate(Deployment(pools=pools(), policies=rule), asking("auto", rate=rate, requests=400))
        shares.append(result.by_model[LARGE.model].requests.arrived / 400)
    assert shares[0] < shares[1] < shares[2] and shares[0] < 0.2
