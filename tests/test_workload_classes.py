"""Workloads whose classes have workloads of their own: what comes, when, and that classes leave each other alone."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from headway.errors import BadInput
from headway.specs import from_mapping, read_yaml
from headway.workload import RequestClass, WorkloadSpec, workload, write
from headway.workload.batch import COLUMNS, join

CHAT = RequestClass(name="chat", workload="chat", rate_req_s=6, model="a", tenant=3)
BATCH = RequestClass(name="batch", workload="summarize", rate_req_s=2, priority=1, deadline_s=60.0)
AGENT = RequestClass(name="agent", workload="agent", rate_req_s=1)


def mixed(*classes: RequestClass, **fields: object) -> WorkloadSpec:
    return WorkloadSpec(name="mixed", classes=classes, **fields)


def drawn(spec: WorkloadSpec, requests: int, seed: int = 3, chunk: int = 65_536):
    return join(list(workload(spec, requests=requests).batches(seed, chunk=chunk)))


def same(one, other) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in COLUMNS)


def test_classes_come_side_by_side_each_with_its_rate_its_lengths_and_its_labels():
    made, spec = drawn(mixed(CHAT, BATCH), 8000), mixed(CHAT, BATCH)
    assert (np.diff(made.arrival_s) >= 0).all() and (made.id == np.arange(8000)).all()
    counts = np.bincount(made.slo_class)
    assert counts[0] / made.arrival_s[-1] == pytest.approx(6, rel=0.05)
    assert counts[1] / made.arrival_s[-1] == pytest.approx(2, rel=0.1)
    rows = made.slo_class == 1
    assert set(made.priority[rows]) == {1} and set(made.priority[~rows]) == {0} and set(made.tenant[~rows]) == {3}
    assert np.allclose(made.deadline_s[rows] - made.arrival_s[rows], 60) and np.isinf(made.deadline_s[~rows]).all()
    whole = workload(spec)
    assert (whole.rate_req_s, whole.models) == (8.0, ("a", ""))
    assert made.prompt_tokens.mean() == pytest.approx(whole.mean_prompt_tokens, rel=0.05)
    assert made.output_tokens.mean() == pytest.approx(whole.mean_output_tokens, rel=0.05)


def test_a_class_has_the_same_requests_whatever_comes_beside_it():
    alone, beside = drawn(mixed(CHAT), 500), drawn(mixed(AGENT, BATCH, CHAT), 2000)
    mine = beside.take(np.flatnonzero(beside.slo_class == 2))
    n = min(len(mine), 500)
    for name in ("arrival_s", "prompt_tokens", "output_tokens", "deadline_s"):
        assert np.array_equal(getattr(mine, name)[:n], getattr(alone, name)[:n])


@pytest.mark.parametrize("classes", [(CHAT, BATCH), (CHAT, AGENT)])
def test_they_are_the_same_however_they_are_cut_and_scale_by_one_factor(classes):
    spec = mixed(*classes)
    whole = drawn(spec, 900)
    for chunk in (1, 77, 900):
        assert same(whole, drawn(spec, 900, chunk=chunk))
    if AGENT not in classes:  # of sessions the starts are scaled, not the gaps inside
        faster = join(list(workload(spec, requests=900).at_rate(16).batches(3)))
        assert np.allclose(2 * faster.arrival_s, whole.arrival_s)
        assert np.array_equal(faster.prompt_tokens, whole.prompt_tokens)
    assert not np.array_equal(whole.prompt_tokens, drawn(spec, 900, seed=4).prompt_tokens)


def test_no_class_has_sessions_or_blocks_of_another():
    other = msgspec.structs.replace(AGENT, name="other")
    made = drawn(mixed(AGENT, other, CHAT), 1200)
    of = [made.take(np.flatnonzero(made.slo_class == i)) for i in range(3)]
    assert not set(of[0].session) & set(of[1].session) and set(of[2].session) == {-1}
    assert set(of[0].hashes).isdisjoint(of[1].hashes) and len(of[2].hashes) == 0
    alone = join(list(workload("agent", requests=100).batches(0)))
    assert (np.diff(of[0].hash_offsets)[:50] > 0).all() and len(alone.hashes)
    first = {int(batch.hashes[start]) for batch in of[:2] for start in batch.hash_offsets[:-1]}
    assert len(first) == 2  # each class has one system prompt


def test_a_trace_among_them_ends_the_workload(tmp_path):
    write(workload("chat", requests=50, rate=5), tmp_path / "t.jsonl", seed=1)
    spec = mixed(RequestClass(name="recorded", workload=str(tmp_path / "t.jsonl")), BATCH)
    made = workload(spec)
    total = made.rate_req_s / (made.rate_req_s - 2)
    assert made.ends and made.requests == int(50 * total) and not made.recorded
    rows = join(list(made.batches(0)))
    assert len(rows) <= made.requests and (np.bincount(rows.slo_class) > 0).all()
    with pytest.raises(BadInput, match="ask for no more"):
        workload(spec, requests=500)


def test_a_written_mixture_is_read_again(tmp_path):
    made = workload(mixed(CHAT, BATCH), requests=300)
    write(made, tmp_path / "m.jsonl", seed=2)
    again = join(list(workload(str(tmp_path / "m.jsonl")).batches(0)))
    assert again.slo_class.tolist() == join(list(made.batches(2))).slo_class.tolist()


def test_the_example_is_such_a_workload():
    file = Path(__file__).parents[1] / "examples" / "office.yaml"
    made = workload(str(file))
    assert made.spec == from_mapping(WorkloadSpec, read_yaml(file), "office")
    assert [each.name for each in made.spec.classes] == ["chat", "batch", "code"] and made.requests == 4000


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: mixed(CHAT, RequestClass(name="rest")), "class rest has no workload"),
        (lambda: mixed(CHAT, CHAT), "give each a name of its own"),
        (lambda: mixed(CHAT, prediction_sigma=0.5), "prediction_sigma beside classes"),
        (lambda: RequestClass(name="x", rate_req_s=2), "no workload"),
        (lambda: RequestClass(name="x", workload="chat", share=2), "share and a workload"),
        (lambda: RequestClass(name="x", workload="chat", rate_req_s=0), "positive"),
        (lambda: workload(mixed(CHAT), arrival="poisson"), "each has a workload with its own"),
        (lambda: workload(mixed(RequestClass(name="x", workload=mixed(CHAT)))), "classes of its own"),
        (lambda: workload(mixed(CHAT)).at_rate(-1), "positive"),
    ],
)
def test_what_does_not_go_together_is_refused(make, said):
    with pytest.raises(BadInput, match=said):
        make()


def test_blocks_of_two_sizes_are_refused():
    prefix = {"prompt": {"kind": "constant", "tokens": 512}, "output": {"kind": "constant", "tokens": 9}}
    prefix |= {"shared_prefix": {"tokens": {"kind": "constant", "tokens": 64}, "block_tokens": 32}}
    other = RequestClass(name="shared", workload=from_mapping(WorkloadSpec, prefix, "prefix"), rate_req_s=1)
    with pytest.raises(BadInput, match=r"class agent .* blocks of 64 tokens, class shared in blocks of 32"):
        workload(mixed(AGENT, other))
