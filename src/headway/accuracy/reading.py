"""What the words of a table mean: model and GPU keys, precisions, settings that a source leaves unsaid."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

from headway.accuracy.rows import Row
from headway.hardware import Gpu, gpu, gpu_keys
from headway.model import model_keys
from headway.specs import Spec, from_mapping, read_yaml

__all__ = [
    "Inexpressible",
    "Mlperf",
    "is_mlperf",
    "is_sweep",
    "precisions",
    "read_gpu",
    "read_model",
    "reading",
    "suspicion",
]

_DATA = Path(__file__).parent / "data" / "reading.yaml"


class Inexpressible(Exception):
    """A row that is no deployment and workload of ours; its text is the reason it is counted by."""


class Limits(Spec):
    """99th percentiles a load must keep."""

    ttft_s: float
    tpot_s: float


class Mlperf(Spec):
    """A data set's mean lengths in tokens, and the limits of its latency-bound scenarios."""

    prompt: int
    output: int
    Server: Limits | None = None
    Interactive: Limits | None = None


class Unstated(Spec):
    """Precision of rows that do not give one: fp4 on these GPUs, fp8 on the others."""

    workload: str
    fp4_gpus: tuple[str, ...]


class Budget(Spec):
    """Tokens in a step: of InferenceX rows, and of vendors' own sweeps."""

    measured: int
    sweep: int


class Suspect(Spec):
    """Rows that look wrong and why: those with one of the values in every column of `where`.

    Of `notes` at least one must occur in the row's notes, and its power must be below `power_below_watts`, where given.
    """

    why: str
    where: dict[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()
    power_below_watts: float | None = None

    def names(self, row: Row) -> bool:
        """Whether the row is one of them."""
        if any(str(getattr(row, column)) not in values for column, values in self.where.items()):
            return False
        if self.notes and not any(word in row.notes for word in self.notes):
            return False
        return self.power_below_watts is None or row.measured.get("power", math.inf) < self.power_below_watts


class Reading(Spec):
    """The data file; see its comments."""

    models: dict[str, str]
    gpus: dict[str, str]
    gpu_names: dict[str, str]
    power_capped: tuple[str, ...]
    precisions: dict[str, str]
    mxfp4_models: tuple[str, ...]
    unstated_precision: Unstated
    token_budget: dict[str, Budget]
    token_budget_default: int
    prompts: dict[str, int]
    mlperf: dict[str, Mlperf]
    suspects: tuple[Suspect, ...]


@cache
def reading() -> Reading:
    """Return how measurements are read."""
    return from_mapping(Reading, read_yaml(_DATA), str(_DATA))


@cache
def _known() -> tuple[frozenset[str], frozenset[str]]:
    return frozenset(model_keys()), frozenset(gpu_keys())


def read_model(row: Row) -> str:
    """Return the catalogue's key of the row's model.

    Raises:
        Inexpressible: it is not in the catalogue, or the key does not stand for the model that is named.
    """
    key = reading().models.get(row.model_key, row.model_key.lower())
    if "distill" in row.model.lower() and key.startswith("deepseek"):
        raise Inexpressible("the model's key is not the model it names")
    if key not in _known()[0]:
        raise Inexpressible("model not in the catalogue")
    return key


def read_gpu(row: Row) -> Gpu:
    """Return the catalogue's GPU.

    Raises:
        Inexpressible: it is not in the catalogue, several kinds are mixed, or its power is capped.
    """
    if row.gpu_count == 0:
        raise Inexpressible("no GPU")
    if " and " in row.gpu:
        raise Inexpressible("several kinds of GPU in one deployment")
    if any(word in row.gpu for word in reading().power_capped):
        raise Inexpressible("power-capped GPU")
    key = reading().gpu_names.get(row.gpu) or reading().gpus.get(row.gpu_key, row.gpu_key.lower())
    if key not in _known()[1]:
        raise Inexpressible("GPU not in the catalogue")
    return gpu(key)


def precisions(row: Row, model_key: str, card: Gpu) -> tuple[str, str]:
    """Return the precisions of weights and KV cache.

    Raises:
        Inexpressible: one that the cost model does not know.
    """
    weights = reading().precisions.get(row.precision_weights.lower())
    unstated = row.precision_weights in ("", "UNSET") and row.workload.startswith(reading().unstated_precision.workload)
    if unstated:
        weights = "fp4" if card.key in reading().unstated_precision.fp4_gpus else "fp8"
    if model_key in reading().mxfp4_models:
        weights = "mxfp4"
    if weights is None:
        raise Inexpressible("precision of the weights not modelled")
    return weights, _kv(row, weights, card)


def _kv(row: Row, weights: str, card: Gpu) -> str:
    """As stated; else fp8 where recipes of this kind use it: beside quantised weights, vLLM's own sweeps excepted."""
    stated = row.precision_kv.lower()
    quantised = weights in ("fp8", "fp4", "mxfp4")
    recipe = "measured=" in row.notes or is_mlperf(row) or row.engine == "trtllm"
    wants = "fp8" if stated == "fp8" or (not stated and quantised and recipe) else "bf16"
    return wants if "fp8" in card.peak_flops else "bf16"


def is_mlperf(row: Row) -> bool:
    """Whether the load is one of MLPerf's scenarios."""
    return row.workload.startswith("mlperf")


def is_sweep(row: Row) -> bool:
    """Whether it is of a vendor's own sweep, with fixed lengths, and not of InferenceX."""
    return "measured=" not in row.notes


def suspicion(row: Row) -> str:
    """Return why a row looks wrong, or ""; such rows are used, and the errors given without them as well."""
    return next((suspect.why for suspect in reading().suspects if suspect.names(row)), "")
