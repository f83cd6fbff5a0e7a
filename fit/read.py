"""Reading the operator timings: numpy columns, GPU families, data sheets."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv

from headway.hardware import gpu

Floats = npt.NDArray[np.float64]
Columns = dict[str, npt.NDArray]

FAMILIES = {  # the source's names: catalogue family, catalogue key of the card that was timed
    "A100": ("a100", "a100-80gb-sxm"),
    "H100": ("h100", "h100-sxm"),
    "H200": ("h200", "h200"),
    "B200": ("b200", "b200"),
    "B300": ("b300", "b300"),
    "GB200": ("gb200", "gb200"),
    "GB300": ("gb300", "gb300"),
    "L40S": ("l40s", "l40s"),
    "RTXPRO6000": ("rtx-pro-6000", "rtx-pro-6000"),
}
WORKSTATION = ("rtx-pro-6000",)
L2_BYTES = {"a100": 40e6, "h100": 50e6, "h200": 50e6, "l40s": 96e6, "rtx-pro-6000": 128e6}  # others 126 MB
DTYPES = {
    "bfloat16": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "fp4",
    "sq": "int8",
    "int8_wo": "int8-weights",
    "int4_wo": "int4-weights",
    "w4a8_mxfp4_mxfp8": "mxfp4",
    "w4a16_mxfp4": "weight-only",
}
PEAK_OF = {  # the data-sheet peak that a precision's law is a share of, bytes of a weight and of an input
    "bf16": ("bf16", 2.0, 2.0),
    "fp8": ("fp8", 1.0, 1.0),
    "fp8_block": ("fp8", 1.0, 1.0),
    "fp4": ("fp4", 0.5625, 0.5625),
    "int8": ("int8", 1.0, 1.0),
    "int8-weights": ("bf16", 1.0, 2.0),
    "int4-weights": ("bf16", 0.53125, 2.0),
    "mxfp4": ("fp8", 0.53125, 1.0),
    "weight-only": ("bf16", 0.53125, 2.0),
}


class Sheet(NamedTuple):
    """What the laws are shares of."""

    bytes_per_s: float
    flops: dict[str, float]
    sms: int
    link_bytes_per_s: float
    link_kind: str
    rdma_bytes_per_s: float
    l2_bytes: float


def sheet(family: str) -> Sheet:
    """Return the data sheet of the card that was timed for a family."""
    card = gpu(dict(FAMILIES.values())[family])
    return Sheet(
        card.memory_bytes_per_s,
        dict(card.peak_flops),
        card.sm_count,
        card.link_bytes_per_s,
        card.link_kind,
        card.rdma_bytes_per_s,
        L2_BYTES.get(family, 126e6),
    )


def columns(folder: Path, name: str) -> Columns:
    """Return the columns of ``ops_<name>.csv.gz``, the timed families only; empty numbers become NaN."""
    path = folder / f"ops_{name}.csv.gz"
    options = pa_csv.ConvertOptions(strings_can_be_null=False)
    table = pa_csv.read_csv(pa.input_stream(str(path), compression="gzip"), convert_options=options)
    found: Columns = {}
    for field in table.column_names:
        values = table[field]
        found[field] = (
            np.array(values.to_pylist(), dtype=object) if pa.types.is_string(values.type) else values.to_numpy()
        )
    return choose(found, np.isin(found["gpu"], list(FAMILIES)))


def choose(table: Columns, mask: npt.NDArray) -> Columns:
    """Return the rows of a mask or of an index."""
    return {name: values[mask] for name, values in table.items()}


def groups(table: Columns, *names: str) -> dict[tuple[str, ...], Columns]:
    """Return the table cut by the values of some columns, ordered by them."""
    keys = table[names[0]].astype(str).astype(object)
    for name in names[1:]:
        keys = keys + "|" + table[name].astype(str).astype(object)
    distinct, inverse = np.unique(keys.astype(str), return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    cuts = np.searchsorted(inverse[order], np.arange(len(distinct) + 1))
    return {
        tuple(key.split("|")): choose(table, order[cuts[i] : cuts[i + 1]]) for i, key in enumerate(distinct.tolist())
    }
