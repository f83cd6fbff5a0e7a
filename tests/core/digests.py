"""A line per random case that says all that came of it, floats in hexadecimal: `python digests.py 0 500`.

Run once on the compiled core and once on the interpreted one, the lines must be the same (law 9).
"""

from __future__ import annotations

import hashlib
import sys

import numpy as np
from drive import Nosy, Served, make_case, make_cluster_case, run_cluster, run_core, run_ranks, with_ranks

import headway
from headway.engine import Engine


def words(values: object) -> list[str]:
    """Numbers as text that keeps every bit; NaN has no sign."""
    array = np.asarray(values)
    if array.dtype.kind == "f":
        return [value.hex() for value in array.ravel().tolist()]
    return [str(value) for value in array.ravel().tolist()]


def engine_words(engine: Engine) -> list[str]:
    """What an engine counted."""
    told = words([engine.busy.until(0.0), engine.gaps.sum_s(engine.law)]) + words(engine.gaps.as_array())
    told += words([engine.kv.peak, engine.preemptions, engine.queried_tokens, engine.hit_tokens])
    return told + [word for value in engine.work.as_dict().values() for word in words(value)]


def cluster_words(served: Served) -> list[str]:
    """What the cluster's own objects counted."""
    told = words([served.cluster.now]) + words([served.cluster.events])
    if served.handoff is not None:
        told += words([served.handoff.bytes_moved, served.handoff.wait_s])
    if isinstance(served.router, Nosy):
        told.append(repr(served.router.log))
    return told


def digest(seed: int) -> str:
    """Case `seed`: a cluster where it is odd, else one replica; every sixth on data-parallel ranks."""
    if seed % 2:
        served = run_cluster(make_cluster_case(seed))
        columns, engines, told = served.columns, served.engines, cluster_words(served)
    elif seed % 6 == 0:
        columns, engines = run_ranks(with_ranks(make_case(seed), seed))
        told = words(engines[0].group.shared_by_tokens)
    else:
        columns, engine = run_core(make_case(seed))
        engines, told = [engine], []
    for name, column in columns.items():
        told += [name, *words(column)]
    for engine in engines:
        told += engine_words(engine)
    return hashlib.sha256(" ".join(told).encode()).hexdigest()


def main(first: int, last: int) -> None:
    print("interpreted" if headway.interpreted_modules() else "compiled")
    for seed in range(first, last):
        print(seed, digest(seed))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
