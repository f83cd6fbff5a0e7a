"""Collectives and expert dispatch: laws found, the fastest library counts, a larger message is never faster."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from timing_cases import SIZES, WIRE, collectives, grid, noisy, stacked

from fit import collectives as fits
from fit.laws import collective_lines, dispatch_lines
from fit.read import sheet
from fit.solve import errors
from headway.cost import physics
from headway.cost.operators import CollectiveLaw, DispatchLaw
from headway.hardware import gpu

NAMES = ("latency_us", "bus", "root_ns", "p")


def with_nccl(name="H100", gpus=(2, 4, 8), **law):
    """An engine's own all-reduce, and NCCL's a little slower."""
    return stacked(
        collectives(name, gpus=gpus, **law),
        collectives(name, "nccl", gpus=gpus, **{**law, "latency_us": 20.0}),
    )


def test_the_law_of_an_all_reduce_is_found():
    groups = fits.timings(with_nccl())
    assert sorted(rows.gpus for rows in groups) == [2, 4, 8]
    for rows in groups:
        assert fits.fit(rows) == pytest.approx([WIRE[name] for name in NAMES], rel=0.02)


@pytest.mark.parametrize("op", ["all_gather", "reduce_scatter", "alltoall"])
def test_the_other_operators_are_ncclses_alone(op):
    table = stacked(collectives(lib="nccl", op=op), collectives(lib="vllm", op=op, latency_us=1.0))
    groups = fits.timings(table)
    assert {(rows.engine, rows.op) for rows in groups} == {("nccl", fits.OPS[op])}
    assert fits.fit(groups[0]) == pytest.approx([WIRE[name] for name in NAMES], rel=0.02)


def test_an_all_reduce_is_the_fastest_row_of_engine_and_nccl():
    table = stacked(collectives(gpus=(4,)), collectives("H100", "nccl", gpus=(4,)))
    large = (table["lib"] == "vllm") & (table["message_bytes"] >= SIZES[10])
    eager = table | {"time_us": np.where(large, 50.0, 1.0) * table["time_us"]}
    assert fits.timings(eager)[0].seconds == pytest.approx(fits.timings(table)[0].seconds)


def test_a_larger_message_is_never_faster_and_none_slower_than_timed():
    table = collectives(gpus=(4,))
    spoilt = table | {"time_us": noisy(table["time_us"], 0.5)}
    seconds = fits.timings(spoilt)[0].seconds
    assert np.any(np.diff(spoilt["time_us"]) < 0.0)
    assert np.all(np.diff(seconds) >= 0.0)
    assert np.all(seconds <= spoilt["time_us"] * 1e-6)


def test_other_sources_and_gpus_through_the_host_do_not_count():
    other = with_nccl() | {"source": np.full(len(with_nccl()["gpu"]), "elsewhere", dtype=object)}
    assert fits.timings(other) == []
    assert fits.timings(with_nccl("L40S")) == []
    sixteen = with_nccl() | {"num_gpus": np.full(len(with_nccl()["gpu"]), 16)}
    assert fits.timings(sixteen) == []


def test_the_collective_simulated_is_the_collective_fitted():
    table = stacked(with_nccl(), with_nccl("B200"))
    own = next(line for line in collective_lines(table) if line.gpu == "h100")
    law, card = msgspec.convert(own.entry()["law"], CollectiveLaw), gpu("h100-sxm")
    for rows in fits.timings(table):
        if rows.gpu == "h100":
            used = physics.all_reduce(law, card, rows.gpus, rows.size)
            assert used.seconds == pytest.approx(fits.predict(fits.fit(rows), rows), rel=2e-3)
            assert errors(used.seconds, rows.seconds).p90 < 0.02


def test_eight_gpus_that_were_not_timed_take_those_of_the_b200():
    lines = collective_lines(stacked(with_nccl(gpus=(2, 4)), with_nccl("B200", latency_us=11.0)))
    own = next(line for line in lines if line.gpu == "h100").law
    assert own["latency_s"] == pytest.approx([7e-6, 7e-6, 11e-6], rel=0.03)


# --- DeepEP

DISPATCH = {"launch_us": 25.0, "link": 0.5, "rdma_launch_us": 60.0, "rdma": 0.6}


def dispatches(name, nodes=(1, 2, 4), **law):
    """Low-latency dispatch and combine, each with half of the time, by two numbers of SMs."""
    law = DISPATCH | law
    table = grid(
        gpu=[name], mode=["ll"], node_num=nodes, hidden_size=(2048, 7168), num_token=tuple(2**i for i in range(14)),
        num_topk=[8], num_experts=[256], dispatch_sms=(12, 24),
    )  # fmt: skip
    card = sheet(name.lower())
    near, far = np.array([physics.copies_sent("ll", 8 * count, 8, 8.0) for count in table["node_num"]]).T
    size = 3.0 * table["hidden_size"] * table["num_token"]
    link_us = 1e6 * size * near / card.link_bytes_per_s / law["link"]
    rdma_us = law["rdma_launch_us"] + 1e6 * size * far / card.rdma_bytes_per_s / law["rdma"]
    us = law["launch_us"] + np.maximum(link_us, np.where(table["node_num"] > 1, rdma_us, 0.0))
    us = us * np.where(table["dispatch_sms"] == 12, 1.7, 1.0)
    empty = {
        f"{side}_{part}_us": np.full(len(us), np.nan)
        for side in ("dispatch", "combine")
        for part in ("transmit", "notify")
    }
    return table | {"dispatch_avg_t_us": us / 2.0, "combine_avg_t_us": us / 2.0, **empty}


def test_the_law_of_dispatch_is_found_from_the_fastest_number_of_sms():
    (rows,) = fits.dispatch_timings(dispatches("H100"))
    assert len(rows.seconds) == 3 * 2 * 14
    assert fits.fit_dispatch(rows) == pytest.approx(list(DISPATCH.values()), rel=0.02)


def test_a_network_that_was_not_timed_is_the_h100s():
    copied = dispatches("H200", rdma_launch_us=200.0)
    lines = dispatch_lines(stacked(dispatches("H100"), copied, both_modes()))
    h200 = next(line for line in lines if (line.gpu, line.of) == ("h200", "ll")).law
    assert (h200["rdma_launch_s"], h200["rdma"]) == pytest.approx((60e-6, 0.6), rel=0.03)
    assert {line.gpu for line in lines if line.of == "ll"} == {"h100", "h200", "pooled"}
    for line in lines:
        assert msgspec.convert(line.entry()["law"], DispatchLaw).launch_s > 0.0


def both_modes():
    """The H100's normal mode, whose times stand in other columns."""
    table = dispatches("H100")
    us = table["dispatch_avg_t_us"]
    parts = {name: us / 2.0 for name in table if name.endswith(("transmit_us", "notify_us"))}
    missing = np.full(len(us), np.nan)
    return table | parts | {
        "mode": np.full(len(us), "normal", dtype=object), "dispatch_avg_t_us": missing, "combine_avg_t_us": missing
    }  # fmt: skip
