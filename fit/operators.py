"""Fit every operator law: ``python -m fit.operators DATA_DIR`` writes the data file and docs/operator-laws.md.

DATA_DIR holds the operator timings published by NVIDIA aiconfigurator (Apache-2.0) as ``ops_*.csv.gz``. The result
depends on nothing but the files; it takes a few minutes on one core.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from fit import bakeoff, report
from fit.laws import (
    ENGINES,
    FALLBACK_ORDER,
    Line,
    attention_lines,
    collective_lines,
    dispatch_lines,
    expert_lines,
    gemm_lines,
    mla_lines,
)
from fit.read import columns

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "src" / "headway" / "cost" / "data" / "operators.json"
PAGE = ROOT / "docs" / "operator-laws.md"
SOURCE = "operator timings published by NVIDIA aiconfigurator (Apache-2.0)"


def main(folder: Path) -> None:
    """Fit all operators, write the data file and the page."""
    begin = time.monotonic()

    def said(name: str, lines: list[Line]) -> list[Line]:
        print(f"{time.monotonic() - begin:6.1f} s  {name}: {len(lines)} laws", flush=True)
        return lines

    products = columns(folder, "gemm")
    lines = said("matrix products", gemm_lines(products))
    contest = bakeoff.contest(products)
    transfer = bakeoff.transfer(products)
    print(f"{time.monotonic() - begin:6.1f} s  predictors compared", flush=True)
    del products
    lines += said("experts", expert_lines(columns(folder, "moe")))
    for op in ("decode", "prefill"):
        lines += said(f"{op} attention", attention_lines(columns(folder, f"attention_{op}"), op))
    lines += said("MLA", mla_lines(columns(folder, "mla")))
    lines += said("collectives", collective_lines(columns(folder, "collectives")))
    lines += said("expert dispatch", dispatch_lines(columns(folder, "deepep")))
    write(lines, DATA)
    PAGE.write_text(report.page(lines, contest, transfer, DATA.stat().st_size), encoding="utf-8")
    print(f"{time.monotonic() - begin:6.1f} s  {DATA.name} {DATA.stat().st_size} bytes, {PAGE.name}", flush=True)


def write(lines: list[Line], path: Path) -> None:
    """Write the data file: one law a line, engines in the order in which they stand in for one another."""
    ops = list(dict.fromkeys(line.op for line in lines))

    def place(line: Line) -> tuple[int, str, str, int]:
        order = FALLBACK_ORDER.get(line.op, ENGINES)
        engine = order.index(line.engine) if line.engine in order else len(order)
        return ops.index(line.op), line.of, line.gpu, engine

    shipped = [line for line in sorted(lines, key=place) if line.law]
    texts = [json.dumps(line.entry(), separators=(",", ":")) for line in shipped]
    path.write_text(f'{{"source":{json.dumps(SOURCE)},"laws":[\n' + ",\n".join(texts) + "\n]}\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m fit.operators DATA_DIR")
    main(Path(sys.argv[1]))
