"""Rows that no hardware or no run can have measured: each law refused by its name, and what is no contradiction."""

import pytest

from accuracy_cases import point
from headway.accuracy.express import express
from headway.accuracy.physics import broken


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"measured": {"ttft_mean": 0.001}}, "ttft_mean below the time to read the weights"),
        (
            {"measured": {"ttft_mean": 0.02}, "isl_mean": 8192.0},
            "ttft_mean below the time of the prompt's FLOPs at the GPUs' peak",
        ),
        ({"measured": {"power": 760.0}}, "power above the GPUs' TDP"),
        ({"measured": {"power": 440.0}, "gpu": "H100 (Power Cap 400 W)"}, "power above the stated limit"),
        (
            {"measured": {"power": 600.0, "output_throughput": 500.0, "energy_per_token": 0.6}},
            "energy per token contradicts power over throughput",
        ),
        (
            {"measured": {"ttft_mean": 0.05, "tpot_mean": 0.01, "e2e_mean": 0.4}},
            "end before first token and further tokens together",
        ),
        (
            {"measured": {"ttft_mean": 0.5, "e2e_mean": 0.3}, "request_rate": 2.0},
            "end before first token and further tokens together",
        ),
        ({"measured": {"itl_p50": 0.02, "itl_p99": 0.01}}, "percentiles of itl that fall"),
    ],
)  # fmt: skip
def test_a_row_that_breaks_a_law_is_refused_by_its_name(changes, reason):
    row = point(**changes)
    assert broken(row, express(row)) == f"breaks physics: {reason}"


@pytest.mark.parametrize(
    "changes",
    [
        {"measured": {"ttft_mean": 0.02}, "isl_mean": 8192.0, "notes": "prefix_caching on"},
        {"measured": {"ttft_mean": 0.02}, "isl_mean": 8192.0, "dist_note": "prompts cached by an earlier run"},
        {"measured": {"power": 720.0}},
        {"measured": {"power": 600.0, "output_throughput": 500.0, "energy_per_token": 1.6}},
        {"measured": {"ttft_mean": 0.05, "tpot_mean": 0.01, "e2e_mean": 0.5}},
        {"measured": {"tpot_mean": 0.1, "e2e_mean": 2.0}, "request_rate": 2.0},
        {"measured": {"ttft_p50": 1.005, "ttft_p90": 1.0, "ttft_p99": 1.0}},
    ],
)  # fmt: skip
def test_what_notes_explain_or_meters_miss_is_no_contradiction(changes):
    row = point(**changes)
    assert broken(row, express(row)) == ""


def test_a_first_token_without_a_stated_prompt_still_needs_the_weights():
    def said(ttft_s):
        row = point(measured={"ttft_mean": ttft_s}, workload="mlperf Offline", isl_mean=None, tp=None)
        return broken(row, express(row))

    assert said(0.001).endswith("ttft_mean below the time to read the weights")
    assert said(0.004) == ""
