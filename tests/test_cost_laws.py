"""Laws of the cost model: bounds of physics, monotonicity, energy between idle and TDP."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headway.cost import EngineSettings, Replica, StepTable, chunk_area, compile_replica
from headway.cost.efficiency import efficiency
from headway.cost.engines import HostTerms, engine_facts, engine_names
from headway.cost.physics import all_reduce, experts, gemm, power_sum
from headway.errors import BadInput, DoesNotFit
from headway.hardware import gpu, gpu_keys
from headway.model import model

ENGINE = EngineSettings(max_batched_tokens=4096, max_seqs=128)
REPLICAS = [
    Replica(model="llama-3.1-8b", gpu="h100-sxm", engine=ENGINE),
    Replica(model="llama-3.1-8b", gpu="h100-sxm", weights="fp8", kv="fp8", engine=ENGINE),
    Replica(model="llama-3.1-70b", gpu="h100-sxm", tp=4, engine=ENGINE),
    Replica(model="llama-3.1-70b", gpu="h100-sxm", tp=2, pp=4, engine=ENGINE),
    Replica(model="llama-3.1-8b", gpu="l40s", tp=2, engine=ENGINE),
    Replica(model="qwen3-30b-a3b", gpu="a100-80gb-sxm", tp=2, engine=ENGINE),
    Replica(model="gpt-oss-120b", gpu="b200", weights="mxfp4", engine=ENGINE),
    Replica(model="deepseek-v3", gpu="h200", tp=8, weights="fp8", engine=ENGINE),
    Replica(model="gemma-3-27b", gpu="mi300x", engine=ENGINE),
]
TABLES = [compile_replica(replica) for replica in REPLICAS]
PIECES = ("linear", "seq", "decode", "decode_ctx", "decode_window")
SCALARS = ("prefill_base", "prefill_area", "prefill_window_area")

tables = st.sampled_from(TABLES)
contexts = st.integers(1, 32768)


@st.composite
def steps(draw: st.DrawFn) -> tuple[StepTable, int, int, int, list[tuple[int, int]]]:
    """A table and a step it can run, as the arguments of `step_seconds`."""
    table = draw(tables)
    lengths = draw(st.lists(contexts, max_size=16))
    window = table.window or 1 << 60
    chunks = draw(st.lists(st.tuples(st.integers(0, 16384), st.integers(1, 900)), max_size=4))
    assume(lengths or chunks)
    return table, len(lengths), sum(lengths), sum(min(length, window) for length in lengths), chunks


# --- one operator

seconds = hnp.arrays(np.float64, 8, elements=st.floats(0.0, 1e300))


@given(seconds, seconds, st.floats(1.0, 12.0))
def test_power_sum_lies_between_the_larger_and_the_sum_and_never_overflows(x, y, p):
    total = power_sum(x, y, p)
    assert np.all(np.isfinite(total))
    assert np.all(total >= np.maximum(x, y))
    assert np.all(total <= (x + y) * (1 + 1e-12))


@pytest.mark.parametrize("key", gpu_keys())
def test_no_operator_beats_its_roofline_on_any_gpu(key):
    card, laws = gpu(key), efficiency(gpu(key))
    rows = np.array([1.0, 7.0, 256.0, 8192.0])
    for dtype in set(laws.gemm) & set(card.peak_flops):
        cost = gemm(laws.gemm[dtype], card, card.peak_flops[dtype], rows, 4096, 14336, (1.0, 1.0))
        assert np.all(cost.seconds >= np.maximum(cost.flop_s, cost.byte_s)), dtype
    for dtype, law in laws.experts.items():
        cost = experts(law, card, card.peak_flops["bf16"], rows, 128, 1e7, 2.0)
        assert np.all(cost.seconds > np.maximum(cost.flop_s, cost.byte_s)), dtype
    reduced = all_reduce(laws.collective[card.link_kind], card, 2, rows)
    assert np.all(reduced.seconds > rows / card.link_bytes_per_s)  # half of the payload, there and back


# --- one step


@given(steps())
def test_a_step_takes_time_and_energy(step):
    table, *arguments = step
    assert table.step_seconds(*arguments) > 0.0
    assert table.step_joules(*arguments) > 0.0


@given(steps())
def test_average_power_lies_between_idle_and_tdp(step):
    table, *arguments = step
    replica = REPLICAS[TABLES.index(table)]
    card = gpu(replica.gpu)
    busy_s = table.step_seconds(*arguments)
    # a full pipeline finishes one step per stage time; its joules are those of all stages
    watts = (table.idle_watts + table.step_joules(*arguments) / busy_s) / table.gpus
    assert card.idle_watts < watts <= card.tdp_watts * (1 + 1e-9)


@given(steps(), st.integers(1, 4096))
def test_more_context_never_takes_less(step, more):
    table, n_decode, ctx, ctx_window, chunks = step
    before = table.step_seconds(n_decode, ctx, ctx_window, chunks)
    assert table.step_seconds(n_decode, ctx + more, ctx_window + more, chunks) >= before
    assert table.step_seconds(n_decode, ctx, ctx_window, [(p + more, c) for p, c in chunks]) >= before


@given(steps())
def test_a_longer_or_another_chunk_never_takes_less(step):
    table, n_decode, ctx, ctx_window, chunks = step
    before = table.step_seconds(n_decode, ctx, ctx_window, chunks)
    assert table.step_seconds(n_decode, ctx, ctx_window, [(p, c + 1) for p, c in chunks]) >= before
    assert table.step_seconds(n_decode, ctx, ctx_window, [*chunks, (0, 1)]) > before


@pytest.mark.parametrize("table", TABLES)
def test_arrays_are_read_only_finite_and_never_decrease(table):
    for piece in PIECES:
        for unit in ("s", "j"):
            values = getattr(table, f"{piece}_{unit}")
            assert values.dtype == np.float64 and not values.flags.writeable
            assert np.all(np.isfinite(values)) and np.all(values >= 0.0), piece
            assert np.all(np.diff(values) >= -1e-18), piece
    assert len(table.linear_s) == len(table.linear_j) == len(table.p2p_s) == table.max_batched_tokens + 1
    assert len(table.seq_s) == len(table.decode_s) == len(table.decode_ctx_j) == table.max_seqs + 1
    assert all(getattr(table, f"{piece}_{unit}") >= 0.0 for piece in SCALARS for unit in "sj")


MODELS = (("llama-3.1-8b", "bf16", 1), ("llama-3.1-8b", "fp8", 2), ("qwen3-30b-a3b", "bf16", 1))


def releases(name: str, key: str) -> list[str]:
    """A version of each release of an engine that differs on a GPU."""
    versions = ("0.1", "0.5", "0.6", "0.9", "0.10", "0.11", "0.12", "0.17", "1.0", "1.1", "")
    return list({engine_facts(name, version, key): version for version in versions}.values())


@pytest.mark.parametrize("name", engine_names())
def test_no_step_of_any_gpu_and_engine_is_faster_than_reading_the_weights_it_uses(name):
    """Whatever was fitted: a token reads its share of the experts, all else and the head at full bandwidth at best."""
    compiled = 0
    for key, (of, weights, tp) in product(gpu_keys(), MODELS):
        card, spec = gpu(key), model(of)
        for version in releases(name, key):
            engine = EngineSettings(name=name, version=version, max_batched_tokens=64, max_seqs=2, memory_utilization=1)
            try:
                table = compile_replica(Replica(model=of, gpu=key, weights=weights, tp=tp, engine=engine))
            except (DoesNotFit, BadInput):
                continue
            tables = (1 if spec.tied_embeddings else 2) * spec.vocab * spec.hidden
            share = (spec.active_params() - tables) / (spec.total_params() - tables)
            body = (spec.weight_bytes(weights) - 2 * tables) * share
            read_s = (body + 2 * spec.vocab * spec.hidden) / (card.memory_bytes_per_s * tp)
            assert table.step_seconds(1, 1, 1) >= read_s * (1 - 1e-9), (key, of, weights, version)
            compiled += 1
    assert compiled > 90


@given(tables, st.integers(1, 128), contexts)
def test_a_step_reads_the_weights_of_its_stage_at_least_once(table, n_decode, context):
    replica = REPLICAS[TABLES.index(table)]
    spec, card = model(replica.model), gpu(replica.gpu)
    if spec.experts:  # at the very least the experts of one token
        idle = spec.experts - spec.experts_per_token
        idle_share = spec.moe_layers() * idle * spec.expert_params() / spec.total_params()
    else:
        idle_share = 0.0
    tables_bytes = 2 * spec.embedding_params() + (0 if spec.tied_embeddings else 2 * spec.head_params())
    body = (spec.weight_bytes(replica.weights) - tables_bytes) * (1 - idle_share) / replica.gpus
    least = body / card.memory_bytes_per_s
    if replica.weights == "mxfp4":  # the share is of parameters, and experts are the smaller ones in bytes
        least *= 0.5
    assert (
        table.step_seconds(n_decode, n_decode * context, n_decode * min(context, table.window or context))
        > least
    )


@given(tables, st.integers(1, 4096))
def test_a_prefill_computes_its_active_parameters_at_least(table, tokens):
    replica = REPLICAS[TABLES.index(table)]
    spec, card = model(replica.model), gpu(replica.gpu)
    idle = spec.moe_layers() * (spec.experts - spec.experts_per_token) * spec.expert_params()
    body = spec.total_params() - idle - 2 * spec.vocab * spec.hidden
    least = 2.0 * body * tokens / max(card.peak_flops.values()) / replica.gpus
    assert table.step_seconds(0, 0, 0, [(0, tokens)]) > least


# --- across replicas

LADDERS = [
    ["llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b", "llama-3.1-70b"],
    ["qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b", "qwen3-14b", "qwen3-32b"],
    ["opt-13b", "opt-66b"],
]


@pytest.mark.parametrize("keys", LADDERS)
@pytest.mark.parametrize("card", ["b200", "mi300x"])
def test_a_larger_model_of_a_family_takes_longer(keys, card):
    ladder = [compile_replica(Replica(model=key, gpu=card, engine=ENGINE)) for key in keys]
    for smaller, larger in pairwise(ladder):
        assert smaller.step_seconds(32, 32768, 32768) < larger.step_seconds(32, 32768, 32768)
        assert smaller.step_seconds(0, 0, 0, [(0, 4096)]) < larger.step_seconds(0, 0, 0, [(0, 4096)])
        assert smaller.kv_blocks > larger.kv_blocks


@pytest.mark.parametrize("key", ["llama-3.1-8b", "qwen3-32b", "llama-3.1-70b", "qwen3-30b-a3b"])
@pytest.mark.parametrize("card", ["a100-80gb-sxm", "h100-sxm", "b200"])
def test_more_tp_over_nvlink_never_slows_a_large_batch(key, card):
    ladder = []
    for tp in (1, 2, 4, 8):
        try:
            ladder.append(compile_replica(Replica(model=key, gpu=card, tp=tp, engine=ENGINE)))
        except DoesNotFit:
            assert tp < 4
    for fewer, more in pairwise(ladder):
        assert more.step_seconds(0, 0, 0, [(0, 4096)]) < fewer.step_seconds(0, 0, 0, [(0, 4096)])
        assert more.step_seconds(128, 1 << 19, 1 << 19) < fewer.step_seconds(128, 1 << 19, 1 << 19)


def test_stages_cut_the_time_of_a_stage_and_pay_for_the_way_between():
    one, two = (
        compile_replica(Replica(model="llama-3.1-8b", gpu="l40s", pp=pp, engine=ENGINE)) for pp in (1, 2)
    )
    step = (32, 32768, 32768, [(0, 1024)])
    assert two.step_seconds(*step) < one.step_seconds(*step) < 2 * two.step_seconds(*step)
    assert two.stages == two.gpus == 2 and not one.p2p_s.any()
    across = compile_replica(Replica(model="llama-3.1-8b", gpu="l40s", tp=8, pp=2, engine=ENGINE))
    assert np.all(np.diff(two.p2p_s) > 0) and two.p2p_s[0] > 0
    assert across.p2p_s[4096] > two.p2p_s[0]


# --- the host


@pytest.mark.parametrize(
    ("key", "term", "layers"),
    [
        ("qwen3-next-80b-a3b", "state_layer_s", 36),
        ("qwen3-next-80b-a3b", "layer_s", 48),
        ("llama-3.1-8b", "state_layer_s", 0),
        ("deepseek-v3", "state_layer_s", 0),
    ],
)
@pytest.mark.parametrize("pp", [1, 2])
def test_a_hosts_layers_take_that_much_longer_in_every_step_of_their_stage(key, term, layers, pp):
    replica = Replica(model=key, gpu="h200", tp=8, pp=pp, weights=model(key).native_dtype, engine=ENGINE)
    plain, slowed = (compile_replica(replica, host=HostTerms(error=0.0, **{term: s})) for s in (1e-3, 2e-3))
    added = slowed.linear_s[1:] - plain.linear_s[1:]
    assert added == pytest.approx(1e-3 * layers / pp)
    assert slowed.linear_s[0] == 0.0
    assert (slowed.seq_s == plain.seq_s).all() and slowed.prompt_step_s == plain.prompt_step_s


@pytest.mark.parametrize(("key", "layers"), [("deepseek-v3", 61), ("qwen3-next-80b-a3b", 0), ("llama-3.1-8b", 0)])
def test_a_hosts_latent_attention_takes_longer_where_a_step_holds_a_prompt_alone(key, layers):
    replica = Replica(model=key, gpu="h200", tp=8, weights=model(key).native_dtype, engine=ENGINE)
    plain, slowed = (compile_replica(replica, host=HostTerms(error=0.0, prompt_mla_layer_s=s)) for s in (0.0, 1e-4))
    assert slowed.prompt_step_s - plain.prompt_step_s == pytest.approx(1e-4 * layers)
    assert (slowed.linear_s == plain.linear_s).all()
    more_s = [table.step_seconds(4, 4096, 4096, [(0, 512)]) for table in (plain, slowed)]
    assert more_s[1] - more_s[0] == pytest.approx(1e-4 * layers)
    assert slowed.step_seconds(4, 4096, 4096) == plain.step_seconds(4, 4096, 4096)


# --- areas


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 200))
def test_area_counts_what_each_query_attends(prefix, tokens, window):
    positions = range(prefix + 1, prefix + tokens + 1)
    assert chunk_area(prefix, tokens, window) == sum(min(i, window) if window else i for i in positions)


@given(st.integers(0, 10**6), st.integers(0, 10**5), st.integers(0, 10**5), st.integers(0, 10**5))
def test_area_of_a_prompt_does_not_depend_on_how_it_is_cut(prefix, first, second, window):
    cut = chunk_area(prefix, first, window) + chunk_area(prefix + first, second, window)
    assert cut == chunk_area(prefix, first + second, window)
