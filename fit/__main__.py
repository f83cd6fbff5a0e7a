"""Fits all data files of the cost model again: ``python -m fit DATA_DIR`` (``make fit DATA=FOLDER``).

Each stage rests on the files that those before it wrote: operator laws, host terms of engines, power, intervals, what
published pairs tell. The files are written into src/headway/cost/data, and docs/operator-laws.md with the first; five
minutes on two cores. ``--only`` runs some of the stages.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fit.stages import STAGES, lacking, ran, stale


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages asked for, each in a process of its own, and stop at the first that fails."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m fit", description=__doc__, formatter_class=formatter)
    parser.add_argument("data", type=Path, metavar="DATA_DIR")
    parser.add_argument("--only", nargs="+", choices=list(STAGES), default=list(STAGES), metavar="STAGE",
                        help=f"of {', '.join(STAGES)}")  # fmt: skip
    parser.add_argument("--cores", type=int, default=2)
    asked = parser.parse_args(arguments)
    names = [name for name in STAGES if name in asked.only]
    refusal = lacking(asked.data, names)
    if refusal:
        sys.exit(refusal)
    begin = time.monotonic()
    for place, name in enumerate(names, start=1):
        print(f"[{place}/{len(names)}] {name}", flush=True)
        print(f"[{place}/{len(names)}] {name}: {ran(name, asked.data, asked.cores)}", flush=True)
    print(f"{time.monotonic() - begin:.0f} s in all{stale(names)}")


if __name__ == "__main__":
    main()
