"""`make soak`: many more random lives of the brain than `make test` has, on all cores."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor

from brain_cases import Life

EVENTS, SHARE, PROGRESS = 80, 250, 10_000


def lives(first: int) -> list[str]:
    """Live `SHARE` of them; what went wrong."""
    faults = []
    for seed in range(first, first + SHARE):
        try:
            Life(seed).run(EVENTS)
        except Exception:
            faults.append(f"seed {seed}: {traceback.format_exc(limit=-2)}")
    return faults


def main() -> None:
    """Live them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lives", type=int, nargs="?", default=100_000)
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    began_s = time.monotonic()
    firsts = range(asked.first, asked.first + asked.lives, SHARE)
    count, faults = 0, 0
    with ProcessPoolExecutor(asked.processes) as pool:
        for found in pool.map(lives, firsts):
            print(*found, sep="\n", end="\n" if found else "", flush=True)
            count, faults = count + SHARE, faults + len(found)
            if not count % PROGRESS:
                print(f"{count:,} lives", file=sys.stderr, flush=True)
    print(f"{count:,} lives of {EVENTS} events, {faults} faults, {time.monotonic() - began_s:.0f} s")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
