"""Laws of operators: tables of ratios, what no law may do, and which law stands in where a GPU was not timed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.cost import Replica, compile_replica
from headway.cost.efficiency import efficiency
from headway.cost.operators import Ratio, find_law, timed_families
from headway.cost.physics import (
    all_reduce,
    copies_sent,
    decode_attention,
    dispatch,
    experts,
    gather,
    gemm,
    prefill_attention,
)
from headway.hardware import gpu

TIMED = ["a100-80gb-sxm", "h100-sxm", "h200", "b200", "b300", "gb200", "l40s", "rtx-pro-6000"]
ELSEWHERE = ["mi300x", "rtx-4090", "h20", "gaudi-2"]
ENGINES = ["vllm", "sglang", "trtllm"]
TOKENS = np.unique(np.rint(np.geomspace(1, 131072, 200)))

axes = st.lists(st.floats(0.01, 1e6), min_size=2, max_size=4, unique=True).map(lambda a: tuple(sorted(a)))


@st.composite
def ratios(draw: st.DrawFn) -> Ratio:
    grid = tuple(draw(st.lists(axes, min_size=1, max_size=3)))
    count = int(np.prod([len(axis) for axis in grid]))
    nodes = draw(st.lists(st.integers(-3000, 3000), min_size=count, max_size=count))
    return Ratio(axes=grid, permille=tuple(nodes))


def laws_of(key: str, engine: str):
    return gpu(key), efficiency(gpu(key), engine)


every = pytest.mark.parametrize(
    ("key", "engine"), [(key, engine) for key in TIMED + ELSEWHERE for engine in ENGINES]
)

# --- tables of ratios


@given(ratios(), st.data())
def test_a_table_gives_its_nodes_exactly(ratio, data):
    index = tuple(data.draw(st.integers(0, len(axis) - 1)) for axis in ratio.axes)
    place = np.ravel_multi_index(index, [len(axis) for axis in ratio.axes])
    first, *fixed = (axis[i] for axis, i in zip(ratio.axes, index, strict=True))
    assert float(ratio.along(first, *fixed)) == pytest.approx(np.exp(ratio.permille[place] / 1000.0), rel=1e-6)


@given(ratios(), st.lists(st.floats(1e-6, 1e9), min_size=3, max_size=3))
def test_between_nodes_and_beyond_them_a_table_stays_within_its_nodes(ratio, place):
    found = ratio.along(np.geomspace(1e-6, 1e9, 50), *place[: len(ratio.axes) - 1])
    low, high = (np.exp(edge / 1000.0) for edge in (min(ratio.permille), max(ratio.permille)))
    assert np.all(found >= low * (1 - 1e-9)) and np.all(found <= high * (1 + 1e-9))


# --- what no law may do


@every
@pytest.mark.parametrize(("n", "k"), [(128, 7168), (4096, 4096), (57344, 8192), (8192, 512)])
def test_a_product_never_gets_faster_with_more_rows_nor_than_the_data_sheet(key, engine, n, k):
    card, laws = laws_of(key, engine)
    for dtype, law in laws.gemm.items():
        peak = card.peak_flops.get(dtype.partition("_")[0], card.peak_flops["bf16"])
        cost = gemm(law, card, peak, TOKENS, n, k, (2.0, 2.0))
        assert np.all(np.diff(cost.seconds) >= 0.0), dtype
        assert np.all(cost.seconds >= np.maximum(cost.flop_s, cost.byte_s)), dtype
        assert cost.seconds[0] > 1e-6, dtype


@every
@pytest.mark.parametrize("ep", [1, 8, 64])
def test_experts_never_get_faster_with_more_tokens_nor_than_the_data_sheet(key, engine, ep):
    card, laws = laws_of(key, engine)
    for dtype, law in laws.experts.items():
        cost = experts(law, card, card.peak_flops["bf16"], TOKENS * 8 / ep, 256 // ep, 4.4e7, 1.0, ep)
        assert np.all(np.diff(cost.seconds) >= 0.0), dtype
        assert np.all(cost.seconds > np.maximum(cost.flop_s, cost.byte_s)), dtype


@every
def test_attention_takes_time_and_never_beats_the_data_sheet(key, engine):
    card, laws = laws_of(key, engine)
    for heads, kv_heads, width in [(32, 8, 128), (8, 1, 128), (64, 64, 64), (16, 2, 256)]:
        for fp8 in (False, True):
            token = 4.0 * heads * width, 2.0 * kv_heads * width * (1.0 if fp8 else 2.0)
            for law in (laws.decode, laws.mla):
                block_s, cost = decode_attention(law, card, (heads, kv_heads), width, token, fp8)
                assert block_s > 0.0 and cost.seconds >= max(cost.flop_s, cost.byte_s)
        for law in (laws.prefill, laws.mla):
            chunk_s, token_s, pair = prefill_attention(law, card, heads, width, token[0])
            assert chunk_s > 0.0 and token_s > 0.0 and pair.seconds >= pair.flop_s > 0.0


@every
@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_collectives_take_longer_for_more_bytes_and_never_beat_the_links(key, engine, gpus):
    card, laws = laws_of(key, engine)
    payload = np.geomspace(1e2, 1e9, 60)
    across = (gpus - 1) / gpus * payload / card.link_bytes_per_s
    summed = all_reduce(laws.collective[card.link_kind], card, gpus, payload).seconds
    assert np.all(np.diff(summed) > 0.0) and np.all(summed > 2.0 * across)
    for law in laws.gathers.values():
        gathered = gather(law, card, gpus, payload).seconds
        assert np.all(np.diff(gathered) > 0.0) and np.all(gathered > across)


def test_dispatch_pays_for_the_network_once_experts_leave_the_node():
    card, laws = laws_of("h100-sxm", "vllm")
    tokens = np.array([1.0, 64.0, 512.0, 4096.0])
    one, two, four = (dispatch(laws.dispatch, card, gpus, tokens, 8, 7168).seconds for gpus in (8, 16, 32))
    assert np.all(np.diff(one) > 0.0)
    assert np.all(one < two) and np.all(two < four)
    assert copies_sent("normal", 8, 8, 1) == (pytest.approx(7 / 8), 0.0)
    assert copies_sent("ll", 16, 8, 8) == (3.5, 4.0)


# --- which law holds


@pytest.mark.parametrize(
    ("key", "engine", "op", "of", "evidence"),
    [
        ("h100-sxm", "vllm", "gemm", "bf16", "own"),
        ("h100-pcie", "trtllm", "gemm", "fp8", "own"),
        ("h100-sxm", "vllm", "gemm", "fp8_block", "own"),
        ("b200", "vllm", "experts", "fp4", "own"),
        ("h100-sxm", "vllm", "mla", "", "engine"),
        ("h100-sxm", "llama.cpp", "decode", "", "engine"),
        ("rtx-5090", "vllm", "gemm", "fp4", "sibling"),
        ("h800", "sglang", "experts", "fp8_block", "sibling"),
        ("mi300x", "vllm", "gemm", "bf16", "pooled"),
        ("rtx-4090", "vllm", "experts", "fp8", "pooled"),
        ("rtx-pro-6000", "vllm", "experts", "mxfp4", "sheet"),  # never from datacentre to workstation
        ("mi300x", "vllm", "experts", "int8", "sheet"),
    ],
)
def test_the_nearest_law_that_was_timed_stands_in_and_says_so(key, engine, op, of, evidence):
    laws = getattr(efficiency(gpu(key), engine), op)
    law = laws[of] if of else laws
    assert law.evidence == evidence
    assert 0.0 < law.error < 1.0
    assert bool(law.timed) == (evidence != "sheet")


def test_products_take_the_fastest_kernel_any_engine_was_timed_with():
    """Engines choose among kernels; a slow timing is a launch without a graph, or a kernel not chosen."""
    for key in ("h100-sxm", "b200", "a100-80gb-sxm"):
        for of in ("bf16", "fp8"):
            assert len({efficiency(gpu(key), name).gemm[of].timed for name in ("vllm", "sglang", "trtllm")}) == 1


def test_links_never_timed_are_assumed():
    assert efficiency(gpu("mi300x")).collective["xgmi"].kind == "modelled"
    assert efficiency(gpu("h100-pcie")).collective["pcie"].evidence == "pooled"
    assert not efficiency(gpu("l40s")).dispatch
    assert find_law("gemm", "no-such-precision", "h100", "vllm") is None


def test_every_timed_family_has_its_own_attention():
    for family in set(timed_families()) - {"gb300"}:  # whose links alone were timed
        assert find_law("decode", "gqa", family, "vllm").evidence == "own"


def test_a_step_table_names_what_each_law_was_timed_on():
    found = compile_replica(Replica(model="llama-3.1-8b", gpu="h100-sxm")).provenance
    assert "this GPU and engine: vllm" in found["gemm.bf16.compute"].source
    table = found["gemm.bf16.ratio"]
    assert table.low < 1.0 == table.value < table.high
