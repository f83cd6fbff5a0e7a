"""Collectives over 2, 4 and 8 GPUs, and DeepEP's expert dispatch and combine."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fit.read import FAMILIES, Columns, Floats, choose, groups, sheet
from fit.solve import Errors, errors, scalars
from headway.cost.physics import copies_sent, power_sum

OPS = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
}
ENGINES = ("vllm", "sglang", "trtllm")
HOST_STAGED = ("l40s",)  # 5 and 1 GB/s over 4 and 8 GPUs: through the host; served models were 2 to 7 times as fast
_START, _BOUNDS = (6.0, 0.5, 1.0, 2.0), ((0.5, 60.0), (0.005, 1.0), (1e-3, 400.0), (1.0, 8.0))


class Timings(NamedTuple):
    """The fastest row of each size: bytes of the message, seconds of its wire bytes at the link's peak."""

    gpu: str
    engine: str
    op: str
    link: str
    gpus: int
    size: Floats
    wire_s: Floats
    seconds: Floats

    def rows(self, mask: np.ndarray) -> Timings:
        """Return some of the rows."""
        return Timings(*self[:5], *(values[mask] for values in self[5:]))


def timings(table: Columns) -> list[Timings]:
    """Return rows by family, engine, operator and GPUs.

    Engines have two rows for each all-reduce, eager and in a graph, and switch to NCCL at large sizes: the smallest
    of all of them counts. The other operators are NCCL's, whatever the engine.
    """
    found = []
    table = choose(table, (table["source"] == "aiconfigurator") & np.isin(table["op"], list(OPS)))
    for (name, op, count), rows in groups(table, "gpu", "op", "num_gpus").items():
        family, gpus = FAMILIES[name][0], int(count)
        if family in HOST_STAGED:
            continue
        libraries = ENGINES if op == "all_reduce" else ("nccl",)
        for engine in libraries:
            mine = np.isin(rows["lib"], [engine, "nccl"])
            if int(count) not in (2, 4, 8) or not np.any(rows["lib"] == engine):
                continue
            found.append(_fastest(family, engine, OPS[op], gpus, choose(rows, mine)))
    return found


def _fastest(family: str, engine: str, op: str, gpus: int, rows: Columns) -> Timings:
    card = sheet(family)
    size, inverse = np.unique(rows["message_bytes"].astype(float), return_inverse=True)
    seconds = np.full(len(size), np.inf)
    np.minimum.at(seconds, inverse, rows["time_us"] * 1e-6)
    seconds = np.minimum.accumulate(seconds[::-1])[::-1]  # a larger message is never faster
    turns = 2.0 if op == "all_reduce" else 1.0
    wire_s = turns * (gpus - 1) / gpus * size / card.link_bytes_per_s
    small = size <= 512e6
    return Timings(family, engine, op, card.link_kind, gpus, size[small], wire_s[small], seconds[small])


def predict(numbers: Floats, rows: Timings, at: np.ndarray | slice = slice(None)) -> Floats:
    """Return the seconds of the four-parameter law."""
    latency, bus, root, p = numbers
    moving = root * 1e-9 * np.sqrt(rows.size[at]) + rows.wire_s[at] / bus
    return power_sum(np.full_like(moving, latency * 1e-6), moving, p)


def fit(rows: Timings) -> Floats:
    """Return latency in us, share of the link, ns per square root of a byte, exponent."""
    return scalars(lambda x, at: predict(x, rows, at), rows.seconds, _START, _BOUNDS)


def outside(rows: Timings) -> Errors:
    """Return the errors on every other size, fitted on the others."""
    test = np.arange(len(rows.size)) % 2 == 1
    return errors(predict(fit(rows.rows(~test)), rows.rows(test)), rows.seconds[test])


def pool(parts: list[Timings]) -> Timings:
    """Return the rows of several families together."""
    merged = (np.concatenate(column) for column in zip(*(part[5:] for part in parts), strict=True))
    first = parts[0]
    return Timings("pooled", first.engine, first.op, first.link, first.gpus, *merged)


# --- DeepEP -------------------------------------------------------------------------------------------------


class Dispatches(NamedTuple):
    """Dispatch and combine together: bytes in seconds at the peaks of link and network, and seconds timed."""

    gpu: str
    mode: str
    nodes: Floats
    link_s: Floats
    rdma_s: Floats
    seconds: Floats

    def rows(self, mask: np.ndarray) -> Dispatches:
        """Return some of the rows."""
        return Dispatches(*self[:2], *(values[mask] for values in self[2:]))


def dispatch_timings(table: Columns) -> list[Dispatches]:
    """Return rows by family and mode; of several numbers of SMs the fastest counts.

    Rows of H200 on several nodes are copies of the H100's and are left out.
    """
    table = choose(table, ~((table["gpu"] == "H200") & (table["node_num"] > 1)))
    table["low"] = np.array([mode == "ll" for mode in table["mode"]])
    normal = sum(
        np.nan_to_num(table[f"{side}_{part}_us"].astype(float))
        for side in ("dispatch", "combine")
        for part in ("transmit", "notify")
    )
    low = table["dispatch_avg_t_us"].astype(float) + table["combine_avg_t_us"].astype(float)
    table["time_us"] = np.where(table["low"], low, normal)
    found = []
    for (name, mode), rows in groups(table, "gpu", "mode").items():
        found.append(_dispatches(FAMILIES[name][0], mode, _best(choose(rows, rows["time_us"] > 0))))
    return found


_KEY = ("node_num", "hidden_size", "num_token", "num_topk", "num_experts")


def _best(rows: Columns) -> Columns:
    key = np.stack([rows[name].astype(float) for name in _KEY], axis=1)
    order = np.lexsort((rows["time_us"], *key.T[::-1]))
    first = np.ones(len(order), dtype=bool)
    first[1:] = np.any(np.diff(key[order], axis=0) != 0, axis=1)
    return choose(rows, order[first])


def _dispatches(family: str, mode: str, rows: Columns) -> Dispatches:
    card = sheet(family)
    nodes, hidden, tokens, topk, _ = (rows[name].astype(float) for name in _KEY)
    per_node = 4 if family.startswith("gb") else 8
    near, far = np.empty(len(nodes)), np.empty(len(nodes))
    for i in range(len(nodes)):
        near[i], far[i] = copies_sent(mode, int(per_node * nodes[i]), per_node, topk[i])
    size = 3.0 * hidden * tokens  # fp8 there, bf16 back
    near_s, far_s = size * near / card.link_bytes_per_s, size * far / card.rdma_bytes_per_s
    return Dispatches(family, mode, nodes, near_s, far_s, rows["time_us"] * 1e-6)


def predict_dispatch(numbers: Floats, rows: Dispatches, at: np.ndarray | slice = slice(None)) -> Floats:
    """Return the seconds of dispatch and combine."""
    launch, link, rdma_launch, rdma = numbers
    near = rows.link_s[at] / link
    far = np.where(rows.nodes[at] > 1, rdma_launch * 1e-6 + rows.rdma_s[at] / rdma, 0.0)
    return launch * 1e-6 + np.maximum(near, far)


def fit_dispatch(rows: Dispatches) -> Floats:
    """Return launch in us and share of the link, and the same of the network (0 where it was not timed)."""
    far = np.any(rows.nodes > 1)
    start = (30.0, 0.6, 30.0, 0.7)
    bounds = ((5.0, 150.0), (0.05, 1.0), (0.0, 300.0), (0.05, 1.2))
    numbers = scalars(lambda x, at: predict_dispatch(x, rows, at), rows.seconds, start, bounds)
    return numbers if far else np.array([*numbers[:2], np.nan, np.nan])


def outside_dispatch(rows: Dispatches) -> Errors:
    """Return the errors on every third row, fitted on the others."""
    test = np.arange(len(rows.seconds)) % 3 == 1
    numbers = np.nan_to_num(fit_dispatch(rows.rows(~test)), nan=1.0)
    return errors(predict_dispatch(numbers, rows.rows(test)), rows.seconds[test])
