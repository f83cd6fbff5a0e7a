"""Rows whose prefill and decode run apart: their two sides stand in the notes."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from headway.accuracy.express import (
    REQUESTS_MAX,
    WAVES,
    Case,
    base_replica,
    checked,
    closed_loop,
    cut,
    drawn,
    engine_settings,
    lengths,
    reaching,
    whole_load,
)
from headway.accuracy.reading import Inexpressible
from headway.accuracy.rows import Row
from headway.hardware import gpu
from headway.model import model
from headway.sim import Deployment, Pool

__all__ = ["express_split"]

_PAIR = re.compile(r"(\w+)=(\d+(?:\.\d+)?|nan)(?!\S)")
_SIDE = re.compile(r"(prefill|decode)\[([^\]]*)\]")


def express_split(row: Row) -> Case:
    """Return the case of a row whose notes give `prefill[...]` and `decode[...]`.

    Raises:
        Inexpressible: numbers of workers or the load are not stated.
    """
    sides = {role: {name: float(text) for name, text in _PAIR.findall(body)} for role, body in _SIDE.findall(row.notes)}
    if set(sides) != {"prefill", "decode"}:
        raise Inexpressible("split: prefill and decode not described in the notes")
    users = whole_load(row.concurrency)
    if users == 1:  # one request at a time is in one worker of each kind, however many there are
        sides = {role: side | {"num_workers": 1.0} for role, side in sides.items()}
    if not all(side.get("num_workers", 0) >= 1 and side.get("tp_size", 0) >= 1 for side in sides.values()):
        raise Inexpressible("split: number of workers not stated")
    prompt, output = lengths(row)
    pools = tuple(_pool(row, role, sides[role]) for role in ("prefill", "decode"))
    requests = min(WAVES * users, max(REQUESTS_MAX, 4 * users))
    loop = closed_loop(users, requests, drawn(row, prompt), drawn(row, output))
    return Case(kind="closed", deployment=Deployment(pools=pools), workload=loop)


def _pool(row: Row, role: str, side: dict[str, float]) -> Pool:
    base = base_replica(row)
    limit = side.get("batch_size", 0) if role == "decode" else 0  # of one data-parallel rank
    ranks = int(side.get("attention_dp_size", 1))
    settings = engine_settings(row, gpu(base.gpu), limit if limit >= 1 else -(-(row.concurrency or 1) // ranks))
    sized = msgspec.structs.replace(base, engine=settings)
    dp = ranks if model(base.model).experts else 1
    reached = reaching(sized, sum(lengths(row)))
    replica = cut(reached, int(side["tp_size"]), int(side.get("pp_size", 1)), dp, int(side.get("moe_ep_size", 1)) or 1)
    role_name: Literal["prefill", "decode"] = "prefill" if role == "prefill" else "decode"
    return Pool(role=role_name, count=int(side["num_workers"]) * (ranks // dp), replica=checked(replica))
