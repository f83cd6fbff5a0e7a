"""Attention: the laws behind synthetic timings of decode, prefill and MLA are found."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from timing_cases import DECODE, MLA, PREFILL, decodes, latents, noisy, prefills, stacked

from fit import attention
from fit.laws import attention_lines, mla_lines
from fit.read import choose, sheet
from fit.solve import errors
from headway.cost import physics
from headway.cost.operators import DecodeLaw, MlaLaw, PrefillLaw
from headway.hardware import gpu


def timed(timings, table, *more):
    (rows,) = timings(table, *more)
    return rows


OPERATORS = {
    "decode": (attention.decode_timings, attention.fit_decode, attention.predict_decode, decodes),
    "prefill": (attention.prefill_timings, attention.fit_prefill, attention.predict_prefill, prefills),
}
either = pytest.mark.parametrize("op", OPERATORS)


def test_the_numbers_of_decode_are_found():
    law = attention.fit_decode(timed(attention.decode_timings, decodes()))
    names = ("launch_us", "block_us", "memory", "memory_fp8")
    assert law.numbers == pytest.approx([DECODE[name] for name in names], rel=0.01)


def test_the_numbers_of_prefill_are_found():
    law = attention.fit_prefill(timed(attention.prefill_timings, prefills()))
    names = ("launch_us", "block_us", "compute", "tile")
    assert law.numbers == pytest.approx([PREFILL[name] for name in names], rel=0.02)


@either
@pytest.mark.parametrize(("spread", "outliers"), [(0.0, 0.0), (0.05, 0.0), (0.05, 0.03)])
def test_attention_is_predicted_through_noise_and_outliers(op, spread, outliers):
    timings, fit, predict, made = OPERATORS[op]
    clean, table = timed(timings, made()), made()
    law = fit(timed(timings, table | {"time_us": noisy(table["time_us"], spread, outliers)}))
    assert errors(predict(law, clean), clean.seconds).p90 < 0.002 + 0.6 * spread


@either
def test_the_table_learns_what_the_numbers_cannot_say_of_head_shapes(op):
    timings, fit, predict, made = OPERATORS[op]
    rows = timed(timings, made())
    parts, numbers = (
        (attention.decode_parts, DECODE) if op == "decode" else (attention.prefill_parts, PREFILL)
    )
    fixed, scaled = parts(np.array(list(numbers.values())), rows)
    rows = rows._replace(seconds=fixed + scaled * np.where(rows.width < 100, 1.4, 1.0))
    plain, full = attention.outside(rows, fit, predict)
    assert full.mean < 0.75 * plain.mean


@either
def test_windows_wide_heads_and_times_faster_than_physics_do_not_count(op):
    timings, _, _, made = OPERATORS[op]
    count = len(made()["time_us"])
    windowed = made() | {"window_size": np.full(count, 128)}
    wide = made() | {"head_dim": np.full(count, 512)}
    fast = made() | {"time_us": np.full(count, 1e-3)}
    rows = timed(timings, stacked(made(), windowed, wide, fast))
    assert np.array_equal(np.sort(rows.seconds), np.sort(timed(timings, made()).seconds))


@either
def test_too_few_timings_make_no_law(op):
    timings, _, _, made = OPERATORS[op]
    table = made()
    assert timings(choose(table, np.arange(len(table["time_us"])) % 5 == 0)) == []


def test_a_cache_that_partly_fits_the_l2_does_not_count():
    card, table = sheet("h100"), decodes(caches=("bfloat16",))
    warm = decodes(caches=("bfloat16",)) | {"time_us": 7.0 * table["time_us"]}
    moved = (
        4.0
        * (warm["step"] + 1.0)
        * np.prod(
            [warm[name].astype(float) for name in ("num_key_value_heads", "head_dim", "batch_size")], axis=0
        )
    )
    between = (moved < 2.0 * card.l2_bytes) & (moved > 0.02 * card.l2_bytes)
    assert between.sum() > 50
    rows = attention.decode_timings(stacked(table, table, choose(warm, between)))
    assert np.array_equal(
        np.sort(rows[0].seconds), np.sort(attention.decode_timings(stacked(table, table))[0].seconds)
    )


def test_an_fp8_cache_that_was_not_timed_takes_the_usual_loss():
    table = decodes(caches=("bfloat16",))
    law = attention.fit_decode(timed(attention.decode_timings, stacked(table, table)))
    assert law.numbers[3] == pytest.approx(0.92 * DECODE["memory"], rel=0.01)


def test_prefill_over_other_precisions_does_not_count():
    fp8 = prefills() | {"kv_cache_dtype": np.full(len(prefills()["isl"]), "fp8", dtype=object)}
    assert attention.prefill_timings(fp8) == []


@either
def test_the_attention_simulated_is_the_attention_fitted(op):
    timings, fit, predict, made = OPERATORS[op]
    fitted, rows, card = fit(timed(timings, made())), timed(timings, made()), gpu("h100-sxm")
    (own, _) = attention_lines(made(), op)
    law = msgspec.convert(own.entry()["law"], DecodeLaw if op == "decode" else PrefillLaw)
    some = rows.rows((rows.heads == 40) & (rows.width == 128) & (rows.cache == 2.0))
    launch_s = fitted.numbers[0] * 1e-6
    if op == "decode":
        head_s, token = physics.decode_attention(
            law, card, (40, 8), 128, (4.0 * 40 * 128, 4.0 * 8 * 128), False
        )
        context = some.work_s * card.memory_bytes_per_s / (4.0 * 8 * 128)
        used = launch_s + head_s * some.blocks / 8 + token.seconds * context
    else:
        head_s, token_s, pair = physics.prefill_attention(law, card, 40, 128, 4.0 * 40 * 128)
        pairs, queries = (
            value * card.peak_flops["bf16"] / (4.0 * 40 * 128) for value in (some.work_s, some.unit_s)
        )
        used = launch_s + head_s * some.blocks / 40 + pair.seconds * pairs + token_s * queries
    assert len(used) > 10
    assert used == pytest.approx(predict(fitted, some), rel=5e-3)


@either
def test_a_pooled_law_stands_beside_those_of_the_gpus(op):
    made = OPERATORS[op][-1]
    lines = attention_lines(stacked(made("H100"), made("B200")), op)
    assert [line.gpu for line in lines] == ["b200", "h100", "pooled"]
    assert lines[-1].law["timed"] == "pooled over b200, h100 (vllm)"
    assert lines[-1].full.median < 0.05


def test_pooling_keeps_the_blocks_of_a_multiprocessor():
    rows = timed(attention.decode_timings, decodes("B200"))
    pooled = attention.pool([rows])
    assert rows.sms != pooled.sms
    assert pooled.blocks / pooled.sms == pytest.approx(rows.blocks / rows.sms)


# --- MLA


def test_the_numbers_of_mla_are_found():
    law = attention.fit_mla(timed(attention.mla_timings, latents(), "generation_mla"))
    names = ("launch_us", "block_us", "memory", "memory_fp8", "compute")
    assert law.numbers == pytest.approx([MLA[name] for name in names], rel=0.02)


def both(name, engine="trtllm", **law):
    """Decode and, as often as it takes to count, prefill of one GPU."""
    prefill = latents(name, engine, "context_mla", **law)
    return stacked(latents(name, engine), *[prefill] * 3)


def test_a_prefill_timed_in_the_absorbed_form_is_replaced_by_the_pooled_one():
    lines = mla_lines(stacked(both("H100", compute=0.15), both("B200"), both("GB200")))
    laws = {line.gpu: line.law for line in lines if line.op == "mla"}
    assert set(laws) == {"h100", "b200", "gb200", "pooled"}
    assert {line.gpu for line in lines if line.op == "mla prefill"} == {"b200", "gb200"}
    for law in laws.values():
        assert msgspec.convert({"error": 0.1, **law}, MlaLaw).prefill_compute == pytest.approx(0.55, rel=0.03)


def test_fp8_rows_that_do_not_follow_bytes_are_not_fitted():
    wrong = both("H100", "sglang")
    fp8 = wrong["kv_cache_dtype"] == "fp8"
    wrong["time_us"] = np.where(fp8, 5.0 * wrong["time_us"], wrong["time_us"])
    lines = mla_lines(stacked(wrong, both("B200"), wrong, both("B200")))
    laws = {line.gpu: line.law for line in lines if line.op == "mla"}
    assert laws["h100"]["memory"] == pytest.approx(MLA["memory"], rel=0.03)
    assert laws["h100"]["memory_fp8"] == pytest.approx(0.92 * laws["h100"]["memory"], rel=0.01)
