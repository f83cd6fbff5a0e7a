"""Plans of small questions: laws every plan obeys, and answers to questions that have no good one."""

import math
import re
from functools import cache

import msgspec
import numpy as np
import pytest

from headway.cost import EngineSettings, Replica
from headway.errors import BadInput, UnknownName
from headway.metrics import Prices, Slo
from headway.metrics.attainment import group_interval
from headway.plan import Plan, Question, contest, plan, plans, trial
from headway.plan.question import OBJECTIVES
from headway.plan.remedy import _evaluated
from headway.sim import Deployment, Policies, Pool, simulate
from headway.specs import from_mapping, read_yaml, write_yaml
from headway.workload import workload

SLO = Slo(ttft_s=0.5, tpot_s=0.03)
SMALL = Question(
    model="llama-3.1-8b", gpu="h100-sxm", gpus=2, workload="chat", rate_req_s=30, slo=SLO, requests=300, kv=("bf16",),
    margin=0,
)  # fmt: skip


def ask(**changes: object) -> Plan:
    return asked(msgspec.json.encode(msgspec.structs.replace(SMALL, **changes)))


@cache
def asked(question: bytes) -> Plan:
    return plan(msgspec.json.decode(question, type=Question), workers=1)


def together(results) -> tuple[float, float, float]:
    measured = np.array([result.slo.measured for result in results])
    good = np.array([result.slo.attained for result in results])
    return good.sum() / measured.sum(), *group_interval(measured, good)


def timeless(found: Plan) -> dict[str, object]:
    return msgspec.structs.replace(found, seconds=0.0).to_mapping()


def test_the_same_question_gives_the_same_plan_in_one_process_or_in_two():
    assert timeless(plan(SMALL, workers=2)) == timeless(ask())


def test_many_questions_are_answered_as_each_by_itself_and_as_they_are_done():
    questions = [msgspec.structs.replace(SMALL, gpus=1, rate_req_s=rate, requests=100) for rate in (5.0, 10.0, 400.0)]
    told = []
    found = dict(plans(questions, workers=2, progress=lambda done, of: told.append((done, of))))
    assert [timeless(found[i]) for i in range(3)] == [timeless(plan(each, workers=1)) for each in questions]
    assert told == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(UnknownName, match="no-such"):
        list(plans([*questions, msgspec.structs.replace(SMALL, model="no-such")], workers=1))


def test_candidates_evaluated_and_discarded_are_all_there_are():
    found = ask(model="qwen2.5-32b", gpu="a100-40gb-sxm", gpus=4, rate_req_s=1, kv=None)
    assert found.discarded["memory"] > 0
    assert found.enumerated == found.evaluated + sum(found.discarded.values())
    assert found.evaluated == len(found.ranked) == len({candidate.name for candidate in found.ranked})
    assert all(candidate.gpus <= 4 for candidate in found.ranked)


def test_a_deployment_fed_to_simulate_attains_what_the_plan_says(tmp_path):
    found = ask()
    assert found.feasible
    assert found.best is not None
    split = next(candidate for candidate in found.ranked if "P " in candidate.name)
    for candidate in (found.best, split, found.ranked[-1]):
        write_yaml(candidate.deployment, tmp_path / "deployment.yaml")
        deployment = from_mapping(Deployment, read_yaml(tmp_path / "deployment.yaml"), "deployment.yaml")
        made = workload("chat", rate=found.rate_req_s, requests=candidate.requests)
        results = [simulate(deployment, made, slo=SLO, seed=seed) for seed in candidate.seeds]
        share, low, high = together(results)
        assert share == candidate.attainment
        if candidate.confirmed:
            assert (low, high) == (candidate.attainment_low, candidate.attainment_high)
        assert results[0].gpus == candidate.gpus
        assert results[0].cost.usd_per_hour == pytest.approx(candidate.usd_per_hour)
        carbon = [r.carbon.grams_per_million_output_tokens for r in results]
        figures = [(r.energy.joules_per_output_token, r.energy.mean_watts, r.ttft_s.p90, r.tpot_s.p90) for r in results]
        joules, watts, ttft_s, tpot_s = np.mean(figures, axis=0)
        assert joules == pytest.approx(candidate.joules_per_output_token)
        assert watts == pytest.approx(candidate.mean_watts)
        assert np.mean(carbon) == pytest.approx(candidate.carbon_g_per_million_output_tokens)
        assert candidate.energy_kind == results[0].energy.kind == "fitted"
        assert ttft_s == pytest.approx(candidate.ttft_p90_s, rel=0.01)
        assert tpot_s == pytest.approx(candidate.tpot_p90_s, rel=0.01)


def test_goodput_is_where_the_slo_begins_to_be_missed():
    found = ask()
    best = found.best
    assert best is not None
    assert best.goodput_high_req_s == pytest.approx(best.goodput_low_req_s * (1 + found.tolerance))
    assert best.goodput_low_req_s <= best.goodput_req_s <= best.goodput_high_req_s
    assert best.goodput_req_s_per_gpu == best.goodput_req_s / best.gpus
    deployment = from_mapping(Deployment, best.deployment, "best")
    for rate, met in ((best.goodput_low_req_s, True), (best.goodput_high_req_s, False)):
        made = workload("chat", rate=rate, requests=best.requests)
        share, low, _ = together([simulate(deployment, made, slo=SLO, seed=seed) for seed in best.seeds])
        assert bool(low >= SLO.attainment or share == 1) is met


def test_the_best_meets_the_slo_on_seeds_that_it_was_not_chosen_by():
    for rate in (15, 40):
        best = ask(rate_req_s=rate, requests=1000).best
        assert best is not None
        assert best.confirmed
        assert SMALL.seed not in best.seeds
        assert best.attainment_low >= SLO.attainment
        deployment, made = from_mapping(Deployment, best.deployment, "best"), workload("chat", rate=rate, requests=1000)
        fresh = together([simulate(deployment, made, slo=SLO, seed=seed) for seed in range(100, 110)])
        assert fresh[0] >= SLO.attainment


def test_those_in_front_that_meet_the_slo_are_confirmed_and_what_fails_says_so():
    near = [candidate.goodput_req_s for candidate in ask(requests=600).ranked[:3]]
    rate = (min(near) + max(near)) / 2  # some of the three that are confirmed serve it and some do not
    found = plan(msgspec.structs.replace(SMALL, requests=600, rate_req_s=rate), workers=1)
    assert found.feasible
    assert all(candidate.confirmed for candidate in found.ranked[:3] if candidate.meets)
    assert all(c.confirmed for c in found.ranked if c.name in found.front)
    assert found.confirmed == sum(c.confirmed for c in found.ranked) < found.evaluated
    assert found.long_runs == sum(c.requests == found.requests for c in found.ranked)
    failed = [c for c in found.ranked if c.confirmed and not c.meets]
    assert failed
    assert all(f"the target on {len(c.seeds)} further seeds: " in c.reason for c in failed)
    assert all(c.attainment_low < SLO.attainment for c in failed)
    assert f"--requests {found.best.requests} --seed 1 to {len(found.best.seeds)} " in found.message


def test_a_trace_replayed_as_recorded_has_no_other_seeds(shared_data):
    made = workload(shared_data / "traces" / "azure_2023_conv.csv.gz", requests=300)
    found = plan(msgspec.structs.replace(SMALL, gpus=1, rate_req_s=4.0), made=made, workers=1)
    assert found.confirmed == 0
    assert all(candidate.seeds == (SMALL.seed,) for candidate in found.ranked)


def test_a_tighter_slo_never_raises_goodput():
    loose = {candidate.name: candidate for candidate in ask().ranked}
    for tight in (
        Slo(ttft_s=0.5, tpot_s=0.015),
        Slo(ttft_s=0.2, tpot_s=0.03),
        Slo(ttft_s=0.5, tpot_s=0.03, attainment=0.95),
    ):
        for candidate in ask(slo=tight).ranked:
            before = loose[candidate.name]
            if candidate.confirmed == before.confirmed:  # else the one rests on other seeds than the other
                assert candidate.goodput_req_s <= before.goodput_req_s * 1.03


def test_what_meets_the_slo_can_serve_the_rate_and_the_other_way_round():
    for rate in (30, 90):
        for candidate in ask(rate_req_s=rate).ranked:
            assert candidate.meets == (candidate.goodput_low_req_s >= rate)
            if candidate.attainment is not None:
                sure = candidate.attainment_low if candidate.confirmed else candidate.attainment
                assert candidate.meets == (sure >= SLO.attainment)
                assert candidate.attainment_low <= candidate.attainment <= candidate.attainment_high


@pytest.mark.parametrize("objective", ["cost", "energy", "goodput"])
def test_those_that_meet_come_first_in_the_order_of_the_objective(objective):
    found = ask(objective=objective, rate_req_s=45)
    measure = {
        "cost": lambda c: c.usd_per_hour,
        "energy": lambda c: c.joules_per_output_token,
        "goodput": lambda c: -c.goodput_req_s_per_gpu,
    }[objective]
    meeting = [candidate.meets for candidate in found.ranked]
    assert meeting == sorted(meeting, reverse=True)
    assert any(meeting)
    assert not all(meeting)
    good = [measure(candidate) for candidate in found.ranked if candidate.meets]
    assert good == sorted(good)
    served = [-candidate.goodput_req_s for candidate in found.ranked if not candidate.meets]
    assert served == sorted(served)
    assert found.best == found.ranked[0]


def test_the_front_is_what_nothing_confirmed_beats():
    found = ask()
    field = [candidate for candidate in found.ranked if candidate.meets and candidate.confirmed]

    def values(candidate):
        return candidate.usd_per_hour, candidate.joules_per_output_token, -candidate.goodput_req_s_per_gpu

    def beaten(candidate):
        mine = values(candidate)
        theirs = [values(other) for other in field if values(other) != mine]
        return any(all(b <= a for a, b in zip(mine, other, strict=True)) for other in theirs)

    kept = [candidate for candidate in field if candidate.name in found.front]
    assert len(kept) == len(found.front) > 0
    assert kept[0] == found.best
    assert not any(map(beaten, kept))


def test_long_runs_are_spent_on_those_that_matter(monkeypatch):
    monkeypatch.setattr(contest, "_RUNGS", ((4, 0), (1, 2)))
    found = plan(msgspec.structs.replace(SMALL, requests=2000), workers=1)
    assert found.requests == 2000
    lengths = {candidate.name: candidate.requests for candidate in found.ranked}
    assert set(lengths.values()) == {500, 2000}
    assert [candidate.requests for candidate in found.ranked[:2]] == [2000, 2000]
    assert all(lengths[name] == 2000 for name in found.front)
    doubt = 1 + 2 * 0.075 * math.sqrt(1000 / 500)  # of runs of 500 requests
    short = [c for c in found.ranked if c.requests < 2000 and c.goodput_req_s * doubt > found.rate_req_s]
    assert short
    assert all(c.usd_per_hour >= found.best.usd_per_hour for c in short)


def test_every_number_of_a_plan_survives_json():
    found = ask(rate_req_s=90)
    again = Plan.from_json(found.to_json())
    assert again.to_mapping() == found.to_mapping()
    assert found.to_mapping()["schema"] == "headway.plan/1"
    assert "NaN" not in found.to_json()
    with pytest.raises(BadInput, match=r"expected a JSON object of the schema 'headway\.plan/1'"):
        Plan.from_json('{"schema": "headway.result/1"}')


def test_every_candidate_says_why():
    found = ask(rate_req_s=10)
    won, *lost = found.ranked
    assert won.reason.startswith("best of those that meet the SLO: $")
    assert any("against $" in candidate.reason for candidate in lost if candidate.meets)
    behind = [candidate for candidate in ask(rate_req_s=45).ranked if not candidate.meets]
    assert behind
    assert all("of the rate asked for" in candidate.reason for candidate in behind)


# --- no good answer -----------------------------------------------------------------------------------------


def test_a_limit_below_what_can_be_had_is_named_with_what_can():
    found = ask(slo=Slo(tpot_s=0.002))
    assert (found.feasible, found.best, found.binding) == (False, None, "tpot")
    assert found.evaluated == found.enumerated
    nearest = found.ranked[0]
    assert nearest.name in found.message
    wish = Slo(tpot_s=float(found.message.split("Ask for ")[1].split(" ms")[0]) / 1000)
    assert ask(slo=wish, rate_req_s=0.1).feasible


def test_a_ttft_that_no_prompt_meets_binds():
    found = ask(slo=Slo(ttft_s=0.004, tpot_s=0.05))
    assert found.binding == "ttft"
    assert all(candidate.goodput_req_s == 0 for candidate in found.ranked)
    assert found.front == []


def test_a_rate_beyond_all_gpus_says_how_many_would_do():
    found = ask(rate_req_s=2500)
    assert (found.feasible, found.binding) == (False, "rate")
    assert found.ranked[0].goodput_req_s == max(candidate.goodput_req_s for candidate in found.ranked)
    assert "of replicas of tp 4 or 8 none was found to serve it on up to 64 GPUs; more may need" in found.message
    form = r"(\d+) GPUs would do \((\d+) times (.+)\): simulated, (\S+)% of ([\d,]+) requests meet the SLO"
    said = re.search(form, found.message)
    gpus, copies = int(said[1]), int(said[2])
    frugal = next(candidate for candidate in found.ranked if candidate.name == said[3])
    assert gpus == copies * frugal.gpus
    assert frugal.goodput_req_s_per_gpu == max(c.goodput_req_s_per_gpu for c in found.ranked)
    data = dict(frugal.deployment)
    data["pools"] = [{**pool, "count": pool.get("count", 1) * copies} for pool in data["pools"]]
    requests = int(said[5].replace(",", ""))
    made = workload("chat", rate=2500, requests=requests)
    result = simulate(from_mapping(Deployment, data, "copies"), made, slo=SLO, seed=SMALL.seed + 1)
    assert requests == 300 * math.ceil(2500 / frugal.goodput_req_s)
    attained = result.slo.attainment
    assert SLO.attainment <= attained
    assert said[4] == (">99.9" if 0.9995 <= attained < 1 else f"{100 * attained:.1f}")


@pytest.mark.parametrize("limit", [{"gpus": 2}, {"max_usd_per_hour": 9.0}])
def test_what_would_serve_a_rate_is_the_cheapest_that_a_plan_without_the_limit_finds(limit):
    roomy = {"gpus": 6, "rate_req_s": 75.0, "tp": (1,)}
    found, free = ask(**(roomy | limit)), ask(**roomy)
    assert free.best is not None and free.best.gpus > 2 and (found.feasible, found.binding) == (False, "rate")
    named = re.search(r"would do \((.+?)\): simulated", found.message)[1]
    assert next(c for c in free.ranked if c.name == named).gpus == free.best.gpus  # the first of these
    said = int(re.search(r"of ([\d,]+) requests meet the SLO", found.message)[1].replace(",", ""))
    assert said == len(free.best.seeds) * free.best.requests
    money = f"for ${free.best.usd_per_hour:.2f} per hour, which needs max_usd_per_hour 9 raised"
    assert (money in found.message) == ("gpus" not in limit)


def test_larger_replicas_than_the_gpus_hold_are_looked_at_where_these_are_too_few():
    tight = {"slo": Slo(ttft_s=0.5, tpot_s=0.0051), "kv": None, "rate_req_s": 20.0}
    found, free = ask(**tight, gpus=1), ask(**tight, gpus=8)
    assert free.best is not None and (found.feasible, found.binding) == (False, "rate")
    assert max(pool["replica"].get("tp", 1) for pool in free.best.deployment["pools"]) > 1
    said = re.search(r"\. (\d+) GPUs would do \((.+?)\): simulated, .* of replicas up to tp 8\.", found.message)
    assert int(said[1]) == free.best.gpus
    held = ask(**tight, gpus=1, max_tp=1)  # the question allows none
    assert not held.feasible and "tp 2" not in held.message and "up to tp" not in held.message


def test_copies_that_miss_the_slo_are_added_to_and_none_is_promised_that_was_not_simulated(monkeypatch):
    tried = []

    def missed(deployment, tables, load, slo, k):
        tried.append(sum(pool.count for pool in deployment.pools))
        return trial.Trial(len(tried) > 2, 0.95, load.requests, 0, 0.1, 0.01, 1.0, 0.0, True)

    monkeypatch.setattr("headway.plan.remedy.try_rate", missed)
    monkeypatch.setattr("headway.plan.remedy.WIDER_GPUS", 0)
    found = plan(msgspec.structs.replace(SMALL, rate_req_s=1000), workers=1)
    assert len(tried) == 3 and tried == sorted(set(tried))
    assert "95.0% of" in found.message
    monkeypatch.setattr("headway.plan.remedy._REPLICAS_MAX", 1)
    found = plan(msgspec.structs.replace(SMALL, rate_req_s=1000), workers=1)
    assert len(tried) == 3
    assert "an estimate that no simulation confirmed" in found.message and "By goodput alone about " in found.message


def test_no_copies_are_named_that_were_evaluated_or_that_missed(monkeypatch):
    tried = []

    def missed(deployment, tables, load, slo, k):
        tried.append(deployment.gpus)
        return trial.Trial(False, 0.5, load.requests, 0, 0.1, 0.01, 1.0, 0.0, True)

    monkeypatch.setattr("headway.plan.remedy.try_rate", missed)
    found = plan(msgspec.structs.replace(SMALL, rate_req_s=1000, max_tp=2), workers=1)
    assert len(tried) == 66  # six numbers of copies, then what else up to 64 GPUs might
    assert f"No number of copies tried serves it, up to {max(tried[:6])} GPUs (" in found.message
    assert "would do" not in found.message
    one = Deployment(pools=(Pool(replica=Replica(model="llama-3.1-8b", gpu="h100-sxm", tp=2), count=1),))
    eight = msgspec.structs.replace(SMALL, gpus=8)
    assert _evaluated(one, eight) == 4
    assert _evaluated(one, msgspec.structs.replace(eight, max_usd_per_hour=20.0)) == 2


def test_the_front_has_the_objective_unless_it_is_given():
    for objective in OBJECTIVES:
        made = Question(model="llama-3.1-8b", gpu="h100-sxm", gpus=2, slo=SLO, objective=objective)
        assert objective in made.front and len(set(made.front)) == 3
    assert msgspec.structs.replace(SMALL, objective="ttft", front=("cost", "energy")).front == ("cost", "energy")


def test_a_model_that_fits_nowhere_names_the_memory():
    found = ask(model="llama-3.1-405b")
    assert (found.feasible, found.binding, found.ranked) == (False, "memory", [])
    assert found.discarded == {"memory": found.enumerated}
    assert "GiB" in found.message
    assert "on 8 h100-sxm, $31.92 per hour, would fit" in found.message


def test_an_slo_without_a_limit_on_waiting_still_bounds_the_rate():
    found = ask(slo=Slo(tpot_s=0.5), gpus=1)
    assert all(0 < candidate.goodput_req_s < 1000 for candidate in found.ranked)
    assert "rate" in {candidate.binding for candidate in found.ranked}


def test_an_itl_limit_is_judged_too():
    strict = ask(slo=Slo(ttft_s=0.5, tpot_s=0.03, itl_s=0.02), gpus=1).ranked
    loose = {candidate.name: candidate for candidate in ask(gpus=1).ranked}
    assert any(candidate.binding == "itl" for candidate in strict)
    assert all(candidate.goodput_req_s <= loose[candidate.name].goodput_req_s * 1.03 for candidate in strict)


def test_prices_given_are_those_that_rank():
    dear = ask(prices=Prices(usd_per_gpu_hour=100.0))
    assert dear.best is not None
    assert dear.best.usd_per_hour == 100.0 * dear.best.gpus
    assert from_mapping(Deployment, dear.best.deployment, "best").prices.usd_per_gpu_hour == 100.0


def by_watts(found: Plan) -> dict[float, dict[str, object]]:
    """Candidates by power limit, and there by their name without it."""
    kept: dict[float, dict[str, object]] = {}
    for candidate in found.ranked:
        cap = candidate.deployment["pools"][0]["replica"]["cap_watts"]
        kept.setdefault(cap, {})[candidate.name.replace(f" {cap:g}W", "")] = candidate
    return kept


def test_power_limits_to_try_are_part_of_the_space_and_cost_speed():
    found = ask(cap_watts=(700.0, 300.0), layouts=("mixed",))
    plain = {candidate.name: candidate for candidate in ask(layouts=("mixed",)).ranked}
    limited = by_watts(found)
    assert set(limited) == {700.0, 300.0}
    compared = {700.0: 0, 300.0: 0}
    for cap, named in limited.items():
        assert set(named) <= set(plain)  # those far behind are not simulated
        for name, candidate in named.items():
            assert candidate.mean_watts <= cap * candidate.gpus
            if candidate.confirmed or plain[name].confirmed:
                continue  # on other seeds
            compared[cap] += 1
            assert candidate.goodput_req_s <= plain[name].goodput_req_s * 1.03  # the grid of rates
            if cap == 700.0:  # all that the GPU draws
                assert candidate.joules_per_output_token == pytest.approx(plain[name].joules_per_output_token)
    assert min(compared.values()) > 0
    assert any(300 * one.gpus < plain[name].mean_watts for name, one in limited[300.0].items())


def test_a_locked_clock_is_kept_in_every_pool_of_a_candidate():
    found = ask(clock_mhz=(1200.0,))
    assert found.ranked
    for candidate in found.ranked:
        assert candidate.name.endswith((" 1200MHz", " 1200MHz b2048", " 1200MHz b8192"))
        assert all(pool["replica"]["clock_mhz"] == 1200.0 for pool in candidate.deployment["pools"])


def test_carbon_follows_the_prices_of_the_question():
    base = ask(layouts=("mixed",)).best
    prices = Prices(carbon_g_per_kwh=50, pue=1.2, embodied_kg_per_gpu=160, lifetime_years=4)
    found = ask(layouts=("mixed",), prices=prices).best
    assert base.embodied_g_per_million_output_tokens is None
    share = found.carbon_g_per_million_output_tokens / base.carbon_g_per_million_output_tokens
    assert share == pytest.approx(50 * 1.2 / (Prices().carbon_g_per_kwh * Prices().pue))
    hours = found.usd_per_million_output_tokens / found.usd_per_hour
    grams = prices.embodied_g_per_gpu_hour * found.gpus * hours
    assert found.embodied_g_per_million_output_tokens == pytest.approx(grams)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interruption_keeps_what_is_known(workers):
    def stop(done: int, planned: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    found = plan(SMALL, workers=workers, progress=stop)
    assert found.interrupted
    assert found.message.startswith("Interrupted; so far: ")
    assert found.evaluated == 5 < found.enumerated
    whole = {candidate.name: candidate for candidate in ask().ranked}
    assert all(candidate.attainment == whole[candidate.name].attainment for candidate in found.ranked)


def test_progress_counts_every_evaluation():
    seen: list[tuple[int, int]] = []
    found = plan(SMALL, workers=1, progress=lambda done, planned: seen.append((done, planned)))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1] == (len(seen), len(seen))
    assert len(seen) >= found.evaluated


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpus": 0}, "gpus 0: a plan needs at least 1 GPU"),
        ({"rate_req_s": 0.0}, "rate 0 req/s: give a finite rate above zero"),
        ({"rate_req_s": math.inf}, "rate inf req/s: give a finite rate"),
        ({"slo": Slo()}, "the SLO limits nothing"),
        ({"requests": 0}, "requests 0: a simulation needs at least 1"),
        ({"tp": ()}, "tp .*: give at least one value"),
        ({"tp": (3,), "gpus": 3}, "tp=3 does not divide"),
        ({"tp": (4,)}, r"gpus 2 of h100-sxm against tp \[4\]: the smallest replica asked for takes 4 GPUs"),
        ({"tp": (2,), "pp": (2,)}, r"gpus 2 of h100-sxm against tp \[2\] and pp \[2\]: .* takes 4 GPUs"),
        ({"pp": (100,)}, r"pp \[100\] against the 32 layers of llama-3.1-8b"),
        ({"gpus": 100_000}, "gpus 100,000: plans have up to 4,096"),
        ({"budget_tokens": (16, 2048)}, "budget_tokens 16 against engine.max_seqs 256: .* give 256 or more"),
        ({"gpu": "mi300x", "engine": EngineSettings(name="trtllm")}, "engine trtllm against gpu mi300x: it runs on"),
        ({"weights": ("fp4",)}, "weights='fp4'"),
        ({"workload": "chatt"}, "unknown workload 'chatt'"),
        ({"model": "llama-3.1-9b"}, "unknown model"),
        ({"gpu": "h100"}, "unknown GPU 'h100'"),
        ({"cap_watts": (60.0,)}, "draws .* W before it does anything"),
        ({"cap_watts": (300.0, 9000.0)}, r"cap_watts=9000: a h100-sxm draws 700 W at most; give more than \d+ W"),
        ({"cap_watts": ()}, "cap_watts .*: give at least one value"),
        ({"cap_watts": (300.0, 300.0)}, "give each value to try once"),
        ({"clock_mhz": (2500.0,)}, "can be locked up to its boost clock"),
        ({"policies": Policies(scale="target-load")}, "a plan says how many replicas it takes"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        plan(msgspec.structs.replace(SMALL, **changes), workers=1)


def test_a_closed_loop_has_no_rate_to_plan_for():
    made = workload("chat", arrival="closed:8", requests=100)
    with pytest.raises(BadInput, match="closed loop"):
        plan(SMALL, made=made, workers=1)


def test_an_unknown_policy_is_named_by_the_worker_that_met_it():
    question = msgspec.structs.replace(SMALL, policies=msgspec.structs.replace(SMALL.policies, route="round-robbin"))
    with pytest.raises(UnknownName, match="round-robin"):
        plan(question, workers=2)


def test_a_workload_made_by_the_caller_limits_the_requests():
    made = workload("chat", requests=150)
    found = plan(msgspec.structs.replace(SMALL, gpus=1), made=made, workers=1)
    assert found.requests == 150
