"""Moving a prompt's KV from one replica to another."""

from __future__ import annotations

import functools

from headway.cost.memory import kv_shard_bytes
from headway.cost.replica import Replica, resolve
from headway.hardware import Link, gpu, node

__all__ = ["kv_link", "kv_transfer_bytes"]


@functools.lru_cache(maxsize=1024)
def kv_transfer_bytes(replica: Replica, tokens: int) -> int:
    """Return the KV bytes of `tokens` that one GPU of the replica sends or receives, windows applied.

    All GPUs of a replica move their shards at the same time; with a pipeline this is the fullest stage's.

    Raises:
        UnknownName, BadInput: see `resolve`.
    """
    return kv_shard_bytes(replica, resolve(replica)[0], tokens)


def kv_link(source: Replica, target: Replica) -> Link:
    """Return the link a GPU of `source` reaches a GPU of `target` by.

    The scale-up link when both replicas are of one kind of GPU and fit into one node together, else the
    network card of the slower side.
    """
    card, other = gpu(source.gpu), gpu(target.gpu)
    if card.key == other.key and source.gpus + target.gpus <= card.gpus_per_node:
        return node(card.key, 1).scale_up
    slower = min(card, other, key=lambda end: end.rdma_bytes_per_s)
    return node(slower.key, 1).scale_out
