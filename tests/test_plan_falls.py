"""What longer runs make of what short ones found, and what a round of runs takes along."""

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_cases import SLOW
from headway.metrics import Slo
from headway.plan import Question, plan
from headway.plan.contest import Contest
from headway.plan.evaluate import Evaluator
from headway.plan.falls import Falls
from headway.plan.run import Planning
from headway.workload import WorkloadSpec, parse_length

pytestmark = pytest.mark.usefixtures("without_curves")

FACTORS = st.lists(st.tuples(st.floats(0.1, 1e3), st.floats(0.2, 5.0)), min_size=1, max_size=40)
ASKED = Question(
    model="llama-3.1-8b", gpu="l40s", gpus=6, workload="code", rate_req_s=4.0, requests=3000,
    slo=Slo(ttft_s=1.0, tpot_s=0.08), layouts=("mixed",), kv=("bf16",),
)  # fmt: skip


@given(FACTORS, st.floats(0.1, 1e3))
def test_what_is_usual_lies_between_the_least_and_the_most(known, goodput_req_s):
    falls = Falls(known)
    least, usual, most = (f(goodput_req_s) for f in (falls.at_least, falls.usually, falls.at_most))
    factors = [factor for _, factor in known]
    assert least <= usual <= most
    assert min(factors) <= usual <= max(factors)


@given(FACTORS, st.floats(0.1, 1e3), st.floats(0.2, 5.0))
def test_what_changed_alike_for_all_changes_so_for_the_next(known, goodput_req_s, factor):
    falls = Falls((goodput, factor) for goodput, _ in known)
    assert falls.usually(goodput_req_s) == factor
    if len(known) > 2:
        assert falls.at_least(goodput_req_s) == falls.at_most(goodput_req_s) == factor


def test_without_any_others_nothing_changes():
    assert Falls([]).usually(3.0) == Falls([]).at_most(3.0) == 1.0


def test_one_or_two_do_not_tell_that_a_figure_changes_at_all():
    for falls in (Falls([(3.0, 0.7)]), Falls([(3.0, 0.7), (4.0, 0.7)])):
        assert falls.at_most(3.5) >= 1.0
        assert falls.usually(3.5) == 0.7


def test_only_the_nearest_in_goodput_tell():
    falls = Falls([(1.0 + i / 100, 0.5) for i in range(9)] + [(100.0 + i, 0.9) for i in range(9)])
    assert falls.usually(1.0) == 0.5
    assert falls.usually(200.0) == 0.9


def contest(**changes):
    return Planning(msgspec.structs.replace(ASKED, **changes))


def played(begun, *, spoiled=1.0):
    """The contest as it ends, with the jobs of each round; energy of the shortest runs times `spoiled`."""
    evaluator, rounds, short = Evaluator(*begun.context), [], begun.contest.rungs[0][0]
    while jobs := begun.contest.jobs():
        rounds.append(jobs)
        for job in jobs:
            outcome = evaluator(job)
            asked = outcome.asked
            if asked is not None and asked.joules_per_output_token and job.requests == short:
                asked = asked._replace(joules_per_output_token=spoiled * asked.joules_per_output_token)
            begun.contest.note(job, outcome._replace(asked=asked), None)
    return rounds


def test_each_gets_the_next_longer_runs_and_none_twice():
    begun = contest()
    lengths, rounds = [length for length, _ in begun.contest.rungs], played(begun)
    asked = [(job.place, job.seeds or job.requests) for jobs in rounds for job in jobs]
    assert len(asked) == len(set(asked))
    assert all(len({job.place for job in jobs}) == len(jobs) for jobs in rounds)
    known = {}
    for jobs in rounds:
        for job in jobs:
            before = known.get(job.place)
            if not job.seeds:
                assert lengths.index(job.requests) == (0 if before is None else lengths.index(before) + 1)
                known[job.place] = job.requests


def test_chance_that_all_short_runs_share_costs_no_longer_ones():
    fair, half = contest(objective="energy"), contest(objective="energy")
    runs = [sum(map(len, played(fair))), sum(map(len, played(half, spoiled=0.5)))]
    assert runs[1] <= 1.2 * runs[0]
    best = [each.contest.ranked()[0].deployment.name for each in (fair, half)]
    assert best[0] == best[1]


def test_ranks_by_what_longer_runs_usually_show():
    begun = contest(objective="energy", gpus=8)
    played(begun, spoiled=0.5)
    ranked = [entry for entry in begun.contest.ranked() if entry.meets]
    assert ranked[0].outcome.seeds
    short = [entry for entry in ranked if entry.outcome.requests == begun.contest.rungs[0][0]]
    assert short
    assert all(entry.changes["energy"] > 1.5 for entry in short)
    assert min(entry.joules for entry in short) < ranked[0].joules < min(entry.measure("energy") for entry in short)


def test_a_reason_says_what_longer_runs_usually_change():
    found = plan(msgspec.structs.replace(ASKED, objective="energy"), workers=1)
    said = [each.reason for each in found.ranked if each.meets and not each.confirmed]
    assert any(re.search(r"; by [\d,]+ requests of one seed: more usually show \d+% \w+ energy", each) for each in said)
    assert not any("usually" in each.reason for each in found.ranked if each.confirmed)


def test_mixed_and_split_fleets_are_judged_by_their_own():
    """500 requests overrate mixed fleets by a third here, split ones by a tenth: as if mixed, none would be tried."""
    asked = Question(
        model="llama-3.1-8b", gpu="h100-sxm", gpus=4, workload="chat", rate_req_s=20.0, requests=1000,
        slo=Slo(ttft_s=0.5, tpot_s=0.03), objective="goodput", weights=("fp8",),
    )  # fmt: skip
    found = plan(asked, workers=1)
    whole = plan(msgspec.structs.replace(asked, exhaustive=True), workers=1)
    assert found.best.name == whole.best.name
    assert found.front == whole.front
    assert any("P tp" in name for name in found.front)


def test_a_round_looks_ahead_without_changing_what_is_known():
    begun = contest()
    evaluator = Evaluator(*begun.context)
    while jobs := begun.contest.jobs():
        known = {length: dict(entries) for length, entries in begun.contest.known.items()}
        again = Contest.jobs(begun.contest)
        assert again == jobs
        assert begun.contest.known == known
        for job in jobs:
            begun.contest.note(job, evaluator(job), None)
    assert begun.contest.planned == 2 * begun.contest.done  # as each round was asked for twice


def test_who_short_runs_underrate_may_meet_the_slo_all_the_same(tmp_path):
    """Of classes few requests are of one, of which a short run may happen to miss: others tell by how much."""
    path = tmp_path / "two.yaml"
    path.write_text(
        "name: two\nclasses:\n  - {name: chat, workload: chat, rate_req_s: 12}\n"
        "  - {name: batch, workload: summarize, rate_req_s: 2, priority: 1}\n"
    )
    asked = Question(
        model="llama-3.1-8b", gpu="h100-sxm", gpus=2, workload=f"{path}", layouts=("mixed",),
        weights=("fp8",), kv=("fp8",),
        slos={"chat": Slo(ttft_s=0.3, tpot_s=0.025), "batch": Slo(e2e_s=20.0, attainment=0.95)},
    )  # fmt: skip
    found = plan(asked, workers=1)
    whole = plan(msgspec.structs.replace(asked, exhaustive=True), workers=1)
    assert (found.best.name, found.best.usd_per_hour) == (whole.best.name, whole.best.usd_per_hour)


@pytest.mark.sweep
def test_who_stood_for_others_on_one_seed_may_not_on_further_ones():
    """The front's last member was matched by one of two thirds of its price, which another had stood for."""
    asked = Question(
        model="opt-13b", gpu=SLOW, gpus=12, kv=("bf16",), weights=("bf16",), rate_req_s=40.0, requests=2000,
        workload=WorkloadSpec(name="even", prompt=parse_length("512"), output=parse_length("64")),
        slo=Slo(ttft_s=0.3, tpot_s=0.06),
    )  # fmt: skip
    found = plan(asked)
    by_name = {each.name: each for each in found.ranked}
    for name in found.front:
        mine = by_name[name]
        for other in found.ranked:
            better = (
                other.usd_per_hour < 0.9 * mine.usd_per_hour
                and other.joules_per_output_token < mine.joules_per_output_token
                and other.goodput_req_s_per_gpu > mine.goodput_req_s_per_gpu
            )
            assert not (better and other.meets and other.requests == found.requests), (name, other.name)
