"""Residuals by level of evidence: a row counts as evidence of what it measured, and of nothing else."""

import numpy as np
import pytest
import yaml

from accuracy_cases import point
from fit.uncertainty import Seen, document, record, residuals
from headway.accuracy.judge import Outcome
from headway.cost.uncertainty import METRICS

PLACE = ("vllm", "0.6", "mi300x", "llama-2-70b")
PREDICTED = {"tpot_mean": 0.02, "ttft_mean": 0.1, "output_throughput": 500.0}


def seen(row_id, fitted, place=PLACE, **measured):
    row = point(row_id=row_id, model_key=place[3], gpu_key=place[2], concurrency=8.0, measured=measured)
    return Seen(row, Outcome(PREDICTED, gpus=1), place, object() if fitted else None, {})


ROWS = [
    seen("rate", True, output_throughput=400.0),
    seen("times", False, tpot_mean=0.01),
    seen("sibling", True, (*PLACE[:3], "mistral-7b-v0.1"), ttft_mean=0.2),
    seen("first", False, ttft_mean=0.1),
]


def test_what_was_measured_of_a_pair_is_kept_by_metric():
    assert record(ROWS) == {PLACE: {"output_throughput"}, (*PLACE[:3], "mistral-7b-v0.1"): {"ttft"}}


def test_times_in_a_closed_loop_say_its_end_and_throughput_too():
    both = seen("both", True, ttft_mean=0.1, tpot_mean=0.02)
    assert record([both]) == {PLACE: {"ttft", "tpot", "e2e", "output_throughput"}}


def test_each_figure_is_at_the_level_of_its_metric():
    found = {(one.row_id, one.metric): (one.level, one.log) for one in residuals(ROWS, {}, {})}
    assert found["rate", "output_throughput"] == ("seen pair", pytest.approx(np.log(500 / 400)))
    assert found["times", "tpot"] == ("data sheet", pytest.approx(np.log(2.0)))
    assert found["first", "ttft"] == ("seen GPU", pytest.approx(0.0))
    assert found["sibling", "ttft"][0] == "seen pair"


def test_a_pair_left_out_is_judged_by_others_that_measured_the_same():
    left = {"rate": {"rate": 0.5}, "sibling": {"ttft": 0.5}}
    others = [*ROWS, seen("more", True, (*PLACE[:3], "qwen2-7b"), output_throughput=300.0)]
    levels = {(one.row_id, one.level) for one in residuals(others, left, {})}
    assert ("rate", "seen GPU") in levels
    assert ("sibling", "seen GPU") not in levels and ("sibling", "data sheet") in levels


def test_the_data_file_lists_models_by_what_was_measured():
    rows = [seen(str(i), True, output_throughput=400.0, tpot_mean=0.025) for i in range(50)]
    every = [seen(f"all {i}", True, ttft_mean=0.13, tpot_mean=0.025) for i in range(50)]
    rows += [one._replace(place=(*PLACE[:3], "qwen2-7b")) for one in every]
    rows += [
        seen(f"watts {i}", True, ("vllm", "0.6", "h100-sxm", "qwen2-7b"), power=500.0, energy_per_token=1.0)
        for i in range(50)
    ]
    rows = [
        one._replace(outcome=Outcome({**PREDICTED, "power": 400.0 + i, "energy_per_token": 1.0 + i / 100}))
        for i, one in enumerate(rows)
    ]
    spread = {"output_throughput": {"seen pair": 0.3}, "energy_per_token": {"seen pair": 0.3}}
    data = yaml.safe_load(document(rows, residuals(rows, {}, {}), spread))
    told = data["seen"]["vllm"]["0.6"]["mi300x"]
    assert told == {"tpot output_throughput": ["llama-2-70b"], "ttft tpot e2e output_throughput": ["qwen2-7b"]}
    assert all(set(key.split()) <= set(METRICS) for key in told)
