"""Matrix products and experts: the law behind synthetic timings is found, whatever else is in the table."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from timing_cases import EXPERTS, PRODUCT, experts, noisy, products, stacked

import fit.experts as expert_fit
from fit import gemm
from fit.laws import expert_law, expert_lines, gemm_law, gemm_lines
from fit.read import choose, sheet
from fit.solve import errors
from headway.cost import physics
from headway.cost.operators import ExpertLaw, GemmLaw
from headway.hardware import gpu

NAMES = ("compute", "memory", "launch_us", "p")
EXPERT_NAMES = ("compute", "memory", "launch_us", "skew", "p", "load", "padding")


def spoilt(table, spread, outliers=0.0):
    return table | {"time_us": noisy(table["time_us"], spread, outliers)}


def converted(law, type_):
    return msgspec.convert({"error": 0.1, **law}, type_)


# --- matrix products


@pytest.fixture(scope="module")
def clean():
    (rows,) = gemm.timings(products())
    return rows


def test_the_four_numbers_of_a_product_are_found(clean):
    assert gemm.fit(clean).numbers == pytest.approx([PRODUCT[name] for name in NAMES], rel=0.01)


@pytest.mark.parametrize(
    ("spread", "outliers", "within"), [(0.0, 0.0, 0.002), (0.1, 0.0, 0.03), (0.05, 0.03, 0.03)]
)
def test_products_are_predicted_through_noise_and_outliers(clean, spread, outliers, within):
    (rows,) = gemm.timings(spoilt(products(), spread, outliers))
    assert errors(gemm.predict(gemm.fit(rows), clean), clean.seconds).p90 < within


def test_the_table_learns_what_four_numbers_cannot_say_of_shapes_not_seen(clean):
    slower = clean._replace(
        seconds=clean.seconds * np.where(clean.m > 500, 1.5, 1.0) * (clean.n / 2048.0) ** 0.1
    )
    plain, full = gemm.outside(slower)
    assert full.median < 0.04 < 0.08 < plain.median


def test_rows_that_say_nothing_of_a_cold_product_do_not_count():
    good = products()
    thin, odd, fast = products(widths=(64, *range(65, 90))), products(rows=(17, 100)), products()
    peak_us = 1e6 * 2.0 * good["n"].astype(float) * good["k"] / sheet("h100").bytes_per_s
    wrong = [thin | {"time_us": 40.0 * thin["time_us"]}, odd | {"time_us": 40.0 * odd["time_us"]}]
    wrong[0] = choose(wrong[0], (wrong[0]["n"] <= 64) | (wrong[0]["k"] <= 64))
    (rows,) = gemm.timings(stacked(good, *wrong, fast | {"time_us": 0.5 * peak_us}))
    (alone,) = gemm.timings(good)
    assert np.array_equal(np.sort(rows.seconds), np.sort(alone.seconds))


@pytest.mark.parametrize(("name", "kept"), [("L40S", False), ("RTXPRO6000", False), ("H100", True)])
def test_weights_left_in_a_large_cache_are_no_timing_of_the_memory(name, kept):
    warm = products(name, memory=0.95, launch_us=0.5, p=8.0)
    (group,) = gemm.timings(stacked(products(name), warm))
    (alone,) = gemm.timings(products(name))
    cached = (alone.byte_s * sheet(alone.gpu).bytes_per_s < 2.0 * sheet(alone.gpu).l2_bytes) & (
        alone.byte_s > alone.flop_s
    )
    assert cached.sum() > 300
    assert (len(group.seconds) > 2 * len(alone.seconds) - 10) is kept


@pytest.mark.parametrize(
    "table",
    [
        products(widths=(512, 1024, 4096)),
        products(engine="vllm", dtype="fp8_block", of="fp8_block"),
    ],
    ids=["too few", "timed without graphs"],
)
def test_no_law_is_made_of(table):
    assert gemm.timings(table) == []
    assert gemm_lines(table) == []


def test_a_precision_without_a_peak_on_the_card_is_refused():
    table = products(dtype="fp8", of="fp8")
    on_a100 = table | {
        "gpu": np.full(len(table["m"]), "A100", dtype=object),
        "time_us": 10.0 * table["time_us"],
    }
    assert gemm.timings(table)
    assert gemm.timings(on_a100 | {"dtype": np.full(len(table["m"]), "bfloat16", dtype=object)})
    assert gemm.timings(on_a100) == []


def test_no_product_beats_the_data_sheet(clean):
    law = gemm.Fit(
        np.array([1.0, 1.0, 0.5, 8.0]), gemm.fit(clean._replace(seconds=0.3 * clean.seconds)).ratio
    )
    assert np.all(gemm.predict(law, clean) >= np.maximum(clean.flop_s, clean.byte_s))


def test_a_pooled_law_carries_to_a_gpu_that_was_not_timed():
    (of_h100,), (of_b200,), (of_a100,) = (gemm.timings(products(name)) for name in ("H100", "B200", "A100"))
    law = gemm.fit_pooled([of_h100, of_b200])
    assert errors(gemm.predict(law, of_a100), of_a100.seconds).p90 < 0.02


def test_the_product_simulated_is_the_product_fitted(clean):
    fitted = gemm.fit(clean._replace(seconds=clean.seconds * (clean.k / 2048.0) ** 0.1))
    law, card = converted(gemm_law(fitted), GemmLaw), gpu("h100-sxm")
    for n, k in ((512, 4096), (12288, 1024), (28672, 8192)):
        at = (clean.n == n) & (clean.k == k)
        used = physics.gemm(law, card, card.peak_flops["bf16"], clean.m[at], n, k, (2.0, 2.0))
        expected = np.maximum.accumulate(gemm.predict(fitted, clean.rows(at)))
        assert used.seconds == pytest.approx(expected, rel=1e-3)


def test_each_gpu_gets_a_line_and_each_precision_one_pooled_over_servers_under_vllm():
    tables = [
        products("H100"),
        products("B200"),
        products("RTXPRO6000", memory=0.4),
        products("A100", "sglang", memory=0.4),
    ]
    lines = gemm_lines(stacked(*tables))
    assert [(line.gpu, line.engine) for line in lines] == [
        ("a100", "sglang"), ("b200", "vllm"), ("h100", "vllm"), ("rtx-pro-6000", "vllm"), ("pooled", ""),
    ]  # fmt: skip
    pooled = lines[-1]
    assert pooled.law["timed"] == "pooled over b200, h100 (vllm)"
    assert pooled.law["memory"] == pytest.approx(PRODUCT["memory"], rel=0.02)
    assert pooled.full.median < 0.02
    for line in lines:
        entry = line.entry()
        assert msgspec.convert(entry["law"], GemmLaw).error >= 0.01
        assert entry["law"]["compute"] == pytest.approx(PRODUCT["compute"], rel=0.03)


# --- experts


@pytest.fixture(scope="module")
def routed():
    (rows,) = expert_fit.timings(experts())
    return rows


def test_the_law_of_experts_is_found(routed):
    found = dict(zip(EXPERT_NAMES, expert_fit.fit(routed).numbers, strict=True))
    for name in ("compute", "memory", "launch_us"):
        assert found[name] == pytest.approx(EXPERTS[name], rel=0.03), name
    assert errors(expert_fit.predict(expert_fit.fit(routed), routed), routed.seconds).p90 < 0.01


@pytest.mark.parametrize(("spread", "outliers"), [(0.05, 0.0), (0.05, 0.03)])
def test_experts_are_predicted_through_noise_and_outliers(routed, spread, outliers):
    (rows,) = expert_fit.timings(spoilt(experts(), spread, outliers))
    assert errors(expert_fit.predict(expert_fit.fit(rows), routed), routed.seconds).median < 0.03


def test_other_routing_and_slower_kernels_of_a_shape_and_models_without_gates_do_not_count(routed):
    balanced, slower = experts(distribution="balanced"), experts()
    ungated = experts() | {"inter_size": np.full(len(slower["topk"]), 1856)}
    slower = slower | {"time_us": 3.0 * slower["time_us"]}
    (rows,) = expert_fit.timings(
        stacked(balanced | {"time_us": 0.5 * balanced["time_us"]}, slower, experts(), ungated)
    )
    assert np.array_equal(np.sort(rows.seconds), np.sort(routed.seconds))


def test_too_few_experts_timed_and_kernels_no_longer_served_make_no_law():
    table = experts()
    assert expert_fit.timings(choose(table, np.arange(len(table["topk"])) < 299)) == []
    for family, engine, of in expert_fit.UNUSED:
        dtype = {"fp8": "fp8", "fp4": "nvfp4"}[of]
        assert expert_fit.timings(experts(family.upper(), engine, dtype, of)) == []
        assert expert_fit.timings(experts(family.upper(), "trtllm", dtype, of))


def test_the_experts_simulated_are_the_experts_fitted(routed):
    fitted = expert_fit.fit(routed)
    law, card = converted(expert_law(fitted), ExpertLaw), gpu("h100-sxm")
    for ep in (1.0, 4.0):
        at = (routed.ep == ep) & (routed.count == 256 / ep) & (routed.params == 3.0 * 7168 * 2048)
        mine = routed.rows(at)
        mine = mine.rows(np.argsort(mine.routed))
        used = physics.experts(
            law, card, card.peak_flops["bf16"], mine.routed, int(256 / ep), 3.0 * 7168 * 2048, 2.0, int(ep)
        )
        assert used.seconds == pytest.approx(expert_fit.predict(fitted, mine), rel=2e-3)


def test_a_launch_timed_without_graphs_is_capped_after_the_fit():
    (rows,) = expert_fit.timings(experts(launch_us=60.0))
    fitted = expert_fit.fit(rows)
    assert fitted.numbers[2] == pytest.approx(60.0, rel=0.03)
    assert expert_law(fitted)["launch_s"] == pytest.approx(expert_fit.LAUNCH_CAP_US * 1e-6)


def test_a_precision_timed_on_one_gpu_has_a_pooled_law_of_unknown_error():
    own, pooled = expert_lines(experts())
    assert (own.gpu, pooled.gpu) == ("h100", "pooled")
    assert pooled.entry()["law"]["error"] == 0.3 > 5 * own.entry()["law"]["error"]
