"""The emulator's virtual times are the simulator's, and whoever leaves early leaves nothing behind."""

from random import Random

import msgspec
import numpy as np
import pytest

from headway.cost import EngineSettings, Replica, compile_replica
from headway.emulate import PacedReplica, prompts
from headway.engine.live import make_sequence, told
from headway.policies import policy
from headway.sim import Deployment, Policies, Pool, simulate
from headway.workload import Sessions, SharedPrefix, WorkloadSpec, parse_length, workload
from headway.workload.arrivals import Poisson
from headway.workload.spec import RequestClass, Wait
from tests.core.drive import plain_table, run_core
from tests.emulate.live_cases import facts, live_case, paced, run, sequences

SEEDS = range(30)


@pytest.mark.parametrize("seed", SEEDS)
def test_times_equal_the_simulators_to_the_bit(seed):
    case = live_case(seed)
    columns, engine = run_core(case)
    replica, seqs = paced(case), sequences(case)
    times = run(replica, seqs)
    served = [seq for seq in seqs if replica.fits(seq)]
    assert [bool(status == 0) for status in columns["status"]] == [replica.fits(seq) for seq in seqs]
    for seq in served:
        so_far, i = told(seq), seq.id
        assert so_far.admitted_s == columns["admitted_s"][i]
        assert so_far.first_s == columns["first_token_s"][i] == times[i][0]
        assert so_far.last_s == columns["last_token_s"][i] == times[i][-1]
        assert so_far.cached_tokens == columns["cached_tokens"][i]
        assert so_far.preemptions == columns["preemptions"][i]
        assert len(times[i]) == case.rows[i].output
        assert all(a < b for a, b in zip(times[i], times[i][1:], strict=False)) or case.table.linear_s[1] == 0
    assert replica.books(1e9)["preemptions"] == engine.preemptions
    assert replica.books(1e9)["kv_used"] == 0
    assert replica.next_s == float("inf")


def test_a_case_preempts_and_one_finds_cached_tokens():
    """Otherwise the law above would say little."""
    runs = [(paced(case), sequences(case)) for case in map(live_case, range(40))]
    for replica, seqs in runs:
        run(replica, seqs)
    assert sum(replica.books(1e9)["preemptions"] for replica, _ in runs) > 10
    assert sum(told(seq).cached_tokens for _, seqs in runs for seq in seqs) > 100


def test_every_token_comes_when_the_law_says():
    """Two answers, 10 ms a step and 1 ms a decode; the second prompt joins in the step after its arrival."""
    table = plain_table(linear_s=0.010, decode_s=0.001)
    replica = PacedReplica(table, EngineSettings(max_batched_tokens=256, max_seqs=16))
    seqs = [make_sequence(0, 0.0, (32, 4)), make_sequence(1, 0.012, (32, 2))]
    times = run(replica, seqs)
    assert times[0] == pytest.approx([0.010, 0.021, 0.032, 0.043], abs=1e-12)
    assert times[1] == pytest.approx([0.032, 0.043], abs=1e-12)


def test_simulate_itself_gives_the_same_times():
    """The whole way: cost model, intake, shared prefixes, queues, and pages that run out."""
    spec = WorkloadSpec(
        prompt=parse_length("uniform:200:400"),
        output=parse_length("uniform:50:150"),
        arrival=Poisson(rate_req_s=60.0),
        requests=60,
        shared_prefix=SharedPrefix(tokens=parse_length(160), groups=3, block_tokens=16),
    )
    load, replica = workload(spec), Replica(model="llama-3.1-8b", gpu="h100-sxm")
    table = msgspec.structs.replace(compile_replica(replica), kv_blocks=300)
    result = simulate(Deployment(pools=(Pool(replica=replica),)), load, seed=3, tables=(table,))
    live, seqs = PacedReplica(table, replica.engine), []
    for batch in load.batches(3):
        for i in range(len(batch)):
            units = batch.hashes[batch.hash_offsets[i] : batch.hash_offsets[i + 1]]
            tokens = int(batch.prompt_tokens[i]), int(batch.output_tokens[i])
            seqs.append(make_sequence(int(batch.id[i]), float(batch.arrival_s[i]), tokens, 0, units))
    times = run(live, seqs, check=False)
    rows = result.records
    assert live.intake_s > 0
    assert result.kv.preemptions == live.books(1e9)["preemptions"] > 0
    assert result.kv.prefix_hit_rate > 0
    assert result.requests.finished == len(seqs) == 60
    for i, seq in enumerate(seqs):
        assert times[seq.id][0] == rows["first_token_s"][i]
        assert times[seq.id][-1] == rows["last_token_s"][i]
        assert told(seq).cached_tokens == rows["cached_tokens"][i]


def test_what_a_simulation_keeps_the_emulator_keeps_when_it_is_told():
    """Sessions beside prompts that come once: each request is told what the policy decides about it."""
    turns = Sessions(
        calls=parse_length("uniform:3:6"), growth=parse_length(400), gap=Wait(seconds=(2.0, 5.0)), block_tokens=16
    )
    spoken = WorkloadSpec(
        prompt=parse_length(800), output=parse_length(60), arrival=Poisson(rate_req_s=6.0), sessions=turns
    )
    once = WorkloadSpec(
        prompt=parse_length(1600), output=parse_length(20), arrival=Poisson(rate_req_s=6.0),
        shared_prefix=SharedPrefix(tokens=parse_length(1584), groups=1 << 20, block_tokens=16),
    )  # fmt: skip
    classes = RequestClass(name="spoken", workload=spoken), RequestClass(name="once", workload=once)
    load = workload(WorkloadSpec(name="mix", requests=400, classes=classes))
    replica = Replica(model="llama-3.1-8b", gpu="h100-sxm")
    table = msgspec.structs.replace(compile_replica(replica), kv_blocks=4500)

    def simulated(retain):
        deployment = Deployment(pools=(Pool(replica=replica),), policies=Policies(retain=retain))
        return simulate(deployment, load, seed=5, tables=(table,)).records

    def emulated(keeps):
        live, seqs = PacedReplica(table, replica.engine), []
        for batch in load.batches(5):
            for i in range(len(batch)):
                units = batch.hashes[batch.hash_offsets[i] : batch.hash_offsets[i + 1]]
                tokens = int(batch.prompt_tokens[i]), int(batch.output_tokens[i])
                arrival_s, keep_s = float(batch.arrival_s[i]), keeps(int(batch.session[i]))
                seqs.append(make_sequence(int(batch.id[i]), arrival_s, tokens, 0, units, keep_s))
        times = run(live, seqs, check=False)
        return [times[seq.id][-1] for seq in seqs], [told(seq).cached_tokens for seq in seqs]

    default = policy("retain", "keep-sessions").keep_s
    kept, lru = simulated("keep-sessions"), simulated("lru")
    last_s, cached = emulated(lambda session: default if session >= 0 else 0.0)
    assert last_s == kept["last_token_s"].tolist()
    assert cached == kept["cached_tokens"].tolist()
    assert sum(cached) > 1.5 * lru["cached_tokens"].sum(), "otherwise this would say little"
    assert emulated(lambda session: 0.0)[1] == lru["cached_tokens"].tolist()


def cut_at(seed):
    """A case, and times at which some of its requests are taken back: before, in the midst of, and after their run."""
    case, rng = live_case(seed), Random(seed)
    ends = {seq.id: told(seq) for seq in finished(case)}
    chosen = [number for number in sorted(ends) if rng.random() < 0.4]
    return case, {
        number: rng.uniform(case.rows[number].arrival_s, ends[number].last_s * 1.05 + 1e-3) for number in chosen
    }


def finished(case):
    replica, seqs = paced(case), sequences(case)
    run(replica, seqs)
    return [seq for seq in seqs if replica.fits(seq)]


@pytest.mark.parametrize("seed", SEEDS)
def test_requests_taken_back_leave_empty_books(seed):
    case, aborts = cut_at(seed)
    replica, seqs = paced(case), sequences(case)
    times = run(replica, seqs, aborts)
    books = replica.books(1e9)
    assert (books["running"], books["waiting"], books["kv_used"]) == (0, 0, 0)
    assert sum(engine.waiting_tokens for engine in replica.engines) == 0
    assert replica.next_s == float("inf")
    for seq in seqs:
        if replica.fits(seq) and seq.id not in aborts:
            assert len(times[seq.id]) == case.rows[seq.id].output


@pytest.mark.parametrize("seed", SEEDS)
def test_taking_a_running_request_back_is_giving_it_a_shorter_answer(seed):
    """The oracle: everything else happens as if its output had been that short from the start."""
    case, aborts = cut_at(seed)
    if case.order == "sjf":
        case.order = "fcfs"  # the shorter answer would have been foreseen
    started = {seq.id: told(seq) for seq in finished(case)}
    for number, when in sorted(aborts.items(), key=lambda item: item[1]):
        if not when > started[number].first_s:
            continue
        one, seqs = paced(case), sequences(case)
        times = run(one, seqs, {number: when})
        if told(seqs[number]).preemptions or not told(seqs[number]).generated:
            continue  # it may have waited when it left
        outputs = [row.output for row in case.rows]
        outputs[number] = len(times[number])
        other, shorter = paced(case), sequences(case, outputs)
        if not other.fits(shorter[number]):
            continue
        again = run(other, shorter)
        assert again == times
        # NaN is not equal to itself: what never ran is compared as text
        assert [str(fact) for fact in facts(shorter)] == [str(fact) for fact in facts(seqs)]
        assert other.books(1e9) == one.books(1e9)
        return


def drain(replica, until_s):
    return [now for now, _, _ in replica.advance(until_s)]


def test_who_leaves_in_the_step_of_their_prompt_ends_with_it():
    replica = PacedReplica(plain_table(linear_s=0.010), EngineSettings(max_batched_tokens=256, max_seqs=16))
    seq = make_sequence(0, 0.0, (32, 50))
    replica.send(seq, 0.0)
    drain(replica, 0.005)
    replica.abort(seq, 0.005)
    assert drain(replica, 10.0) == [0.010]
    assert told(seq).generated == 1
    assert replica.books(10.0)["kv_used"] == 0


def test_who_leaves_while_another_prompt_is_computed_alone_ends_with_that_step():
    table = msgspec.structs.replace(plain_table(linear_s=0.010), prefill_alone=True)
    replica = PacedReplica(table, EngineSettings(max_batched_tokens=64, max_seqs=16))
    first, second = make_sequence(0, 0.0, (32, 50)), make_sequence(1, 0.005, (128, 1))
    replica.send(first, 0.0)
    replica.send(second, 0.005)
    drain(replica, 0.015)  # the first prompt is done, and two steps for the second have begun
    replica.abort(first, 0.015)
    drain(replica, 0.021)
    assert told(first).generated == 1
    assert replica.books(0.021)["running"] == 1
    drain(replica, 10.0)
    assert replica.books(10.0)["kv_used"] == 0


def test_a_request_can_leave_before_it_reaches_the_engine():
    table = plain_table(linear_s=0.010)
    replica = PacedReplica(table, EngineSettings(max_batched_tokens=256, max_seqs=16))
    seq = make_sequence(0, 0.0, (32, 4))
    replica.send(seq, 5.0)
    replica.abort(seq, 1.0)
    assert replica.next_s == float("inf")
    assert list(replica.advance(float("inf"))) == []


def test_prompt_units_are_shared_as_far_as_the_tokens_are_and_by_one_salt():
    first, second = prompts.of_ids(range(64)), prompts.of_ids([*range(40), *range(100, 124)])
    a, b = prompts.units(first, 16, b"m"), prompts.units(second, 16, b"m")
    assert len(a) == 4
    assert list(a[:2]) == list(b[:2])
    assert not set(a[2:]) & set(b[2:])
    assert not set(a) & set(prompts.units(first, 16, b"other"))
    assert not np.any(a < 0)


def test_an_answer_sent_back_is_the_same_tokens():
    asked = [("user", "What is a page table, and why?")]
    prompt = prompts.of_chat(asked)
    answered = prompts.words(7, 21)
    again = prompts.of_chat([*asked, ("assistant", answered), ("user", "Go on.")])
    assert again.startswith(prompt + prompts.filler(7, 21))
    assert prompts.count(prompts.of_text(answered)) == 21


def test_a_token_is_four_characters_or_one_id():
    assert [prompts.count(prompts.of_text(text)) for text in ("", "a", "abcd", "abcde", "äöü€😀")] == [0, 1, 1, 2, 2]
    assert prompts.count(prompts.of_ids([5, 6, 7])) == 3
    assert prompts.of_text("\ud800") != prompts.of_text("")
