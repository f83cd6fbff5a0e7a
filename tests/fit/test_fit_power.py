"""Power: shares of TDP found from watts, families drawn toward the pooled law, nothing left out takes part."""

from __future__ import annotations

import numpy as np
import pytest
from timing_cases import noisy

from fit import power
from fit.power import Points, joined
from headway.accuracy.rows import Row
from headway.cost import compile_replica
from headway.cost.power import PowerLaw
from headway.cost.power import _File as PowerFile
from headway.hardware import gpu
from headway.specs import from_mapping, read_yaml

MEDIA = [0.15, 0.3]  # not drawn with images, with videos
LAW = np.array([0.4, 0.2, 0.45, 0.1, *MEDIA])


def points(count=300, family="h100", law=LAW, model="m", spread=0.0, outliers=0.0) -> Points:
    """Points of one family by a law, far enough below TDP that it is never reached."""
    rng = np.random.default_rng(count)
    used, served = rng.uniform(0.05, 0.6, (count, 2)), model != "kernels"
    terms = np.column_stack([np.ones(count), used, rng.integers(0, 2, count) * served])
    media = np.eye(3)[rng.integers(0, 3, count)][:, :2] * served
    card = gpu(power.SERVED[family])
    span, idle = card.tdp_watts - card.idle_watts, card.idle_watts
    watts = idle + span * (terms @ law[:4]) * (1.0 - media @ law[4:])
    return Points(
        watts=noisy(watts, spread) / np.where(rng.random(count) < outliers, 2.5, 1.0),
        terms=terms,
        media=media,
        span=np.full(count, span),
        idle=np.full(count, idle),
        weight=np.ones(count),
        family=np.full(count, family),
        model=np.full(count, model),
    )


@pytest.mark.parametrize(("spread", "outliers", "within"), [(0.0, 0.0, 0.003), (0.05, 0.0, 0.03), (0.05, 0.05, 0.06)])
def test_the_shares_are_found_under_noise_and_outliers(spread, outliers, within):
    made = points(spread=spread, outliers=outliers)
    assert power.shares(made, points(30, model="kernels")) == pytest.approx(LAW, abs=within)


def test_no_watts_exceed_tdp():
    made = points()
    watts = made.predicted(np.array([0.9, 0.9, 0.9, 0.0, 0.0, 0.0]))
    assert watts.max() == pytest.approx(made.idle[0] + made.span[0])


def test_many_kernels_do_not_outweigh_the_points_served():
    other = np.array([0.1, 0.9, 0.1, 0.0, *MEDIA])
    few, many = (power.shares(points(), points(count, law=other)) for count in (50, 5000))
    assert few == pytest.approx(LAW, abs=0.06)
    assert many == pytest.approx(LAW, abs=0.06)


def test_a_family_is_drawn_toward_the_pooled_law_and_without_points_takes_it():
    own = np.array([0.55, 0.1, 0.3, 0.05, *MEDIA])
    mine = points(family="b200", law=own, spread=0.05)
    cells = joined([points(30, model="kernels"), points(30, "b200", own, "kernels")])
    both = joined([points(), mine])
    pooled, alone = power.shares(both, cells), power.shares(mine, cells.of(cells.family == "b200"))
    drawn = power.fitted(both, cells, "b200")
    assert 0.3 * np.linalg.norm(alone - pooled) < np.linalg.norm(drawn - pooled) < 0.97 * np.linalg.norm(alone - pooled)
    assert drawn == pytest.approx(own, abs=0.08)
    assert np.array_equal(power.fitted(both, cells, "default"), pooled)


def test_a_pair_of_many_rows_counts_more_than_one_of_few_and_less_than_by_its_rows():
    many, few = points(900, model="a"), points(100, model="b")
    weights = power._pair_weights(joined([many, few]), power.Settings().pairs)
    assert weights.mean() == pytest.approx(1.0)
    assert weights[:900].sum() / weights[900:].sum() == pytest.approx(3.0)


def test_a_family_with_more_rows_is_drawn_less():
    """The loss is linear where a law is far off, so the pull grows with the root of the rows and evidence with them."""
    own = np.array([0.55, 0.1, 0.3, 0.05, *MEDIA])
    cells, pooled, off = points(30, "b200", own, "kernels"), np.array([0.45, 0.2, 0.4, 0.1, *MEDIA]), []
    for count in (30, 300, 3000):
        mine = points(count, "b200", own, spread=0.05)
        alone, drawn = power.shares(mine, cells), power.shares(mine, cells, pooled)
        off.append(np.linalg.norm(drawn - alone) / np.linalg.norm(pooled - alone))
    assert off[0] > 0.1
    assert off[1] < off[0] and off[2] < 0.5 * off[1]


@pytest.mark.parametrize("split", ["pair", "model", "gpu"])
def test_what_is_left_out_takes_no_part_in_its_own_prediction(split):
    base = [
        points(model="a"),
        points(model="b"),
        points(200, "b200", model="a"),
        points(200, "b200", model="b"),
    ]
    cells = joined([points(30, model="kernels"), points(30, "b200", model="kernels")])
    every = joined(base)
    out = (every.model == "a") & (every.family == "h100")
    if split == "gpu":
        out = every.family == "h100"
    doubled = every._replace(watts=np.where(out, 2.0 * every.watts, every.watts))
    left, moved = (power.predictions(table, cells, power.fitted, split)[out] for table in (every, doubled))
    assert np.array_equal(left, moved)
    assert np.any(power.predictions(doubled, cells, power.fitted, "seen")[out] > 1.05 * left)


def test_an_unseen_model_is_left_out_on_both_gpus():
    every = joined([points(model="a"), points(200, "b200", model="a"), points(200, "b200", model="b")])
    other = joined([points(30, model="kernels"), points(30, "b200", model="kernels")])
    out = (every.model == "a") & (every.family == "b200")
    doubled = every._replace(watts=np.where((every.model == "a") & ~out, 2.0 * every.watts, every.watts))
    left, moved = (power.predictions(table, other, power.fitted, "model")[out] for table in (every, doubled))
    assert np.array_equal(left, moved)


# --- kernels


def products(count=400, family="h200"):
    """Long products by the law of watts, one shape of each in two cells of use."""
    card, k = gpu(family), np.full(2 * count, 8192.0)
    m, n = np.repeat([8.0, 16384.0], count), np.full(2 * count, 8192.0)
    moved, flops = 2.0 * (n * k + m * k + m * n), 2.0 * m * n * k
    seconds = np.maximum(moved / card.memory_bytes_per_s, flops / card.peak_flops["bf16"]) / 0.75
    used, busy = moved / card.memory_bytes_per_s / seconds, flops / card.peak_flops["bf16"] / seconds
    share = LAW[0] + LAW[1] * used + LAW[2] * np.sqrt(busy)
    watts = card.idle_watts + (card.tdp_watts - card.idle_watts) * np.minimum(share, 1.0)
    dtype = np.full(2 * count, "bfloat16", dtype=object)
    return {"time_us": 1e6 * seconds, "power_w": watts, "dtype": dtype, "m": m, "n": n, "k": k}


def test_cells_of_kernels_are_the_medians_of_long_possible_products():
    read = products()
    short = {name: values.copy() for name, values in read.items()}
    short["time_us"], short["power_w"] = np.full(800, 90.0), np.full(800, 9000.0)
    impossible = read | {"time_us": read["time_us"] * 0.5, "power_w": np.full(800, 9000.0)}
    long_m = read["m"] > 100
    impossible = {name: values[long_m] for name, values in impossible.items()}
    table = {name: np.concatenate([read[name], short[name], impossible[name]]) for name in read}
    cells = power._cells("h100", "h200", table)
    assert len(cells.watts) == 1  # products of 8 rows are over in less than a tenth of a millisecond
    assert cells.watts == pytest.approx(read["power_w"][-1])
    assert cells.predicted(LAW) == pytest.approx(cells.watts, rel=1e-6)


def test_a_cell_with_few_kernels_is_left_out():
    read = products(19)
    assert len(power._cells("h100", "h200", read).watts) == 0
    assert len(power._cells("h100", "h200", products(20)).watts) == 1


# --- serving


def served(**changes):
    """A steady state as the benchmark of its source has it."""
    said = {
        "row_id": "a", "source": "ml.energy-v3", "engine": "vllm", "engine_version": "0.11.1",
        "model_key": "qwen3-8b", "precision_weights": "bf16", "gpu_key": "H100", "gpu_count": 1, "tp": 1, "mode": "agg",
        "workload": "gpqa", "dist_note": "avg running batch", "osl_mean": 512.0, "concurrency": 64.0,
        "batch_size": 60.0, "measured": {"output_throughput": 3000.0, "power": 500.0, "itl_mean": 0.02},
    }  # fmt: skip
    return Row(**(said | changes))


def test_a_slower_step_reads_less_a_second_and_computes_less_by_the_root():
    fast, slow = served(), served(measured=served().measured | {"output_throughput": 1500.0})
    first, second = power.serving_point(fast), power.serving_point(slow)
    assert first[0] == second[0] == 1.0
    assert second[1] == pytest.approx(first[1] / 2.0)
    assert second[2] == pytest.approx(first[2] / 2.0**0.5)
    assert 0.0 < first[1] < 1.0 and 0.0 < first[2] < 1.0


def test_a_resident_step_alone_has_the_energy_of_its_time():
    replica = power.express(served()).deployment.pools[0].replica
    table = power.unit_table(replica, resident=1.0)
    card, plain = gpu("h100-sxm"), compile_replica(replica)
    joules = power.mean_step(table, 8.0, 1000.0, 1e9)
    context = 1000.0 + power.MEAN_AGE * 1e9
    seconds = plain.linear_s[8] + plain.seq_s[8] + plain.decode_s[8] + plain.decode_ctx_s[8] * 8.0 * context
    assert joules == pytest.approx((card.tdp_watts - card.idle_watts) * seconds, rel=0.02)


def test_suspect_rows_and_other_sources_have_no_watts_to_fit(monkeypatch):
    bound = served(gpu_key="B200", gpu_count=1, row_id="b", measured=served().measured | {"power": 300.0})
    trusted = served(gpu_key="B200", gpu_count=1, row_id="c", measured=served().measured | {"power": 600.0})
    rows = [
        served(),
        bound,
        trusted,
        served(source="elsewhere"),
        served(measured={"output_throughput": 3000.0}),
    ]
    monkeypatch.setattr(power, "read_rows", lambda path: rows)
    found = power.serving(power.Path("."))
    assert sorted(found.watts) == [500.0, 600.0]
    assert list(found.family) == ["h100", "b200"]


def test_the_file_written_is_the_file_read(monkeypatch, tmp_path):
    monkeypatch.setattr(power, "DATA", tmp_path / "power.yaml")
    every = joined([points(20), points(30, "b200")])
    laws = {family: np.round(LAW + i / 100, 3) for i, family in enumerate(("h100", "b200", "default"))}
    medians = {("model", "h100"): 0.1, ("model", "b200"): 0.12, ("gpu", "both"): 0.2}
    power.write(every, laws, medians)
    found = from_mapping(PowerFile, read_yaml(tmp_path / "power.yaml"), "power.yaml")
    expected = PowerLaw(
        waiting=0.10, resident=0.41, memory=0.21, compute=0.46, experts=0.11, error=0.12,
        timed=found.families["b200"].timed,
    )  # fmt: skip
    assert found.media == pytest.approx({"image": 0.17, "video": 0.32})
    assert found.families["b200"] == expected
    assert "30 rows" in expected.timed
    assert (found.default.kind, found.default.evidence, found.default.error) == ("modelled", "pooled", 0.2)


def test_settings_are_those_that_predict_pairs_left_out():
    """Kernels by another law than what is served: the more they weigh, the worse."""
    served = joined([points(40, model=name, spread=0.03) for name in "abcdefgh"])
    kernels = points(200, law=np.array([0.1, 0.9, 0.1, 0.0, *MEDIA]), model="kernels")
    found = power.settled(served, kernels, "h100")
    off = {weight: np.abs(power.fitted(served, kernels, "h100", power.Settings(kernels=weight)) - LAW).sum()
           for weight in (0.0, 0.03, 0.3)}  # fmt: skip
    assert off[0.0] < off[power.CHOSEN.kernels] < off[0.3]
    assert np.abs(found - LAW).sum() < 0.6 * off[power.CHOSEN.kernels]
