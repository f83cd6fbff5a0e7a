"""Laws of every workload, whatever it is made of: independent requests, sessions, shared prefixes, traces."""

import tracemalloc
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.errors import BadInput
from headway.specs import from_mapping, to_mapping
from headway.workload import (
    RequestClass,
    Sessions,
    SharedPrefix,
    WorkloadSpec,
    parse_arrival,
    parse_length,
    workload,
)
from headway.workload.batch import join
from headway.workload.spec import Wait
from workload_cases import BINNED, CLASSES, PAIRS, all_of, chain, same_bytes, seeds, specs

slow = settings(deadline=None, max_examples=60)


@slow
@given(specs(), seeds)
def test_requests_are_numbered_sorted_and_of_positive_length(spec: WorkloadSpec, seed: int) -> None:
    batch = all_of(workload(spec), seed)
    assert (batch.id == np.arange(spec.requests)).all()
    assert (np.diff(batch.arrival_s) >= 0).all() and batch.arrival_s[0] >= 0
    assert batch.prompt_tokens.min() >= 1 and batch.output_tokens.min() >= 1
    assert (batch.predicted_output_tokens > 0).all()
    dtypes = {name: getattr(batch, name).dtype for name in ("priority", "slo_class", "tenant")}
    assert set(dtypes.values()) == {np.dtype(np.int32)}


@slow
@given(specs(), seeds, st.integers(1, 500))
def test_the_size_of_a_batch_changes_no_byte(spec: WorkloadSpec, seed: int, chunk: int) -> None:
    batches = list(workload(spec).batches(seed, chunk=chunk))
    assert all(1 <= len(batch) <= chunk for batch in batches)
    assert same_bytes(join(batches), all_of(workload(spec), seed))


@slow
@given(specs(), seeds, st.integers(1, 400))
def test_fewer_requests_are_the_first_of_more(spec: WorkloadSpec, seed: int, fewer: int) -> None:
    fewer = min(fewer, spec.requests)
    assert same_bytes(
        all_of(workload(spec, requests=fewer), seed), all_of(workload(spec), seed).rows(0, fewer)
    )


@slow
@given(specs(), seeds)
def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(spec: WorkloadSpec, seed: int) -> None:
    again = from_mapping(WorkloadSpec, to_mapping(spec), "spec")
    assert again == spec
    assert same_bytes(all_of(workload(spec), seed), all_of(workload(again), seed))
    varied = msgspec.structs.replace(spec, prompt=parse_length("uniform:1:9999"), requests=20)
    other = all_of(workload(varied), seed + 1)
    assert not same_bytes(all_of(workload(varied), seed), other)


@slow
@given(specs().filter(lambda spec: spec.sessions is None), seeds, st.floats(0.5, 50))
def test_another_rate_keeps_everything_but_the_times(spec: WorkloadSpec, seed: int, rate: float) -> None:
    made = workload(msgspec.structs.replace(spec, arrival=parse_arrival("gamma:cv=2")))
    before, after = all_of(made, seed), all_of(made, seed, rate=rate)
    assert np.allclose(before.arrival_s / rate, after.arrival_s, rtol=1e-12)
    late_s = after.deadline_s - after.arrival_s
    assert np.allclose(late_s, before.deadline_s - before.arrival_s)
    moved = {"arrival_s": before.arrival_s, "deadline_s": before.deadline_s}
    assert same_bytes(msgspec.structs.replace(after, **moved), before)
    assert made.at_rate(rate).rate_req_s == rate


@slow
@given(specs().filter(lambda spec: spec.sessions is not None), seeds)
def test_another_rate_keeps_every_session(spec: WorkloadSpec, seed: int) -> None:
    """Which calls come first changes with the rate; what a session asks does not."""
    made = workload(msgspec.structs.replace(spec, arrival=parse_arrival("poisson:rate=5"), classes=()))
    prompts: list[dict[int, list[int]]] = []
    for rate in (5.0, 20.0):
        batch, found = all_of(made, seed, rate=rate), {}
        for session, prompt in zip(batch.session.tolist(), batch.prompt_tokens.tolist(), strict=True):
            if session % 2 == 0:  # under way before time 0: only the last calls are seen
                found.setdefault(session, []).append(prompt)
        prompts.append(found)
    for session in prompts[0].keys() & prompts[1].keys():
        both = min(len(prompts[0][session]), len(prompts[1][session]))
        assert prompts[0][session][:both] == prompts[1][session][:both]


@slow
@given(specs(), seeds)
def test_an_id_has_one_place_and_one_predecessor(spec: WorkloadSpec, seed: int) -> None:
    """So equal ids mean equal prefixes: the chains form a tree."""
    made = workload(spec)
    batch = all_of(made, seed)
    assert batch.has_chains == (made.block_tokens > 0) == bool(spec.sessions or spec.shared_prefix)
    before: dict[int, tuple[int, int]] = {}
    for request in range(len(batch) if batch.has_chains else 0):
        ids = chain(batch, request).tolist()
        prompt, output = int(batch.prompt_tokens[request]), int(batch.output_tokens[request])
        assert prompt // made.block_tokens <= len(ids) <= (prompt + output) // made.block_tokens
        for place, block in enumerate(ids):
            here = (place, ids[place - 1] if place else -1)
            assert before.setdefault(block, here) == here


@slow
@given(specs().filter(lambda spec: spec.sessions is not None), seeds)
def test_a_session_s_prompts_grow_and_hold_the_ones_before(spec: WorkloadSpec, seed: int) -> None:
    made = workload(spec, requests=300)
    batch, model = all_of(made, seed), spec.sessions
    assert model is not None
    common = None
    for session in np.unique(batch.session):
        calls = np.flatnonzero(batch.session == session)
        assert (np.diff(batch.prompt_tokens[calls]) >= 1).all()
        for first, second in pairwise(calls):
            kept = chain(batch, first)
            full = int(batch.prompt_tokens[first]) // model.block_tokens
            assert (chain(batch, second)[:full] == kept[:full]).all()
            if batch.prompt_tokens[second] - batch.prompt_tokens[first] >= batch.output_tokens[first]:
                assert (
                    len(kept)
                    == (batch.prompt_tokens[first] + batch.output_tokens[first]) // model.block_tokens
                )
                assert (chain(batch, second)[: len(kept)] == kept).all()
            else:
                assert len(kept) == full
        system = chain(batch, calls[0])[: model.system_tokens // model.block_tokens]
        assert len(system) == model.system_tokens // model.block_tokens
        common = system if common is None else common
        assert (system == common).all()


def test_sessions_share_nothing_but_the_system_prompt() -> None:
    batch = all_of(workload(_session_spec(), rate=2.0))
    last = {int(session): request for request, session in enumerate(batch.session)}
    own = [set(chain(batch, request)[10:].tolist()) for request in last.values()]
    assert sum(map(len, own)) == len(set().union(*own))


def test_an_open_session_workload_has_its_rate_from_the_start() -> None:
    """Without sessions under way at time 0 the first minute would have a fifth of the rate."""
    made = workload(_session_spec(), rate=20.0, requests=60_000)
    counts = np.bincount((all_of(made).arrival_s // 60).astype(int))[:-1]
    assert counts[:3].mean() == pytest.approx(1200, rel=0.12)
    assert counts.mean() == pytest.approx(1200, rel=0.05)


def test_a_closed_loop_of_sessions_keeps_as_many_under_way() -> None:
    made = workload(_session_spec(), arrival="closed:8", requests=800)
    batch = all_of(made)
    assert not batch.arrival_s.any()
    for start in range(0, 792, 8):
        assert len(np.unique(batch.session[start : start + 8])) == 8


def test_means_are_known_beforehand() -> None:
    made = workload(_session_spec(), rate=5.0, requests=50_000)
    batch = all_of(made)
    assert batch.prompt_tokens.mean() == pytest.approx(made.mean_prompt_tokens, rel=0.05)
    assert batch.output_tokens.mean() == pytest.approx(made.mean_output_tokens, rel=0.05)
    plain = workload(WorkloadSpec(prompt=parse_length("uniform:1:600"), output=BINNED, requests=50_000))
    batch = all_of(plain)
    assert batch.prompt_tokens.mean() == pytest.approx(plain.mean_prompt_tokens, rel=0.02)
    assert batch.output_tokens.mean() == pytest.approx(plain.mean_output_tokens, rel=0.03)


def test_a_draw_in_one_place_changes_nothing_elsewhere() -> None:
    spec = WorkloadSpec(prompt=parse_length("exp:500"), output=parse_length("exp:100"), requests=500)
    base = all_of(workload(spec))
    other = all_of(
        workload(msgspec.structs.replace(spec, output=BINNED, classes=CLASSES, prediction_sigma=1.0))
    )
    assert (base.arrival_s == other.arrival_s).all()
    assert (base.prompt_tokens == other.prompt_tokens).all()
    bursty = all_of(workload(spec, arrival="gamma:cv=3"))
    assert (base.output_tokens == bursty.output_tokens).all()


def test_classes_come_by_share_with_their_properties() -> None:
    classes = (*CLASSES, RequestClass(name="urgent", share=1, priority=0, deadline_s=2.5))
    spec = WorkloadSpec(prompt=parse_length("9"), output=parse_length("9"), requests=20_000, classes=classes)
    batch = all_of(workload(spec))
    assert np.bincount(batch.slo_class) / 20_000 == pytest.approx([0.6, 0.2, 0.2], abs=0.02)
    assert (batch.priority == np.array([1, 2, 0])[batch.slo_class]).all()
    assert (batch.tenant == np.array([4, 9, 0])[batch.slo_class]).all()
    urgent = batch.slo_class == 2
    assert (batch.deadline_s[urgent] == batch.arrival_s[urgent] + 2.5).all()
    assert np.isinf(batch.deadline_s[~urgent]).all()


def test_a_session_keeps_its_class() -> None:
    spec = msgspec.structs.replace(_session_spec(), classes=CLASSES)
    batch = all_of(workload(spec, rate=2.0))
    for session in np.unique(batch.session):
        assert len(np.unique(batch.slo_class[batch.session == session])) == 1
    assert len(np.unique(batch.slo_class)) == 2


def test_prediction_is_perfect_or_off_by_a_factor() -> None:
    spec = WorkloadSpec(prompt=parse_length("9"), output=parse_length("exp:100"), requests=20_000)
    batch = all_of(workload(spec))
    assert (batch.predicted_output_tokens == batch.output_tokens).all()
    noisy = all_of(workload(msgspec.structs.replace(spec, prediction_sigma=0.5)))
    off = np.log(noisy.predicted_output_tokens / noisy.output_tokens)
    assert (off.mean(), off.std()) == (pytest.approx(0, abs=0.02), pytest.approx(0.5, abs=0.02))


def test_groups_share_by_popularity() -> None:
    prefix = SharedPrefix(tokens=parse_length("128"), groups=3, skew=1.0, block_tokens=64)
    spec = WorkloadSpec(
        prompt=parse_length("300"), output=parse_length("9"), requests=20_000, shared_prefix=prefix
    )
    batch = all_of(workload(spec))
    first = np.array([chain(batch, request)[0] for request in range(len(batch))])
    shares = np.sort(np.unique(first, return_counts=True)[1])[::-1] / len(batch)
    assert shares == pytest.approx(np.array([6, 3, 2]) / 11, abs=0.02)


@pytest.mark.parametrize("extra", [{}, {"shared_prefix": SharedPrefix(tokens=parse_length("64"))}])
def test_memory_does_not_grow_with_the_requests(extra: dict[str, SharedPrefix]) -> None:
    peaks = []
    for requests in (20_000, 200_000):
        spec = WorkloadSpec(prompt=parse_length("exp:512"), output=BINNED, requests=requests, **extra)
        tracemalloc.start()
        for _ in workload(spec).batches(0, chunk=4096):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"requests": 0}, "requests 0"),
        ({"prediction_sigma": float("nan")}, "prediction_sigma nan"),
        ({"output": None}, "prompt and output"),
        ({"trace": "x.csv"}, "trace alone"),
        ({"prompt": None, "output": None}, "trace alone"),
        (
            {"arrival": parse_arrival("closed:2"), "classes": (RequestClass(name="a", deadline_s=1),)},
            "closed loop",
        ),
        ({"sessions": PAIRS, "arrival": parse_arrival("replay:x")}, "modelled"),
        ({"sessions": PAIRS, "shared_prefix": SharedPrefix(tokens=parse_length("64"))}, "at most one"),
    ],
)
def test_impossible_specs_are_refused(wrong: dict[str, object], said: str) -> None:
    fine = {"prompt": parse_length("9"), "output": parse_length("9")}
    with pytest.raises(BadInput, match=said):
        WorkloadSpec(**(fine | wrong))


@pytest.mark.parametrize("block_tokens", [0, -64, 24])
def test_blocks_are_made_of_engine_blocks(block_tokens: int) -> None:
    with pytest.raises(BadInput, match="multiple of 16"):
        SharedPrefix(tokens=parse_length("9"), block_tokens=block_tokens)


def test_a_chain_too_long_to_name_is_refused() -> None:
    prefix = SharedPrefix(tokens=parse_length("64"), block_tokens=16)
    spec = WorkloadSpec(
        prompt=parse_length("20M"), output=parse_length("9"), shared_prefix=prefix, requests=1
    )
    with pytest.raises(BadInput, match="use larger blocks"):
        all_of(workload(spec))


@pytest.mark.parametrize(("seed", "chunk"), [(-1, 10), (0, 0)])
def test_impossible_seeds_and_chunks_are_refused(seed: int, chunk: int) -> None:
    with pytest.raises(BadInput, match="expected a chunk"):
        workload("chat").batches(seed, chunk=chunk)


def _session_spec() -> WorkloadSpec:
    return WorkloadSpec(
        prompt=parse_length("uniform:700:900"),
        output=parse_length("exp:60"),
        requests=3000,
        sessions=Sessions(
            calls=parse_length("uniform:10:30"),
            growth=parse_length("exp:150"),
            gap=Wait(seconds=(1.0, 5.0, 30.0)),
            service=Wait(seconds=(1.0, 3.0)),
            system_tokens=640,
        ),
    )


@pytest.mark.parametrize("seed", [0, 7])
def test_folded_sessions_are_the_same_requests_with_the_same_chains(seed):
    made = workload("agent", requests=400, rate=3.0)
    apart, folded = join(list(made.batches(seed))), list(made.folded(seed))
    at = shared = 0
    for batch in folded:
        assert batch.hash_counts is not None
        for name in ("arrival_s", "prompt_tokens", "output_tokens", "session"):
            assert np.array_equal(getattr(batch, name), getattr(apart, name)[at : at + len(batch)])
        for i in range(len(batch)):
            start = batch.hash_offsets[i]
            assert np.array_equal(batch.hashes[start : start + batch.hash_counts[i]], chain(apart, at + i))
        at, shared = at + len(batch), shared + len(batch.hashes)
    assert at == len(apart) and shared < len(apart.hashes) / 2
