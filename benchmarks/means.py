"""Mean errors by engine on InferenceX and vendors' sweeps, beside which rivals' published means may be laid.

    python benchmarks/means.py TABLE.csv.gz

Rows that look wrong are left out; the host terms of the package were fitted on the others too. End to end is of the
time to first token and those after it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from headway.accuracy import Row, read_rows, validate
from headway.accuracy.reading import suspicion
from headway.accuracy.score import headline

SOURCE = "aiconfigurator-silicon"
CHOSEN: dict[str, Callable[[Row], bool]] = {
    "vllm": lambda row: row.engine == "vllm" and row.mode == "agg",
    "sglang": lambda row: row.engine == "sglang" and row.mode == "agg",
    "trtllm": lambda row: row.engine == "trtllm" and row.mode == "agg",
    "all, and split": lambda row: True,
}


def main(path: str) -> None:
    """Print a line for each engine: mean and median errors, and of how many points."""
    rows = [row for row in read_rows(path) if row.source == SOURCE and not suspicion(row)]
    judged = validate(rows).judged
    print(f"{'mean / median, %':16} {'TTFT':>12} {'TPOT':>12} {'E2E':>12} {'points':>7}")
    for name, chosen in CHOSEN.items():
        errors = []
        for row, outcome in judged:
            first, each = (headline((row, outcome), metric) for metric in ("ttft", "tpot"))
            if chosen(row) and first and each and row.osl_mean:
                whole = tuple(first[i] + (row.osl_mean - 1) * each[i] for i in (0, 1))
                errors.append([abs(said / measured - 1) for measured, said in (first, each, whole)])
        table = 100 * np.array(errors)
        said = (f"{column.mean():.1f} / {np.median(column):.1f}" for column in table.T)
        print(f"{name:16} {' '.join(f'{text:>12}' for text in said)} {len(table):7,}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/means.py TABLE.csv.gz")
    main(sys.argv[1])
