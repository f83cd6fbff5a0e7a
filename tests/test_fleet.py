"""SLOs by class, and several classes and models on one stock of GPUs: laws, brute force, and answers in words."""

import itertools
import json
from functools import cache

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_cases import refused, run
from headway.errors import BadInput, UnknownName
from headway.metrics import Slo
from headway.plan import Plan, Question, fleet, plan
from headway.plan.classes import Ceilings, classes_of, hopes
from headway.plan.fleet_answer import Fleet
from headway.plan.groups import groupings, groups_of, question_of
from headway.plan.joined import Share, joined
from headway.plan.space import enumerate_space, resized
from headway.plan.stock import Choice, both, cheapest, unbeaten
from headway.plan.trial import Load
from headway.sim import Deployment, Policies, simulate
from headway.sim.run import compiled
from headway.specs import from_mapping, read_yaml, to_mapping, write_yaml
from headway.workload import RequestClass, WorkloadSpec, workload

pytestmark = pytest.mark.usefixtures("without_curves")

CHAT = RequestClass(name="chat", workload="chat", rate_req_s=10)
BATCH = RequestClass(name="batch", workload="summarize", rate_req_s=1, priority=1)
OFFICE = WorkloadSpec(name="office", classes=(CHAT, BATCH))
SLOS = {"chat": Slo(ttft_s=0.5, tpot_s=0.03), "batch": Slo(e2e_s=20, attainment=0.95)}
SMALL = Question(
    model="llama-3.1-8b", gpu="h100-sxm", gpus=3, workload=OFFICE, slos=SLOS, requests=150, kv=("bf16",), tp=(1,),
    weights=("fp8",), budget_tokens=(2048,), layouts=("mixed",), margin=0,
)  # fmt: skip


def asked(**changes: object) -> Question:
    return msgspec.structs.replace(SMALL, **changes)


@cache
def small() -> Fleet:
    return fleet(SMALL, workers=1)


@cache
def together() -> Plan:
    """One pool for both classes."""
    return plan(SMALL, workers=1)


@cache
def of_two_models() -> Fleet:
    return fleet(two_models(), workers=1)


def timeless(found: Plan | Fleet) -> dict[str, object]:
    data = json.loads(found.to_json())

    def without(value: object) -> object:
        if isinstance(value, dict):
            return {name: without(each) for name, each in value.items() if name != "seconds"}
        return [without(each) for each in value] if isinstance(value, list) else value

    return without(data)


# --- SLOs by class ------------------------------------------------------------------------------------------


def test_one_class_with_an_slo_is_planned_as_the_question_without_classes():
    slo, chat = Slo(ttft_s=0.5, tpot_s=0.03), workload("chat").spec
    named = msgspec.structs.replace(chat, classes=(RequestClass(name="only"),))
    plain, by_class = (
        timeless(plan(asked(gpus=2, rate_req_s=30, **how), workers=1))
        for how in ({"workload": chat, "slo": slo, "slos": {}}, {"workload": named, "slos": {"only": slo}})
    )
    assert plain.pop("question") != by_class.pop("question")
    assert plain == by_class


def test_a_plan_is_good_when_every_class_reaches_its_own_target_and_names_the_one_that_breaks():
    found = together()
    assert found.feasible and list(found.best.by_class) == ["chat", "batch"]
    for candidate in found.ranked:
        if candidate.confirmed:
            assert candidate.meets == all(each.meets for each in candidate.by_class.values())
            assert all((each.attainment_low >= each.target) <= each.meets for each in candidate.by_class.values())
        assert candidate.binding_class in ("chat", "batch")
        assert f" of {candidate.binding_class} breaks" in candidate.reason
    tight = plan(asked(slos=SLOS | {"batch": Slo(e2e_s=3.5, attainment=0.95)}), workers=1)
    assert all(each.binding_class == "batch" for each in tight.ranked)
    assert all(each.by_class["chat"].meets and not each.meets for each in tight.ranked if each.by_class)
    assert not tight.feasible and "E2E of batch" in tight.message


def test_attainment_by_class_is_that_of_simulations():
    best = together().best
    deployment = from_mapping(Deployment, best.deployment, "best")
    made, slos = workload(OFFICE, requests=best.requests), dict(enumerate(SLOS.values()))
    runs = [simulate(deployment, made, slo=slos, seed=seed) for seed in best.seeds]
    for place, each in enumerate(best.by_class.values()):
        of = [result.slo.by_class[f"{place}"] for result in runs]
        assert each.attainment == sum(one.attained for one in of) / sum(one.measured for one in of)


def test_a_looser_limit_of_a_class_never_costs_more():
    costs = []
    for limit_s in (4.0, 20.0, None):
        found = plan(asked(slos=SLOS | {"batch": Slo(e2e_s=limit_s, ttft_s=30, attainment=0.95)}), workers=1)
        costs.append(found.best.usd_per_hour if found.best else float("inf"))
    assert costs == sorted(costs, reverse=True) and costs[-1] < costs[0]


def test_bounds_by_class_prune_nothing_that_simulation_finds_good():
    question = asked(exhaustive=True, gpu={"h100-sxm": 2, "l40s": 2}, gpus=None, weights=None)
    source = workload(OFFICE)
    good = {each.name for each in plan(question, workers=1).ranked if each.meets}
    lengths, aimed = Load(source, 300, source.rate_req_s, 0).lengths, classes_of(question, source).aimed
    pruned, kept = set(), set()
    for slos in (aimed, tuple(msgspec.structs.replace(slo, e2e_s=2.0, ttft_s=0.1) for slo in aimed)):
        for option in enumerate_space(question).options:
            tables = tuple(compiled(pool.replica) for pool in option.deployment.pools)
            reached = all(
                each.attainment >= slos[i].attainment for i, each in hopes(option.deployment, tables, lengths, slos)
            )
            able = reached and Ceilings(lengths, slos)(option.deployment, tables) >= 1
            (kept if able else pruned).add((slos == aimed, option.name))
    assert good and not any((True, name) in pruned for name in good)
    assert any(not own for own, _ in pruned)


# --- who shares ---------------------------------------------------------------------------------------------


def test_a_class_alone_has_the_plan_of_its_own_question():
    source, question = workload(OFFICE), asked(slos=SLOS)
    groups = groups_of(question, source)
    assert [group.classes for group in groups] == [(0, 1), (0,), (1,)]
    alone = question_of(question, source, groups[1])
    by_hand = asked(workload="chat", rate_req_s=10.0, slo=SLOS["chat"], slos={})
    found, expected = timeless(plan(alone, workers=1)), timeless(plan(by_hand, workers=1))
    assert found.pop("question") != expected.pop("question")
    assert found == expected


@pytest.mark.parametrize(
    "stock", [{"h100-sxm": 2}, pytest.param({"h100-sxm": 1, "l40s": 3}, marks=pytest.mark.sweep)], ids=str
)
def test_the_way_to_share_is_the_best_of_all_by_brute_force(stock):
    question = asked(gpu=stock, gpus=None, exhaustive=True, requests=80)
    found, source = fleet(question, workers=1), workload(OFFICE)
    groups = groups_of(question, source)
    meeting = [[c for c in plan(question_of(question, source, each), workers=1).ranked if c.meets] for each in groups]
    best = {}
    for grouping in groupings(groups, "llama-3.1-8b"):
        for chosen in itertools.product(*(meeting[place] for place in grouping)):
            pools = [pool for each in chosen for pool in each.deployment["pools"]]
            counts = dict.fromkeys(question.stock, 0)
            for pool in pools:
                counts[pool["replica"]["gpu"]] += pool.get("count", 1)
            if all(counts[kind] <= most for kind, most in question.stock.items()):
                usd = sum(each.usd_per_hour for each in chosen)
                best[len(grouping)] = min(usd, best.get(len(grouping), float("inf")))
    assert len(best) == 2 and best[1] != best[2]
    assert {len(way.pools): way.value for way in found.ways} == pytest.approx(best)
    assert found.value == pytest.approx(min(best.values()))
    saved = abs(best[1] - best[2])
    assert f"saves ${saved:.2f} per hour ({saved / max(best.values()):.0%})" in found.message


@given(st.data())
def test_the_choice_within_a_stock_is_the_best_of_all_combinations(data):
    supply = tuple(data.draw(st.lists(st.integers(0, 12), min_size=2, max_size=2)))
    sizes = st.tuples(*(st.integers(0, 6) for _ in supply))
    sets = data.draw(
        st.lists(st.lists(st.tuples(st.integers(0, 20), sizes), min_size=1, max_size=5), min_size=1, max_size=3)
    )
    choices = [
        unbeaten(Choice(value, used, ((place, at),)) for at, (value, used) in enumerate(each))
        for place, each in enumerate(sets)
    ]
    found = cheapest(choices, supply)
    sums = [
        sum(value for value, _ in chosen)
        for chosen in itertools.product(*sets)
        if all(sum(used[i] for _, used in chosen) <= most for i, most in enumerate(supply))
    ]
    assert (found.value if found else None) == min(sums, default=None)
    if found:
        assert len(found.picks) == len(sets)
        assert found.value == sum(sets[place][at][0] for place, at in found.picks)
    assert all(one.value >= 0 for one in both(choices[0], choices[-1], supply))


def test_the_same_answer_in_one_process_or_in_two():
    told = []
    found = fleet(SMALL, workers=2, progress=lambda done, of: told.append((done, of)))
    assert timeless(found) == timeless(small())
    assert [done for done, _ in told] == list(range(1, len(told) + 1)) and told[-1][0] == told[-1][1]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_an_interruption_leaves_are_the_candidates_known_by_then(workers):
    def stop(done: int, of: int) -> None:
        if done == 6:  # two of each of three groups: short runs for all come first, and none is planned for to the end
            raise KeyboardInterrupt

    found = fleet(SMALL, workers=workers, progress=stop)
    assert found.interrupted and found.planned == 0 and found.groups == 3
    assert found.feasible and found.parts
    assert all(part.plan.interrupted and 0 < part.plan.evaluated < 6 for part in found.parts)
    assert found.message.startswith("Interrupted with 0 of 3 groups of classes planned for to the end; so far: ")
    assert found.value >= small().value or not all(part.candidate.confirmed for part in found.parts)


def test_an_interrupted_fleet_without_a_deployment_says_so_and_what_to_do(tmp_path):
    cut = {"interrupted": True, "planned": 1, "groups": 3, "parts": [], "deployment": None, "feasible": False}
    file = tmp_path / "int.json"
    file.write_text(msgspec.structs.replace(small(), **cut).to_json())
    said = "interrupted with 1 of 3 groups of classes planned for; run `headway plan` again"
    refused(run("export", file, "--to", "gateway"), said)


def test_a_fleet_survives_json_and_its_words_are_these():
    found = small()
    assert Fleet.from_json(found.to_json()).to_mapping() == found.to_mapping()
    assert found.to_mapping()["schema"] == "headway.fleet/1"
    assert found.message == (
        "chat and batch on 1x tp1 fp8/bf16 b2048 of llama-3.1-8b: 1 h100-sxm, $3.99 per hour in all. One pool for chat "
        "and batch comes to $3.99 per hour in all, a pool for each to $7.98 per hour: sharing saves $3.99 per hour "
        "(50%). First to break at a higher rate: TPOT of chat in llama-3.1-8b."
    )
    assert set(found.together.by_class) == {"chat", "batch"}
    assert all(each.met for each in found.together.by_class.values())


def test_who_is_not_confirmed_makes_room_for_the_next(monkeypatch):
    first = small().parts[0].candidate.name

    def unlucky(plan_, candidate):
        return msgspec.structs.replace(candidate, meets=candidate.name != first)

    monkeypatch.setattr("headway.plan.pools.confirmed", unlucky)
    assert first not in [part.candidate.name for part in fleet(SMALL, workers=1).parts]


# --- several models, and one deployment of all ----------------------------------------------------------------


def two_models() -> Question:
    code = RequestClass(name="code", workload="chat", rate_req_s=2, model="llama-3.2-3b")
    spec = WorkloadSpec(name="office", classes=(CHAT, code, BATCH))
    return asked(workload=spec, slos=SLOS | {"code": Slo(ttft_s=0.5)})


def test_models_share_gpus_and_not_replicas():
    found = of_two_models()
    assert [(part.model, part.classes) for part in found.parts] == [
        ("llama-3.1-8b", ["chat", "batch"]),
        ("llama-3.2-3b", ["code"]),
    ]
    assert sum(found.gpus.values()) == sum(part.candidate.gpus for part in found.parts) <= 3
    assert found.usd_per_hour == pytest.approx(sum(part.candidate.usd_per_hour for part in found.parts))
    deployment = from_mapping(Deployment, read_yaml_text(write_yaml(found.deployment)), "fleet")
    assert deployment.models == ("llama-3.1-8b", "llama-3.2-3b")
    assert {name: each.attainment for name, each in found.together.by_class.items()} == {
        name: of.attainment
        for name, of in zip(
            ("chat", "code", "batch"),
            simulate(
                deployment, workload(two_models().workload, requests=300), seed=found.together.seed,
                slo={0: SLOS["chat"], 1: Slo(ttft_s=0.5), 2: SLOS["batch"]},
            ).slo.by_class.values(),
            strict=True,
        )
    }  # fmt: skip


def read_yaml_text(text: str) -> dict[str, object]:
    import yaml

    return yaml.safe_load(text)


def test_classes_with_pools_of_their_own_are_led_there_by_their_class():
    one = from_mapping(Deployment, small().parts[0].candidate.deployment, "one")
    named = tuple(msgspec.structs.replace(each, model=model) for each, model in ((CHAT, "llama-3.1-8b"), (BATCH, "")))
    made = workload(msgspec.structs.replace(OFFICE, classes=named), requests=400)
    shares = [Share("llama-3.1-8b-chat", (0,), one), Share("llama-3.1-8b-batch", (1,), one)]
    whole = joined(SMALL, shares, {0: "llama-3.1-8b", 1: ""}, "both")
    assert whole.policies.choose_model == "by-class"
    assert whole.aliases == {"llama-3.1-8b": ("llama-3.1-8b-chat",)}
    rows = simulate(whole, made, seed=1).records
    assert (rows["pool"] == rows["slo_class"]).all()
    batches = list(made.batches(1))
    for slo_class, pool in ((0, 0), (1, 1)):
        alone = simulate(one, Chosen(made, batches, slo_class), seed=1).records
        mine = rows["slo_class"] == slo_class
        assert (rows["pool"][mine] == pool).all()
        assert np.array_equal(rows.e2e_s[mine], alone.e2e_s)
    mine = joined(asked(policies=Policies(choose_model="first")), shares, {0: "llama-3.1-8b-chat", 1: "x"}, "both")
    assert mine.aliases == {"x": ("llama-3.1-8b-batch",)}


class Chosen(type(workload("chat"))):
    """The requests of one class of a workload that was made."""

    def __init__(self, made, batches, slo_class):
        spec = msgspec.structs.replace(made.part(slo_class).spec, classes=())
        super().__init__(spec)
        self._batches = [batch.take(np.flatnonzero(batch.slo_class == slo_class)) for batch in batches]
        self.requests = sum(map(len, self._batches))

    def batches(self, seed, rate_req_s=None, chunk=0):
        return iter(self._batches)


def test_what_if_a_class_had_other_limits_or_a_pool_another_replica_is_told_by_class(tmp_path):
    (tmp_path / "fleet.json").write_text(of_two_models().to_json())
    found = {}
    for name, change in (("slo", ("--slo", "chat:ttft=20ms")), ("rate", ("--rate", "2x"))):
        done = run("whatif", tmp_path / "fleet.json", *change, "--json", "-", "-q")
        assert done.exit_code == 0, done.output
        found[name] = json.loads(done.stdout)
    shares = {each["figure"]: each for each in found["slo"]["change"]["differences"]}
    assert shares["attainment of chat"]["difference"] < 0 == shares["attainment of batch"]["difference"]
    before, deployment = found["slo"]["before"], from_mapping(Deployment, found["slo"]["before"]["deployment"], "one")
    made = from_mapping(WorkloadSpec, before["workload"], "made")
    slos = {i: two_models().slo_of(each.name) for i, each in enumerate(made.classes)}
    again = simulate(deployment, workload(made), slo=slos, seed=0)
    assert [each.attained for each in again.slo.by_class.values()] == [
        each["attained"] for each in before["slo"]["by_class"].values()
    ]
    assert found["rate"]["change"]["paired"]
    assert found["rate"]["after"]["workload"]["classes"][0]["rate_req_s"] == 2 * made.classes[0].rate_req_s
    refused(run("whatif", tmp_path / "fleet.json", "--slo", "cat:ttft=1s"), "cat", "chat")
    assert before["requests"]["arrived"] == two_models().requests  # as many as were asked for; else ...
    answer = Fleet.from_json((tmp_path / "fleet.json").read_text())
    free = msgspec.structs.replace(answer, question=msgspec.structs.replace(answer.question, requests=None))
    (tmp_path / "fleet.json").write_text(free.to_json())
    many = run("whatif", tmp_path / "fleet.json", "--slo", "chat:ttft=20ms", "--json", "-")
    assert "26,000 requests (some 2,000 of batch, the rarest class)" in many.stderr
    measured = json.loads(many.stdout)["before"]["slo"]["by_class"]
    assert 1800 < measured["2"]["measured"] <= 2200
    refused(run("whatif", tmp_path / "fleet.json", "--replicas", "1"), "of which pool")


def test_weights_of_unlike_replicas_stay_those_of_their_model():
    one = from_mapping(Deployment, small().parts[0].candidate.deployment, "one")
    routed = msgspec.structs.replace(
        one, policies=Policies(route="weighted-requests", params={"route": {"weights": {"mixed": [2.0]}}})
    )
    whole = joined(SMALL, [Share("a", (0,), routed), Share("b", (1,), one)], {0: "a", 1: "b"}, "both")
    assert whole.policies.params["route"] == {"weights": {"a": [2.0]}}
    assert simulate(whole, workload("chat", requests=20), seed=0).requests.finished == 20
    assert resized(whole, [3, 2]).policies.params["route"] == {"weights": {"a": [2.0, 2.0, 2.0]}}


# --- no good answer, and bad input ------------------------------------------------------------------------------


def test_too_few_gpus_for_all_says_how_many_would_do():
    found = fleet(msgspec.structs.replace(two_models(), gpus=1), workers=1)
    assert not found.feasible and found.parts == [] and found.deployment is None
    assert "not all of them on 1 h100-sxm: the best choice takes 2 h100-sxm" in found.message


@pytest.mark.parametrize("limit", [{"max_usd_per_hour": 7.0}, {"max_watts": 1000.0}])
def test_dollars_and_watts_are_for_all_pools_together(limit):
    found = fleet(msgspec.structs.replace(two_models(), **limit), workers=1)
    assert not found.feasible and "not all of them on 3 h100-sxm" in found.message
    more = {name: 2 * most for name, most in limit.items()}
    assert fleet(msgspec.structs.replace(two_models(), **more), workers=1).feasible


def test_a_class_that_nothing_serves_is_named():
    found = fleet(asked(slos=SLOS | {"batch": Slo(e2e_s=0.01)}), workers=1)
    assert not found.feasible
    assert set(found.short) == {"chat and batch", "batch"}
    assert "E2E 10 ms is below the physical floor" in found.short["batch"]
    assert "E2E of batch 10 ms is below the physical floor" in found.short["chat and batch"]
    assert "batch: E2E 10 ms" in found.message


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"workload": "chat", "slo": SLOS["chat"], "slos": {}}, BadInput, "workload chat has no classes"),
        ({"slos": {"chat": SLOS["chat"]}}, BadInput, "class batch has no limit"),
        ({"slos": SLOS | {"bach": SLOS["batch"]}}, UnknownName, "bach.*batch"),
        ({"objective": "goodput"}, BadInput, "does not add up"),
        ({"front": ("cost", "ttft")}, BadInput, "front cost,ttft against classes .* leave it out, .*--together"),
        ({"model": "llama-3.1-9b"}, UnknownName, "llama-3.1-8b"),
    ],
)
def test_what_cannot_be_asked_is_refused(changes, error, said):
    with pytest.raises(error, match=said):
        fleet(asked(**changes), workers=1)


def test_a_class_that_hardly_comes_is_not_taken_for_served():
    rare = msgspec.structs.replace(BATCH, rate_req_s=0.001)
    with pytest.raises(BadInput, match=r"none of the 143 requests of a run is of class batch.*requests="):
        plan(asked(workload=msgspec.structs.replace(OFFICE, classes=(CHAT, rare))), workers=1)


# --- the command line -------------------------------------------------------------------------------------------


WORDS = [
    "plan",
    "--gpu",
    "h100-sxm:2",
    "--max-tp",
    1,
    "--workers",
    1,
    "--set",
    "requests=100",
    "--set",
    "layouts=[mixed]",
]
LIMITS = ["--slo", "chat:ttft=500ms,tpot=30ms", "--slo", "batch:e2e=20s,attainment=95%"]


def written(tmp_path) -> str:
    spec = msgspec.structs.replace(
        OFFICE, classes=tuple(msgspec.structs.replace(each, model="llama-3.1-8b") for each in OFFICE.classes)
    )
    (tmp_path / "office.yaml").write_text(write_yaml(to_mapping(spec)))
    return str(tmp_path / "office.yaml")


def test_a_plan_of_classes_from_the_command_line_to_what_it_launches(tmp_path):
    office, kept = written(tmp_path), {kind: tmp_path / f"fleet.{kind}" for kind in ("json", "yaml", "html")}
    files = [word for kind, file in kept.items() for word in (f"--{kind}", file)]
    done = run(*WORDS, "--workload", office, *LIMITS, *files)
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert "chat and batch share 1x tp1" in said and "sharing saves" in said
    found = Fleet.from_json(kept["json"].read_text())
    assert found.question.slos["batch"] == SLOS["batch"]
    assert [each["name"] for each in read_yaml(str(kept["yaml"]))["gateway"]["classes"]] == ["chat", "batch"]
    for file in (kept["yaml"], kept["json"]):
        told = run("simulate", file, "--workload", office, "--requests", 100, "--seed", 1, *LIMITS)
        assert told.exit_code == 0 and "Class batch" in told.stdout, told.output
    told = run("export", kept["json"], "--to", "gateway")
    assert "name: batch" in told.stdout and told.exit_code == 0
    assert "vllm serve" in run("export", kept["json"], "--to", "vllm").stdout
    assert "Ways to share" in run("report", kept["json"], "--text").stdout
    page = kept["html"].read_text()
    assert "Ways to share" in page and "chat | batch" in page
    for file, asked_for in ((kept["json"], ()), (kept["yaml"], ("--workload", office, "--requests", 200))):
        told = run("whatif", file, "--slo", "batch:e2e=2s", *asked_for, "--json", "-", "-q")
        assert told.exit_code == 0, told.output
        sides = [json.loads(told.stdout)[side]["slo"] for side in ("before", "after")]
        assert [sides[0]["by_class"][i]["limits"]["e2e_s"] for i in "01"] == [None, 20.0]
        assert [sides[1]["by_class"][i]["limits"]["e2e_s"] for i in "01"] == [None, 2.0]
    told = run("capacity", kept["json"], "--curve", "5,11", "--workers", 1, "--json", "-", "-q")
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["slos"]["batch"]["e2e_s"] == 20.0
    shared = run(*WORDS, "--workload", office, *LIMITS, "--together", "--json", "-")
    assert Plan.from_json(shared.stdout).best.by_class["batch"].meets


def test_bad_slos_of_classes_are_refused_on_the_command_line(tmp_path):
    office = written(tmp_path)
    start = [*WORDS, "--workload", office]
    refused(run(*start, "--slo", "chat"), "write CLASS:LIMIT=VALUE")
    refused(run(*start, "--slo", "chat:ttft"), "write CLASS:LIMIT=VALUE")
    refused(run(*start, "--slo", "chat:tft=1s"), "tft", "ttft")
    refused(run(*start, "--slo", "chat:ttft=1s", "--slo", "chat:tpot=1s"), "class chat has its SLO already")
    refused(run(*start, *LIMITS, "--slo", "cat:ttft=1s"), "cat", "chat")
    refused(run(*start, *LIMITS, "--objective", "rate"), "does not add up", "--together")
    refused(run(*start, *LIMITS, "--front", "energy,ttft"), "no front is made; leave it out", "--together")
    refused(run("simulate", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", *LIMITS), "workload chat has no classes")
