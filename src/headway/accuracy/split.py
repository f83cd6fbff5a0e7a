"""Rows whose prefill and decode run apart: their two sides stand in the notes."""

from __future__ import annotations

import re
from typing import Literal

from headway.accuracy.express import (
    JITTER,
    REQUESTS_MAX,
    WAVES,
    Case,
    checked,
    closed_loop,
    engine_settings,
    lengths,
    spread,
    whole_load,
)
from headway.accuracy.reading import Inexpressible, precisions, read_gpu, read_model
from headway.accuracy.rows import Row
from headway.cost import Replica
from headway.sim import Deployment, Pool

__all__ = ["express_split"]

_PAIR = re.compile(r"(\w+)=(\d+(?:\.\d+)?|nan)(?!\S)")
_SIDE = re.compile(r"(prefill|decode)\[([^\]]*)\]")


def express_split(row: Row) -> Case:
    """Return the case of a row whose notes give `prefill[...]` and `decode[...]`.

    Raises:
        Inexpressible: numbers of workers or the load are not stated, or attention is data-parallel.
    """
    sides = {role: {name: float(text) for name, text in _PAIR.findall(body)} for role, body in _SIDE.findall(row.notes)}
    if set(sides) != {"prefill", "decode"}:
        raise Inexpressible("split: prefill and decode not described in the notes")
    if not all(side.get("num_workers", 0) >= 1 and side.get("tp_size", 0) >= 1 for side in sides.values()):
        raise Inexpressible("split: number of workers not stated")
    if any(side.get("attention_dp_size", 1) > 1 for side in sides.values()):
        raise Inexpressible("split: data-parallel attention over shared experts")
    users = whole_load(row.concurrency)
    prompt, output = lengths(row)
    pools = tuple(_pool(row, role, sides[role]) for role in ("prefill", "decode"))
    requests = min(WAVES * users, max(REQUESTS_MAX, 4 * users))
    loop = closed_loop(users, requests, spread(prompt, JITTER), spread(output, JITTER))
    return Case(kind="closed", deployment=Deployment(pools=pools), workload=loop)


def _pool(row: Row, role: str, side: dict[str, float]) -> Pool:
    key, card = read_model(row), read_gpu(row)
    weights, kv = precisions(row, key, card)
    limit = side.get("batch_size", 0) if role == "decode" else 0
    replica = Replica(
        model=key,
        gpu=card.key,
        tp=int(side["tp_size"]),
        pp=int(side.get("pp_size", 1)),
        weights=weights,
        kv=kv,
        engine=engine_settings(row, limit if limit >= 1 else row.concurrency or 1),
    )
    role_name: Literal["prefill", "decode"] = "prefill" if role == "prefill" else "decode"
    return Pool(role=role_name, count=int(side["num_workers"]), replica=checked(replica))
