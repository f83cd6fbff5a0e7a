"""Measured points made up for the tests of calibration: the simulator's own figures under a law that is known."""

import msgspec

from accuracy_cases import point
from headway.accuracy.calibration_fit import Prior
from headway.accuracy.express import express
from headway.accuracy.judge import deployed
from headway.accuracy.predict import predict
from headway.accuracy.rows import Row
from headway.cost.calibration import Calibration, Term

FIGURES = ("ttft_mean", "tpot_mean", "output_throughput")
PRIOR = Prior(
    groups=0,
    widths={
        "few_tokens": 0.25,
        "many_tokens": 0.25,
        "context": 0.25,
        "layer_s": 20e-6,
        "step_s": 0.5e-3,
        "sequence_s": 20e-6,
        "prompt_layer_s": 50e-6,
        "intake_s": 20e-3,
    },
    noise={"ttft": 0.05, "tpot": 0.02, "output_throughput": 0.02, "e2e": 0.02},
)
LARGE_LOADS = (1.0, 8.0, 32.0)
GRID = [(load, isl) for isl in (128.0, 1024.0, 6000.0) for load in (1.0, 8.0, 32.0, 128.0)]


def term(value: float) -> Term:
    return Term(value=value, low=value, high=value)


def law(**terms: float) -> Calibration:
    return Calibration(gpu="h100-sxm", engine="vllm", **{name: term(value) for name, value in terms.items()})


def measured(load: float, isl: float, truth: Calibration | None, noise: float = 1.0, **changes: object) -> Row:
    """A row as the simulator would have measured it under `truth`."""
    name = f"c{load:g}-i{isl:g}"
    row = point(**{"row_id": name, "concurrency": load, "isl_mean": isl, "osl_mean": 48.0} | changes)
    figures = predict(deployed(express(row), truth))
    return msgspec.structs.replace(row, measured={name: figures[name] * noise for name in FIGURES})


def measured_grid(truth: Calibration | None) -> list[Row]:
    """Points of two models: with one alone, host time and the reading of its weights look alike."""
    large = [measured(load, 1024.0, truth, row_id=f"large-{load:g}", model_key="qwen3-32b") for load in LARGE_LOADS]
    return [*(measured(load, isl, truth) for load, isl in GRID), *large]
