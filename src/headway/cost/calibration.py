"""A user's own calibration of the step law: what it holds, its file, and how it changes a step table's arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from headway.cost.efficiency import Estimate
from headway.cost.engines import HostTerms
from headway.cost.steptable import StepTable
from headway.errors import BadInput
from headway.hardware import silicon
from headway.hardware.files import located
from headway.specs import Spec, check_types, from_mapping, read_yaml

__all__ = ["FACTORS", "SCHEMA", "SHIFTS", "Calibration", "CalibrationFile", "Evidence", "Term", "calibrated",
           "kernels_only", "many_share", "mismatch", "read_calibration", "shifted"]  # fmt: skip

Floats = npt.NDArray[np.float64]
Compile = Callable[[HostTerms], StepTable]

SCHEMA: Final = "headway.calibration/1"
_EXPECTED: Final = f"expected the YAML that `headway calibrate TABLE.csv --out FILE` writes, of the schema {SCHEMA!r}"
FEW_TOKENS, MANY_TOKENS = 64.0, 1024.0  # around the 200 to 600 tokens where products turn from bytes to FLOPs
FACTORS: Final = ("few_tokens", "many_tokens", "context")
SHIFTS: Final = ("layer_s", "step_s", "sequence_s", "prompt_layer_s", "intake_s")


class Term(Spec):
    """A fitted number and its 90 % interval.

    Raises:
        BadInput: a value of another type.
    """

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuse what is no number."""
        check_types(self, "calibration term")


_ONE, _NONE = Term(value=1.0, low=1.0, high=1.0), Term(value=0.0, low=0.0, high=0.0)


class Calibration(Spec):
    """What a user's measurements change in the law of one GPU and engine.

    Factors multiply kernel time: `few_tokens` that of steps of up to 64 tokens, where weights are read, `many_tokens`
    that of steps from 1,024 tokens on and of prompt attention, where operations count, both by the logarithm of the
    tokens between; `context` the attention of decoding sequences. Shifts are added to the host terms of the same name,
    in seconds, as far as none falls below zero. `versions`, `models`, `weights`, `kv`, `gpu_counts` of an instance,
    `precisions` (of weights and KV together, those with points enough), `layouts` (tp, pp, dp, ep) and `limits` (W and
    MHz that slow the GPU, 0 for none) say what was measured; `source` says where; `held_out` the median errors on
    points not seen (see `Evidence`), `held_out_figures` of how many figures.

    Raises:
        BadInput: a value of another type, a factor that is not above 0, or an interval that does not hold its value.
    """

    gpu: str
    engine: str
    versions: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    kv: tuple[str, ...] = ()
    gpu_counts: tuple[int, ...] = ()
    precisions: tuple[tuple[str, str], ...] = ()
    layouts: tuple[tuple[int, int, int, int], ...] = ()
    limits: tuple[tuple[float, float], ...] = ()
    source: str = ""
    held_out: tuple[tuple[str, float], ...] = ()
    held_out_figures: tuple[tuple[str, int], ...] = ()
    few_tokens: Term = _ONE
    many_tokens: Term = _ONE
    context: Term = _ONE
    layer_s: Term = _NONE
    step_s: Term = _NONE
    sequence_s: Term = _NONE
    prompt_layer_s: Term = _NONE
    intake_s: Term = _NONE

    def __post_init__(self) -> None:
        """Refuse numbers that no law can be multiplied by."""
        check_types(self, "calibration")
        for name in (*FACTORS, *SHIFTS):
            term: Term = getattr(self, name)
            if name in FACTORS and not term.low > 0.0:
                raise BadInput(f"calibration: {name} {term.value:g} from {term.low:g}: a factor is above 0")
            if not term.low <= term.value <= term.high:
                raise BadInput(f"calibration: {name} {term.value:g} is not between {term.low:g} and {term.high:g}")

    @property
    def changes(self) -> bool:
        """Whether any term differs from the shipped law's."""
        return any(getattr(self, name).value != 1.0 for name in FACTORS) or any(
            getattr(self, name).value != 0.0 for name in SHIFTS
        )


class Evidence(Spec):
    """What a calibration rests on: points used and left out by reason, and errors on points it had not seen.

    Errors are medians of the absolute relative error by metric, `before` by the shipped law, `held_out` by
    calibrations on the other points, `after` by this one on its own points. `kept` is false where held-out errors
    did not improve, so that all factors are 1 and all shifts 0; `tried` are then those of the best calibration tried.
    """

    points: int
    left_out: dict[str, int] = msgspec.field(default_factory=dict)
    kept: bool = True
    before: dict[str, float] = msgspec.field(default_factory=dict)
    held_out: dict[str, float] = msgspec.field(default_factory=dict)
    tried: dict[str, float] = msgspec.field(default_factory=dict)
    after: dict[str, float] = msgspec.field(default_factory=dict)


class CalibrationFile(Spec):
    """The file `headway calibrate` writes: the calibration, what it rests on, where and when it was measured."""

    schema: str
    calibration: Calibration
    evidence: Evidence
    fingerprint: dict[str, Any] = msgspec.field(default_factory=dict)
    file: str = ""
    sha256: str = ""
    date: str = ""


def read_calibration(path: str | Path) -> CalibrationFile:
    """Return the calibration in a file.

    Raises:
        BadInput: no such file, another schema, or a field that is missing, unknown or wrong.
    """
    try:
        data = read_yaml(path)
    except BadInput as error:
        raise BadInput(str(error) if not Path(path).exists() else f"{error}\n{_EXPECTED}") from None
    if data.get("schema") != SCHEMA:
        came = f"of the schema {str(data['schema'])[:60]!r}" if "schema" in data else "a mapping without a schema"
        raise BadInput(f"{path}: no calibration but {came}\n{_EXPECTED}")
    return from_mapping(CalibrationFile, data, str(path))


def mismatch(calibration: Calibration, gpu: str, engine: str) -> str:
    """Return how the hardware or engine differs from what was measured, or ""."""
    differ = [
        f"{what} {came} here, {measured} in the calibration"
        for what, came, measured in (("GPU", gpu, calibration.gpu), ("engine", engine, calibration.engine))
        if located(measured) not in (came, silicon(came))
    ]
    return "; ".join(differ)


def many_share(count: int) -> Floats:
    """Return, for steps of 0 to `count` - 1 tokens, the share of kernel time that `many_tokens` scales."""
    octaves = np.log2(np.maximum(np.arange(count), FEW_TOKENS) / FEW_TOKENS)
    return np.asarray(np.minimum(octaves / np.log2(MANY_TOKENS / FEW_TOKENS), 1.0))


def kernels_only(host: HostTerms) -> HostTerms:
    """Return host terms that leave the kernels alone; negative seconds are what kernels save one another."""
    names = [name for name in host.__struct_fields__ if name.endswith("_s")]
    return msgspec.structs.replace(host, **{name: min(0.0, getattr(host, name)) for name in names})


def _at_peak(host: HostTerms) -> HostTerms:
    """Return host terms with which every operator takes what the data sheet allows at best, and the host nothing."""
    nothing = {name: 0.0 for name in host.__struct_fields__ if name.endswith("_s")}
    return msgspec.structs.replace(host, kernels=0.0, **nothing)


def shifted(host: HostTerms, shifts: dict[str, float]) -> HostTerms:
    """Return host terms with seconds added by name; none falls below 0, or below what it is."""
    own = {name: float(getattr(host, name)) for name in shifts}
    least = {name: min(0.0, value) for name, value in own.items()}
    return msgspec.structs.replace(host, **{name: max(least[name], own[name] + by) for name, by in shifts.items()})


def calibrated(calibration: Calibration, host: HostTerms, compile_: Compile) -> StepTable:
    """Return the step table of a replica by its calibration; seconds it adds draw what a step does that does nothing.

    No factor takes an operator below its bytes at the data sheet's bandwidth or its FLOPs at the peak. `compile_`
    returns its table with the host terms given instead of `host`, its engine's own.
    """
    table = compile_(shifted(host, {name: getattr(calibration, name).value for name in SHIFTS}))
    kernels = compile_(kernels_only(host))
    bounds = compile_(_at_peak(host))
    few, many, context = (getattr(calibration, name).value - 1.0 for name in FACTORS)
    share = many_share(len(kernels.linear_s))
    linear_s = table.linear_s + kernels.linear_s * (few + (many - few) * share)
    arrays = {
        "linear_s": linear_s,
        "seq_s": table.seq_s + kernels.seq_s * few,
        "decode_s": table.decode_s * (1.0 + context),
        "decode_ctx_s": table.decode_ctx_s * (1.0 + context),
        "decode_window_s": table.decode_window_s * (1.0 + context),
    }
    scalars = {
        name: getattr(table, name) * (1.0 + many)
        for name in ("prefill_base_s", "prefill_area_s", "prefill_window_area_s")
    }
    arrays = {name: np.maximum(seconds, getattr(bounds, name)) for name, seconds in arrays.items()}
    scalars = {name: max(seconds, getattr(bounds, name)) for name, seconds in scalars.items()}
    arrays["linear_s"] = np.maximum.accumulate(arrays["linear_s"])

    def joules(name: str, seconds: Any) -> Any:
        shipped_j, added_s = getattr(table, f"{name[:-1]}j"), seconds - getattr(table, name)
        return np.maximum(shipped_j + table.resident_watts * added_s, 0.0)

    arrays |= {f"{name[:-1]}j": joules(name, seconds) for name, seconds in arrays.items()}
    arrays["linear_j"] = np.maximum.accumulate(arrays["linear_j"])
    scalars |= {f"{name[:-1]}j": float(joules(name, seconds)) for name, seconds in scalars.items()}
    for values in arrays.values():
        values.flags.writeable = False
    origin = table.provenance | _estimates(calibration)
    return msgspec.structs.replace(table, provenance=origin, **arrays, **scalars)


def _estimates(calibration: Calibration) -> dict[str, Estimate]:
    source = calibration.source or "a calibration"
    return {
        f"calibration.{name}": Estimate(
            value=term.value, unit="s" if name in SHIFTS else "ratio", kind="fitted", source=source,
            low=term.low, high=term.high,
        )
        for name in (*FACTORS, *SHIFTS)
        for term in (getattr(calibration, name),)
    }  # fmt: skip
